"""Other programs, several processes, and the report of a GPU: that they measure what they say."""

import importlib
import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from benchmarks import gpu, peers, scaling, waiting
from training.work import operations

ROOT = Path(__file__).parents[2]
CPU = torch.device('cpu')


def test_this_program_beside_others(tmp_path):
    found = peers.measure('demo', 'limpid', CPU, 1e9, 2, 1)
    assert [(result.task, result.batch) for result in found] == [
        ('evaluation', 2), ('drawing', 2), ('training step', 2)]
    for result, evaluations in zip(found, (1, 35, 3), strict=True):
        assert result.gflop == pytest.approx(operations(peers.DEMO) / 1e9)
        assert result.utilisation == pytest.approx(
            evaluations * 2 * result.gflop / result.seconds)
    written = [vars(result) for result in found]
    peers.written({'machine': {'device': 'this'}, 'results': written}, tmp_path)
    assert json.loads((tmp_path / 'peers.json').read_text())['results'] == written
    assert (tmp_path / 'peers.md').read_text().count('\n') == 7


def test_diffusers_has_a_network_of_about_this_size(tmp_path):
    pytest.importorskip('diffusers')
    ours, theirs = (peers.PEERS[name](peers.DEMO, CPU) for name in
                    ('limpid', 'diffusers UNet2DModel'))
    sizes = [sum(p.numel() for p in peer.net.parameters()) for peer in (ours, theirs)]
    assert 0.5 < sizes[1] / sizes[0] < 2
    with torch.no_grad():
        assert theirs.draw(2).shape == (2, 1, 16, 16)
        assert theirs.evaluate(torch.zeros(2, 1, 16, 16), torch.ones(2)).shape == (2, 1, 16, 16)


@pytest.mark.parametrize('name, module', [
    ('diffusers UNet2DModel', 'diffusers'),
    ('denoising-diffusion-pytorch KarrasUnet', 'denoising_diffusion_pytorch')])
def test_a_program_that_is_missing_is_told(monkeypatch, tmp_path, name, module):
    monkeypatch.setitem(sys.modules, module, None)
    result, = peers.measure('demo', name, CPU, 1e9, 2, 1)
    assert result.missing.startswith(f'{module.replace("_", "-")} is not there: ')
    peers.written({'machine': {'device': 'this'}, 'results': [vars(result)]}, tmp_path)
    assert result.missing in (tmp_path / 'peers.md').read_text()


def test_scaling_is_relative_to_one_process(tmp_path):
    assert scaling.seconds_of_step(CPU, batch=2, repeats=1) > 0
    scaling.written({'machine': {'device': 'this'}, 'batch': 64, 'seconds': {'1': 0.5, '2': 0.8}},
                    tmp_path)
    lines = (tmp_path / 'scaling.md').read_text().splitlines()
    assert [[cell.strip() for cell in line.strip('|').split('|')] for line in lines[-2:]] == [
        ['1', '500', '128', '100%'], ['2', '800', '160', '62%']]


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
