"""--batch=auto and --batch-gpu=auto: less at a time when memory runs out, and the same results."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
import torch

import fid
import generate
import train
from limpid.denoiser import Denoiser, Traits
from options.batches import limit_of
from tests.commands.test_generate import COMMON, run, snapshots  # noqa: F401 (fixtures)
from tests.training.test_training_loop import assert_same, digits, small_config, small_pictures  # noqa: F401
from torch_utils import distributed
from torch_utils.memory import BatchLimit, is_out_of_memory
from training.micro_batch import largest_micro_batch
from training.state import latest_state
from training.training_loop import build

FULL = torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 20.00 MiB')


@pytest.fixture
def memory_for(monkeypatch):
    """memory_for(n, training): let networks fail for more than n images, while gradients are (not)
    wanted; the sizes of all their batches are in the list that it returns."""
    forward = Denoiser.forward

    def limited(most, training=False):
        sizes = []

        def evaluate(self, x, *args, **kwargs):
            if torch.is_grad_enabled() == training:
                sizes.append(len(x))
                if len(x) > most:
                    raise FULL
            return forward(self, x, *args, **kwargs)

        monkeypatch.setattr(Denoiser, 'forward', evaluate)
        return sizes
    return limited


@pytest.mark.parametrize('error, expected', [
    (FULL, True), (MemoryError(), True), (ValueError('out of memory'), False),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), True),
    (RuntimeError('cuDNN error: CUDNN_STATUS_ALLOC_FAILED'), True),
    (RuntimeError('size mismatch'), False)])
def test_errors_of_memory_are_known(error, expected):
    assert is_out_of_memory(error) == expected


def pieces(limit, count, most):
    """The pieces of so many items, where work on more than `most` takes too much memory."""
    def work(piece):
        if len(piece) > most:
            raise FULL
        return sum(piece)

    found = list(limit.pieces(range(count), work))
    assert [made for _, made in found] == [sum(piece) for piece, _ in found]
    assert [i for piece, _ in found for i in piece] == list(range(count))
    return [len(piece) for piece, _ in found]


def test_a_limit_is_halved_once_and_stays():
    limit = BatchLimit(16, adaptive=True)
    assert pieces(limit, 20, most=5) == [4, 4, 4, 4, 4]
    assert limit.size == 4 and pieces(limit, 6, most=5) == [4, 2]
    assert pieces(BatchLimit(7, adaptive=True), 7, most=6) == [4, 3]
    assert pieces(BatchLimit(8), 20, most=9) == [8, 8, 4]


@pytest.mark.parametrize('limit, most', [(BatchLimit(8), 5), (BatchLimit(8, adaptive=True), 0)])
def test_what_is_too_much_in_any_case_is_an_error(limit, most):
    with pytest.raises(torch.OutOfMemoryError):
        pieces(limit, 8, most)


@pytest.mark.parametrize('shape, count, expected', [
    ((3, 32, 32), 1000, 64), ((1, 16, 16), 1000, 64), ((3, 64, 64), 1000, 16),
    ((3, 512, 512), 1000, 1), ((3, 32, 32), 5, 5), ((3, 2048, 2048), 9, 1)])
def test_the_choice_on_a_cpu(shape, count, expected):
    net = SimpleNamespace(traits=Traits(image_shape=shape))
    limit = limit_of('auto', net, torch.device('cpu'), count)
    assert limit == BatchLimit(expected, adaptive=True)
    assert limit_of(7, net, torch.device('cpu'), count) == BatchLimit(7)


def test_generate_goes_on_with_fewer_and_draws_the_same_images(snapshots, tmp_path, memory_for):  # noqa: F811
    """Batches of 3, as with --batch=3: the same bits. Those of 6 differ by rounding: by one level
    of 255, where a value lies between two of them."""
    network = f'--network={snapshots}/cond.pkl'
    for batch in (6, 3):
        result = run(generate.main, network, *COMMON, f'--batch={batch}',
                     f'--outdir={tmp_path}/{batch}')
        assert result.exit_code == 0, result.output
    sizes = memory_for(4)
    result = run(generate.main, network, *COMMON, '--batch=auto', f'--outdir={tmp_path}/auto',
                 '--stats')
    assert result.exit_code == 0, result.output
    assert sizes == [6, 3, 3, 3, 3, 3, 3]
    assert 'Evaluations of the network: 3 per image (NFE)' in result.output   # the failed one apart
    images = {name: np.stack([np.asarray(PIL.Image.open(path)).astype(int) for path in
                              sorted(Path(tmp_path, name).glob('*.png'))])
              for name in ('6', '3', 'auto')}
    assert np.array_equal(images['auto'], images['3'])
    assert np.abs(images['auto'] - images['6']).max() <= 1


def test_fid_gen_judges_the_same_images(snapshots, digits, tmp_path, memory_for):  # noqa: F811
    network, ref = f'--network={snapshots}/uncond.pkl', f'--ref={digits}'
    common = [network, ref, '--num=20', '--blocks=1', '--detector=demo', '--steps=1',
              '--device=cpu']
    expected = run(fid.main, 'gen', *common, '--batch=5')
    sizes = memory_for(8)
    result = run(fid.main, 'gen', *common, '--batch=auto')
    assert result.exit_code == 0, result.output
    assert sizes == [20, 10, 5, 5, 5, 5]
    assert result.output.splitlines()[-1] == expected.output.splitlines()[-1]


@pytest.mark.parametrize('value', ['0', '-1', '1.5', 'automatic'])
def test_other_words_are_refused(value):
    result = run(generate.main, '--network=x', '--outdir=y', f'--batch={value}')
    assert f"'{value}' is neither a positive whole number nor auto" in result.output
    assert result.exit_code == 2


def trained(folder, digits, *options, kimg='0.048'):  # noqa: F811
    """The state of a run with dropout and augmentation, 16 images to a step, and its options."""
    result = run(train.main, f'--run={folder}', f'--data={digits}', '--cbase=16', '--cres=1',
                 '--blocks=1', '--batch=16', '--dropout=0.2', '--lr-rampup=0', '--tick=0.016',
                 f'--duration={float(kimg) / 1000}', '--snap=100', '--dump=1', '--pictures=0',
                 '--workers=0', '--device=cpu', *options)
    assert result.exit_code == 0, result.output
    contents = latest_state(folder, print)[1]
    stored = json.loads((folder / 'training_options.json').read_text())
    assert stored['batch_gpu'] == contents['config']['batch_gpu']
    return contents


def same_training(a, b):
    assert_same(a['net'], b['net'])
    for place, moments in a['optimizer']['state'].items():
        assert_same(moments, b['optimizer']['state'][place])


def test_training_halves_its_micro_batch_and_is_the_run_of_that_size(digits, tmp_path, memory_for):  # noqa: F811
    """16, 8 and 4 images are tried for 6 that fit; when more fit later on, 4 it stays."""
    expected = trained(tmp_path / 'given', digits, '--batch-gpu=4')
    sizes = memory_for(6, training=True)
    trained(tmp_path / 'auto', digits, '--batch-gpu=auto', kimg='0.016')
    assert sizes == [16, 8, 4] + 4 * [4]
    sizes = memory_for(100, training=True)
    found = trained(tmp_path / 'auto', digits, '--batch-gpu=auto')
    assert sizes == [4] + 8 * [4]
    assert found['config']['batch_gpu'] == 4
    same_training(found, expected)


def test_where_all_fits_nothing_changes(digits, tmp_path):  # noqa: F811
    expected = trained(tmp_path / 'plain', digits, kimg='0.016')
    found = trained(tmp_path / 'auto', digits, '--batch-gpu=auto', kimg='0.016')
    assert (expected['config']['batch_gpu'], found['config']['batch_gpu']) == (None, 16)
    same_training(found, expected)


def test_ranks_agree_on_what_fits_on_all_of_them(digits, monkeypatch, memory_for):  # noqa: F811
    """The other of two ranks has room for 3 of its 8 images, this one for 7."""
    config = small_config(digits, batch_size=16)
    state = build(config, torch.device('cpu'))
    sizes = memory_for(7, training=True)
    monkeypatch.setattr(distributed, 'get_world_size', lambda: 2)
    monkeypatch.setattr(distributed, 'gather_objects', lambda mine: [mine, sizes[-1] <= 3])
    assert largest_micro_batch(config, state, torch.device('cpu')) == 2
    assert sizes == [8, 4, 2]
    assert all(parameter.grad is None for parameter in state.net.parameters())
