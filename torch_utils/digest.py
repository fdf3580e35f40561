"""Digests of tensors: equal for equal numbers under equal names, whatever file they came from."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor


def digest_of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 over names, shapes and little-endian float32 values, in name order."""
    sha256 = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        values = tensor.detach().cpu().to(torch.float32).contiguous()
        sha256.update(f'{name} {list(values.shape)}\n'.encode())
        sha256.update(values.reshape(-1).view(torch.uint8).numpy().data)
    return sha256.hexdigest()
