"""What holds for every command: files that are not overwritten, numbers, paths, places."""

import numpy as np
import pytest
from click.testing import CliRunner

import checkpoint
import fid
from dnnlib.cli import check_apart


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
