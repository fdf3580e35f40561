"""Denoisers whose answers are known exactly."""

import torch


class Gaussian:
    """The ideal denoiser of data N(mu, c²) per element: D = (c² x + σ² mu)/(c² + σ²)."""

    def __init__(self, mu=0.3, c=0.5, **attributes):
        self.mu, self.c = mu, c
        self.sigmas = []
        for name, value in attributes.items():
            setattr(self, name, value)

    def __call__(self, x, sigma, class_labels=None):
        self.sigmas.append(float(sigma) if sigma.ndim == 0 else sigma.clone())
        sigma = sigma.reshape(-1, *[1] * (x.ndim - 1)) if sigma.ndim else sigma
        return (self.c**2 * x + sigma**2 * self.mu) / (self.c**2 + sigma**2)

    def flow(self, x, sigma_from, sigma_to):
        """Where the probability flow (σ = t, s = 1) carries x from one noise level to another."""
        ratio = (self.c**2 + sigma_to**2) / (self.c**2 + sigma_from**2)
        return self.mu + (x - self.mu) * ratio**0.5


class TwoDiracs:
    """Data at +1 and −1: D = tanh(x/σ²)        (Figure 3)"""

    def __call__(self, x, sigma, class_labels=None):
        return torch.tanh(x / sigma**2)
