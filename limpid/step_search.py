"""The search for few noise levels of Chen et al. 2024: the shortest path through Euler's errors.

    sigmas = candidates(EDMSteps().sigmas(61))
    costs = euler_errors(Conditioned(net), noise * sigmas[0], sigmas) / len(noise)
    few = sigmas[best_path(costs, num_levels=7)]        # for ExplicitSteps

("On the Trajectory Regularity of ODE-based Diffusion Sampling"; the program calls it GITS.)
"""

from collections.abc import Callable

import torch
from torch import Tensor

from limpid.denoiser import Conditioned

GAMMA = 1.15   # of its paper


def candidates(sigmas: Tensor) -> Tensor:
    """Return the levels to choose from, falling and each once, of levels [M + 1] that end in 0."""
    return torch.unique_consecutive(sigmas[sigmas > 0])


@torch.no_grad()
def euler_errors(denoise: Conditioned, x: Tensor, sigmas: Tensor,
                 step: Callable[[], object] = lambda: None) -> Tensor:
    """Σ_b ‖x_i + (σ_j − σ_i) d_i − x_j‖ for the levels i < j, 0 elsewhere: [M, M] float64

    x_i is where Heun's method takes the image b through all levels, d_i = (x_i − D(x_i; σ_i))/σ_i.
    So an entry is the error of one of Euler's steps, from a point of the trajectory. Evaluations of
    the network: 2 (M − 1).

    x       [B, C, H, W], images at the level σ_0
    sigmas  σ_0 > … > σ_{M−1} > 0, on the CPU
    step    called after each step of Heun's method
    """
    points, slopes = [x], list[Tensor]()
    for sigma, sigma_next in zip(sigmas[:-1], sigmas[1:], strict=True):
        d = (x - denoise(x, sigma)) / sigma
        guess = x + (sigma_next - sigma) * d
        d_next = (guess - denoise(guess, sigma_next)) / sigma_next
        x = x + (sigma_next - sigma) * ((d + d_next) / 2)
        points.append(x)
        slopes.append(d)
        step()
    errors = torch.zeros([len(sigmas)] * 2, dtype=torch.float64)
    for i, d in enumerate(slopes):
        for j in range(i + 1, len(sigmas)):
            error = points[i] + (sigmas[j] - sigmas[i]) * d - points[j]
            errors[i, j] = float(error.flatten(1).norm(dim=1).sum())
    return errors


def best_path(costs: Tensor, num_levels: int, gamma: float = GAMMA) -> list[int]:
    """Return i_0 = 0 < i_1 < … < i_{N−1} = M − 1 with the least Σ_k γ^k c(i_k, i_{k+1})

    It is found by dynamic programming from the end: V_K(i) = min_j c(i, j) + γ V_{K−1}(j). With γ
    above 1 later errors weigh more.

    costs  [M, M]; entries at and below the diagonal are not read
    Raises ValueError where num_levels is not from 2 to M.
    """
    M = len(costs)
    if not 2 <= num_levels <= M:
        raise ValueError(f'the number of levels must be from 2 to {M}, the number of those to '
                         f'choose from, not {num_levels}')
    costs = costs.to(torch.float64).clone()
    costs[torch.ones(M, M, dtype=torch.bool).tril()] = torch.inf
    best, choices = costs[:, -1], list[Tensor]()
    for _ in range(num_levels - 2):
        best, chosen = (costs + gamma * best).min(dim=1)
        choices.append(chosen)
    path = [0]
    for chosen in reversed(choices):
        path.append(int(chosen[path[-1]]))
    return [*path, M - 1]
