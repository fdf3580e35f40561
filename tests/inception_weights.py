"""Random weights of the published Inception network's shapes, the same on every machine."""

import numpy as np
import torch
from torch import Tensor

from metrics.inception import weight_shapes


def random_weights(seed: int = 0, gamma: bool = True) -> dict[str, Tensor]:
    """He-scaled, running_var in [0.5, 1.5]: activations neither vanish nor explode. Without `gamma`
    it is 1."""
    random = np.random.RandomState(seed)
    weights = {}
    for name, shape in weight_shapes().items():
        if name.endswith(('conv.weight', 'fc.weight')):
            values = random.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
        elif name.endswith('running_var'):
            values = random.uniform(0.5, 1.5, shape)
        elif name.endswith('bn.weight'):
            values = random.uniform(0.8, 1.2, shape) if gamma else np.ones(shape)
        else:
            values = 0.1 * random.standard_normal(shape)
        weights[name] = torch.from_numpy(values.astype(np.float32))
    return weights


def random_images(size: int, count: int = 1) -> Tensor:
    """uint8 [count, 3, size, size]: smooth colours with noise."""
    random = np.random.RandomState(size)
    coarse = random.uniform(0, 255, [count, 3, 4, 4])
    smooth = np.kron(coarse, np.ones([size // 4 + 1, size // 4 + 1]))[:, :, :size, :size]
    return torch.from_numpy((0.6 * smooth + 0.4
                             * random.uniform(0, 255, smooth.shape)).astype(np.uint8))
