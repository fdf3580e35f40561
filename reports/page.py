"""The report of one run or of several side by side, as a page of HTML."""

import io
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from data.image_files import decode
from data.limits import IMAGE_BYTES
from dnnlib.files import read_bounded
from reports.charts import COLOURS, by_noise_level, levels_over_training, over_training, phases
from reports.html import Markup, element, figure, joined, page, table, text
from reports.run import Run, written
from training.stats_file import SIGMA_RANGES, number_in

LARGEST_SIDE = 1600   # pixels of a picture in a report
MOST_LINES = 200      # starts and changes of a run that are listed, the last ones

# The curves, by what stats.jsonl calls them.
CURVES = {
    'Loss/loss': 'loss',
    'Validation/loss': 'loss of held-out images',
    'Validation/train_loss': 'loss of as many training images',
    'Training/gradient_norm': 'norm of the gradient',
    'Training/learning_rate': 'learning rate',
    'Timing/images_per_sec': 'images per second',
    'Timing/utilisation': 'share of what the device can do',
    'Resources/cpu_mem_gb': 'memory, GiB',
    'Resources/peak_gpu_mem_gb': 'memory of the GPU, GiB',
    'Loss/nonfinite_gradients': 'share of steps not finite',
    'Progress/lr_factor': 'factor that roll-backs left',
}


def report(runs: Sequence[Run], pictures: int = 6) -> bytes:
    """Return the report of runs as a page of HTML, with up to so many pictures of each."""
    sections = {
        'Runs': _overview(runs),
        'What differs': _differences(runs) if len(runs) > 1 else None,
        'Curves': _curves(runs),
        'Loss by noise level': _noise_levels(runs),
        'Evaluations': _evaluations(runs),
        'Pictures': joined(_pictures_of(run, pictures) for run in runs) if pictures else None,
        'Settings': joined(_settings(run) for run in runs),
    }
    title = f'Run {runs[0].name}' if len(runs) == 1 else f'{len(runs)} runs'
    return page(title, *(Markup(element('h2', heading) + inside)
                         for heading, inside in sections.items() if inside))


def _key(i: int, run: Run) -> Markup:
    """Return the name of run i beside a piece of its line."""
    colour = COLOURS[i % len(COLOURS)]
    dashes = ('', '4 2', '1 2')[i // len(COLOURS) % 3]
    line = f'<line x1="0" y1="6" x2="26" y2="6" stroke="{colour}" stroke-width="3"'
    dashed = f' stroke-dasharray="{dashes}"' if dashes else ''
    return Markup(f'<svg class="key" viewBox="0 0 26 12">{line}{dashed}></line></svg>'
                  + text(run.name))


def _overview(runs: Sequence[Run]) -> Markup:
    head = ['run', 'thousands of images', 'of', 'loss', 'hours', 'parameters', 'data', 'on',
            'commit']
    rows = []
    for i, run in enumerate(runs):
        card = run.cards[-1] if run.cards else {}
        data, hardware, revision = (_dict(card.get(name)) for name in ('data', 'hardware',
                                                                       'revision'))
        seconds = run.last('Timing/total_sec')
        changed = ', with changes' if revision.get('modified') else ''
        rows.append([
            _key(i, run), _number(run.last('Progress/kimg')), _total(run),
            _number(run.last('Loss/loss')), '–' if seconds is None else f'{seconds / 3600:.2f}',
            written(card.get('parameters')),
            ', '.join(written(data[name]) for name in ('path', 'images') if name in data) or
            run.settings.get('data.path', '–'),
            f'{written(hardware.get("processes"))} x {written(hardware.get("device"))}',
            f'{written(revision.get("commit"))[:12]}{changed}'])
    troubles = [element('p', f'{run.name}: {trouble}', class_='trouble') for run in runs
                for trouble in run.troubles]
    return joined([table(head, rows), *troubles])


def _total(run: Run) -> str:
    total = run.settings.get('total_nimg', '')
    return f'{int(total) / 1000:g}' if total.isdigit() and len(total) < 16 else '–'


def _dict(value: object) -> dict[str, object]:
    return value if isinstance(value, dict) else {}


def _number(value: float | None) -> str:
    return '–' if value is None else f'{value:.5g}'


def _differences(runs: Sequence[Run]) -> Markup:
    """Return the settings that are not the same in all runs."""
    names = dict.fromkeys(name for run in runs for name in run.settings)
    rows = [[name, *(run.settings.get(name, '–') for run in runs)] for name in names]
    differing = [row for row in rows if len(set(row[1:])) > 1]
    if not differing:
        return element('p', 'The settings of all runs are the same.')
    return table(['setting', *(_key(i, run) for i, run in enumerate(runs))], differing)


def _keys(runs: Sequence[Run]) -> Markup:
    """Return which line is of which run, where there are several."""
    if len(runs) == 1:
        return Markup()
    return element('p', joined(Markup(_key(i, run) + ' &emsp; ') for i, run in enumerate(runs)))


def _curves(runs: Sequence[Run]) -> Markup | None:
    drawn = {title: over_training(runs, name, title) for name, title in CURVES.items()
             if _is_told(runs, name)}
    figures = [_svg(svg, title, f'{title} against the training images')
               for title, svg in drawn.items() if svg is not None]
    if not figures:
        return None
    return joined([_keys(runs), element('div', *figures, class_='charts')])


def _is_told(runs: Sequence[Run], name: str) -> bool:
    """Return whether a number says anything: a factor of 1 throughout does not."""
    return name != 'Progress/lr_factor' or any(value != 1 for run in runs
                                               for _, value in run.curve(name))


def _svg(svg: str, caption: object, about: str) -> Markup:
    return figure(svg.encode(), 'svg+xml', caption, about)


def _noise_levels(runs: Sequence[Run]) -> Markup | None:
    svg = by_noise_level(runs)
    if svg is None:
        return None
    parts = [_keys(runs), _svg(
        svg, 'Mean over the last tenth of the run; dotted: of the first tick. Bars: the share of '
        'the images that had such a noise level. With EDM\'s weighting an untrained network has '
        'the loss 1 at every level, if sigma_data is the standard deviation of the data: where '
        'the loss stays near that, hardly anything is learned.',
        'the loss against the noise level')]
    over_time = [(run, levels_over_training(run)) for run in runs]
    parts.append(element('div', *(
        _svg(svg, f'{run.name}: loss of each range of noise levels', 'the loss by noise level '
             'against the training images') for run, svg in over_time if svg is not None),
        class_='charts'))
    told = [phases(run).get('last', {}) for run in runs]
    rows = [[_range(name), *(_number(at[name][0]) if name in at else '–' for at in told)]
            for name in SIGMA_RANGES if any(name in at for at in told)]
    numbers = table(['σ', *(_key(i, run) for i, run in enumerate(runs))], rows)
    parts.append(element('details', element('summary', 'The numbers'), numbers))
    return joined(parts)


def _range(name: str) -> str:
    low, high = SIGMA_RANGES[name]
    return f'{low:g} to {"∞" if math.isinf(high) else f"{high:g}"}'


def _evaluations(runs: Sequence[Run]) -> Markup | None:
    metrics = sorted({name for run in runs for line in run.lines for name in line
                      if name.startswith('Metrics/')})[:20]
    if not metrics:
        return None
    figures = [_svg(svg, name.removeprefix('Metrics/'), 'a metric against the training images')
               for name in metrics
               for svg in [over_training(runs, name, 'value', dots=True)] if svg is not None]
    rows = [row for i, run in enumerate(runs) for row in _evaluations_of(i, run, metrics)]
    head = ['run', 'thousands of images', *(name.removeprefix('Metrics/') for name in metrics),
            'images', 'detector', 'steps', 'reference', '']
    return joined([_keys(runs), element('div', *figures, class_='charts'), table(head, rows)])


def _evaluations_of(i: int, run: Run, metrics: Sequence[str]) -> Iterator[list[object]]:
    for line in run.lines:
        if not any(name in line for name in metrics):
            continue
        protocol, kimg = _dict(line.get('evaluation')), number_in(line, 'Progress/kimg')
        told = [written(protocol.get(name)) for name in ('num_images', 'detector', 'num_steps',
                                                         'ref')]
        remark = line['trouble'] if 'trouble' in line else (
            'best' if run.best.get('kimg') == kimg else '')
        yield [_key(i, run), _number(kimg), *(_number(number_in(line, name)) for name in metrics),
               *told, remark]


def _pictures_of(run: Run, most: int) -> Markup:
    """Return pictures of a run from the first to the last, and that of its training images."""
    shown = _spread(run.pictures, most)
    listed = [(path, f'{kimg:,} thousand images') for kimg, path in shown]
    if run.reals is not None:
        listed.append((run.reals, 'training images'))
    if not listed:
        return Markup()
    left_out = len(run.pictures) - len(shown)
    note = [element('p', f'{left_out} more pictures are in the folder.', class_='note')]
    return joined([
        element('h3', run.name), element('div', *(_picture(*one) for one in listed),
                                         class_='row grid'), *(note if left_out else [])])


def _spread(pictures: Sequence[tuple[int, Path]], most: int) -> list[tuple[int, Path]]:
    """Return at most so many of the pictures, evenly spread from the first to the last."""
    if len(pictures) <= most:
        return list(pictures)
    if most == 1:
        return [pictures[-1]]
    return [pictures[round(i * (len(pictures) - 1) / (most - 1))] for i in range(most)]


def _picture(path: Path, caption: str) -> Markup:
    """Return a picture of a run, decoded and encoded anew, or what is wrong with it."""
    try:
        image, _ = decode(str(path.parent), path.name, read_bounded(path, IMAGE_BYTES))
    except (ValueError, OSError) as error:
        return element('p', f'{caption}: {error}', class_='trouble')
    image = image.convert('L' if image.mode in ('1', 'L') else 'RGB')
    image.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    file = io.BytesIO()
    image.save(file, format='PNG')
    return figure(file.getvalue(), 'png', caption, caption)


def _settings(run: Run) -> Markup:
    """Return the settings of a run, its starts, and what was changed within it."""
    parts = [element('h3', run.name)]
    for card in run.cards[:1]:
        parts.append(element('p', 'Started as ', element('code', _command(card))))
    if run.changes:
        rows = [[written(change.get('kimg')), written(change.get('changed'))]
                for change in run.changes[-MOST_LINES:]]
        parts += [element('p', 'Changed within the run:'),
                  table(['thousands of images', 'what'], rows)]
    if run.cards:
        starts = [[written(card.get('started')), written(card.get('kimg')),
                   *(_listed(card.get(name)) for name in ('hardware', 'versions', 'revision'))]
                  for card in run.cards[-MOST_LINES:]]
        parts.append(element('details', element('summary', f'Starts ({len(run.cards)})'), table(
            ['when', 'thousands of images', 'hardware', 'versions', 'code'], starts)))
    if run.settings:
        parts.append(element('details', element('summary', 'All settings'),
                             table(['setting', 'value'], run.settings.items())))
    return joined(parts)


def _command(card: dict[str, object]) -> str:
    arguments = card.get('arguments')
    return f'train.py {" ".join(map(str, arguments if isinstance(arguments, list) else []))}'


def _listed(value: object) -> str:
    return ', '.join(f'{name} {written(item)}' for name, item in _dict(value).items()) or '–'
