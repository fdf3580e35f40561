"""Non-leaking augmentation: geometric transformations, and labels that describe them.

A training image is transformed, and the network receives nine numbers that describe how, the
augment labels. Zeros mean an image that is not transformed, which is what sampling asks for.
(Appendix F.2, Table 6)

Drawing the parameters and applying them are separate: draw() decides for a whole batch on the CPU,
and any slice of the result can be applied where the images of that slice are.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

LABEL_DIM = 9   # x-flip, y-flip, scale, rotation (2), anisotropic scale (2), translation (2)

# The sym6 wavelet, orthonormal to its even shifts: up and then down again is exact.
SYM6 = (
    0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633,
    0.4910559419267466, 0.787641141030194, 0.3379294217276218, -0.07263752278646252,
    -0.021060292512300564, 0.04472490177066578, 0.0017677118642428036, -0.007800708325034148,
)
REACH = 6   # pixels around an output pixel that its interpolation may look at
RIM = 5     # half-pixels around the output that the way down needs: 12 taps, less the centre two

NOT_BUILT = (
    'rotate_int', 'translate_int', 'brightness', 'contrast', 'lumaflip', 'hue', 'saturation')


@dataclass(frozen=True)
class AugmentConfig:
    """A probability `p` and its multipliers; the defaults are the paper's for CIFAR-10.

    The multiplier of the x-flip is so large that half of all images are flipped for any `p` > 0.
    """
    p: float = 0.12
    xflip: float = 1e8
    yflip: float = 1.0
    scale: float = 1.0
    rotate_frac: float = 1.0
    aniso: float = 1.0
    translate_frac: float = 1.0


@dataclass(frozen=True)
class Augmentation:
    """The parameters drawn for n images, on the CPU; `augmentation[slice]` has those of a slice."""
    labels: Tensor                       # [n, 9] float32
    G_inv: Tensor | None                 # [n, 3, 3], output -> input, in pixels from the centre
    margin: tuple[int, int, int, int]    # mirrored pixels at the left, top, right, bottom

    def __getitem__(self, rows: slice) -> 'Augmentation':
        G_inv = None if self.G_inv is None else self.G_inv[rows]
        return dataclasses.replace(self, labels=self.labels[rows], G_inv=G_inv)

    def apply(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return images [n, C, H, W], floating point, transformed, and their labels [n, 9].

        This never waits for the device. Raises ValueError for integer images and for another n.
        """
        if not images.is_floating_point():
            raise ValueError(f'images of {images.dtype} cannot be augmented: '
                             'make them floating point')
        if len(images) != len(self.labels):
            raise ValueError(f'{len(images)} images, but {len(self.labels)} were drawn for')
        for column, axis in ((0, 3), (1, 2)):
            flipped = self.labels[:, column] == 1
            if flipped.any():
                where = flipped.to(images.device, non_blocking=True).reshape(-1, 1, 1, 1)
                images = torch.where(where, images.flip(axis), images)
        if self.G_inv is not None:
            images = _resample(images, self.G_inv, self.margin)
        return images, self.labels.to(images.device, non_blocking=True)


@dataclass(frozen=True)
class AugmentPipe:
    """Transformations, each applied to an image with probability p times its multiplier.

        x-flip, y-flip     a0, a1 ~ U{0, 1}
        scale              by 2^(scale_std a2),  a2 ~ N(0, 1)
        rotation           by -a3,  a3 ~ U(-π, π) · rotate_frac_max
        anisotropic scale  R(-a4) diag(2^(aniso_std a5), 2^(-aniso_std a5)) R(a4),  a5 ~ N(0, 1),
                           a4 ~ U(-π, π), but 0 with probability 1 - aniso_rotate_prob
        translation        by translate_frac_std (W a6, H a7),  a6, a7 ~ N(0, 1)

    in this order, with the labels a0, a1, a2, cos a3 - 1, sin a3, a5 cos a4, a5 sin a4, a6, a7
    (Table 6). R(θ) = [[cos θ, -sin θ], [sin θ, cos θ]] with x to the right and y down. Names,
    order and defaults are the ones that published checkpoints record. The integer and colour
    transformations among them are not built: a multiplier other than 0 raises ValueError.
    """
    p: float = 1
    xflip: float = 0
    yflip: float = 0
    rotate_int: float = 0
    translate_int: float = 0
    translate_int_max: float = 0.125
    scale: float = 0
    rotate_frac: float = 0
    aniso: float = 0
    translate_frac: float = 0
    scale_std: float = 0.2
    rotate_frac_max: float = 1
    aniso_std: float = 0.2
    aniso_rotate_prob: float = 0.5
    translate_frac_std: float = 0.125
    brightness: float = 0
    contrast: float = 0
    lumaflip: float = 0
    hue: float = 0
    saturation: float = 0
    brightness_std: float = 0.2
    contrast_std: float = 0.5
    hue_max: float = 1
    saturation_std: float = 1

    def __post_init__(self) -> None:
        if not 0 <= self.p <= 1:
            raise ValueError(f'augmentation with p={self.p}: a probability is between 0 and 1')
        for name in NOT_BUILT:
            if getattr(self, name) != 0:
                raise ValueError(
                    f'augmentation with {name}={getattr(self, name)}: there are only xflip, yflip, '
                    f'scale, rotate_frac, aniso and translate_frac; use {name}=0')

    @classmethod
    def from_config(cls, config: AugmentConfig) -> 'AugmentPipe':
        return cls(**dataclasses.asdict(config))

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Transform images [B, C, H, W] by draws from torch's CPU generator; also return labels."""
        return self.draw(len(images), images.shape[1:]).apply(images)

    def draw(self, n: int, image_shape: Sequence[int],
             generator: torch.Generator | None = None) -> Augmentation:
        """Draw parameters for n images of `image_shape`, which ends in height and width.

        `generator` is on the CPU; None stands for torch's own. For each transformation, first its
        values are drawn, and then whether they are kept.
        """
        height, width = image_shape[-2:]

        def uniform() -> Tensor:
            return torch.rand(n, dtype=torch.float32, generator=generator)

        def gate(values: Tensor, probability: float) -> Tensor:
            return torch.where(uniform() < probability, values, 0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, dtype=torch.float32, generator=generator)

        def angle() -> Tensor:
            return (uniform() * 2 - 1) * math.pi

        labels = torch.zeros([n, LABEL_DIM], dtype=torch.float32)
        for column, multiplier in ((0, self.xflip), (1, self.yflip)):
            if self.p * multiplier > 0:
                values = torch.randint(2, [n], generator=generator)
                labels[:, column] = gate(values, self.p * multiplier)

        G_inv = torch.eye(3)
        if self.p * self.scale > 0:
            a2 = gate(normal(n), self.p * self.scale)
            labels[:, 2] = a2
            factor = torch.exp2(-self.scale_std * a2)
            G_inv = G_inv @ _scale(factor, factor)
        if self.p * self.rotate_frac > 0:
            a3 = gate(angle() * self.rotate_frac_max, self.p * self.rotate_frac)
            labels[:, 3:5] = torch.stack([a3.cos() - 1, a3.sin()], dim=1)
            G_inv = G_inv @ _rotate(a3)
        if self.p * self.aniso > 0:
            a5, a4 = normal(n), angle()
            a5 = gate(a5, self.p * self.aniso)
            a4 = gate(a4, self.aniso_rotate_prob)
            labels[:, 5:7] = torch.stack([a5 * a4.cos(), a5 * a4.sin()], dim=1)
            factor = torch.exp2(self.aniso_std * a5)
            G_inv = G_inv @ _rotate(-a4) @ _scale(1 / factor, factor) @ _rotate(a4)
        if self.p * self.translate_frac > 0:
            a6, a7 = gate(normal(2, n), self.p * self.translate_frac)
            labels[:, 7:9] = torch.stack([a6, a7], dim=1)
            G_inv = G_inv @ _translate(-self.translate_frac_std * width * a6,
                                       -self.translate_frac_std * height * a7)

        if G_inv.ndim == 2:   # at most flips
            return Augmentation(labels, None, (0, 0, 0, 0))
        return Augmentation(labels, G_inv, _margin(G_inv, height, width))


def _matrix(*elements: Tensor | float) -> Tensor:
    """Return the matrix [3, 3], or matrices [n, 3, 3], of nine elements given row by row."""
    columns = [torch.as_tensor(x, dtype=torch.float32) for x in elements]
    n = max((x.shape for x in columns), key=len)
    return torch.stack([x.expand(n) for x in columns], dim=-1).reshape(*n, 3, 3)


def _scale(x: Tensor | float, y: Tensor | float) -> Tensor:
    return _matrix(x, 0, 0, 0, y, 0, 0, 0, 1)


def _rotate(theta: Tensor) -> Tensor:
    return _matrix(theta.cos(), -theta.sin(), 0, theta.sin(), theta.cos(), 0, 0, 0, 1)


def _translate(x: Tensor | float, y: Tensor | float) -> Tensor:
    return _matrix(1, 0, x, 0, 1, y, 0, 0, 1)


def _margin(G_inv: Tensor, height: int, width: int) -> tuple[int, int, int, int]:
    """Return the margins left, top, right and bottom of the image that its corners come from.

    A side is mirrored at most once, that is by its length less one; pixels beyond are black (0).
    """
    centre = torch.tensor([(width - 1) / 2, (height - 1) / 2])
    signs = torch.tensor([[-1, -1], [1, -1], [1, 1], [-1, 1]], dtype=torch.float32)
    corners = F.pad(signs * centre, (0, 1), value=1).T                        # [3, 4]
    reached = (G_inv @ corners)[:, :2].transpose(0, 1).flatten(1)             # [2, 4 n]
    furthest = torch.stack([-reached, reached]).amax(dim=2) + REACH - centre  # [2 sides, x and y]
    limit = torch.tensor([width - 1, height - 1])
    left, top, right, bottom = furthest.clamp(min=0).minimum(limit).ceil().int().flatten().tolist()
    return left, top, right, bottom


def _resample(images: Tensor, G_inv: Tensor, margin: tuple[int, int, int, int]) -> Tensor:
    """Return images [B, C, H, W] transformed by G_inv [B, 3, 3], through twice the resolution.

    Mirroring and filtering are linear in each axis, and hence are products with small matrices,
    which are made here on the CPU: no margin is ever stored, and float32 means float32 on any
    device.
    """
    left, top, right, bottom = margin
    batch, channels, height, width = images.shape
    up_x, up_y = _mirror_and_upsample(width, left, right), _mirror_and_upsample(height, top, bottom)
    down_x, down_y = _downsample(width), _downsample(height)

    # From places in the output to places on the fine grid, both counted from -1 to 1.
    fine_width, fine_height = up_x.shape[1], up_y.shape[1]
    out_width, out_height = down_x.shape[0], down_y.shape[0]
    to_fine = (_scale(2 / fine_width, 2 / fine_height) @ _translate(-0.5, -0.5) @ _scale(2, 2)
               @ _translate((left - right) / 2, (top - bottom) / 2))
    from_out = _scale(0.5, 0.5) @ _translate(0.5, 0.5) @ _scale(out_width / 2, out_height / 2)
    theta = (to_fine @ G_inv @ from_out)[:, :2]

    def beside(x: Tensor) -> Tensor:
        return x.to(images.dtype).to(images.device, non_blocking=True)

    fine = beside(up_y).T @ (images @ beside(up_x))
    out_shape = [batch, channels, out_height, out_width]
    grid = F.affine_grid(beside(theta), out_shape, align_corners=False)
    warped = F.grid_sample(fine, grid, mode='bilinear', padding_mode='zeros', align_corners=False)
    return beside(down_y).T @ (warped @ beside(down_x))


def _mirror_and_upsample(size: int, before: int, after: int) -> Tensor:
    """Return the matrix [size, 2 (before + size + after)] from a row of pixels to the fine grid."""
    mirrored = F.pad(torch.eye(size), (before, after), mode='reflect')
    taps = torch.tensor(SYM6)[None, None]
    return F.conv_transpose1d(mirrored[:, None], taps, stride=2, padding=5)[:, 0]


def _downsample(size: int) -> Tensor:
    """Return the matrix [2 (size + RIM), size] from the fine grid to pixels, without the rim."""
    fine = torch.eye(2 * (size + RIM))
    return F.conv1d(fine[:, None], torch.tensor(SYM6)[None, None], stride=2)[:, 0]
