"""generate.py and train.py as their users see them: images by seed, and mistakes in one line."""

import functools
import json
import os
import re
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from click.testing import CliRunner

import generate
import train
from limpid.labels import Labels
from limpid.pixels import to_uint8
from limpid.sampling import plan
from limpid.seeds import StackedGenerator, share_of
from tests.training.test_training_loop import digits, small_config, small_pictures, torchrun  # noqa: F401 (fixtures)
from torch_utils import checkpoint
from training import config as configs
from training.compiled import compile_blocks
from training.networks import build_network
from training.state import load_snapshot


@pytest.fixture(scope='module')
def snapshots(digits, tmp_path_factory):  # noqa: F811
    """Untrained networks with lively weights: conditional and unconditional."""
    folder = tmp_path_factory.mktemp('snapshots')
    for name, label_dim in [('cond', 10), ('uncond', 0)]:
        config = small_config(digits)
        config = configs.decode({**configs.encode(config), 'network': {
            **configs.encode(config)['network'], 'label_dim': label_dim}}, type(config))
        torch.manual_seed(1)
        net = build_network(config.network)
        with torch.no_grad():
            for parameter in net.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(std=parameter[0].numel() ** -0.5)
        checkpoint.save({'kind': 'network snapshot', 'format': 1, 'config': configs.encode(config),
                         'nimg': 0, 'ema': checkpoint.state_dict_of(net), 'ema_name': '0.5',
                         'averages': {}}, folder / f'{name}.pkl')
    return folder


def run(command, *arguments):
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def with_labels(snapshots, path, labels):
    """A copy of the conditional network that tells the labels of its data."""
    contents = checkpoint.load(snapshots / 'cond.pkl', 'network snapshot')
    checkpoint.save({**contents, 'labels': labels.plain()}, path)
    return f'--network={path}'


COMMON = ['--steps=2', '--device=cpu', '--seeds=0-5']


def test_classes_by_name_and_by_occurrence(snapshots, tmp_path):
    """Classes 2 and 7 of ten occur; seeds 0 to 5 take turns if they are balanced."""
    counts = [0, 0, 3, 0, 0, 0, 0, 1, 0, 0]
    names = tuple('cat' if count == 3 else 'dog' if count else '' for count in counts)
    network = with_labels(snapshots, tmp_path / 'gaps.pkl', Labels(tuple(counts), names))
    for name, options in [('numbers', ['--class=2,7']), ('names', ['--class=cat,dog']),
                          ('turns', ['--draw-labels=balanced']), ('even', [])]:
        result = run(generate.main, network, *COMMON, *options, f'--outdir={tmp_path}/{name}')
        assert result.exit_code == 0, result.output
    expected = pixels(tmp_path / 'numbers', range(6))
    assert np.array_equal(pixels(tmp_path / 'names', range(6)), expected)
    assert np.array_equal(pixels(tmp_path / 'turns', range(6)), expected)
    generators = [torch.Generator().manual_seed(seed) for seed in range(6)]
    drawn = [(torch.randn([1, 8, 8], generator=generator),
              (2, 7)[torch.randint(2, [], generator=generator)])[1] for generator in generators]
    assert set(drawn) == {2, 7}
    classes = ','.join(map(str, drawn))
    assert run(generate.main, network, *COMMON, f'--class={classes}',
               f'--outdir={tmp_path}/drawn').exit_code == 0
    assert np.array_equal(pixels(tmp_path / 'even', range(6)), pixels(tmp_path / 'drawn', range(6)))
    for option, message in [
            ('--class=3', '--class=3: no image of that class was in the training data'),
            ('--class=eel', '--class=eel: this network has no class of that name; its classes are '
                            'cat, dog')]:
        result = run(generate.main, network, *COMMON, option, f'--outdir={tmp_path}/none')
        assert result.exit_code == 2
        assert result.output.strip().splitlines()[-1] == f'Error: {message}'


def test_label_vectors_of_the_data_are_drawn(snapshots, tmp_path):
    """All images have one vector: the seeds draw that, and no one-hot vector."""
    vector = tuple(0.25 * i for i in range(10))
    network = with_labels(snapshots, tmp_path / 'vectors.pkl', Labels((4,), vectors=(vector,)))
    assert run(generate.main, network, *COMMON, f'--outdir={tmp_path}/out').exit_code == 0
    net, _ = load_snapshot(tmp_path / 'vectors.pkl')
    noise = StackedGenerator(range(6), 'cpu').randn([6, 1, 8, 8])
    images = to_uint8(plan(net, num_steps=2)(net, noise, torch.tensor([vector] * 6)))
    assert np.array_equal(pixels(tmp_path / 'out', range(6)), images[:, 0].numpy())
    result = run(generate.main, network, *COMMON, '--class=3', f'--outdir={tmp_path}/none')
    assert result.output.strip().splitlines()[-1] == (
        'Error: --class=3: this network takes label vectors of 10 numbers and knows no classes; '
        'leave --class out')


@pytest.mark.parametrize('name, options, message', [
    ('cond', ['--draw-labels=data'],
     '--draw-labels=data: the file does not say how often each class occurs in the training data; '
     'use even or balanced'),
    ('uncond', ['--draw-labels=balanced'],
     '--draw-labels=balanced: this network is unconditional and takes no labels; leave '
     '--draw-labels out'),
    ('cond', ['--class=cat'],
     '--class=cat: this network has no class of that name; its file does not tell the names of '
     'its classes'),
])
def test_labels_that_cannot_be_drawn(snapshots, tmp_path, name, options, message):
    result = run(generate.main, f'--network={snapshots}/{name}.pkl', *COMMON, *options,
                 f'--outdir={tmp_path}/none')
    assert result.exit_code == 2
    assert result.output.strip().splitlines()[-1] == f'Error: {message}'


def pixels(folder, seeds):
    return np.stack([np.asarray(PIL.Image.open(Path(folder) / f'{seed:06d}.png'))
                     for seed in seeds])


def test_an_image_depends_on_its_seed_alone(snapshots, tmp_path):
    """One file for each seed, the same whatever the batch and the other seeds."""
    common = [f'--network={snapshots}/cond.pkl', '--steps=3', '--device=cpu']
    result = run(generate.main, *common, f'--outdir={tmp_path}/a', '--seeds=3,0,7-9', '--S_churn=2')
    assert result.exit_code == 0, result.output
    result = run(generate.main, *common, f'--outdir={tmp_path}/b', '--seeds=0-9', '--batch=4',
                 '--S_churn=2')
    assert result.exit_code == 0, result.output
    a, b = (pixels(tmp_path / name, [0, 3, 7, 8, 9]).astype(int) for name in 'ab')
    assert a.shape == (5, 8, 8) and a.std() > 10
    assert np.abs(a - b).max() <= 1 and (a != b).mean() <= 1e-3
    assert len({image.tobytes() for image in a}) == 5


def test_a_log_tells_how_far_drawing_is(snapshots, tmp_path, monkeypatch):
    monkeypatch.setattr('dnnlib.progress.FIRST', 0.0)
    result = run(generate.main, f'--network={snapshots}/cond.pkl', f'--outdir={tmp_path}',
                 '--steps=1', '--device=cpu', '--seeds=0-4', '--batch=1')
    assert result.exit_code == 0, result.output
    assert [line.split(',')[0] for line in result.output.splitlines() if 'batches' in line] == [
        '1 of 5 batches']


def test_faster_networks_draw_the_same_images(snapshots, tmp_path, monkeypatch):
    """Compiled, with the backend that runs the same operations: the same bits. In bfloat16: 8 bits
    at each of some 20 layers leave images that most people could not tell apart."""
    monkeypatch.setattr('training.compiled.compile_blocks',
                        functools.partial(compile_blocks, backend='eager'))
    common = [f'--network={snapshots}/cond.pkl', '--steps=3', '--device=cpu', '--seeds=0-5']
    for name, options in [('plain', []), ('fp32', ['--precision=fp32', '--compile']),
                          ('bf16', ['--precision=bf16'])]:
        result = run(generate.main, *common, f'--outdir={tmp_path}/{name}', *options)
        assert result.exit_code == 0, result.output
    plain, fp32, bf16 = (pixels(tmp_path / name, range(6)).astype(int)
                         for name in ('plain', 'fp32', 'bf16'))
    assert np.array_equal(plain, fp32)
    assert 0 < np.abs(plain - bf16).mean() < 4


def test_two_processes_generate_like_one(snapshots, tmp_path):
    arguments = [f'--network={snapshots}/cond.pkl', '--steps=4', '--seeds=0-12', '--batch=3',
                 '--device=cpu', '--subdirs']
    result = torchrun(2, 'generate.py', *arguments, f'--outdir={tmp_path}/two')
    assert result.returncode == 0, result.stderr
    assert run(generate.main, *arguments, f'--outdir={tmp_path}/one').exit_code == 0
    one, two = (pixels(tmp_path / name / '000000', range(13)).astype(int)
                for name in ['one', 'two'])
    assert np.abs(one - two).max() <= 1 and (one != two).mean() <= 1e-3


def test_the_reference_shares_seeds_in_the_same_way():
    arrays = np.load(Path(__file__).parents[1] / 'golden' / 'stacked_rng.npz')
    for count, batch, world_size, expected in json.loads(str(arrays['__meta__']))['batches']:
        shares = [[part.tolist() for part in share_of(range(count), batch, rank, world_size)]
                  for rank in range(world_size)]
        assert shares == expected


def test_a_grid_is_one_picture_of_the_same_images(snapshots, tmp_path):
    common = [f'--network={snapshots}/cond.pkl', '--steps=2', '--device=cpu', '--class=1,4']
    assert run(generate.main, *common, f'--outdir={tmp_path}/grid', '--grid=2x3').exit_code == 0
    assert run(generate.main, *common, f'--outdir={tmp_path}/files', '--seeds=0-5').exit_code == 0
    grid = np.asarray(PIL.Image.open(tmp_path / 'grid' / 'grid.png'))
    # 8 pixels and a line, shown four times as large
    assert grid.shape == (4 * (2 * 9 + 1), 4 * (3 * 9 + 1))
    assert np.array_equal(grid[40:72:4, 40:72:4], pixels(tmp_path / 'files', range(6))[4])
    assert [path.name for path in (tmp_path / 'grid').iterdir()] == ['grid.png']


def test_subdirs_are_no_use_to_a_grid(tmp_path):
    result = run(generate.main, '--network=x', f'--outdir={tmp_path}', '--grid=2x2', '--subdirs')
    assert (result.exit_code, result.output) == (
        2, 'Error: --subdirs would have no effect with --grid, which is one file\n')


def test_a_grid_shows_one_seed_in_several_classes(snapshots, tmp_path):
    result = run(generate.main, f'--network={snapshots}/cond.pkl', f'--outdir={tmp_path}',
                 '--steps=2', '--device=cpu', '--seeds=5,5,5', '--class=1,4,1', '--grid=1x3')
    assert result.exit_code == 0, result.output
    grid = np.asarray(PIL.Image.open(tmp_path / 'grid.png'))
    one, other, again = (grid[4:36, 4 + 36 * i:36 + 36 * i] for i in range(3))
    assert np.array_equal(one, again) and not np.array_equal(one, other)


def test_classes_are_cycled_and_random_ones_come_from_the_seed(snapshots, tmp_path):
    net, _ = load_snapshot(snapshots / 'cond.pkl')
    seen = []
    net.model.register_forward_pre_hook(lambda module, args: seen.append(
        args[2].argmax(dim=1).tolist()))
    device = torch.device('cpu')
    generate.generate(net, plan(net, num_steps=1), [5, 6], None, device)
    generator = torch.Generator().manual_seed(5)
    torch.randn([1, 8, 8], generator=generator)
    assert seen[0][0] == int(torch.randint(10, [1], generator=generator))
    two = plan(net, num_steps=2)
    a = generate.generate(net, two, [5, 6], seen[0], device)
    assert torch.equal(a, generate.generate(net, two, [5, 6], None, device))


def test_one_step_works_and_an_unconditional_network_too(snapshots, tmp_path):
    for solver in ['euler', 'heun', 'dpmpp-2m', 'adams']:
        result = run(generate.main, f'--network={snapshots}/uncond.pkl',
                     f'--outdir={tmp_path}/{solver}', '--seeds=0-1', '--steps=1',
                     f'--solver={solver}', '--device=cpu')
        assert result.exit_code == 0, result.output
        assert pixels(tmp_path / solver, [0, 1]).shape == (2, 8, 8)


def test_an_old_option_without_effect_is_a_note_and_an_added_one_an_error(snapshots, tmp_path):
    common = [f'--network={snapshots}/cond.pkl', '--seeds=0', '--steps=2', '--device=cpu',
              f'--outdir={tmp_path}/x']
    result = run(generate.main, *common, '--disc=ve', '--rho=5')
    assert (result.exit_code == 0
            and 'Note: --rho has no effect with --sampler=table1 --disc=ve' in result.output)
    result = run(generate.main, *common, '--solver=euler', '--alpha=0.5')
    assert (result.exit_code == 2 and 'Error: --alpha would have no effect with --sampler=table1 '
                                      '--solver=euler' in result.output)


MISTAKES = {
    '--class=3 --network={cond}/../uncond.pkl': '--class=3: this network is unconditional and '
                                                'knows no classes; leave --class out',
    '--class=12': '--class=12 is out of range: this network knows the classes 0 to 9',
    '--seeds=': "Invalid value for '--seeds': '' is not a list of integers and ranges such as "
                "1,2,5-10",
    '--seeds=5-3': "Invalid value for '--seeds': the range 5-3 is empty: write the smaller number "
                   "first",
    '--device=cuda': '--device=cuda: no CUDA device was found here; use --device=cpu or auto',
    '--device=gpu': '--device=gpu is not a device: use auto, cuda, cuda:1, mps or cpu',
    '--steps=0': "Invalid value for '--steps': 0 is not in the range x>=1.",
    '--grid=2x2 --seeds=0-6': '--grid=2x2 holds 4 images, but --seeds names 7',
    '--seeds=4,0,4 --class=0-2': '--seeds names 4 more than once, and there is one file for each '
                                 'seed, 000004.png: leave the repetitions out, or draw them into '
                                 'one picture with --grid',
    '--seeds=0,4294967296': '--seeds: 0 and 4294967296 are equal modulo 2^32 and give the same '
                            'image: leave one of them out',
    '--grid=99999x99999': "Invalid value for '--grid': 99999x99999 has more than 1,000,000 "
                          "images",
    '--grid=2by2': "Invalid value for '--grid': '2by2' is not a number of rows and columns such as "
                   "3x5",
    '--sigma_min=5 --sigma_max=1': 'no noise levels are left: sigma_min=5 and sigma_max=1 must '
                                   'satisfy 0 < sigma_min <= sigma_max < inf within the range of '
                                   'the network, [0, inf]',
    '--S_churn=5 --solver=dpmpp-2m': 'S_churn=5: a multistep solver cannot take fresh noise '
                                     'between its steps; use euler or heun',
}


@pytest.mark.parametrize('arguments', MISTAKES)
@pytest.mark.skipif(torch.cuda.is_available(), reason='expects no GPU')
def test_mistakes_end_in_one_line(snapshots, tmp_path, arguments):
    given = {'--network': f'{snapshots}/cond.pkl', '--outdir': f'{tmp_path}/out', '--device': 'cpu'}
    given.update(argument.replace('{cond}', f'{snapshots}/cond.pkl').split('=', 1)
                 for argument in arguments.split())
    given['--network'] = given['--network'].replace('cond.pkl/../', '')
    result = run(generate.main, *[f'{name}={value}' for name, value in given.items()])
    assert result.exit_code == 2, result.output
    assert result.output.splitlines()[-1] == f'Error: {MISTAKES[arguments]}'
    assert not (tmp_path / 'out').exists()


def test_an_image_that_cannot_be_written_ends_in_one_line(snapshots, tmp_path):
    """A thread writes it; the images before it are whole, and nothing is half."""
    (tmp_path / '000003.png').mkdir()
    result = run(generate.main, f'--network={snapshots}/cond.pkl', f'--outdir={tmp_path}',
                 '--seeds=0-7', '--batch=4', '--steps=2', '--device=cpu')
    assert result.exit_code == 2, result.output
    last = result.output.splitlines()[-1]
    assert re.fullmatch(rf'Error: {tmp_path}/.000003.png.\w{{8}}.tmp: Is a directory', last)
    assert len(pixels(tmp_path, range(3))) == 3
    assert sorted(os.listdir(tmp_path)) == [f'{i:06d}.png' for i in range(4)]


def damaged(path, tmp_path):
    data = Path(path).read_bytes()
    broken = tmp_path / 'broken.pkl'
    broken.write_bytes(data[:len(data) // 2])
    return broken


def test_missing_damaged_and_foreign_networks(snapshots, tmp_path):
    import pickle

    class Evil:
        def __reduce__(self):
            return (exec, (f'open({str(tmp_path / "poison")!r}, "w")',))

    foreign = tmp_path / 'foreign.pkl'
    foreign.write_bytes(pickle.dumps({'ema': Evil()}))
    other = tmp_path / 'other.pkl'
    torch.save({'kind': 'shopping list'}, other)
    unnamed = tmp_path / 'unnamed.pkl'
    torch.save({'a': 1}, unnamed)
    for path, message in [
        (
            tmp_path / 'no.pkl',
            f'{tmp_path}/no.pkl: there is no such network snapshot or training state',
        ),
        (
            tmp_path,
            f'{tmp_path} is a folder without model_index.json or config.json, which a folder of '
            f'diffusers has; of the folder of a run name a file, such as network-best.pkl or '
            f'network-snapshot-*.pkl',
        ),
        (
            damaged(snapshots / 'cond.pkl', tmp_path),
            'broken.pkl is damaged or not a network snapshot or training state',
        ),
        (foreign, 'foreign.pkl is not a network snapshot or training state of ours'),
        (other, 'other.pkl is a shopping list, not a network snapshot or training state'),
        (
            unnamed,
            'unnamed.pkl is not a network snapshot or training state: it does not say what it is',
        ),
    ]:
        result = run(generate.main, f'--network={path}', f'--outdir={tmp_path}/out', '--device=cpu')
        assert result.exit_code == 2 and message in result.output, result.output
        assert len(result.output.strip().splitlines()) == 1
    assert not (tmp_path / 'out').exists() and not (tmp_path / 'poison').exists()


TRAIN_MISTAKES = {
    '--data=nowhere.zip': 'nowhere.zip: no such zip or folder',
    '--cond=1 --data={plain}': ' has no labels: add a dataset.json',
    '--resume=no.pt': '--resume=no.pt: there is no such file',
    '--transfer=no.pkl': '--transfer=no.pkl: there is no such file',
    '--device=cuda': '--device=cuda: no CUDA device was found here',
    '--fp16=1 --bf16=1': '--fp16 and --bf16 exclude each other',
    '--fp16=1 --precision=bf16': '--precision takes the place of --fp16 and --bf16; give one of '
                                 'them',
    '--label-dropout=0.1': '--label-dropout=0.1 would have no effect without --cond=1',
    '--precond=vp --sigma_data=0.5': '--sigma_data would have no effect with VP, UniformTime',
    '--noise=ve --P_mean=0': '--P_mean would have no effect with EDM, LogUniform',
    '--hybrid=1': '--hybrid=1 needs --precond=iddpm with its own noise levels and weighting',
    '--cres=1,1,1,1,1,1': 'a resolution of 8 cannot be halved 5 times',
    '--arch=ddpm': "'ddpm' is not one of 'ddpmpp', 'ncsnpp', 'adm'",
}


@pytest.mark.parametrize('arguments', TRAIN_MISTAKES)
@pytest.mark.skipif(torch.cuda.is_available(), reason='expects no GPU')
def test_mistakes_in_training_end_in_one_line(digits, tmp_path, arguments):  # noqa: F811
    plain = tmp_path / 'plain'
    plain.mkdir()
    PIL.Image.new('L', (8, 8)).save(plain / 'a.png')
    given = {'--data': digits, '--outdir': f'{tmp_path}/runs', '--cres': '1,2', '--device': 'cpu'}
    given.update(argument.replace('{plain}', str(plain)).split('=', 1)
                 for argument in arguments.split())
    result = run(train.main, *[f'{name}={value}' for name, value in given.items()])
    assert result.exit_code == 2, result.output
    assert TRAIN_MISTAKES[arguments] in result.output.splitlines()[-1]
    assert result.output.splitlines()[-1].startswith('Error: ')
    assert not (tmp_path / 'runs').exists()


def test_a_batch_that_does_not_divide_is_told_what_would():
    for batch, right in [(10, '9 or 12'), (2, '3')]:
        with pytest.raises(ValueError, match=f'--batch={batch} is not a multiple of the 3 '
                                             f'processes: use {right}$'):
            train.check_batch(batch, world_size=3)
    train.check_batch(12, world_size=3)


def test_dry_run_prints_the_options_and_makes_nothing(digits, tmp_path):  # noqa: F811
    result = run(train.main, f'--data={digits}', f'--outdir={tmp_path}/runs', '--cres=1,2',
                 '--precond=iddpm', '-n', '--device=cpu')
    assert result.exit_code == 0, result.output
    config = configs.decode(json.loads(result.stdout), configs.TrainConfig)
    assert type(
        config.loss).__name__ == 'HybridLoss' and config.seed == 0 and config.batch_size == 512
    assert (config.total_nimg, config.tick_nimg, config.snapshot_nimg,
            config.state_nimg) == (200_000_000, 50_000, 2_500_000, 25_000_000)
    assert config.averages[0].halflife_nimg == 500_000 and config.averages[0].rampup_ratio == 0.05
    assert config.network.model['dropout'] == 0.13
    assert config.augment.p == 0.12 and config.optimizer.lr_rampup_nimg == 10_000_000
    assert not (tmp_path / 'runs').exists()


def test_run_folders_are_numbered_and_named(digits, tmp_path):  # noqa: F811
    (tmp_path / '00007-old').mkdir()
    (tmp_path / 'notes').mkdir()
    arguments = [f'--data={digits}', f'--outdir={tmp_path}', '--cond=1', '--cbase=16', '--cres=1,2',
                 '--blocks=1', '--attn=4', '--batch=4', '--duration=0.000004', '--workers=0',
                 '--device=cpu', '--desc=mine']
    assert run(train.main, *arguments).exit_code == 0
    folder = tmp_path / '00008-digits-8x8-cond-ddpmpp-edm-gpus1-batch4-fp32-mine'
    assert {path.name for path in folder.iterdir()} == {
        'training_options.json', 'run_card.jsonl', 'log.txt', 'stats.jsonl', 'reals.png',
        'fakes000000.png', 'network-snapshot-000000.pkl', 'training-state-000000.pt', '.lock'}
    assert 'tick 0' in (folder / 'log.txt').read_text()


def test_a_transfer_is_listed(snapshots, digits, tmp_path):  # noqa: F811
    result = run(train.main, f'--data={digits}', f'--run={tmp_path}/run', '--cbase=16',
                 '--cres=1,2', '--blocks=1', '--attn=4', '--cond=1', '--batch=4',
                 '--duration=0.000004', '--workers=0', '--device=cpu',
                 f'--transfer={snapshots}/uncond.pkl')
    assert (
        result.exit_code == 0
        and 'fresh: model.map_label.weight, model.map_label.bias' in result.output
    ), result.output
    listed = json.loads((tmp_path / 'run' / 'transfer.json').read_text())
    assert listed['fresh'] == ['model.map_label.weight',
                               'model.map_label.bias'] and 'model.map_layer0.weight' in listed[
                                   'copied']


@pytest.mark.parametrize('command', [train.main, generate.main])
def test_help_is_grouped_and_ends_with_examples(command):
    result = run(command, '--help')
    assert result.exit_code == 0
    sections = [line for line in result.output.splitlines() if line.endswith(':')
                and not line.startswith(' ')]
    assert len(sections) >= 4 and sections[-1] == 'Examples:'
    for parameter in command.params:
        assert parameter.opts[0] in result.output
        assert getattr(parameter, 'help', None), parameter.name


def test_leftovers_of_killed_commands_are_removed_among_the_own_pictures(tmp_path):
    mine = ['.000001.png.abcdefgh.tmp', '002000/.002001.png.abcdefgh.tmp', '.grid.png.abcdefgh.tmp']
    others = ['.photo.png.abcdefgh.tmp', '001000/.001001.png.abcdefgh.tmp']
    for name in mine + others:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (0, 0))
    generate.forget_killed(str(tmp_path), [2001], subdirs=True)
    assert [name for name in mine + others if (tmp_path / name).exists()] == others


def test_images_that_are_replaced_are_counted(snapshots, tmp_path):
    command = [f'--network={snapshots / "uncond.pkl"}', f'--outdir={tmp_path}', '--steps=2',
               '--device=cpu']
    assert 'are replaced' not in run(generate.main, *command, '--seeds=0-2').output
    told = run(generate.main, *command, '--seeds=2-5').output
    assert f'Note: 1 of these images are in {tmp_path} already, and are replaced\n' in told
