"""The SDE of DPM-Solver++, driven by one Brownian path for each image, whatever the steps are."""

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from limpid.checks import one_of
from limpid.denoiser import Conditioned
from limpid.exponential import Past, differences
from limpid.samplers import FINALS, RandnLike

DEPTH = 26                  # halvings of the range of λ: the path is known at steps of 8e-7 in λ
RANGE = 20 * math.log(10)   # the path covers σ from 1e-10 to 1e10; λ = −ln σ


class BrownianPath:
    """B(u), a Brownian motion of each image, at u = σ^(−2η), from u = 0 at σ = ∞.

    Each value follows from the seeds by halving an interval of λ = −ln σ again and again, and
    drawing the middle given both ends. So the same path is seen through any steps, and images do
    not depend on their batch. The seeds are taken from a draw of `randn_like`, an image's own.
    """

    def __init__(self, x: Tensor, eta: float, randn_like: RandnLike) -> None:
        first = randn_like(x).flatten(1)[:, 0].to('cpu', torch.float64)
        self.seeds: list[int] = (first.view(torch.int64) & (2**63 - 1)).tolist()
        self.eta, self.like = eta, x
        ends = [self._u(0), self._u(2**DEPTH)]
        B_0 = math.sqrt(ends[0]) * self._normal(-1)
        B_1 = B_0 + math.sqrt(ends[1] - ends[0]) * self._normal(-2)
        self._intervals = [(0, 2**DEPTH, B_0, B_1)]   # nested, the last visited is the smallest

    def _u(self, node: int) -> float:
        return math.exp(2 * self.eta * RANGE * (2 * node / 2**DEPTH - 1))

    def node(self, sigma: Tensor) -> int:
        """Return the number of the node next to σ."""
        share = (-math.log(float(sigma)) / RANGE + 1) / 2
        return min(max(round(share * 2**DEPTH), 0), 2**DEPTH)

    def _normal(self, node: int) -> Tensor:
        """Draw the numbers of a node: [B, C, H, W] like x."""
        draws = []
        for seed in self.seeds:
            state = np.random.SeedSequence([seed, node + 2]).generate_state(1, np.uint64)
            generator = torch.Generator().manual_seed(int(state[0]) % 2**63)
            draws.append(torch.randn(self.like.shape[1:], generator=generator,
                                     dtype=torch.float64))
        return torch.stack(draws).to(self.like)

    def __call__(self, sigma: Tensor) -> Tensor:
        """Return B at the node next to σ."""
        node = self.node(sigma)
        while not self._intervals[-1][0] <= node <= self._intervals[-1][1]:
            self._intervals.pop()
        while True:
            left, right, B_left, B_right = self._intervals[-1]
            if node in (left, right):
                return B_left if node == left else B_right
            middle = (left + right) // 2
            u, u_left, u_right = self._u(middle), self._u(left), self._u(right)
            share = (u - u_left) / (u_right - u_left)
            B = B_left + share * (B_right - B_left)
            B = B + math.sqrt(share * (u_right - u)) * self._normal(middle)
            self._intervals.append((left, middle, B_left, B) if node <= middle
                                   else (middle, right, B, B_right))


@dataclass(frozen=True)
class SDEMultistep:
    """x′ = D + e^(−(1 + η) h) (x − D) + [terms of D′, D″] + σ′^(1 + η) (B(σ′^(−2η)) − B(σ^(−2η)))

    SDE-DPM-Solver++ 2M and 3M: the SDE of GeneralSDE with beta = η, solved exactly but for D,
    with H = (1 + η) h, h = ln σ/σ′, and D′ and D″ by divided differences of earlier steps:
      order 2   + (1 − e^−H) (D − D_{i−1})/(2r),  r = h_{i−1}/h
      order 3   + φ_2 d_1 − φ_3 d_2,  φ_2 = (e^−H − 1)/H + 1,  φ_3 = φ_2/H − ½
    (Lu et al. 2022, "DPM-Solver++", Appendix; the samplers dpmpp_2m_sde and dpmpp_3m_sde of
    k-diffusion.) The noise of a step has the variance σ′² (1 − e^(−2ηh)). It is an increment of a
    Brownian path that depends on the image's seed alone: runs of different numbers of steps
    approach the same image. With η = 0 the flow is solved, to the order `order` but for the start.
    Only σ enters, so there is no schedule. Evaluations of the network: N.

    order  2 or 3
    eta    η, from 0, which draws no noise, to 1
    final  'denoise' ends at D of the lowest level; 'sigma-min' stops there, an evaluation earlier
    """
    order: int = 2
    eta: float = 1.0
    final: str = 'denoise'

    def __post_init__(self) -> None:
        one_of('final', self.final, FINALS)
        if self.order not in (2, 3):
            raise ValueError(f'order must be 2 or 3, not {self.order}')
        if not 0 <= self.eta <= 1:
            raise ValueError(f'eta must be from 0 to 1, not {self.eta:g}')

    def __call__(self, denoise: Conditioned, noise: Tensor, sigmas: Tensor,
                 randn_like: RandnLike) -> Tensor:
        x, past = noise * sigmas[0], Past()
        path = BrownianPath(x, self.eta, randn_like) if self.eta > 0 else None
        for sigma, sigma_next in pairwise(sigmas):
            if sigma_next == 0 and self.final == 'sigma-min':
                return x
            if sigma_next == sigma:
                continue
            D = denoise(x, sigma)
            if sigma_next == 0:
                return D
            past = [(-sigma.log(), D), *past[:self.order - 1]]
            x = self.mean(x, past, (sigma / sigma_next).log())
            if path is not None:
                x = x + sigma_next ** (1 + self.eta) * (path(sigma_next) - path(sigma))
        return x

    def mean(self, x: Tensor, past: Past, h: Tensor) -> Tensor:
        """Return the next x without its noise, from (λ, D) of this step and of earlier ones."""
        D, H = past[0][1], (1 + self.eta) * h
        x = D + (-H).exp() * (x - D)
        phi_2 = torch.expm1(-H) / H + 1
        if len(past) == 3:
            d_1, d_2 = differences(past, h)
            return x + phi_2 * d_1 - (phi_2 / H - 0.5) * d_2
        if len(past) == 2:
            d_1 = (D - past[1][1]) * (h / (past[0][0] - past[1][0]))
            return x + (phi_2 if self.order == 3 else -torch.expm1(-H) / 2) * d_1
        return x


MULTISTEP_SDES = {'sde-dpmpp': SDEMultistep}
