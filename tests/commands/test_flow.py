"""flow.py as its users see it, on one process and on two."""

import csv
import json
import os

import numpy as np
import PIL.Image
import pytest
import torch
from click.testing import CliRunner

import flow
import generate
from checkpoints.open import ideal_denoiser
from limpid.denoiser import Conditioned
from limpid.seeds import StackedGenerator
from limpid.step_search import best_path, euler_errors
from limpid.steps import EDMSteps
from tests.commands.test_generate import snapshots  # noqa: F401 (fixture)
from tests.training.test_training_loop import digits, torchrun  # noqa: F401 (fixture)


def run(command, *arguments):
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def test_images_come_back_from_their_latents(snapshots, digits, tmp_path):  # noqa: F811
    """The order of the solver shows in the round trip; the file holds what decoding needs."""
    errors = []
    for steps in [32, 64]:
        result = run(flow.main, 'encode', f'--network=ideal:{digits}', f'--images={digits}',
                     '--max-images=6', '--class=3', '--check', f'--dest={tmp_path}/z.npz',
                     f'--steps={steps}', '--sigma_min=1', '--sigma_max=40', '--device=cpu')
        assert result.exit_code == 0, result.output
        errors.append(float(result.output.split('off by ')[1].split()[0]))
    assert errors[1] < errors[0] / 3 and errors[1] < 2
    with np.load(tmp_path / 'z.npz', allow_pickle=False) as stored:
        assert stored['latents'].shape == (6, 1, 8, 8) and stored['latents'].dtype == np.float32
        assert stored['labels'].argmax(axis=1).tolist() == [3] * 6 and len(stored['names']) == 6
        assert (float(stored['sigma_min']), float(stored['sigma_max'])) == pytest.approx((1, 40))
    result = run(flow.main, 'decode', f'--network=ideal:{digits}', f'--latents={tmp_path}/z.npz',
                 f'--outdir={tmp_path}/x', '--steps=64', '--sigma_min=1', '--sigma_max=40',
                 '--device=cpu')
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in (tmp_path / 'x').iterdir()) == [
        f'{i:06d}.png' for i in range(6)
    ]


def test_two_processes_encode_and_judge_like_one(digits, tmp_path):  # noqa: F811
    common = [f'--network=ideal:{digits}', f'--images={digits}', '--max-images=5', '--batch=2',
              '--device=cpu']
    for command, extra, file in [('encode', ['--steps=6'], 'z.npz'),
                                 ('likelihood', ['--steps=5', '--sigma_min=0.5'], 'bits.csv')]:
        (tmp_path / 'one').mkdir(exist_ok=True)
        result = run(flow.main, command, *common, *extra, f'--dest={tmp_path}/one/{file}')
        assert result.exit_code == 0, result.output
        two = torchrun(2, 'flow.py', command, *common, *extra, f'--dest={tmp_path}/two/{file}')
        assert two.returncode == 0, two.stderr
        assert two.stdout.splitlines()[0].split(' to ')[0] == result.output.splitlines()[0].split(
            ' to ')[0]
    one, two = (np.load(tmp_path / name / 'z.npz')['latents'] for name in ['one', 'two'])
    assert np.array_equal(one, two)
    assert (tmp_path / 'one' / 'bits.csv').read_bytes() == (
        tmp_path / 'two' / 'bits.csv'
    ).read_bytes()


def test_likelihood_writes_a_number_for_each_image(digits, tmp_path):  # noqa: F811
    result = run(flow.main, 'likelihood', f'--network=ideal:{digits}', f'--images={digits}',
                 '--max-images=4', '--steps=17', '--sigma_min=0.5', f'--dest={tmp_path}/bits.csv',
                 '--device=cpu', '--draws=2', '--probes=2')
    assert result.exit_code == 0, result.output
    rows = list(csv.DictReader((tmp_path / 'bits.csv').open()))
    assert len(rows) == 4 and rows[0]['name'].endswith('.png')
    for row in rows:
        assert float(row['bits_per_dim']) == pytest.approx(-float(row['nats']) / (64 * np.log(2))
                                                           + np.log2(127.5), rel=1e-12)
    mean = np.mean([float(row['bits_per_dim']) for row in rows])
    assert f'{mean:.4f} bits per dimension' in result.output and 'at sigma_min=0.5' in result.output


def test_the_ends_of_a_path_are_the_images_of_its_seeds(snapshots, tmp_path):  # noqa: F811
    network = f'--network={snapshots}/cond.pkl'
    result = run(flow.main, 'interpolate', network, '--seeds=4,9,4', '--frames=3', '--class=2',
                 '--steps=3', f'--dest={tmp_path}/p.png', '--device=cpu')
    assert result.exit_code == 0, result.output
    # 8 pixels are shown as 32
    strip = np.asarray(PIL.Image.open(tmp_path / 'p.png'))[::4, ::4].astype(int)
    assert strip.shape == (19, 28)   # with a line around each image
    assert run(generate.main, network, '--seeds=4,9', '--class=2', '--steps=3',
               f'--outdir={tmp_path}', '--device=cpu').exit_code == 0
    for seed, place in [(4, strip[1:9, 1:9]), (9, strip[1:9, 19:27]), (9, strip[10:18, 1:9]),
                        (4, strip[10:18, 19:27])]:
        assert np.abs(np.asarray(PIL.Image.open(tmp_path / f'{seed:06d}.png')).astype(int)
                      - place).max() <= 1
    for name in ['p.gif', 'p.apng']:
        assert run(flow.main, 'interpolate', network, '--seeds=4,9', '--frames=5', '--steps=2',
                   f'--dest={tmp_path}/{name}', '--device=cpu').exit_code == 0
        assert PIL.Image.open(tmp_path / name).n_frames == 5


MISTAKES = {
    'encode --dest=z.txt': '--dest=z.txt should end in .npz',
    'encode --sampler=ddim': 'the flow is deterministic: leave out --sampler and --S_churn',
    'encode --S_churn=3': 'the flow is deterministic: leave out --sampler and --S_churn',
    'encode --class=11': '--class=11 is out of range: this network knows the classes 0 to 9',
    'encode --max-images=1000': 'has 100 images, fewer than --max-images=1000',
    'encode --images=nowhere': 'nowhere: no such zip or folder',
    'interpolate --seeds=3': '--seeds=3 is one seed; an interpolation needs two or more, such as '
                             '3,8',
    'interpolate --seeds=3,4 --fps=5': '--fps would have no effect with --dest=',
    'interpolate --seeds=3,4 --dest=a.jpg': '--dest=a.jpg should end in .png or .gif or .apng',
    'likelihood --dest=a.txt': '--dest=a.txt should end in .csv',
    'decode --latents=nowhere.npz': 'nowhere.npz: No such file or directory',
    'decode --latents={digits}': 'is not a file of latents',
}


@pytest.mark.parametrize('line', MISTAKES)
def test_mistakes_end_in_one_line(snapshots, digits, tmp_path, line):  # noqa: F811
    command, *arguments = line.replace('{digits}', digits).split()
    given = {'--network': f'{snapshots}/cond.pkl', '--device': 'cpu'}
    given |= {'encode': {'--images': digits, '--dest': f'{tmp_path}/out/z.npz'},
              'decode': {'--outdir': f'{tmp_path}/out'},
              'interpolate': {'--dest': f'{tmp_path}/out/p.png'},
              'likelihood': {'--images': digits, '--dest': f'{tmp_path}/out/b.csv'}}[command]
    given.update(argument.split('=', 1) for argument in arguments)
    result = run(flow.main, command, *[f'{name}={value}' for name, value in given.items()])
    assert result.exit_code == 2, result.output
    assert MISTAKES[line] in result.output.splitlines()[-1] and result.output.splitlines()[
        -1].startswith('Error: ')
    assert not (tmp_path / 'out').exists()


def test_help_of_every_command_is_grouped_and_ends_with_examples():
    for command in flow.main.commands.values():
        result = run(command, '--help')
        assert result.exit_code == 0 and 'Examples:' in result.output.split('Performance:')[1]
        assert all(parameter.opts[0] in result.output and parameter.help
                   for parameter in command.params)


def test_the_network_may_be_a_folder_of_diffusers(tmp_path):
    diffusers = pytest.importorskip('diffusers')
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        sample_size=8, block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=1,
        attention_head_dim=4, down_block_types=('DownBlock2D', 'AttnDownBlock2D'),
        up_block_types=('AttnUpBlock2D', 'UpBlock2D'))
    unet.save_pretrained(tmp_path / 'net' / 'unet')
    diffusers.DDIMScheduler().save_pretrained(tmp_path / 'net' / 'scheduler')
    (tmp_path / 'images').mkdir()
    pixels = np.random.RandomState(0).randint(0, 256, [2, 8, 8, 3], dtype=np.uint8)
    for i, image in enumerate(pixels):
        PIL.Image.fromarray(image).save(tmp_path / 'images' / f'{i}.png')
    result = run(flow.main, 'encode', f'--network={tmp_path}/net/unet',
                 f'--images={tmp_path}/images', '--steps=3', f'--dest={tmp_path}/z.npz',
                 '--device=cpu')
    assert result.exit_code == 0, result.output
    with np.load(tmp_path / 'z.npz') as stored:
        assert stored['latents'].shape == (2, 3, 8, 8) and stored['labels'].shape == (2, 0)
        assert np.isfinite(stored['latents']).all() and stored['latents'].std() > 0.01


def test_numbers_that_are_not_finite_are_never_written(digits, tmp_path, monkeypatch):  # noqa: F811
    """Whatever the network makes of them."""
    for name in ('decode', 'encode'):
        def spoilt(denoise, x, *rest):
            return x * torch.nan
        monkeypatch.setattr(flow, name, spoilt)
    monkeypatch.setattr(flow, 'log_likelihood',
                        lambda denoise, x, *rest, **more: x.flatten(1).sum(dim=1) * torch.nan)
    np.savez(tmp_path / 'z.npz', latents=np.zeros([1, 1, 8, 8], np.float32),
             labels=np.zeros([1, 10], np.float32))
    common = [f'--network=ideal:{digits}', '--device=cpu']
    images = [f'--images={digits}', '--max-images=2']
    before = os.listdir(tmp_path)
    for command, *given in (
            ['encode', *images, f'--dest={tmp_path}/new.npz'],
            ['decode', f'--latents={tmp_path}/z.npz', f'--outdir={tmp_path}/new'],
            ['interpolate', '--seeds=1,2', f'--dest={tmp_path}/new.png'],
            ['likelihood', *images, f'--dest={tmp_path}/new.csv']):
        result = run(flow.main, command, *common, *given)
        assert result.exit_code == 1, result.output
        assert 'came out as numbers that are not finite, and were not written' in result.output
        assert os.listdir(tmp_path) == before


def test_few_levels_are_found_and_taken_back(digits, tmp_path):  # noqa: F811
    """The entries are those of the library, on one process and two; generate.py takes the line."""
    common = [f'--network=ideal:{digits}', '--steps=4', '--levels=11', '--seeds=0-5', '--batch=2',
              '--class=3', '--device=cpu']
    result = run(flow.main, 'steps', *common)
    assert result.exit_code == 0, result.output
    entries, option = result.output.splitlines()[-2:]
    sigmas = EDMSteps().sigmas(11)
    path = json.loads(entries.removeprefix('Entries ').removesuffix(' of 11 levels'))
    assert option == '--sigmas=80,' + ','.join(f'{float(sigmas[i]):.6g}'
                                               for i in path[1:-1]) + ',0.002'
    two = torchrun(2, 'flow.py', 'steps', *common)
    assert two.returncode == 0 and two.stdout.splitlines()[-2:] == [entries, option]

    net = ideal_denoiser(str(digits))
    noise = StackedGenerator(range(6), torch.device('cpu')).randn([6, 1, 8, 8]).double()
    label = torch.nn.functional.one_hot(torch.tensor([3]), 10).float()
    errors = euler_errors(Conditioned(net, label), noise * 80, sigmas)
    assert best_path(errors, 4) == path

    made = run(generate.main, f'--network=ideal:{digits}', '--seeds=0', f'--outdir={tmp_path}',
               '--solver=euler', '--final=sigma-min', '--stats', '--device=cpu', option)
    assert made.exit_code == 0 and 'Evaluations of the network: 3 per image' in made.output


def test_levels_that_cannot_be_searched(digits):  # noqa: F811
    for more, expected in [
            (['--steps=8', '--levels=7'], '--steps=8 is more than the --levels=7 to choose from'),
            (['--steps=3', '--sigma_min=90'], 'no noise levels are left: ')]:
        result = run(flow.main, 'steps', f'--network=ideal:{digits}', '--device=cpu', *more)
        assert result.exit_code == 2 and result.output.startswith(f'Error: {expected}')
        assert result.output.count('\n') == 1
