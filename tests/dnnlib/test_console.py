"""dnnlib/console.py: commands where stdout is closed, or cannot show every character."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = """
import click
from dnnlib.cli import GroupedCommand, one_line_errors

@click.command(cls=GroupedCommand)
@click.argument('text')
@one_line_errors
def main(text):
    \"\"\"Print \u03c3.\"\"\"
    print('\u03c3', text)
    print('done', file=open('done', 'w'))

main()
"""


def program(folder, *arguments, shell='', **environment):
    path = folder / 'program.py'
    path.write_text(PROGRAM, encoding='utf-8')
    command = f'"{sys.executable}" program.py "$@" {shell}'
    return subprocess.run(['sh', '-c', command, 'sh', *arguments], cwd=folder, check=False,
                          capture_output=True, timeout=60,
                          env={**os.environ, 'PYTHONPATH': str(ROOT), **environment})


@pytest.mark.parametrize('encoding', ['latin-1', 'cp1252'])
def test_a_console_that_lacks_a_character_shows_its_number(tmp_path, encoding):
    for argument, shown in (('--help', b'Print \\u03c3.'), ('a', b'\\u03c3 a')):
        result = program(tmp_path, argument, PYTHONIOENCODING=encoding)
        assert result.returncode == 0, result.stderr
        assert shown in result.stdout


def test_a_file_name_that_is_no_text_is_printed(tmp_path):
    result = program(tmp_path, b'\xff', PYTHONUTF8='1')
    assert (result.returncode, result.stdout) == (0, '\u03c3 \\udcff\n'.encode()), result.stderr


def test_closed_streams_do_not_end_the_work(tmp_path):
    result = program(tmp_path, 'a', shell='>&- 2>&-')
    assert result.returncode == 0
    assert (tmp_path / 'done').read_text() == 'done\n'


def test_a_reader_that_has_read_enough_ends_the_command_without_a_word(tmp_path):
    result = program(tmp_path, 'a', shell='| true', PYTHONUNBUFFERED='1')
    assert (result.returncode, result.stderr) == (0, b'')   # of `true`
