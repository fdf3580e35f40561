"""Published files of the Inception network's weights: finding, recognising and reading them.

    weights = load_weights(locate(None))   # canonical names -> float32 tensors, see inception.py
    digest(weights)                        # the same for every format of the same weights

The network of 2015-12-05 has been published four times: as TensorFlow's graph, as a dictionary with
torchvision's names (pytorch-fid and torch-fidelity share one file), as TorchScript, and as a pickle
of a Python object. All hold the same numbers under different names. The last two leave out gamma,
which is 1. Nothing in these files is executed.
"""

import io
import itertools
import os
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dnnlib.console import shown
from dnnlib.download import DETECTOR, cached_path, dnnlib_copies, fetch
from dnnlib.files import Unfolded, expanded, home, open_regular, read_bounded, sha256_of_file
from metrics.inception import STEM, Conv, weight_shapes
from torch_utils import torch_files
from torch_utils.digest import digest_of_tensors
from torch_utils.safe_pickle import Global, Record, read_pickle, record
from torch_utils.safetensors_file import check_digest, is_safetensors, load_tensors

MAX_FILE = 300_000_000   # bytes; the largest published one has 96 million
MAX_FIELDS = 100_000     # of a message in a GraphDef; the published graph has 2,000 nodes
WHAT = "file of Inception's weights"


class Published(NamedTuple):
    """A file that can be downloaded."""
    url: str
    sha256: str | None   # None: nobody has published it
    size: int


# The first is the one to download: under the Apache licence, with a known checksum, and plain data.
PUBLISHED = (
    Published('https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/'
              'pt_inception-2015-12-05-6726825d.pth',
              '6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2', 95_628_359),
    Published('https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/'
              'inception-2015-12-05.pt',
              'f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4', 95_607_719),
    Published('http://download.tensorflow.org/models/image/imagenet/inception-2015-12-05.tgz', None,
              88_931_400),
)


# Other names of the same tensors.

# Branches of a block: their names here -> their paths in TensorFlow's graph.
BRANCHES = {
    'a': {'branch1x1': 'conv', 'branch5x5_1': 'tower/conv', 'branch5x5_2': 'tower/conv_1',
          'branch3x3dbl_1': 'tower_1/conv', 'branch3x3dbl_2': 'tower_1/conv_1',
          'branch3x3dbl_3': 'tower_1/conv_2', 'branch_pool': 'tower_2/conv'},
    'b': {'branch3x3': 'conv', 'branch3x3dbl_1': 'tower/conv', 'branch3x3dbl_2': 'tower/conv_1',
          'branch3x3dbl_3': 'tower/conv_2'},
    'c': {'branch1x1': 'conv', 'branch7x7_1': 'tower/conv', 'branch7x7_2': 'tower/conv_1',
          'branch7x7_3': 'tower/conv_2', 'branch7x7dbl_1': 'tower_1/conv',
          'branch7x7dbl_2': 'tower_1/conv_1', 'branch7x7dbl_3': 'tower_1/conv_2',
          'branch7x7dbl_4': 'tower_1/conv_3', 'branch7x7dbl_5': 'tower_1/conv_4',
          'branch_pool': 'tower_2/conv'},
    'd': {'branch3x3_1': 'tower/conv', 'branch3x3_2': 'tower/conv_1',
          'branch7x7x3_1': 'tower_1/conv', 'branch7x7x3_2': 'tower_1/conv_1',
          'branch7x7x3_3': 'tower_1/conv_2', 'branch7x7x3_4': 'tower_1/conv_3'},
    'e': {'branch1x1': 'conv', 'branch3x3_1': 'tower/conv', 'branch3x3_2a': 'tower/mixed/conv',
          'branch3x3_2b': 'tower/mixed/conv_1', 'branch3x3dbl_1': 'tower_1/conv',
          'branch3x3dbl_2': 'tower_1/conv_1', 'branch3x3dbl_3a': 'tower_1/mixed/conv',
          'branch3x3dbl_3b': 'tower_1/mixed/conv_1', 'branch_pool': 'tower_2/conv'},
}
BLOCKS = dict(zip(['Mixed_5b', 'Mixed_5c', 'Mixed_5d', 'Mixed_6a', 'Mixed_6b', 'Mixed_6c',
                   'Mixed_6d', 'Mixed_6e', 'Mixed_7a', 'Mixed_7b', 'Mixed_7c'], 'aaabccccdee',
                  strict=True))
LEAVES = {   # here: in TensorFlow's graph, in NVIDIA's objects (which have no gamma)
    'conv.weight': ('conv2d_params', 'weight'),
    'bn.weight': ('batchnorm/gamma', None),
    'bn.bias': ('batchnorm/beta', 'beta'),
    'bn.running_mean': ('batchnorm/moving_mean', 'mean'),
    'bn.running_var': ('batchnorm/moving_variance', 'var'),
}


def tensorflow_names() -> dict[str, str]:
    """Map names here to names in TensorFlow's graph."""
    names = {f'{name}.{leaf}': f'{path}/{tensorflow}' for name, path, _ in _convolutions()
             for leaf, (tensorflow, _) in LEAVES.items()}
    return {**names, 'fc.weight': 'softmax/weights', 'fc.bias': 'softmax/biases'}


def nvidia_names() -> dict[str, str]:
    """Map names here to names in NVIDIA's objects; gamma is not among them."""
    names = {f'{name}.{leaf}': f'{path}.{nvidia}' for name, _, path in _convolutions()
             for leaf, (_, nvidia) in LEAVES.items() if nvidia is not None}
    return {**names, 'fc.weight': 'output.weight', 'fc.bias': 'output.bias'}


def _convolutions() -> Iterator[tuple[str, str, str]]:
    """Yield every convolution's name here, in TensorFlow's graph, and in NVIDIA's objects."""
    for i, conv in enumerate(conv for conv in STEM if isinstance(conv, Conv)):
        theirs = _numbered('conv', i)
        yield conv.name, theirs, f'layers.{theirs}'
    for i, (block, kind) in enumerate(BLOCKS.items()):
        theirs = _numbered('mixed', i)
        for branch, path in BRANCHES[kind].items():
            inner = path.replace('/', '_' if kind == 'e' else '.')
            yield f'{block}.{branch}', f'{theirs}/{path}', f'layers.{theirs}.{inner}'


def _numbered(name: str, i: int) -> str:
    return f'{name}_{i}' if i else name


def to_canonical(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename tensors from any of the three sets of names to those of inception.weight_shapes.

    Raises ValueError, without a file's name, for a missing, unknown or misshapen tensor, for one
    that is not float32, and for values that are not finite.
    """
    if 'conv/conv2d_params' in tensors:
        named = {name: _as_here(tensors[theirs]) for name, theirs in tensorflow_names().items()
                 if theirs in tensors}
    elif 'layers.conv.weight' in tensors:
        names = {theirs: name for name, theirs in nvidia_names().items()}
        named = {names.get(theirs, theirs): tensor for theirs, tensor in tensors.items()}
        named |= {name: torch.ones(shape) for name, shape in weight_shapes().items()
                  if name.endswith('bn.weight')}
    else:
        named = {name: tensor for name, tensor in tensors.items()
                 if not name.endswith('.num_batches_tracked')}
    return checked(named, weight_shapes())


def _as_here(tensor: Tensor) -> Tensor:
    """Turn TensorFlow's layout, outputs last, into PyTorch's, outputs first."""
    if tensor.ndim == 4:
        return tensor.permute(3, 2, 0, 1)
    return tensor.T if tensor.ndim == 2 else tensor


def checked(named: Mapping[str, Tensor], shapes: Mapping[str, list[int]]) -> dict[str, Tensor]:
    """Return contiguous tensors in the order of `shapes`.

    Raises ValueError for one that is missing, unknown or wrong.
    """
    for name, shape in shapes.items():
        if name not in named:
            raise ValueError(f'the tensor {name} is missing')
        tensor = named[name]
        if list(tensor.shape) != shape:
            hint = ''
            if name.startswith('fc.'):
                hint = "; torchvision's Inception has 1000 classes and other weights"
            raise ValueError(f'the tensor {name} has shape {list(tensor.shape)}, not {shape}{hint}')
        if tensor.dtype != torch.float32:
            raise ValueError(f'the tensor {name} is of {tensor.dtype}, not torch.float32')
        if not tensor.isfinite().all():
            raise ValueError(f'the tensor {name} has values that are not finite')
    for name in named:
        if name not in shapes:
            raise ValueError(f'the tensor {shown(name)} is unknown to the network')
    return {name: named[name].detach().contiguous() for name in shapes}


def digest(weights: Mapping[str, Tensor]) -> str:
    """Return the digest of canonical names, shapes and values.

    A gamma of ones is left out, as some files have none.
    """
    return digest_of_tensors({name: tensor for name, tensor in weights.items()
                              if not (name.endswith('bn.weight') and (tensor == 1).all())})


def load_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read the network's weights from a file of any published format, on the CPU.

    They are under canonical names.

    Raises FileNotFoundError, or ValueError in one line that names the file and what is wrong with
    it.
    """
    path = Path(path)
    tensors = FORMATS[sniff(path)](path)
    try:
        return to_canonical(tensors)
    except ValueError as error:
        raise ValueError(
            f"{path} does not have the weights of FID's Inception network: {error}") from None


def sniff(path: str | os.PathLike[str]) -> str:
    """Return the format of a file, a key of FORMATS, by its first bytes. Raises as load_weights."""
    path = Path(path)
    if path.is_dir():
        raise ValueError(f'{path} is a folder, not a {WHAT}')
    if not path.exists():
        raise FileNotFoundError(2, f'there is no such {WHAT}', str(path))
    if path.stat().st_size > MAX_FILE:
        raise ValueError(f'{path} is not a {WHAT}: it has {path.stat().st_size} bytes, and they '
                         f'have 96 million')
    if is_safetensors(path):
        return 'safetensors'
    with open_regular(path) as file:
        start = file.read(64)
    if start.startswith(torch_files.ZIP_START):
        with torch_files.damage_named(path, WHAT), zipfile.ZipFile(path) as archive:
            scripted = any(name.endswith('/constants.pkl') for name in archive.namelist())
        return 'TorchScript' if scripted else 'state dict'
    if start.startswith(torch_files.STREAM_START):
        return 'state dict'
    for beginning, name in ((b'\x80', 'pickled object'), (b'\x1f\x8b', 'tgz'), (b'\n', 'GraphDef')):
        if start.startswith(beginning) and not start.lstrip().lower().startswith(
            (b'<!doctype', b'<html')
        ):
            return name
    raise ValueError(
        f'{path} is not a {WHAT}: it ' + (f'starts with {start[:8]!r}' if start else 'is empty')
    )


# Readers of the formats: path -> tensors under the names of the file.

def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read a dictionary of torch.save, in the format of today or in that of before 2020."""
    return dict(_tensors_of(torch_files.read_file(path, torch_files.TENSORS, WHAT)))


def read_object(path: Path) -> dict[str, Tensor]:
    """Read a pickled torch module; the source text that it carries is ignored."""
    return dict(
        _tensors_of(torch_files.read_file(path, {**torch_files.CHECKPOINTS, **MODULES}, WHAT))
    )


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """Read the parameters and buffers of a TorchScript archive, but none of its code."""
    with torch_files.damage_named(path, WHAT), zipfile.ZipFile(path) as archive:
        entries = {info.filename: info for info in archive.infolist()}
        tops = [name.removesuffix('/data.pkl') for name in entries if name.endswith('/data.pkl')]
        if len(tops) != 1:
            raise ValueError(f'it is a zip with {len(tops)} entries called data.pkl instead of one')
        storages: dict[str, torch_files.Storage] = {}

        def read(name: str) -> bytes:
            info = entries.get(f'{tops[0]}/{name}')
            if (info is None or info.compress_type != zipfile.ZIP_STORED
                    or info.file_size > path.stat().st_size):
                raise ValueError(f'its entry {shown(name)} is missing, or not as torch.jit.save '
                                 f'writes it')
            return archive.read(info)

        def load(identity: object) -> torch_files.Storage:
            match identity:
                case ('storage', Global('torch', kind, _), str(key), str(_),
                      int(count)) if kind in torch_files.STORAGES:
                    if key not in storages:
                        values = torch.frombuffer(bytearray(read(f'data/{key}')),
                                                  dtype=torch_files.STORAGES[kind])
                        storages[key] = torch_files.Storage(values)
                    if storages[key].values.numel() == count:
                        return storages[key]
            raise ValueError('it refers to something outside of itself that is no storage, or one '
                             'of another size')

        return dict(_tensors_of(read_pickle(io.BytesIO(read('data.pkl')), _Scripted(), load)))


class _Scripted(Mapping[tuple[str, str], Callable[..., Any]]):
    """The names that TorchScript's pickles may refer to; classes of the program become records."""

    def __getitem__(self, key: tuple[str, str]) -> Callable[..., Any]:
        module, name = key
        if module == '__torch__' or module.startswith('__torch__.'):
            return record(f'{module}.{name}')
        # build_intlist and others: a list, and what type it is of
        if module == 'torch.jit._pickle':
            return lambda value, *_: value
        return torch_files.TENSORS[key]

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(torch_files.TENSORS)

    def __len__(self) -> int:
        return len(torch_files.TENSORS)


def _tensors_of(value: object) -> Iterator[tuple[str, Tensor]]:
    """Yield (dotted name, tensor) of a dictionary, or of an object and the objects in it.

    At most 10,000 are looked at.
    """
    def walk(value: object, name: str) -> Iterator[tuple[str, Tensor]]:
        if isinstance(value, Tensor):
            yield name[1:], value
        elif isinstance(value, Record) and isinstance(value.state, dict):
            members = [value.state,
                       *(value.state.get(key) for key in ('_parameters', '_buffers', '_modules'))]
            for part in members:
                for key, member in part.items() if isinstance(part, dict) else ():
                    yield from walk(member, f'{name}.{key}')

    parts = value.items() if isinstance(value, dict) else [(None, value)]
    tensors = itertools.chain.from_iterable(walk(v, '' if k is None else f'.{k}') for k, v in parts)
    return itertools.islice(tensors, 10_000)


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read a file of safetensors, whose digest must be right if it has one."""
    tensors, metadata = load_tensors(path)
    check_digest(tensors, metadata, path, digest)
    return tensors


def load_state_dict(path: str | os.PathLike[str], what: str, network: str,
                    canonical: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
                    ) -> dict[str, Tensor]:
    """Read a published state dict, or safetensors of it, and return it as `canonical` does.

    `what` and `network` are for messages. Nothing in the file is executed. Raises
    FileNotFoundError, or ValueError in one line that names the file and what is wrong with it.
    """
    if is_safetensors(path):
        found = read_safetensors(Path(path))
    else:
        found = torch_files.read_file(path, torch_files.TENSORS, what)
    try:
        return canonical(found if isinstance(found, dict) else {})
    except ValueError as error:
        raise ValueError(f'{path} does not have the weights of {network}: {error}') from None


def read_graphdef(path: Path) -> dict[str, Tensor]:
    """Read the constants of a TensorFlow graph, without TensorFlow."""
    with torch_files.damage_named(path, WHAT):
        return dict(_constants(read_bounded(path, MAX_FILE)))


def read_tgz(path: Path) -> dict[str, Tensor]:
    """Read the graph within the archive in which TensorFlow's models were published."""
    with (torch_files.damage_named(path, WHAT), open_regular(path) as file,
          tarfile.open(fileobj=io.BufferedReader(Unfolded(file, MAX_FILE)),
                       mode='r|') as archive):
        for member in archive:
            if member.isfile() and Path(
                member.name).name == 'classify_image_graph_def.pb' and member.size < MAX_FILE:
                graph = archive.extractfile(member)
                assert graph is not None, 'a regular file can be extracted'
                return dict(_constants(graph.read()))
        raise ValueError('it has no file called classify_image_graph_def.pb')


def _constants(graph: bytes) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, value) of a graph's float32 constants, as far as the network has such names.

    GraphDef: node = 1. NodeDef: name = 1, op = 2, attr = 5, a map whose entries have key = 1, value
    = 2. AttrValue: tensor = 8. TensorProto: dtype = 1 (float32 is 1), shape = 2, content = 4, float
    values = 5. TensorShapeProto: dim = 2, of which size = 1.
    """
    wanted = set(tensorflow_names().values())
    for node in _messages(memoryview(graph), 1):
        name = b''.join(_messages(node, 1)).decode()
        if name not in wanted or b''.join(_messages(node, 2)) != b'Const':
            continue
        for attribute in _messages(node, 5):
            for tensor in (t for value in _messages(attribute, 2) for t in _messages(value, 8)):
                fields = _fields(tensor)
                shape = [dict(_fields(dim)).get(1, 0) for s in _messages(tensor, 2)
                         for dim in _messages(s, 2)]
                content = b''.join(value for number, value in fields if number in (4, 5))
                if dict(fields).get(1) != 1 or len(content) != 4 * int(
                    np.prod(shape, dtype=object)
                ):
                    raise ValueError(f'{name} is no float32 tensor of shape {shape}')
                yield name, torch.frombuffer(bytearray(content), dtype=torch.float32).reshape(shape)


def _messages(message: memoryview, number: int) -> list[Any]:
    """Return the values of a field, in order."""
    return [value for found, value in _fields(message) if found == number]


def _fields(message: memoryview) -> list[tuple[int, Any]]:
    """Return (number, value) of every field of a Protocol Buffers message; an integer, or bytes."""
    fields: list[tuple[int, Any]] = []
    at = 0
    while at < len(message):
        if len(fields) == MAX_FIELDS:
            raise ValueError(f'one of its messages has more than {MAX_FIELDS:,} fields')
        key, at = _varint(message, at)
        if key & 7 == 0:
            value, at = _varint(message, at)
            fields.append((key >> 3, value))
            continue
        if key & 7 == 2:
            length, at = _varint(message, at)
        else:
            # other kinds: nothing has that length
            length = {1: 8, 5: 4}.get(key & 7, len(message) + 1)
        if at + length > len(message):
            raise ValueError('it is no Protocol Buffers message, or ends within one')
        fields.append((key >> 3, message[at:at + length]))
        at += length
    return fields


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """Read an integer of seven bits a byte, lowest first; return it and where it ends."""
    value = 0
    for i in range(min(10, len(message) - at)):
        value |= (message[at + i] & 127) << (7 * i)
        if message[at + i] < 128:
            return value, at + i + 1
    raise ValueError('it is no Protocol Buffers message')


# Where files are.

def locate(source: str | os.PathLike[str] | None = None) -> Path:
    """Find the file of weights: `source` if given, else $LIMPID_DETECTOR, else a download.

    Earlier downloads of this project and of other tools are found. If there is none, the file is
    downloaded, unless $LIMPID_OFFLINE is set. Raises ValueError, in one line that says how to get
    the file by hand, if that fails or if a download has another checksum.
    """
    return source_of('FID', 'Inception', PUBLISHED[0], downloads(), source, 'LIMPID_DETECTOR')


def source_of(number: str, network: str, file: Published,
              downloads: Iterable[tuple[Path, str | None]], source: str | os.PathLike[str] | None,
              variable: str) -> Path:
    """Find a file of weights, or fetch it.

    Returns `source`, else the path in the environment's `variable`, else the first of `downloads`
    that exists, else `file`, which is downloaded. `number` and `network` are for messages.
    """
    if source is not None:
        return Path(source)
    named = os.environ.get(variable)
    if named:
        named = expanded(named)
        if not Path(named).exists():
            raise ValueError(f'{variable}={named} does not exist: name the file of weights, or '
                             f'unset it')
        return Path(named)
    for path, sha256 in downloads:
        if path.is_file():
            found = sha256 and sha256_of_file(path)
            if found != sha256:
                raise ValueError(f'{path} is damaged: its sha256 is {found}, not {sha256}; delete '
                                 f'it')
            return path
    why = ''
    if not os.environ.get('LIMPID_OFFLINE'):
        print(f'Downloading the weights of {network} ({file.size // 1_000_000} MB) from {file.url}',
              file=sys.stderr)
        try:
            return fetch(file.url, file.sha256, most=DETECTOR)
        except ValueError as error:
            # 'cannot be fetched' and the reason; what to do follows below
            why = ' and' + str(error).removeprefix(file.url).partition(': download it')[0]
    raise ValueError(
        f'{number} needs the published weights of {network}, which are not on this machine{why}: '
        f'download {file.url} ({file.size} bytes, sha256 {file.sha256}) to '
        f'{cached_path(file.url)}, or set {variable} to the file; for a trial without them '
        f'detector=demo measures the distance of random features, and '
        f'detector=efficientnet-lite0 that of another network, which pip installs: both are NOT '
        f'FID')


def downloads() -> Iterator[tuple[Path, str | None]]:
    """Yield the paths where downloads may be, with checksums: our cache, then other tools'."""
    state_dict, torchscript, _ = PUBLISHED
    for file in PUBLISHED:
        yield cached_path(file.url), file.sha256
    hub = Path(torch.hub.get_dir()) / 'checkpoints'
    for prefix in ('pt_', 'weights-'):
        yield hub / f'{prefix}inception-2015-12-05-6726825d.pth', state_dict.sha256
    for url, sha256 in ((torchscript.url, torchscript.sha256), (NGC_URL, None)):
        for path in dnnlib_copies(url):
            yield path, sha256
    yield home() / '.cache' / 'k-diffusion' / 'inception-2015-12-05.pt', torchscript.sha256


# The pickled object's address, whose MD5 is its name in the caches of those who have downloaded it.
NGC_URL = ('https://api.ngc.nvidia.com/v2/models/nvidia/research/stylegan3/versions/1/files/'
           'metrics/inception-2015-12-05.pkl')
# of torch, which the pickled object consists of
MODULES: dict[tuple[str, str], Callable[..., Any]] = {
    (f'torch.nn.modules.{module}', name): record(name) for module, name in (
        ('container', 'Sequential'), ('container', 'ModuleList'), ('pooling', 'MaxPool2d'),
        ('pooling', 'AvgPool2d'), ('pooling', 'AdaptiveAvgPool2d'), ('linear', 'Linear'),
        ('activation', 'ReLU'))
}
FORMATS: dict[str, Callable[[Path], dict[str, Tensor]]] = {
    'state dict': read_state_dict,
    'TorchScript': read_torchscript,
    'pickled object': read_object,
    'GraphDef': read_graphdef,
    'tgz': read_tgz,
    'safetensors': read_safetensors,
}
