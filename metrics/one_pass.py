"""One pass over images: the moments and features that every metric is computed from.

    measured = measure(images, extractors, Wanted(moments={'pool_3'}), device=device)

Chunks of 1024 images go to the ranks in turn, and their results are combined in the order of the
chunks. So the result has the same bits on any number of ranks, and after a pass that was killed and
continued, even on another number of ranks.
"""

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dnnlib.cli import with_flags
from dnnlib.files import atomic_write, held, remove_leftovers
from dnnlib.progress import Progress
from metrics.features import TAPS, FeatureExtractor
from metrics.images import Images
from metrics.statistics import CHUNK, Moments, Statistics, chunks, library_versions
from torch_utils import distributed
from torch_utils.arrays import read_npy, read_npz

SAVE_SECONDS = 30   # between two saves of a pass that can be continued


@dataclass(frozen=True)
class Wanted:
    """The taps, keys of metrics.features.TAPS, that a pass sums up or whose features it keeps.

    keep   the positions [K], rising, whose features are kept; None: all
    """
    moments: frozenset[str] = frozenset()
    features: frozenset[str] = frozenset()
    keep: np.ndarray | None = None

    @property
    def taps(self) -> list[str]:
        return sorted(self.moments | self.features)


@dataclass
class Measured:
    """The result of a pass: moments and features by tap, and their origin."""
    count: int
    moments: dict[str, Moments] = field(default_factory=dict)
    # float32 [N, d] in the order of the images
    features: dict[str, np.ndarray] = field(default_factory=dict)
    # the further fields of Statistics
    about: dict[str, Any] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)           # of the detectors, by tap

    def statistics(self, tap: str) -> Statistics:
        """Return μ and Σ of a tap, with their origin."""
        moments = self.moments[tap]
        return Statistics(moments.mean(), moments.cov(), self.count,
                          detector_id=TAPS[tap].detector_id, detector_digest=self.digests[tap],
                          **self.about)


@dataclass(frozen=True)
class Stopped:
    """The result, on every rank, of a pass over images that ended before their last one."""


def measure(images: Images, extractors: Sequence[FeatureExtractor], wanted: Wanted, *,
            device: torch.device, batch: int = 64, precision: str = 'float32',
            state: str | os.PathLike[str] | None = None, save_seconds: float = SAVE_SECONDS,
            title: str = '') -> Measured | Stopped | None:
    """Measure all images once, over all ranks; the result is on rank 0, None on the others.

    `extractors` have the wanted taps between them, and each batch is given to all of them. With
    `state`, a folder, progress is saved there every `save_seconds`; a pass continues from progress
    that it finds there, and a finished one is not repeated. If the images of any rank end early,
    the result is Stopped on all ranks, and the saved progress can be continued.

    Collective, once for every world_size chunks. Raises ValueError on every rank if any rank meets
    one, and for a `state` of another pass.
    """
    rank, world_size = distributed.get_rank(), distributed.get_world_size()
    digests = {tap: extractor.digest for extractor in extractors for tap in extractor.taps}
    fingerprint = distributed.gather_objects(images.fingerprint() if rank == 0 else '')[0]
    total = {tap: Moments.zero(TAPS[tap].dim, device) for tap in sorted(wanted.moments)}
    kept: dict[str, list[np.ndarray]] = {tap: [] for tap in sorted(wanted.features)}
    all_chunks = chunks(len(images))
    with contextlib.ExitStack() as stack:
        saver, first = None, 0
        with distributed.errors_on_all(ValueError, OSError):
            if state is not None and rank == 0:
                identity = _identity(len(images), fingerprint, precision, wanted, digests)
                saver = stack.enter_context(
                    _State(Path(state), identity, list(map(len, all_chunks)), wanted.keep))
                first = saver.load(total, kept)
                _say_what_was_there(first, len(all_chunks), len(images), state)
        first = distributed.gather_objects(first)[0]
        shown = stack.enter_context(Progress(len(images), title, quiet=rank > 0,
                                             done=min(first * CHUNK, len(images))))
        # The other ranks are assumed to be as far as this one.
        found = _features(images, all_chunks[first + rank::world_size], extractors, wanted.taps,
                          batch, device, lambda count: shown.advance(count * world_size))
        saved = time.monotonic()
        for start in range(first, len(all_chunks), world_size):
            together = all_chunks[start:start + world_size]
            if not _add_round(found, together, total, kept, wanted.keep, device):
                return Stopped()
            done = start + len(together)
            shown.reach(min(done * CHUNK, len(images)))
            if saver is not None and (time.monotonic() - saved > save_seconds
                                         or done == len(all_chunks)):
                saver.save(done, total, kept)
                saved = time.monotonic()
    if rank > 0:
        return None
    for moments in total.values():
        assert moments.count == len(images), f'{moments.count} of {len(images)} images were counted'
    about = {'image_shape': images.image_shape, 'data_fingerprint': fingerprint,
             'precision': precision, 'source': images.source, 'versions': library_versions()}
    features = {tap: np.concatenate(parts) for tap, parts in kept.items()}
    return Measured(len(images), total, features, about, digests)


def _identity(count: int, fingerprint: str, precision: str, wanted: Wanted,
              digests: dict[str, str]) -> dict[str, Any]:
    """Return everything that the sums and features of a pass depend on."""
    return {
        'images': count, 'data': fingerprint, 'precision': precision,
        'moments': sorted(wanted.moments), 'features': sorted(wanted.features),
        'kept': None if wanted.keep is None else len(wanted.keep),
        'detectors': {TAPS[tap].detector_id: digests[tap] for tap in wanted.taps},
    }


def _say_what_was_there(done: int, num_chunks: int, count: int,
                        state: str | os.PathLike[str]) -> None:
    if done == num_chunks:
        note = with_flags(f'taken from state={state}, where this was measured before', ['state'])
        print(f'Note: {note}', flush=True)
    elif done:
        print(f'Note: continuing from {done * CHUNK} of {count} images', flush=True)


def _add_round(found: Iterator[dict[str, Tensor]], together: list[range],
               total: dict[str, Moments], kept: dict[str, list[np.ndarray]],
               keep: np.ndarray | None, device: torch.device) -> bool:
    """Add one chunk of each rank, in the order of the chunks; collective.

    `together` are the chunks, fewer than ranks at the end. The features of this rank's chunk come
    from `found`. Returns False, on all ranks, where those of any rank have ended.
    """
    features: dict[str, Tensor] | None = {}
    sums: dict[str, Tensor] = {}
    with distributed.errors_on_all(ValueError, FloatingPointError):
        if distributed.get_rank() < len(together):
            features = next(found, None)
        if features is not None:
            sums = {tap: _sums(features.get(tap), TAPS[tap].dim, device) for tap in total}
    if any(distributed.gather_objects(features is None)) or features is None:
        return False
    for tap in total:
        for part in distributed.gather(sums[tap])[:len(together)]:
            total[tap].merge(Moments(part))
    for tap in kept:
        parts = distributed.gather(_padded(features.get(tap), TAPS[tap].dim, device))
        kept[tap] += [_rows(part, chunk, keep)
                      for part, chunk in zip(parts, together, strict=False)]
    return True


@torch.no_grad()
def _features(images: Images, mine: list[range], extractors: Sequence[FeatureExtractor],
              taps: Sequence[str], batch: int, device: torch.device,
              show: Callable[[int], None]) -> Iterator[dict[str, Tensor]]:
    """Yield {tap: [len(chunk), d]} for each chunk of positions; end where the images do.

    `show` is told the number of images of each batch.
    """
    parts = [chunk[start:start + batch] for chunk in mine for start in range(0, len(chunk), batch)]
    pixels = images.batches(parts, device)
    for chunk in mine:
        found: dict[str, list[Tensor]] = {tap: [] for tap in taps}
        for _ in range(0, len(chunk), batch):
            x = next(pixels, None)
            if x is None:
                return
            for extractor in extractors:
                for tap, features in extractor.features(x).items():
                    if tap in found:
                        found[tap].append(features)
            show(len(x))
        yield {tap: torch.cat(parts_of_chunk) for tap, parts_of_chunk in found.items()}


def _sums(features: Tensor | None, dim: int, device: torch.device) -> Tensor:
    """Return Σ (1, f)(1, f)ᵀ of one chunk's features [n, d], or zeros for none."""
    part = Moments.zero(dim, device)
    if features is not None:
        part.add(features)
    return part.sums


def _padded(features: Tensor | None, dim: int, device: torch.device) -> Tensor:
    """Pad features to float32 [CHUNK, d]: all ranks send tensors of one shape."""
    if features is None:
        return torch.zeros([CHUNK, dim], device=device)
    return torch.nn.functional.pad(features.to(torch.float32), (0, 0, 0, CHUNK - len(features)))


def _rows(padded: Tensor, chunk: range, keep: np.ndarray | None) -> np.ndarray:
    """Return those of a chunk's features that are kept."""
    features = padded[:len(chunk)].cpu().numpy()
    if keep is None:
        return features
    first, last = np.searchsorted(keep, [chunk.start, chunk.stop])
    return features[keep[first:last] - chunk.start]


class _State:
    """The folder of a pass: progress.npz has the sums so far, and each chunk a file of features."""

    def __init__(self, folder: Path, identity: dict[str, Any], counts: list[int],
                 keep: np.ndarray | None) -> None:
        """`counts`: images of each chunk; `keep` as in Wanted."""
        self.folder, self.counts = folder, counts
        self.identity = json.dumps(identity, sort_keys=True)
        ends = np.cumsum([0, *counts])
        # features of each chunk
        self.rows = counts if keep is None else np.diff(np.searchsorted(keep, ends)).tolist()
        self.written = 0   # chunks whose features are in files

    def __enter__(self) -> '_State':
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise ValueError(f'state={self.folder} is a file, or lies in one; name a folder'
                             ) from None
        self._lock = contextlib.ExitStack()
        self._lock.enter_context(held(self.folder / '.lock'))
        remove_leftovers(self.folder, r'progress\.npz|.+-\d{6}\.npy')
        return self

    def __exit__(self, *error: object) -> None:
        self._lock.close()

    def load(self, total: dict[str, Moments], kept: dict[str, list[np.ndarray]]) -> int:
        """Put what is there into `total` and `kept`; return how many chunks are done."""
        path = self.folder / 'progress.npz'
        if not path.exists():
            return 0
        try:
            file = read_npz(path)
            identity, done = str(file['identity']), int(file['done'])
            if identity == self.identity:
                sums = {tap: file[f'sums.{tap}'] for tap in total}
                found = {tap: [read_npy(self._path(tap, c)) for c in range(done)] for tap in kept}
                self._check(done, total, sums, found)
        except Exception as error:
            raise ValueError(f'state={self.folder} is damaged ({" ".join(str(error).split())}): '
                             'delete the folder, or name another') from error
        if identity != self.identity:
            raise ValueError(f'state={self.folder} belongs to other images, or to a measurement '
                             f'of something else ({_difference(identity, self.identity)}): delete '
                             f'the folder, or name another')
        for tap, moments in total.items():
            moments.sums.copy_(torch.from_numpy(sums[tap]))
        for tap, parts in kept.items():
            parts.extend(found[tap])
        self.written = done
        return done

    def _check(self, done: int, total: dict[str, Moments], sums: dict[str, np.ndarray],
               found: dict[str, list[np.ndarray]]) -> None:
        """Raise ValueError for numbers that this pass cannot have written."""
        if not 0 < done <= len(self.rows):
            raise ValueError(f'{done} of {len(self.rows)} chunks are done')
        for tap, moments in total.items():
            if sums[tap].shape != moments.sums.shape or not np.isfinite(sums[tap]).all():
                raise ValueError(f'the sums of {tap} are not finite, or of another shape')
            if round(float(sums[tap][0, 0])) != sum(self.counts[:done]):
                raise ValueError(f'the sums of {tap} are of {sums[tap][0, 0]:g} images')
        for tap, parts in found.items():
            for chunk, part in enumerate(parts):
                if part.shape != (self.rows[chunk], TAPS[tap].dim) or part.dtype != np.float32:
                    raise ValueError(f'{self._path(tap, chunk).name} is {part.dtype} '
                                     f'{list(part.shape)}')

    def save(self, done: int, total: dict[str, Moments], kept: dict[str, list[np.ndarray]]) -> None:
        for tap, parts in kept.items():
            for c in range(self.written, done):
                with atomic_write(self._path(tap, c), durable=False) as file:
                    np.save(file, parts[c])
        self.written = done
        sums = {f'sums.{tap}': moments.sums.cpu().numpy() for tap, moments in total.items()}
        with atomic_write(self.folder / 'progress.npz') as file:
            arrays: dict[str, Any] = {'identity': self.identity, 'done': done, **sums}
            np.savez(file, **arrays)

    def _path(self, tap: str, chunk: int) -> Path:
        return self.folder / f'{tap}-{chunk:06d}.npy'


def _difference(a: str, b: str) -> str:
    """Return which parts of two identities differ."""
    try:
        theirs, ours = json.loads(a), json.loads(b)
        return ', '.join(key for key in ours if theirs.get(key) != ours[key])
    except (ValueError, AttributeError):
        return 'it does not say which'
