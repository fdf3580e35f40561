"""The formulas of Table 1 of Karras et al. 2022 as the paper prints them, with `math` alone.

They are here to be compared with the objects of limpid/table1.py, which compute them otherwise.
Each is evaluated at one point: t = 0.5, the tenth of 18 noise levels, σ = 3, and the first quartile
of p_train.
"""

import math
from statistics import NormalDist

beta_d, beta_min, epsilon_s, epsilon_t, M = 19.9, 0.1, 1e-3, 1e-5, 1000
C_1, C_2, j_0 = 0.001, 0.008, 8
sigma_data, rho, P_mean, P_std = 0.5, 7.0, -1.2, 1.2
t, i, N, sigma, u = 0.5, 9, 18, 3.0, 0.25


def vp_sigma(t: float) -> float:
    """σ(t) = √(exp(½ β_d t² + β_min t) − 1)"""
    return math.sqrt(math.exp(beta_d * t**2 / 2 + beta_min * t) - 1)


def geometric(low: float, high: float, share: float) -> float:
    """Return high (low/high)^share."""
    return float(high * (low / high) ** share)


def iddpm_u() -> list[float]:
    """u_{j−1} = √((u_j² + 1)/max(ᾱ_{j−1}/ᾱ_j, C_1) − 1),  u_M = 0"""
    def alpha_bar(j: int) -> float:
        return math.sin(math.pi / 2 * j / (M * (C_2 + 1))) ** 2

    levels = [0.0]
    for j in range(M, 0, -1):
        ratio = max(alpha_bar(j - 1) / alpha_bar(j), C_1)
        levels.append(math.sqrt((levels[-1] ** 2 + 1) / ratio - 1))
    return levels[::-1]


def vp_sigma_inv(sigma: float) -> float:
    """σ⁻¹(σ) = (√(β_min² + 2 β_d ln(1 + σ²)) − β_min)/β_d"""
    return (math.sqrt(beta_min**2 + 2 * beta_d * math.log(1 + sigma**2)) - beta_min) / beta_d


def nearest(levels: list[float], sigma: float) -> int:
    """argmin_j |u_j − σ|"""
    return min(range(M), key=lambda j: abs(levels[j] - sigma))


def cells() -> dict[str, dict[str, float]]:
    """Return {row: {column: number}} for all rows of the table that are formulas."""
    levels = iddpm_u()
    low, high = 0.002 ** (1 / rho), 80.0 ** (1 / rho)
    root = math.sqrt(sigma**2 + sigma_data**2)
    return {
        'σ(t)': {'vp': vp_sigma(t), 've': math.sqrt(t), 'iddpm': t, 'edm': t},
        's(t)': {'vp': 1 / math.sqrt(math.exp(beta_d * t**2 / 2 + beta_min * t)), 've': 1.0,
                 'iddpm': 1.0, 'edm': 1.0},
        'σ(t_i)': {'vp': vp_sigma(1 + i / (N - 1) * (epsilon_s - 1)),
                   've': math.sqrt(geometric(0.02**2, 100**2, i / (N - 1))),
                   'iddpm': levels[math.floor(j_0 + (M - 1 - j_0) / (N - 1) * i + 0.5)],
                   'edm': (high + i / (N - 1) * (low - high)) ** rho},
        'c_skip(σ)': {'vp': 1.0, 've': 1.0, 'iddpm': 1.0,
                      'edm': sigma_data**2 / (sigma**2 + sigma_data**2)},
        'c_out(σ)': {'vp': -sigma, 've': sigma, 'iddpm': -sigma,
                     'edm': sigma * sigma_data / root},
        'c_in(σ)': {'vp': 1 / math.sqrt(sigma**2 + 1), 've': 1.0,
                    'iddpm': 1 / math.sqrt(sigma**2 + 1), 'edm': 1 / root},
        'c_noise(σ)': {'vp': (M - 1) * vp_sigma_inv(sigma), 've': math.log(sigma / 2),
                       'iddpm': float(M - 1 - nearest(levels, sigma)),
                       'edm': math.log(sigma) / 4},
        'p_train': {'vp': vp_sigma(epsilon_t + u * (1 - epsilon_t)),
                    've': geometric(100.0, 0.02, u), 'iddpm': levels[int((1 - u) * M)],
                    'edm': math.exp(P_mean + P_std * NormalDist().inv_cdf(u))},
        'λ(σ)': {'vp': 1 / sigma**2, 've': 1 / sigma**2, 'iddpm': 1 / sigma**2,
                 'edm': (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2},
    }
