"""A plan is a sampler with its noise levels: made once for a network, then called for each batch.

    images = sample(net, torch.randn(4, 3, 32, 32))             # the paper's deterministic sampler
    images = sample(net, noise, labels, sampler=DDIM(), steps=VESteps(), num_steps=50)

    drawing = plan(net, num_steps=50)                           # the same in two steps
    images = drawing(net, noise, labels)
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from limpid.denoiser import Conditioned, Network
from limpid.earlier import DDIM
from limpid.flow import Solver
from limpid.noise_range import Steps
from limpid.pixels import working_precision
from limpid.samplers import Churn, FlowSampler, RandnLike, Sampler
from limpid.schedules import LinearSchedule, NoScaling, Scaling, Schedule
from limpid.solvers import SOLVERS, SecondOrder
from limpid.steps import DiscreteSteps, EDMSteps

# The advice for a sampler that cannot start at sigma = inf.
START_ELSEWHERE = ('use steps that start at a finite noise level, or a sampler that works in the '
                   'unit variable (DDIM, Ancestral or Angle)')


@dataclass(frozen=True, eq=False)
class Plan:
    """A sampler with its noise levels, which is all that is needed to draw images from a network.

    sampler  any sampler of this library, or any function with the same arguments
    sigmas   σ_0 ≥ … ≥ σ_{N−1} and σ_N = 0, float64 [N + 1] on the CPU
    """
    sampler: Sampler
    sigmas: Tensor

    def __repr__(self) -> str:
        return f'Plan({self.sampler!r}, sigmas={self.sigmas.tolist()})'

    @torch.no_grad()
    def __call__(self, net: Network, noise: Tensor, class_labels: Tensor | None = None,
                 randn_like: RandnLike = torch.randn_like) -> Tensor:
        """Draw one image per row of `noise`, which is standard normal [B, C, H, W].

        Returns float64 images on the device of `noise`. Raises ValueError for levels that start at
        ∞ if the sampler or the network cannot work there.
        """
        return run(self.sampler, Conditioned(net, class_labels), noise, self.sigmas, randn_like)


def plan(net: Network, sampler: Sampler | None = None, steps: Steps | None = None,
         num_steps: int = 18) -> Plan:
    """Make the plan of `num_steps` steps for a network.

    The default is the paper's deterministic sampler, Heun's method on EDM's steps. If neither
    sampler nor steps are given, the default for a network that was trained on the timesteps of a
    discrete schedule is these timesteps. The default sampler for timesteps of a discrete schedule
    is DDIM. Raises ValueError for fewer than one step and for an empty range of noise levels.
    """
    denoise = Conditioned(net)
    native = denoise.traits.native_steps
    if steps is None:
        steps = EDMSteps() if native is None or sampler is not None else native
    if sampler is None:
        sampler = DDIM() if isinstance(steps, DiscreteSteps) else FlowSampler()
    return Plan(sampler, denoise.levels(steps, num_steps))


def sample(
    net: Network,
    noise: Tensor,
    class_labels: Tensor | None = None,
    *,
    num_steps: int = 18,
    steps: Steps = EDMSteps(),
    sampler: Sampler | None = None,
    solver: Solver = SecondOrder(),
    schedule: Schedule = LinearSchedule(),
    scaling: Scaling = NoScaling(),
    churn: Churn = Churn(),
    randn_like: RandnLike = torch.randn_like,
) -> Tensor:
    """Draw one image per row of `noise`.

    net           D(x, sigma, class_labels) -> denoised x, and optionally `traits`
    noise         [B, C, H, W], standard normal
    class_labels  [B, label_dim], or whatever the network takes
    num_steps     N
    steps         the noise levels to visit: the row "Time steps" of Table 1
    solver, schedule, scaling, churn
                  the other rows of Table 1, and the fresh noise of Algorithm 2
    sampler       any sampler, used instead of these four
    randn_like    the function that draws the noise of stochastic steps

    Returns images [B, C, H, W] in [-1, 1] (up to the network's errors), float64 on the device of
    `noise`. The defaults are the paper's deterministic sampler, whatever the network was trained
    on; `plan` knows the timesteps of a network that has such. Raises ValueError for fewer than one
    step, for an empty range of noise levels, and for levels that start at ∞ where the sampler or
    the network cannot.
    """
    if sampler is None:
        sampler = FlowSampler(solver, schedule, scaling, churn)
    return plan(net, sampler, steps, num_steps)(net, noise, class_labels, randn_like)


def check_start(sampler: Sampler, sigma_max: float) -> None:
    """Raise ValueError if a sampler cannot start at the noise level sigma_max."""
    if math.isinf(sigma_max) and not from_infinity(sampler):
        raise ValueError(f'{name_of(sampler)} cannot start at sigma = inf, where x is infinite: '
                         f'{START_ELSEWHERE}')


def from_infinity(sampler: object) -> bool:
    """Return whether a sampler, or a class of samplers, works in the unit variable."""
    return getattr(sampler, 'from_infinity', False)


def name_of(sampler: Sampler) -> str:
    """Return the name of a sampler: that of the solver for FlowSampler, else that of its class."""
    kind = type(sampler.solver if isinstance(sampler, FlowSampler) else sampler)
    return next((name for name, solver in SOLVERS.items() if solver is kind), kind.__name__)


@torch.no_grad()
def run(sampler: Sampler, denoise: Conditioned, noise: Tensor, sigmas: Tensor,
        randn_like: RandnLike = torch.randn_like) -> Tensor:
    """Apply any sampler to `noise` [B, C, H, W] through the noise levels `sigmas` [N + 1].

    Raises ValueError for levels that start at ∞ if the sampler cannot.
    """
    check_start(sampler, float(sigmas[0]))
    return sampler(denoise, working_precision(noise), sigmas, randn_like)
