"""Compute the values of tables that need no data: python -m reproduction.formulas NAME --dest=FILE.

The file is JSON: {row: {column: number}}, or the lines of a figure.
"""

import json
from collections.abc import Callable
from typing import Any

import click
import torch

from dnnlib.cli import one_line_errors
from dnnlib.files import atomic_write
from limpid.levels import CosineBetas, LinearBetas, ScaledLinearBetas, timesteps
from limpid.table1 import TABLE_1
from reproduction import table1


def edm_table1() -> dict[str, Any]:
    """Return the numbers of Table 1 of the EDM paper, from the objects that the commands use."""
    found: dict[str, Any] = {row: {} for row in table1.cells()}
    t, sigma, u = (torch.tensor(value, dtype=torch.float64)
                   for value in (table1.t, table1.sigma, table1.u))
    for name, make in TABLE_1.items():
        if name not in ('vp', 've', 'iddpm', 'edm'):
            continue
        column = make()
        level = column.schedule.sigma(t)
        for row, value in {
                'σ(t)': level, 's(t)': column.scaling.s(level),
                'σ(t_i)': column.steps.sigmas(table1.N)[table1.i],
                'c_skip(σ)': column.precond.c_skip(sigma), 'c_out(σ)': column.precond.c_out(sigma),
                'c_in(σ)': column.precond.c_in(sigma),
                'c_noise(σ)': column.precond.c_noise(sigma),
                'p_train': column.noise_distribution.quantile(u),
                'λ(σ)': column.weighting(sigma)}.items():
            found[row][name] = float(value)
    return found


def zero_snr_table1() -> dict[str, Any]:
    """Return SNR(T) and √ᾱ_T of the schedules of Table 1 of Lin et al. 2023."""
    return {name: {'SNR(T)': float(schedule.snr[-1]), '√ᾱ_T': float(schedule.alpha_bar[-1].sqrt())}
            for name, schedule in (('Linear', LinearBetas()), ('Cosine', CosineBetas()),
                                   ('Stable Diffusion', ScaledLinearBetas()))}


def zero_snr_table2() -> dict[str, Any]:
    """Return the timesteps of Table 2 of Lin et al. 2023."""
    return {spacing.capitalize(): {'timesteps': timesteps(10, 1000, spacing)}
            for spacing in ('leading', 'linspace', 'trailing')}


def zero_snr_figure2() -> dict[str, Any]:
    """Return log SNR(t) and √ᾱ_t of Stable Diffusion's schedule, original and rescaled.

    The last timestep of the rescaled one, log SNR = −∞, is left out of the first panel.
    """
    panels: dict[str, Any] = {'log SNR': {}, '√ᾱ': {}}
    for label, rescaled in (('Original', False), ('Ours', True)):
        schedule = ScaledLinearBetas(zero_terminal_snr=rescaled)
        log_snr = schedule.snr.log().tolist()
        kept = len(log_snr) - rescaled
        panels['log SNR'][label] = {'x': list(range(1, kept + 1)), 'y': log_snr[:kept]}
        panels['√ᾱ'][label] = {'x': list(range(1, len(log_snr) + 1)),
                               'y': schedule.alpha_bar.sqrt().tolist()}
    return {'panels': panels}


FORMULAS: dict[str, Callable[[], dict[str, Any]]] = {
    'edm-table1': edm_table1, 'zero-snr-table1': zero_snr_table1,
    'zero-snr-table2': zero_snr_table2, 'zero-snr-figure2': zero_snr_figure2}


@click.command()
@click.argument('name', type=click.Choice(list(FORMULAS)))
@click.option('--dest', required=True, metavar='FILE', help='The JSON file to write')
@one_line_errors
def main(name: str, dest: str) -> None:
    """Compute the values of the table or figure NAME."""
    with atomic_write(dest) as file:
        file.write((json.dumps(FORMULAS[name](), indent=1, ensure_ascii=False) + '\n').encode())


if __name__ == '__main__':
    main()
