"""dnnlib/console.py: commands where stdout is closed, or cannot show every character."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dnnlib.console import escaped, shown, tolerant_streams
from dnnlib.logfile import LogFile

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
                          capture_output=True, timeout=240,
                          env={**os.environ, 'PYTHONPATH': str(ROOT), **environment})


@pytest.mark.parametrize('encoding', ['latin-1', 'cp1252'])
def test_a_console_that_lacks_a_character_shows_its_number(tmp_path, encoding):
    for argument, printed in (('--help', b'Print \\u03c3.'), ('a', b'\\u03c3 a')):
        result = program(tmp_path, argument, PYTHONIOENCODING=encoding)
        assert result.returncode == 0, result.stderr
        assert printed in result.stdout


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


def test_what_a_terminal_would_obey_is_printed_as_an_escape(tmp_path):
    hostile = 'a\x1b[2Jb\x07\x9b1m\u202e\ttab\nline'
    result = program(tmp_path, hostile)
    assert result.stdout.decode() == '\u03c3 a\\x1b[2Jb\\x07\\x9b1m\\u202e\ttab\nline\n'
    assert escaped(f'{"x" * 10_001}\ny') == f'{"x" * 10_000}...\ny'
    assert shown('a\x1b\nb' * 100, 7) == 'a??ba??...'
    with LogFile(tmp_path / 'log.txt'):
        print(hostile)
    assert '\x1b' not in (tmp_path / 'log.txt').read_text()


def test_the_message_of_an_error_that_nobody_caught_is_escaped(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, 'excepthook', sys.__excepthook__)
    with tolerant_streams():
        pass
    try:
        raise RuntimeError('a\x1b[2Jb')
    except RuntimeError as error:
        sys.excepthook(type(error), error, error.__traceback__)
    assert capsys.readouterr().err.splitlines()[-1] == 'RuntimeError: a\\x1b[2Jb'
