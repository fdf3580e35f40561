"""dnnlib/cli.py: messages of the libraries, in the words of a command."""

import click
import pytest
from click.testing import CliRunner

from dnnlib.cli import naming_flags, one_line_errors, with_flags

NAMES = ('ref', 'allow_mismatch', 'state')


def command(message):
    @click.command()
    @click.option('--ref')
    @click.option('--allow-mismatch', is_flag=True)
    @one_line_errors
    @naming_flags(NAMES)
    def run(ref, allow_mismatch):
        raise ValueError(message)

    return run


@pytest.mark.parametrize(('message', 'shown'), [
    ('ref=x.npz is old', '--ref=x.npz is old'),
    ('ref=x.npz: make it anew, or say allow_mismatch=True',
     '--ref=x.npz: make it anew, or say --allow-mismatch'),
    # no option of the command, no parameter, part of another name, a flag already
    ('state=out is a file', 'state=out is a file'),
    ('ref is old, and allow_mismatch too', 'ref is old, and allow_mismatch too'),
    ('a/ref=b, myref=c, --ref=d', 'a/ref=b, myref=c, --ref=d'),
])
def test_a_command_names_parameters_as_its_options(message, shown):
    result = CliRunner().invoke(command(message))
    assert (result.exit_code, result.output) == (2, f'Error: {shown}\n')


def test_without_a_command_nothing_is_translated():
    assert with_flags('ref=x.npz is old', NAMES) == 'ref=x.npz is old'
