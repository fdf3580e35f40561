"""The error of a solver of the flow on data whose flow is known exactly."""

import torch

from limpid.denoiser import Conditioned
from limpid.flow import ProbabilityFlow
from limpid.steps import EDMSteps
from tests.oracles import Gaussian, TwoDiracs

f64 = torch.float64


def errors_on_range(solver, schedule, scaling, oracle_error, step_counts, sigma_min, sigma_max=80,
                    start=0, rho=7):
    """The error of the flow from sigma_max to sigma_min; the step to zero has an error of its own,
    and is left out. The first step is halved `start` times, for solvers that start at low order."""
    errors = []
    for num_steps in step_counts:
        sigmas = EDMSteps(sigma_min=sigma_min, sigma_max=sigma_max, rho=rho).sigmas(num_steps + 1)
        halved = sigmas[0] + (sigmas[1] - sigmas[0]) * 0.5 ** torch.arange(start, 0, -1)
        sigmas = torch.cat([sigmas[:1], halved, sigmas[1:]])
        net, x, expected = oracle_error(sigmas)
        flow = ProbabilityFlow(Conditioned(net), schedule, scaling)
        times = schedule.sigma_inv(sigmas)
        x = solver(flow, x * scaling.s(sigmas[0]), times, lambda i, x, t=times: (x, t[i]))
        errors.append(float((x / scaling.s(sigmas[-1]) - expected).abs().max()))
    return errors


def gaussian_case(sigmas):
    net = Gaussian()
    start = torch.linspace(-2, 2, 7, dtype=f64) * sigmas[0]
    return net, start, net.flow(start, float(sigmas[0]), float(sigmas[-1]))


def dirac_case(sigmas):
    """Two Diracs: the flow preserves quantiles. Start where it will end at a known place."""
    def survival(x, sigma):
        return 0.5 * (torch.special.ndtr((-x + 1) / sigma) + torch.special.ndtr((-x - 1) / sigma))

    start = torch.tensor([0.05, 0.3, 0.8], dtype=f64) * sigmas[0]
    target = survival(start, sigmas[0])
    low, high = torch.zeros(3, dtype=f64), torch.full([3], 10.0, dtype=f64)
    for _ in range(200):   # bisection: the survival function falls
        middle = (low + high) / 2
        above = survival(middle, sigmas[-1]) > target
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return TwoDiracs(), start, (low + high) / 2
