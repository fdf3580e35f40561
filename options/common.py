"""The options that several commands share, each declared once, and the words of their errors."""

from collections.abc import Callable
from typing import Any

import click

from dnnlib.cli import Real, Whole, heading
from limpid.guidance import GUIDED_BELOW
from limpid.sampling import START_ELSEWHERE

positive = Real(above=0)
not_negative = Real(least=0)
share = Real(least=0, most=1)
count = Whole(1)
# σ^(1/ρ) of smaller ones overflows, and of larger ones is lost in rounding
exponent_rho = Real(0.01, 1e9, infinite=True)
# What takes memory, or processes, for each one of its number has a limit.
images_to_draw = Whole(2, 100_000_000)
steps_of_sampling = Whole(1, 100_000)

speed = heading('Performance')

DEVICE = speed(
    '--device', metavar='NAME', default='auto', show_default=True,
    help='The device to compute on: cpu, cuda, cuda:1 (the second GPU), mps, or auto, which is '
         'CUDA if it is available, else MPS, else the CPU')
BATCH = speed(
    '--batch', type=count, metavar='INT', default=64, show_default=True,
    help='The largest number of images in a batch, on each device')
RNG = speed(
    '--rng', type=click.Choice(['cpu']),
    help='Where random numbers are drawn; cpu gives the same images on every device  [default: on '
         'the device]')


def workers(default: int) -> Callable[..., Any]:
    """Return the option --workers, for commands that read images."""
    return speed(
        '--workers', type=Whole(0, 1024), metavar='INT', default=default, show_default=True,
        help='The number of processes that read images ahead, for each device; 0 for none')


# Phrases in which the library names its arguments, and the same phrases with the options instead.
PHRASES = {
    GUIDED_BELOW: 'With --guidance-interval=0,HI the guide is asked up to HI only',
    'the range of the network and of the steps': 'the range of the network and of --sigma_min and '
                                                 '--sigma_max',
    'give null_class': 'give --null-class',
    'in the file of embeddings': 'in the file of --embeddings',
    START_ELSEWHERE:
        'use time steps that start at a finite noise level, such as with --sigma_max=80, or, in '
        'generate.py and fid.py, --sampler=ddim, ancestral or angle',
}
