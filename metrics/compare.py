"""The Fréchet distance of two files of statistics, without images or detectors."""

from metrics.distances import frechet_distance
from metrics.features import TAPS
from metrics.reference_files import read_reference
from metrics.statistics import Statistics

ORIGIN = ('detector_id', 'detector_digest', 'precision', 'image_shape')


def compare_files(first: str, second: str, allow_mismatch: bool = False) -> list[str]:
    """Compare the statistics that two files share; return lines, of which the last is the distance.

    Raises ValueError if they have no features in common and, unless `allow_mismatch`, if they were
    made differently.
    """
    a, b = read_reference(first), read_reference(second)
    lines = [f'Note: {note}' for note in (*a.notes, *b.notes)]
    common = [tap for tap in TAPS if tap in a.moments and tap in b.moments]
    if not common:
        raise ValueError(f'{first} and {second} have no features in common: '
                         f'{", ".join(a.moments) or "none"} and {", ".join(b.moments) or "none"}')
    distances = {}
    for tap in common:
        x, y = a.moments[tap], b.moments[tap]
        mismatches = _mismatches(x, y)
        if mismatches and not allow_mismatch:
            raise ValueError(f'{first} and {second} were made otherwise ({"; ".join(mismatches)}); '
                             f'say allow_mismatch=True to compare them all the same')
        lines += [f'Note: they differ in {mismatch}' for mismatch in mismatches]
        lines += [f'Note: {name} does not say which detector it was made with'
                  for name, stats in ((first, x), (second, y))
                  if stats.detector_id is None and not (a.notes or b.notes)]
        distances[tap] = frechet_distance(x.mu, x.sigma, y.mu, y.sigma)
        number = f' {distances[tap]:g}' if len(common) > 1 else ''
        lines.append(f'{TAPS[tap].number} of {_counted(x)} against {_counted(y)}:{number}')
    return [*lines, f'{distances[common[0]]:g}']


def _mismatches(x: Statistics, y: Statistics) -> list[str]:
    """List in what respects the two were made differently, as far as both files say."""
    pairs = {what: (getattr(x, what), getattr(y, what)) for what in ORIGIN}
    return [f'{what}: {ours} and {theirs}' for what, (ours, theirs) in pairs.items()
            if ours is not None and theirs is not None and ours != theirs]


def _counted(stats: Statistics) -> str:
    return 'an unknown number of images' if stats.count is None else f'{stats.count} images'
