"""The command-line options that choose a network and its guidance, and what they open.

Shared by every command that draws images, like the options of the sampler (training/sampling.py).
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import click
import torch

from checkpoints.diffusers import is_diffusers
from checkpoints.open import open_network
from dnnlib.cli import FloatList, heading
from limpid.denoiser import Conditioned, Counting
from limpid.guidance import GUIDED_BELOW, SPACES, Guidance, guided
from options.sampler import Sampling, resolve_sampler
from torch_utils import distributed

files = heading('Network and images')
guiding = heading('Guidance')

NETWORK = [
    files('--network', 'network_path', help='Snapshot of a training run, a published checkpoint, a '
                                            'folder of diffusers with a U-Net, or ideal:DATASET '
                                            'for the ideal denoiser of a zip or folder',
          metavar='PATH|URL', required=True),
    files('--weights', help='Which weights of the file: ema, the main average; ema:NAME, another; '
                            'raw, of a training state; of a folder of diffusers the variant, such '
                            'as fp16  [default: ema]', metavar='NAME'),
    files('--embeddings', help='Of a diffusers U-Net with cross-attention: .npy, .npz or '
                               '.safetensors [N, tokens, dim]; each is a class. These three also '
                               'for --guide-network', metavar='FILE'),
    files('--null-class', help='Of a diffusers U-Net with classes: the one that stands for none',
          type=click.IntRange(min=0), metavar='INT'),
    files('--timesteps', help='Of a diffusers U-Net: which it is told for a noise level  [default: '
                              'nearest]', type=click.Choice(['nearest', 'interpolated'])),
]

GUIDANCE = [
    guiding('--guidance', help='Weight w: away from the answer without a class, or from that of '
                               '--guide-network; 1 is off, any other takes two evaluations for one '
                               ' [default: 1]', type=float, metavar='FLOAT'),
    guiding('--guidance-rescale', help='φ: how far the standard deviation goes back to that '
                                       'without guidance; 0.7 goes with w = 7.5  [default: 0]',
            type=click.FloatRange(0, 1), metavar='FLOAT'),
    guiding('--guidance-space', help='Where it is rescaled: in v, in the denoised image or in the '
                                     'noise  [default: v]', type=click.Choice(SPACES)),
    guiding('--guidance-interval', help='Guidance only at noise levels from LO to HI  [default: '
                                        '0,inf]', type=FloatList(), metavar='LO,HI'),
    guiding('--guide-network', help='Network to lead away from, such as a smaller one or an early '
                                    'snapshot  [default: --network without the class]',
            metavar='PATH'),
]
FIELDS = {'guidance': 'weight', 'guidance_rescale': 'rescale', 'guidance_space': 'space',
          'guidance_interval': 'interval'}
NETWORK_NAMES = ('embeddings', 'null_class', 'timesteps')   # arguments of open_network


def network_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a click command the options that choose a network."""
    return functools.reduce(lambda wrapped, option: option(wrapped), reversed(NETWORK), command)


def guidance_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a click command the options of guidance."""
    return functools.reduce(lambda wrapped, option: option(wrapped), reversed(GUIDANCE), command)


@dataclass(frozen=True)
class Drawing:
    """A network, guided if it is to be, and how images are drawn from it."""
    net: Any
    sampling: Sampling
    counted: tuple[Counting, ...]   # the networks within, which count their evaluations
    notes: tuple[str, ...]         # what the user should know

    def say(self) -> None:
        """Print the notes, on rank 0."""
        for note in self.notes:
            distributed.print0(f'Note: {note}')

    @property
    def evaluations(self) -> int:
        """Of single images, on this rank, so far; guidance takes two for one."""
        return sum(network.images for network in self.counted)


def open_drawing(network: str, weights: str | None, options: dict[str, Any],
                 device: torch.device) -> Drawing:
    """Open what the options of network, guidance and sampler choose (None: not given).

    Raises ValueError or FileNotFoundError in one line for what cannot be opened or does not go
    together.
    """
    chosen = {name: options.get(name) for name in NETWORK_NAMES}
    networks = [open_to_draw(network, device, weights, **chosen)]
    guide = options.get('guide_network')
    if guide is not None and options.get('guidance') not in (None, 1):   # else it is not asked
        networks.append(open_network(guide, device, **(chosen if is_diffusers(guide) else {})))
    return drawing_of(networks, options)


def open_to_draw(network: str, device: torch.device, weights: str | None = None,
                 **chosen: Any) -> Any:  # noqa: ANN401
    """open_network, for a network whose images can be shown; ValueError for latents."""
    net = open_network(network, device, weights, **chosen)
    if net.img_channels not in (1, 3):
        raise ValueError(f'--network={network} makes {net.img_channels} channels, latents of an '
                         f'autoencoder that is not part of this, and image files hold 1 or 3: draw '
                         f'them with diffusion.samplers.sample and decode them there')
    return net


def drawing_of(networks: Sequence[Any], options: dict[str, Any]) -> Drawing:
    """A network, and its guide if it has one, with the options of guidance and sampler. ValueError
    as open_drawing."""
    counted = tuple(Counting(net, keep_sigmas=False) for net in networks)
    net, notes = guided_network(counted[0], options, *counted[1:])
    sampler = {name: value for name, value in options.items()
               if name not in (*FIELDS, *NETWORK_NAMES, 'guide_network')}
    sampling = resolve_sampler(sampler, net.sigma_min, net.sigma_max,
                               getattr(net, 'native_steps', None), limit=limit_of(net, counted),
                               learned_variance=getattr(net, 'learned_variance', False))
    Conditioned(net).check(sampling.discretization.sigmas(sampling.num_steps, net.sigma_min,
                                                          net.sigma_max)[0])
    return Drawing(net, sampling, counted, (*notes, *sampling.notes))


def limit_of(net: Any, networks: Sequence[Any]) -> str:  # noqa: ANN401 (a denoiser)
    """Why `net`, made of a network and perhaps its guide, supports nothing above its sigma_max."""
    by_guide = net.sigma_max < networks[0].sigma_max
    reason = getattr(networks[-1 if by_guide else 0], 'no_infinity', '')
    return (f'the {"guide" if by_guide else "network"} supports no more'
            + (f', as {reason}' if reason else '')
            + (f'. {GUIDED_BELOW}' if by_guide else ''))


def guided_network(net: Any, options: dict[str, Any],
                   guide: Any = None) -> tuple[Any, list[str]]:  # noqa: ANN401 (denoisers)
    """`net` guided as the options say (None: not given), or `net` itself, and what is to be said of
    it.

    Raises ValueError in one line for options without effect.
    """
    given = {name: options[name] for name in (*FIELDS, 'guide_network')
             if options.get(name) is not None}
    weight, interval = given.get('guidance', 1), given.get('guidance_interval')
    for name in given:
        if 'guidance' not in given:
            raise ValueError(f'--{name.replace("_", "-")} would have no effect without --guidance')
    if 'guidance_space' in given and not given.get('guidance_rescale'):
        raise ValueError('--guidance-space would have no effect without --guidance-rescale')
    if interval is not None and len(interval) != 2:
        raise ValueError(f'--guidance-interval needs two noise levels, LO,HI, not {len(interval)}')
    fields = {field: tuple(value) if name == 'guidance_interval' else value
              for name, field in FIELDS.items() if (value := given.get(name)) is not None}
    notes = []
    if weight == 1:   # sweeps pass through it: no error
        notes += [f'--{name.replace("_", "-")} has no effect with --guidance=1' for name in given
                  if name != 'guidance']
    elif guide is None and getattr(net, 'label_dropout', None) == 0:
        notes.append('this network was trained with --label-dropout=0 and has never seen an image '
                     'without its class: what it answers without one, and guidance with it, means '
                     'nothing')
    elif guide is None and (lacking := getattr(net, 'lacks_null', '')):
        notes.append('this network is told by an embedding of zeros, which its training never saw, '
                     f'that there is no class, and guidance leads away from the answer to that: '
                     f'give {lacking}')
    return guided(net, Guidance(**fields), guide), notes
