"""Memorisation: the nearest training images of generated ones, and whether they are too near.

    found = nearest(queries, training, extractor, count=51, device=device)
    # {'pixels': ..., 'pool_3': ...}
    distance_ratio(found['pixels'].distances)   # below 1/3: copies

The training set is read once, chunk by chunk, and of each chunk only the images that are nearer
than those found before are kept: memory does not grow with it. Chunks go to the ranks in turn.
Of equally distant images the first counts as the nearer, so that the result is the same on any
number of ranks.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageDraw
import torch
from torch import Tensor

from dnnlib.progress import Progress
from metrics.features import FeatureExtractor
from metrics.images import Images
from metrics.statistics import chunks
from torch_utils import distributed
from torch_utils.grids import GREY, to_pil

PIXELS = 'pixels'
THRESHOLD = 1 / 3   # of the ratio: what lies below is called a copy
AMONG = 50          # neighbours that the nearest is compared with
# products of integers −128 ... 127 that float32 adds up without rounding: 1024 · 2¹⁴ = 2²⁴
EXACT = 1024
ROWS = 4096         # queries at a time: a table of distances to a chunk takes 32 MB
HEADER, GAP, FRAME = 20, 12, 2   # of the picture, in pixels


@dataclass(frozen=True)
class Neighbours:
    """The training images nearest to each of B queries, in rising order of distance.

    Those at equal distances are in the order of the training set.
    """
    distances: np.ndarray   # float64 [B, count]
    positions: np.ndarray   # int64 [B, count]
    mirrored: np.ndarray    # bool [B, count]: it is the mirrored training image that is so near

    def __getitem__(self, queries: slice) -> 'Neighbours':
        return Neighbours(self.distances[queries], self.positions[queries], self.mirrored[queries])


def distance_ratio(distances: np.ndarray, among: int = AMONG) -> np.ndarray:
    """Return r = d₁ / mean(d₂ ... d₁₊ₙ) of distances [B, 1 + n or more] in rising order.

    The ratios are float64 [B], from 0 to 1. A ratio is about 1 if no training image is special, and
    0 for an exact copy (d₁ = 0), however many of it there are in the training set. r < 1/3 with n =
    1 is the criterion of Yoon et al. 2023 (Diffusion Probabilistic Models Generalize when They Fail
    to Memorize), which misses a copy of an image that the training set has twice. The mean over n =
    50 is that of Carlini et al. 2023 (Extracting Training Data from Diffusion Models), which does
    not. Raises ValueError if there are fewer than 1 + n distances.
    """
    if distances.shape[1] < 1 + among:
        raise ValueError(f'a ratio to {among} others needs {1 + among} distances, not '
                         f'{distances.shape[1]}')
    first, others = distances[:, 0], distances[:, 1:1 + among].mean(axis=1)
    return np.divide(first, others, out=np.zeros_like(first), where=first > 0)


def pixel_distances(x: Tensor, y: Tensor) -> Tensor:
    """Compute Σ (x − y)² of each of uint8 x [B, D] and y [M, D]: int64 [B, M], exact.

    ‖x‖² + ‖y‖² − 2 xᵀy suffers from cancellation, but pixels are integers: float32 adds up 1024
    products of numbers from −128 to 127 without rounding. TF32 and bfloat16 hold such numbers too.
    """
    total = torch.zeros([len(x), len(y)], dtype=torch.int64, device=x.device)
    for a, b in zip(x.split(EXACT, dim=1), y.split(EXACT, dim=1), strict=True):
        a, b = a.float() - 128, b.float() - 128
        norms = a.square().sum(dim=1).int()[:, None] + b.square().sum(dim=1).int()
        total += norms - 2 * (a @ b.T).int()
    return total


def feature_distances(x: Tensor, y: Tensor) -> Tensor:
    """Compute ‖x − y‖ of each of x [B, d] and y [M, d]: float64 [B, M], 0 for equal features.

    They are computed on the CPU if the device has no float64.
    """
    x, y = (tensor.cpu() if tensor.device.type == 'mps' else tensor for tensor in (x, y))
    return torch.cdist(x.double(), y.double(), compute_mode='donot_use_mm_for_euclid_dist')


@torch.no_grad()
def nearest(queries: Tensor, training: Images, extractor: FeatureExtractor, *, count: int,
            device: torch.device, xflip: bool = False,
            batch: int = 64) -> dict[str, Neighbours] | None:
    """Find the `count` nearest training images of uint8 queries [B, C, H, W].

    They are nearest in pixels and in features; the result is on rank 0, None on the others. Under
    'pixels' the distance is the root of the mean squared difference, 0 ... 255, exact; under the
    name of the extractor's first tap it is the Euclidean distance of features. Equal pixels are at
    distance 0 in both. With `xflip` a training image is as near as the nearer of itself and its
    mirror image, and counts once. Collective. Raises ValueError on every rank if any rank meets
    one.
    """
    if list(queries.shape[1:]) != training.image_shape:
        raise ValueError(f'images {list(queries.shape[1:])} have no distance in pixels to those of '
                         f'{training.source}, which are {training.image_shape} (channels, height, '
                         f'width)')
    if count > len(training):
        raise ValueError(f'{training.source} has {len(training)} images, fewer than the {count} '
                         f'nearest')
    tap, rank, world_size = extractor.taps[0], distributed.get_rank(), distributed.get_world_size()
    features = _query_features(queries, extractor, tap, device, batch)
    rows = [slice(start, start + ROWS) for start in range(0, len(queries), ROWS)]
    pixels = queries.flatten(1).to(device)
    best = {space: [_Best(count) for _ in rows] for space in (PIXELS, tap)}
    all_chunks = chunks(len(training))
    mine = _chunks_of_images(training, all_chunks[rank::world_size], batch, device)
    with Progress(len(training), 'training images', quiet=rank > 0) as shown:
        for start in range(0, len(all_chunks), world_size):
            together = all_chunks[start:start + world_size]
            with distributed.errors_on_all():
                if rank < len(together):
                    images = next(mine)
                    views = [(view.flatten(1), _features(view, extractor, tap, batch))
                             for view in ([images, images.flip(-1)] if xflip else [images])]
                    for i, part in enumerate(rows):
                        found = [_distances(pixels[part], features[part], *view) for view in views]
                        for space, of_views in zip((PIXELS, tap), zip(*found, strict=True),
                                                   strict=True):
                            best[space][i].add(of_views, together[rank].start)
            shown.reach(together[-1].stop)
    gathered = {space: distributed.gather_objects(_found(parts)) for space, parts in best.items()}
    if rank > 0:
        return None
    squares, codes = _merged(gathered[PIXELS], count)
    return {PIXELS: _neighbours(np.sqrt(squares / pixels.shape[1]), codes),
            tap: _neighbours(*_merged(gathered[tap], count))}


def _chunks_of_images(training: Images, mine: Sequence[range], batch: int,
                      device: torch.device) -> Iterator[Tensor]:
    """Yield uint8 [len(chunk), C, H, W] for each chunk in turn."""
    parts = [chunk[start:start + batch] for chunk in mine for start in range(0, len(chunk), batch)]
    pixels = training.batches(parts, device)
    for chunk in mine:
        yield torch.cat([next(pixels) for _ in range(0, len(chunk), batch)])


def _features(images: Tensor, extractor: FeatureExtractor, tap: str, batch: int) -> Tensor:
    features = torch.cat([extractor.features(part)[tap] for part in images.split(batch)])
    if not features.isfinite().all():
        raise ValueError('the detector gave features that are not finite')
    return features


def _query_features(queries: Tensor, extractor: FeatureExtractor, tap: str, device: torch.device,
                    batch: int) -> Tensor:
    """Compute the features of all queries, on every rank; each looks at a share of them."""
    mine = {}
    with distributed.errors_on_all():
        for chunk in chunks(len(queries), distributed.get_rank(), distributed.get_world_size()):
            part = queries[chunk.start:chunk.stop].to(device)
            mine[chunk.start] = _features(part, extractor, tap, batch).cpu().numpy()
    parts = {start: part for of_rank in distributed.gather_objects(mine)
             for start, part in of_rank.items()}
    return torch.from_numpy(np.concatenate([parts[start] for start in sorted(parts)])).to(device)


def _distances(x: Tensor, x_features: Tensor, y: Tensor,
               y_features: Tensor) -> tuple[Tensor, Tensor]:
    """Compute squared distances of pixels, and those of features, of queries x to images y."""
    squares = pixel_distances(x, y)
    distances = feature_distances(x_features, y_features)
    # The last bits of an image's features depend on its batch.
    return squares, distances.masked_fill_((squares == 0).to(distances.device), 0)


class _Best:
    """The `count` nearest so far of some queries, and their codes.

    A code is 2 · position, and 1 more for a mirrored image.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.distances: Tensor | None = None   # [B, up to count], rising
        self.codes: Tensor | None = None

    def add(self, views: Sequence[Tensor], position: int) -> None:
        """Add distances [B, M] to the images from `position` on, and perhaps to mirrored ones."""
        distances = views[0]
        codes = 2 * torch.arange(position, position + distances.shape[1],
                                 device=distances.device).expand_as(distances)
        if len(views) == 2:
            codes = codes + (views[1] < distances)
            distances = torch.minimum(*views)
        if self.distances is not None and self.codes is not None:
            distances = torch.cat([self.distances, distances], dim=1)
            codes = torch.cat([self.codes, codes], dim=1)
        order = distances.sort(dim=1, stable=True).indices[:, :self.count]
        self.distances, self.codes = distances.gather(1, order), codes.gather(1, order)


def _found(parts: Sequence[_Best]) -> tuple[np.ndarray, np.ndarray] | None:
    """Return distances and codes of all queries [B, up to count] that this rank found.

    Returns None if it had no chunk.
    """
    pairs = [(part.distances, part.codes) for part in parts if part.distances is not None
             and part.codes is not None]
    if not pairs:
        return None
    distances, codes = (torch.cat(column).cpu().numpy() for column in zip(*pairs, strict=True))
    return distances, codes


def _merged(ranks: Sequence[tuple[np.ndarray, np.ndarray] | None],
            count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the `count` nearest of those that all ranks found."""
    distances, codes = (np.concatenate(column, axis=1)
                        for column in zip(*filter(None, ranks), strict=True))
    order = np.lexsort((codes, distances))[:, :count]
    return np.take_along_axis(distances, order, axis=1), np.take_along_axis(codes, order, axis=1)


def _neighbours(distances: np.ndarray, codes: np.ndarray) -> Neighbours:
    return Neighbours(distances, codes // 2, codes % 2 == 1)


QUANTILES = (0.01, 0.1, 0.5, 0.9, 0.99)


def describe(found: Neighbours, among: int = AMONG, threshold: float = THRESHOLD) -> dict[str, Any]:
    """Summarise queries: their number, distances, quantiles of ratios, and how many are copies."""
    ratios, first = distance_ratio(found.distances, among), found.distances[:, 0]
    return {
        'images': len(ratios), 'lowest_distance': float(first.min()),
        'median_distance': float(np.median(first)),
        'ratio_quantiles': {f'{q:g}': float(np.quantile(ratios, q)) for q in QUANTILES},
        'copies': int((ratios < threshold).sum()), 'identical': int((first == 0).sum()),
    }


def table_of(told: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """Write what `describe` says of {set of images: {space: of it}} as a table, a line each."""
    head = ['', 'images', 'lowest distance', 'median',
            *(f'ratio {100 * q:g} %' for q in QUANTILES), 'copies', 'identical']
    lines = [[f'{name}, {space}', f'{of["images"]}', f'{of["lowest_distance"]:.4g}',
              f'{of["median_distance"]:.4g}',
              *(f'{ratio:.3f}' for ratio in of['ratio_quantiles'].values()), f'{of["copies"]}',
              f'{of["identical"]}']
             for name, spaces in told.items() for space, of in spaces.items()]
    widths = [max(map(len, column)) for column in zip(head, *lines, strict=True)]
    return '\n'.join('  '.join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])])
                     for line in [head, *lines])


CSV = ('set', 'image', 'space', 'ratio', 'rank', 'neighbour', 'position', 'mirrored', 'distance')


def csv_lines(name: str, images: Sequence[str], found: Mapping[str, Neighbours],
              name_of: Callable[[int], str], k: int,
              among: int = AMONG) -> Iterator[list[str | int]]:
    """Yield the columns CSV of the k nearest of each image of a set, in each space.

    `name_of` names training images.
    """
    for space, part in found.items():
        for i, ratio in enumerate(distance_ratio(part.distances, among)):
            for rank, position in enumerate(part.positions[i, :k].tolist()):
                yield [name, images[i], space, f'{ratio:.6g}', rank + 1, name_of(position),
                       position, int(part.mirrored[i, rank]), f'{part.distances[i, rank]:.6g}']


def draw(images: np.ndarray, neighbours: Mapping[str, np.ndarray],
         copied: Mapping[str, np.ndarray]) -> np.ndarray:
    """Draw uint8 [height, width, 3], a row for each image: itself and its neighbours in each space.

    `images` are uint8 [N, C, H, W]. `neighbours` has, for each title of columns, [N, k, C, H, W],
    and `copied`, for the same titles, bool [N]: in these rows the nearest has a red frame. Images
    under 48 pixels are enlarged by a whole number.
    """
    columns = {'image': images[:, np.newaxis], **neighbours}
    zoom = -(-48 // images.shape[-1])
    height, width = (zoom * size for size in images.shape[-2:])
    high, wide = height + 2 * FRAME, width + 2 * FRAME
    measure_text = PIL.ImageDraw.Draw(PIL.Image.new('L', (1, 1))).textlength
    widths = [max(group.shape[1] * wide, FRAME + round(measure_text(title)))
              for title, group in columns.items()]
    canvas = PIL.Image.new('RGB', (sum(widths) + GAP * (len(columns) + 1),
                                   HEADER + len(images) * high), (GREY,) * 3)
    pen = PIL.ImageDraw.Draw(canvas)
    x = GAP
    for (title, group), column in zip(columns.items(), widths, strict=True):
        pen.text((x + FRAME, HEADER // 4), title, fill='white')
        for row, pictures in enumerate(group):
            y = HEADER + row * high
            if title in copied and copied[title][row]:
                pen.rectangle((x, y, x + wide - 1, y + high - 1), fill='red')
            for i, pixels in enumerate(pictures):
                tile = to_pil(pixels.transpose(1, 2, 0)).resize((width, height),
                                                                PIL.Image.Resampling.NEAREST)
                canvas.paste(tile, (x + i * wide + FRAME, y + FRAME))
        x += column + GAP
    return np.asarray(canvas)
