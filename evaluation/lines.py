"""Results of judging, as the lines that the commands print."""

from collections.abc import Mapping, Sequence

from evaluation.blocks import Blocks
from metrics.definitions import higher_is_better, tap_of
from metrics.features import TAPS
from metrics.judge import Judge, Result


def result_lines(judge: Judge, result: Result) -> list[str]:
    """Return the lines of a result: the number alone for one metric, as scripts expect.

    Several numbers have a line each, and then the first one follows again, alone.
    """
    lines = [f'{title_of(judge)} of {_against(result)}:']
    if judge.metrics != ['fid']:
        lines += [f'{name} = {value:g}' for name, value in result.scores.items()]
    first, *_ = result.scores.values()
    return [*lines, f'{first:g}']


def summary_lines(judge: Judge, results: Sequence[Result],
                  numbers: Mapping[str, Blocks]) -> list[str]:
    """Return lines on the best of several blocks and on all; the last is the first number."""
    lines = [f'{title_of(judge)} of {len(results)} x {_against(results[0])}:']
    first, *others = numbers
    best = 'maximum' if higher_is_better(first) else 'minimum'
    told = {first: f'{best} {numbers[first].best:g}',
            **{name: f'{numbers[name].best:g} in the same block' for name in others}}
    for name, number in told.items():
        lines.append(f'{name}: {number}, mean {numbers[name].mean:g}, standard deviation '
                     f'{numbers[name].deviation:g}')
    return [*lines, f'{numbers[first].best:g}']


def title_of(judge: Judge) -> str:
    """Return the printed names of the numbers."""
    if judge.metrics != ['fid']:
        random = {'demo', 'arrays'} & set(judge.wanted.taps)
        return 'Numbers of random features (NOT FID)' if random else 'Numbers'
    return TAPS[tap_of('fid', judge.main)].number


def _against(result: Result) -> str:
    """Return how many images were compared with how many."""
    beside = '' if result.reference_count is None else f' against {result.reference_count}'
    features = sorted(set(result.about['ref_features'].values()))
    if features and beside:
        beside += f' (features of {", ".join(map(str, features))})'
    elif features:
        beside = f' against the features of {features[0]}'
    return f'{result.count} images{beside}'
