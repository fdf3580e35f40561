"""Denoisers that are known exactly: those of data sets (Eq. 57), Gaussians and mixtures.

    net = IdealDenoiser(images)                        # images [N, C, H, W] in [-1, 1]
    images = sample(net, torch.randn(4, 1, 16, 16))    # what a perfect network would draw

They are called like networks, net(x, sigma, class_labels), with sigma [] or [B]. They compute in
float64 and return the precision of x. With unit=True, x is the unit variable x/√(σ² + 1), and σ
may be ∞.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from limpid.denoiser import Traits
from limpid.per_image import row_sums

ROWS = 32        # images that are compared with the data in one matrix product
COLUMNS = 1024   # the largest number of images of the data in one product,
BLOCK = 2**20    # and about the largest number of their elements
# A data set of up to KEPT elements is kept in float64; a larger one is converted block by block.
KEPT = 2**24

f64 = torch.float64
INFINITE = 1e100   # a σ that float64 cannot tell from ∞ here, but can compute with


class IdealDenoiser:
    """D(x; σ) = Σ_i p_i y_i,  p = softmax_i(−‖x − y_i‖² / 2σ²)        (Eq. 57)

    This is the optimum of denoising for a data set.

    images   [N, C, H, W], floating point, usually in [-1, 1], on the device where the work is done
    labels   one-hot [N, L], or None. With labels, the `class_labels` of a call restrict the data to
             that class; a row of zeros, like None, stands for the whole set

    Both limits are exact: at σ = 0 D is the nearest image (the mean of several at the same
    distance), at σ = ∞ the mean of all. D is differentiable in x. An image's result does not depend
    on its batch, not even in the last bit: it always takes part in matrix products of the same
    shape. Raises ValueError for shapes that do not fit, and for a class without images.
    """
    def __init__(self, images: Tensor, labels: Tensor | None = None) -> None:
        if images.ndim != 4 or not images.is_floating_point() or images.numel() == 0:
            raise ValueError('the images must be floating point [N, C, H, W] with N > 0, '
                             f'not {images.dtype} {list(images.shape)}')
        if labels is not None and not _is_one_hot(labels, len(images)):
            raise ValueError(f'the labels must be one-hot [{len(images)}, L]; these '
                             f'{list(labels.shape)} are not')
        self.images = images
        self.labels = None if labels is None else labels.to(images.device, f64)
        self.traits = Traits(image_shape=(images.shape[1], images.shape[2], images.shape[3]),
                             label_dim=0 if labels is None else labels.shape[1], unit_scale=1.0)
        self._block = min(max(BLOCK // images[0].numel(), 1), COLUMNS)
        # A common offset of all images would only cost digits in the products: it is subtracted.
        blocks = (images[i:i + self._block].to(f64) for i in self._starts())
        self.mean = torch.stack([block.sum(dim=0).flatten()
                                 for block in blocks]).sum(dim=0) / len(images)
        self._kept = [self._prepare(i) for i in self._starts()] if images.numel() <= KEPT else None

    def __call__(self, x: Tensor, sigma: Tensor, class_labels: Tensor | None = None,
                 unit: bool = False) -> Tensor:
        """Return D [B, C, H, W] for x [B, C, H, W] at noise levels sigma [] or [B].

        class_labels are one-hot [B or 1, L], or None.
        """
        if unit:
            return self(_unscaled(x, sigma), sigma, class_labels).to(_like(x))
        _, total, weighted = self._sums(*self._rows(x, sigma), self._classes(class_labels, len(x)))
        D = self.mean + weighted / total
        return D.reshape(x.shape).to(_like(x))

    def log_prob(self, x: Tensor, sigma: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """ln p(x; σ), [B] float64 in nats, for σ > 0

        This is the density of the data (of a class, if one is given) with noise of that level.
        """
        x, sigma = self._rows(x, sigma)
        classes = self._classes(class_labels, len(x))
        best, total, _ = self._sums(x, sigma, classes)
        count = len(self.images) if classes is None else self._counts(classes)
        nearest = (best - row_sums(x**2) / 2) / sigma**2
        return (
            nearest + (total[:, 0] / count).log() - x.shape[1] / 2 * (2 * math.pi * sigma**2).log()
        )

    def score(self, x: Tensor, sigma: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """∇_x ln p(x; σ) = (D(x; σ) − x)/σ²  for σ > 0        (Eq. 3)"""
        score = (self(x, sigma, class_labels) - x) / _beside(x, sigma) ** 2
        return score.to(_like(x))

    def _rows(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Return x without the mean, [B, n], and σ, [B]: float64, on the device of the data."""
        if x.shape[1:] != self.images.shape[1:]:
            raise ValueError(f'images of shape {list(x.shape[1:])} given to the ideal denoiser of '
                             f'images of shape {list(self.images.shape[1:])}')
        sigma = torch.as_tensor(sigma, dtype=f64,
                                device=self.images.device).reshape(-1).expand(len(x))
        rows = x.to(self.images.device, f64).flatten(1)
        return torch.where(sigma.isinf()[:, None], 0, rows - self.mean), sigma

    def _classes(self, class_labels: Tensor | None, batch: int) -> Tensor | None:
        """Return one-hot labels, with ones throughout for all classes: [B, L] float64."""
        if class_labels is None or not self.traits.label_dim:
            return None
        if list(class_labels.shape) not in ([batch, self.traits.label_dim],
                                            [1, self.traits.label_dim]):
            raise ValueError(f'class_labels must be [{batch}, {self.traits.label_dim}], not '
                             f'{list(class_labels.shape)}')
        classes = class_labels.to(self.images.device, f64).expand(batch, -1)
        classes = torch.where(classes.any(dim=1, keepdim=True), classes, 1)
        if not self._counts(classes).all():
            raise ValueError(f'a class was asked for of which the {len(self.images)} images hold '
                             f'none')
        return classes

    def _counts(self, classes: Tensor) -> Tensor:
        assert self.labels is not None
        return classes @ self.labels.sum(dim=0)

    def _starts(self) -> range:
        return range(0, len(self.images), self._block)

    def _prepare(self, start: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return a block of the data, float64.

        It is the images without the mean [K, n], half of their squared norms [K], and their labels
        [K, L] or None.
        """
        y = self.images[start:start + self._block].to(f64).flatten(1) - self.mean
        return (
            y,
            (y**2).sum(dim=1) / 2,
            None if self.labels is None else self.labels[start : start + self._block],
        )

    def _sums(
        self, x: Tensor, sigma: Tensor, classes: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """best = max_i a_i [B],  Σ_i w_i [B, 1],  Σ_i w_i y_i [B, n],  w_i = exp((a_i − best)/σ²)

        Here a_i = ⟨x, y_i⟩ − ‖y_i‖²/2, which differs from −‖x − y_i‖²/2 by the same amount for all
        i.
        """
        padding = -len(x) % ROWS
        x = torch.nn.functional.pad(x, (0, 0, 0, padding))
        sigma = torch.nn.functional.pad(sigma, (0, padding), value=math.inf)
        if classes is not None:
            classes = torch.nn.functional.pad(classes, (0, 0, 0, padding), value=1)
        blocks = range(0, len(x), ROWS)
        state = [_nothing(x[i:i + ROWS]) for i in blocks]
        for y, half_norms, labels in self._kept or map(self._prepare, self._starts()):
            for j, i in enumerate(blocks):
                allowed = (
                    None
                    if classes is None or labels is None
                    else classes[i : i + ROWS] @ labels.T > 0
                )
                state[j] = _add(state[j], x[i:i + ROWS], sigma[i:i + ROWS, None], y, half_norms,
                                allowed)
        best, total, weighted = (torch.cat(parts)[:len(x) - padding]
                                 for parts in zip(*state, strict=True))
        return best[:, 0], total, weighted


Sums = tuple[Tensor, Tensor, Tensor]   # best [R, 1], Σ w [R, 1], Σ w y [R, n]


def _nothing(x: Tensor) -> Sums:
    return x.new_full([len(x), 1], -1e300), x.new_zeros([len(x), 1]), torch.zeros_like(x)


def _add(sums: Sums, x: Tensor, sigma: Tensor, y: Tensor, half_norms: Tensor,
         allowed: Tensor | None) -> Sums:
    """Add the images y [K, n] to the sums; earlier weights shrink where a nearer image turns up."""
    best, total, weighted = sums
    a = x @ y.T - half_norms
    masked = a if allowed is None else a.masked_fill(~allowed, -math.inf)
    # No gradient is needed, since D does not depend on this.
    new_best = torch.maximum(best, masked.amax(dim=1, keepdim=True)).detach()
    tie = 1e-12 * (half_norms.max() + x.detach().abs().amax(dim=1, keepdim=True) ** 2 * x.shape[1])
    w = _weight((a - new_best).clamp(max=0), sigma, tie)
    if allowed is not None:
        w = w * allowed
    shrink = _weight(best - new_best, sigma, tie)
    return new_best, shrink * total + w.sum(dim=1, keepdim=True), shrink * weighted + w @ y


def _weight(distance: Tensor, sigma: Tensor, tie: Tensor) -> Tensor:
    """exp(distance/σ²); at σ = 0 it is 1 where the distance is 0 up to rounding, else 0."""
    precision = sigma**-2
    sharp = precision.isinf()
    smooth = (distance * torch.where(sharp, 0, precision)).exp()
    return torch.where(sharp, (distance > -tie).to(smooth), smooth)


def _is_one_hot(labels: Tensor, count: int) -> bool:
    return (labels.ndim == 2 and len(labels) == count and labels.shape[1] > 0
            and bool(((labels == 0) | (labels == 1)).all())
            and bool((labels.sum(dim=1) == 1).all()))


@dataclass(frozen=True)
class Gaussian:
    """The denoiser of data N(μ, c²) in every element.

    μ and c are numbers, or tensors that broadcast to [B, C, H, W]. With μ = c = 0, log_prob is the
    density of pure noise.
    """
    traits: ClassVar[Traits] = Traits(unit_scale=1.0)
    mu: Tensor | float = 0.0
    c: Tensor | float = 0.5

    def __call__(self, x: Tensor, sigma: Tensor, class_labels: Tensor | None = None,
                 unit: bool = False) -> Tensor:
        """D = (c² x + σ² μ)/(c² + σ²), in a form that holds for σ from 0 to ∞, but not for c = σ =
        0"""
        if unit:
            return self(_unscaled(x, sigma), sigma).to(_like(x))
        mu, c = self._parameters(x)
        share = 1 / (1 + (_beside(x, sigma) / c) ** 2)   # c²/(c² + σ²)
        return (mu + torch.where(share == 0, 0, share * (x.to(f64) - mu))).to(_like(x))

    def flow(self, x: Tensor, sigma_from: Tensor | float, sigma_to: Tensor | float) -> Tensor:
        """x(σ′) = μ + (x(σ) − μ) √((c² + σ′²)/(c² + σ²))

        This is where the probability flow (s = 1) carries x.
        """
        mu, c = self._parameters(x)
        ratio = torch.hypot(c, _beside(x, sigma_to)) / torch.hypot(c, _beside(x, sigma_from))
        return (mu + (x.to(f64) - mu) * ratio).to(_like(x))

    def log_prob(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """ln N(x; μ, c² + σ²), [B] float64 in nats."""
        mu, c = self._parameters(x)
        std = torch.hypot(c, _beside(x, sigma))
        return row_sums(-((x.to(f64) - mu) / std) ** 2 / 2 - std.log() - math.log(2 * math.pi)
                             / 2)

    def _parameters(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mu, c = (torch.as_tensor(value, dtype=f64, device=x.device) for value in (self.mu, self.c))
        return mu, c


@dataclass(frozen=True)
class Mixture:
    """The denoiser of data Σ_k w_k N(μ_k, c_k² I).

    weights  [K], of any sum
    means    [K]: every element is drawn on its own from a mixture of numbers; or [K, C, H, W]: a
             whole image belongs to one component
    stds     [K], where 0 makes a point (a Dirac)
    """
    traits: ClassVar[Traits] = Traits(unit_scale=1.0)
    weights: Tensor
    means: Tensor
    stds: Tensor

    def __post_init__(self) -> None:
        count = len(self.weights)
        if self.weights.ndim != 1 or self.stds.shape != (count,) or len(self.means) != count:
            raise ValueError(f'weights [K], means [K] or [K, C, H, W] and stds [K] must agree in '
                             f'K; they are {list(self.weights.shape)}, {list(self.means.shape)} '
                             f'and {list(self.stds.shape)}')

    def __call__(self, x: Tensor, sigma: Tensor, class_labels: Tensor | None = None,
                 unit: bool = False) -> Tensor:
        """D = Σ_k p_k (c_k² x + σ² μ_k)/(c_k² + σ²),  p_k ∝ w_k N(x; μ_k, (c_k² + σ²) I);  σ > 0"""
        if unit:
            return self(_unscaled(x, sigma),
                        torch.as_tensor(sigma).to(f64).clamp(max=INFINITE)).to(_like(x))
        rows, variances, means, logits = self._components(x, sigma)
        p = logits.softmax(dim=1)
        share = self._of(x, self.stds) ** 2 / variances   # c_k²/(c_k² + σ²): [R, K]
        D = (p * share).sum(dim=1, keepdim=True) * rows + (p * (1 - share)) @ means
        return D.reshape(x.shape).to(_like(x))

    def log_prob(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """ln p(x; σ), [B] float64 in nats; σ > 0 where there are points."""
        logits = self._components(x, sigma)[-1]
        return row_sums(logits.logsumexp(dim=1).reshape(len(x), -1))

    def flow(self, x: Tensor, sigma_from: Tensor | float, sigma_to: Tensor | float) -> Tensor:
        """Return x′, to which the probability flow (s = 1) carries x: F(x′; σ′) = F(x; σ).

        The flow keeps quantiles. This works for means [K] only. F = Σ_k w_k Φ((x − μ_k)/√(c_k² +
        σ²)) is inverted by bisection: x′ lies between the places to which the components, each
        alone, would carry x. Above the median the upper tail is used instead of F, so that no
        digits are lost in 1 − F.
        """
        if self.means.ndim != 1:
            raise ValueError('the flow is known for mixtures of numbers, means [K], only')
        rows, means = x.to(f64).unsqueeze(-1), self._of(x, self.means)
        old, new = (torch.hypot(self._of(x, self.stds),
                                _beside(x, sigma).unsqueeze(-1)).clamp(min=1e-300)
                    for sigma in (sigma_from, sigma_to))
        log_w = (self._of(x, self.weights) / self._of(x, self.weights).sum()).log()

        def log_tail(sign: Tensor, x: Tensor, std: Tensor) -> Tensor:
            z = sign.unsqueeze(-1) * (x - means) / std
            return (log_w + torch.special.log_ndtr(z)).logsumexp(dim=-1)

        plus = torch.ones_like(rows[..., 0])
        # +1 or −1, for the smaller of the two tails
        sign = torch.where(log_tail(plus, rows, old) < -math.log(2), plus, -plus)
        target = log_tail(sign, rows, old)
        alone = means + (rows - means) * (new / old)
        low, high = alone.amin(dim=-1), alone.amax(dim=-1)
        for _ in range(100):
            middle = (low + high) / 2
            too_low = sign * (log_tail(sign, middle.unsqueeze(-1), new) - target) < 0
            low, high = torch.where(too_low, middle, low), torch.where(too_low, high, middle)
        return ((low + high) / 2).to(_like(x))

    def _components(
        self, x: Tensor, sigma: Tensor | float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return x as rows [R, d], c² + σ² [R, K], μ [K, d] and ln w_k N(x; …) [R, K].

        A row holds the elements that belong to one component: a number, or a whole image.
        """
        means = (
            self._of(x, self.means).flatten(1)
            if self.means.ndim > 1
            else self._of(x, self.means)[:, None]
        )
        d = means.shape[1]
        rows = x.to(f64).reshape(-1, d)
        sigma = _beside(x, sigma).expand(len(x), *[1] * (x.ndim - 1)).reshape(-1)
        sigma = sigma.repeat_interleave(len(rows) // len(x))[:, None]
        variances = self._of(x, self.stds) ** 2 + sigma**2
        squares = (rows[:, None] - means).square().sum(dim=2)
        weights = self._of(x, self.weights)
        logits = (
            (weights / weights.sum()).log()
            - d / 2 * (2 * math.pi * variances).log()
            - squares / (2 * variances)
        )
        return rows, variances, means, logits

    @staticmethod
    def _of(x: Tensor, parameter: Tensor) -> Tensor:
        return parameter.to(x.device, f64)


def _unscaled(z: Tensor, sigma: Tensor | float) -> Tensor:
    """x = z √(σ² + 1), in float64."""
    return z.to(f64) * torch.hypot(_beside(z, sigma),
                                   torch.ones([], dtype=f64, device=z.device)).clamp(max=INFINITE)


def _beside(x: Tensor, sigma: Tensor | float) -> Tensor:
    """Return σ as float64 of a shape that broadcasts against x: [] or [B, 1, ...]."""
    sigma = torch.as_tensor(sigma, dtype=f64, device=x.device)
    return sigma.reshape(-1, *[1] * (x.ndim - 1)) if sigma.ndim else sigma


def _like(x: Tensor) -> torch.dtype:
    return x.dtype if x.is_floating_point() else f64
