"""Discrete noise levels: tables of T timesteps, zero terminal SNR, and which timesteps to visit.

    x_t = √ᾱ_t y + √(1 − ᾱ_t) ε,   ᾱ_t = Π_{s ≤ t} (1 − β_s),   t = 1, …, T

(Ho et al. 2020; Lin et al. 2023, Eq. 1 to 5.) Tables are [T] float64 on the CPU. Timestep t is at
index t − 1, which is also the number that networks receive. Lin et al. 2023 is "Common Diffusion
Noise Schedules and Sample Steps are Flawed".

One kind of table serves both papers: the levels u_j of iDDPM (Karras et al. 2022, Table 1) are a
DiscreteSchedule like the others, counted from the other end, σ_t = u_{M−t}. `IDDPMLevels` computes
them by that paper's recursion and `CosineBetas` by its logarithms, in which ᾱ_T = 0 is exact; where
both have the same constants they agree up to rounding.
"""

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from limpid.checks import one_of

MOST_TIMESTEPS = 100_000   # a table of so many takes 0.8 MB; files may claim any number


class DiscreteSchedule:
    """A table of noise levels, and the quantities that follow from its ln ᾱ_t.

    With zero terminal SNR, ᾱ_T = 0, β_T = 1 and σ_T = ∞, exactly. A subclass is a frozen dataclass
    with a `table`.
    """
    zero_terminal_snr: bool = False

    def table(self) -> Tensor:
        """Compute ln ᾱ_t, [T] float64, by the formula of the schedule."""
        raise NotImplementedError

    @property
    def log_alpha_bar(self) -> Tensor:
        """ln ᾱ_t, falling; −∞ at a terminal SNR of zero"""
        return _kept(self)

    @property
    def alpha_bar(self) -> Tensor:
        """ᾱ_t"""
        return self.log_alpha_bar.exp()

    @property
    def betas(self) -> Tensor:
        """β_t = 1 − ᾱ_t/ᾱ_{t−1},  ᾱ_0 = 1"""
        start = torch.zeros_like(self.log_alpha_bar[:1])
        return -torch.expm1(self.log_alpha_bar.diff(prepend=start))

    @property
    def sigma(self) -> Tensor:
        """σ_t = √((1 − ᾱ_t)/ᾱ_t), rising: the noise level of x_t/√ᾱ_t"""
        return torch.expm1(-self.log_alpha_bar).sqrt()

    @property
    def snr(self) -> Tensor:
        """SNR(t) = ᾱ_t/(1 − ᾱ_t) = 1/σ_t²        (Lin et al. 2023, Eq. 5 and Table 1)"""
        return 1 / torch.expm1(-self.log_alpha_bar)


@functools.lru_cache(maxsize=16)
def _kept(schedule: DiscreteSchedule) -> Tensor:
    with torch.device('cpu'):   # even where networks are built without values, on 'meta'
        return schedule.table()


@dataclass(frozen=True)
class IDDPMLevels(DiscreteSchedule):
    """u_M = 0,  u_{j−1} = √((u_j² + 1) / max(ᾱ_{j−1}/ᾱ_j, C_1) − 1),
    ᾱ_j = sin²(½π j / (M (C_2 + 1)))

    The noise levels that iDDPM was trained for, falling in j (Table 1). iDDPM's own timestep of
    level j is M − 1 − j. The ᾱ_j of this formula is `alpha_bar_of(j)`, which only its ratios enter;
    `alpha_bar` is 1/(1 + σ_t²) of the levels that come out, as in every DiscreteSchedule.
    """
    M: int = 1000
    C_1: float = 0.001
    C_2: float = 0.008

    def alpha_bar_of(self, j: float) -> float:
        """ᾱ_j, before the ratio of two of them is limited by C_1"""
        return math.sin(0.5 * math.pi * j / (self.M * (self.C_2 + 1))) ** 2

    @property
    def u(self) -> Tensor:
        """u_0 > … > u_M = 0, [M + 1], float64 on the CPU."""
        return _iddpm_levels(self)

    @property
    def sigma(self) -> Tensor:
        """σ_t = u_{M−t}, rising"""
        return self.u[:-1].flip(0)

    def table(self) -> Tensor:
        return -(self.sigma**2).log1p()


@functools.lru_cache(maxsize=8)
def _iddpm_levels(levels: IDDPMLevels) -> Tensor:
    _count(levels.M)
    u = [0.0]
    for j in range(levels.M, 0, -1):
        ratio = max(levels.alpha_bar_of(j - 1) / levels.alpha_bar_of(j), levels.C_1)
        u.append(math.sqrt((u[-1] ** 2 + 1) / ratio - 1))
    # On the CPU whatever the default device is now, since the result is kept.
    return torch.tensor(u[::-1], dtype=torch.float64, device='cpu')


@dataclass(frozen=True)
class LinearBetas(DiscreteSchedule):
    """β_t = first (1 − i) + last i,  i = (t − 1)/(T − 1)

    The schedule of DDPM (Lin et al. 2023, Table 1, "Linear").
    """
    first: float = 1e-4
    last: float = 0.02
    T: int = 1000
    zero_terminal_snr: bool = False

    def table(self) -> Tensor:
        betas = torch.linspace(self.first, self.last, _count(self.T), dtype=torch.float64)
        return accumulated(betas, self.zero_terminal_snr)


@dataclass(frozen=True)
class ScaledLinearBetas(DiscreteSchedule):
    """β_t = (√first (1 − i) + √last i)²,  i = (t − 1)/(T − 1)

    The schedule of Stable Diffusion (Lin et al. 2023, Table 1).
    """
    first: float = 0.00085
    last: float = 0.012
    T: int = 1000
    zero_terminal_snr: bool = False

    def table(self) -> Tensor:
        roots = torch.linspace(math.sqrt(self.first), math.sqrt(self.last), _count(self.T),
                               dtype=torch.float64)
        return accumulated(roots**2, self.zero_terminal_snr)


@dataclass(frozen=True)
class CosineBetas(DiscreteSchedule):
    """β_t = min(1 − ᾱ_t/ᾱ_{t−1}, max_beta),  ᾱ_t = f(t)/f(0),
    f(t) = cos²(½π (t/T + offset)/(1 + offset))

    (Nichol & Dhariwal 2021; Lin et al. 2023, Table 1, "Cosine".) These are the noise levels u_j of
    iDDPM, σ_t = u_{T−t}. Zero terminal SNR is this schedule without max_beta, since f(T) = 0.
    """
    max_beta: float = 0.999
    offset: float = 0.008
    T: int = 1000
    zero_terminal_snr: bool = False

    def table(self) -> Tensor:
        # Counting from the other end avoids cos(½π), which is not exactly 0.
        levels = IDDPMLevels(M=_count(self.T), C_2=self.offset)
        f = torch.tensor([levels.alpha_bar_of(self.T - t) for t in range(self.T + 1)],
                         dtype=torch.float64)
        if self.zero_terminal_snr:
            return (f[1:] / f[0]).log()
        return accumulated((1 - f[1:] / f[:-1]).clamp(max=self.max_beta))


@dataclass(frozen=True)
class GivenBetas(DiscreteSchedule):
    """β_t = values[t − 1]"""
    values: tuple[float, ...]
    zero_terminal_snr: bool = False

    def table(self) -> Tensor:
        return accumulated(torch.tensor(self.values, dtype=torch.float64), self.zero_terminal_snr)


def _count(T: int) -> int:
    if not 1 <= T <= MOST_TIMESTEPS:
        raise ValueError(f'the number of timesteps T must be from 1 to {MOST_TIMESTEPS:,}, not {T}')
    return T


def accumulated(betas: Tensor, zero_terminal_snr: bool = False) -> Tensor:
    """Return ln ᾱ_t of β_t, [T] float64, rescaled to zero terminal SNR if that is asked for.

    Raises ValueError for betas outside (0, 1); the last may be 1.
    """
    inside = (betas > 0) & (betas < 1)
    inside[-1:] |= betas[-1:] == 1
    if len(betas) == 0 or not bool(inside.all()):
        outside = betas[~inside].tolist()
        raise ValueError('betas must be above 0 and below 1 (the last may be 1), '
                         f'not {outside[0]:g}' if outside else 'a schedule needs at least one beta')
    log_alpha_bar = (-betas.to(torch.float64)).log1p().cumsum(dim=0)
    return rescaled_to_zero_terminal_snr(log_alpha_bar) if zero_terminal_snr else log_alpha_bar


def rescaled_to_zero_terminal_snr(log_alpha_bar: Tensor) -> Tensor:
    """ln ᾱ of √ᾱ_t <- (√ᾱ_t − √ᾱ_T) √ᾱ_1/(√ᾱ_1 − √ᾱ_T)        (Lin et al. 2023, Algorithm 1)

    ᾱ_1 stays and ᾱ_T becomes 0, both exactly. The computation uses 1 − √ᾱ, which loses no digits
    where there is little noise. Raises ValueError for a schedule of one timestep, and for one that
    does not fall.
    """
    root = (log_alpha_bar / 2).exp()
    if len(root) < 2 or not root[-1] < root[0]:
        raise ValueError('zero terminal SNR keeps the first timestep and takes all signal from the '
                         'last: it needs a schedule of two timesteps or more, which falls')
    lost = -torch.expm1(log_alpha_bar / 2)   # 1 − √ᾱ
    lost = (root[0] * lost - root[-1] * lost[0]) / (root[0] - root[-1])
    rescaled = 2 * torch.log1p(-lost.clamp(max=1))
    rescaled[0], rescaled[-1] = log_alpha_bar[0], -math.inf
    return rescaled


def posterior_variances(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return (q, ln w_lo², ln w_hi²) of an ancestral step from noise level a ≤ ∞ down to b > 0.

    They are variances of the unscaled x, with q = b²/a²: w_lo² = b² (1 − q), which is β̃_t/ᾱ_{t−1}
    (Lin et al. 2023, Eq. 9), and w_hi² = (a² − b²)(1 + b²)/(1 + a²), which is β_t/ᾱ_{t−1}.
    """
    q = (b / a) ** 2
    log_lo = (b**2 * (1 - q)).log()
    log_hi = ((1 - q) * (1 + b**2) / (1 + a**-2)).log()
    return q, log_lo, log_hi


SPACINGS = ('trailing', 'linspace', 'leading')


def timesteps(num_steps: int, T: int = 1000, spacing: str = 'trailing',
              half_even: bool = False) -> list[int]:
    """Choose S = num_steps of the timesteps 1 to T, rising        (Lin et al. 2023, Table 2)

    trailing   k T/S,  k = 1, …, S                       includes the last timestep, as it should
    linspace   1 + k (T − 1)/(S − 1),  k = 0, …, S − 1   includes the first and the last
    leading    1 + k ⌊T/S⌋,  k = 0, …, S − 1             leaves out the last: the flaw of the
                                                         programs of DDIM and PNDM

    Integers are computed throughout, so that there are always S of them; halves are rounded up. A
    single step of linspace is T. `half_even` rounds halves to the even neighbour, as NumPy does (of
    the index t − 1 for linspace), for comparisons with diffusers. Raises ValueError for S outside
    1 to T.
    """
    one_of('spacing', spacing, SPACINGS)
    if num_steps < 1:
        raise ValueError(f'the number of steps must be at least 1, not {num_steps}')
    if num_steps > T:
        raise ValueError(f'{num_steps} steps are more than the {T} timesteps there are')
    if spacing == 'leading':
        return [1 + k * (T // num_steps) for k in range(num_steps)]
    if spacing == 'linspace' and num_steps > 1:
        return [1 + _rounded(k * (T - 1), num_steps - 1, half_even) for k in range(num_steps)]
    return [_rounded(k * T, num_steps, half_even) for k in range(1, num_steps + 1)]


def _rounded(p: int, q: int, half_even: bool) -> int:
    """Round p/q to the nearest integer; if two are equally near, to the upper or the even one."""
    rounded, rest = divmod(2 * p + q, 2 * q)
    return rounded - 1 if half_even and rest == 0 and rounded % 2 else rounded


# The schedules under the names that the commands use. The SCHEDULES of limpid/schedules.py are
# functions of continuous time instead.
DISCRETE_SCHEDULES = {'ddpm-linear': LinearBetas, 'scaled-linear': ScaledLinearBetas,
                      'cosine': CosineBetas}
