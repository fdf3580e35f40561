"""The command-line options that choose a sampler, and what they resolve to.

Shared by every command that draws images, so that they all take the same options.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import click

from dnnlib.cli import FloatList, heading
from limpid.adaptive import ADAPTIVE
from limpid.earlier import CORRECTORS, EARLIER, PREDICTORS, VARIANCES
from limpid.levels import DISCRETE_SCHEDULES, SPACINGS
from limpid.samplers import ANGLE, RULES, Churn, FlowSampler, Sampler, check_start
from limpid.schedules import SCALINGS, SCHEDULES, VPSchedule
from limpid.sde import SDES
from limpid.solvers import SOLVERS
from limpid.steps import DISCRETIZATIONS, DiscreteSteps, Discretization, ExplicitSteps, noise_range
from limpid.table1 import TABLE_1

# The rows of Table 1 are the default; the others replace solver, schedule and scaling in one.
SAMPLERS: dict[str, Any] = {'table1': FlowSampler, **EARLIER, **ANGLE, **SDES, **ADAPTIVE}
# the others: edm
NATURAL_STEPS = {'em': 'vp', 'pc': 've', 'ancestral': 'iddpm', 'ddim': 'iddpm', 'adaptive': 'vp'}

# The options of EDM's own command line: without effect they are worth a note. Ours are an error.
OLD = {'solver', 'disc', 'schedule', 'scaling', 'sigma_min', 'sigma_max', 'rho', 'S_churn', 'S_min',
       'S_max', 'S_noise', 'num_steps'}
# the others are --name
FLAGS = {'num_steps': '--steps', 'zero_terminal_snr': '--zero-terminal-snr'}
# with any of them, not the steps of the network
STEPS = {'disc', 'family', 'sigmas'}
# with any of them, table1 is the default
ROWS = {*STEPS, 'preset', 'solver', 'schedule', 'scaling'}

# Settings of the paper: Section 3, Table 5 with the numbers of steps of Table 4, and the first row
# of Table 3.
PRESETS: dict[str, dict[str, Any]] = {
    'cifar10-edm': {'num_steps': 18},
    'ffhq-edm': {'num_steps': 40},
    'afhqv2-edm': {'num_steps': 40},
    'imagenet64-edm': {'num_steps': 256, 'S_churn': 40.0, 'S_min': 0.05, 'S_max': 50.0,
                       'S_noise': 1.003},
    'imagenet64-adm': {'num_steps': 256, 'S_churn': 80.0, 'S_min': 0.05, 'S_max': 50.0,
                       'S_noise': 1.003},
    'cifar10-vp': {'num_steps': 192, 'S_churn': 30.0, 'S_min': 0.01, 'S_max': 1.0,
                   'S_noise': 1.007},
    'cifar10-ve': {'num_steps': 384, 'S_churn': 80.0, 'S_min': 0.05, 'S_max': 1.0,
                   'S_noise': 1.007},
    'vp-original': {'num_steps': 256, 'sampler': 'em', 'deterministic': True, 'original': True},
    've-original': {'num_steps': 8192, 'sampler': 'pc', 'predictor': 'probability-flow',
                    'corrector': 'none'},
    'iddpm-original': {'num_steps': 250, 'sampler': 'ddim'},
}

rows = heading('Sampler: rows of Table 1')
numbers = heading('Numbers of the chosen rows')
others = heading('Samplers of previous work, stochastic differential equations, adaptive steps')
positive = click.FloatRange(min=0, min_open=True)
not_negative = click.FloatRange(min=0)

OPTIONS = [
    rows('--sampler', help='table1: the rows below. em: Euler-Maruyama for VP. pc: '
                           'predictor-corrector for VE. ancestral: DDPM, iDDPM. ddim. angle: '
                           'second order from σ = ∞. sde: the SDE of Eq. 6. rk45: adaptive ODE. '
                           'adaptive: adaptive SDE  [default: table1; ddim for time steps of a '
                           'discrete schedule, if the network was trained on discrete timesteps or '
                           'they start at σ = ∞]',
         type=click.Choice(list(SAMPLERS))),
    rows('--family',
         help='Column of Table 1 that the rows not given are taken from  [default: edm]',
         type=click.Choice(list(TABLE_1))),
    rows('--preset', help='Settings of the paper by name; other options override them',
         type=click.Choice(list(PRESETS))),
    rows('--steps', 'num_steps', help='Sampling steps N; Heun evaluates the network 2N - 1 times  '
                                      '[default: 18; flow.py encode and decode: 64]',
         type=click.IntRange(min=1), metavar='INT'),
    rows('--solver', help='ODE solver  [default: heun]', type=click.Choice(list(SOLVERS))),
    rows('--disc', help='Time steps t_i: of Table 1, or timesteps of a discrete schedule '
                        '(ddpm-linear, scaled-linear, cosine)  [default: those of the network, if '
                        'it was trained on discrete timesteps, or of --sampler, or edm]',
         type=click.Choice(list(DISCRETIZATIONS))),
    rows('--schedule', help='Noise schedule σ(t); vp takes its constants from the noise range: '
                            'σ(1) = sigma_max and σ(0.001) = sigma_min  [default: linear]',
         type=click.Choice(list(SCHEDULES))),
    rows('--scaling', help='Signal scaling s(t)  [default: none]',
         type=click.Choice(list(SCALINGS))),
    numbers('--sigma_min', help='Lowest noise level  [default: by --disc; never below what the '
                                'network supports]', type=positive, metavar='FLOAT'),
    numbers('--sigma_max', help='Highest noise level  [default: by --disc; never above what the '
                                'network supports]', type=positive, metavar='FLOAT'),
    numbers('--sigmas', help='The noise levels themselves, falling, instead of --disc and --steps, '
                             'e.g. 80,10,1,0.1', type=FloatList()),
    numbers('--spacing', help='Which timesteps of a discrete schedule: trailing and linspace have '
                              'the last one, leading has not  [default: trailing]',
            type=click.Choice(SPACINGS)),
    numbers('--zero-terminal-snr', 'zero_terminal_snr', help='Rescale the discrete schedule to '
                                                             'start at σ = ∞  [default: as the '
                                                             'network\'s own schedule is, else '
                                                             'False]', type=bool, metavar='[BOOL]',
            is_flag=False, flag_value='true'),
    numbers('--rho', help='Exponent of the edm time steps; inf is geometric  [default: 7]',
            type=positive, metavar='FLOAT'),
    numbers('--alpha', help='Second point of the heun solver: 1 Heun, 0.5 midpoint, 0.6667 Ralston '
                            ' [default: 1]', type=positive, metavar='FLOAT'),
    numbers('--order', help='Order of the adams solver  [default: 3]', type=click.IntRange(1, 3),
            metavar='INT'),
    numbers('--S_churn', 'S_churn', help='Amount of fresh noise; 0 is the deterministic sampler '
                                         '(table1, angle)  [default: 0]', type=not_negative,
            metavar='FLOAT'),
    numbers('--S_min', 'S_min', help='Fresh noise only at noise levels from here  [default: 0]',
            type=not_negative, metavar='FLOAT'),
    numbers('--S_max', 'S_max', help='Fresh noise only at noise levels up to here  [default: inf]',
            type=not_negative, metavar='FLOAT'),
    numbers('--S_noise', 'S_noise', help='Standard deviation of the fresh noise  [default: 1]',
            type=float, metavar='FLOAT'),
    others('--original', help='em, pc, rk45: keep what the paper calls oversights of the published '
                              'programs  [default: False]', type=bool, metavar='BOOL'),
    others('--deterministic', help='em: the flow instead of the SDE  [default: False]', type=bool,
           metavar='BOOL'),
    others('--predictor', help='pc: how to step to the next noise level  [default: '
                               'reverse-diffusion]', type=click.Choice(PREDICTORS)),
    others('--corrector', help='pc: Langevin steps at each noise level  [default: langevin]',
           type=click.Choice(CORRECTORS)),
    others('--corrector_steps', help='pc: how many of them  [default: 1]',
           type=click.IntRange(min=0), metavar='INT'),
    others('--snr', help='pc: their signal-to-noise ratio  [default: 0.16]', type=positive,
           metavar='FLOAT'),
    others('--variance', help='ancestral: learned needs a network with twice the outputs, such as '
                              'iddpm  [default: learned, if the network has it and does not start '
                              'at σ = ∞; else small]', type=click.Choice(VARIANCES)),
    others('--clip', help='ancestral, ddim: clip the denoised image to [-1, 1]  [default: False]',
           type=bool, metavar='BOOL'),
    others('--eta', help='ddim: 0 is deterministic, 1 ancestral  [default: 0]',
           type=click.FloatRange(0, 1), metavar='FLOAT'),
    others('--rule', help='angle: Heun\'s method in the angle, or the rotation rule, exact where D '
                          'stays the same  [default: heun]', type=click.Choice(RULES)),
    others('--beta', help='sde: rate of fresh noise as a multiple of σ̇/σ; 0 is the flow, 1 the '
                          'SDE of Song et al.  [default: 1]', type=not_negative, metavar='FLOAT'),
    others('--constant', help='sde: --beta is the rate itself, per unit of t  [default: False]',
           type=bool, metavar='BOOL'),
    others('--rtol', help='rk45: relative tolerance  [default: 1e-5]', type=positive,
           metavar='FLOAT'),
    others('--atol', help='rk45: absolute tolerance  [default: 1e-5]', type=positive,
           metavar='FLOAT'),
    others('--sde', help='adaptive: which one  [default: vp]', type=click.Choice(['vp', 've'])),
    others('--eps_rel', help='adaptive: relative tolerance  [default: 0.02]', type=positive,
           metavar='FLOAT'),
    others('--eps_abs', help='adaptive: absolute tolerance  [default: 0.0078125, one level of 8 '
                             'bits]', type=positive, metavar='FLOAT'),
    others('--theta', help='adaptive: safety factor of the next step  [default: 0.9]',
           type=positive, metavar='FLOAT'),
    others('--exponent', help='adaptive: exponent of the next step, r in its paper  [default: 0.9]',
           type=positive, metavar='FLOAT'),
    others('--h_init', help='adaptive: first step, as a fraction of the time  [default: 0.01]',
           type=positive, metavar='FLOAT'),
]


def sampler_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a click command all the options of `resolve_sampler`."""
    return functools.reduce(lambda wrapped, option: option(wrapped), reversed(OPTIONS), command)


@dataclass(frozen=True)
class Sampling:
    """How images are drawn: the noise levels, the sampler, and what the user should know."""
    discretization: Discretization
    num_steps: int
    sampler: Sampler
    notes: tuple[str, ...] = ()


def resolve_sampler(options: dict[str, Any], lowest: float = 0.0, highest: float = math.inf,
                    native: Discretization | None = None, *, limit: str = 'the network supports no '
                                                                          'more',
                    learned_variance: bool = True) -> Sampling:
    """Options (None: not given) -> time steps and sampler, for a network that supports [lowest,
    highest].

    native            the time steps of a network that was trained on discrete timesteps: the
                      default, with ddim, unless others are asked for, or rows of Table 1, or a
                      sampler that cannot start at σ = ∞
    limit             why there is nothing above `highest`
    learned_variance  whether the network has one, which then is the default of ancestral from a
                      finite noise level

    Raises ValueError in one line for a sampler that cannot start at σ = ∞ with steps that do, for
    --zero-terminal-snr where `highest` is finite, and for an option of ours that has no effect in
    this combination; for an option of EDM's command line there is a note instead.
    """
    preset = PRESETS.get(options.get('preset') or '', {})
    given = {**preset, **{k: v for k, v in options.items() if v is not None}}
    free = not {'sampler', *ROWS - {'disc'}} & given.keys()   # to take ddim for discrete timesteps
    name = given.get('sampler', 'table1')
    own, discrete = native, native is not None
    native = None if STEPS & given.keys() or 'sampler' in preset else native
    column = TABLE_1[given.get('family', 'edm')]()
    used = {'preset', 'sampler', 'family', 'disc', 'sigma_min', 'sigma_max', 'num_steps', 'sigmas'}

    discretization: Any = column.discretization
    if 'sigmas' in given:
        discretization = ExplicitSteps(tuple(given['sigmas']))
        used -= {'disc', 'sigma_min', 'sigma_max', 'num_steps'}
    elif 'disc' in given:
        discretization = DISCRETIZATIONS[given['disc']]()
        if isinstance(own, DiscreteSteps) and type(getattr(discretization, 'schedule',
                                                           None)) is type(own.schedule):
            # with its terminal SNR
            discretization = dataclasses.replace(discretization, schedule=own.schedule)
    elif native is not None and (free or hasattr(SAMPLERS[name], 'from_infinity')):
        discretization = native
    elif 'family' not in given:
        natural = 've' if name == 'adaptive' and given.get('sde') == 've' else NATURAL_STEPS.get(
            name, 'edm')
        discretization = DISCRETIZATIONS[natural]()
    discretization = _with_fields(discretization, given, used)
    if isinstance(discretization, DiscreteSteps):
        discretization = dataclasses.replace(
            discretization, schedule=_with_fields(discretization.schedule, given, used),
            lowest=given.get('sigma_min', 0.0), highest=given.get('sigma_max', math.inf))
    num_steps = given.get('num_steps', 18)
    notes = []
    low, high = discretization.sigma_min, min(discretization.sigma_max, highest)
    if math.isfinite(high):
        low, high = noise_range(discretization, lowest, highest)
    start = high
    if math.isinf(high):   # not every spacing of the timesteps has the last one
        start = float(discretization.sigmas(num_steps, lowest, highest)[0])
    elif isinstance(discretization,
                    DiscreteSteps) and math.isinf(discretization.sigmas(num_steps)[0]):
        if given.get('zero_terminal_snr'):
            raise ValueError(f'--zero-terminal-snr=True cannot start at sigma = inf, only at '
                             f'{highest:g}: {limit}')
        notes.append(f'drawing starts at sigma = '
                     f'{float(discretization.sigmas(num_steps, lowest, highest)[0]):g}: {limit}')
    elif own is not None and math.isinf(min(own.sigma_max, highest)) and not {'sigma_max',
                                                                              'sigmas'} & given.keys():
        notes.append(f'this network was trained up to sigma = inf, and these time steps start at '
                     f'{high:g}')
    if free and isinstance(discretization, DiscreteSteps) and (discrete or math.isinf(start)):
        name = 'ddim'
    if math.isinf(start) or not learned_variance:
        given = {'variance': 'small', **given}
    schedule: Any = column.schedule if 'schedule' not in given else SCHEDULES[given['schedule']]()
    if isinstance(schedule, VPSchedule) and math.isfinite(high):
        schedule = VPSchedule.through(low, high)
    scaling: Any = column.scaling if 'scaling' not in given else SCALINGS[given['scaling']]()

    sampler: Any = SAMPLERS[name]()
    if name == 'table1':
        solver = SOLVERS[given['solver']]() if 'solver' in given else column.solver
        solver = _with_fields(solver, given, used)
        sampler = FlowSampler(solver, schedule, scaling, _with_fields(Churn(), given, used))
        used |= {'solver', 'schedule', 'scaling'}
    else:
        # em's schedule is its own
        taken = {f.name for f in dataclasses.fields(sampler) if f.default is not None}
        rows = {key: value for key, value in (('schedule', schedule), ('scaling', scaling))
                if key in taken}
        used |= rows.keys()
        sampler = _with_fields(dataclasses.replace(sampler, **rows),
                               {k: v for k, v in given.items() if k not in rows}, used)
        if 'churn' in taken:
            sampler = dataclasses.replace(sampler, churn=_with_fields(Churn(), given, used))
    check_start(sampler, start)
    if name in ADAPTIVE:
        used -= {'num_steps', 'rho'}

    described = f'--sampler={name}' + (f' --solver={given["solver"]}' if name == 'table1'
                                       and 'solver' in given else '')
    described += f' --disc={given["disc"]}' if 'disc' in given else ''
    for option in sorted(k for k in options if options[k] is not None and k not in used):
        shown = FLAGS.get(option, f'--{option}')
        if option in ('spacing', 'zero_terminal_snr'):
            raise ValueError(f'{shown} would have no effect without discrete timesteps: give '
                             f'--disc={", ".join(DISCRETE_SCHEDULES)}')
        if option not in OLD:
            raise ValueError(f'{shown} would have no effect with {described}')
        notes.append(f'{shown} has no effect with {described}')
    return Sampling(discretization, num_steps, sampler, tuple(notes))


def _with_fields(obj: Any, given: dict[str, Any],
                 used: set[str]) -> Any:  # noqa: ANN401 (any dataclass)
    """A copy of `obj` with the fields that were given; `used` learns which those are."""
    fields = {f.name for f in dataclasses.fields(obj)} & given.keys() - {'schedule', 'scaling',
                                                                         'solver', 'churn'}
    used |= fields
    return dataclasses.replace(obj, **{name: given[name] for name in fields})
