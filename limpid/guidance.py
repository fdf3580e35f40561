"""Guidance: a denoiser made of two, which samplers use like any other.

    # classifier-free guidance, away from the same network without its labels
    net = guided(net, Guidance(weight=3.0))
    # autoguidance, away from a worse network
    net = guided(net, Guidance(weight=2.0), guide=smaller_net)
    images = sample(net, noise, class_labels)

The equations are those of Lin et al. 2023, Section 3.4, in which D_ref is x_neg. Eq. 13 is affine,
with weights that add up to 1, so that guiding D, v or ε gives the same result. The rescaling of
Eq. 15 and 16 is not, and acts in a space that can be chosen. (Classifier-free guidance is that of
Ho & Salimans 2022, autoguidance that of Karras et al. 2024.)
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from limpid.checks import one_of
from limpid.denoiser import Network, Traits, beside, traits
from limpid.per_image import image_sum, sum_squares
from limpid.unit import Level, change_of_scale

SPACES = ('v', 'x0', 'eps')
# A hint that is added where the guide supports no higher noise levels.
GUIDED_BELOW = 'With an interval of guidance (0, HI) the guide is asked up to HI only'


@dataclass(frozen=True)
class Guidance:
    """The strength with which a denoiser is led away from its reference, and where.

    weight    w in D_ref + w (D_pos − D_ref)        (Eq. 13); 1 is no guidance, 0 the reference
              alone
    rescale   φ in [0, 1], the degree to which each image's standard deviation in `space` returns
              to that of D_pos (Eq. 16); the paper uses 0.7 with w = 7.5
    space     'v', which the paper's networks predict, 'x0', the denoised image, or 'eps', the noise
    interval  the lowest and the highest noise level with guidance, both included; outside of it
              D = D_pos, without a second evaluation
    """
    weight: float = 1.0
    rescale: float = 0.0
    space: str = 'v'
    interval: tuple[float, float] = (0.0, math.inf)

    def __post_init__(self) -> None:
        if not math.isfinite(self.weight):
            raise ValueError(f'the weight of guidance must be a finite number, not {self.weight:g}')
        if not 0 <= self.rescale <= 1:
            raise ValueError(f'the rescaling of guidance must be from 0 to 1, not {self.rescale:g}')
        one_of('the space of the rescaling', self.space, SPACES)
        lowest, highest = self.interval
        if not 0 <= lowest <= highest:
            raise ValueError('the interval of guidance must be two noise levels, the lowest and '
                             f'the highest, not {lowest:g}, {highest:g}')

    def acts_at(self, sigma: Tensor) -> Tensor | bool:
        """Return whether σ lies in the interval.

        The result is one bool for all images if that is known without waiting for a GPU, else a
        tensor.
        """
        lowest, highest = self.interval
        if (lowest, highest) == (0, math.inf):
            return True
        # A level at a limit counts as inside, although converting sigma to t and back may have
        # changed its last digits.
        inside = (lowest * (1 - 1e-9) <= sigma) & (sigma <= highest * (1 + 1e-9))
        if sigma.device.type == 'cpu' and inside.all() == inside.any():
            return bool(inside.all())
        return inside


def guided(net: Network, guidance: Guidance, guide: Network | None = None) -> Network:
    """Return `net` led away from a reference, or `net` itself if there is nothing to do (w = 1).

    Without `guide` the reference is `net` with its labels zeroed, and both are computed in one call
    with twice the images. With a guide (autoguidance), it is `guide` with the same labels, or with
    none if it is unconditional. Raises ValueError for an unconditional network without a guide, and
    for a guide with another image shape or other classes.
    """
    return net if guidance.weight == 1 else Guided(net, guidance, guide)


class Guided:
    """D = D_ref + w (D_pos − D_ref), rescaled, for D_pos = net(x, σ, labels)

    (Lin et al. 2023, Eq. 13 to 16, with D_ref for x_neg.) It is called like the network. It takes
    `unit=True` (x is the unit variable) and `return_variance=True` (F_var is that of D_pos) if the
    network does. With a guide, the noise levels are those of the network that the guide supports
    too, wherever it is used, and the unit variable needs a guide that takes it too. Raises
    ValueError as `guided` does.
    """

    def __init__(self, net: Network, guidance: Guidance, guide: Network | None = None) -> None:
        self.net, self.guidance, self.guide = net, guidance, guide
        if guide is not None:
            _check_guide(traits(net), traits(guide))
        elif traits(net).label_dim == 0:
            raise ValueError('guidance needs a class-conditional network, trained with label '
                             'dropout, or a guide; this network is unconditional')

    @property
    def traits(self) -> Traits:
        """The traits of the network, limited to those of the guide at levels where it acts."""
        # A single σ on the CPU is compared with the interval without waiting for the device.
        told = replace(traits(self.net), sigma_from_cpu=True)
        if self.guide is None:
            return told
        guide, (lowest, highest) = traits(self.guide), self.guidance.interval
        if lowest < guide.sigma_min:
            told = replace(told, sigma_min=max(told.sigma_min, guide.sigma_min))
        if highest > guide.sigma_max:
            told = replace(told, sigma_max=min(told.sigma_max, guide.sigma_max))
        if highest == math.inf and guide.no_infinity and not told.no_infinity:
            told = replace(told, no_infinity=f'the guide: {guide.no_infinity}. {GUIDED_BELOW}')
        return replace(told, unit_scale=None) if guide.unit_scale is None else told

    def __call__(self, x: Tensor, sigma: Tensor, class_labels: Tensor | None = None,
                 **conditions: Any) -> Any:  # noqa: ANN401 (what the network takes and answers)
        """Return the guided D for x [B, C, H, W].

        sigma is [] on the CPU or beside x, [B] or [B, 1, 1, 1]; class_labels [B or 1, label_dim].
        """
        acts = self.guidance.acts_at(sigma)
        sigma = beside(sigma, x)
        if acts is False:
            return self.net(x, sigma, class_labels, **conditions)
        D_pos, D_ref, more = self._answers(x, sigma, class_labels, conditions)
        D = D_ref + self.guidance.weight * (D_pos - D_ref)
        if self.guidance.rescale > 0:
            anchor = self._anchor(x, _column(sigma, x), conditions.get('unit', False))
            D = rescaled(D, D_pos, anchor, self.guidance.rescale)
        if acts is not True:
            D = torch.where(_column(acts, x), D, D_pos)
        return (D, *more) if more else D

    def _answers(self, x: Tensor, sigma: Tensor, class_labels: Tensor | None,
                 conditions: dict[str, Any]) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Return D_pos, D_ref, and the other outputs of the network beside D_pos."""
        if self.guide is not None:
            D_pos, *more = _as_tuple(self.net(x, sigma, class_labels, **conditions))
            return D_pos, self._ask(self.guide, x, sigma, class_labels, conditions), more
        if class_labels is None:
            raise ValueError('guidance needs class labels, or a guide')
        labels = class_labels.reshape(-1, class_labels.shape[-1]).expand(len(x), -1)
        twice = {name: _twice(value) for name, value in conditions.items()}
        D, *more = _as_tuple(self.net(torch.cat([x, x]), _twice(sigma),
                                      torch.cat([labels, torch.zeros_like(labels)]), **twice))
        D_pos, D_ref = D.chunk(2)
        return D_pos, D_ref, [other[:len(x)] for other in more]

    def _ask(self, guide: Network, x: Tensor, sigma: Tensor, class_labels: Tensor | None,
             conditions: dict[str, Any]) -> Tensor:
        """Return D of the guide, in its own unit variable, without labels if it takes none."""
        if conditions.get('unit', False):
            x = x * change_of_scale(_column(sigma, x), _unit_scale(self.net), _unit_scale(guide))
        labels = None if traits(guide).label_dim == 0 else class_labels
        understood = {k: v for k, v in conditions.items() if k != 'return_variance'}
        D: Tensor = guide(x, sigma, labels, **understood)
        return D

    def _anchor(self, x: Tensor, sigma: Tensor, unit: bool) -> Tensor | float:
        """Return m for which D − m is v, x0 or ε times a factor that depends on σ alone.

        With v = (a z − D/d)/b, x0 = D and ε = (x − D)/σ, m is c_skip x with c_skip = d²/(σ² + d²) =
        a², 0 and x. With `unit`, x is z = a x/d.
        """
        if self.guidance.space == 'x0':
            return 0.0
        d = _unit_scale(self.net)
        a = Level.of_sigma(sigma, d).a
        if self.guidance.space == 'v':
            return (d * a if unit else a**2) * x
        return d / a * x if unit else x


def _unit_scale(net: Network) -> float:
    """d of the unit variable; 1 for a network that has none of its own"""
    d = traits(net).unit_scale
    return 1.0 if d is None else d


def rescaled(D: Tensor, D_pos: Tensor, anchor: Tensor | float, phi: float) -> Tensor:
    """v <- φ v std(v_pos)/std(v) + (1 − φ) v  for v = D − anchor

    (Lin et al. 2023, Eq. 14 to 16 and Algorithm 2.) The standard deviation is that of each image.
    Where v does not vary, or is not finite (ε at σ = ∞, which is the input itself), there is
    nothing to rescale, and D stays.
    """
    v = D - anchor
    spread, spread_pos = _spread(torch.cat([v, D_pos - anchor])).chunk(2)
    factor = torch.where(spread > 0, spread_pos / spread, 1)
    share = 1 + phi * (factor - 1)
    return torch.where(share == 1, D, anchor + share * v).to(D.dtype)


def _spread(v: Tensor) -> Tensor:
    """√Σ (v − mean)² of each image: [B, ...] -> [B, 1, 1, 1]

    This is the standard deviation times √(n − 1).
    """
    return sum_squares(v - image_sum(v) / v[0].numel()).sqrt()


def _column(values: Tensor, x: Tensor) -> Tensor:
    """Reshape [], [B] or [B, 1, 1, 1] so that it broadcasts against x."""
    return values.reshape(-1, *[1] * (x.ndim - 1)) if values.ndim else values


def _twice(value: object) -> object:
    """Repeat a value that has a row per image, for two copies of the batch; keep any other."""
    if isinstance(value, Tensor) and value.ndim > 0 and len(value) > 1:
        return torch.cat([value, value])
    return value


def _as_tuple(answer: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return D alone, or D and what else the network answers, as a tuple."""
    return answer if isinstance(answer, tuple) else (answer,)


def _check_guide(net: Traits, guide: Traits) -> None:
    """Raise ValueError for a guide with another image shape or other classes (it may have none)."""
    if net.image_shape is not None and guide.image_shape is not None:
        for name, ours, its in zip(('img_channels', 'img_resolution', 'img_resolution'),
                                   net.image_shape, guide.image_shape, strict=True):
            if ours != its:
                raise ValueError(f'the guide has {name}={its}; to guide this network it must have '
                                 f'{ours}')
    if None not in (net.label_dim, guide.label_dim) and guide.label_dim not in (net.label_dim, 0):
        raise ValueError(f'the guide has label_dim={guide.label_dim}; to guide this network it '
                         f'must have {" or ".join(str(n) for n in {net.label_dim: 1, 0: 1})}')
