"""Judging: images from a file, a folder or a network -> numbers, by any of the metrics.

    judge = Judge('cifar10-32x32.npz', ['fid'], device=device)
    result = judge(open_images('out/images', num=50000))
    result = judge(GeneratedImages(net, sampling, seeds=range(50000), device=device))

Both give the same number for the same pixels, on any number of ranks.
"""

import contextlib
import hashlib
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dnnlib.cli import with_flags
from limpid.denoiser import Counting, Network, traits
from limpid.guidance import Guided
from limpid.sampling import Plan
from limpid.seeds import generate
from metrics.definitions import (
    DC_IMAGES,
    METRICS,
    Reference,
    check,
    kind_of_extractor,
    needs,
    needs_of_reference,
    random_choice,
    scores,
)
from metrics.features import TAPS, FeatureExtractor, load_detector, load_dinov2
from metrics.one_pass import Images, Measured, Stopped, Wanted, measure
from metrics.reference_files import read_reference
from metrics.sample_batch import SampleBatch
from options.network import check_classes
from torch_utils import distributed
from torch_utils.digest import digest_of_tensors
from training.dataset import ImageFolderDataset

LOSSY = ('.jpg', '.jpeg', '.webp')
JPEG = 'some images are JPEG or WebP, and compression adds to the distance: use PNG'
ARRAYS = ('.npz', '.npy')
# images whose features a reference keeps: as many as published comparisons take
MAX_FEATURES = 10_000
# parameters that messages of the metrics name, and options of every command that judges
PARAMETERS = ('ref', 'metrics', 'detector', 'precision', 'state', 'allow_mismatch', 'weights')
PRECISIONS = ('float32', 'tf32', 'float64')


class FolderImages:
    """The images of a folder or zip: all of them, or `num` that `seed` chooses, as EDM's program
    does."""

    def __init__(self, path: str, num: int | None = None, seed: int = 0, workers: int = 0) -> None:
        self.source, self.workers = path, workers
        self.dataset = ImageFolderDataset(path, max_size=num, random_seed=seed)
        self.image_shape = list(self.dataset.image_shape)
        self.lossy = any(name.lower().endswith(LOSSY) for name in self.dataset.files.names)
        self.in_subfolders = any('/' in name for name in self.dataset.files.names)
        self._choice = '' if num is None or len(
            self.dataset.files.names) <= num else f' {num} of seed {seed}'

    def __len__(self) -> int:
        return len(self.dataset)

    def fingerprint(self) -> str:
        """Of names and contents. Those of a folder are read for it: equal sizes do not make equal
        images."""
        digest = hashlib.sha256(self.dataset.fingerprint().encode())
        if not self.dataset.files.is_zip:   # a zip has the checksums
            for name in self.dataset.files.names:
                digest.update(f'{zlib.crc32(self.dataset.files.read(name)):08x}'.encode())
        return digest.hexdigest() + self._choice

    def batches(self, parts: Sequence[range], device: torch.device) -> Iterator[Tensor]:
        loader = torch.utils.data.DataLoader(
            _Reader(self.dataset), batch_size=None, sampler=parts, num_workers=self.workers if parts
            else 0, pin_memory=device.type == 'cuda')
        for item in loader:
            if isinstance(item, str):
                raise ValueError(item)
            yield item.to(device, non_blocking=True)


class _Reader(torch.utils.data.Dataset[Any]):
    """A data set whose index is a range of positions."""

    def __init__(self, dataset: ImageFolderDataset) -> None:
        self.dataset = dataset

    def __getitem__(self, positions: range) -> Tensor | str:
        try:
            return torch.from_numpy(self.dataset.batch(np.array(positions))[0])
        except ValueError as error:
            return str(error)   # raised in a worker, it would arrive as that worker's stack trace


class ArrayImages:
    """The images of an npz or npy file, such as ADM's sample batches; with `num`, those that `seed`
    chooses."""
    lossy = False

    def __init__(self, path: str, num: int | None = None, seed: int = 0) -> None:
        self.source, self.batch = path, SampleBatch(path)
        self.image_shape = list(self.batch.image_shape)
        count = len(self.batch)
        self._positions = None
        if num is not None and num < count:
            order = np.arange(count)
            np.random.RandomState(seed % 2**31).shuffle(order)
            self._positions = np.sort(order[:num])
        self._choice = '' if self._positions is None else f' {num} of seed {seed}'

    def __len__(self) -> int:
        return len(self.batch) if self._positions is None else len(self._positions)

    def fingerprint(self) -> str:
        return self.batch.fingerprint() + self._choice

    def batches(self, parts: Sequence[range], device: torch.device) -> Iterator[Tensor]:
        for part in parts:
            chosen = part if self._positions is None else self._positions[part.start:part.stop]
            yield self.batch.images(chosen).to(device)


class GeneratedImages:
    """The images that a network generates from seeds, without a file: the pixels that generate.py
    would write.

    `batch` images at a time; classes are cycled over the seeds as generate.py does it (None: drawn
    from the seed).
    """
    lossy = False

    def __init__(self, net: Network, plan: Plan, seeds: Sequence[int], *,
                 device: torch.device,  # noqa: ANN401
                 classes: Sequence[int] | None = None, rng: str | None = None, batch: int = 64,
                 source: str = 'a network') -> None:
        check_classes(classes, traits(net).label_dim)
        self.net, self.plan, self.seeds, self.classes = net, plan, seeds, classes
        self.device, self.rng, self.batch, self.source = device, rng, batch, source
        shape = traits(net).image_shape
        assert shape is not None, 'a network that was opened tells the shape of its images'
        self.image_shape = list(shape)

    def __len__(self) -> int:
        return len(self.seeds)

    def fingerprint(self) -> str:
        # Where random numbers are drawn is part of what the images are.
        told = (digest_of(self.net), repr(self.plan), _short(self.seeds), None if self.classes is None
                else list(self.classes), self.rng or self.device.type, self.image_shape)
        return hashlib.sha256(repr(told).encode()).hexdigest()

    def batches(self, parts: Sequence[range], device: torch.device) -> Iterator[Tensor]:
        for part in parts:
            pieces = [part[i:i + self.batch] for i in range(0, len(part), self.batch)]
            yield torch.cat([self._generate(piece) for piece in pieces]).to(device)

    def _generate(self, positions: range) -> Tensor:
        classes = None if self.classes is None else [self.classes[i % len(self.classes)]
                                                     for i in positions]
        return generate(self.net, self.plan, [self.seeds[i] for i in positions], classes,
                        self.device, self.rng)


def digest_of(net: Any) -> str:  # noqa: ANN401 (any denoiser)
    """Equal for equal networks: of weights, or of the data of an ideal denoiser, and how they are
    used."""
    if isinstance(net, Counting):
        return digest_of(net.net)
    if isinstance(net, Guided):
        guide = '' if net.guide is None else f' from {digest_of(net.guide)}'
        return f'{net.guidance!r} of {digest_of(net.net)}{guide}'
    if isinstance(net, torch.nn.Module):
        return f'{type(net).__name__} {getattr(net, "precond", None)!r} {getattr(net, "dtype", None)} {digest_of_tensors(net.state_dict())}'
    data = hashlib.sha256(net.images.detach().cpu().contiguous().numpy().tobytes())
    if net.labels is not None:
        data.update(net.labels.detach().cpu().contiguous().numpy().tobytes())
    return f'{type(net).__name__} {data.hexdigest()}'


def _short(seeds: Sequence[int]) -> str:
    """Seeds as text that does not grow with their number."""
    return repr(seeds) if isinstance(seeds,
                                     range) else hashlib.sha256(
                                         repr(list(seeds)).encode()).hexdigest()


def open_images(path: str, num: int | None = None, seed: int = 0,
                workers: int = 0) -> FolderImages | ArrayImages:
    """A folder or zip of images, or an npz file of them. ValueError, naming the path, for anything
    else."""
    if path.lower().endswith(ARRAYS) and not os.path.isdir(path):
        return ArrayImages(path, num, seed)
    return FolderImages(path, num, seed, workers)


@dataclass(frozen=True)
class Result:
    """The numbers, by name, and where they come from."""
    scores: dict[str, float]
    count: int                       # generated images
    reference_count: int | None      # real ones, where the reference tells
    notes: list[str]
    measured: Measured
    about: dict[str, Any] = field(default_factory=dict)   # for reports, in JSON


class Judge:
    """A reference, detectors and metrics, loaded once; called with images, it gives their numbers.

    ref        a file of reference statistics of any format (metrics/reference_files.py), an
               address, or the real images themselves: a folder or a zip
    metrics    keys of METRICS
    detector   'inception', 'demo', or a file of Inception weights
    precision  of the detectors: float32, tf32 (CUDA only) or float64

    Collective: every rank makes one and calls it. ValueError, on all ranks, for what does not fit.
    """

    def __init__(self, ref: str, metrics: Sequence[str] = ('fid',), *, device: torch.device,
                 detector: str = 'inception', batch: int = 64, workers: int = 0,
                 precision: str = 'float32', allow_mismatch: bool = False) -> None:
        self.ref, self.metrics, self.detector = ref, list(metrics), detector
        self.device, self.batch, self.workers = device, batch, workers
        self.precision, self.allow_mismatch = precision, allow_mismatch
        self.main = main_tap(detector)
        self.wanted = needs(self.metrics, self.main)
        taps = {*self.wanted.taps, *needs_of_reference(self.metrics, self.main).taps}
        self.extractors = load_extractors(taps, detector, device, precision)
        self._said: set[str] = set()   # notes are not repeated
        self._known = False
        self._origin: str | None = None
        self._reference: Reference | None = None   # on rank 0 only

    def reference(self, state: str | os.PathLike[str] | None = None) -> Reference | None:
        """The real images' statistics, read or computed at the first call: on rank 0, None on the
        others.

        With `state`, a folder, what is computed can be continued.
        """
        if not self._known:
            holds_images = os.path.isdir(self.ref) or (self.ref.lower().endswith('.zip')
                                                       and os.path.isfile(self.ref))
            self._reference = self._from_images(state) if holds_images else self._from_file(state)
            self._known = True
        return self._reference

    def _from_images(self, state: str | os.PathLike[str] | None) -> Reference | None:
        images = open_images(self.ref, workers=self.workers)
        return self._measured_reference(images, needs_of_reference(self.metrics, self.main), state)

    def _from_file(self, state: str | os.PathLike[str] | None) -> Reference | None:
        found = None
        with distributed.errors_on_all(ValueError, OSError):
            if distributed.get_rank() == 0:
                found = read_reference(self.ref)
        wanted, features = needs_of_reference(self.metrics, self.main).features, {}
        if found is not None:
            features = {tap: found.features[tap] for tap in wanted if tap in found.features}
        missing = sorted(wanted - set(features)) if found is not None and found.has_images else []
        missing, has_images = distributed.gather_objects((missing, found is not None
                                                          and found.has_images))[0]
        # ADM's files: statistics of all, and 10,000 of them
        images = ArrayImages(self.ref) if has_images else None
        if missing and images is not None:
            more = self._measured_reference(images, Wanted(features=frozenset(missing)), state)
            features |= more.features if more is not None else {}
        shape = None if images is None else images.image_shape
        return None if found is None else Reference(self.ref, found.moments, features, found.notes,
                                                    shape)

    def _measured_reference(self, images: Images, wanted: Wanted,
                            state: str | os.PathLike[str] | None) -> Reference | None:
        keep = random_choice(len(images), MAX_FEATURES) if wanted.features else None
        found = measure(images, self._networks(wanted),
                        Wanted(wanted.moments, wanted.features, keep), device=self.device,
                        batch=self.batch, precision=self.precision, title='reference', state=None
                        if state is None else os.path.join(state, 'reference'))
        if not isinstance(found, Measured):
            return None
        notes = [f'{self.ref}: {JPEG}'] if getattr(images, 'lossy', False) else []
        return Reference(self.ref, {tap: found.statistics(tap) for tap in found.moments},
                         found.features, notes, images.image_shape)

    def origin(self) -> str:
        """Equal for equal references, detectors, metrics and precision: what numbers depend on
        besides the images.

        A reference counts as equal if it says that it is of the same images, or has the same
        numbers. Collective.
        """
        if self._origin is None:
            reference, total = self.reference(), hashlib.sha256()
            detectors = {tap: extractor.digest
                         for tap, extractor in sorted(self.extractors.items())}
            total.update(repr((detectors, self.metrics, self.precision,
                               self.allow_mismatch)).encode())
            for tap, stats in sorted(reference.moments.items()) if reference is not None else ():
                told = (tap, stats.count, stats.data_fingerprint, stats.detector_digest,
                        stats.precision)
                total.update(repr(told).encode())
                if stats.data_fingerprint is None:
                    total.update(stats.mu.tobytes() + stats.sigma.tobytes())
            for tap, features in sorted(
                reference.features.items()) if reference is not None else ():
                known = reference is not None and tap in reference.moments
                total.update(f'{tap} {features.shape}'.encode()
                             + (b'' if known else features.tobytes()))
            self._origin = distributed.gather_objects(total.hexdigest())[0]
        return self._origin

    def __call__(self, images: Images, state: str | os.PathLike[str] | None = None,
                 title: str = '') -> Result | Stopped | None:
        """Judge images; the result is on rank 0, None on the others, and Stopped on all ranks where
        the images ended early. With `state`, a folder, it can be continued."""
        reference = self.reference(state)
        notes: list[str] = []
        with distributed.errors_on_all():
            if reference is not None:
                notes = self.notes(images, reference)
        for note in notes:
            if note not in self._said:
                distributed.print0(f'Note: {with_flags(note, PARAMETERS)}')
        self._said.update(notes)
        measured = self.measure(images, state, title)
        if isinstance(measured, Stopped):
            return measured
        found = None
        with distributed.errors_on_all():
            if measured is not None and reference is not None:
                found = self.judged(measured, reference, notes)
        return found

    def notes(self, images: Images, reference: Reference) -> list[str]:
        """What makes the numbers doubtful; ValueError for what makes them meaningless."""
        notes = check(reference, self.metrics, self.main, self.extractors, images.source,
                      images.image_shape, len(images), self.precision, self.allow_mismatch)
        if getattr(images, 'lossy', False):
            notes.append(JPEG)
        if 'is' in self.metrics and isinstance(images, FolderImages) and images.in_subfolders:
            notes.append('the Inception Score is taken over tenths of the images in their order, '
                         'as by ADM: of images that lie in subfolders by class it comes out too low')
        if 'dc' in self.metrics and len(images) > DC_IMAGES:
            notes.append(f'density and coverage are of {DC_IMAGES} of the {len(images)} images, a '
                         f'random choice')
        return notes

    def measure(self, images: Images, state: str | os.PathLike[str] | None = None,
                title: str = '') -> Measured | Stopped | None:
        """Look at the images once for everything that the metrics need; collective."""
        return measure(images, self._networks(self.wanted), self.wanted, device=self.device,
                       batch=self.batch, precision=self.precision, state=state, title=title)

    def judged(self, measured: Measured, reference: Reference, notes: list[str]) -> Result:
        """The numbers of what was measured."""
        used = [stats for tap, stats in reference.moments.items() if tap in self.extractors]
        counts = [stats.count for stats in used if stats.count is not None]
        numbers = scores(self.metrics, measured, reference, self.main, self.extractors, self.device)
        about = {
            'images': measured.about['source'], 'num_images': measured.count,
            'data_fingerprint': measured.about['data_fingerprint'],
            'image_shape': measured.about['image_shape'], 'ref': self.ref,
            'ref_num_images': counts[0] if counts else None,
            'ref_fingerprint': used[0].data_fingerprint if used else None,
            'ref_features': {tap: len(reference.features[tap])
                             for tap in sorted(reference.features)},
            'detectors': {TAPS[tap].detector_id: self.extractors[tap].digest
                          for tap in sorted(self.extractors)}, 'precision': self.precision,
            'versions': measured.about['versions'], 'notes': notes,
        }
        return Result(numbers, measured.count, counts[0] if counts else None, notes, measured,
                      about)

    def _networks(self, wanted: Wanted) -> list[FeatureExtractor]:
        """Each network once, however many of its taps are wanted."""
        return list({id(e): e for e in (self.extractors[tap] for tap in wanted.taps)}.values())


def main_tap(detector: str) -> str:
    return 'demo' if detector == 'demo' else 'pool_3'


def load_extractors(taps: set[str], detector: str, device: torch.device,
                    precision: str = 'float32') -> dict[str, FeatureExtractor]:
    """The networks of these taps, by tap, each loaded once. ValueError for weights that are not
    there."""
    if precision == 'tf32' and device.type != 'cuda':
        raise ValueError(f'--precision=tf32 is of CUDA devices, and would have no effect on '
                         f'{device.type}')
    dtype = torch.float64 if precision == 'float64' else torch.float32
    if dtype == torch.float64 and device.type == 'mps':
        raise ValueError('--precision=float64: this device has no float64; use --device=cpu')
    kinds = {kind_of_extractor(tap) for tap in taps}
    networks: dict[str, Any] = {}
    for kind in sorted(kinds):
        networks[kind] = load_dinov2(device, dtype) if kind == 'dinov2' else load_detector(detector,
                                                                                           device,
                                                                                           dtype)
    if precision == 'tf32':
        networks = {kind: TF32(network) for kind, network in networks.items()}
    return {tap: networks[kind_of_extractor(tap)] for tap in taps}


class TF32:
    """A detector that computes in CUDA's TF32; what is around it does not."""

    def __init__(self, extractor: FeatureExtractor) -> None:
        self.extractor = extractor

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        return getattr(self.extractor, name)

    def features(self, images: Tensor) -> dict[str, Tensor]:
        with _tf32():
            return self.extractor.features(images)


@contextlib.contextmanager
def _tf32() -> Iterator[None]:
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32
    cudnn.allow_tf32 = matmul.allow_tf32 = True
    try:
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32 = before


def check_metrics(metrics: Sequence[str]) -> list[str]:
    """ValueError for a name that is no metric, or that comes twice."""
    metrics = [name.strip() for name in metrics]
    for name in metrics:
        if name not in METRICS:
            raise ValueError(f'--metrics={name} is unknown: it takes {", ".join(METRICS)}, with '
                             f'commas between')
    if len(set(metrics)) < len(metrics):
        raise ValueError(f'--metrics={",".join(metrics)} names one twice')
    return list(metrics)
