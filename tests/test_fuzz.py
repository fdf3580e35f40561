"""Altered files of every kind: read or refused in one line, and nothing else ever happens."""

import pytest

from benchmarks import fuzz

COUNT = 120  # of each kind; python -m benchmarks.fuzz takes more


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    base = tmp_path_factory.mktemp('fuzz')
    return base, fuzz.originals(base / fuzz.FILES, base / 'mark')


@pytest.fixture
def there(files, kind):
    """The files of a kind, whose package is installed."""
    if kind not in files[1]:
        pytest.skip(f'no package for {kind}')
    return files[1][kind]


@pytest.mark.parametrize('kind', fuzz.READERS)
def test_altered_files_are_read_or_refused(files, there, kind):
    base, originals = files
    before = fuzz.tree(base)
    outcome = fuzz.attack(kind, originals, base / 'place', COUNT, seed=1)
    assert outcome.failures == []
    assert outcome.accepted + outcome.refused == COUNT
    assert fuzz.tree(base) == before   # nothing was executed: base / 'mark' is not there
    assert outcome.megabytes < fuzz.MOST_MEGABYTES


@pytest.mark.parametrize('kind', fuzz.READERS)
def test_the_files_themselves_are_read(files, there, kind):
    """Otherwise the alterations would be none."""
    with fuzz.placed(there[0], files[0] / 'place', there[0].read_bytes()) as path:
        if kind in ('detector', 'CIFAR'):   # of other weights; with a hostile pickle beside others
            with pytest.raises(ValueError, match=path.name):
                fuzz.READERS[kind](path)
        else:
            fuzz.READERS[kind](path)
