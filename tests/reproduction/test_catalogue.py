"""Every table and figure: its commands can be run, and name the paper's numbers."""

import json
import math
import shlex

import numpy as np
import PIL.Image
import pytest
from click.testing import CliRunner

import dataset_tool
import docs.brightness
import docs.figures
import fid
import reproduce
import train
from evaluation.settings import FLAGS, combinations
from limpid.denoiser import Traits
from options.sampler import resolve_sampler
from reproduction import edm, formulas, losses, small
from reproduction.catalogue import EXPERIMENTS, NEEDS, experiment
from reproduction.experiment import Task, duration, unique

PROGRAMS = {'dataset_tool.py': dataset_tool.main, 'train.py': train.main,
            '-m reproduction.formulas': formulas.main, '-m reproduction.losses': losses.main,
            '-m docs.brightness': docs.brightness.main,
            **{f'fid.py {name}': command for name, command in fid.main.commands.items()},
            **{f'-m docs.figures {name}': command
               for name, command in docs.figures.main.commands.items()}}


def parsed(command):
    """(name of the program, its parameters); fails where it would refuse its options."""
    name = next(name for name in PROGRAMS if command.startswith(f'{name} '))
    words = shlex.split(command.removeprefix(name))
    return name, PROGRAMS[name].make_context(name, words).params


def test_the_names():
    assert list(EXPERIMENTS) == [
        *(f'edm-table{k}' for k in range(1, 6)), *(f'edm-figure{k}' for k in range(1, 6)),
        'zero-snr-table1', 'zero-snr-table2', 'zero-snr-figure1', 'zero-snr-figure2',
        'small-table2', 'small-table3', 'small-table4', 'small-figure2', 'small-figure4',
        'small-figure5']


@pytest.mark.parametrize('name', EXPERIMENTS)
def test_all_commands_parse_and_write_what_they_are_said_to(name):
    found = experiment(name, 'out')
    made = set()
    for task in found.tasks:
        program, given = parsed(task.command)
        folder = given.get('run') or given.get('dest') or given.get('json_path') or ''
        assert task.makes.startswith(folder) and folder, task.command
        for path in task.reads:
            assert path in made or path in NEEDS, path
        inputs = [given.get(key) for key in ('network_path', 'ref', 'data', 'final')]
        assert {path for path in inputs if path} <= {*made, *NEEDS}, task.command
        if program in ('fid.py gen', 'fid.py sweep', 'fid.py search'):
            options = {name: value for name, value in given.items() if name in FLAGS}
            chosen = combinations(options) if program == 'fid.py sweep' else [options]
            for one in chosen:
                assert resolve_sampler(one, Traits()).notes == ()
        made.add(task.makes)
    files = {source.file for value in found.values for source in value.sources}
    files |= set(found.images)
    assert files <= made
    for panel in found.panels:
        for line in panel.lines:
            assert {path.replace('sweep.csv', 'report.json') for path in line.files} <= made


def test_the_papers_numbers():
    def papers(name):
        return {(value.row, value.column): value.paper for value in experiment(name, 'out').values}

    two, three, four, five = (papers(f'edm-table{k}') for k in (2, 3, 4, 5))
    assert len(two) == 48 and two['F', 'cifar10-cond VP'] == 1.79
    assert two['C', 'ffhq64-uncond VE'] == 41.62
    assert len(three) == 28 and three['Original sampler', 'CIFAR-10 VE NFE'] == 8192
    assert len(four) == 36
    assert four['Alg. 2, optimal settings', 'ImageNet-64 FID'] == 1.55
    assert [five[name, 'CIFAR-10 VP'] for name in ('S_churn', 'S_min', 'S_max', 'S_noise')] == [
        30, 0.01, 1, 1.007]


def test_a_network_that_was_published_is_not_trained_again():
    [task] = [task for task in edm.table_2('cifar10-uncond-ve-A').tasks if 'train' in task.command
              or 'gen' in task.command]
    assert '--network=datasets/downloads/baseline-cifar10-32x32-uncond-ve.pkl' in task.command
    assert task.command.endswith('--steps=18 --sigma_min=0.02')


def test_seeds_come_one_after_the_other():
    runs = [task.makes.split('/')[2] for task in small.table_2().tasks
            if task.command.startswith('train.py')]
    assert runs[:3] == ['vp-A-0', 've-A-0', 'vp-B-0'] and len(runs) == 36
    assert [name[-1] for name in runs] == sorted(name[-1] for name in runs)


@pytest.fixture(scope='module')
def grey_images(tmp_path_factory):
    """A data set of four images in two classes."""
    folder = tmp_path_factory.mktemp('grey')
    for k in range(4):
        pixels = np.full([16, 16], 40 * k, dtype=np.uint8)
        PIL.Image.fromarray(pixels).save(folder / f'{k}.png')
    labels = [[f'{k}.png', k % 2] for k in range(4)]
    (folder / 'dataset.json').write_text(json.dumps({'labels': labels}))
    return folder


@pytest.mark.parametrize('letter', small.CONFIGS)
@pytest.mark.parametrize('column', small.ARCHITECTURE)
def test_small_configurations_resolve(grey_images, column, letter):
    task = small.run(column, letter, 1)
    words = shlex.split(task.command.replace(small.TRAIN, str(grey_images)))[1:]
    result = CliRunner().invoke(train.main, [*words, '--dry-run'])
    assert result.exit_code == 0, result.output


def test_the_digits_take_the_place_of_fashion_mnist(monkeypatch):
    monkeypatch.setattr(small, 'has_fashion', lambda: False)
    found = small.table_2()
    assert found.tasks[0].command.startswith('dataset_tool.py --source=digits ')
    assert not [task for task in found.tasks if 'calc' in task.command]
    assert found.needs() == [] and 'apt install dataset-fashion-mnist' in found.remarks[-1]


def test_costs():
    """200 Mimg at three evaluations of 42.4 GFLOP are 2.544e19 operations."""
    run = edm.preset_run('cifar10-cond-vp-F')
    judging = 80 * (42.4 * 35 + 11.4) * 1e9 * 50_000
    assert math.isclose(run.flop, 3 * 42.4e9 * 200e6 + judging, rel_tol=1e-12)
    assert [duration(seconds) for seconds in (3, 600, 7200, 9000, 864000)] == [
        '3 s', '10 min', '2 h', '2.5 h', '10 days']


def test_two_commands_do_not_make_one_file():
    task = Task('a', 'x')
    assert unique([task, Task('b', 'y'), task]) == (task, Task('b', 'y'))
    with pytest.raises(ValueError, match='^two commands make x: a and b$'):
        unique([task, Task('b', 'x')])


def test_a_wrong_name():
    result = CliRunner().invoke(reproduce.main, ['plan', 'edm-tabel2'])
    assert result.exit_code == 2
    assert result.output.splitlines()[-1] == (
        "Error: 'edm-tabel2' is no table or figure: did you mean edm-table2? reproduce.py list "
        'names them')


@pytest.mark.parametrize('name', ['edm-table2', 'small-figure4'])
def test_plan_says_commands_needs_and_costs(name, tmp_path):
    result = CliRunner().invoke(reproduce.main, ['plan', name, f'--out={tmp_path}'])
    assert result.exit_code == 0, result.output
    found = experiment(name, str(tmp_path))
    for task in found.tasks:
        assert f'  to do  python {task.command}\n' in result.output
    for path in found.needs():
        assert f'  missing  {path}: put there {NEEDS[path]}\n' in result.output or (
            f'  there    {path}\n' in result.output)
    assert 'one NVIDIA H100' in result.output


def test_list_has_a_line_for_each(tmp_path):
    result = CliRunner().invoke(reproduce.main, ['list', f'--out={tmp_path}'])
    lines = result.output.splitlines()
    assert len(lines) == 2 + len(EXPERIMENTS)
    assert lines[2] == '| `edm-table1` | Each formula of Table 1 at one point | 0 of 1 | – | – |'
