"""Samplers at random: every combination of options draws, or is refused in one line that says why.

What is valid draws: a combination may be refused only for the reasons listed here.
"""

import math
import random
import re

import pytest
import torch

from limpid.denoiser import Traits
from limpid.schedules import VPSchedule
from limpid.solvers import SOLVERS
from limpid.steps import STEPS
from options.network import planned
from tests.oracles import Gaussian

MULTISTEP = {'dpmpp-2m', 'adams', 'ipndm', 'ipndm-v', 'deis', 'lms', 'dpmpp-3m', 'unipc'}
DISCRETE = ('ddpm-linear', 'scaled-linear', 'cosine')


class Asked(Gaussian):
    """It counts the images that it is asked for."""
    images = 0

    def __call__(self, x, sigma, class_labels=None):
        self.images += len(x)
        return super().__call__(x, sigma, class_labels)


def drawn_options(rng):
    """Options of one command; about every second option is left out."""
    def maybe(share, *values):
        return rng.choice(values) if rng.random() < share else None

    low = 10 ** rng.uniform(-4, 1)
    return {name: value for name, value in {
        'solver': maybe(0.9, *SOLVERS), 'disc': maybe(0.8, *STEPS),
        'schedule': maybe(0.5, 'vp', 've', 'linear'), 'scaling': maybe(0.4, 'vp', 'none'),
        'final': maybe(0.5, 'denoise', 'sigma-min'), 'afs': maybe(0.3, 0.0, -0.4),
        'num_steps': maybe(0.9, 1, 2, 3, 5, 8, 17), 'S_churn': maybe(0.3, 0.0, 1.0, 40.0),
        'S_max': maybe(0.1, 0.5, 20.0), 'sigma_min': maybe(0.6, low),
        'sigma_max': maybe(0.6, low * 10 ** rng.uniform(0, 5)), 'order': maybe(0.2, 1, 2, 3, 4),
        'rho': maybe(0.2, 1.0, 3.0, math.inf), 'guidance': maybe(0.3, 1.0, 3.0),
        'lower_order_final': maybe(0.2, True, False), 'space': maybe(0.1, 't', 'rho', 'log-rho'),
        'alpha': maybe(0.1, 0.5, 2.0)}.items() if value is not None}


# What refuses a combination, and whether it may.
REASONS = {
    r'would have no effect': lambda o: {'order', 'alpha', 'space', 'lower_order_final', 'final',
                                        'afs', 'guidance'} & o.keys(),
    r'^order must be': lambda o: 'order' in o,
    r'no noise levels are left|no timestep has|no iDDPM noise level': lambda o: {
        'sigma_min', 'sigma_max'} & o.keys(),
    r'steps are more than the \d+ timesteps': lambda o: o.get('disc') in DISCRETE,
    r'no VP schedule goes from': lambda o: o.get('schedule') == 'vp' or o.get('disc') in (
        'vp', 'vp-poly', 'beta'),
    r'a multistep solver cannot take': lambda o: o.get('S_churn') and o.get('solver') in MULTISTEP,
    r'^afs replaces the first': lambda o: 'afs' in o and o.get('num_steps') in (1, None),
    r'^S_churn=.* beyond what the schedule reaches': lambda o: o.get('schedule') == 'vp',
    r'rho must be|rho=': lambda o: 'rho' in o,
}


@pytest.mark.parametrize('seed', range(8))
def test_what_is_valid_draws(seed):
    rng = random.Random(seed)
    drawn = 0
    for _ in range(60):
        options = drawn_options(rng)
        net = Asked(traits=Traits(image_shape=(1, 2, 2), label_dim=3, label_dropout=0.1))
        try:
            opened = planned([net], options)
            noise = torch.randn(2, 1, 2, 2, generator=torch.Generator().manual_seed(1))
            x = opened.plan(opened.net, noise, torch.eye(3)[:2], torch.sin)
        except ValueError as refusal:
            assert '\n' not in str(refusal), options
            reasons = [may for text, may in REASONS.items() if re.search(text, str(refusal))]
            assert any(may(options) for may in reasons), (options, str(refusal))
            continue
        drawn += 1
        assert x.shape == noise.shape and bool(x.isfinite().all()), options
        assert opened.evaluations == net.images
    assert drawn > 15


@pytest.mark.parametrize('seed', range(4))
def test_every_range_that_rises_draws_under_every_schedule(seed):
    """Only a VP schedule has ranges that it cannot have; see VPSchedule.through."""
    rng, drawn = random.Random(seed), 0
    for _ in range(40):
        low = 10 ** rng.uniform(-4, 1.5)
        high = low * 10 ** rng.uniform(0.05, 6)
        disc = rng.choice([name for name in STEPS if name not in DISCRETE and name != 'iddpm'])
        schedule = rng.choice(['vp', 've', 'linear'])
        rises = math.log1p(low**2) < 1e-3 * (2 - 1e-3) * math.log1p(high**2)
        options = {'disc': disc, 'schedule': schedule, 'sigma_min': low, 'sigma_max': high,
                   'num_steps': rng.choice([2, 3, 9]), 'solver': rng.choice(list(SOLVERS)),
                   'scaling': rng.choice(['vp', 'none'])}
        needs_vp = schedule == 'vp' or disc in ('vp', 'vp-poly', 'beta')
        net = Gaussian(traits=Traits(image_shape=(1, 2, 2), label_dim=0))
        if needs_vp and not rises:
            with pytest.raises(ValueError, match='no VP schedule goes from'):
                opened = planned([net], options)
                opened.plan(opened.net, torch.ones(1, 1, 2, 2))
            continue
        opened = planned([net], options)
        x = opened.plan(opened.net, torch.ones(1, 1, 2, 2))
        assert bool(x.isfinite().all()), options
        drawn += 1
    assert drawn > 10 and VPSchedule.through(0.1, 30).beta_d < 0
