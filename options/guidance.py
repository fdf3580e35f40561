"""The command-line options of guidance, and the guided network that they make."""

from collections.abc import Mapping
from typing import Any

import click

from dnnlib.cli import F, FloatList, Real, flags_of, heading, with_each, with_flags
from limpid.denoiser import Network, traits
from limpid.guidance import GUIDED_BELOW, SPACES, Guidance, guided
from options.common import PHRASES, share

guiding = heading('Guidance')

OPTIONS = [
    guiding('--guidance', type=Real(), metavar='FLOAT',
            help='The weight w of guidance, which leads images away from what the network answers '
                 'without a class, or from what --guide-network answers. 1 is no guidance; any '
                 'other weight needs two evaluations instead of one  [default: 1]'),
    guiding('--guidance-rescale', type=share, metavar='FLOAT',
            help='How far, from 0 to 1, the standard deviation of each image is brought back to '
                 'what it is without guidance. The paper uses 0.7 with w = 7.5  [default: 0]'),
    guiding('--guidance-space', type=click.Choice(SPACES),
            help='The quantity that is rescaled: the prediction of v, the denoised image (x0) or '
                 'the noise (eps)  [default: v]'),
    guiding('--guidance-interval', type=FloatList(infinite=True), metavar='LO,HI',
            help='The lowest and the highest noise level with guidance  [default: 0,inf]'),
    guiding('--guide-network', metavar='PATH',
            help='A network to lead away from, such as a smaller one or an early snapshot  '
                 '[default: --network itself, without the class]'),
]
FIELDS = {'guidance': 'weight', 'guidance_rescale': 'rescale', 'guidance_space': 'space',
          'guidance_interval': 'interval'}
FLAGS = flags_of(OPTIONS)
NAMES = tuple(FLAGS)


def guidance_options(command: F) -> F:
    """Give a click command the options of guidance."""
    return with_each(OPTIONS, command)


def guided_network(net: Network, options: Mapping[str, Any],
                   guide: Network | None = None) -> tuple[Network, list[str]]:
    """Return `net`, guided as the options say (None: not given), and notes for the user.

    Raises ValueError, in one line, for options without effect.
    """
    given: dict[str, Any] = {name: options[name] for name in NAMES
                             if options.get(name) is not None}
    for name in given:
        if 'guidance' not in given:
            raise ValueError(f'{FLAGS[name]} would have no effect without --guidance')
    if 'guidance_space' in given and not given.get('guidance_rescale'):
        raise ValueError('--guidance-space would have no effect without --guidance-rescale')
    interval = given.get('guidance_interval')
    if interval is not None and len(interval) != 2:
        raise ValueError(f'--guidance-interval needs two noise levels, LO,HI, not {len(interval)}')
    fields = {FIELDS[name]: value for name, value in given.items() if name in FIELDS}
    if interval is not None:
        fields['interval'] = tuple(interval)
    if traits(net).label_dim == 0 and given.get('guidance', 1) != 1 and guide is None:
        raise ValueError('guidance needs a class-conditional network, trained with '
                         '--label-dropout, or a --guide-network; this network is unconditional')
    return guided(net, Guidance(**fields), guide), _notes(net, given, guide)


def _notes(net: Network, given: Mapping[str, Any], guide: Network | None) -> list[str]:
    if given.get('guidance', 1) == 1:   # no error, since a sweep may include this weight
        return [f'{FLAGS[name]} has no effect with --guidance=1' for name in given
                if name != 'guidance']
    told = traits(net)
    if guide is None and told.label_dropout == 0:
        raise ValueError('this network was trained with --label-dropout=0 and has never seen an '
                         'image without its class: what it answers without one, and guidance with '
                         'it, means nothing; give --guide-network, or train with --label-dropout')
    if guide is None and told.lacks_null:
        return [with_flags('this network is told by an embedding of zeros, which its training '
                           'never saw, that there is no class, and guidance leads away from the '
                           f'answer to that: give {told.lacks_null}', phrases=PHRASES)]
    return []


def limit_of(net: Network, networks: tuple[Network, ...]) -> str:
    """Return the reason why `net` supports nothing above its sigma_max.

    `networks` are the network and, if it has one, its guide.
    """
    by_guide = traits(net).sigma_max < traits(networks[0]).sigma_max
    reason = traits(networks[-1 if by_guide else 0]).no_infinity
    limit = f'the {"guide" if by_guide else "network"} supports no more'
    if reason:
        limit += f', as {reason}'
    if by_guide:
        limit += f'. {GUIDED_BELOW}'
    return with_flags(limit, phrases=PHRASES)
