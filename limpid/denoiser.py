"""The denoiser D(x; σ): what a sampler may rely on of any, ours, and what is wrapped around one."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from limpid.levels import IDDPMLevels
from limpid.pixels import to_uint8
from limpid.preconditioning import IDDPM, Preconditioner, V, check_finite, unit_coefficients, unit_scale
from limpid.steps import DiscreteSteps, Discretization


class Conditioned:
    """D(x; σ) with the labels bound, and what a sampler may ask of a network.

    `net(x, sigma, class_labels)` returns D for x [B, C, H, W] and sigma [] or [B]. Its attributes
    `sigma_min`, `sigma_max` and `round_sigma` are optional: absent, they mean 0, ∞ and the
    identity. A network with the attribute `unit_scale`, d, also takes `net(z, sigma, class_labels,
    unit=True)` with the unit variable z = x/√(σ² + d²) for σ up to ∞, which `no_infinity` may
    forbid: a reason, or ''. With `sigma_from_cpu` it takes a single sigma on the CPU.
    """

    def __init__(self, net: Callable[..., Tensor], class_labels: Tensor | None = None) -> None:
        self.net = net
        self.class_labels = class_labels
        self.sigma_min = float(getattr(net, 'sigma_min', 0.0))
        self.sigma_max = float(getattr(net, 'sigma_max', math.inf))
        self.takes_unit = hasattr(net, 'unit_scale')
        self.unit_scale = float(getattr(net, 'unit_scale', 1.0))

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """x and the result in the sampler's precision; sigma [] on the CPU, or [B] beside x."""
        return self.net(x, self.beside(sigma, x), self.class_labels).to(x.dtype)

    def unit(self, z: Tensor, sigma: Tensor) -> Tensor:
        """D(x; σ) of x = z √(σ² + d²), d = `unit_scale`, for σ up to ∞; sigma [] on the CPU.

        ValueError at σ = ∞ for networks that do not offer it.
        """
        self.check(sigma)
        if self.takes_unit:
            return self.net(z, self.beside(sigma, z), self.class_labels, unit=True).to(z.dtype)
        return self(z * torch.hypot(sigma, torch.full_like(sigma, self.unit_scale)), sigma)

    def check(self, sigma: Tensor) -> None:
        """ValueError at σ = ∞ for networks that cannot work there."""
        unknown = '' if self.takes_unit else 'it does not take the unit variable'
        check_finite(sigma, getattr(self.net, 'no_infinity', '') or unknown)

    def beside(self, sigma: Tensor, x: Tensor) -> Tensor:
        """sigma where the network takes it: on the device of x, unless it says otherwise."""
        if sigma.device == x.device or getattr(self.net, 'sigma_from_cpu', False):
            return sigma
        # Filled in by a kernel: a copy would wait for the device.
        return torch.full([], float(sigma), dtype=x.dtype, device=x.device)

    def nearest(self, sigma: Tensor) -> Tensor:
        """The noise levels the network takes sigma for, on the CPU."""
        round_sigma = getattr(self.net, 'round_sigma', None)
        return sigma if round_sigma is None else round_sigma(sigma).to(sigma)

    def levels(self, discretization: Discretization, num_steps: int) -> Tensor:
        """σ_0 ≥ … ≥ σ_{N−1} of the discretization that this network supports, then σ_N = 0: [N +
        1]."""
        sigmas = self.nearest(discretization.sigmas(num_steps, self.sigma_min, self.sigma_max))
        return torch.nn.functional.pad(sigmas, (0, 1))


class Denoiser(nn.Module):
    """D(x; σ) = c_skip(σ) x + c_out(σ) F(c_in(σ) x; c_noise(σ))        (Eq. 7)

    model        F, the backbone, with img_channels outputs, or twice as many with a learned
                 variance
    precond      c_skip, c_out, c_in, c_noise: a frozen dataclass, no part of the state dict
    sigma_min, sigma_max
                 the noise levels that the network supports
    use_fp16     the backbone works in half precision, except on CPUs; `net.dtype = torch.bfloat16`
                 makes it bfloat16 on any device
    Discrete levels (IDDPM) are kept as the buffer u [M + 1], so that weights bring their own.
    """

    def __init__(self, model: nn.Module, precond: Preconditioner, sigma_min: float,
                 sigma_max: float, img_resolution: int, img_channels: int, label_dim: int = 0,
                 use_fp16: bool = False) -> None:
        super().__init__()
        self.img_resolution, self.img_channels, self.label_dim = (img_resolution, img_channels,
                                                                  label_dim)
        self.sigma_min, self.sigma_max = sigma_min, sigma_max
        self.dtype = torch.float16 if use_fp16 else torch.float32
        self._precond = precond
        if isinstance(precond, IDDPM):
            self.register_buffer('u',
                                 _levels(precond.levels).to(torch.get_default_device(),
                                                            torch.float32))
        self.model = model

    @property
    def precond(self) -> Preconditioner:
        return replace(self._precond, table=self.u) if isinstance(self._precond,
                                                                  IDDPM) else self._precond

    @property
    def use_fp16(self) -> bool:
        return self.dtype == torch.float16

    @property
    def unit_scale(self) -> float:
        """d of the unit variable that `forward` takes with unit=True."""
        return unit_scale(self._precond)

    @property
    def no_infinity(self) -> str:
        """Why this network cannot work at σ = ∞; '' where it can."""
        return self._precond.no_infinity

    @property
    def learned_variance(self) -> bool:
        """Whether `forward` takes return_variance=True."""
        return isinstance(self._precond, IDDPM)

    @property
    def native_steps(self) -> Discretization | None:
        """The timesteps of the discrete schedule for which the network was trained, if there was
        one."""
        schedule = self._precond.schedule if isinstance(self._precond, V) else None
        return None if schedule is None else DiscreteSteps(schedule)

    def forward(self, x: Tensor, sigma: Tensor | float, class_labels: Tensor | None = None,
                force_fp32: bool = False, *, unit: bool = False, return_variance: bool = False,
                **model_kwargs: Tensor | None) -> Tensor | tuple[Tensor, Tensor]:
        """The denoised x, float32 [B, C, H, W], of x [B, C, H, W] at noise levels sigma [], [B] or
        [B, 1, 1, 1].

        class_labels [B or 1, label_dim]; None stands for no class, a vector of zeros. With unit, x
        is the unit variable x/√(σ² + d²), d = unit_scale, and σ may be ∞ unless `no_infinity` says
        otherwise (ValueError, for σ given on the CPU). With return_variance, (D, F_var): also the
        outputs of F beyond the first C, float32 [B, C, H, W]. Further keywords (augment_labels) go
        to the backbone.
        """
        x = x.to(torch.float32)
        if unit:
            check_finite(sigma, self.no_infinity)
        sigma = self._noise_levels(sigma, x)
        labels = self._label_vectors(class_labels, x)
        on_cpu_fp16 = self.use_fp16 and x.device.type == 'cpu'
        dtype = torch.float32 if force_fp32 or on_cpu_fp16 else self.dtype
        c = self.precond
        coefficients = unit_coefficients(c, sigma) if unit else (c.c_skip(sigma), c.c_out(sigma),
                                                                 c.c_in(sigma))
        c_skip, c_out, c_in = coefficients
        F = self.model((c_in * x).to(dtype), c.c_noise(sigma).flatten(), labels, **model_kwargs)
        F_x, F_var = F[:, :self.img_channels].to(torch.float32), F[:, self.img_channels:]
        D_x = c_skip * x + c_out * F_x
        if not return_variance:
            return D_x
        if F_var.shape != F_x.shape:
            raise ValueError(f'return_variance needs a network with {2 * self.img_channels} '
                             f'outputs (iDDPM); this one has {F.shape[1]}')
        return D_x, F_var.to(torch.float32)

    def _noise_levels(self, sigma: Tensor | float, x: Tensor) -> Tensor:
        sigma = torch.as_tensor(sigma, dtype=torch.float32)
        if sigma.numel() not in (1, len(x)):
            raise ValueError(f'sigma has {sigma.numel()} noise levels for {len(x)} images; give '
                             f'one, or one per image')
        # Waiting for this copy would be waiting for all that the device still has to do.
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
        """The noise level that the network will take sigma for, in the dtype and on the device of
        sigma."""
        return self.precond.nearest(torch.as_tensor(sigma))


def _levels(levels: IDDPMLevels) -> Tensor:
    """The table in float64, on the CPU also where networks are built without values
    (torch.device('meta'))."""
    with torch.device('cpu'):
        return levels.u


class Counting:
    """A network that keeps count: evaluations of each image, the noise levels, and optionally its
    answers.

    calls    evaluations of a batch, or of those of its images that are not ready yet
    images   evaluations of single images
    sigmas   the noise level of each call; for levels per image, their mean
             (`keep_sigmas`)
    frames   {σ: uint8 images [B, C, H, W]}: the last denoised batch at each noise level
             (`keep_frames`)
    """

    def __init__(self, net: Any, keep_sigmas: bool = True,
                 keep_frames: bool = False) -> None:  # noqa: ANN401 (any denoiser)
        self.net = net
        self.keep_sigmas, self.keep_frames = keep_sigmas, keep_frames
        self.calls = self.images = 0
        self.sigmas: list[Tensor] = []
        self.frames: dict[float, Tensor] = {}

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        return getattr(self.net, name)

    def __call__(self, x: Tensor, sigma: Tensor, class_labels: Tensor | None = None,
                 **conditions: Any) -> Any:  # noqa: ANN401
        self.calls += 1
        self.images += len(x)
        if self.keep_sigmas:
            # a number on the device: nobody waits for it now
            self.sigmas.append(sigma.detach().mean())
        D = self.net(x, sigma, class_labels, **conditions)
        if self.keep_frames:
            if sigma.numel() > 1:
                raise ValueError('a trajectory needs one noise level for all images; this sampler '
                                 'has one for each')
            self.frames[float(sigma)] = to_uint8(D[0] if isinstance(D, tuple) else D).cpu()
        return D

    def noise_levels(self) -> list[float]:
        """The noise levels of all calls, in order."""
        return torch.stack(self.sigmas).tolist() if self.sigmas else []
