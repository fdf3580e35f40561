"""Linear multistep solvers: the velocities of earlier steps, extrapolated over the next one.

Each starts with its own lower orders, so that every step costs one evaluation of the network. The
start leaves an error of second order. Where noise is high the flow is nearly straight, and this
error is small beside the others until the steps are very many.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from limpid.checks import one_of
from limpid.flow import Perturb, ProbabilityFlow
from limpid.schedules import vp_through

# w_j for velocities that are evenly spaced in time, the newest first: Adams–Bashforth, order 1 to 4
EVEN = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


def check_order(order: int, highest: int = 4) -> None:
    """Raise ValueError for an order outside 1 to `highest`."""
    if order not in range(1, highest + 1):
        raise ValueError(f'order must be from 1 to {highest}, not {order}')


def order_left(order: int, sigmas: Tensor, lower_order_final: bool) -> int:
    """Return the order of a step: `order`, or at most the number of steps left where that is asked.

    sigmas  the levels from this step on; repeated ones are no steps
    """
    return min(order, int((sigmas.diff() != 0).sum())) if lower_order_final else order


def adams_weights(nodes: Sequence[float]) -> list[float]:
    """Return w with Σ_j w_j p(nodes_j) = ∫_0^1 p for all polynomials p of degree below the order.

    The order is the number of nodes.
    """
    powers = torch.arange(len(nodes), dtype=torch.float64)
    vandermonde = torch.tensor(nodes, dtype=torch.float64) ** powers.reshape(-1, 1)
    return torch.linalg.solve(vandermonde, 1 / (powers + 1)).tolist()


def combined(weights: Sequence[float], history: Sequence[Tensor]) -> Tensor:
    """Σ_j w_j d_j, with no product where there is only one"""
    if len(weights) == 1 and weights[0] == 1:
        return history[0]
    return torch.stack([w * d for w, d in zip(weights, history, strict=True)]).sum(dim=0)


@dataclass(frozen=True)
class IPNDM:
    """x_{i+1} = x_i + h Σ_j w_j d_{i−j}: the weights of Adams–Bashforth for even steps

    w = (55, −59, 37, −9)/24 for order 4, at any steps. The first steps use the orders 1, 2, 3.
    (Zhang & Chen 2023, "Fast Sampling of Diffusion Models with Exponential Integrator", iPNDM; the
    weights are those of Liu et al. 2022, "PNDM".) The order is `order` where steps are even in
    t. On uneven but smooth steps, such as EDM's, it is 2 for every order above 1. Evaluations of
    the network: one per step.

    order  from 1, which is Euler's method, to 4
    """
    order: int = 4

    def __post_init__(self) -> None:
        check_order(self.order)

    def weights(self, nodes: Sequence[float]) -> Sequence[float]:
        """Return w for velocities at the times t_i + nodes_j h, the newest first."""
        return EVEN[len(nodes) - 1]

    def __call__(self, flow: ProbabilityFlow, x: Tensor, times: Tensor,
                 perturb: Perturb) -> Tensor:
        history: list[tuple[Tensor, Tensor]] = []   # (t, d), newest first
        for i, t_next in enumerate(times[1:]):
            x, t = perturb(i, x)
            h = t_next - t
            if h == 0:
                continue
            history = [(t, flow.velocity(x, t)), *history[:self.order - 1]]
            weights = self.weights([float((earlier - t) / h) for earlier, _ in history])
            x = x + h * combined(weights, [d for _, d in history])
        return x


@dataclass(frozen=True)
class IPNDMv(IPNDM):
    """x_{i+1} = x_i + h Σ_j w_j d_{i−j}: iPNDM with weights for its own steps

    The weights are those of Adams–Bashforth for uneven steps: they integrate the polynomial through
    the last `order` velocities over the step. (Zhou et al. 2024, "Fast ODE-based Sampling for
    Diffusion Models in Around 5 Steps", which calls it iPNDM_v; Adams with another start.) Its
    order is `order`.
    """

    def weights(self, nodes: Sequence[float]) -> Sequence[float]:
        return [1.0] if len(nodes) == 1 else adams_weights(nodes)


SPACES = ('t', 'rho', 'log-rho')
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(32)


@dataclass(frozen=True)
class DEIS:
    """x_{i+1} = x_i + Σ_j C_j ε_{i−j},  C_j = ∫ L_j(τ) dσ from σ_i to σ_{i+1},  ε = (x − D)/σ

    L_j is the Lagrange polynomial of the last `order` steps in a variable τ of the noise level, and
    x the unscaled image; the schedule has no effect. The first steps use lower orders. (Zhang &
    Chen 2023, Eq. 13 to 15: tAB-DEIS, whose polynomials have the degree `order` − 1.) Its order is
    `order`. Evaluations of the network: one per step.

    order  from 1, which is Euler's method, to 4
    space  τ: t, the time of the VP schedule through the noise range of the steps, or of Song's
           where there is none (tAB); rho, σ itself (ρAB); log-rho, ln σ
    lower_order_final  whether a step has at most as high an order as there are steps left, itself
                       included
    """
    order: int = 4
    space: str = 't'
    lower_order_final: bool = False

    def __post_init__(self) -> None:
        check_order(self.order)
        one_of('space', self.space, SPACES)

    def __call__(self, flow: ProbabilityFlow, x: Tensor, times: Tensor,
                 perturb: Perturb) -> Tensor:
        sigmas = flow.schedule.sigma(times)
        tau = self.variable(sigmas)
        history: list[tuple[Tensor, Tensor]] = []   # (τ, ε), newest first
        for i, (sigma, sigma_next) in enumerate(zip(sigmas, sigmas[1:], strict=False)):
            x, _ = perturb(i, x)
            if sigma_next == sigma:
                continue
            s, s_next = flow.scaling.s(sigma), flow.scaling.s(sigma_next)
            x = x / s
            noise = (x - flow.denoise(x, sigma)) / sigma
            history = [(tau(sigma), noise), *history[:self.order - 1]]
            history = history[:order_left(self.order, sigmas[i:], self.lower_order_final)]
            weights = self.weights(tau, [node for node, _ in history], sigma, sigma_next)
            x = s_next * (x + (sigma_next - sigma) * combined(weights, [e for _, e in history]))
        return x

    def variable(self, sigmas: Tensor) -> Callable[[Tensor], Tensor]:
        """Return τ as a function of σ."""
        if self.space == 't':
            low, high = sigmas.min(), sigmas.max()
            return vp_through(torch.stack([high, low, torch.zeros_like(low)])).sigma_inv
        return torch.log if self.space == 'log-rho' else torch.clone

    def weights(self, tau: Callable[[Tensor], Tensor], nodes: Sequence[Tensor], sigma: Tensor,
                sigma_next: Tensor) -> list[float]:
        """C_j/(σ_{i+1} − σ_i) for the values `nodes` of τ, by Gauss–Legendre quadrature in ln σ"""
        if len(nodes) == 1:
            return [1.0]
        start, width = sigma.log(), (sigma_next / sigma).log()
        at = (start + width * (torch.from_numpy(_NODES) + 1) / 2).exp()
        d_sigma = width / 2 * torch.from_numpy(_WEIGHTS) * at / (sigma_next - sigma)
        here = tau(at)
        found = []
        for j, node in enumerate(nodes):
            others = [other for k, other in enumerate(nodes) if k != j]
            lagrange = torch.stack([(here - other) / (node - other) for other in others]).prod(0)
            found.append(float((d_sigma * lagrange).sum()))
        return found


@dataclass(frozen=True)
class LMS:
    """x_{i+1} = x_i + Σ_j C_j d_{i−j},  C_j = ∫ L_j(σ) dσ,  d = (x − D)/σ: linear multistep in σ

    (The LMS sampler of the program k-diffusion, Crowson 2022.) It is DEIS with space='rho', and
    IPNDMv where σ is the time. Its order is `order`. Evaluations of the network: one per step.

    order  from 1, which is Euler's method, to 4
    """
    order: int = 4
    space: ClassVar[str] = 'rho'

    def __post_init__(self) -> None:
        check_order(self.order)

    def __call__(self, flow: ProbabilityFlow, x: Tensor, times: Tensor,
                 perturb: Perturb) -> Tensor:
        return DEIS(self.order, self.space)(flow, x, times, perturb)
