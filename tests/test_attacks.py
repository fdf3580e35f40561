"""Small files that ask for much, one of each kind: each ends in one line, exactly this one.

benchmarks.attacks has more of them, and measures time and memory.
"""

import gzip
import importlib
import json
import struct
import zipfile

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import dataset_tool
from benchmarks import attacks
from benchmarks.originals import originals, png, write_zip
from checkpoints.read import read_network
from data.sources import open_source
from torch_utils.digest import digest_of_tensors
from torch_utils.safetensors_file import MOST_TENSORS, check_digest, load_tensors, save_tensors

LABELS = ('{0} is not a CSV with a line `name,label` for each image, or JSON {"name": label, ...} '
          'or {"labels": [["name", label], ...]}')
NO_TAR = '{0} is no tar, or a damaged or compressed one (unpack it with gunzip)'
NO_BATCH = '{0} is damaged or not a batch of images'
NO_LATENTS = '--latents={0} is not a file of latents'
NO_NETWORK = '{0} is damaged or not a network snapshot or training state'
NO_WEIGHTS = "{0} is damaged or not a file of Inception's weights"
UNFIT = '{0}: its arguments do not make a network'
DIFFUSERS = '{0}/config.json: its arguments do not make a network'
PIPE = '{0} is a device or pipe, not a file'

# The name of an attack, the number of its command, and what that says: {0} is the file.
REFUSED = [
    ('zip-twice.zip', 1, '{0}: a.png is in the zip more than once: make it anew, with one file of '
     'each name'),
    ('zip-overlapping.zip', 1, '{0} is not a zip, or a damaged one: its files overlap'),
    ('zip-deep.zip', 1, '{0} has a file with a name of 60005 characters, more than 4096'),
    ('tar-negative.tar', 0, f'{NO_TAR}: a member of -512 bytes'),
    ('tar-negative-pax.tar', 0, f'{NO_TAR}: read length must be non-negative or -1'),
    ('tar-8gb-pax.tar', 0, f'{NO_TAR}: empty header'),
    ('tar-8gb-image.tar', 0, f'{NO_TAR}: unexpected end of data'),
    ('c/cifar-10-python.tar', 0, '{0} cannot be read: it has a member of -512 bytes'),
    ('idx-claims-idx3-ubyte', 0, '{0} is no IDX file of 3 dimensions, or a damaged one: it claims '
     '4,294,967,296 bytes of pixels, and has 0'),
    ('idx-none-idx3-ubyte', 0, '{0} holds no images of a sensible size'),
    ('class-2^31-1/set', 1, '{0}: dataset.json: the label of 0.png is 2147483647, far above what '
     '2 images need: number the classes from 0'),
    ('class-negative/set', 0, '{0}: dataset.json: the label of 0.png is -1, which is neither an '
     'integer from 0 nor a list of finite numbers'),
    ('digits.csv', 0, f'{LABELS}: field larger than field limit (131072)'),
    ('lines.csv', 0, f'{LABELS}: it has more than 131,072 lines for 6 images'),
    ('array-images-2^29.npz', 0, f'{NO_BATCH}: its array, uint8 [536870912, 8, 8, 3], should have '
     '103079215104 bytes, but has 0'),
    ('array-images-2^29.npz', 2, f'{NO_LATENTS}: an array [536870912, 8, 8, 3] of uint8 does not '
     'have the size that it claims'),
    ('array-nothing.npz', 3, '{0} is damaged or not a file of statistics: an array [2147483647, '
     '2147483647, 1] of |V0 is none'),
    ('array-objects.npz', 0, '{0}: arr_0 holds pickled objects, not uint8 [N, H, W, 3]'),
    ('array-deep.npy', 0, '{0} cannot be read: the description of an array is damaged'),
    ('latents-i8.npz', 0, f'{NO_LATENTS}: its latents are int64, not floating-point numbers'),
    ('latents-c16.npz', 0, f'{NO_LATENTS}: its latents are complex128, not floating-point numbers'),
    ('latents-U4.npz', 0, f'{NO_LATENTS}: its latents are <U4, not floating-point numbers'),
    ('mu-c16.npz', 0, '{0}: mu holds something else than finite numbers'),
    ('pickle-unfolds-8-million.pkl', 1, f'{NO_NETWORK}: its pickle unfolds into more than 350000 '
     'values'),
    ('pickle-loop.pkl', 1, f'{NO_NETWORK}: its pickle refers to itself in a circle'),
    ('pickle-integer.pkl', 5, f'{NO_WEIGHTS}: its pickle has an integer of 16777216 bytes'),
    ('pickle-hostile.pkl', 3, '{0} is not a file of statistics of ours or of a kind known here: '
     'it refers to posix.system; nothing in it was executed'),
    ('config-blocks-1e6.safetensors', 1, f'{UNFIT}: it has 1000000 blocks, but only 72 tensors'),
    ('snapshot-cosine-1e+09.pkl', 1, f'{UNFIT}: the number of timesteps T must be from 1 to '
     '100,000, not 1000000000'),
    ('snapshot-labels-1e9.pkl', 1, f'{UNFIT}: label_dim is 1000000000'),
    ('header-claims.safetensors', 1, "{0} is a damaged safetensors file: the tensor 'a' does not "
     'lie where it should'),
    ('unet-layers-1e6', 0, f'{DIFFUSERS}: layers_per_block is 1000000'),
    ('unet-blocks-100', 0, f'{DIFFUSERS}: 200 blocks of 100 times 1 layers are more than 512'),
    ('unet-attention-100', 0, f'{DIFFUSERS}: 2 blocks of 10 times 100 layers are more than 512'),
    ('unet-timesteps', 0, '{0}/scheduler_config.json: num_train_timesteps is 1000000000, not a '
     'whole number from 2 to 100000'),
    ('torch-case.pt', 1, f'{NO_NETWORK}: its zip has entries of equal names'),
    ('graph-fields.pb', 0, f'{NO_WEIGHTS}: one of its messages has more than 100,000 fields'),
    ('graph-varint.pb', 0, f'{NO_WEIGHTS}: it is no Protocol Buffers message'),
    ('pipe-network.pkl', 1, PIPE), ('zero-detector.pt', 0, PIPE),
    *((f'{kind}-sweep.csv-inside', 0, '{0}/sweep.csv is not a table of fid.py, or a damaged one: '
       'move it away, or name another --dest') for kind in ('pipe', 'zero', 'sparse')),
    ('pipe-log.txt-inside', 0, '{0}/log.txt is a device or pipe, not a file: delete it'),
    ('sparse-labels.json', 0, '{0} has more than 67,108,864 bytes, the most for such a file')]


@pytest.fixture(scope='module')
def base(tmp_path_factory):
    """The folder of the real files that attacks alter."""
    folder = tmp_path_factory.mktemp('attacks')
    originals(folder / 'files', folder / 'mark')
    return folder


@pytest.fixture(scope='module')
def by_name(base):
    return {attack.name: attack for attack in attacks.attacks(base)}


@pytest.mark.parametrize(('name', 'number', 'message'), REFUSED)
def test_one_line_says_what_was_found(base, by_name, tmp_path, name, number, message):
    if name.startswith('unet'):
        pytest.importorskip('diffusers')
    attack, file = by_name[name], tmp_path / name
    file.parent.mkdir(exist_ok=True)
    attack.make(file)
    before = attacks.tree(base / 'files')
    script, *options = (word.replace('{0}', str(file)).replace('{}/files', f'{base}/files')
                        .replace('{}', str(tmp_path)) for word in attack.commands[number].split())
    command = importlib.import_module(script.removesuffix('.py')).main
    result = CliRunner().invoke(command, options)
    assert (result.exit_code, result.output.splitlines()[-1]) == (
        2, f'Error: {message.replace("{0}", str(file))}')
    assert attacks.tree(base / 'files') == before and not (base / 'mark').exists()


def refusal(read, *arguments):
    with pytest.raises(ValueError, match='.') as caught:
        read(*arguments)
    assert '\n' not in str(caught.value)
    return str(caught.value)


def test_a_gzip_unfolds_to_no_more_than_16_mib_or_32_times_its_size(tmp_path):
    cifar, idx = tmp_path / 'cifar-10-python.tar.gz', tmp_path / 'x-idx3-ubyte.gz'
    cifar.write_bytes(attacks.gzipped(attacks.tar_of(2**25, name='other')[:512], 2**25))
    assert refusal(open_source, str(cifar)) == (
        f'{cifar} cannot be read: it unfolds to more than 16,777,216 bytes')
    start = bytes([0, 0, 8, 3])
    for shape, size, message in [
            ((2**6, 2**9, 2**9), 2**24, 'it unfolds to more than 16,777,216 bytes'),
            ((2**12, 2**10, 2**10), 1, 'it claims 4,294,967,296 bytes, more than 16,777,216')]:
        idx.write_bytes(gzip.compress(start + struct.pack('>III', *shape) + bytes(size)))
        assert refusal(open_source, str(idx)) == (
            f'{idx} is no IDX file of 3 dimensions, or a damaged one: {message}')


def test_a_group_of_parquet_is_no_larger_than_its_file_can_hold(tmp_path):
    pyarrow = pytest.importorskip('pyarrow')
    parquet = pytest.importorskip('pyarrow.parquet')
    path, zeros = tmp_path / 'a.parquet', [bytes(2**20)] * 20

    def write(columns, **options):
        parquet.write_table(pyarrow.table(columns), path, compression='zstd', **options)

    write({'image': zeros}, use_dictionary=False)
    source = open_source(str(path))
    claim = parquet.read_metadata(path).row_group(0).column(0).total_uncompressed_size
    assert claim > 20 * 2**20
    assert refusal(source.load, source.names[0]) == (
        f'{path}: group 0 claims {claim:,} bytes and 20 values of image, more than such a file can '
        f'have')
    write({'image': pyarrow.array(np.zeros(2**20 + 1, np.int8))}, row_group_size=2**21)
    assert refusal(open_source, str(path)) == (
        f'{path} has a group of 1,048,577 rows, more than 1,048,576')


def test_labels_of_many_numbers(tmp_path):
    (tmp_path / '0.png').write_bytes(png(0))
    file = tmp_path / 'dataset.json'
    file.write_text(json.dumps({'labels': [['0.png', [0.5] * (2**16 + 1)]]}))
    assert refusal(open_source, str(tmp_path)) == (
        f'{tmp_path}: dataset.json: the label of 0.png has 65537 numbers, more than 65536')
    file.write_text(f'{{"classes": [{"0," * 2**23}0, 0]}}')
    assert refusal(open_source, str(tmp_path)) == (
        f'{tmp_path}: dataset.json has more than 8,388,608 commas')


def test_a_zip_reaches_no_folder_but_its_own(tmp_path):
    write_zip(tmp_path / 'set.zip', [('../../a.png', png(1)), (f'{tmp_path}/b.png', png(2))])
    result = CliRunner().invoke(dataset_tool.main, [
        f'--source={tmp_path}/set.zip', f'--dest={tmp_path}/out.zip', '--workers=1'])
    assert result.exit_code == 0
    with zipfile.ZipFile(tmp_path / 'out.zip') as archive:
        assert [name for name in archive.namelist() if name.endswith('.png')] == [
            '00000/img00000000.png']   # the other lies in a hidden folder, `..`
    assert sorted(path.name for path in tmp_path.iterdir()) == ['out.zip', 'set.zip']


def test_the_digest_of_safetensors_is_compared_when_they_are_read(base, tmp_path):
    path = tmp_path / 'a.safetensors'
    tensors, metadata = load_tensors(base / 'files' / 'a.safetensors')
    name = next(name for name, tensor in tensors.items() if tensor.numel())
    save_tensors({**tensors, name: tensors[name] + 1}, metadata, path)
    found = digest_of_tensors({**tensors, name: tensors[name] + 1})
    assert refusal(read_network, path) == (
        f'{path} is damaged: its tensors have the digest {found}, not {metadata["digest"]} as it '
        f'says')
    assert check_digest(tensors, {}, path) is False
    assert check_digest(tensors, metadata, path) is True


def test_as_many_tensors_as_the_limit_are_read_and_no_more(tmp_path, monkeypatch):
    assert MOST_TENSORS == 20_000
    monkeypatch.setattr('torch_utils.safetensors_file.MOST_TENSORS', 20)
    path = tmp_path / 'a.safetensors'
    save_tensors({f'{i}': torch.zeros(()) for i in range(20)}, {}, path)
    assert len(load_tensors(path)[0]) == 20
    save_tensors({f'{i}': torch.zeros(()) for i in range(21)}, {}, path)
    assert refusal(load_tensors, path) == (
        f'{path} is a damaged safetensors file: it claims 21 tensors, more than 20')
