"""Configurations: stored completely, read strictly."""

import json
import math

import pytest

from dnnlib import config as plain
from limpid.loss import (
    DenoisingLoss,
    HybridLoss,
    InverseCOut,
    InverseVariance,
    LogNormal,
    LogUniform,
    UniformTime,
    VelocityLoss,
)
from limpid.preconditioning import EDM, IDDPM, VP, V
from limpid.schedules import VPSchedule
from training import config as configs
from training.augment import AugmentConfig
from training.config import OptimizerConfig, TrainConfig, learning_rate
from training.dataset import DataConfig
from training.ema import HalfLife, PowerFunction
from training.networks import NetworkConfig, complete_arguments
from training.state import differences


def a_config(**changes):
    network = NetworkConfig('SongUNet', EDM(), 0.0, math.inf, 16, 1,
                            model=complete_arguments('SongUNet', {'num_blocks': 1}))
    return TrainConfig(**{
        'data': DataConfig('digits.zip'), 'network': network,
        'loss': DenoisingLoss(LogNormal(), InverseCOut(EDM())), **changes})


CONFIGS = [
    a_config(),
    a_config(loss=HybridLoss(), augment=AugmentConfig(p=0.15), batch_gpu=8,
             averages=(HalfLife(rampup_ratio=None), PowerFunction(0.05))),
    a_config(loss=DenoisingLoss(UniformTime(VPSchedule(10.0, 0.2)),
                                InverseCOut(VP(VPSchedule(10.0, 0.2), M=500)))),
    a_config(loss=DenoisingLoss(LogUniform(), InverseVariance()),
             optimizer=OptimizerConfig(betas=(0.8, 0.99))),
    a_config(network=NetworkConfig('DhariwalUNet', IDDPM(), 0.1, 5.0, 32, 3, 10, 'bf16',
                                   complete_arguments('DhariwalUNet', {}))),
]


@pytest.mark.parametrize('config', CONFIGS)
def test_encode_and_decode_are_inverse_through_json(config):
    text = json.dumps(configs.encode(config), allow_nan=False)
    assert configs.decode(json.loads(text), TrainConfig) == config


def test_every_class_with_a_choice_has_a_tag():
    from limpid import loss, preconditioning

    tagged = set(configs.tags().values())
    assert set(preconditioning.PRECONDITIONERS.values()) <= tagged
    assert set(loss.NOISE_DISTRIBUTIONS.values()) <= tagged
    assert {type(make(EDM())) for make in loss.WEIGHTINGS.values()} <= tagged
    assert len(tagged) == len(configs.tags())


def test_a_loss_in_v_is_read_that_stored_sigma_data_beside_the_network():
    """The key of the first version is left out, and does not tell a run from its continuation."""
    precond = V(0.5)
    config = a_config(loss=VelocityLoss(LogNormal(), InverseCOut(precond)))
    stored = configs.encode(config)
    assert 'sigma_data' not in stored['loss']
    stored['loss']['sigma_data'] = 0.5
    assert configs.decode(stored, TrainConfig) == config
    assert differences(configs.upgraded(stored), config) == []


def broken(change):
    data = configs.encode(a_config())
    change(data)
    return data


@pytest.mark.parametrize(('change', 'message'), [
    (lambda d: d.update(batchsize=3), r"config\.batchsize is unknown \(did you mean "
                                      r"'batch_size'\?\)"),
    (lambda d: d['network']['precond'].update(type='precond/edn'), r"the type 'precond/edn' is "
                                                                   r"unknown \(did you mean "
                                                                   r"'precond/edm'"),
    (lambda d: d['network']['precond'].pop('type'), r'config\.network\.precond: a type is missing'),
    (lambda d: d.update(loss={}), r'config\.loss: a type is missing, one of precond/vp'),
    (lambda d: d.pop('data'), r'config\.data is missing'),
    (lambda d: d.update(batch_size='many'), r"config\.batch_size is 'many', not of type int"),
    (lambda d: d.update(batch_size=True), r'config\.batch_size is True, not of type int'),
    (lambda d: d['optimizer'].update(lr='fast'), r"config\.optimizer\.lr is 'fast', not a number"),
    (lambda d: d['optimizer'].update(betas=0.9), r'config\.optimizer\.betas is 0\.9, not a list'),
    (lambda d: d.update(nan=5), r'config\.nan is 5, not the fields of NanConfig'),
])
def test_what_does_not_fit_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        configs.decode(broken(change), TrainConfig)


def test_infinity_is_json():
    assert plain.encode(math.inf, {}) == 'inf' and plain.decode('inf', float, {}) == math.inf


def test_learning_rate_ramps_up_from_zero():
    config = OptimizerConfig(lr=2e-4, lr_rampup_nimg=1000)
    assert [learning_rate(nimg, config) for nimg in (0, 250, 1000, 5000)] == [0, 5e-5, 2e-4, 2e-4]
    assert learning_rate(0, OptimizerConfig(lr=1, lr_rampup_nimg=0)) == 0
    assert learning_rate(1, OptimizerConfig(lr=1, lr_rampup_nimg=0)) == 1


def test_learning_rate_falls_with_the_root_of_the_images():
    config = OptimizerConfig(lr=2e-4, lr_rampup_nimg=10, lr_decay_nimg=1000)
    assert [learning_rate(nimg, config) for nimg in (0, 10, 1000, 4000, 9000)] == pytest.approx(
        [0, 2e-4, 2e-4, 1e-4, 2e-4 / 3], rel=1e-12)
