"""dnnlib/progress.py: what a log is told of long work."""

import pytest

from dnnlib import progress
from dnnlib.progress import Progress, progressing


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test sets, and no terminal."""
    class Clock:
        now = 1000.0

    monkeypatch.setattr(progress.time, 'monotonic', lambda: Clock.now)
    monkeypatch.setattr(progress, 'is_terminal', lambda: False)
    return Clock


def test_a_log_gets_a_line_after_half_a_minute_and_then_one_a_minute(clock, capsys):
    with Progress(50000, 'seeds 0-49999') as shown:
        for _ in range(160):   # one second for each 100 images
            clock.now += 1
            shown.advance(100)
    assert capsys.readouterr().err.splitlines() == [
        'seeds 0-49999: 3000 of 50000 images, 100 a second, 07:50 left',
        'seeds 0-49999: 9000 of 50000 images, 100 a second, 06:50 left',
        'seeds 0-49999: 15000 of 50000 images, 100 a second, 05:50 left']


def test_what_was_done_before_says_nothing_about_the_speed(clock, capsys):
    with Progress(3000, done=2000, unit='points') as shown:
        clock.now += 40
        shown.reach(2000)
        clock.now += 60
        shown.reach(2500)
    assert capsys.readouterr().err.splitlines() == [
        '2000 of 3000 points', '2500 of 3000 points, 5 a second, 01:40 left']


def test_short_work_and_other_ranks_say_nothing(clock, capsys):
    with Progress(10) as short, Progress(10, quiet=True) as other:
        clock.now += 29.9
        short.advance(20)
        clock.now += 900
        other.advance(5)
    assert (short.done, other.done) == (10, 5)
    captured = capsys.readouterr()
    assert captured.err == captured.out == ''


def test_items_pass_through(clock, capsys):
    found = []
    for item in progressing(iter('abc'), 3, unit='batches'):
        clock.now += 30
        found.append(item)
    assert found == list('abc')
    assert capsys.readouterr().err.splitlines() == [
        '1 of 3 batches, 0.0333 a second, 01:00 left',
        '3 of 3 batches, 0.0333 a second, 00:00 left']


def test_a_terminal_gets_a_bar_and_no_lines(clock, capsys, monkeypatch):
    monkeypatch.setattr(progress, 'is_terminal', lambda: True)
    with Progress(4, 'reference') as shown:
        clock.now += 900
        shown.advance(3)
    told = capsys.readouterr().err
    assert 'reference' in told and '3 of 4' not in told
