"""Judging: images and a reference -> numbers, by any of the metrics.

    judge = Judge('cifar10-32x32.npz', ['fid'], device=device)
    result = judge(ArrayImages('samples_50000x32x32x3.npz'))

The numbers are the same for the same pixels, wherever they come from, on any number of ranks.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from dnnlib.cli import with_flags
from metrics.definitions import (
    DC_IMAGES,
    Reference,
    below_zero,
    check,
    check_content,
    needs,
    needs_of_reference,
    scores,
)
from metrics.detectors import FIXED, check_name, distinct, load_extractors, main_tap
from metrics.features import TAPS, FeatureExtractor
from metrics.images import ArrayImages, Images, check_kind
from metrics.one_pass import Measured, Stopped, Wanted, measure
from metrics.reference_files import ReferenceFile, read_reference
from torch_utils import distributed
from torch_utils.random import random_subset

JPEG = 'some images are JPEG or WebP, and compression adds to the distance: use PNG'
# images whose features a reference keeps: as many as published comparisons take
MAX_FEATURES = 10_000
# parameters that messages of the metrics name, and options of every command that judges
PARAMETERS = ('ref', 'metrics', 'detector', 'precision', 'state', 'allow_mismatch', 'device')


@dataclass(frozen=True)
class Result:
    """The numbers of images, by name, and where they come from."""
    scores: dict[str, float]
    count: int                       # images judged
    reference_count: int | None      # real ones, where the reference tells
    notes: list[str]
    measured: Measured
    about: dict[str, Any] = field(default_factory=dict)   # for reports, in JSON


class Judge:
    """A reference, detectors and metrics, loaded once; called with images, it gives their numbers.

    ref             a file of reference statistics of any format (metrics/reference_files.py), its
                    address, or the real images themselves
    metrics         keys of METRICS
    detector        a key of DETECTORS, a file of Inception weights, or module:function
    precision       of the detectors: float32, tf32 (CUDA only) or float64
    batch           images at a time, on each rank
    allow_mismatch  whether to compare even if the reference was made in another way

    Collective: every rank makes one and calls it. Raises ValueError, on all ranks, for settings
    that do not fit together.
    """

    def __init__(self, ref: str | Images, metrics: Sequence[str] = ('fid',), *,
                 device: torch.device, detector: str = 'inception', batch: int = 64,
                 precision: str = 'float32', allow_mismatch: bool = False) -> None:
        self._real = ref
        self.ref = ref if isinstance(ref, str) else ref.source
        self.metrics, self.detector = list(metrics), detector
        self.device, self.batch = device, batch
        self.precision, self.allow_mismatch = precision, allow_mismatch
        self.main = main_tap(detector)
        self.wanted = needs(self.metrics, self.main)
        self.wanted_of_reference = needs_of_reference(self.metrics, self.main)
        taps = {*self.wanted.taps, *self.wanted_of_reference.taps}
        if taps - set(FIXED):
            check_name(detector)
        if not isinstance(ref, str):
            check_kind(ref, detector)
        # before the detectors: their weights may have to be downloaded
        self._file = self._read(ref) if isinstance(ref, str) else None   # on rank 0 only
        self.extractors = load_extractors(taps, detector, device, precision)
        self._said: set[str] = set()   # notes are not repeated
        self._known = False
        self._origin: str | None = None
        self._reference: Reference | None = None   # on rank 0 only

    def reference(self, state: str | os.PathLike[str] | None = None) -> Reference | None:
        """Return the statistics and features of the real images, on rank 0; None on the others.

        They are read or computed at the first call. With `state`, a folder, a computation can be
        continued.
        """
        if not self._known:
            if isinstance(self._real, str):
                self._reference = self._from_file(self._real, self._file, state)
                self._file = None   # with its features, it may be large
            else:
                self._reference = self._measured(self._real, self.wanted_of_reference, state)
            self._known = True
        return self._reference

    def _read(self, path: str) -> ReferenceFile | None:
        """Read a file, on rank 0; ValueError where it lacks what the metrics compare with."""
        found = None
        with distributed.errors_on_all(ValueError, OSError):
            if distributed.get_rank() == 0:
                found = read_reference(path)
                content = Reference(self.ref, found.moments, found.features)
                check_content(content, self.metrics, self.main, found.has_images)
        return found

    def _from_file(self, path: str, found: ReferenceFile | None,
                   state: str | os.PathLike[str] | None) -> Reference | None:
        """Take what a file has; if it holds images without features, as ADM's do, compute these."""
        features, missing, has_images = {}, [], False
        wanted = self.wanted_of_reference.features
        if found is not None:
            has_images = found.has_images
            features = {tap: found.features[tap] for tap in wanted if tap in found.features}
            missing = sorted(wanted - set(features)) if has_images else []
        missing, has_images = distributed.gather_objects((missing, has_images))[0]
        images = ArrayImages(path) if has_images else None
        if missing and images is not None:
            more = self._measured(images, Wanted(features=frozenset(missing)), state)
            features |= more.features if more is not None else {}
        if found is None:
            return None
        return Reference(self.ref, found.moments, features, found.notes,
                         None if images is None else images.image_shape)

    def _measured(self, images: Images, wanted: Wanted,
                  state: str | os.PathLike[str] | None) -> Reference | None:
        """Measure real images; features are kept of at most MAX_FEATURES of them."""
        if wanted.features:
            keep = random_subset(len(images), MAX_FEATURES)
            wanted = Wanted(wanted.moments, wanted.features, keep)
        folder = None if state is None else os.path.join(state, 'reference')
        found = measure(images, self._networks(wanted), wanted, device=self.device,
                        batch=self.batch, precision=self.precision, title='reference',
                        state=folder)
        if not isinstance(found, Measured):
            return None
        moments = {tap: found.statistics(tap) for tap in found.moments}
        notes = [f'{self.ref}: {JPEG}'] if images.lossy else []
        return Reference(self.ref, moments, found.features, notes, images.image_shape)

    def origin(self) -> str:
        """Return a digest of all that the numbers depend on besides the images; collective.

        It is equal for equal references, detectors, metrics and precision. References count as
        equal if they say that they come from the same images, or have the same numbers.
        """
        if self._origin is None:
            detectors = {tap: extractor.digest
                         for tap, extractor in sorted(self.extractors.items())}
            settings = repr((detectors, self.metrics, self.precision, self.allow_mismatch))
            total, reference = hashlib.sha256(settings.encode()), self.reference()
            if reference is not None:
                for part in _identity(reference):
                    total.update(part)
            self._origin = distributed.gather_objects(total.hexdigest())[0]
        return self._origin

    def __call__(self, images: Images, state: str | os.PathLike[str] | None = None,
                 title: str = '') -> Result | Stopped | None:
        """Judge images; the result is on rank 0, None on the others.

        If the images end early, it is Stopped on all ranks. With `state`, a folder, the work can be
        continued.
        """
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
        for note in [] if found is None else found.notes[len(notes):]:
            distributed.print0(f'Note: {note}')
        return found

    def notes(self, images: Images, reference: Reference) -> list[str]:
        """Return notes on what makes the numbers doubtful; ValueError if they mean nothing."""
        notes = check(reference, self.metrics, self.main, self.extractors, images.source,
                      images.image_shape, len(images), self.precision, self.allow_mismatch)
        if images.lossy:
            notes.append(JPEG)
        if 'is' in self.metrics and images.in_subfolders:
            notes.append('the Inception Score is taken over tenths of the images in their order, '
                         'as by ADM: of images that lie in subfolders by class it comes out too '
                         'low')
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
        """Compute the numbers from the moments and features that were measured."""
        numbers = scores(self.metrics, measured, reference, self.main, self.extractors, self.device)
        notes = [*notes, *below_zero(numbers)]
        used = [stats for tap, stats in reference.moments.items() if tap in self.extractors]
        counts = [stats.count for stats in used if stats.count is not None]
        about = {
            'images': measured.about['source'], 'num_images': measured.count,
            'data_fingerprint': measured.about['data_fingerprint'],
            'image_shape': measured.about['image_shape'], 'ref': self.ref,
            'ref_num_images': counts[0] if counts else None,
            'ref_fingerprint': used[0].data_fingerprint if used else None,
            'ref_features': {tap: len(reference.features[tap])
                             for tap in sorted(reference.features)},
            'detector': self.detector,
            'detectors': {TAPS[tap].detector_id: self.extractors[tap].digest
                          for tap in sorted(self.extractors)}, 'precision': self.precision,
            'versions': measured.about['versions'], 'notes': notes,
        }
        return Result(numbers, measured.count, counts[0] if counts else None, notes, measured,
                      about)

    def _networks(self, wanted: Wanted) -> list[FeatureExtractor]:
        return distinct(self.extractors[tap] for tap in wanted.taps)


def _identity(reference: Reference) -> Iterator[bytes]:
    """Yield the identity of a reference: where it comes from, or else its numbers."""
    for tap, stats in sorted(reference.moments.items()):
        yield repr((tap, stats.count, stats.data_fingerprint, stats.detector_digest,
                    stats.precision)).encode()
        if stats.data_fingerprint is None:
            yield stats.mu.tobytes() + stats.sigma.tobytes()
    for tap, features in sorted(reference.features.items()):
        yield f'{tap} {features.shape}'.encode()
        if tap not in reference.moments:
            yield features.tobytes()
