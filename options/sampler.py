"""The command-line options that choose a sampler, and the sampler that they resolve to.

Every command that draws images uses them, so that all of these take the same options.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import click
import torch

from dnnlib.cli import (
    F,
    FloatList,
    Real,
    Whole,
    field_names,
    flags_of,
    heading,
    naming_flags,
    unused,
    with_each,
    with_options,
)
from limpid.adaptive import ADAPTIVE
from limpid.brownian import MULTISTEP_SDES
from limpid.denoiser import Network, Traits
from limpid.earlier import CORRECTORS, EARLIER, PREDICTORS, VARIANCES, PredictorCorrector
from limpid.exponential import VARIANTS, UniPC
from limpid.levels import DISCRETE_SCHEDULES, SPACINGS
from limpid.multistep import DEIS, SPACES
from limpid.noise_range import Steps, noise_range
from limpid.samplers import ANGLE, FINALS, RULES, Churn, FlowSampler, Sampler
from limpid.sampling import Plan, check_start, from_infinity, plan
from limpid.schedules import SCALINGS, SCHEDULES, VPSchedule
from limpid.sde import SDES, GeneralSDE
from limpid.solvers import EXPONENTIAL, SOLVERS, SecondOrder
from limpid.steps import STEPS, DiscreteSteps, ExplicitSteps, VESteps
from limpid.table1 import TABLE_1, Column
from options.common import PHRASES, exponent_rho, not_negative, positive, share, steps_of_sampling

T = TypeVar('T')

# flow, made of the rows of Table 1, is the default; the others replace several rows at once.
SAMPLERS: dict[str, Any] = {'flow': FlowSampler, 'table1': FlowSampler, **EARLIER, **ANGLE, **SDES,
                            **MULTISTEP_SDES, **ADAPTIVE}
# The time steps of samplers that were made for others than those of EDM.
NATURAL_STEPS = {'em': 'vp', 'pc': 've', 'ancestral': 'iddpm', 'ddim': 'iddpm', 'adaptive': 'vp'}

# The options of EDM's own command line: if one of these has no effect there is a note, while for
# an option of this project it is an error.
OLD = {'solver', 'disc', 'schedule', 'scaling', 'sigma_min', 'sigma_max', 'rho', 'S_churn', 'S_min',
       'S_max', 'S_noise', 'num_steps'}
# If any of these is given, the steps are not those of the network.
OWN_STEPS = {'disc', 'family', 'sigmas'}
# If any of these is given, the default sampler is flow.
ROWS = {*OWN_STEPS, 'preset', 'solver', 'schedule', 'scaling'}

# the fields of a sampler that are rows of Table 1; the others are numbers, each with an option
ROW_FIELDS = {'schedule', 'scaling', 'solver', 'churn'}

# Options that some values of others leave without effect: the class of sampler or solver, whether
# it has these values, the options, and the values as they are told. They get notes, since a sweep
# may include such values.
IDLE: tuple[tuple[type, Callable[[Any], bool], tuple[str, ...], str], ...] = (
    (DEIS, lambda it: it.order == 1, ('space', 'lower_order_final'), '--order=1'),
    (UniPC, lambda it: it.order == 1, ('lower_order_final',), '--order=1'),
    # the corrector of order 1 still has a B(h)
    (UniPC, lambda it: it.order == 1 and not it.correct, ('bh',), '--order=1 --correct=False'),
    (PredictorCorrector, lambda it: it.corrector == 'none', ('corrector_steps', 'snr', 'original'),
     '--corrector=none'),
    (PredictorCorrector, lambda it: it.corrector != 'none' and it.corrector_steps == 0,
     ('corrector', 'snr', 'original'), '--corrector_steps=0'),
    (PredictorCorrector, lambda it: it.corrector == 'ald' and it.corrector_steps > 0,
     ('original',), '--corrector=ald'),
    (GeneralSDE, lambda it: it.beta == 0, ('constant', 'S_min', 'S_max'), '--beta=0'),
)
# The numbers that place noise levels between the highest and the lowest.
BETWEEN = {'rho', 'beta_a', 'beta_b'}

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

rows = heading('Sampler: the rows of Table 1')
numbers = heading('Numbers of these rows')
others = heading('Other samplers: each option belongs to the samplers that it names')

OPTIONS = [
    rows('--sampler', type=click.Choice(list(SAMPLERS)),
         help='The sampler. flow, also called table1, is the one that the rows below describe. em '
              '(Euler-Maruyama for VP), pc (predictor-corrector for VE), ancestral (DDPM and '
              'iDDPM) and ddim are those of earlier work. angle is a second-order method that can '
              'start at σ = ∞. sde solves the SDE of Eq. 6; sde-dpmpp is SDE-DPM-Solver++. rk45 '
              'and adaptive solve the ODE and an SDE, and choose their steps themselves  '
              '[default: flow; but ddim for time steps of a discrete schedule, if the network was '
              'trained on discrete timesteps or they start at σ = ∞]'),
    rows('--family', type=click.Choice(list(TABLE_1)),
         help='The column of Table 1 that supplies the rows that are not given  [default: edm]'),
    rows('--preset', type=click.Choice(list(PRESETS)),
         help='All settings of an experiment in the paper, by name; other options override them'),
    rows('--steps', 'num_steps', type=steps_of_sampling, metavar='INT',
         help='The number N of noise levels above 0, and so of steps to σ = 0. heun, dpm-2 and '
              'dpmpp-2s evaluate the network 2N - 1 times, most others N times; --stats counts  '
              '[default: 18; flow.py encode and decode: 64]'),
    rows('--solver', type=click.Choice(list(SOLVERS)),
         help='The ODE solver  [default: heun]'),
    rows('--disc', type=click.Choice(list(STEPS)),
         help='The time steps t_i: those of a column of Table 1, or timesteps of a discrete '
              'schedule (ddpm-linear, scaled-linear, cosine); exponential, vp-poly (powers of '
              'VP\'s time), beta (its quantiles), or Align Your Steps (ays-...)  [default: '
              'those of the network, if it was trained on discrete timesteps; else those of '
              '--sampler, or edm]'),
    rows('--schedule', type=click.Choice(list(SCHEDULES)),
         help='The noise schedule σ(t). The constants of vp follow from the noise range, by '
              'σ(1) = sigma_max and σ(0.001) = sigma_min  [default: linear]'),
    rows('--scaling', type=click.Choice(list(SCALINGS)),
         help='The scaling s(t) of the signal  [default: none]'),

    numbers('--sigma_min', type=positive, metavar='FLOAT',
            help='The lowest noise level, but never less than the network supports  [default: by '
                 '--disc]'),
    numbers('--sigma_max', type=Real(above=0, infinite=True), metavar='FLOAT',
            help='The highest noise level, but never more than the network supports  [default: by '
                 '--disc]'),
    numbers('--sigmas', type=FloatList(infinite=True),
            help='The noise levels one by one, from high to low, such as 80,10,1,0.1. They replace '
                 '--disc and --steps'),
    numbers('--spacing', type=click.Choice(SPACINGS),
            help='Which timesteps of a discrete schedule are used: trailing and linspace include '
                 'the last one, leading does not  [default: trailing]'),
    numbers('--zero-terminal-snr', 'zero_terminal_snr', type=bool, metavar='[BOOL]',
            is_flag=False, flag_value='true',
            help='Rescale the discrete schedule so that it starts at σ = ∞  [default: what the '
                 'network was trained with, else False]'),
    numbers('--rho', type=exponent_rho, metavar='FLOAT',
            help='The exponent ρ of the edm and vp-poly time steps; inf makes those of edm '
                 'geometric  [default: 7; vp-poly: 2]'),
    numbers('--beta_a', type=positive, metavar='FLOAT',
            help='The first parameter of the beta time steps  [default: 0.6]'),
    numbers('--beta_b', type=positive, metavar='FLOAT',
            help='The second parameter of the beta time steps  [default: 0.6]'),
    numbers('--final', type=click.Choice(FINALS),
            help='flow, ddim, sde-dpmpp: where the steps end: denoise takes a last step to σ = 0, '
                 'sigma-min stops at the lowest noise level, one evaluation earlier  [default: '
                 'denoise]'),
    numbers('--afs', type=Real(), metavar='[FLOAT]', is_flag=False, flag_value='0',
            help='flow: the analytical first step: take the mean of the data, in [-1, 1], for the '
                 'first denoised image, which saves an evaluation  [--afs alone: 0]'),
    numbers('--alpha', type=positive, metavar='FLOAT',
            help='The second point of the heun solver: 1 is Heun\'s method, 0.5 the midpoint '
                 'method, 0.6667 Ralston\'s  [default: 1]'),
    numbers('--order', type=Whole(1, 4), metavar='INT',
            help='The order of the solver: adams and unipc 1 to 3, ipndm, ipndm-v, deis and lms 1 '
                 'to 4; and of sde-dpmpp, 2 or 3  [default: the highest; sde-dpmpp: 2]'),
    numbers('--space', type=click.Choice(SPACES),
            help='The variable of the deis solver\'s polynomials: VP\'s time t, σ (rho) or ln σ  '
                 '[default: t]'),
    numbers('--bh', type=click.Choice(VARIANTS),
            help='The function B(h) of the unipc solver  [default: bh2]'),
    numbers('--correct', type=bool, metavar='BOOL',
            help='Whether the unipc solver corrects each step  [default: True]'),
    numbers('--lower_order_final', type=bool, metavar='BOOL',
            help='Whether the last steps of dpmpp-2m, dpmpp-3m, unipc and deis have lower orders: '
                 'at most as high as there are steps left. Other programs do so for few steps  '
                 '[default: False]'),
    numbers('--S_churn', 'S_churn', type=not_negative, metavar='FLOAT',
            help='The amount of fresh noise, for flow and angle; 0 makes the sampler '
                 'deterministic  [default: 0]'),
    numbers('--S_min', 'S_min', type=not_negative, metavar='FLOAT',
            help='The lowest noise level at which fresh noise is added  [default: 0]'),
    numbers('--S_max', 'S_max', type=Real(0, infinite=True), metavar='FLOAT',
            help='The highest noise level at which fresh noise is added  [default: inf]'),
    numbers('--S_noise', 'S_noise', type=Real(), metavar='FLOAT',
            help='The standard deviation of the fresh noise  [default: 1]'),

    others('--original', type=bool, metavar='BOOL',
           help='em, pc, rk45: keep what the paper calls oversights of the published programs  '
                '[default: False]'),
    others('--deterministic', type=bool, metavar='BOOL',
           help='em: follow the probability flow instead of the SDE  [default: False]'),
    others('--predictor', type=click.Choice(PREDICTORS),
           help='pc: the step to the next noise level  [default: reverse-diffusion]'),
    others('--corrector', type=click.Choice(CORRECTORS),
           help='pc: the kind of Langevin steps at each noise level  [default: langevin]'),
    others('--corrector_steps', type=Whole(0, 1_000_000), metavar='INT',
           help='pc: the number of Langevin steps at each noise level  [default: 1]'),
    others('--snr', type=positive, metavar='FLOAT',
           help='pc: the signal-to-noise ratio of the Langevin steps  [default: 0.16]'),
    others('--variance', type=click.Choice(VARIANCES),
           help='ancestral: the variance of the fresh noise; learned needs a network that predicts '
                'it, such as those of iDDPM  [default: learned, if the network predicts it and '
                'sampling does not start at σ = ∞; else small]'),
    others('--clip', type=bool, metavar='BOOL',
           help='ancestral, ddim: clip the denoised image to [-1, 1]  [default: False]'),
    others('--eta', type=share, metavar='FLOAT',
           help='ddim, sde-dpmpp: the share of fresh noise, from 0 (deterministic) to 1 (as much '
                'as ancestral, or as the SDE of Song et al.)  [default: ddim 0, sde-dpmpp 1]'),
    others('--rule', type=click.Choice(RULES),
           help='angle: heun, Heun\'s method in the angle; or rotation, a rule that is exact as '
                'long as the denoised image stays the same  [default: heun]'),
    others('--beta', type=not_negative, metavar='FLOAT',
           help='sde: the rate of fresh noise, as a multiple of σ̇/σ; 0 is the probability flow, 1 '
                'the SDE of Song et al.  [default: 1]'),
    others('--constant', type=bool, metavar='BOOL',
           help='sde: take --beta as the rate itself, per unit of t  [default: False]'),
    others('--rtol', type=positive, metavar='FLOAT',
           help='rk45: the relative tolerance  [default: 1e-5]'),
    others('--atol', type=positive, metavar='FLOAT',
           help='rk45: the absolute tolerance  [default: 1e-5]'),
    others('--sde', type=click.Choice(['vp', 've']),
           help='adaptive: the SDE to solve  [default: vp]'),
    others('--eps_rel', type=positive, metavar='FLOAT',
           help='adaptive: the relative tolerance  [default: 0.02]'),
    others('--eps_abs', type=positive, metavar='FLOAT',
           help='adaptive: the absolute tolerance  [default: 0.0078125, one level of 8 bits]'),
    others('--theta', type=positive, metavar='FLOAT',
           help='adaptive: the safety factor of the next step size  [default: 0.9]'),
    others('--exponent', type=positive, metavar='FLOAT',
           help='adaptive: the exponent of the next step size, r in its paper  [default: 0.9]'),
    others('--h_init', type=positive, metavar='FLOAT',
           help='adaptive: the first step size, as a fraction of the whole time  [default: 0.01]'),
]
FLAGS = flags_of(OPTIONS)   # num_steps: --steps


def sampler_options(command: F) -> F:
    """Give a click command all the options of `resolve_sampler`."""
    return with_each(OPTIONS, command)


@dataclass(frozen=True)
class Sampling:
    """A sampler and its steps as the options choose them, and notes on them for the user."""
    steps: Steps
    num_steps: int
    sampler: Sampler
    notes: tuple[str, ...] = ()

    def plan(self, net: Network) -> Plan:
        """Make the plan for a network: the steps become noise levels that it supports."""
        return plan(net, self.sampler, self.steps, self.num_steps)


def resolve_sampler(options: Mapping[str, Any], told: Traits = Traits(),
                    limit: str = 'the network supports no more') -> Sampling:
    """Turn options (None: not given) into steps and a sampler, for a network with these traits.

    `limit` says why the network supports nothing above its sigma_max. Raises ValueError, in one
    line, if the steps start at σ = ∞ and the sampler cannot, if --zero-terminal-snr is asked of a
    network that cannot work there, and if an option has no effect in this combination. An option
    of EDM's command line without effect only gets a note.
    """
    given = with_preset(options)
    num_steps = given.get('num_steps', 18)
    with naming_flags(phrases=PHRASES):
        steps = choose_steps(given, told)
        start, notes = starting_level(given, steps, num_steps, told, limit)
        name, sampler = choose_sampler(given, steps, start, told)
        check_start(sampler, start)
    notes += note_unused(options, given, steps, name, sampler)
    notes += _notes_on_rounding(sampler, told)
    return Sampling(steps, num_steps, sampler, tuple(notes))


def with_preset(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that were given, and for the others those of the preset."""
    given = {**PRESETS.get(options.get('preset') or '', {}),
             **{name: value for name, value in options.items() if value is not None}}
    if given.get('sampler') == 'flow':
        given['sampler'] = 'table1'   # the older name, which existing scripts use
    return given


def _column(given: Mapping[str, Any]) -> Column:
    return TABLE_1[given.get('family', 'edm')]()


def _is_free(given: Mapping[str, Any]) -> bool:
    """Return whether neither a sampler nor rows of Table 1 other than time steps were chosen."""
    return not {'sampler', *ROWS - {'disc'}} & given.keys()


def choose_steps(given: Mapping[str, Any], told: Traits) -> Steps:
    """Choose the time steps: given levels, or named ones with the numbers that were given."""
    if 'sigmas' in given:
        return ExplicitSteps(tuple(given['sigmas']))
    steps = _with_fields(_named_steps(given, told), given)
    if isinstance(steps, DiscreteSteps):
        return dataclasses.replace(
            steps, schedule=_with_fields(steps.schedule, given),
            lowest=given.get('sigma_min', 0.0), highest=given.get('sigma_max', math.inf))
    return steps


def _named_steps(given: Mapping[str, Any], told: Traits) -> Steps:
    """Choose the steps of --disc, of the network, of --family, or those natural for the sampler."""
    native, sampler = told.native_steps, given.get('sampler', 'table1')
    if 'disc' in given:
        steps = STEPS[given['disc']]()
        if (isinstance(steps, DiscreteSteps) and isinstance(native, DiscreteSteps)
                and type(steps.schedule) is type(native.schedule)):
            return dataclasses.replace(steps, schedule=native.schedule)   # with its terminal SNR
        return steps
    asked = OWN_STEPS & given.keys() or 'sampler' in PRESETS.get(given.get('preset', ''), {})
    if (native is not None and not asked
            and (_is_free(given) or from_infinity(SAMPLERS[sampler]))):
        return native
    if 'family' in given:
        return _column(given).steps
    if sampler == 'adaptive' and given.get('sde') == 've':
        return VESteps()
    return STEPS[NATURAL_STEPS.get(sampler, 'edm')]()


def starting_level(given: Mapping[str, Any], steps: Steps, num_steps: int, told: Traits,
                   limit: str) -> tuple[float, list[str]]:
    """Return the highest noise level that is visited, and notes on it for the user.

    Raises ValueError where no levels are left, and where zero terminal SNR was asked of a network
    that cannot start at σ = ∞.
    """
    def first(lowest: float = 0.0, highest: float = math.inf) -> float:
        return float(steps.sigmas(num_steps, lowest, highest)[0])

    lowest, highest = told.sigma_min, told.sigma_max
    native = told.native_steps
    if math.isinf(min(steps.sigma_max, highest)):   # not every spacing has the last timestep
        return first(lowest, highest), []
    _, high = noise_range(steps, lowest, highest)
    if isinstance(steps, DiscreteSteps) and math.isinf(first()):
        if given.get('zero_terminal_snr'):
            raise ValueError(f'--zero-terminal-snr=True cannot start at sigma = inf, only at '
                             f'{highest:g}: {limit}')
        return high, [f'drawing starts at sigma = {first(lowest, highest):g}: {limit}']
    if (native is not None and math.isinf(min(native.sigma_max, highest))
            and not {'sigma_max', 'sigmas'} & given.keys()):
        return high, [f'this network was trained up to sigma = inf, and these time steps start at '
                      f'{high:g}']
    return high, []


def choose_sampler(given: Mapping[str, Any], steps: Steps, start: float,
                   told: Traits) -> tuple[str, Sampler]:
    """Return the sampler that the options describe, preceded by its name in SAMPLERS."""
    name = given.get('sampler', 'table1')
    discrete = isinstance(steps, DiscreteSteps)
    if _is_free(given) and discrete and (told.native_steps is not None or math.isinf(start)):
        name = 'ddim'
    if math.isinf(start) or not told.learned_variance:
        given = {'variance': 'small', **given}
    cls = SAMPLERS[name]
    rows = {row: value for row, value in _rows(given, steps, told).items() if row in _taken(cls)}
    return name, _with_fields(dataclasses.replace(cls(), **rows), given)


def _rows(given: Mapping[str, Any], steps: Steps, told: Traits) -> dict[str, Any]:
    """Return the rows of Table 1 that a sampler may take: those given, else the column's."""
    column = _column(given)
    solver = SOLVERS[given['solver']]() if 'solver' in given else column.solver
    schedule = SCHEDULES[given['schedule']]() if 'schedule' in given else column.schedule
    if isinstance(schedule, VPSchedule) and math.isfinite(min(steps.sigma_max, told.sigma_max)):
        schedule = VPSchedule.through(*noise_range(steps, told.sigma_min, told.sigma_max))
    scaling = SCALINGS[given['scaling']]() if 'scaling' in given else column.scaling
    return {'solver': _with_fields(solver, given), 'schedule': schedule, 'scaling': scaling,
            'churn': _with_fields(Churn(), given)}


def _taken(sampler: object) -> set[str]:
    """Return the rows that a sampler takes from Table 1; the VP schedule of em is its own."""
    return {field.name for field in dataclasses.fields(sampler)  # type: ignore[arg-type]
            if field.name in ROW_FIELDS and field.default is not None}


def note_unused(options: Mapping[str, Any], given: Mapping[str, Any], steps: Steps, name: str,
                sampler: Sampler) -> list[str]:
    """Return notes on options of EDM, and a family, without effect; raise ValueError for others."""
    described = f'--sampler={name}'
    if name == 'table1' and 'solver' in given:
        described += f' --solver={given["solver"]}'
    if 'disc' in given:
        described += f' --disc={given["disc"]}'
    notes = []
    for option in sorted(unused(options, _used(given, steps, name, sampler))):
        shown = FLAGS[option]
        if option in ('spacing', 'zero_terminal_snr'):
            raise ValueError(f'{shown} would have no effect without discrete timesteps: give '
                             f'--disc={", ".join(DISCRETE_SCHEDULES)}')
        if option not in OLD | {'family'}:   # other rows may replace all that it supplies
            raise ValueError(f'{shown} would have no effect with {described}')
        notes.append(f'{shown} has no effect with {described}')
    return [*notes, *_notes_on_idle(options, sampler), *_notes_on_churn(given, sampler)]


def _notes_on_idle(options: Mapping[str, Any], sampler: Sampler) -> list[str]:
    """Return notes on options that values of others leave without effect."""
    chosen = (sampler, sampler.solver if isinstance(sampler, FlowSampler) else None)
    return [f'{FLAGS[name]} has no effect with {values}'
            for cls, has_values, names, values in IDLE for one in chosen
            if isinstance(one, cls) and has_values(one)
            for name in names if options.get(name) is not None]


def _notes_on_churn(given: Mapping[str, Any], sampler: Sampler) -> list[str]:
    """Return notes on numbers of fresh noise where none is added.

    Nothing is said of them beside an explicit --S_churn=0, which a sweep may include.
    """
    if 'churn' not in _taken(sampler):
        return []
    if 'S_churn' not in given:
        return [f'{FLAGS[name]} has no effect without --S_churn'
                for name in ('S_min', 'S_max', 'S_noise') if name in given]
    lowest, highest = given.get('S_min', 0.0), given.get('S_max', math.inf)
    if given['S_churn'] > 0 and lowest > highest:
        return [f'no fresh noise is added, as --S_min={lowest:g} is above --S_max={highest:g}']
    return []


def _notes_on_rounding(sampler: Sampler, told: Traits) -> list[str]:
    """Return a note where a solver asks a network between the levels that it knows."""
    solver = sampler.solver if isinstance(sampler, FlowSampler) else None
    if not isinstance(solver, SecondOrder) or solver.alpha == 1 or told.round_sigma is None:
        return []
    between = torch.tensor([0.1234567, 1.2345678], dtype=torch.float64)
    if torch.equal(told.round_sigma(between).to(between), between):
        return []
    return [f'alpha = {solver.alpha:g} asks for noise levels between those that this network '
            f'knows, and it answers for the nearest: alpha = 1 does not']


def _used(given: Mapping[str, Any], steps: Steps, name: str, sampler: Sampler) -> set[str]:
    """Return the options that have an effect with these steps and this sampler."""
    taken = _taken(sampler)
    used = {'preset', 'sampler', 'sigmas', *taken, *_numbers(sampler)}
    if isinstance(sampler, FlowSampler) and isinstance(sampler.solver, EXPONENTIAL):
        used -= {'schedule', 'scaling'}   # it works in σ, whatever the time is
    if not {'disc', 'sigmas'} & given.keys() or used & (ROW_FIELDS - {'churn'}) - given.keys():
        used.add('family')
    for row in taken & {'solver', 'churn'}:
        used |= _numbers(getattr(sampler, row))
    if isinstance(steps, ExplicitSteps):
        return used
    used |= {'disc', 'sigma_min', 'sigma_max', *_numbers(steps)}
    if isinstance(steps, DiscreteSteps):
        used |= _numbers(steps.schedule)
    return used - BETWEEN if name in ADAPTIVE else used | {'num_steps'}


def _numbers(obj: object) -> set[str]:
    """Return the names of the numbers of a dataclass: its fields that are no rows of Table 1."""
    return field_names(obj) - ROW_FIELDS


def _with_fields(obj: T, given: Mapping[str, Any]) -> T:
    """Return a copy of a dataclass with the numbers that were given."""
    return with_options(obj, {name: given[name] for name in given.keys() - ROW_FIELDS})
