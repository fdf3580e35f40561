"""A U-Net of Hugging Face's diffusers as a denoiser.

Such a network F was trained on the unit variable z = a y + b ε = x/√(σ² + 1), at the timesteps
t = 0 … T − 1 of a table of noise levels, to predict one of three things:

    epsilon        F = ε̂    D = (z − b F)/a        not at σ = ∞: noise alone tells nothing of y
    v_prediction   F = v̂    D = a z − b F          (Lin et al. 2023, Eq. 19)
    sample         F = ŷ    D = F

with a = √ᾱ_t = 1/√(σ² + 1) and b = √(1 − ᾱ_t) = σ/√(σ² + 1).
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from limpid.denoiser import Denoiser, Traits
from limpid.levels import DiscreteSchedule
from limpid.preconditioning import NoisePrediction, V, check_finite
from limpid.resolution import Resolution
from limpid.steps import DiscreteSteps
from limpid.unit import Level

TIMESTEPS = ('nearest', 'interpolated')


@dataclass(frozen=True)
class Prediction:
    """c_in = a, c_noise = t: a network that receives z and a timestep of a table.

    schedule   the table of noise levels σ_t, of which the last may be ∞
    timesteps  'nearest': the network receives the t of the nearest level, and σ counts as σ_t;
               'interpolated': it receives a fractional t, linear in ln σ, and σ stays as it is
    """
    no_infinity: ClassVar[str] = ''
    schedule: DiscreteSchedule
    timesteps: str = 'nearest'

    @property
    def _levels(self) -> V:
        return V(noise_label='timestep', schedule=self.schedule)   # which knows the nearest level

    def c_in(self, sigma: Tensor) -> Tensor:
        return Level.of_sigma(sigma).a

    def c_noise(self, sigma: Tensor) -> Tensor:
        """Return t in the shape of sigma: the nearest, int64, or a fraction, float32."""
        if self.timesteps == 'nearest':
            return self._levels.index(sigma)
        levels, level = _log_sigmas(self.schedule, sigma.device), sigma.to(torch.float32).log()
        t = (torch.bucketize(level, levels, right=True) - 1).clamp(0, len(levels) - 2)
        share = (level - levels[t]) / (levels[t + 1] - levels[t])
        return t + share.nan_to_num(nan=1.0).clamp(0, 1)   # ∞/∞ at σ = ∞ itself

    def nearest(self, sigma: Tensor) -> Tensor:
        return self._levels.nearest(sigma) if self.timesteps == 'nearest' else sigma


@dataclass(frozen=True)
class Epsilon(Prediction):
    """1,  −σ,  a,  t"""
    no_infinity: ClassVar[str] = NoisePrediction.no_infinity

    def c_skip(self, sigma: Tensor) -> Tensor:
        return torch.ones_like(sigma)

    def c_out(self, sigma: Tensor) -> Tensor:
        return -sigma

    def denoised(self, level: Level, z: Tensor, F: Tensor) -> Tensor:
        """D = (z − b F)/a"""
        return (z - level.b * F) / level.a


@dataclass(frozen=True)
class Velocity(Prediction):
    """a²,  −b,  a,  t"""

    def c_skip(self, sigma: Tensor) -> Tensor:
        return Level.of_sigma(sigma).a ** 2

    def c_out(self, sigma: Tensor) -> Tensor:
        return -Level.of_sigma(sigma).b

    def denoised(self, level: Level, z: Tensor, F: Tensor) -> Tensor:
        """D = a z − b F        (Lin et al. 2023, Eq. 19)"""
        return level.denoised(z, F)


@dataclass(frozen=True)
class Sample(Prediction):
    """0,  1,  a,  t"""

    def c_skip(self, sigma: Tensor) -> Tensor:
        return torch.zeros_like(sigma)

    def c_out(self, sigma: Tensor) -> Tensor:
        return torch.ones_like(sigma)

    def denoised(self, level: Level, z: Tensor, F: Tensor) -> Tensor:
        """D = F"""
        return F


# By diffusers' prediction_type.
PREDICTIONS: dict[str, type[Epsilon] | type[Velocity] | type[Sample]] = {
    'epsilon': Epsilon, 'v_prediction': Velocity, 'sample': Sample}


class DiffusersDenoiser(Denoiser):
    """D(x; σ) of Eq. 7 from a U-Net of diffusers, computed in z, where it is exact up to σ = ∞.

    model        the U-Net; `net.dtype` is the precision of its parameters, which
                 net.to(torch.bfloat16) changes too. Inputs and results stay float32
    precond      an entry of PREDICTIONS, with its table of noise levels
    embeddings   [label_dim + 1, tokens, dim] for cross-attention: one for each label, and one for
                 none
    lacks_null   the parameter of read_diffusers that would say how training expressed that there is
                 no class. Without it the network receives zeros, which it has never seen. '' if
                 nothing is missing
    """

    def __init__(self, model: nn.Module, precond: Epsilon | Velocity | Sample,
                 img_resolution: Resolution, img_channels: int, label_dim: int = 0,
                 embeddings: Tensor | None = None, lacks_null: str = '') -> None:
        sigmas = precond.schedule.sigma
        if precond.no_infinity:
            sigmas = sigmas[sigmas.isfinite()]
        super().__init__(model, precond, sigmas[0].item(), sigmas[-1].item(), img_resolution,
                         img_channels, label_dim)
        self.prediction, self.lacks_null = precond, lacks_null
        self.embeddings: Tensor | None
        self.register_buffer('embeddings', embeddings)

    @property
    def schedule(self) -> DiscreteSchedule:
        """The table of noise levels."""
        return self.prediction.schedule

    @property
    def timesteps(self) -> str:
        """The rule that turns noise levels into timesteps: 'nearest' or 'interpolated'."""
        return self.prediction.timesteps

    @property
    def dtype(self) -> torch.dtype:   # type: ignore[override]
        """The precision of the parameters."""
        return next(self.model.parameters()).dtype

    @dtype.setter
    def dtype(self, dtype: torch.dtype) -> None:
        if 'model' in self._modules:   # it does not exist yet within Denoiser.__init__
            self.model.to(dtype)

    @property
    def traits(self) -> Traits:
        """The traits of a Denoiser, with the timesteps of the table and the last one included."""
        outputs = config_of(self.model)['out_channels']
        return replace(super().traits, native_steps=DiscreteSteps(self.schedule),
                       learned_variance=bool(outputs == 2 * self.img_channels),
                       lacks_null=self.lacks_null)

    def timestep(self, sigma: Tensor) -> Tensor:
        """Return the t that the network receives for noise levels, in the shape of sigma."""
        return self.prediction.c_noise(sigma)

    def forward(self, x: Tensor, sigma: Tensor | float,   # type: ignore[override]
                class_labels: Tensor | None = None, *, unit: bool = False,
                return_variance: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """Return the denoised x, float32 [B, C, H, W].

        x                [B, C, H, W]
        sigma            noise levels [], [B] or [B, 1, 1, 1]
        class_labels     [B or 1, label_dim], one-hot; a row of zeros, like None, stands for no
                         class
        unit             whether x is the unit variable z = x/√(σ² + 1). Then σ may be ∞, unless
                         traits.no_infinity says otherwise
        return_variance  whether to return (D, F_var): also the outputs of F beyond the first C,
                         float32 [B, C, H, W], which mean what iDDPM's do (variance_type
                         learned_range)
        """
        x = x.to(torch.float32)
        check_finite(sigma, self.prediction.no_infinity)
        sigma = self._noise_levels(sigma, x)
        labels = self._label_vectors(class_labels, x)
        level = Level.of_sigma(sigma)
        z = x if unit else level.a * x
        F = self.model(z.to(self.dtype), self.timestep(sigma.flatten()), return_dict=False,
                       **self._conditions(labels, len(x)))[0].to(torch.float32)
        D_x = self.prediction.denoised(level, z, F[:, :self.img_channels])
        return (D_x, self._variance(F)) if return_variance else D_x

    def _conditions(self, labels: Tensor | None, count: int) -> dict[str, Tensor]:
        """Return the keywords of F for one-hot labels: no class is the last entry of its table."""
        if labels is None:
            return {}
        labels = labels.expand(count, -1)
        index = torch.where(labels.any(dim=1), labels.argmax(dim=1), self.label_dim)
        if self.embeddings is None:
            return {'class_labels': index}
        return {'encoder_hidden_states': self.embeddings[index]}


def config_of(model: nn.Module) -> Mapping[str, Any]:
    """Return the configuration of a model of diffusers, by the names of its arguments."""
    return cast(Mapping[str, Any], model.config)


@functools.lru_cache(maxsize=16)
def _log_sigmas(schedule: DiscreteSchedule, device: torch.device) -> Tensor:
    """Return ln σ_t, [T] float32, which stays on the device."""
    return schedule.sigma.log().to(device, torch.float32)
