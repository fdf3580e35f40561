"""A small real file of every kind that limpid reads, for benchmarks.fuzz and benchmarks.attacks."""

import gzip
import importlib
import io
import json
import pickle
import struct
import tarfile
import warnings
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import PIL.Image
import torch

from limpid.loss import DenoisingLoss, InverseCOut, LogNormal
from limpid.preconditioning import EDM
from metrics.reference_files import write_reference
from metrics.statistics import Moments, Statistics
from metrics.weights import tensorflow_names
from torch_utils import checkpoint
from torch_utils.digest import digest_of_tensors
from torch_utils.safetensors_file import save_tensors
from training import config as configs
from training.config import TrainConfig
from training.dataset import DataConfig
from training.networks import NetworkConfig
from training.run_folder import STATE
from training.state import save_snapshot, save_state
from training.training_loop import build


class Executed:
    """An object whose pickle writes a file, `mark`, where it is opened with pickle.load."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return open, (str(self.mark), 'w')


def originals(folder: Path, mark: Path) -> dict[str, list[Path]]:
    """Write files of every kind, and return them by kind; hostile pickles would write `mark`.

    A file in a folder of its own is read with what lies beside it. Kinds that need a package that
    is not installed are left out.
    """
    folder.mkdir()
    (folder / 'hostile.pkl').write_bytes(pickle.dumps({'ema': Executed(mark)}, 2))
    torch.save({'mu': Executed(mark), 'kind': STATE}, folder / 'hostile.pt')
    return {**data_sets(folder), **sources(folder, mark), **networks(folder),
            **detectors(folder), **tables(folder)}


# Networks

def small_config(data: Path) -> TrainConfig:
    """Return the settings of a network that takes a few hundred kB."""
    network = NetworkConfig('SongUNet', EDM(), 0.0, float('inf'), 8, 1, 3, 'fp32', {
        'model_channels': 16, 'channel_mult': [1], 'num_blocks': 1, 'attn_resolutions': []})
    loss = DenoisingLoss(LogNormal(), InverseCOut(EDM()))
    return TrainConfig(DataConfig(str(data)), network, loss, total_nimg=1000, batch_size=4)


def networks(folder: Path) -> dict[str, list[Path]]:
    """Write a snapshot, a training state and safetensors of a network of the data set set.zip."""
    config = small_config(folder / 'set.zip')
    state = build(config, torch.device('cpu'))
    state.nimg = 1000
    snapshot = save_snapshot(state, config, folder)
    training_state = save_state(state, config, folder)
    tensors = checkpoint.state_dict_of(state.ema.net)
    about = {'kind': 'network snapshot', 'format': configs.FORMAT, 'nimg': 1000,
             'config': configs.encode(config)}
    save_tensors(tensors, {'limpid': json.dumps(about), 'digest': digest_of_tensors(tensors)},
                 folder / 'a.safetensors')
    return {'snapshot': [snapshot, folder / 'hostile.pkl'],
            'state': [training_state, folder / 'hostile.pt'],
            'safetensors': [folder / 'a.safetensors'], **_diffusers(folder / 'pipeline')}


def _diffusers(folder: Path) -> dict[str, list[Path]]:
    try:
        diffusers = importlib.import_module('diffusers')
    except ImportError:
        return {}
    net = diffusers.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8,), layers_per_block=1,
        norm_num_groups=4, down_block_types=('DownBlock2D',), up_block_types=('UpBlock2D',))
    net.save_pretrained(folder)
    diffusers.DDPMScheduler(num_train_timesteps=100).save_config(folder)
    return {'diffusers': [folder / 'config.json', folder / 'scheduler_config.json',
                          folder / 'diffusion_pytorch_model.safetensors']}


def detectors(folder: Path) -> dict[str, list[Path]]:
    """Write files of some weights in every format in which detectors are published."""
    weights = {name: torch.ones(2) for name in list(tensorflow_names())[:3]}
    torch.save(weights, folder / 'weights.pth')
    torch.save(weights, folder / 'old.pth', _use_new_zipfile_serialization=False)
    save_tensors(weights, {'detector': 'inception'}, folder / 'weights.safetensors')
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(folder / 'scripted.pt'))
    graph = b''.join(constant(name, np.ones(2, np.float32))
                     for name in list(tensorflow_names().values())[:3])
    (folder / 'graph.pb').write_bytes(graph)
    write_tar(folder / 'graph.tgz', [('classify_image_graph_def.pb', graph)])
    return {'detector': [folder / name for name in (
        'a.safetensors', 'weights.safetensors', 'weights.pth', 'old.pth', 'scripted.pt', 'graph.pb',
        'graph.tgz', 'hostile.pt')]}


def constant(name: str, values: np.ndarray) -> bytes:
    """Return the node of a GraphDef that is a constant of float32."""
    shape = b''.join(field(2, field(1, size)) for size in values.shape)
    tensor = field(1, 1) + field(2, shape) + field(4, values.tobytes())
    return field(1, field(1, name.encode()) + field(2, b'Const')
                 + field(5, field(1, b'value') + field(2, field(8, tensor))))


def field(number: int, value: bytes | int) -> bytes:
    """Return a field of a Protocol Buffers message."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    *low, top = [value >> shift & 127 for shift in range(0, max(value.bit_length(), 1), 7)]
    return bytes([*(part | 128 for part in low), top])


# Images

def png(level: int, size: tuple[int, int] = (8, 8)) -> bytes:
    """Return an image of a single grey level as the bytes of a PNG."""
    file = io.BytesIO()
    PIL.Image.new('L', size, level).save(file, format='PNG')
    return file.getvalue()


def data_sets(folder: Path) -> dict[str, list[Path]]:
    """Write six images with labels as a zip, as a folder, and as an npz of samples."""
    files = {f'00000/img{i}.png': png(40 * i) for i in range(6)}
    labels = [[name, i % 3] for i, name in enumerate(files)]
    files['dataset.json'] = json.dumps({'labels': labels, 'classes': ['a', 'b', 'c']}).encode()
    write_zip(folder / 'set.zip', files.items())
    for name, data in files.items():
        (folder / 'set' / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / 'set' / name).write_bytes(data)
    np.savez_compressed(folder / 'batch.npz', arr_0=np.zeros([4, 8, 8, 3], np.uint8),
                        arr_1=np.arange(4))
    return {'zip': [folder / 'set.zip'], 'dataset.json': [folder / 'set' / 'dataset.json'],
            'image': [folder / 'set' / '00000' / 'img1.png'], 'batch': [folder / 'batch.npz']}


def sources(folder: Path, mark: Path) -> dict[str, list[Path]]:
    """Write a source of dataset_tool.py of every kind, and files of labels."""
    batch = {'data': np.arange(4 * 3072, dtype=np.uint8).reshape(4, 3072), 'labels': [0, 1, 2, 0]}
    members = [('x/data_batch_1', pickle.dumps(batch, 2)),
               ('x/data_batch_2', pickle.dumps({'data': Executed(mark)}, 2)),
               ('x/batches.meta', pickle.dumps({'label_names': ['a', 'b', 'c']}, 2))]
    (folder / 'cifar').mkdir()
    for name in ('cifar-10-python.tar', 'cifar-100-python.tar.gz'):
        write_tar(folder / 'cifar' / name, members[::2] if name.endswith('gz') else members)
    (folder / 'idx').mkdir()
    for name, array in (('images-idx3', np.arange(4 * 64).reshape(4, 8, 8)),
                        ('labels-idx1', np.arange(4))):
        data = bytes([0, 0, 8, array.ndim]) + struct.pack(
            f'>{array.ndim}I', *array.shape) + array.astype(np.uint8).tobytes()
        (folder / 'idx' / f'train-{name}-ubyte.gz').write_bytes(gzip.compress(data))
    (folder / 'x-idx3-ubyte').write_bytes(data)
    np.save(folder / 'images.npy', np.arange(4 * 192, dtype=np.uint8).reshape(4, 8, 8, 3))
    named = {f'{top}/{i}.png': png(40 * i) for i, top in enumerate('abab')}
    write_zip(folder / 'classes.zip', named.items())
    write_tar(folder / 'shard.tar', [
        item for i in range(4) for item in ((f'{i}.png', png(i)), (f'{i}.cls', b'%d' % i))])
    write_lmdb(folder / 'some_lmdb' / 'data.mdb', {b'key%d' % i: png(i) for i in range(4)})
    names = json.loads((folder / 'set' / 'dataset.json').read_bytes())['labels']
    (folder / 'set' / 'labels.csv').write_text(''.join(f'{name},{i}\n' for name, i in names))
    (folder / 'set' / 'labels.json').write_text(json.dumps(dict(names)))
    return {
        'CIFAR': [folder / 'cifar' / 'cifar-10-python.tar',
                  folder / 'cifar' / 'cifar-100-python.tar.gz'],
        'IDX': [folder / 'idx' / 'train-images-idx3-ubyte.gz', folder / 'x-idx3-ubyte',
                folder / 'idx' / 'train-labels-idx1-ubyte.gz'],
        'arrays': [folder / 'images.npy', folder / 'batch.npz'],
        'classes': [folder / 'classes.zip'], 'tar': [folder / 'shard.tar'],
        'labels': [folder / 'set' / 'labels.csv', folder / 'set' / 'labels.json'],
        'LMDB': [folder / 'some_lmdb' / 'data.mdb'], **_parquet(folder)}


def write_lmdb(path: Path, values: dict[bytes, bytes]) -> None:
    """Write a database of LMDB whose keys fit on one page, every value on pages of its own."""
    leaf, large = b'', b''
    places = []
    for key, value in sorted(values.items()):
        node = struct.pack('<HHHH', len(value) & 0xffff, len(value) >> 16, 1, len(key))
        node += key + struct.pack('<Q', 3 + len(large) // 4096)
        leaf = node + b'\0' * (len(node) % 2) + leaf
        places.append(len(leaf))
        count = -(-(16 + len(value)) // 4096)
        large += _page(3 + len(large) // 4096, 4, struct.pack('<I', count), value)
    lower = 16 + 2 * len(places)
    pointers = b''.join(struct.pack('<H', 4096 - place) for place in places)
    head = struct.pack('<HH', lower, 4096 - len(leaf)) + pointers
    tree = _page(2, 2, head, leaf.rjust(4096 - 12 - len(head), b'\0'))
    metas = [_page(number, 8, bytes(4), struct.pack(
        '<IIQQIHH5QIHH5QQQ', 0xBEEFC0DE, 1, 0, 2**20, 4096, 8, 0, 0, 0, 0, 0, 2**64 - 1, 0, 0, 1,
        0, 1, len(large) // 4096, len(values), 2, 2 + len(large) // 4096, number))
        for number in (0, 1)]
    path.parent.mkdir()
    path.write_bytes(b''.join([*metas, tree, large]))


def _page(number: int, kind: int, head: bytes, data: bytes) -> bytes:
    page = struct.pack('<QHH', number, 0, kind) + head + data
    return page + b'\0' * (-len(page) % 4096)


def _parquet(folder: Path) -> dict[str, list[Path]]:
    try:
        pyarrow, parquet = map(importlib.import_module, ('pyarrow', 'pyarrow.parquet'))
    except ImportError:
        return {}
    table = pyarrow.table({'image': [{'bytes': png(i), 'path': None} for i in range(4)],
                           'label': [0, 1, 0, 1]})
    names = {'info': {'features': {'label': {'names': ['cat', 'dog']}}}}
    parquet.write_table(table.replace_schema_metadata({'huggingface': json.dumps(names)}),
                        folder / 'some.parquet', row_group_size=2)
    return {'parquet': [folder / 'some.parquet']}


def write_zip(path: Path, files: Iterable[tuple[str, bytes]],
              compression: int = zipfile.ZIP_STORED) -> None:
    """Write a zip of these files, which may have one name."""
    with zipfile.ZipFile(path, 'w', compression) as archive, warnings.catch_warnings():
        warnings.simplefilter('ignore')   # of one name twice
        for name, data in files:
            archive.writestr(name, data)


def write_tar(path: Path, files: Iterable[tuple[str, bytes]]) -> None:
    """Write a tar of these files, which is compressed where its name ends in gz."""
    with tarfile.open(path, 'w:gz' if path.name.endswith('gz') else 'w') as archive:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


# Tables and arrays

def tables(folder: Path) -> dict[str, list[Path]]:
    """Write statistics, latents, and the tables and notes of commands."""
    moments = Moments.zero(224)
    moments.add(torch.rand([300, 224], generator=torch.Generator().manual_seed(0)))
    write_reference(folder / 'ref.npz', {'demo': Statistics(moments.mean(), moments.cov(), 300)})
    np.savez(folder / 'latents.npz', latents=np.zeros([2, 1, 8, 8], np.float32),
             labels=np.zeros([2, 3], np.float32))
    (folder / 'sweep.csv').write_text(f'point,nfe,fid,error\n{1:016x},3,2.5,\n{2:016x},,,no\n')
    (folder / 'stats.jsonl').write_text(
        '{"Progress/kimg": {"num": 1, "mean": 1.0, "std": 0}, "Loss/loss": {"mean": 0.5}}\n' * 5)
    (folder / 'best.json').write_text('{"snapshot": "network-snapshot-000001.pkl", "kimg": 1.0, '
                                      '"metric": "fid", "scores": {}, "evaluation": {}}\n')
    return {'statistics': [folder / 'ref.npz', folder / 'hostile.pkl'],
            'latents': [folder / 'latents.npz'], 'sweep.csv': [folder / 'sweep.csv'],
            'stats.jsonl': [folder / 'stats.jsonl'], 'best.json': [folder / 'best.json']}
