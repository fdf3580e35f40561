"""The options that make networks faster, and their effect on networks that draw images."""

from collections.abc import Sequence

import click

from limpid.denoiser import Counting, Denoiser
from options.common import speed
from training.compiled import hastened_for_sampling, set_tf32
from training.networks import PRECISIONS

PRECISION = speed(
    '--precision', type=click.Choice(list(PRECISIONS)),
    help='The precision of the backbone: fp32; tf32, which is float32 whose products a GPU rounds '
         'to 11 bits; bf16; or fp16, which is float32 on a CPU  [default: that of its training, '
         'without TF32]')
COMPILE = speed(
    '--compile', 'compiled', is_flag=True,
    help='Compile the network with torch.compile and, on a GPU, record it as a CUDA graph. This '
         'takes up to two minutes at the start and pays for many images; needs a C++ compiler or '
         'Triton')


def hasten(networks: Sequence[Counting], precision: str | None, compiled: bool) -> None:
    """Make networks faster that draw images, within what counts their evaluations.

    Raises ValueError for a network whose layers are not ours.
    """
    if precision is None and not compiled:
        return
    set_tf32(precision == 'tf32')
    for counting in networks:
        net = counting.net
        if not isinstance(net, Denoiser) or not hasattr(net.model, 'channels_last'):
            option = '--compile' if compiled else f'--precision={precision}'
            raise ValueError(f'{option} is for networks that train.py makes and for published ones '
                             f'of the same layers; this network is none of them')
        if precision is not None:
            net.dtype = PRECISIONS[precision]
        counting.net = hastened_for_sampling(net, compiled)
