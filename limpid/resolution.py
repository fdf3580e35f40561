"""Resolutions: a number for square images, (height, width) for others."""

from collections.abc import Sequence

Resolution = int | tuple[int, ...]


def height_and_width(resolution: int | Sequence[int]) -> tuple[int, int]:
    """Return (H, W) for a number, the side of a square, or for the two numbers (H, W).

    Raises ValueError for anything but one or two positive integers.
    """
    sides = (resolution, resolution) if isinstance(resolution, int) else tuple(resolution)
    if len(sides) != 2 or any(type(side) is not int or side < 1 for side in sides):
        raise ValueError(f'img_resolution={resolution!r:.100} is neither the side of a square nor '
                         f'a height and a width')
    return sides[0], sides[1]


def resolution_of(height: int, width: int) -> Resolution:
    """Return H for a square, else (H, W): the shortest way to say it, and that of EDM's files."""
    return height if height == width else (height, width)


def named(resolution: int | Sequence[int]) -> str:
    """Return a text for messages: 32, or 24x32 where the height is 24 and the width is 32."""
    height, width = height_and_width(resolution)
    return str(height) if height == width else f'{height}x{width}'
