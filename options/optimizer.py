"""The options of the optimizer that the paper leaves as they are, and what all of them resolve to.

Learning rate, ramp-up and clipping, which its configurations change, are in options/training.py.
"""

from typing import Any

import click

from dnnlib.cli import FloatList, heading
from options.common import not_negative, positive
from training.config import OptimizerConfig

adam = heading('The optimizer: Adam')


class Betas(FloatList):
    """The two constants of Adam, each at least 0 and below 1."""

    def convert(self, value: object, param: click.Parameter | None,
                ctx: click.Context | None) -> object:
        betas = super().convert(value, param, ctx)
        if not isinstance(betas, list) or len(betas) != 2 or not all(0 <= b < 1 for b in betas):
            self.fail(f'{value!r} is not two numbers from 0 to below 1, such as 0.9,0.999', param,
                      ctx)
        return betas


OPTIMIZER_OPTIONS = [
    adam('--betas', type=Betas(), metavar='FLOAT,FLOAT',
         default=','.join(f'{beta:g}' for beta in OptimizerConfig.betas), show_default=True,
         help='The rates at which Adam averages gradients and their squares'),
    adam('--adam-eps', type=positive, metavar='FLOAT', default=OptimizerConfig.eps,
         show_default=True,
         help='What Adam adds to the root of the squares'),
    adam('--weight-decay', type=not_negative, metavar='FLOAT',
         default=OptimizerConfig.weight_decay, show_default=True,
         help='Weight decay of AdamW: a step takes this share, times --lr, of every weight'),
    adam('--lr-decay', type=positive, metavar='MIMG',
         help='Millions of images, n, beyond which the learning rate is divided by the root of '
              '(images so far) / n, as in EDM2  [default: never]'),
]


def optimizer_config(given: dict[str, Any]) -> OptimizerConfig:
    """Return the settings of the optimizer, from a value for each option of train.py."""
    decay = given['lr_decay']
    return OptimizerConfig(
        lr=given['lr'], lr_rampup_nimg=given['lr_rampup'] * 1e6, betas=tuple(given['betas']),
        eps=given['adam_eps'], clip=given['clip'], weight_decay=given['weight_decay'],
        lr_decay_nimg=None if decay is None else decay * 1e6)
