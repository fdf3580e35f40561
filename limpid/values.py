"""Values: what the files of data hold, and the range in which networks work.

8-bit images, greyscale or RGB, are [-1, 1] to a network (limpid/pixels.py). Everything else, such
as latents, floats or five channels, has a Standardization.
"""

import functools
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from limpid.pixels import from_uint8, to_uint8

SPREAD = 0.5   # the standard deviation that networks see: σ_data of EDM


@dataclass(frozen=True)
class Standardization:
    """x = ½ (v − mean)/std,  channel by channel; `mean` and `std` are those of the data, [C].

    Raises ValueError for a std that is not positive.
    """
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or not self.mean:
            raise ValueError(f'{len(self.mean)} means and {len(self.std)} standard deviations are '
                             f'not one of each for every channel')
        if not all(map(math.isfinite, self.mean + self.std)) or min(self.std) <= 0:
            raise ValueError('means and standard deviations are finite numbers, and the latter '
                             'are positive')

    def apply(self, values: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return what a network sees of values v [B, C, H, W] of any type."""
        mean, std = _tensors(self, dtype, values.device)
        return (values.to(dtype) - mean) / std * SPREAD

    def undo(self, x: Tensor) -> Tensor:
        """Return v, float32, for what a network made, x [B, C, H, W]."""
        mean, std = _tensors(self, x.dtype, x.device)
        return (x / SPREAD * std + mean).to(torch.float32)

    def plain(self) -> dict[str, list[float]]:
        """Return what files store."""
        return {'mean': list(self.mean), 'std': list(self.std)}


@functools.lru_cache(maxsize=8)   # a copy to a device, at each step anew, would wait for it
def _tensors(of: Standardization, dtype: torch.dtype,
             device: torch.device) -> tuple[Tensor, Tensor]:
    """Return mean and std, [C, 1, 1] each."""
    mean, std = (torch.tensor(numbers, dtype=dtype).to(device)
                 for numbers in (of.mean, of.std))
    return mean[:, None, None], std[:, None, None]


def standardization_from(stored: Any, channels: int, where: str) -> Standardization | None:   # noqa: ANN401 (as it was read)
    """Return what `plain` has stored, or None where nothing is.

    Raises ValueError, which names `where` it was found, unless it fits so many channels.
    """
    if stored is None:
        return None
    lists: list[Any] = [stored.get('mean'), stored.get('std')] if isinstance(stored, dict) else [0]
    if not all(isinstance(numbers, list) and len(numbers) == channels
               and all(type(number) in (int, float) for number in numbers) for numbers in lists):
        raise ValueError(f'{where}: its mean and std are not lists of {channels} numbers, one for '
                         f'each channel')
    try:
        mean, std = (tuple(map(float, numbers)) for numbers in lists)
        return Standardization(mean, std)
    except (ValueError, OverflowError) as error:
        raise ValueError(f'{where}: {error}') from None


def to_network(values: Tensor, standardization: Standardization | None,
               dtype: torch.dtype = torch.float32) -> Tensor:
    """Return what a network sees of data [B, C, H, W]: of 8-bit images where there is no std."""
    if standardization is None:
        return from_uint8(values, dtype)
    return standardization.apply(values, dtype)


def to_values(x: Tensor, standardization: Standardization | None) -> Tensor:
    """Return data of what a network made, x [B, C, H, W].

    They are uint8 for 1 or 3 channels without a standardization, else float32; other channels
    without one, those of a network that does not tell, stay as the network has them.
    """
    if standardization is not None:
        return standardization.undo(x)
    return to_uint8(x) if is_images(x.shape[1], None) else x.to(torch.float32)


def is_images(channels: int, standardization: Standardization | None) -> bool:
    """Return whether `to_values` makes 8-bit images, which PNG files hold, and not arrays."""
    return standardization is None and channels in (1, 3)


def to_picture(x: Tensor) -> Tensor:
    """Return what can be shown of x [B, C, H, W] in [-1, 1]: uint8 [B, 1 or 3, H, W].

    Of more channels than 3 it is the first three, and of 2 the first.
    """
    return to_uint8(x[:, :3] if x.shape[1] >= 3 else x[:, :1])


def picture_of(values: Tensor, standardization: Standardization | None) -> Tensor:
    """Return what can be shown of data: `to_picture` of what a network sees of them."""
    if values.dtype == torch.uint8 or standardization is not None:
        return to_picture(to_network(values, standardization))
    return to_picture(values)
