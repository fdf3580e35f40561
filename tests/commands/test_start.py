"""What commands import: nothing for a help that was shown before, and never what they do not need.

No clock is asked; modules are what takes the time.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dnnlib.help import kept, kept_at

ROOT = Path(__file__).parents[2]
NEEDED_LATER = ['scipy', 'sklearn', 'matplotlib', 'diffusers', 'safetensors', 'sympy', 'lmdb',
                'torchvision', 'pyarrow', 'torch._dynamo', 'torch._inductor',
                'torch.distributed.fsdp']


def run(*arguments, home=None, **environment):
    """What a program printed, and the names of the modules that it imported."""
    result = subprocess.run(
        [sys.executable, '-X', 'importtime', *arguments], cwd=ROOT, capture_output=True, text=True,
        check=True, env={**os.environ, 'HOME': str(home or os.environ.get('HOME', '/')),
                         'COLUMNS': '90', **environment})
    return result.stdout, set(re.findall(r'^import time:.*\| +(\S+)$', result.stderr, re.M))


def test_commands_import_only_what_every_use_of_them_needs():
    names = [path.stem for path in ROOT.glob('*.py')]
    assert {'train', 'generate', 'fid'} <= set(names)
    _, modules = run('-c', f'import {", ".join(sorted(names))}')
    assert 'torch' in modules
    assert modules.isdisjoint(NEEDED_LATER), modules & set(NEEDED_LATER)


@pytest.mark.parametrize('name', ['demo', 'report'])
def test_help_of_these_does_without_torch(name):
    _, modules = run('-c', f'import {name}')
    assert 'click' in modules and 'torch' not in modules


@pytest.mark.parametrize('words', [['checkpoint.py'], ['fid.py', 'calc']])
def test_a_second_help_imports_no_library_and_prints_the_same(words, tmp_path):
    text, modules = run(*words, '--help', home=tmp_path)
    assert {'torch', 'click'} <= modules and 'Usage: ' in text
    again, modules = run(*words, '--help', home=tmp_path)
    assert again == text
    assert modules.isdisjoint({'torch', 'click', 'numpy', *NEEDED_LATER})
    kept_texts = list((tmp_path / '.cache/limpid/help').iterdir())
    assert [path.name.partition('.')[0] for path in kept_texts] == [words[0][:-3]]


@pytest.fixture
def program(tmp_path, monkeypatch):
    """A program a.py with its help asked for, and a home folder."""
    monkeypatch.setenv('HOME', str(tmp_path / 'home'))
    monkeypatch.setenv('COLUMNS', '80')
    script = tmp_path / 'a.py'
    script.write_text('1')
    (tmp_path / 'library').mkdir()
    (tmp_path / 'library/b.py').write_text('2')
    return script


def test_a_text_holds_for_one_command_width_and_state_of_the_sources(program, monkeypatch):
    def place(*words):
        return kept_at([str(program), *words], root=program.parent)

    places = [place('--help'), place('gen', '--help')]
    monkeypatch.setenv('COLUMNS', '100')
    places.append(place('--help'))
    assert place('--help') == places[-1]
    (program.parent / 'library/b.py').write_text('22')
    places.append(place('--help'))
    program.write_text('11')
    places.append(place('--help'))
    assert len(set(places)) == 5
    assert {path.parent for path in places} == {program.parent / 'home/.cache/limpid/help'}


@pytest.mark.parametrize('words', [[], ['-n'], ['--help', '-n'], ['--data=x', '--help'],
                                   ['a', 'b', '--help']])
def test_other_command_lines_have_no_kept_help(program, words):
    assert kept_at([str(program), *words], root=program.parent) is None
    assert kept_at(['elsewhere/a.py', '--help'], root=program.parent) is None


def test_a_place_that_cannot_be_written_is_no_error(program, monkeypatch):
    (program.parent / 'home').write_text('a file')
    monkeypatch.setattr('dnnlib.help.kept_at', lambda arguments: program.parent / 'home/x/y.txt')
    assert kept('text') == 'text'
