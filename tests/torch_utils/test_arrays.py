"""Arrays of numpy in files: read as numpy reads them, and no further than the files reach."""

import io
import zipfile

import numpy as np
import pytest

from torch_utils.arrays import is_npy, names_in, read_npy, read_npz

ARRAYS = [np.arange(12.0).reshape(3, 4), np.asfortranarray(np.arange(6).reshape(2, 3)),
          np.float32(7), np.zeros([2, 0, 3]), np.array(['a', 'bc']), np.array([True, False])]


@pytest.mark.parametrize('array', ARRAYS, ids=str)
def test_arrays_are_those_that_numpy_reads(tmp_path, array):
    np.save(tmp_path / 'a.npy', array)
    found = read_npy(tmp_path / 'a.npy')
    assert found.dtype == np.asarray(array).dtype and np.array_equal(found, array)
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / 'a.npz', x=array, y=1)
        assert names_in(tmp_path / 'a.npz') == ['x', 'y']
        assert np.array_equal(read_npz(tmp_path / 'a.npz')['x'], array)
        assert list(read_npz(tmp_path / 'a.npz', 'y')) == ['y']
    assert is_npy(tmp_path / 'a.npy') and not is_npy(tmp_path / 'a.npz')


def claiming(shape, kind='<f8', data=b'', order=False):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {'descr': kind, 'fortran_order': order, 'shape': shape})
    return header.getvalue() + data


@pytest.mark.parametrize(('content', 'message'), [
    (claiming((2**40,)), r'an array \[1099511627776\] of float64 does not have the size that it'),
    (claiming((2**70, 0)), 'is none'), (claiming((-1,), data=bytes(8)), 'does not have the size'),
    (claiming((2**29, 0, 3)), None), (claiming((1,), '|O', bytes(8)), 'holds pickled objects'),
    (claiming((3,), data=bytes(16)), 'does not have the size that it claims'),
    (claiming((2**62,), '|V0'), 'is none'), (b'\x93NUMPY\x03\x00\x00\x00', 'version'),
    (b'\x93NUMPY', 'EOF'), (b'', 'EOF')])
def test_claims_are_compared_with_what_is_there(tmp_path, content, message):
    (tmp_path / 'a.npy').write_bytes(content)
    if message is None:
        assert read_npy(tmp_path / 'a.npy').nbytes == 0
        return
    with pytest.raises(ValueError, match=message):
        read_npy(tmp_path / 'a.npy')


def test_a_bomb_is_not_unfolded(tmp_path):
    with zipfile.ZipFile(tmp_path / 'a.npz', 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('x.npy', claiming((2**21 + 1,), data=bytes(2**24 + 8)))
    with pytest.raises(ValueError, match='its x.npy claims 16,777,352 bytes and takes'):
        read_npz(tmp_path / 'a.npz', 'x')
