"""The samplers of previous work that the paper compares with (Figures 2 and 4, Tables 3 and 4).

All of them use the network through D, so that each works with every network. `original=True` keeps
what the paper calls oversights of the published programs. Ancestral and DDIM work in the unit
variable z = x/√(σ² + d²) with the network's own d (limpid/unit.py), and so can start at σ = ∞,
where z = ε.
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from limpid.checks import one_of, positive
from limpid.denoiser import Conditioned
from limpid.levels import posterior_variances
from limpid.per_image import sum_squares
from limpid.samplers import FINALS, RandnLike
from limpid.schedules import (
    NoScaling,
    Scaling,
    VPScaling,
    VPSchedule,
    first_sample,
    times_of,
    vp_through,
)
from limpid.unit import Level, change_of_scale


@dataclass(frozen=True)
class EulerMaruyama:
    """x_{i+1} = x_i + h β(t_i) (x_i/2 + score) + √(h β(t_i)) ξ,
    score = (s D(x_i/s; σ) − x_i)/(s² σ²)

    The sampler of the VP SDE, in the scaled frame: s = 1/√(1 + σ²), x_0 ~ N(0, I). The last step
    adds no noise. (Song et al. 2021; Figure 4a; Appendix C.1.) Evaluations of the network: N. It
    was made for VPSteps, but works with any steps.

    schedule       the VP schedule; None stands for the one through the noise range of the steps
    deterministic  whether to use half the score and no noise, which is Euler's method for the flow
                   (Figure 2a)
    original       whether h = 1/N at every step, although the t_i are spaced by (1 − ε_s)/(N − 1)
                   and the last step, to 0, is shorter. This needs steps uniform in t: VPSteps
    """
    schedule: VPSchedule | None = None
    deterministic: bool = False
    original: bool = False

    def __call__(self, denoise: Conditioned, noise: Tensor, sigmas: Tensor,
                 randn_like: RandnLike) -> Tensor:
        schedule, scaling = self.schedule or vp_through(sigmas), VPScaling()
        num_steps = len(sigmas) - 1
        times = times_of(schedule, sigmas)
        steps = times[:-1] - times[1:]
        if self.original:
            if num_steps > 2 and not torch.allclose(steps[:-1], steps[0], rtol=1e-6, atol=0):
                raise ValueError('original: steps of 1/N need time steps that are uniform in t; '
                                 'use the vp time steps')
            steps = torch.full_like(steps, 1 / num_steps)
        x = noise
        for i, (t, h, sigma) in enumerate(zip(times[:-1], steps, sigmas[:-1], strict=True)):
            s, beta = scaling.s(sigma), schedule.beta(t)
            score = (s * denoise(x / s, sigma) - x) / (s * sigma) ** 2
            x = x + h * beta * (x + (score if self.deterministic else 2 * score)) / 2
            if not self.deterministic and i < num_steps - 1:
                x = x + (h * beta).sqrt() * randn_like(x)
        return x


PREDICTORS = ('reverse-diffusion', 'ancestral', 'probability-flow')
CORRECTORS = ('langevin', 'ald', 'none')


@dataclass(frozen=True)
class PredictorCorrector:
    """Langevin steps at every noise level a = σ_i, and then one step to b = σ_{i+1}

    x_0 ~ N(0, a_0² s² I); the score is g = (D(x/s; a) − x/s)/(s a²), and α = (s_a/s_b)² (1 for VE).
      langevin   x <- x + e g + √(2e) z,  e = 2α (snr ‖z‖/‖g‖)²
      ald        the same with e = 2α (snr · s_a a)²
      reverse-diffusion   x <- (2 − s_a/s_b) x + s_a² (a² − b²) g + s_a √(a² − b²) ξ
      ancestral           x <- s_b [D + (b/a)² (x/s_a − D)] + w ξ,  w = b √(1 − (b/a)²) for VE and
                          w = √((a² − b²)/(1 + a²)) for VP
      probability-flow    reverse-diffusion with half the score and no noise
    The last predictor adds no noise. (Song et al. 2021; Figure 4b; Appendix C.2.) With
    corrector='none', probability-flow is the original deterministic sampler of Figure 2b: Euler's
    method with σ = √t. Evaluations of the network: N (1 + corrector_steps), or N without a
    corrector. It was made for VESteps, but works with any steps.

    snr       signal-to-noise ratio of the corrector, called r by Song et al. 2021
    scaling   NoScaling for the VE SDE, VPScaling for the VP SDE
    original  whether ‖z‖ and ‖g‖ are averaged over the batch. Otherwise each image has its own, and
              does not depend on the other images of its batch
    """
    snr: float = 0.16
    predictor: str = 'reverse-diffusion'
    corrector: str = 'langevin'
    corrector_steps: int = 1
    scaling: Scaling = NoScaling()
    original: bool = False

    def __post_init__(self) -> None:
        one_of('predictor', self.predictor, PREDICTORS)
        one_of('corrector', self.corrector, CORRECTORS)
        positive('snr', self.snr)
        if self.corrector_steps < 0:
            raise ValueError(f'corrector_steps must be 0 or more, not {self.corrector_steps}')

    def __call__(self, denoise: Conditioned, noise: Tensor, sigmas: Tensor,
                 randn_like: RandnLike) -> Tensor:
        x = first_sample(noise, sigmas[0], self.scaling)
        for a, b in pairwise(sigmas):
            if self.corrector != 'none':
                for _ in range(self.corrector_steps):
                    x = self.correct(denoise, x, a, b, randn_like(x))
            x, std = self.predict(x, denoise(x / self.scaling.s(a), a), a, b)
            if b > 0 and self.predictor != 'probability-flow':
                x = x + std * randn_like(x)
        return x

    def correct(self, denoise: Conditioned, x: Tensor, a: Tensor, b: Tensor, z: Tensor) -> Tensor:
        """Take one Langevin step at noise level a."""
        s = self.scaling.s(a)
        g = (denoise(x / s, a) - x / s) / (s * a**2)
        alpha = (s / self.scaling.s(b)) ** 2
        if self.corrector == 'ald':
            e: Tensor = 2 * alpha * (self.snr * s * a) ** 2
        else:
            noise_norm, score_norm = sum_squares(z).sqrt(), sum_squares(g).sqrt()
            if self.original:
                noise_norm, score_norm = noise_norm.mean(), score_norm.mean()
            e = 2 * alpha * (self.snr * noise_norm / score_norm) ** 2
        return x + e * g + (2 * e).sqrt() * z

    def predict(self, x: Tensor, D: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean of x at noise level b, and the standard deviation of the noise to add."""
        s_a, s_b = self.scaling.s(a), self.scaling.s(b)
        q = (b / a) ** 2
        towards = (1 - q) * (D - x / s_a)   # (a² − b²) times the score of x/s
        if self.predictor == 'ancestral':
            # √β of this step for VP and √β̃ for VE, as in Song's programs
            vp = isinstance(self.scaling, VPScaling)
            std = ((a**2 - b**2) / (1 + a**2)).sqrt() if vp else s_b * b * (1 - q).sqrt()
            return s_b * (x / s_a + towards), std
        share = 0.5 if self.predictor == 'probability-flow' else 1.0
        return (2 - s_a / s_b) * x + share * s_a * towards, s_a * a * (1 - q).sqrt()


def _refuse_infinity(sigma: Tensor) -> None:
    if math.isinf(sigma):
        raise ValueError("variance='learned' cannot start at sigma = inf; use variance='small' or "
                         "'large'")


VARIANCES = ('learned', 'small', 'large')


@dataclass(frozen=True)
class Ancestral:
    """z′ = a′ (1 − q) D/d + (a/a′) (b′/b)² z + (a′/d) w ξ,  q = (σ′/σ)²,  from σ to σ′;  z_N = D/d

    In the unscaled frame this is x′ = D + q (x − D) + w ξ: the reverse Markov chain of DDPM and
    iDDPM (Ho et al. 2020; Nichol & Dhariwal 2021; Figure 4c; Lin et al. 2023, Eq. 20), for any
    noise levels. x_0 ~ N(0, (1 + σ_0²) I), which is N(0, I) in the VP frame. A repeated level is
    skipped. Evaluations of the network: N. It was made for IDDPMSteps and DiscreteSteps, but works
    with any steps. (The ancestral predictor of Song et al. 2021 is 'small' for VE and 'large' for
    VP.)

    variance  ln w² = ν ln w_hi² + (1 − ν) ln w_lo² (see posterior_variances); 'small' is ν = 0,
              'large' ν = 1, and 'learned' is ν = (F_var + 1)/2 from the network's variance channels
    clip      whether D is clipped to [−1, 1]
    """
    from_infinity: ClassVar[bool] = True
    variance: str = 'learned'
    clip: bool = False

    def __post_init__(self) -> None:
        one_of('variance', self.variance, VARIANCES)

    def __call__(self, denoise: Conditioned, noise: Tensor, sigmas: Tensor,
                 randn_like: RandnLike) -> Tensor:
        d = denoise.unit_scale
        z = noise * change_of_scale(sigmas[0], 1.0, d)
        for sigma, sigma_next in pairwise(sigmas):
            if sigma == sigma_next:
                continue
            here, there = Level.of_sigma(sigma, d), Level.of_sigma(sigma_next, d)
            nu: Tensor | float = 1.0 if self.variance == 'large' else 0.0
            if self.variance == 'learned':
                _refuse_infinity(sigma)
                D, F_var = denoise.with_variance(z * (d / here.a), sigma)
                nu = (F_var + 1) / 2
            else:
                D = denoise.unit(z, sigma)
            D = D.clamp(-1, 1) if self.clip else D
            if sigma_next == 0:
                return D
            q, log_lo, log_hi = posterior_variances(sigma, sigma_next)
            w = (0.5 * (nu * log_hi + (1 - nu) * log_lo)).exp()
            z = (there.a / d * (1 - q)) * D + (here.a / there.a * (there.b / here.b) ** 2) * z
            z = z + there.a / d * w * randn_like(z)
        return d * z


@dataclass(frozen=True)
class DDIM:
    """z′ = a′ D/d + √(b′² − w²) e + w ξ,  e = (z − a D/d)/b,  w = η b′ √(1 − (σ′/σ)²),  from σ to
    σ′

    (Song, Meng & Ermon 2021, Eq. 12 and 16; Lin et al. 2023, Eq. 21 and 22.) x_0 ~ N(0, σ_0² I).
    η = 0 is Euler's method in σ, a rotation of (z, v) by the difference of angles, and draws no
    noise; η = 1 is Ancestral with the small variance. Evaluations of the network: N. It was made
    for IDDPMSteps and DiscreteSteps, but works with any steps.

    eta   η in [0, 1]
    clip  whether D is clipped to [−1, 1], and e is computed from the clipped D
    final 'denoise' ends at D of the lowest level; 'sigma-min' stops at this level, an evaluation
          earlier
    """
    from_infinity: ClassVar[bool] = True
    eta: float = 0.0
    clip: bool = False
    final: str = 'denoise'

    def __post_init__(self) -> None:
        one_of('final', self.final, FINALS)
        if not 0 <= self.eta <= 1:
            raise ValueError(f'eta must be from 0 to 1, not {self.eta:g}')

    def __call__(self, denoise: Conditioned, noise: Tensor, sigmas: Tensor,
                 randn_like: RandnLike) -> Tensor:
        d = denoise.unit_scale
        z = noise * Level.of_sigma(sigmas[0], d).b
        for sigma, sigma_next in pairwise(sigmas):
            if sigma == sigma_next:
                continue
            here, there = Level.of_sigma(sigma, d), Level.of_sigma(sigma_next, d)
            if sigma_next == 0 and self.final == 'sigma-min':
                return d / here.a * z
            D = denoise.unit(z, sigma)
            D = D.clamp(-1, 1) if self.clip else D
            if sigma_next == 0:
                return D
            w = self.eta * there.b * (1 - (sigma_next / sigma) ** 2).sqrt()
            share = (there.b**2 - w**2).sqrt() / here.b   # the factor of e b = z − a D/d
            z = share * z + ((there.a - share * here.a) / d) * D
            if self.eta > 0:
                z = z + w * randn_like(z)
        return d * z


EARLIER = {'em': EulerMaruyama, 'pc': PredictorCorrector, 'ancestral': Ancestral, 'ddim': DDIM}
