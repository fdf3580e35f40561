"""The denoiser D(x; σ): the traits of any network, the class `Denoiser`, and wrappers.

Wherever this library takes a network, it takes any callable

    D = net(x, sigma, class_labels)

for images x [B, C, H, W] with noise of level sigma, [] or [B]. A plain function is enough. A
network that can say more about itself has an attribute `traits`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from limpid.labels import Labels
from limpid.noise_range import Steps
from limpid.preconditioning import (
    IDDPM,
    Preconditioner,
    V,
    check_finite,
    unit_coefficients,
    unit_scale,
)
from limpid.resolution import Resolution, height_and_width
from limpid.steps import DiscreteSteps
from limpid.values import Standardization, to_picture

# net(x, sigma, class_labels, **conditions) -> D, or (D, F_var) for return_variance=True
Network = Callable[..., Any]


@dataclass(frozen=True)
class Traits:
    """The properties of a network that a sampler may rely on; `Traits()` fits a plain function.

    image_shape       (C, H, W) of its images; None: any
    label_dim         length of its label vectors, 0 for an unconditional network; None: unknown
    sigma_min, sigma_max
                      the lowest and the highest noise level that it supports
    round_sigma       σ -> the level that it uses for σ, on any device; None: every σ is a level
    unit_scale        d, if it also takes the unit variable z = x/√(σ² + d²) for σ up to ∞, as
                      net(z, sigma, class_labels, unit=True); None: it does not
    no_infinity       why it cannot be asked at σ = ∞; '' if it can
    native_steps      the timesteps of the discrete schedule for which it was trained, if any
    learned_variance  whether it takes return_variance=True and then returns (D, F_var)
    label_dropout     the share of training images whose label was hidden; None: unknown
    lacks_null        the argument that must be given before its answer without a class means
                      anything; '' if nothing is missing
    sigma_from_cpu    whether it takes a single σ on the CPU for images on another device
    known_labels      the labels that occurred in its data, from which labels are drawn; None:
                      unknown, any class is as good as another
    standardization   the mean and std of its data; None: they are 8-bit images, or it is unknown
    """
    image_shape: tuple[int, int, int] | None = None
    label_dim: int | None = None
    sigma_min: float = 0.0
    sigma_max: float = math.inf
    round_sigma: Callable[[Tensor], Tensor] | None = None
    unit_scale: float | None = None
    no_infinity: str = ''
    native_steps: Steps | None = None
    learned_variance: bool = False
    label_dropout: float | None = None
    lacks_null: str = ''
    sigma_from_cpu: bool = False
    known_labels: Labels | None = None
    standardization: Standardization | None = None


def traits(net: object) -> Traits:
    """Return the `traits` of a network, even if it is inside a DistributedDataParallel.

    A network without `traits` may have attributes named like its fields instead. That includes the
    networks of EDM's programs, whose `img_channels` and `img_resolution` give the image shape.
    """
    if isinstance(net, nn.parallel.DistributedDataParallel):
        net = net.module
    told = getattr(net, 'traits', None)
    if isinstance(told, Traits):
        return told
    given = {field.name: getattr(net, field.name) for field in fields(Traits)
             if hasattr(net, field.name)}
    if hasattr(net, 'img_channels') and hasattr(net, 'img_resolution'):
        given['image_shape'] = net.img_channels, *height_and_width(net.img_resolution)
    return Traits(**given)


class Conditioned:
    """A network with its labels bound: D(x; σ) as a sampler calls it.

    net           the network
    class_labels  the third argument of the network, or None
    traits        the traits of the network
    """

    def __init__(self, net: Network, class_labels: Tensor | None = None) -> None:
        self.net, self.class_labels = net, class_labels
        self.traits = traits(net)

    @property
    def unit_scale(self) -> float:
        """d of the unit variable; 1 for a network that has none of its own."""
        d = self.traits.unit_scale
        return 1.0 if d is None else d

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Return D(x; σ) in the precision of x; sigma is [] on the CPU, or [B] beside x."""
        D: Tensor = self.net(x, self.beside(sigma, x), self.class_labels)
        return D.to(x.dtype)

    def unit(self, z: Tensor, sigma: Tensor) -> Tensor:
        """Return D(x; σ) for x = z √(σ² + d²), d = `unit_scale`; sigma is [] on the CPU, up to ∞.

        Raises ValueError at σ = ∞ for a network that cannot work there.
        """
        self.check(sigma)
        if self.traits.unit_scale is None:
            return self(z * torch.hypot(sigma, torch.full_like(sigma, self.unit_scale)), sigma)
        D: Tensor = self.net(z, self.beside(sigma, z), self.class_labels, unit=True)
        return D.to(z.dtype)

    def with_variance(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Return (D, F_var) of a network with a learned variance, in the precision of x.

        Raises ValueError for any other network; sigma is [] on the CPU.
        """
        try:
            D, F_var = self.net(x, self.beside(sigma, x), self.class_labels, return_variance=True)
        except (TypeError, ValueError) as error:
            if 'return_variance' not in str(error):
                raise
            raise ValueError("variance='learned' needs a network with variance channels (iDDPM), "
                             "which this one is not; use variance='small' or 'large'") from error
        return D.to(x.dtype), F_var.to(x.dtype)

    def check(self, sigma: Tensor) -> None:
        """Raise ValueError at σ = ∞ for a network that cannot work there."""
        takes_unit = self.traits.unit_scale is not None
        unknown = '' if takes_unit else 'it does not take the unit variable'
        check_finite(sigma, self.traits.no_infinity or unknown)

    def beside(self, sigma: Tensor, x: Tensor) -> Tensor:
        """Return sigma on the device of x, or unchanged if the network takes it on the CPU."""
        if self.traits.sigma_from_cpu:
            return sigma
        return beside(sigma, x)

    def nearest(self, sigma: Tensor) -> Tensor:
        """Return the noise levels that the network uses for sigma, on the device of sigma."""
        round_sigma = self.traits.round_sigma
        return sigma if round_sigma is None else round_sigma(sigma).to(sigma)

    def levels(self, steps: Steps, num_steps: int) -> Tensor:
        """Return the noise levels of `steps` that the network supports, and a 0: [N + 1].

        σ_0 ≥ … ≥ σ_{N−1} are float64 on the CPU, and rounded if the network has discrete levels.
        """
        sigmas = self.nearest(steps.sigmas(num_steps, self.traits.sigma_min, self.traits.sigma_max))
        return nn.functional.pad(sigmas, (0, 1))


def beside(sigma: Tensor, x: Tensor) -> Tensor:
    """Return a single sigma in the dtype and on the device of x, without waiting for the device."""
    if sigma.device == x.device:
        return sigma
    # A kernel fills the value in: a copy would wait for the device.
    return torch.full([], float(sigma), dtype=x.dtype, device=x.device)


class Denoiser(nn.Module):
    """D(x; σ) = c_skip(σ) x + c_out(σ) F(c_in(σ) x; c_noise(σ))        (Eq. 7)

    model         F, the backbone, with img_channels outputs, or twice as many with a learned
                  variance
    precond       c_skip, c_out, c_in and c_noise: a frozen dataclass, not in the state dict
    sigma_min, sigma_max
                  the lowest and the highest noise level that the network supports
    img_resolution, img_channels, label_dim
                  the shape of its images, whose resolution is (H, W) where they are not square,
                  and the length of its label vectors (0: unconditional)
    use_fp16      whether the backbone works in half precision, except on CPUs;
                  `net.dtype = torch.bfloat16` makes it bfloat16 on any device
    label_dropout the share of training images whose label was hidden, if that is known
    known_labels  the labels that occurred in its data, if they are known; set from outside
    standardization
                  the mean and std of its data, unless they are 8-bit images; set from outside

    The discrete levels of IDDPM are kept as the buffer u [M + 1], so that a state dict brings its
    own.
    """

    def __init__(self, model: nn.Module, precond: Preconditioner, sigma_min: float,
                 sigma_max: float, img_resolution: Resolution, img_channels: int,
                 label_dim: int = 0, use_fp16: bool = False,
                 label_dropout: float | None = None) -> None:
        super().__init__()
        self.img_resolution, self.img_channels = img_resolution, img_channels
        self.label_dim, self.label_dropout = label_dim, label_dropout
        self.known_labels: Labels | None = None
        self.standardization: Standardization | None = None
        self.sigma_min, self.sigma_max = sigma_min, sigma_max
        self.dtype = torch.float16 if use_fp16 else torch.float32
        self._precond = precond
        if isinstance(precond, IDDPM):
            # Where new tensors go: torch.get_default_device() forgets `with torch.device(...)`
            # before torch 2.8.
            u = precond.levels.u.to(torch.empty(0).device, torch.float32)
            self.register_buffer('u', u)
        self.model = model

    @property
    def precond(self) -> Preconditioner:
        """The preconditioner, with the levels of the buffer u if there is one."""
        if isinstance(self._precond, IDDPM):
            return replace(self._precond, table=self.get_buffer('u'))
        return self._precond

    @property
    def use_fp16(self) -> bool:
        """True if the backbone works in half precision."""
        return self.dtype == torch.float16

    @property
    def traits(self) -> Traits:
        """The properties that a sampler may rely on."""
        c = self._precond
        schedule = c.schedule if isinstance(c, V) else None
        return Traits(
            image_shape=(self.img_channels, *height_and_width(self.img_resolution)),
            label_dim=self.label_dim, sigma_min=self.sigma_min, sigma_max=self.sigma_max,
            round_sigma=self.round_sigma, unit_scale=unit_scale(c), no_infinity=c.no_infinity,
            native_steps=None if schedule is None else DiscreteSteps(schedule),
            learned_variance=isinstance(c, IDDPM), label_dropout=self.label_dropout,
            known_labels=self.known_labels, standardization=self.standardization)

    def forward(self, x: Tensor, sigma: Tensor | float, class_labels: Tensor | None = None,
                force_fp32: bool = False, *, unit: bool = False, return_variance: bool = False,
                **model_kwargs: Tensor | None) -> Tensor | tuple[Tensor, Tensor]:
        """Return the denoised x, float32 [B, C, H, W].

        x                [B, C, H, W]
        sigma            noise levels [], [B] or [B, 1, 1, 1]
        class_labels     [B or 1, label_dim]; None stands for no class, a vector of zeros
        force_fp32       whether the backbone works in float32 whatever its precision is
        unit             whether x is the unit variable x/√(σ² + d²), d = traits.unit_scale. Then σ
                         may be ∞, unless traits.no_infinity says otherwise (ValueError, if σ is
                         given on the CPU)
        return_variance  whether to return (D, F_var): also the outputs of F beyond the first C,
                         float32 [B, C, H, W]
        model_kwargs     further inputs of the backbone, such as augment_labels

        Raises ValueError for another number of noise levels than 1 or B, for labels of another
        length, and for return_variance where the backbone has other than 2C outputs.
        """
        x = x.to(torch.float32)
        if unit:
            check_finite(sigma, self._precond.no_infinity)
        sigma = self._noise_levels(sigma, x)
        labels = self._label_vectors(class_labels, x)
        on_cpu_fp16 = self.use_fp16 and x.device.type == 'cpu'
        dtype = torch.float32 if force_fp32 or on_cpu_fp16 else self.dtype
        c = self.precond
        if unit:
            c_skip, c_out, c_in = unit_coefficients(c, sigma)
        else:
            c_skip, c_out, c_in = c.c_skip(sigma), c.c_out(sigma), c.c_in(sigma)
        F = self.model((c_in * x).to(dtype), c.c_noise(sigma).flatten(), labels, **model_kwargs)
        D_x: Tensor = c_skip * x + c_out * F[:, :self.img_channels].to(torch.float32)
        return (D_x, self._variance(F)) if return_variance else D_x

    def _variance(self, F: Tensor) -> Tensor:
        """Return the outputs of the backbone beyond the image."""
        if F.shape[1] != 2 * self.img_channels:
            raise ValueError(f'return_variance needs a network with {2 * self.img_channels} '
                             f'outputs (iDDPM); this one has {F.shape[1]}')
        return F[:, self.img_channels:].to(torch.float32)

    def _noise_levels(self, sigma: Tensor | float, x: Tensor) -> Tensor:
        sigma = torch.as_tensor(sigma, dtype=torch.float32)
        if sigma.numel() not in (1, len(x)):
            raise ValueError(f'sigma has {sigma.numel()} noise levels for {len(x)} images; give '
                             'one, or one per image')
        # Waiting for this copy would mean waiting for all work that the device has queued.
        return sigma.to(x.device, non_blocking=x.is_cuda).reshape(-1, 1, 1, 1)

    def _label_vectors(self, class_labels: Tensor | None, x: Tensor) -> Tensor | None:
        if not self.label_dim:
            return None
        if class_labels is None:
            return torch.zeros([1, self.label_dim], device=x.device)
        if class_labels.shape[-1] != self.label_dim:
            raise ValueError(f'class_labels has shape {list(class_labels.shape)}; this network '
                             f'takes one-hot vectors [batch, {self.label_dim}]')
        return class_labels.to(x).reshape(-1, self.label_dim)

    def round_sigma(self, sigma: Tensor | float) -> Tensor:
        """Return the noise level that the network uses for sigma, in sigma's dtype and device."""
        return self.precond.nearest(torch.as_tensor(sigma))


class Counting:
    """A network that counts its evaluations, and optionally keeps its noise levels and answers.

    calls   evaluations of a batch, or of those of its images that are not finished yet
    images  evaluations of single images
    sigmas  the noise level of each call, or their mean where each image has its own
            (with `keep_sigmas`)
    frames  {σ: uint8 pictures [B, 1 or 3, H, W]}: the last denoised batch at each noise level
            (with `keep_frames`)
    """

    def __init__(self, net: Network, keep_sigmas: bool = True, keep_frames: bool = False) -> None:
        self.net = net
        self.keep_sigmas, self.keep_frames = keep_sigmas, keep_frames
        self.calls = self.images = 0
        self.sigmas: list[Tensor] = []
        self.frames: dict[float, Tensor] = {}

    @property
    def traits(self) -> Traits:
        """The traits of the network."""
        return traits(self.net)

    def __call__(self, x: Tensor, sigma: Tensor, class_labels: Tensor | None = None,
                 **conditions: Any) -> Any:  # noqa: ANN401 (what the network takes and answers)
        D = self.net(x, sigma, class_labels, **conditions)
        self.calls += 1   # where that was not too much for the memory
        self.images += len(x)
        if self.keep_sigmas:
            self.sigmas.append(sigma.detach().mean())   # stays on its device, so nothing waits
        if self.keep_frames:
            if sigma.numel() > 1:
                raise ValueError('a trajectory needs one noise level for all images; this sampler '
                                 'has one for each')
            self.frames[float(sigma)] = to_picture(D[0] if isinstance(D, tuple) else D).cpu()
        return D

    def noise_levels(self) -> list[float]:
        """Return the noise levels of all calls, in order."""
        return torch.stack(self.sigmas).tolist() if self.sigmas else []
