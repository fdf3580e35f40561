"""The command-line options that choose a network, and the network with its plan that they open.

Every command that draws images uses them, like the options of the sampler and of guidance.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import click
import torch

from checkpoints.diffusers import is_diffusers
from checkpoints.open import open_network
from dnnlib.cli import ClassList, F, Whole, heading, naming_flags, with_each
from limpid.denoiser import Conditioned, Counting, Denoiser, Network, Traits, traits
from limpid.earlier import Ancestral
from limpid.labels import DRAWS, Labels
from limpid.sampling import Plan
from options import guidance
from options.common import PHRASES
from options.sampler import resolve_sampler
from torch_utils import distributed

files = heading('Network and images')

NETWORK = files(
    '--network', 'network_path', metavar='PATH|URL', required=True,
    help='The network: a snapshot of a training run, a published checkpoint, a folder of diffusers '
         'that holds a U-Net, or ideal:DATASET, the ideal denoiser of a zip or folder of images')
WEIGHTS = files(
    '--weights', metavar='NAME',
    help='Which weights of the file to use: ema, the main average; ema:NAME, another average; raw, '
         'the weights of a training state without averaging. For a folder of diffusers, its '
         'variant, such as fp16  [default: ema]')
CONDITIONS = [   # for networks of diffusers
    files('--embeddings', metavar='FILE',
          help='For a diffusers U-Net with cross-attention: a file of its conditions, an array '
               '[N, tokens, dim] in .npy, .npz or .safetensors. Each of them then counts as a '
               'class. This option and the next two also apply to --guide-network'),
    files('--null-class', type=Whole(0), metavar='INT',
          help='For a diffusers U-Net: the class that stands for no class'),
    files('--timesteps', type=click.Choice(['nearest', 'interpolated']),
          help='For a diffusers U-Net: the timestep that it receives for a noise level between '
               'two of its own, either the nearest one or a fractional one  [default: nearest]'),
]
NAMES = ('embeddings', 'null_class', 'timesteps')   # arguments of open_network
CLASSES = files(
    '--class', 'classes', type=ClassList(),
    help='The classes to draw, repeated over the seeds: numbers such as 3 or 0-9, or names such as '
         'cat,dog if the network knows the names of its classes  [default: random labels, which '
         'each seed draws for itself]')
DRAW = files(
    '--draw-labels', 'draw', type=click.Choice(DRAWS), default='even', show_default=True,
    help='How a seed draws its label, without --class. even: all labels that occur in the training '
         'data are equally likely; data: they are as likely as in the data; balanced: they take '
         'turns, by seed')


def network_options(command: F) -> F:
    """Give a click command the options that choose a network."""
    return with_each([NETWORK, WEIGHTS, *CONDITIONS], command)


@dataclass(frozen=True)
class Opened:
    """A network, guided if that was asked for, and the plan by which images are drawn from it.

    counted  the networks within, which count their evaluations
    notes    what the user should know
    """
    net: Network
    plan: Plan
    counted: tuple[Counting, ...]
    notes: tuple[str, ...]

    def say(self) -> None:
        """Print the notes, on rank 0."""
        for note in self.notes:
            distributed.print0(f'Note: {note}')

    def forget_counts(self) -> None:
        """Start the count of evaluations again."""
        for network in self.counted:
            network.calls = network.images = 0

    @property
    def evaluations(self) -> int:
        """Network evaluations on this rank so far, counted per image; guidance takes two."""
        return sum(network.images for network in self.counted)


def open_with_plan(network: str, weights: str | None, options: Mapping[str, Any],
                   device: torch.device) -> Opened:
    """Open the network that the options choose, with guidance and a sampler (None: not given).

    Raises ValueError or FileNotFoundError, in one line, for files that cannot be opened and for
    options that do not go together.
    """
    chosen = {name: options.get(name) for name in NAMES}
    networks = [open_network(network, device, weights, **chosen)]
    drawing_labels(networks[0], options.get('draw') or 'even')
    guide = options.get('guide_network')
    if guide is not None and options.get('guidance') not in (None, 1):   # else it is not asked
        networks.append(open_network(guide, device, **(chosen if is_diffusers(guide) else {})))
    return planned(networks, options)


def _check_variance(plan: Plan, net: Network) -> None:
    """Raise ValueError if a learned variance is asked of a network that has none."""
    if not isinstance(plan.sampler, Ancestral) or plan.sampler.variance != 'learned':
        return
    instead = "use variance='small' or 'large' (--variance=small)"
    if plan.sigmas[0].isinf():
        raise ValueError(f"variance='learned' cannot start at sigma = inf; {instead}")
    if not traits(net).learned_variance:
        raise ValueError("variance='learned' needs a network with variance channels (iDDPM), "
                         f'which this one is not; {instead}')


def planned(networks: Sequence[Network], options: Mapping[str, Any]) -> Opened:
    """Make the plan for a network, and for its guide if it has one.

    `options` are those of guidance and of the sampler. Raises ValueError as `open_with_plan` does.
    """
    counted = tuple(Counting(net, keep_sigmas=False) for net in networks)
    net, notes = guidance.guided_network(counted[0], options, *counted[1:])
    others = (*guidance.NAMES, *NAMES, 'draw')
    sampler = {name: value for name, value in options.items() if name not in others}
    sampling = resolve_sampler(sampler, traits(net), guidance.limit_of(net, counted))
    with naming_flags(phrases=PHRASES):
        plan = sampling.plan(net)
        Conditioned(net).check(plan.sigmas[0])
    _check_variance(plan, net)
    return Opened(net, plan, counted, (*notes, *sampling.notes))


def drawing_labels(net: Any, draw: str) -> None:   # noqa: ANN401 (a network that was opened)
    """Make the network's labels be drawn in another way; see Labels.draw.

    Raises ValueError where that would have no effect or needs what is not known.
    """
    told = traits(net)
    if draw == 'even':
        return
    if not told.label_dim:
        raise ValueError(f'--draw-labels={draw}: this network is unconditional and takes no '
                         'labels; leave --draw-labels out')
    known = told.known_labels
    if known is None and draw == 'data':
        raise ValueError('--draw-labels=data: the file does not say how often each class occurs in '
                         'the training data; use even or balanced')
    known = replace(known or Labels(counts=(1,) * told.label_dim), draw=draw)
    if isinstance(net, Denoiser):
        net.known_labels = known
    else:
        net.traits = replace(told, known_labels=known)


def class_numbers(classes: Sequence[int | str] | None, told: Traits) -> list[int] | None:
    """Return the numbers of classes that are given by number or name.

    Raises ValueError for a class that the network does not know, or of which it saw no image.
    """
    if classes is None:
        return None
    known = told.known_labels
    if not told.label_dim:
        raise ValueError(f'--class={classes[0]}: this network is unconditional and knows no '
                         f'classes; leave --class out')
    if known is not None and known.vectors is not None:
        raise ValueError(f'--class={classes[0]}: this network takes label vectors of '
                         f'{told.label_dim} numbers and knows no classes; leave --class out')
    names = known.names if known is not None else ()
    return [_class_number(label, told.label_dim, names, known) for label in classes]


def _class_number(label: int | str, label_dim: int, names: Sequence[str],
                  known: Labels | None) -> int:
    if isinstance(label, str):
        if label not in names:
            named = [name for name in names if name]
            there = ('its classes are ' + ', '.join([*named[:10], *['...'][:len(named) > 10]])
                     if named else 'its file does not tell the names of its classes')
            raise ValueError(f'--class={label}: this network has no class of that name; {there}')
        label = names.index(label)
    if label >= label_dim:
        raise ValueError(f'--class={label} is out of range: this network knows the classes 0 '
                         f'to {label_dim - 1}')
    if known is not None and known.counts[label] == 0:
        raise ValueError(f'--class={label}: no image of that class was in the training data')
    return label
