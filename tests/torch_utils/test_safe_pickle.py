"""Hostile and damaged files: nothing runs, nothing hangs, memory stays bounded, and one line says
why."""

import collections
import io
import pickle
import random
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from checkpoints.read import read_network
from torch_utils import safe_pickle
from torch_utils.safe_pickle import ForbiddenError, Record, read_pickle
from torch_utils.torch_files import (
    CHECKPOINTS,
    STREAM_START,
    TENSORS,
    read_file,
    rebuild_tensor,
    tensors_in,
)

ROOT = Path(__file__).parents[2]
PUBLISHED = ROOT / 'tests' / 'golden' / 'published-ddpmpp-edm.pkl'
MARK = 'os.environ["LIMPID_TEST_MARK"]'
CODE = f'import os; open({MARK}, "w")'
SHELL = 'touch $LIMPID_TEST_MARK'


def text(value):
    return b'X' + struct.pack('<I', len(value)) + value.encode()


def name(module, attribute):
    return b'c' + module.encode() + b'\n' + attribute.encode() + b'\n'


def called(function, *arguments):
    """The opcodes of a call."""
    return function + b'(' + b''.join(arguments) + b'tR'


class Reduce:
    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


def old_stream(main, keys=b'\x80\x02].'):
    """An old torch.save stream around the pickle `main`."""
    system = pickle.dumps({'protocol_version': 1001, 'little_endian': True, 'type_sizes': {}}, 2)
    return STREAM_START + pickle.dumps(1001, 2) + system + main + keys


def zipped(data_pkl, **entries):
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w') as archive:
        archive.writestr('archive/data.pkl', data_pkl)
        for key, data in entries.items():
            archive.writestr(f'archive/{key}', data)
    return file.getvalue()


def storage(numel, kind=b'ctorch\nFloatStorage\n', view=b''):
    number = pickle.dumps(numel, 2)[2:-1]   # without the protocol and the end
    return b'(' + text('storage') + kind + text('0') + text('cpu') + number + view + b'tQ'


def tensor_pickle(numel, offset=0, size=(1,), stride=(1,)):
    arguments = [pickle.dumps(value, 2)[2:-1] for value in (offset, size, stride, False)]
    return b'\x80\x02' + called(name('torch._utils', '_rebuild_tensor_v2'), storage(numel),
                                *arguments, b'}') + b'.'


SYSTEM = b'\x80\x02' + called(name('os', 'system'), text(SHELL)) + b'.'
LOAD_BYTES = name('torch.storage', '_load_from_bytes')


def blob(data):
    return b'B' + struct.pack('<I', len(data)) + data


# Each writes a file if Python's own pickle opens it.
LIVE = {
    'os.system, protocol 0': b"cos\nsystem\n(S'" + SHELL.encode() + b"'\ntR.",
    'os.system, protocol 2': SYSTEM,
    **{
        f'exec, protocol {protocol}': pickle.dumps({'ema': Reduce(exec, CODE)}, protocol)
        for protocol in range(6)
    },
    'eval': pickle.dumps(
        Reduce(eval, f'open({MARK.replace("os.", "__import__(chr(111)+chr(115)).")}, "w")'), 4
    ),
    'getattr of a module': b'\x80\x02'
    + called(
        called(
            name('builtins', 'getattr'),
            called(name('builtins', '__import__'), text('os')),
            text('system'),
        ),
        text(SHELL),
    )
    + b'.',
    'operator.attrgetter': b'\x80\x02'
    + called(
        called(
            called(name('operator', 'attrgetter'), text('system')),
            called(name('builtins', '__import__'), text('os')),
        ),
        text(SHELL),
    )
    + b'.',
    'operator.methodcaller': b'\x80\x02'
    + called(
        called(name('operator', 'methodcaller'), text('system'), text(SHELL)),
        called(name('builtins', '__import__'), text('os')),
    )
    + b'.',
    'functools.partial': b'\x80\x02'
    + called(called(name('functools', 'partial'), name('os', 'system'), text(SHELL)))
    + b'.',
    'a dotted name': b'\x80\x04'
    + text('shutil')
    + text('os.system')
    + b'\x93'
    + text(SHELL)
    + b'\x85R.',
    'subprocess': b'\x80\x02' + called(name('subprocess', 'getoutput'), text(SHELL)) + b'.',
    'timeit': b'\x80\x02'
    + called(name('timeit', 'timeit'), text(CODE), text('pass'), name('time', 'time'), b'K\x01')
    + b'.',
    'INST': b"(S'" + SHELL.encode() + b"'\nios\nsystem\n.",
    'INST, protocol 2': b'\x80\x02(' + text(SHELL) + b'ios\nsystem\n.',
    'OBJ': b'\x80\x02(' + name('os', 'system') + text(SHELL) + b'o.',
    'within a tuple key': b'\x80\x02}' + called(name('os', 'system'), text(SHELL)) + b'\x85K\x01s.',
    'thrown away': b'\x80\x02' + called(name('os', 'system'), text(SHELL)) + b'0}.',
    'after the value': b'\x80\x02}' + called(name('os', 'system'), text(SHELL)) + b'0.',
    'BUILD with __setstate__': b'\x80\x02'
    + name('collections', 'OrderedDict')
    + b')R}'
    + text('__setstate__')
    + name('os', 'system')
    + b'sb'
    + text(SHELL)
    + b'b.',
    'state of a set': b'\x80\x04\x8f' + called(name('os', 'system'), text(SHELL)) + b'b.',
}

# No less hostile, but they need preparation, or another reader than pickle.
OTHERS = {
    'nested in the bytes of a storage': b'\x80\x04'
    + LOAD_BYTES
    + blob(old_stream(SYSTEM))
    + b'\x85R.',
    'in place of the bytes of a storage': b'\x80\x04' + LOAD_BYTES + blob(SYSTEM) + b'\x85R.',
    'in the keys of a storage': b'\x80\x04'
    + LOAD_BYTES
    + blob(old_stream(b'\x80\x02' + storage(0, view=b'N') + b'.', SYSTEM))
    + b'\x85R.',
    'storages in storages': b'\x80\x04'
    + LOAD_BYTES
    + blob(old_stream(b'\x80\x02' + LOAD_BYTES + blob(b'x') + b'\x85R.'))
    + b'\x85R.',
    'an old stream': old_stream(SYSTEM),
    'a training state': zipped(SYSTEM),
    'a type of storage': zipped(
        b'\x80\x02' + storage(1, kind=name('os', 'system')) + b'.', **{'data/0': b'1234'}
    ),
    'a storage that is called': zipped(
        b'\x80\x02' + called(name('torch', 'FloatStorage'), b'K\x01') + b'.'
    ),
    'a persistent id of text': b'\x80\x02Pname\n.',
    'a persistent id outside of a zip': b'\x80\x02' + storage(1) + b'.',
    'EXT1': b'\x80\x02\x82\x01.',
    'EXT2': b'\x80\x02\x83\x01\x00.',
    'EXT4': b'\x80\x02\x84\x01\x00\x00\x00.',
    'torch.load': b'\x80\x02' + called(name('torch', 'load'), text('x')) + b'.',
    'torch.hub': b'\x80\x02' + called(name('torch.hub', 'load'), text('x')) + b'.',
    'numpy.load': b'\x80\x02' + called(name('numpy', 'load'), text('x')) + b'.',
    'another class': b'\x80\x02' + name('training.networks', 'EDMPrecond') + b')\x81.',
    'rot13': b'\x80\x02' + called(name('_codecs', 'encode'), text('flfgrz'), text('rot13')) + b'.',
    'a persistent object that is a module': b'\x80\x04'
    + called(
        name('torch_utils.persistence', '_reconstruct_persistent_obj'),
        pickle.dumps({'type': 'module'}, 2)[2:-1],
    )
    + b'.',
    'a name of bytes': b'\x80\x04' + b'C\x02os' + b'C\x06system' + b'\x93.',
    'a call of a text': b'\x80\x02' + text('x') + b')R.',
    'arguments in a list': b'\x80\x02' + name('collections', 'OrderedDict') + b']R.',
    'items of a record': b'\x80\x02'
    + name('torch.nn.modules.container', 'ModuleDict')
    + b')\x81'
    + text('a')
    + b'K\x01s.',
    'appending to a dictionary': b'\x80\x02}K\x01a.',
    'adding to a list': b'\x80\x04](K\x01\x90.',
    'state of a list': b'\x80\x02]}b.',
    'NEWOBJ_EX': b'\x80\x04'
    + name('subprocess', 'Popen')
    + b'('
    + text(SHELL)
    + b't}'
    + text('shell')
    + b'\x88s\x92.',
    'a buffer outside': b'\x80\x05\x97.',
    'a web page': b'<!DOCTYPE html><html><body>Log in to download</body></html>',
    'a graph definition': b'\n\x0e\n\x05image\x12\x05Const' * 50,
    'a pointer of git-lfs': b'version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n',
    'gzip': b'\x1f\x8b\x08\x00' + bytes(50),
    'an empty file': b'',
    'zeros': bytes(1000),
    'TorchScript': zipped(
        b'\x80\x02}.', **{'constants.pkl': b'\x80\x02).', 'code/__torch__.py': CODE}
    ),
    'a zip of something else': zipped(b'\x80\x02}.')[:30] + b'PK\x05\x06' + bytes(18),
    'two data.pkl': zipped(b'\x80\x02}.', **{'x/data.pkl': b'\x80\x02}.'}),
}
ATTACKS = LIVE | OTHERS

DAMAGED = {
    'a huge text': b'\x80\x04\x8d' + struct.pack('<Q', 1 << 40) + b'x.',
    'huge bytes': b'\x80\x04\x8e' + struct.pack('<Q', 1 << 62) + b'x.',
    'a huge frame': b'\x80\x04\x95' + struct.pack('<Q', 1 << 62) + b'}.',
    'a huge integer': b'\x80\x02\x8b' + struct.pack('<i', 1 << 30) + b'1.',
    'an integer of negative length': b'\x80\x02\x8b' + struct.pack('<i', -5) + b'1.',
    'a long integer as a key': b'\x80\x02}\x8a\x0f' + bytes(14) + b'\x01K\x01s.',
    'an unknown entry of the memo': b'\x80\x02h\x07.',
    'a memo of nothing': b'\x80\x02q\x00.',
    'an unknown opcode': b'\x80\x02\xff.',
    'an empty stack': b'\x80\x02s.',
    'no mark': b'\x80\x02t.',
    'an open mark': b'\x80\x02(}.',
    'two values': b'\x80\x02}}.',
    'no value': b'\x80\x02.',
    'no end': b'\x80\x02}',
    'protocol 77': b'\x80\x4d}.',
    'text that is none': b'\x80\x02X\x02\x00\x00\x00\xff\xfe.',
    'a name without an end': b'\x80\x02c' + b'x' * 5000,
    'an odd number of items': b'\x80\x02}(K\x01u.',
    'a list as a key': b'\x80\x02}]K\x01s.',
    'a list in itself': b'\x80\x02]q\x00h\x00a.',
    'a dictionary in itself': b'\x80\x02}q\x00K\x01h\x00s.',
    'a record in itself': b'\x80\x02'
    + name('torch.nn.modules.container', 'ModuleDict')
    + b')\x81q\x00h\x00b.',
    'deep lists': b'\x80\x02' + b']' * 150_000 + b'a' * 149_999 + b'.',
    'deep tuples': b'\x80\x02)' + b'\x85' * 300_000 + b'.',
    'a deep key': b'\x80\x02})' + b'\x85' * 300_000 + b'K\x01s.',
    'deep records': b'\x80\x02'
    + name('numpy', 'dtype')
    + b'q\x00'
    + b')R'
    + b'h\x00)R' * 100_000
    + b'b' * 100_000
    + b'.',
    'laughs': b'\x80\x02()q\x00'
    + b''.join(b'h' + bytes([i, 104, i]) + b'\x86q' + bytes([i + 1]) for i in range(100))
    + b't.',
    'endless opcodes': b'\x80\x02' + b'N' * 2_100_000 + b'.',
    'a call for everything': b'\x80\x02]('
    + b')' * 200_000
    + b'eq\x00c_codecs\nencode\nq\x01'
    + text('x' * 200_000)
    + b'q\x02('
    + (b'h\x01h\x02' + text('latin1') + b'\x86R') * 30_000
    + b't.',
    'a storage that is missing': zipped(tensor_pickle(1)),
    'a storage that is too small': zipped(tensor_pickle(1 << 40), **{'data/0': b'1234'}),
    'a storage in two ways': zipped(
        b'\x80\x02' + storage(1) + storage(1, kind=b'ctorch\nIntStorage\n') + b'\x86.',
        **{'data/0': b'1234'},
    ),
    'a tensor past its storage': zipped(
        tensor_pickle(4, offset=1, size=(4,)), **{'data/0': bytes(16)}
    ),
    'a tensor before its storage': zipped(
        tensor_pickle(4, offset=-1, size=(4,)), **{'data/0': bytes(16)}
    ),
    'a tensor with strides past its storage': zipped(
        tensor_pickle(4, size=(2, 2), stride=(3, 1)), **{'data/0': bytes(16)}
    ),
    'a tensor larger than its storage': zipped(
        tensor_pickle(4, size=(1 << 40,), stride=(0,)), **{'data/0': bytes(16)}
    ),
    'negative strides': zipped(
        tensor_pickle(4, offset=3, size=(4,), stride=(-1,)), **{'data/0': bytes(16)}
    ),
    'sizes that are texts': zipped(tensor_pickle(4, size=('4',)), **{'data/0': bytes(16)}),
    'twenty dimensions': zipped(
        tensor_pickle(4, size=(1,) * 20, stride=(1,) * 20), **{'data/0': bytes(16)}
    ),
    'an old stream with a huge storage': old_stream(
        b'\x80\x02' + storage(1 << 50, view=b'N') + b'.',
        pickle.dumps(['0'], 2) + struct.pack('<q', 1 << 50),
    ),
    'an old stream with other keys': old_stream(
        b'\x80\x02' + storage(1, view=b'N') + b'.',
        pickle.dumps(['1'], 2) + struct.pack('<q', 1) + b'1234',
    ),
    'an old stream without its numbers': old_stream(
        b'\x80\x02' + storage(1, view=b'N') + b'.', pickle.dumps(['0'], 2) + struct.pack('<q', 1)
    ),
    'an old stream of no dictionary': STREAM_START + pickle.dumps(1001, 2) * 5,
    'a big-endian zip': zipped(b'\x80\x02}.', byteorder=b'big'),
    'views of the same numbers': zipped(
        b'\x80\x02('
        + (tensor_pickle(25_000, size=(25_000,))[2:-1] + b'q\x00')
        + b'h\x00' * 1000
        + b't.',
        **{'data/0': bytes(100_000)},
    ),
}


def deflated():
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('archive/data.pkl', tensor_pickle(1 << 26, size=(1 << 26,)))
        archive.writestr('archive/data/0', bytes(1 << 28))
    return file.getvalue()


def overlapping():
    """A zip whose directory lists the same bytes twenty times."""
    data = zipped(tensor_pickle(1000, size=(1000,)), **{'data/0': bytes(4000)})
    start = data.index(b'PK\x01\x02')
    end = data.index(b'PK\x05\x06')
    directory = data[start:end] * 20
    return (
        data[:start]
        + directory
        + struct.pack('<IHHHHIIH', 0x06054B50, 0, 0, 40, 40, len(directory), start, 0)
    )


def two_readers(name):
    """A zip in which another reader may find another entry than the one that was checked."""
    return zipped(tensor_pickle(1000, size=(1000,)), **{'data/0': bytes(4000)},
                  **{name: pickle.dumps(7)})


DAMAGED |= {'a zip bomb': deflated(), 'a zip that overlaps itself': overlapping(),
            'a zip with a second pickle in capitals': two_readers('DATA.PKL')}


@pytest.fixture
def mark(tmp_path, monkeypatch):
    monkeypatch.setenv('LIMPID_TEST_MARK', str(tmp_path / 'mark'))
    return tmp_path / 'mark'


def refusal(path, read):
    with pytest.raises(ValueError) as error:
        read(path)
    message = str(error.value)
    assert message.startswith(str(path)) and len(
        message.splitlines()) == 1 and message.isprintable() and len(message) < 600
    return message


@pytest.mark.parametrize('attack', ATTACKS)
def test_attacks_are_refused_and_nothing_runs(tmp_path, mark, attack):
    path = tmp_path / 'net.pkl'
    path.write_bytes(ATTACKS[attack])
    refusal(path, read_network)
    refusal(path, lambda path: read_file(path, CHECKPOINTS))
    body = ATTACKS[attack]
    if not body.startswith((b'\x80', b'PK', b'<', b'v', b'\n', b'\x1f', b'\x00')) and body:
        with pytest.raises(ForbiddenError):   # also where the first bytes do not give it away
            read_pickle(io.BytesIO(b'\x80\x02' + body), CHECKPOINTS)
    assert not mark.exists()


def test_the_attacks_work_where_they_can(tmp_path):
    """In a process of its own, Python's pickle runs each of the live ones: they are worth
    refusing."""
    script = ("import os, pickle, sys, time\n"
              "for i, data in enumerate(pickle.load(open(sys.argv[1], 'rb'))):\n"
              "    os.environ['LIMPID_TEST_MARK'] = f'{sys.argv[2]}/{i}'\n"
              "    try: pickle.loads(data)\n"
              "    except Exception: pass\n")
    (tmp_path / 'attacks').write_bytes(pickle.dumps(list(LIVE.values())))
    subprocess.run([sys.executable, '-c', script, str(tmp_path / 'attacks'), str(tmp_path)],
                   check=True, timeout=240, cwd=ROOT)
    assert [title for i, title in enumerate(LIVE) if not (tmp_path / str(i)).exists()] == []


@pytest.mark.parametrize('damage', DAMAGED)
def test_damaged_files_are_refused(tmp_path, damage):
    path = tmp_path / 'net.pkl'
    path.write_bytes(DAMAGED[damage])
    refusal(path, lambda path: read_file(path, CHECKPOINTS))


MESSAGES = {
    'os.system, protocol 2': 'is not a checkpoint of ours or of a kind known here: it refers to '
                             'os.system; nothing in it was executed',
    'EXT1': 'it has the pickle opcode EXT1 at byte 2, which is no data; nothing in it was executed',
    'a web page': 'is damaged or not a checkpoint: it is a web page',
    'a list in itself': 'is damaged or not a checkpoint: its pickle refers to itself in a circle',
    'deep lists': 'its pickle is nested more than 200 deep',
    'laughs': 'its pickle unfolds into more than 350000 values',
    'endless opcodes': 'its pickle has more than 350000 opcodes',
    'a call for everything': 'its pickle makes more of its values than it has',
    'huge bytes': f'its pickle claims {1 << 62} bytes at byte 11 of 13',
    'a huge frame': f'its pickle claims a frame of {1 << 62} bytes where 2 are left',
    'a deep key': 'it has a tuple as a key',
    'a tensor past its storage': 'one of its tensors, [4], exceeds its storage of 4 elements',
    'a zip bomb': 'it is a compressed zip, which torch.save does not write',
    'a zip that overlaps itself': 'the entries of its zip claim to be larger than the file',
    'TorchScript': 'it is a TorchScript program',
    'an old stream with a huge storage': 'its storages claim to be larger than the file',
    'views of the same numbers': 'its tensors share their numbers and claim to be far larger than '
                                 'the file',
}


@pytest.mark.parametrize('title', MESSAGES)
def test_messages_say_what_was_found(tmp_path, title):
    path = tmp_path / 'net.pkl'
    path.write_bytes((ATTACKS | DAMAGED)[title])
    message = refusal(path, lambda path: read_file(path, CHECKPOINTS))
    assert message.endswith(MESSAGES[title])


WORST = [
    'huge bytes',
    'a huge frame',
    'a huge text',
    'deep tuples',
    'a deep key',
    'laughs',
    'endless opcodes',
    'a call for everything',
    'a storage that is too small',
    'a tensor larger than its storage',
    'an old stream with a huge storage',
    'a zip bomb',
    'a zip that overlaps itself',
    'views of the same numbers',
]


def test_the_worst_stay_within_their_memory(tmp_path):
    """256 MiB above what the imports take are enough to refuse each of them."""
    script = ("import resource, sys\n"
              "from torch_utils.torch_files import CHECKPOINTS, read_file\n"
              "pages = int(open('/proc/self/statm').read().split()[0])\n"
              "limit = pages * resource.getpagesize() + (1 << 28)\n"
              "resource.setrlimit(resource.RLIMIT_AS, (limit, limit))\n"
              "for path in sys.argv[1:]:\n"
              "    try: read_file(path, CHECKPOINTS)\n"
              "    except ValueError: continue\n"
              "    sys.exit(f'{path} was read')\n")
    for i, title in enumerate(WORST):
        (tmp_path / f'{i}.pkl').write_bytes(DAMAGED[title])
    if not Path('/proc/self/statm').exists():
        pytest.skip('needs /proc')
    paths = [str(tmp_path / f'{i}.pkl') for i in range(len(WORST))]
    subprocess.run([sys.executable, '-c', script, *paths], check=True, timeout=240, cwd=ROOT)


def test_a_file_cut_anywhere_is_refused(tmp_path):
    data, path = PUBLISHED.read_bytes(), tmp_path / 'cut.pkl'
    for percent in range(100):
        path.write_bytes(data[:len(data) * percent // 100])
        refusal(path, lambda path: read_file(path, CHECKPOINTS))
    torch.save({'a': torch.ones(500), 'b': torch.zeros(700)}, path)
    for old in (True, False):
        torch.save({'a': torch.ones(500), 'b': torch.zeros(700)}, path,
                   _use_new_zipfile_serialization=not old)
        data = path.read_bytes()
        for percent in range(100):
            path.write_bytes(data[:len(data) * percent // 100])
            refusal(path, lambda path: read_file(path, CHECKPOINTS))


def test_altered_bytes_never_do_worse_than_a_refusal(tmp_path):
    """Whatever is altered in the structure, the file is read or refused in one line."""
    path, rng = tmp_path / 'altered.pkl', random.Random(0)
    file = io.BytesIO()
    torch.save({'a': torch.ones(5), 'b': [{'c': torch.zeros(2, 3)}, 1.5, None, 'text'],
                'kind': 'x'}, file)
    zip_bytes = file.getvalue()
    file = io.BytesIO()
    torch.save(collections.OrderedDict(a=torch.ones(5), b=torch.zeros(2, 3).T), file,
               _use_new_zipfile_serialization=False)
    stream = file.getvalue()
    refused = 0
    for data in (zip_bytes, stream):
        for _ in range(1000):
            altered = bytearray(data)
            for _ in range(rng.choice([1, 1, 3])):
                altered[rng.randrange(len(data))] = rng.randrange(256)
            path.write_bytes(altered)
            try:
                read_file(path, CHECKPOINTS)
            except ValueError as error:
                assert len(str(error).splitlines()) == 1
                refused += 1
    assert 500 < refused < 2000


# What is no attack is read exactly.


def test_plain_values_of_every_protocol():
    value = {'a': [1, -2, 2**40, 2**80, 1.5, float('inf'), True, None, 'ä' * 300, b'x' * 300, (),
                   (1,), (1, 2), (1, 2, 3, 4)],
             'b': {'c': {1, 2}, 3: {}, None: []}}
    for protocol in (2, 3, 4):
        assert read_pickle(io.BytesIO(pickle.dumps(value, protocol)), CHECKPOINTS) == value
    assert read_pickle(io.BytesIO(pickle.dumps(collections.OrderedDict(b=1, a=2), 4)),
                       TENSORS) == {'b': 1, 'a': 2}
    file = io.BytesIO(pickle.dumps(1, 2) + pickle.dumps('two', 4))
    assert (read_pickle(file, {}), read_pickle(file, {})) == (1, 'two')


def test_numpy_numbers():
    for number in (np.float64(1.25), np.float32(0.1), np.int64(-3), np.uint8(200), np.bool_(True)):
        for protocol in (2, 4):
            value = read_pickle(io.BytesIO(pickle.dumps(number, protocol)), CHECKPOINTS)
            assert value == number.item() and type(value) is type(number.item())


def test_only_names_of_the_list_are_looked_up():
    """The list is general: what a name stands for is the caller's."""
    data = b'\x80\x02' + called(name('a.b', 'C'), b'K\x02') + b'}' + text('x') + b'K\x03sb.'
    value = read_pickle(io.BytesIO(data), {('a.b', 'C'): safe_pickle.record('C')})
    assert isinstance(value, Record) and (value.cls, value.args,
                                          value.state) == ('C', (2,), {'x': 3})
    with pytest.raises(ForbiddenError, match=r'^it refers to a\.b\.C$'):
        read_pickle(io.BytesIO(data), {('a.b', 'D'): safe_pickle.record('D')})


def test_tensors_as_torch_reads_them(tmp_path):
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(4, 5, 6, generator=generator)
    contents = {'a': base, 'b': base.transpose(0, 2)[1:, ::2], 'c': torch.tensor(3.5),
                'd': torch.empty(0, 7), 'e': base.half(), 'f': base.bfloat16(), 'g': base.double(),
                'h': torch.arange(7), 'i': torch.arange(9, dtype=torch.uint8),
                'j': torch.nn.Parameter(torch.ones(3))}
    for zip_format in (True, False):
        path = tmp_path / f'{zip_format}.pt'
        torch.save(contents, path, _use_new_zipfile_serialization=zip_format)
        value, expected = read_file(path, TENSORS), torch.load(path, weights_only=True)
        for key in contents:
            assert torch.equal(value[key],
                               expected[key]) and value[key].stride() == expected[key].stride()
            assert value[key].dtype == contents[key].dtype
        shapes = read_file(path, TENSORS, data=False)
        assert [tensor.shape for tensor in tensors_in(shapes)] == [
            tensor.shape for tensor in contents.values()
        ]
        assert all(tensor.is_meta for tensor in tensors_in(shapes))


def test_a_tensor_must_have_a_storage():
    with pytest.raises(ValueError, match='has no storage'):
        rebuild_tensor(torch.zeros(3), 0, (3,), (1,))


def test_folders_and_missing_files(tmp_path):
    with pytest.raises(ValueError, match=f'^{tmp_path} is a folder, not a checkpoint$'):
        read_file(tmp_path, TENSORS)
    with pytest.raises(FileNotFoundError, match='there is no such detector'):
        read_file(tmp_path / 'x', TENSORS, 'detector')
