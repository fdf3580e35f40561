"""The metrics by name: the data that each needs from images and reference, and its computation.

    wanted = needs(['fid', 'kid'], main='pool_3')
    scores(['fid', 'kid'], measured, reference, 'pool_3', extractors)
    # {'fid': 1.97, 'kid': 1e-4, 'kid_std': 2e-4}

The definitions are those of the papers whose tables people compare with: FID, sFID, Inception
Score, precision and recall as in the evaluation suite of Dhariwal & Nichol 2021 (ADM), FD-DINOv2 as
in EDM2. The tap that FID uses is the `main` one. It is pool_3 of Inception, or the tap of another
detector, and in that case every name tells which: no other number is called FID.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from metrics import scores as formulas
from metrics.distances import frechet_distance, is_symmetric, negative_eigenvalue
from metrics.features import OWN, TAPS, FeatureExtractor
from metrics.one_pass import Measured, Wanted
from metrics.statistics import Statistics
from torch_utils.random import random_subset

MOMENTS, FEATURES = 'moments', 'features'
MAIN = 'main'          # stands for pool_3, or for the features of another detector
# what the numbers are called that have Inception in their names, with another network
WITHOUT_INCEPTION = {'fid': 'fd', 'kid': 'kd'}
HIGHER = ('is', 'precision', 'recall', 'density', 'coverage')   # the more, the better
# density and coverage are defined for so many images; of more a random choice
DC_IMAGES = 10_000


@dataclass(frozen=True)
class Reference:
    """The statistics and features of the real images by tap, as far as they are known."""
    source: str
    moments: Mapping[str, Statistics] = field(default_factory=dict)
    features: Mapping[str, np.ndarray] = field(default_factory=dict)   # float32 [N, d]
    notes: Sequence[str] = ()   # on what the file leaves open
    image_shape: Sequence[int] | None = None   # that of the images in it, if there are any


@dataclass(frozen=True)
class Metric:
    """A metric: `compute(generated, reference, extractor)` returns the numbers called `names`.

    Generated and reference are Statistics or features (a tensor [N, d]), as `needs` and `against`
    say; a metric without `against` uses only the generated images.
    """
    names: tuple[str, ...]
    tap: str
    needs: str
    against: str | None
    compute: Callable[[Any, Any, Any], Sequence[float]]
    least: int = 2   # minimum number of generated images, and of features of real ones


def _frechet(generated: Statistics, reference: Statistics, _: object) -> list[float]:
    return [frechet_distance(reference.mu, reference.sigma, generated.mu, generated.sigma)]


def _density_coverage(generated: torch.Tensor, reference: torch.Tensor,
                      _: object) -> Sequence[float]:
    def subset(features: torch.Tensor) -> torch.Tensor:
        chosen = torch.from_numpy(random_subset(len(features), DC_IMAGES))
        return features[chosen.to(features.device)]

    return formulas.density_coverage(subset(generated), subset(reference))


METRICS = {
    'fid': Metric(('fid',), MAIN, MOMENTS, MOMENTS, _frechet),
    'sfid': Metric(('sfid',), 'spatial', MOMENTS, MOMENTS, _frechet),
    'fd_dinov2': Metric(('fd_dinov2',), 'dinov2', MOMENTS, MOMENTS, _frechet),
    'fd_efficientnet_lite0': Metric(('fd_efficientnet_lite0',), 'efficientnet_lite0', MOMENTS,
                                    MOMENTS, _frechet),
    'fid_inf': Metric(('fid_inf',), MAIN, FEATURES, MOMENTS, lambda x, reference, _: [
        formulas.frechet_distance_inf(x, reference.mu, reference.sigma)], least=5001),
    'is': Metric(('is', 'is_std'), 'pool_3', FEATURES, None,
                 lambda x, _, extractor: formulas.inception_score(extractor.logits(x)), least=10),
    'kid': Metric(('kid', 'kid_std'), MAIN, FEATURES, FEATURES,
                  lambda x, y, _: formulas.kernel_distance(x, y), least=1000),
    'pr': Metric(('precision', 'recall'), MAIN, FEATURES, FEATURES,
                 lambda x, y, _: formulas.precision_recall(x, y), least=4),
    'dc': Metric(('density', 'coverage'), MAIN, FEATURES, FEATURES, _density_coverage, least=6),
}


def tap_of(metric: str, main: str) -> str:
    """Return the tap that a metric uses; raise ValueError if the detector does not have it."""
    tap = METRICS[metric].tap
    if tap == MAIN:
        return main
    if main != 'pool_3' and tap in ('pool_3', 'spatial'):
        raise ValueError(f'metrics={metric} needs the Inception network, and '
                         f'detector={TAPS[main].detector} is another: leave {metric} out, or use '
                         f'detector=inception')
    return tap


def names_of(metric: str, main: str) -> list[str]:
    """Return the names of a metric's numbers.

    With another detector than Inception they tell which: fid becomes fd_efficientnet_lite0, fid_inf
    fd_efficientnet_lite0_inf, kid kd_efficientnet_lite0 and precision
    precision_efficientnet_lite0. Those of the demo detector begin with demo_, and FID becomes FD.
    """
    names = METRICS[metric].names
    if METRICS[metric].tap != MAIN or main == 'pool_3':
        return list(names)
    if main == 'demo':
        return [f'demo_{name.replace("fid", "fd")}' for name in names]
    parts = [name.partition('_') for name in names]
    return [f'{WITHOUT_INCEPTION.get(word, word)}_{main}{bar}{rest}' for word, bar, rest in parts]


def higher_is_better(name: str) -> bool:
    """Return whether a larger value of the number `name` is better."""
    word = name.removeprefix('demo_').partition('_')[0]
    return word in HIGHER and not name.endswith('_std')


def needs(metrics: Sequence[str], main: str) -> Wanted:
    """Return the moments and features that the pass over the generated images has to find."""
    return _wanted((METRICS[name].needs, tap_of(name, main)) for name in metrics)


def needs_of_reference(metrics: Sequence[str], main: str) -> Wanted:
    """Return the moments and features that are needed from the real images."""
    return _wanted((METRICS[name].against, tap_of(name, main)) for name in metrics)


def _wanted(needed: Iterable[tuple[str | None, str]]) -> Wanted:
    pairs = list(needed)
    return Wanted(frozenset(tap for kind, tap in pairs if kind == MOMENTS),
                  frozenset(tap for kind, tap in pairs if kind == FEATURES))


def scores(metrics: Sequence[str], generated: Measured, reference: Reference, main: str,
           extractors: Mapping[str, FeatureExtractor],
           device: torch.device | str = 'cpu') -> dict[str, float]:
    """Compute the numbers of all metrics, by name, in the order asked for.

    `extractors` maps taps to extractors. Features are compared on `device`. Raises ValueError for
    too few images.
    """
    def tensor(features: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.asarray(features)).to(device)

    found: dict[str, float] = {}
    for name in metrics:
        metric, tap = METRICS[name], tap_of(name, main)
        ours: Any = (generated.statistics(tap) if metric.needs == MOMENTS
                     else tensor(generated.features[tap]))
        theirs: Any = None
        if metric.against is not None:
            theirs = (reference.moments[tap] if metric.against == MOMENTS
                      else tensor(reference.features[tap]))
        numbers = map(float, metric.compute(ours, theirs, extractors[tap]))
        found.update(zip(names_of(name, main), numbers, strict=True))
    return found


def below_zero(numbers: Mapping[str, float]) -> list[str]:
    """Return a note on each distance that came out below 0, as an estimate of one near 0 may."""
    return [f'{name} came out at {value:.3g}: it estimates a distance without bias, and falls '
            f'below 0 by chance where the distance is about 0' for name, value in numbers.items()
            if value < 0 and not higher_is_better(name) and not name.endswith('_std')]


def check_metrics(metrics: Sequence[str]) -> list[str]:
    """Strip the names of metrics; raise ValueError for one that is unknown or given twice."""
    metrics = [name.strip() for name in metrics]
    for name in metrics:
        if name not in METRICS:
            raise ValueError(f'metrics={name} is unknown: it takes {", ".join(METRICS)}, with '
                             f'commas between')
    if len(set(metrics)) < len(metrics):
        raise ValueError(f'metrics={",".join(metrics)} names one twice')
    return metrics


def check(reference: Reference, metrics: Sequence[str], main: str,
          extractors: Mapping[str, FeatureExtractor], images: str, image_shape: Sequence[int],
          count: int, precision: str, allow_mismatch: bool = False) -> list[str]:
    """Return lines on what makes the numbers doubtful; raise ValueError if they mean nothing.

    `images` is the user's name for the images that are judged, which are `count` of `image_shape`.
    With `allow_mismatch`, a mismatch of origin gives a line instead of an error.
    """
    where = f'ref={reference.source}'
    check_count(metrics, count)   # before a long pass rather than after it
    _check_features(reference, metrics, main, where)
    notes = list(reference.notes)
    if reference.image_shape not in (None, list(image_shape)):
        held = list(reference.image_shape or ())
        mismatch = f'holds images of shape {held}, but these have shape {list(image_shape)}'
        notes += _doubt(where, [mismatch], allow_mismatch)
    _check_moments(reference, metrics, main, where)
    wanted = needs_of_reference(metrics, main)
    for tap in wanted.taps:
        stats = reference.moments.get(tap)
        if stats is None:
            continue
        if not is_symmetric(stats.sigma):
            raise ValueError(f'{where}: the covariance of {tap} is not symmetric, so it is none; '
                             f'make it anew')
        negative = negative_eigenvalue(stats.sigma)
        if negative:
            raise ValueError(f'{where}: the covariance of {tap} has {negative}, so it is none; '
                             f'make it anew')
        mismatches = _mismatches(stats, tap, extractors[tap].digest, image_shape, precision)
        notes += _doubt(where, mismatches, allow_mismatch)
        if stats.detector_id is None and not reference.notes:
            notes.append(f'{reference.source} does not say which detector it was made with; only '
                         f'its size fits')
        if tap in wanted.moments:
            notes += _few(stats.count, count, tap, reference.source)
    return list(dict.fromkeys(notes))


def check_count(metrics: Sequence[str], count: int) -> None:
    """Raise ValueError for a metric that takes more than `count` images."""
    for name in metrics:
        if count < METRICS[name].least:
            raise ValueError(f'metrics={name} takes {METRICS[name].least} images or more, not '
                             f'{count}')


def check_content(reference: Reference, metrics: Sequence[str], main: str,
                  has_images: bool = False) -> None:
    """Raise ValueError where a reference lacks what the metrics compare with.

    This needs no detectors. With `has_images`, missing features can be computed.
    """
    where = f'ref={reference.source}'
    if not has_images:
        _check_features(reference, metrics, main, where)
    _check_moments(reference, metrics, main, where)


def _doubt(where: str, mismatches: Sequence[str], allow_mismatch: bool) -> list[str]:
    """Return mismatches as notes if they are allowed, else raise ValueError."""
    if mismatches and not allow_mismatch:
        raise ValueError(f'{where} {"; ".join(mismatches)}; make it anew with fid.py ref, or say '
                         f'allow_mismatch=True')
    return [f'{where} {mismatch}' for mismatch in mismatches]


def _check_features(reference: Reference, metrics: Sequence[str], main: str, where: str) -> None:
    """Raise ValueError if a metric compares with features that are missing or too few."""
    compared = [name for name in metrics if METRICS[name].against == FEATURES]
    missing = {tap_of(name, main) for name in compared} - set(reference.features)
    for tap in sorted(missing):
        asked = next(name for name in compared if tap_of(name, main) == tap)
        raise ValueError(f'{where} holds no features of its images, which {asked} compares with: '
                         f'make it anew with fid.py ref --metrics={",".join(metrics)}')
    for name in compared:
        held = len(reference.features[tap_of(name, main)])
        if held < METRICS[name].least:
            raise ValueError(f'{where} holds the features of {held} images, and {name} takes '
                             f'{METRICS[name].least} or more')


def _check_moments(reference: Reference, metrics: Sequence[str], main: str, where: str) -> None:
    """Raise ValueError if a metric compares with statistics that are missing."""
    missing = needs_of_reference(metrics, main).moments - set(reference.moments)
    for tap in sorted(missing):
        asked = next(name for name in metrics
                     if METRICS[name].against == MOMENTS and tap_of(name, main) == tap)
        known = ', '.join(TAPS[held].number for held in reference.moments)
        only = f', only those for {known}' if known else ''
        named = tap == main and main != 'pool_3'
        detector = f' --detector={TAPS[main].detector}' if named else ''
        raise ValueError(f'{where} has no statistics of {TAPS[tap].detector_id}, which {asked} '
                         f'compares with here{only}; make it anew with fid.py ref '
                         f'--metrics={",".join(metrics)}{detector}')


def _few(real: int | None, generated: int, tap: str, source: str) -> list[str]:
    """Return notes on images fewer than features, which make distances unreliable."""
    notes, dim = [], TAPS[tap].dim
    if real is not None and real <= dim:
        notes.append(f'{source} is of {real} images, which say little about {dim} features')
    if generated <= dim:
        notes.append(f'{generated} images say little about {dim} features: {TAPS[tap].number} '
                     f'comes out far too high')
    return notes


def _mismatches(stats: Statistics, tap: str, digest: str, image_shape: Sequence[int],
                precision: str) -> list[str]:
    """List how the reference was made differently than the images are judged, if it says so."""
    found = []
    if stats.detector_id not in (None, TAPS[tap].detector_id):
        found.append(f'was made with detector {stats.detector_id}, not {TAPS[tap].detector_id}')
    elif stats.detector_digest not in (None, digest):
        program = ' or another program' if TAPS[tap].detector_id.startswith(OWN) else ''
        found.append(f'was made with other weights{program} of detector {TAPS[tap].detector_id}')
    if stats.precision not in (None, precision):
        found.append(f'was made with precision={stats.precision}, not {precision}')
    if stats.image_shape not in (None, list(image_shape)):
        found.append(f'is of images of shape {stats.image_shape}, but these have shape '
                     f'{list(image_shape)}')
    return found
