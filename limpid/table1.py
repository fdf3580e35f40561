"""Table 1 of the paper. Hold it beside the page: columns are columns, rows are rows.

`python -m limpid` prints it, formulas and numbers, from the objects below. The row `precond` holds
four rows of the paper, c_skip to c_noise, and the row `loss` what its footnote says of iDDPM.
COLUMNS has one column more than the paper: networks that predict v, for discrete timesteps up to
zero signal-to-noise ratio, of Lin et al. 2023.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

from limpid.flow import Solver
from limpid.levels import DiscreteSchedule, IDDPMLevels, ScaledLinearBetas
from limpid.loss import (
    DenoisingLoss,
    HybridLoss,
    InverseCOut,
    InverseVariance,
    LogNormal,
    LogUniform,
    Loss,
    NoiseDistribution,
    UniformLevel,
    UniformTime,
    UniformTimestep,
    VelocityLoss,
    Weighting,
)
from limpid.noise_range import Steps
from limpid.preconditioning import EDM, IDDPM, PRECONDITIONERS, VE, VP, Preconditioner, V
from limpid.schedules import (
    LinearSchedule,
    NoScaling,
    Scaling,
    Schedule,
    VESchedule,
    VPScaling,
    VPSchedule,
)
from limpid.solvers import Euler, SecondOrder
from limpid.steps import DiscreteSteps, EDMSteps, IDDPMSteps, VESteps, VPSteps


@dataclass(frozen=True)
class Column:
    """One column of Table 1, with the paper's own numbers."""
    # Sampling (Section 3)
    solver: Solver
    steps: Steps
    schedule: Schedule
    scaling: Scaling
    # Network and preconditioning (Section 5)
    architecture: str
    precond: Preconditioner
    # Training (Section 5)
    noise_distribution: NoiseDistribution
    weighting: Weighting
    loss: type[Loss]

    def around(self, precond: Preconditioner) -> 'Column':
        """Return the column with another preconditioner, and the weighting made for it."""
        weighting = self.weighting
        if isinstance(weighting, InverseCOut):
            weighting = InverseCOut(precond)
        return replace(self, precond=precond, weighting=weighting)


def vp(schedule: VPSchedule = VPSchedule()) -> Column:
    """The column "VP": Song et al. 2021."""
    return Column(
        solver=Euler(),
        steps=VPSteps(),
        schedule=schedule,
        scaling=VPScaling(),
        architecture='ddpmpp',
        precond=VP(schedule),
        noise_distribution=UniformTime(schedule),
        weighting=InverseVariance(),
        loss=DenoisingLoss,
    )


def ve(schedule: VESchedule = VESchedule()) -> Column:
    """The column "VE": Song et al. 2021."""
    return Column(
        solver=Euler(),
        steps=VESteps(schedule.sigma_min, schedule.sigma_max),
        schedule=schedule,
        scaling=NoScaling(),
        architecture='ncsnpp',
        precond=VE(),
        noise_distribution=LogUniform(schedule),
        weighting=InverseVariance(),
        loss=DenoisingLoss,
    )


def iddpm(levels: IDDPMLevels = IDDPMLevels()) -> Column:
    """The column "iDDPM + DDIM": Nichol & Dhariwal 2021; Song, Meng & Ermon 2021."""
    return Column(
        solver=Euler(),
        steps=IDDPMSteps(levels=levels),
        schedule=LinearSchedule(),
        scaling=NoScaling(),
        architecture='adm',   # "DDPM": the network of the paper's ImageNet-64
        precond=IDDPM(levels),
        noise_distribution=UniformLevel(levels),
        weighting=InverseVariance(),
        loss=HybridLoss,   # "+ L_vlb", which trains the learned variance
    )


def edm(precond: EDM = EDM()) -> Column:
    """The column "Ours (EDM)"."""
    return Column(
        solver=SecondOrder(alpha=1),
        steps=EDMSteps(),
        schedule=LinearSchedule(),
        scaling=NoScaling(),
        architecture='ddpmpp',   # "(any)"
        precond=precond,
        noise_distribution=LogNormal(),
        weighting=InverseCOut(precond),
        loss=DenoisingLoss,
    )


def v(schedule: DiscreteSchedule = ScaledLinearBetas(zero_terminal_snr=True)) -> Column:
    """The choices of Lin et al. 2023, by default on Stable Diffusion's schedule, rescaled."""
    precond = V(noise_label='timestep', schedule=schedule)
    return Column(
        solver=Euler(),   # from σ = ∞: DDIM, which is the same
        steps=DiscreteSteps(schedule),
        schedule=LinearSchedule(),
        scaling=NoScaling(),
        architecture='ddpmpp',   # "(any)"
        precond=precond,
        noise_distribution=UniformTimestep(schedule),
        weighting=InverseCOut(precond),
        loss=VelocityLoss,
    )


TABLE_1: dict[str, Callable[..., Column]] = {'vp': vp, 've': ve, 'iddpm': iddpm, 'edm': edm}
COLUMNS: dict[str, Callable[..., Column]] = {**TABLE_1, 'v': v}


def column(precond: str) -> Column:
    """Return the column of a name in PRECONDITIONERS.

    A preconditioner that has no column of its own goes into EDM's, in place of EDM's.
    """
    if precond in COLUMNS:
        return COLUMNS[precond]()
    return edm().around(PRECONDITIONERS[precond]())


def print_table() -> None:
    """Print each row, and in it the formula and the numbers of each column."""
    for row in fields(Column):
        print(f'\n{row.name}')
        for name in COLUMNS:
            cell: object = getattr(column(name), row.name)
            print(f'    {name:6s} {_shown(cell)}'.rstrip())


def _shown(cell: object) -> str:
    if isinstance(cell, str):
        return cell
    formula = (cell.__doc__ or '').splitlines()[0]
    return formula if isinstance(cell, type) else f'{formula}    {cell}'
