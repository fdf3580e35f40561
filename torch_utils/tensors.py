"""Tensors of which a rank may have a part only."""

from typing import Any

from torch import Tensor


def local(tensor: Any) -> Tensor:   # noqa: ANN401 (a Tensor, or a DTensor, which is imported late)
    """Return this rank's part of a tensor, which shares its memory; all of one that is whole."""
    return tensor.to_local() if hasattr(tensor, 'to_local') else tensor


def whole(tensor: Any) -> Tensor:   # noqa: ANN401
    """Return a tensor with the parts of all ranks; collective where it is divided."""
    return tensor.full_tensor() if hasattr(tensor, 'full_tensor') else tensor
