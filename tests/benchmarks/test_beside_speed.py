"""Other programs, several processes, and the report of a GPU: that they measure what they say."""

import importlib
import json
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import PIL.Image
import pytest
import torch
from click.testing import CliRunner

from benchmarks import gpu, paper, peers, scaling, speed, waiting
from benchmarks.parts import Missing, part_of
from benchmarks.speed import DEMO
from training.work import operations

ROOT = Path(__file__).parents[2]
CPU = torch.device('cpu')


def test_this_program_beside_others(tmp_path, monkeypatch):
    monkeypatch.setattr(peers, 'matrix_rate', lambda precision, device: 1e9)
    found = list(peers.measure('demo', 'limpid', CPU, 2, 1))
    assert [(result.task, result.batch) for result in found] == [
        ('evaluation', 2), ('drawing', 2), ('training step', 2)]
    for result, evaluations in zip(found, (1, 35, 3), strict=True):
        assert result.gflop == pytest.approx(evaluations * operations(DEMO) / 1e9)
        assert result.images_per_second == 2 / result.seconds
        assert result.utilisation == pytest.approx(result.images_per_second * result.gflop)
    written = [vars(result) for result in found]
    peers.report({'machine': {'device': 'this'}, 'results': written,
                  'missing': [['demo', 'Other', 'it is not there']]}, tmp_path)
    assert json.loads((tmp_path / 'peers.json').read_text())['results'] == written
    lines = (tmp_path / 'peers.md').read_text().splitlines()
    assert [len(line.split('|')) for line in lines[2:7]] == [11] * 5
    assert lines[8:] == ['Other at the size of demo is left out: it is not there']
    assert PIL.Image.open(tmp_path / 'peers.png').size[0] == 880


@pytest.mark.parametrize('name', list(peers.PEERS))
def test_a_network_of_about_this_size_draws_in_35_evaluations(name):
    try:
        peer = peers.PEERS[name](DEMO, CPU)
    except Missing as reason:
        pytest.skip(str(reason))
    peer.net.eval()
    evaluations = []
    peer.net.register_forward_hook(lambda *_: evaluations.append(1))
    with torch.no_grad():
        assert tuple(peer.draw(2).shape) == (2, 1, 16, 16) and len(evaluations) == 35
        assert peer.evaluate(torch.zeros(2, 1, 16, 16), torch.ones(2)).shape == (2, 1, 16, 16)
    x, sigma = torch.zeros(1, 1, 16, 16), torch.ones(1)
    work = peers.operations_of(peers.PEERS[name](DEMO, torch.device('meta')), x, sigma)
    assert 0.3 < work / operations(DEMO) < 1.5   # k-diffusion has no block more in the decoder
    assert 0.4 < sum(p.numel() for p in peer.net.parameters()) / paper.parameters(DEMO) < 1.5


@pytest.mark.parametrize('name, module', [
    ('diffusers UNet2DModel', 'diffusers'), ('k-diffusion ImageDenoiserModelV1', 'k_diffusion'),
    ('denoising-diffusion-pytorch KarrasUnet', 'denoising_diffusion_pytorch')])
def test_programs_that_are_missing_are_told_in_one_line(monkeypatch, tmp_path, name, module):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr(peers, 'PEERS', {name: peers.PEERS[name]})
    result = CliRunner().invoke(peers.main, [f'--dest={tmp_path}', '--size=demo', '--device=cpu'])
    assert result.exit_code == 0
    line, = result.output.splitlines()
    assert line.startswith(f'{name} at the size of demo is left out: '
                           f'{module.replace("_", "-")} is not there: ')
    assert line in (tmp_path / 'peers.md').read_text()
    assert not (tmp_path / 'peers.png').exists()


def test_parts_of_programs_leave_nothing_behind(tmp_path, monkeypatch):
    """A module is taken whose package imports what is not there."""
    (tmp_path / 'whole').mkdir()
    (tmp_path / 'whole/__init__.py').write_text('import what_nobody_has')
    (tmp_path / 'whole/part.py').write_text(
        'from torchsde import anything\nfrom . import other\nassert anything is None')
    (tmp_path / 'whole/other.py').write_text('answer = 42')
    (tmp_path / 'whole/broken.py').write_text('import what_nobody_has')
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    part, = part_of('whole', 'part')
    assert part.other.answer == 42
    with pytest.raises(Missing, match="^whole needs more than itself: No module named 'what_nob"):
        part_of('whole', 'broken')
    assert {name for name in set(sys.modules) - before if 'whole' in name or 'sde' in name} == set()


def test_scaling_over_processes_batches_and_sides(tmp_path, monkeypatch):
    assert scaling.seconds_of_step('demo', CPU, 'fp32', batch=2, repeats=1) > 0
    assert scaling.shapes('batch', 'demo', 40) == [(1, 16), (2, 16), (4, 16), (8, 16), (16, 16),
                                                   (32, 16)]
    assert scaling.shapes('resolution', 'CIFAR-10', 8) == [(32, 16), (8, 32), (2, 64), (1, 128)]
    for module in (scaling, speed):
        monkeypatch.setattr(module, 'matrix_rate', lambda precision, device: 1e9)
    made = [scaling.point('demo', kind, 2, 8, CPU, 'fp32', 1)
            for kind in ('sampling', 'training')]
    work = operations(replace(DEMO, img_resolution=8)) / 1e9
    assert [point.utilisation * point.seconds for point in made] == pytest.approx(
        [2 * work, 6 * work])
    scaling.report({
        'machine': {'device': 'this'}, 'size': 'demo', 'precision': 'fp32', 'images': 64,
        'processes': {'1': 0.5, '2': 0.8}, 'batch': [vars(point) for point in made],
        'resolution': []}, tmp_path)
    lines = (tmp_path / 'scaling.md').read_text().splitlines()
    assert [[cell.strip() for cell in line.strip('|').split('|')] for line in lines[8:10]] == [
        ['1', '500', '128', '100%'], ['2', '800', '160', '62%']]
    assert sum(line.startswith(('| sampling | 2 | 8 |', '| training | 2 | 8 |'))
               for line in lines) == 2
    assert PIL.Image.open(tmp_path / 'scaling.png').height > 600


def test_a_picture_needs_matplotlib_and_a_table_does_not(tmp_path, monkeypatch):
    found = {"OpenMP's own": {'alone': 0.25, 'beside 2 programs': 0.5}}
    waiting.report(2, found, tmp_path)
    assert PIL.Image.open(tmp_path / 'waiting.png').size[0] == 880
    (tmp_path / 'waiting.png').unlink()
    monkeypatch.setitem(sys.modules, 'matplotlib', None)
    waiting.report(2, found, tmp_path)
    text = (tmp_path / 'waiting.md').read_text()
    assert "| OpenMP's own | 250.0 | 500.0 |\n\nNo picture: pictures need matplotlib" in text
    assert not (tmp_path / 'waiting.png').exists()


def test_busy_programs_end_with_their_block(monkeypatch):
    started = []
    start = subprocess.Popen
    monkeypatch.setattr('benchmarks.waiting.subprocess.Popen', lambda *args: started.append(
        start(*args)) or started[-1])
    with waiting.busy(2):
        assert [program.poll() for program in started] == [None, None]
    assert all(program.poll() is not None for program in started)


def test_a_dry_run_of_the_gpu_names_commands_that_exist():
    result = CliRunner().invoke(gpu.main, ['--dry-run', '--dest=out/x'])
    assert result.exit_code == 0
    commands = result.output.splitlines()
    assert commands == [step.command for step in gpu.steps('out/x')] and len(commands) >= 5
    for line in commands:
        python, dash_m, module, *arguments = shlex.split(line)
        assert (python, dash_m) == ('python', '-m')
        if module == 'pytest':
            assert all((ROOT / path).is_file() for path in arguments)
        else:   # its options are parsed, and the command does not run
            importlib.import_module(module).main.make_context(module, arguments)


def test_without_a_gpu_the_report_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    result = CliRunner().invoke(gpu.main, [f'--dest={tmp_path}/x'])
    assert result.exit_code == 2 and not (tmp_path / 'x').exists()
    assert result.output.splitlines()[-1] == (
        'Error: no CUDA device was found here; --dry-run says what would run')


def test_a_step_that_fails_is_in_the_report(tmp_path):
    (tmp_path / 'found.md').write_text('a table\n')
    for code in (0, 3):
        step = gpu.Step('Title', f'python -c "import sys; print(6 * 7); sys.exit({code})"',
                        str(tmp_path / 'found.md'))
        found, text = gpu.run(step)
        assert found == code and f'exit code {code}' in text and '\n42\n' in text
        assert ('a table' in text) == (code == 0)
