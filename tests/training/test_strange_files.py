"""Files of a run that somebody else wrote, or that were altered: read for what they are, or not."""

import math

import pytest
import torch

from tests.training.test_training_loop import CPU, assert_same, digits, run_steps, small_config  # noqa: F401
from torch_utils import checkpoint
from torch_utils.checkpoint import DamagedError
from training.run_folder import SNAPSHOT, STATE, file_of, files_of, read_best, thin_snapshots
from training.state import latest_state, load_snapshot, load_state, save_snapshot, save_state
from training.stats_file import forget_statistics, read_statistics, strict
from training.training_loop import prepare


@pytest.fixture(scope='module')
def run_dir(digits, tmp_path_factory):  # noqa: F811
    """A folder with a state and a snapshot of 32 images."""
    folder = tmp_path_factory.mktemp('run')
    config = small_config(digits, dropout=0.0)
    state = run_steps(config, 2)
    save_state(state, config, folder)
    save_snapshot(state, config, folder)
    return folder


def altered(run_dir, tmp_path, kind=STATE, **changes):
    """A copy of the file with other values and a right checksum."""
    source = files_of(run_dir, kind)[0]
    contents = checkpoint.load(source, kind)
    for name, value in changes.items():
        contents[name] = value(contents[name]) if callable(value) else value
    checkpoint.save(contents, tmp_path / source.name)
    return tmp_path / source.name


def first_tensor(change):
    return lambda tensors: {name: change(tensor) if i == 0 else tensor
                            for i, (name, tensor) in enumerate(tensors.items())}


@pytest.mark.parametrize(('key', 'value'), [
    ('config', 7), ('fingerprint', None), ('nimg', -1), ('nimg', 1.5), ('nimg', True),
    ('nimg', 2**60), ('nimg', None), ('seconds', math.nan), ('seconds', 'long'),
    ('ema_rampup', 1), ('lr_factor', 0), ('lr_factor', 2.0), ('lr_factor', math.inf),
    ('bad_steps', '3'), ('loss_scale', [0.0, 1]), ('loss_scale', [1.0]), ('loss_scale', 'x'),
    ('net', []), ('net', {}), ('net', {1: torch.zeros(1)}),
    ('net', first_tensor(lambda tensor: tensor.to(torch.int64))),
    ('net', first_tensor(lambda tensor: tensor.flatten())),
    ('net', first_tensor(lambda tensor: [1.0])),
    ('averages', {}), ('averages', {'ema': 3}), ('averages', {0: {}}),
    ('optimizer', None), ('optimizer', {'state': []}),
    ('stats', {}), ('stats', [{'Loss/loss': torch.zeros(2)}]), ('stats', [{'Loss/loss': 1.0}]),
])
def test_states_of_wrong_kinds_end_in_one_line(run_dir, digits, tmp_path, key, value):  # noqa: F811
    path = altered(run_dir, tmp_path, **{key: value})
    with pytest.raises(ValueError, match=path.name) as refusal:
        contents = load_state(path)
        prepare(small_config(digits, dropout=0.0), CPU, resume=(str(path), contents))
    assert '\n' not in str(refusal.value)


@pytest.mark.parametrize(('key', 'value'), [
    ('config', None), ('config', {}), ('nimg', 'x'), ('ema', 3), ('ema', {}), ('ema_name', 3),
    ('averages', None), ('labels', 3), ('labels', {'counts': 1}),
    ('ema', first_tensor(lambda tensor: tensor.to(torch.int64))),
])
def test_snapshots_of_wrong_kinds_end_in_one_line(run_dir, tmp_path, key, value):
    path = altered(run_dir, tmp_path, SNAPSHOT, **{key: value})
    with pytest.raises(ValueError, match=path.name) as refusal:
        load_snapshot(path)
    assert '\n' not in str(refusal.value)


def test_a_state_does_not_set_the_optimizer(run_dir, digits, tmp_path):  # noqa: F811
    config = small_config(digits, dropout=0.0)

    def poisoned(optimizer):
        groups = [{**group, 'maximize': True, 'weight_decay': 10.0, 'betas': (0.0, 0.0),
                   'amsgrad': True, 'eps': 1e9} for group in optimizer['param_groups']]
        return {**optimizer, 'param_groups': groups}

    path = altered(run_dir, tmp_path, optimizer=poisoned)
    ends = []
    for origin in (path, files_of(run_dir, STATE)[0]):
        state, _ = prepare(config, CPU, resume=(str(origin), load_state(origin)))
        ends.append(run_steps(config, 2, state))
    assert_same(ends[0].net.state_dict(), ends[1].net.state_dict())


@pytest.mark.parametrize(('change', 'message'), [
    ({'exp_avg': torch.zeros(3)}, 'the moments of parameter 0 have the shapes'),
    ({'exp_avg': None}, 'the moments of parameter 0 are incomplete'),
    ({'step': torch.tensor(math.nan)}, 'the moments of parameter 0 are of no number of steps'),
    ({'exp_avg': lambda tensor: tensor * math.nan}, 'the moments of parameter 0 are not finite'),
    ({'exp_avg_sq': lambda tensor: tensor - 1}, 'not finite, or negative'),
    ({'exp_avg': lambda tensor: tensor.to(torch.int64)}, 'the moments of parameter 0 have the'),
])
def test_moments_that_do_not_fit(run_dir, digits, tmp_path, change, message):  # noqa: F811
    def changed(optimizer):
        entry = dict(optimizer['state'][0])
        for name, value in change.items():
            entry[name] = value(entry[name]) if callable(value) else value
        return {**optimizer, 'state': {**optimizer['state'], 0: entry}}

    path = altered(run_dir, tmp_path, optimizer=changed)
    with pytest.raises(ValueError, match=message):
        prepare(small_config(digits, dropout=0.0), CPU, resume=(str(path), load_state(path)))


def test_a_bit_of_the_kind_is_damage_and_the_state_before_is_taken(run_dir, tmp_path):
    """The checksum speaks first: what is damaged has no meaning."""
    old = files_of(run_dir, STATE)[0]
    altered(run_dir, tmp_path, nimg='x').rename(tmp_path / 'training-state-000002.pt')
    (tmp_path / 'training-state-000000.pt').write_bytes(old.read_bytes())
    data = old.read_bytes()
    at = data.index(b'training state')
    (tmp_path / 'training-state-000001.pt').write_bytes(
        data[:at] + bytes([data[at] ^ 1]) + data[at + 1:])
    with pytest.raises(DamagedError, match='training-state-000001.pt is damaged'):
        load_state(tmp_path / 'training-state-000001.pt')
    (tmp_path / 'training-state-000003.pt').mkdir()
    said = []
    found = latest_state(tmp_path, said.append)
    assert found is not None and found[0].name == 'training-state-000000.pt'
    assert [line.partition('.pt')[0][-6:] for line in said] == ['000003', '000002', '000001']


GARBAGE = [b'\xff\xfe{"Progress/kimg": {"mean": 1}}', b'{"Progress/kimg": {"mean": Infinity}}',
           b'{"Progress/kimg": {"mean": NaN}}', b'[' * 100_000, b'{"Progress/kimg": 3}', b'[]', b'',
           b'{"Progress/kimg": {"mean": "x"}}', b'{"Progress/kimg": {"mean": 1e999}}']


def test_lines_that_are_no_statistics_are_left_out(tmp_path):
    path = tmp_path / 'stats.jsonl'
    good = b'{"Progress/kimg": {"mean": 1}, "Loss/loss": {"mean": NaN}}'
    path.write_bytes(b'\n'.join([*GARBAGE, good, *GARBAGE]))
    [line] = read_statistics(path)
    assert line['Progress/kimg']['mean'] == 1
    forget_statistics(path, 5000)   # writes it anew
    assert path.read_text() == '{"Progress/kimg": {"mean": 1}, "Loss/loss": {"mean": null}}\n'
    assert strict([1, (math.inf, 'a'), {'b': -math.inf}]) == [1, [None, 'a'], {'b': None}]


def test_a_torn_best_json_does_not_cost_the_best_snapshot(tmp_path):
    for kimg in range(6):
        file_of(tmp_path, SNAPSHOT, kimg * 1000).touch()
    (tmp_path / 'network-best.pkl').symlink_to('network-snapshot-000002.pkl')
    for content in (b'{"snapshot": "network-sn', b'\xff', b'[' * 100_000, b'7',
                    b'{"snapshot": "../../precious.pkl", "metric": "fid", "evaluation": {}}'):
        (tmp_path / 'best.json').write_bytes(content)
        assert read_best(tmp_path) is None
    thin_snapshots(tmp_path, 3)
    assert [path.stem[-1] for path in files_of(tmp_path, SNAPSHOT)] == ['0', '2', '5']
