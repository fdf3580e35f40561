"""Images that threads write: the same files, one batch behind, and errors that come back."""

import threading

import numpy as np
import pytest

from torch_utils import writers
from torch_utils.grids import save_values
from torch_utils.writers import Writers


def images(count, dtype=np.uint8):
    return np.random.default_rng(0).integers(0, 256, [count, 3, 8, 8]).astype(dtype)


@pytest.mark.parametrize('dtype, ending', [(np.uint8, 'png'), (np.float32, 'npy')])
def test_files_have_the_bytes_of_those_written_one_by_one(tmp_path, dtype, ending):
    drawn = images(40, dtype)
    with Writers() as threads:
        for start in range(0, 40, 16):
            part = range(start, min(start + 16, 40))
            threads.write(drawn[part.start:part.stop], [tmp_path / f'a/{i}.{ending}' for i in part])
    for i, image in enumerate(drawn):
        save_values(image, tmp_path / f'b/{i}.{ending}')
    one, two = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
                for name in 'ab')
    assert one == two and len(one) == 40


def test_a_batch_is_drawn_while_one_is_written_and_no_more(monkeypatch):
    """Nothing is written before the caller goes on; the batch before it has been by then."""
    done, go_on = [], threading.Event()
    monkeypatch.setattr(writers, 'save_values', lambda image, path: (go_on.wait(60),
                                                                     done.append(path)))
    with Writers() as threads:
        threads.write(images(9), range(9))
        assert done == []   # and yet the caller is here
        go_on.set()
        threads.write(images(3), range(9, 12))
        assert set(done) >= set(range(9))
    assert sorted(done) == list(range(12))


def test_the_first_error_comes_back_and_what_has_not_begun_is_left_out(tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(OSError) as caught, Writers() as threads:
        threads.write(images(6), [tmp_path / 'a.png', tmp_path / 'file/b.png',
                                  *(tmp_path / f'{i}.png' for i in range(3)),
                                  tmp_path / 'file/c.png'])
        threads.write(images(1), [tmp_path / 'later.png'])
    assert 'file' in str(caught.value) and caught.value.__cause__ is None
    assert (tmp_path / 'a.png').is_file() and not (tmp_path / 'later.png').exists()
    assert [path for path in tmp_path.iterdir() if path.name.startswith('.')] == []


def test_an_error_of_the_caller_ends_the_writing(monkeypatch):
    begun, started, go_on = [], threading.Event(), threading.Event()
    monkeypatch.setattr(writers, 'save_values', lambda image, path: (
        begun.append(path), started.set(), go_on.wait(60)))
    with pytest.raises(KeyError, match='drawing'), Writers(threads=1) as threads:
        end = threads._pool.shutdown
        monkeypatch.setattr(threads._pool, 'shutdown', lambda **options: (
            end(wait=False, **options), go_on.set(), end()))
        threads.write(images(8), range(8))
        started.wait(60)
        raise KeyError('drawing')
    assert begun == [0]
