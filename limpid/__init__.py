"""Diffusion models as the papers have them: every cell of Table 1 of Karras et al. 2022, and more.

    from limpid import EDMSteps, SecondOrder, sample
    images = sample(net, torch.randn(16, 3, 64, 64))

`net(x, sigma, class_labels)` is any denoiser. docs/library.md describes everything listed in
`__all__`, and docs/map.md says where each equation is. The library needs only torch and numpy.
"""

from limpid.adaptive import RK45, AdaptiveSDE
from limpid.brownian import BrownianPath, SDEMultistep
from limpid.denoiser import Conditioned, Counting, Denoiser, Network, Traits, traits
from limpid.earlier import DDIM, Ancestral, EulerMaruyama, PredictorCorrector
from limpid.exponential import DPMSolver2, Multistep3M, Singlestep2S, UniPC
from limpid.flow import ProbabilityFlow, Solver
from limpid.grids import AlignedSteps, BetaSteps, ExponentialSteps, VPPolynomialSteps, aligned
from limpid.guidance import Guidance, Guided, guided
from limpid.ideal import Gaussian, IdealDenoiser, Mixture
from limpid.inversion import decode, encode, interpolate
from limpid.levels import (
    CosineBetas,
    DiscreteSchedule,
    GivenBetas,
    IDDPMLevels,
    LinearBetas,
    ScaledLinearBetas,
)
from limpid.likelihood import bits_per_dim, dequantize, log_likelihood, rademacher
from limpid.loss import (
    DenoisingLoss,
    HybridLoss,
    InverseCOut,
    InverseVariance,
    LogNormal,
    LogUniform,
    UniformLevel,
    UniformTime,
    UniformTimestep,
    VelocityLoss,
)
from limpid.multistep import DEIS, IPNDM, LMS, IPNDMv
from limpid.noise_range import Steps
from limpid.pixels import from_uint8, to_uint8
from limpid.preconditioning import EDM, IDDPM, VE, VP, Preconditioner, V
from limpid.samplers import Angle, Churn, FlowSampler, Sampler
from limpid.sampling import Plan, plan, sample
from limpid.schedules import (
    LinearSchedule,
    NoScaling,
    Scaling,
    Schedule,
    VESchedule,
    VPScaling,
    VPSchedule,
)
from limpid.sde import GeneralSDE
from limpid.seeds import StackedGenerator, generate
from limpid.solvers import Adams, Euler, Multistep2M, SecondOrder
from limpid.steps import DiscreteSteps, EDMSteps, ExplicitSteps, IDDPMSteps, VESteps, VPSteps
from limpid.table1 import Column
from limpid.values import Standardization, to_network, to_picture, to_values

__all__ = [
    # a denoiser, and what is wrapped around one
    'Network', 'Traits', 'traits', 'Denoiser', 'Conditioned', 'Counting', 'Guidance', 'Guided',
    'guided', 'IdealDenoiser', 'Gaussian', 'Mixture',
    # sampling
    'sample', 'plan', 'Plan', 'Sampler', 'FlowSampler', 'Churn', 'Angle', 'EulerMaruyama',
    'PredictorCorrector', 'Ancestral', 'DDIM', 'GeneralSDE', 'RK45', 'AdaptiveSDE',
    'ProbabilityFlow', 'Solver', 'Euler', 'SecondOrder', 'Multistep2M', 'Adams', 'IPNDM', 'IPNDMv',
    'DEIS', 'LMS', 'DPMSolver2', 'Singlestep2S', 'Multistep3M', 'UniPC', 'SDEMultistep',
    'BrownianPath',
    'StackedGenerator', 'generate', 'from_uint8', 'to_uint8', 'Standardization', 'to_network',
    'to_values', 'to_picture',
    # the rows of Table 1
    'Column', 'Steps', 'VPSteps', 'VESteps', 'IDDPMSteps', 'EDMSteps', 'ExplicitSteps',
    'DiscreteSteps', 'ExponentialSteps', 'VPPolynomialSteps', 'BetaSteps', 'AlignedSteps',
    'aligned', 'Schedule', 'VPSchedule', 'VESchedule', 'LinearSchedule', 'Scaling',
    'VPScaling', 'NoScaling', 'Preconditioner', 'VP', 'VE', 'IDDPM', 'EDM', 'V',
    # discrete noise levels
    'DiscreteSchedule', 'IDDPMLevels', 'LinearBetas', 'ScaledLinearBetas', 'CosineBetas',
    'GivenBetas',
    # training
    'DenoisingLoss', 'VelocityLoss', 'HybridLoss', 'LogNormal', 'UniformTime', 'LogUniform',
    'UniformLevel', 'UniformTimestep', 'InverseVariance', 'InverseCOut',
    # the flow in both directions
    'encode', 'decode', 'interpolate', 'log_likelihood', 'rademacher', 'dequantize',
    'bits_per_dim',
]
