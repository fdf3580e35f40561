"""The average of the weights, against the reference implementation's numbers and by hand."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from training.config import OptimizerConfig, learning_rate
from training.ema import EMA, HalfLife

GOLDEN = Path(__file__).parents[1] / 'golden'


def test_learning_rate_and_average_follow_the_reference():
    arrays = np.load(GOLDEN / 'schedule.npz')
    meta = json.loads(str(arrays['__meta__']))
    assert meta['columns'] == ['lr', 'ema_beta', 'ema_halflife_nimg']
    for setting, rows in zip(meta['settings'], arrays['values'], strict=True):
        optimizer = OptimizerConfig(setting.get('lr', 1e-3),
                                    1000 * setting.get('lr_rampup_kimg', 10_000))
        ema = HalfLife(1000 * setting.get('ema_halflife_kimg', 500),
                       setting.get('ema_rampup_ratio', 0.05))
        batch_size = setting.get('batch_size', 512)
        for nimg, expected in zip(meta['cur_nimg'], rows, strict=True):
            ours = [learning_rate(nimg, optimizer), ema.beta(nimg, batch_size), ema.halflife(nimg)]
            np.testing.assert_allclose(ours, expected, rtol=1e-12, atol=1e-300)


class Net(torch.nn.Module):
    def __init__(self, value):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.full([3], value))
        self.register_buffer('table', torch.full([2], value))


def test_the_average_starts_at_the_weights_and_copies_buffers():
    net = Net(1.0)
    ema = EMA(net)
    assert not ema.net.training and not ema.net.weight.requires_grad
    with torch.no_grad():
        net.weight.fill_(3.0)
        net.table.fill_(7.0)
    ema.update(net, beta=0.75)
    assert ema.net.weight.tolist() == [1.5] * 3   # 0.75 · 1 + 0.25 · 3
    assert ema.net.table.tolist() == [7.0] * 2
    ema.update(net, beta=0.0)
    assert torch.equal(ema.net.weight, net.weight)


def test_half_is_kept_after_one_half_life():
    assert HalfLife(1000, None).beta(5000, 100) ** 10 == pytest.approx(0.5)
    assert HalfLife(1000, 0.05).beta(5000, 100) == pytest.approx(0.5 ** (100 / 250))   # 5 % of 5000
