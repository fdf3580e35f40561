"""Altered files of every kind: read or refused in one line, and nothing else ever happens."""

import resource

import pytest

from benchmarks import fuzz

COUNT = 120  # of each kind; python -m benchmarks.fuzz takes more


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    base = tmp_path_factory.mktemp('fuzz')
    return base, fuzz.originals(base / 'files', base / 'mark')


@pytest.mark.parametrize('kind', fuzz.READERS)
def test_altered_files_are_read_or_refused(files, kind):
    base, originals = files
    before, memory = fuzz.tree(base), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    outcome = fuzz.attack(kind, originals, base / 'place', COUNT, seed=1)
    assert outcome.failures == []
    assert outcome.accepted + outcome.refused == COUNT
    assert fuzz.tree(base) == before   # nothing was executed: base / 'mark' is not there
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) / 1024
    assert grown < fuzz.MOST_MEGABYTES


@pytest.mark.parametrize('kind', fuzz.READERS)
def test_the_files_themselves_are_read(files, kind):
    """Otherwise the alterations would be none."""
    fuzz.READERS[kind](files[1][kind][0]) if kind != 'detector' else None
    if kind == 'detector':
        with pytest.raises(ValueError, match='a.safetensors'):
            fuzz.READERS[kind](files[1][kind][0])
