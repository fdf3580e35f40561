"""Table 1 of the paper. Hold it beside the page: columns are columns, rows are rows.

`python -m training.table1` prints it, formulas and numbers, from the objects below. COLUMNS has one
more: networks that predict v, for discrete timesteps up to zero signal-to-noise ratio, of Lin et
al. 2023.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from limpid.levels import DiscreteSchedule, IDDPMLevels, ScaledLinearBetas
from limpid.loss import (
    InverseCOut,
    InverseVariance,
    LogNormal,
    LogUniform,
    NoiseDistribution,
    UniformLevel,
    UniformTime,
    UniformTimestep,
    Weighting,
)
from limpid.preconditioning import EDM, IDDPM, VE, VP, Preconditioner, V
from limpid.schedules import LinearSchedule, NoScaling, Scaling, Schedule, VESchedule, VPScaling, VPSchedule
from limpid.solvers import Euler, SecondOrder, Solver
from limpid.steps import DiscreteSteps, Discretization, EDMSteps, IDDPMSteps, VESteps, VPSteps


@dataclass(frozen=True)
class Column:
    # Sampling (Section 3)
    solver: Solver
    discretization: Discretization
    schedule: Schedule
    scaling: Scaling
    # Network and preconditioning (Section 5)
    architecture: str
    precond: Preconditioner
    # Training (Section 5)
    noise_distribution: NoiseDistribution
    weighting: Weighting


def vp(schedule: VPSchedule = VPSchedule()) -> Column:
    return Column(
        solver=Euler(),
        discretization=VPSteps(),
        schedule=schedule,
        scaling=VPScaling(),
        architecture='ddpmpp',
        precond=VP(schedule),
        noise_distribution=UniformTime(schedule),
        weighting=InverseVariance(),
    )


def ve(schedule: VESchedule = VESchedule()) -> Column:
    return Column(
        solver=Euler(),
        discretization=VESteps(schedule.sigma_min, schedule.sigma_max),
        schedule=schedule,
        scaling=NoScaling(),
        architecture='ncsnpp',
        precond=VE(),
        noise_distribution=LogUniform(schedule),
        weighting=InverseVariance(),
    )


def iddpm(levels: IDDPMLevels = IDDPMLevels()) -> Column:
    return Column(
        solver=Euler(),
        discretization=IDDPMSteps(levels=levels),
        schedule=LinearSchedule(),
        scaling=NoScaling(),
        architecture='adm',
        precond=IDDPM(levels),
        noise_distribution=UniformLevel(levels),
        weighting=InverseVariance(),   # + L_vlb for the learned variance: HybridLoss
    )


def edm(precond: EDM = EDM()) -> Column:
    return Column(
        solver=SecondOrder(alpha=1),
        discretization=EDMSteps(),
        schedule=LinearSchedule(),
        scaling=NoScaling(),
        architecture='ddpmpp',   # "(any)"
        precond=precond,
        noise_distribution=LogNormal(),
        weighting=InverseCOut(precond),
    )


def v(schedule: DiscreteSchedule = ScaledLinearBetas(zero_terminal_snr=True)) -> Column:
    precond = V(noise_label='timestep', schedule=schedule)
    return Column(
        solver=Euler(),   # from σ = ∞: DDIM, which is the same
        discretization=DiscreteSteps(schedule),
        schedule=LinearSchedule(),
        scaling=NoScaling(),
        architecture='ddpmpp',   # "(any)"
        precond=precond,
        noise_distribution=UniformTimestep(schedule),
        weighting=InverseCOut(precond),   # in v: VelocityLoss
    )


TABLE_1: dict[str, Callable[..., Column]] = {'vp': vp, 've': ve, 'iddpm': iddpm, 'edm': edm}
COLUMNS: dict[str, Callable[..., Column]] = {**TABLE_1, 'v': v}


def print_table() -> None:
    for row in fields(Column):
        print(f'\n{row.name}')
        for name, column in COLUMNS.items():
            cell: Any = getattr(column(), row.name)
            formula = cell if isinstance(cell, str) else cell.__doc__.splitlines()[0]
            print(f'    {name:6s} {formula}    {"" if isinstance(cell, str) else cell}'.rstrip())


if __name__ == '__main__':
    print_table()
