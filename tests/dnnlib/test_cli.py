"""dnnlib/cli.py: messages of the libraries, in the words of a command."""

import errno

import click
import pytest
import torch
from click.testing import CliRunner

from dnnlib.cli import GroupedCommand, naming_flags, one_line_errors, with_flags

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


@pytest.mark.parametrize('error', [
    MemoryError(), MemoryError('Unable to allocate 4 GiB for an array'),
    RuntimeError("DefaultCPUAllocator: can't allocate memory:\nyou tried to allocate 4 bytes"),
    RuntimeError('std::bad_alloc'), RuntimeError('CUBLAS_STATUS_ALLOC_FAILED'),
    torch.OutOfMemoryError('CUDA out of memory.'), OSError(errno.ENOMEM, 'Cannot allocate memory')])
def test_a_lack_of_memory_is_one_line_that_names_the_options(error):
    @click.command(cls=GroupedCommand)
    @click.option('--batch')
    @click.option('--other')
    @one_line_errors
    def with_batch(**options):
        raise error

    @click.command(cls=GroupedCommand)
    @one_line_errors
    def without():
        raise error

    results = [CliRunner().invoke(command, []) for command in (with_batch, without)]
    assert [result.exit_code for result in results] == [1, 1]
    lines = [result.output.strip() for result in results]
    assert 'memory' in lines[0] and lines[0].endswith(' (a smaller --batch needs less)')
    assert lines[1] == lines[0].removesuffix(' (a smaller --batch needs less)')
    assert lines[1].count('\n') == 0 and '--' not in lines[1]
