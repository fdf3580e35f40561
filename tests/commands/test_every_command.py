"""What holds for every command: files that are not overwritten, numbers, paths, places."""

import os

import click
import numpy as np
import pytest
from click.testing import CliRunner

import checkpoint
import dataset_tool
import demo
import fid
import flow
import generate
import report
import reproduce
import train
from dnnlib.cli import Place, check_apart
from dnnlib.download import cache_dir
from evaluation.settings import Several


def last_line(command, *arguments):
    """The line in which a command refuses its arguments."""
    result = CliRunner().invoke(command, [str(argument) for argument in arguments])
    assert result.exit_code == 2, result.output
    return result.output.splitlines()[-1]


def test_a_file_is_not_written_over_another_of_the_same_command(tmp_path):
    a = tmp_path / 'a.npz'
    np.savez(a, images=np.zeros([2, 8, 8, 3], dtype=np.uint8))
    before = a.read_bytes()
    link = tmp_path / 'link.npz'
    link.symlink_to(a)
    snapshot = tmp_path / 'network-snapshot-000064.pkl'
    snapshot.write_bytes(b'x')
    ending = 'and one would replace the other: give another name'
    common = ['--detector=demo', '--device=cpu']
    for command, arguments, message in [
        (fid.main, ['ref', f'--data={a}', f'--dest={link}', *common],
         f'--dest={link} is also --data, {ending}'),
        (fid.main, ['calc', '--images=x.zip', f'--ref={a}', f'--save={a}', *common],
         f'--save={a} is also --ref, {ending}'),
        (fid.main, ['calc', f'--images={a}', '--ref=x.npz', f'--json={a}', *common],
         f'--json={a} is also --images, {ending}'),
        (fid.main, ['gen', '--network=x.pkl', f'--ref={a}', f'--save={a}', *common],
         f'--save={a} is also --ref, {ending}'),
        (fid.main, ['nearest', f'--images={a}', '--data=x.zip', f'--dest={tmp_path}/b.png',
                    f'--csv={tmp_path}/c', f'--json={tmp_path}/c', *common],
         f'--json={tmp_path}/c is also --csv, {ending}'),
        (fid.main, ['detector', a, f'--convert={a}'], f'--convert={a} is also FILE, {ending}'),
        (checkpoint.main, ['convert', snapshot, f'--dest={snapshot}'],
         f'--dest={snapshot} is also FILE, {ending}'),
        (checkpoint.main, ['reconstruct', f'--run={tmp_path}', '--width=0.1',
                           f'--dest={snapshot}'],
         f'--dest={snapshot} is also a snapshot of --run={tmp_path}, {ending}'),
    ]:
        assert last_line(command, *arguments) == f'Error: {message}'
    assert a.read_bytes() == before and snapshot.read_bytes() == b'x'


def test_reading_a_file_twice_is_fine():
    check_apart({'--dest': 'c'}, {'--images': 'a', '--data': 'a', '--control': None})
    with pytest.raises(ValueError, match='^--dest=./a is also --images, '):
        check_apart({'--dest': './a'}, {'--images': 'a'})


COMMANDS = {'train': train.main, 'generate': generate.main, 'dataset_tool': dataset_tool.main,
            'demo': demo.main, 'report': report.main,
            **{f'dataset_tool {name}': command for name, command in dataset_tool.COMMANDS.items()},
            **{f'flow {name}': command for name, command in flow.main.commands.items()},
            **{f'fid {name}': command for name, command in fid.main.commands.items()},
            **{f'checkpoint {name}': command for name, command in checkpoint.main.commands.items()},
            **{f'reproduce {name}': command for name, command in reproduce.main.commands.items()}}
OPTIONS = {f'{name} {option.opts[0]}': option
           for name, command in COMMANDS.items() for option in command.params}
# Where ∞ means something: the geometric steps of VE, no upper limit, zero signal-to-noise ratio.
INFINITE = {'--rho', '--S_max', '--grid-S_max', '--sigma_max', '--sigmas', '--guidance-interval'}


def refused(option, value):
    """The reason why an option does not take this value; None if it does."""
    kind = option.type.kind if isinstance(option.type, Several) else option.type
    try:
        kind.convert(value, option, None)
    except click.BadParameter as error:
        return error.message
    return None


def test_every_number_is_finite():
    numbers = {name: option for name, option in OPTIONS.items()
               if refused(option, '1') is None and refused(option, 'x') is not None
               and not isinstance(option.type, click.types.BoolParamType)}
    assert len(numbers) > 150
    for name, option in numbers.items():
        assert refused(option, 'nan') is not None, name
        assert refused(option, '-inf') is not None, name
        infinite = option.opts[0] in INFINITE and name not in (
            'flow likelihood --sigma_max', 'flow steps --sigma_max', 'train --sigma_max')
        assert (refused(option, 'inf') is None) == infinite, name
        assert refused(option, '1' + 400 * '0') is not None or infinite, name


@pytest.mark.parametrize(('arguments', 'message'), [
    ('train --ema=nan', "'--ema': nan is not a finite number"),
    ('train --lr=inf', "'--lr': inf is not a finite number"),
    ('train --ls=inf', "'--ls': 'inf' is neither a positive number nor dynamic"),
    ('train --seed=18446744073709551616',
     "'--seed': 18446744073709551616 is not in the range x<=9223372036854775807."),
    ('generate --S_churn=40 --S_min=nan', "'--S_min': nan is not a finite number"),
    ('generate --S_max=nan', "'--S_max': nan is not a finite number or inf"),
    ('generate --rho=1e300', "'--rho': 1e+300 is not in the range 0.01<=x<=1000000000.0."),
    ('generate --sigmas=80,nan', "'--sigmas': nan is not a finite number or inf"),
    ('generate --steps=100001', "'--steps': 100001 is not in the range x<=100000."),
    ('generate --seeds=0-4999999999',
     "'--seeds': more than 10,000,000 numbers: give fewer at once"),
    ('generate --class=20240115000000000000000',
     "'--class': 20240115000000000000000 is too large: the largest is 9223372036854775807"),
    ('fid sweep --S_noise=1,nan', "'--S_noise': nan is not a finite number"),
    ('fid search --grid-S_min=0,inf', "'--grid-S_min': inf is not a finite number"),
    ('fid calc --seed=-1', "'--seed': -1 is not in the range x>=0."),
])
def test_what_is_out_of_range_is_refused_by_name(arguments, message):
    command, given = arguments.split(' --', 1)
    result = CliRunner().invoke(COMMANDS[command], f'--{given}'.split())
    assert result.exit_code == 2
    assert result.output.splitlines()[-1] == f'Error: Invalid value for {message}'


WORDS = {'NAME', 'NAME,...', 'NAME...', 'LIST', 'STR'}   # metavars of other texts


def test_every_path_is_one_in_which_a_tilde_is_the_home_folder(monkeypatch):
    monkeypatch.setenv('HOME', '/home/ada')
    texts = {name: option for name, option in OPTIONS.items()
             if option.type is click.STRING and not name.startswith('demo')}
    assert {option.metavar for option in texts.values()} <= WORDS
    places = [option for option in OPTIONS.values() if isinstance(option.type, Place)]
    assert len(places) > 50
    for option in places:
        assert option.type.convert('~/a/~b', option, None) == '/home/ada/a/~b'
        assert option.type.convert('ideal:~/a.zip', option, None) == 'ideal:/home/ada/a.zip'
        assert option.type.convert('https://x.org/~b', option, None) == 'https://x.org/~b'
    [several] = [option for option in places if option.type.several]
    assert several.type.convert('~/a,b,ideal:~', several, None) == '/home/ada/a,b,ideal:/home/ada'


def test_nothing_is_written_to_a_folder_called_tilde(monkeypatch, tmp_path):
    monkeypatch.setenv('HOME', str(tmp_path / 'home'))
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(dataset_tool.main, ['--source=digits', '--dest=~/digits',
                                                    '--max-images=2'])
    assert result.exit_code == 0, result.output
    assert [path.name for path in tmp_path.iterdir()] == ['home']


def test_an_empty_path_is_refused():
    assert last_line(train.main, '--data=x', '--run=') == (
        "Error: Invalid value for '--run' / '--run-dir': '' is not the name of a file or folder")
    assert last_line(checkpoint.main, 'inspect', '') == (
        "Error: Invalid value for 'FILE': '' is not the name of a file or folder")


def test_without_a_home_folder(monkeypatch):
    monkeypatch.delenv('HOME')
    monkeypatch.setattr(os.path, 'expanduser', lambda path: path)   # no entry of the user either
    monkeypatch.delenv('LIMPID_CACHE_DIR', raising=False)
    assert last_line(generate.main, '--network=x', '--outdir=~/y') == (
        "Error: Invalid value for '--outdir': ~/y: there is no home folder, as HOME is not set")
    assert cache_dir().is_absolute() and 'limpid-' in str(cache_dir())


def test_every_option_has_a_name_that_torchrun_does_not_take_for_its_own():
    """Its parser takes a word for any option of its own that begins with it."""
    from torch.distributed.run import get_args_parser
    theirs = [name for action in get_args_parser()._actions for name in action.option_strings]
    assert '--run-path' in theirs
    taken = [name for name, option in OPTIONS.items() if isinstance(option, click.Option)
             and not name.startswith(('demo', 'dataset_tool', 'checkpoint', 'fid detector',
                                      'reproduce'))
             and all(any(other.startswith(spelling) for other in theirs)
                     for spelling in option.opts)]
    assert taken == []
