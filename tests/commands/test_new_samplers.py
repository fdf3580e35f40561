"""The promise of CONTRIBUTING for sampling: one entry in one dict, and the command line has it.

The code is copied, a toy entry is written at the end of each module that has a dict, and
generate.py draws with each of them. Nothing else in the copy is touched.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from limpid.steps import EDMSteps
from tests.training.test_training_loop import digits  # noqa: F401 (fixture)

ROOT = Path(__file__).parents[2]
CODE = ['limpid', 'data', 'training', 'checkpoints', 'options', 'torch_utils', 'dnnlib',
        'generate.py']

# module: what is written at its end
TOYS = {
    'limpid/solvers.py': """
        @dataclass(frozen=True)
        class ToySolver(SecondOrder):
            'Heun with another default.'
            alpha: float = 0.5

        SOLVERS['toy-solver'] = ToySolver
        """,
    'limpid/earlier.py': """
        @dataclass(frozen=True)
        class ToyEarlier(DDIM):
            'DDIM with another default.'
            eta: float = 1.0

        EARLIER['toy-earlier'] = ToyEarlier
        """,
    'limpid/samplers.py': """
        @dataclass(frozen=True)
        class ToyAngle(Angle):
            'The other rule.'
            rule: str = 'rotation'

        ANGLE['toy-angle'] = ToyAngle
        """,
    'limpid/sde.py': """
        @dataclass(frozen=True)
        class ToySDE(GeneralSDE):
            'Twice the noise.'
            beta: float = 2.0

        SDES['toy-sde'] = ToySDE
        """,
    'limpid/adaptive.py': """
        @dataclass(frozen=True)
        class ToyAdaptive(RK45):
            'A coarse tolerance.'
            rtol: float = 1e-2

        ADAPTIVE['toy-adaptive'] = ToyAdaptive
        """,
    'limpid/steps.py': """
        @dataclass(frozen=True)
        class ToySteps(EDMSteps):
            'EDM with another default.'
            rho: float = 3.0

        STEPS['toy-steps'] = ToySteps
        """,
    'limpid/levels.py': """
        @dataclass(frozen=True)
        class ToyLevels(LinearBetas):
            'A short table.'
            T: int = 40

        DISCRETE_SCHEDULES['toy-levels'] = ToyLevels
        """,
    'limpid/schedules.py': """
        @dataclass(frozen=True)
        class ToySchedule(VESchedule):
            'sigma = sqrt(t)'

        @dataclass(frozen=True)
        class ToyScaling(VPScaling):
            's = 1/sqrt(sigma^2 + 1)'

        SCHEDULES['toy-schedule'] = ToySchedule
        SCALINGS['toy-scaling'] = ToyScaling
        """,
    'limpid/table1.py': """
        def toy() -> Column:
            'EDM with the solver of the other columns.'
            return replace(edm(), solver=Euler())

        TABLE_1['toy-column'] = toy
        """,
}

# Options of generate.py, and those that give the same images without the toy. They end at a high
# noise level, where samplers differ.
SAME = {
    '--solver=toy-solver': '--solver=heun --alpha=0.5',
    '--solver=toy-solver --alpha=1': '--solver=heun',
    '--sampler=toy-earlier --disc=edm': '--sampler=ddim --disc=edm --eta=1',
    '--sampler=toy-angle': '--sampler=angle --rule=rotation',
    '--sampler=toy-sde --beta=2': '--sampler=sde --beta=2',
    '--sampler=toy-adaptive': '--sampler=rk45 --rtol=0.01',
    '--disc=toy-steps': '--disc=edm --rho=3',
    '--schedule=toy-schedule': '--schedule=ve',
    '--scaling=toy-scaling': '--scaling=vp',
    '--family=toy-column': '--family=edm --solver=euler',
}
LEVELS = '--disc=toy-levels --sampler=ddim --stats'
DRAW = """
import json, shlex, sys
import torch
import generate
torch.set_grad_enabled(False)
for line in json.load(sys.stdin):
    generate.main.main(shlex.split(line), standalone_mode=False)
"""


def unindented(text):
    return '\n'.join(line.removeprefix(' ' * 8) for line in text.splitlines())


@pytest.fixture(scope='module')
def drawn(digits, tmp_path_factory):  # noqa: F811
    """The folder of the copy: its help, and images of every line under its number."""
    folder = tmp_path_factory.mktemp('copy')
    for name in CODE:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name,
                            ignore=shutil.ignore_patterns('__pycache__'))
        else:
            shutil.copy(ROOT / name, folder)
    for name, toys in TOYS.items():
        with (folder / name).open('a') as file:
            file.write(unindented(toys))
    known = [*SAME, *SAME.values()]
    lines = [*known, LEVELS, '--help']
    commands = [f'--network=ideal:{digits} --outdir={folder}/{i} --seeds=0-3 --steps=5 '
                f'--device=cpu {line}' + (' --sigma_min=2' if line in known else '')
                for i, line in enumerate(lines)]
    result = subprocess.run([sys.executable, '-c', DRAW], cwd=folder, input=json.dumps(commands),
                            text=True, capture_output=True,
                            env={**os.environ, 'PYTHONPATH': str(folder)})
    assert result.returncode == 0, result.stderr
    return folder, lines, result.stdout


def pixels(folder):
    return np.stack([np.asarray(PIL.Image.open(folder / f'{seed:06d}.png')) for seed in range(4)])


@pytest.mark.parametrize('line', SAME)
def test_an_entry_in_a_dict_is_drawn_with(drawn, line):
    folder, lines, _ = drawn
    toy, known = (pixels(folder / str(lines.index(each))) for each in (line, SAME[line]))
    assert toy.shape == (4, 8, 8) and toy.std() > 10
    assert np.array_equal(toy, known)


def test_no_two_of_the_known_ones_are_the_same(drawn):
    folder, lines, _ = drawn
    images = {line: pixels(folder / str(lines.index(line))).tobytes() for line in SAME.values()}
    assert len(set(images.values())) == len(images) == len(SAME)


def test_a_discrete_schedule_is_a_choice_of_time_steps(drawn):
    """The highest of the 40 levels of the toy, and 5 in all."""
    folder, lines, output = drawn
    assert pixels(folder / str(lines.index(LEVELS))).std() > 0
    [shown] = [line for line in output.splitlines() if line.startswith('Noise levels (')]
    betas = np.linspace(1e-4, 0.02, 40)
    alpha_bar = np.cumprod(1 - betas)
    assert shown.startswith(f'Noise levels (5): {np.sqrt(1 / alpha_bar[-1] - 1):.4g}, ')
    assert np.sqrt(1 / alpha_bar[-1] - 1) < EDMSteps().sigma_max


def test_help_lists_every_toy(drawn):
    _, _, output = drawn
    for name in ['toy-solver', 'toy-earlier', 'toy-angle', 'toy-sde', 'toy-adaptive', 'toy-steps',
                 'toy-levels', 'toy-schedule', 'toy-scaling', 'toy-column']:
        assert name in output, name
