"""Training on many GPUs, on paper: closed forms, and the table that the page shows."""

import json
from pathlib import Path

import PIL.Image
import pytest

from benchmarks import paper
from benchmarks.paper import BUCKET, FAST, SLOW, Links, Training, all_reduce, exchange, wait

ROOT = Path(__file__).parents[2]


def test_a_ring_sends_nearly_twice_everything_over_its_slowest_link():
    links = Links('', inside=100.0, between=10.0, latency_inside=1.0, latency_between=9.0, gpus=8)
    assert all_reduce(1000, 1, links) == 0
    assert all_reduce(1000, 2, links) == 1000 / 100 + 2
    assert all_reduce(1000, 8, links) == pytest.approx(2 * 7 / 8 * 1000 / 100 + 14)
    # 7 of 8 links stay inside of a node, and the mean of the latencies is 2
    assert all_reduce(1000, 16, links) == pytest.approx(2 * 15 / 16 * 1000 / 10 + 30 * 2)


def test_a_gradient_goes_in_buckets():
    one, half = (all_reduce(size, 64, FAST) for size in (BUCKET, BUCKET / 2))
    assert exchange(2.5 * BUCKET, 64, FAST) == pytest.approx(2 * one + half)
    assert exchange(BUCKET, 64, FAST) == one
    without = Links('', latency_inside=0, latency_between=0)   # then buckets make no difference
    assert exchange(7.3 * BUCKET, 64, without) == pytest.approx(
        2 * 63 / 64 * 7.3 * BUCKET / without.between)


def test_the_backward_pass_hides_all_but_the_last_bucket():
    """Two thirds of a step; a third of R u seconds' work for each image makes t = b."""
    training = Training('', P=10 * BUCKET // 4, F=paper.SHARE * paper.RATE / 3, images=1, batch=1)
    assert training.seconds(5) == pytest.approx(5)
    last, everything = all_reduce(BUCKET, 64, SLOW), exchange(10 * BUCKET, 64, SLOW)
    assert wait(training, 5, 64, SLOW) == last                       # 3.3 s hide the others
    assert wait(training, 0, 64, SLOW) == everything                 # nothing hides them
    short = 0.75 * everything                                        # half of them
    assert wait(training, short, 64, SLOW) == pytest.approx(everything / 2)
    assert paper.efficiency(training, short, 64, SLOW) == pytest.approx(0.75 / 1.25)
    assert paper.efficiency(training, 5, 1, SLOW) == 1


def test_the_page_shows_what_is_computed(tmp_path):
    text = paper.report(tmp_path)
    assert text in (ROOT / 'docs' / 'speed.md').read_text()
    found = json.loads((tmp_path / 'paper.json').read_text())
    assert [one['P'] for one in found['trainings']] == [55735299, 295899267]   # as in Table 7
    assert found['efficiency, %']['ImageNet-64, ADM']['4096 together, slow links']['1'] == 100
    assert PIL.Image.open(tmp_path / 'paper.png').size[0] == 880
