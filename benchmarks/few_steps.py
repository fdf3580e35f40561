"""The table of FID in few steps of zju-pi/diff-sampler on CIFAR-10, measured again.

    python -m benchmarks.published --few-steps --dry-run    # what would be measured
    python -m benchmarks.published --few-steps              # 8 solvers, NFE 3 to 10, 50,000 images

How that program counts: its `num_steps` is the number of time stamps N from sigma_max = 80 to
sigma_min = 0.002, so that it takes N − 1 steps, and it returns x at sigma_min without denoising it.
This is --steps=N with --final=sigma-min. A solver with one evaluation a step so has NFE = N − 1;
Heun and DPM-Solver-2, with two, have 2 (N − 1), and no odd NFE. Its DPM-Solver++ and UniPC lower
their order in the last steps. DEIS-tAB3 has polynomials of degree 3, and so order 4.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dnnlib.files import atomic_write
from dnnlib.markdown import table
from evaluation.images import open_reference
from evaluation.nfe_table import DASH, steps_for, written
from evaluation.report import usable
from evaluation.settings import spelled
from evaluation.sweep import Sweep
from evaluation.table import Network, Protocol, Row, Table, measure_points
from limpid.denoiser import Traits
from metrics.judge import Judge

CHECKPOINT = 'https://nvlabs-fi-cdn.nvidia.com/edm/pretrained/edm-cifar10-32x32-uncond-vp.pkl'
WITHIN = 0.03   # relative: 50,000 images and another GPU move FID by about 1 %

BUDGETS = tuple(range(3, 11))
END = {'final': 'sigma-min'}


@dataclass(frozen=True)
class Published:
    """A row of the table: its name, the options of this project, and {NFE: FID}."""
    name: str
    options: dict[str, Any]
    fid: dict[int, float]


def _row(name: str, options: dict[str, Any], *fid: float | None) -> Published:
    return Published(name, END | options, {nfe: value for nfe, value in zip(
        BUDGETS, fid, strict=True) if value is not None})


# The README of that repository, on EDM's unconditional network.
TABLE = (
    _row('Euler', {'solver': 'euler'}, 93.36, 66.76, 49.66, 35.62, 27.93, 22.32, 18.43, 15.69),
    _row('Heun', {'solver': 'heun'}, None, 319.87, None, 99.74, None, 38.06, None, 15.93),
    _row('DPM-Solver-2', {'solver': 'dpm-2'}, None, 145.98, None, 60.00, None, 10.30, None, 5.01),
    _row('DPM++(3M)', {'solver': 'dpmpp-3m', 'lower_order_final': True},
         110.03, 46.52, 24.97, 11.99, 6.74, 4.54, 3.42, 3.00),
    _row('UniPC-3', {'solver': 'unipc', 'order': 3, 'lower_order_final': True},
         109.61, 45.20, 23.98, 11.14, 5.83, 3.99, 3.21, 2.89),
    _row('DEIS-tAB3', {'solver': 'deis', 'order': 4},
         56.01, 25.66, 14.39, 9.40, 6.94, 5.55, 4.68, 4.09),
    _row('iPNDM-4', {'solver': 'ipndm', 'order': 4},
         47.98, 24.82, 13.59, 7.05, 5.08, 3.69, 3.17, 2.77),
    _row('iPNDM_v-4', {'solver': 'ipndm-v', 'order': 4},
         67.58, 40.26, 23.58, 14.00, 9.83, 7.34, 5.93, 4.95),
)


def dry_run(budgets: Sequence[int]) -> list[str]:
    """List the solvers as options of generate.py, and N for each NFE, or a dash."""
    class Any32:   # only what a network says of itself is asked
        traits = Traits(image_shape=(3, 32, 32), label_dim=0)

    lines = []
    for row in TABLE:
        counts = [steps_for([Any32()], row.options, nfe) for nfe in budgets]   # type: ignore[list-item]
        lines.append([row.name, f'`{spelled(row.options)}`',
                      *(DASH if count is None else str(count) for count in counts)])
    head = ['--steps by NFE', 'options', *map(str, budgets)]
    return [table(head, lines), '', (__doc__ or '').strip().split('\n\n')[-1]]


def measure(network: str, ref: str, dest: str, budgets: Sequence[int], num: int, detector: str,
            batch: int, device: torch.device) -> tuple[list[str], bool]:
    """Measure the table, or go on with it; return lines, and whether all cells agree."""
    judge = Judge(open_reference(ref), ['fid'], device=device, detector=detector, batch=batch)
    sweep, where = Sweep(judge, device=device, batch=batch), Network(network)
    found: dict[str, dict[int, Row]] = {}
    with Table(dest, 'sweep.csv') as kept:
        for row in TABLE:
            points, wanted, _ = sweep.plan_nfe([where], [row.options], budgets, Protocol(num))
            rows = measure_points(points, kept, sweep)
            found[row.name] = {wanted[cell['point']]: cell for cell in usable(rows, sweep.metric)}
    cells, agree = compared(found, sweep.metric, budgets)
    text = table([f'{sweep.metric}: found / published; NFE', *map(str, budgets)], cells)
    with atomic_write(Path(dest) / 'few-steps.md') as file:
        file.write(f'{text}\n'.encode())
    return [text], agree


def compared(found: dict[str, dict[int, Row]], metric: str,
             budgets: Sequence[int]) -> tuple[list[list[str]], bool]:
    """Return the cells, "found / published", and whether all are within 3 % of each other."""
    lines, agree = [], True
    for row in TABLE:
        line = [row.name]
        for nfe in budgets:
            cell, published = found[row.name].get(nfe), row.fid.get(nfe)
            if cell is None or published is None:
                line.append(DASH)
                agree = agree and (cell is None) == (published is None)
                continue
            value = float(cell[metric])
            near = abs(value / published - 1) <= WITHIN
            agree = agree and near
            line.append(f'{written(value)} / {published:.2f}{"" if near else " !"}')
        lines.append(line)
    return lines, agree
