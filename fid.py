"""Judge images: a folder, a file or a network + a reference -> FID and its relatives."""

import csv
import dataclasses
import io
import json
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from dnnlib.cli import FloatList, GroupedCommand, IntList, heading, naming_flags, one_line_errors
from dnnlib.files import atomic_write
from dnnlib.plots import pyplot
from evaluation.judge import (
    MAX_FEATURES,
    PARAMETERS,
    PRECISIONS,
    ArrayImages,
    FolderImages,
    GeneratedImages,
    Judge,
    Result,
    check_metrics,
    load_extractors,
    main_tap,
    open_images,
)
from evaluation.sweep import (
    NUMBERS,
    Evaluator,
    Grids,
    Network,
    Protocol,
    Table,
    averages,
    combinations,
    loss,
    measure_points,
    networks,
    numbers_of,
    report,
    search_settings,
    searched_options,
    spelled,
    swept_options,
    text,
    usable,
    write_json,
    write_report,
)
from limpid.samplers import Churn
from metrics.definitions import METRICS, higher_is_better, needs, needs_of_reference, random_choice, tap_of
from metrics.detector_files import convert, fetch_published, identify, search_report
from metrics.distances import frechet_distance
from metrics.features import TAPS
from metrics.neighbours import AMONG, CSV, THRESHOLD, Neighbours, csv_lines, describe, distance_ratio, draw, table_of
from metrics.neighbours import nearest as nearest_images
from metrics.one_pass import Images, Measured, Wanted, measure
from metrics.reference_files import read_reference, write_reference
from metrics.statistics import Statistics
from options import network as of_network
from options.guidance import guidance_options
from options.network import network_options, open_with_plan
from options.sampler import sampler_options
from torch_utils import distributed
from torch_utils.grids import save_png

files = heading('Images and files')
method = heading('Measurement')
reports = heading('Reports and files written')
speed = heading('Performance')

WIDE = {'max_content_width': 110}
DETECTOR_HELP = ('What turns images into features. inception: the network of the published FID, '
                 'with weights found on this machine; a file of its weights in any published '
                 'format; demo: small and random, a demo distance, NOT FID')
METRICS_HELP = f'Which numbers, with commas between: {", ".join(METRICS)}'

DETECTOR = method('--detector', help=DETECTOR_HELP, metavar='inception|demo|PATH',
                  default='inception', show_default=True)
PRECISION = method('--precision', help='Of the detectors; tf32 is what published programs use on '
                                       'newer GPUs, unasked', type=click.Choice(PRECISIONS),
                   default='float32', show_default=True)
METRICS_OPTION = method('--metrics', help=METRICS_HELP, metavar='LIST', default='fid',
                        show_default=True)
REF = files('--ref', help='The real images: a file of statistics (from fid.py ref, or as EDM, '
                          'EDM2, ADM, torch-fidelity and others publish them), its address, or a '
                          'folder or zip of the images themselves',
            metavar='NPZ|PKL|PT|URL|ZIP|DIR', required=True)
MISMATCH = method('--allow-mismatch', help='Compare although the reference was made otherwise '
                                           '(detector weights, precision, image size)',
                  is_flag=True)
STATE = reports('--state', help='Save progress in this folder; the same command again continues, '
                                'also on another number of devices', metavar='DIR')
SAVE = reports('--save', help='Write the statistics of these images, as fid.py ref does',
               metavar='NPZ|PKL')
JSON = reports('--json', 'json_path', help='Write all numbers with their origin', metavar='FILE')
SPEED = [
    speed('--batch', help='Largest batch per device', type=click.IntRange(min=1), metavar='INT',
          default=64, show_default=True),
    speed('--workers', help='Processes that read images ahead, per device; 0: none',
          type=click.IntRange(min=0), metavar='INT', default=1, show_default=True),
    speed('--device', help='auto (CUDA, else MPS, else CPU), cuda, cuda:1, mps or cpu',
          metavar='NAME', default='auto', show_default=True),
]
CLASS = files('--class', 'classes', help='Class labels, cycled over the seeds, e.g. 3 or 0-9  '
                                         '[default: random, drawn from the seed]', type=IntList())
RNG = speed('--rng', help='Where random numbers are drawn; cpu gives the same images on any device '
                          ' [default: the device]', type=click.Choice(['cpu']))


def with_all(*decorators: Any) -> Callable[..., Any]:  # noqa: ANN401
    """Several option decorators as one; lists of them are options that belong together."""
    def apply(command: Callable[..., Any]) -> Callable[..., Any]:
        flat = [d for decorator in decorators for d in (decorator if isinstance(decorator, list)
                                                        else [decorator])]
        for decorator in reversed(flat):
            command = decorator(command)
        return command
    return apply


@click.group(context_settings=WIDE)
def main() -> None:
    """Judge generated images by comparing them with real ones: FID, and what else papers report.

    `ref` turns the real images into a file of statistics, `calc` measures images against it, and
    `gen` the images of a network, without writing any. Each command has a --help of its own.

    \b
    Examples:
      python fid.py ref --data=datasets/digits-16x16.zip --dest=out/digits.npz --detector=demo
      python fid.py calc --images=out/images --ref=out/digits.npz --num=64 --detector=demo
      python fid.py gen --network=net.pkl --ref=cifar10-32x32.npz --blocks=3
    """


@main.command(cls=GroupedCommand, context_settings=WIDE)
@with_all(
    files('--images', 'path', help='The images to judge: folder, zip, or npz as ADM\'s sample '
                                   'batches', metavar='DIR|ZIP|NPZ', required=True),
    REF,
    method('--num', help='How many images to use; of more a random choice, fewer are an error',
           type=click.IntRange(min=2), metavar='INT', default=50000, show_default=True),
    method('--seed', help='Random seed of that choice', type=int, metavar='INT', default=0,
           show_default=True),
    METRICS_OPTION, DETECTOR, PRECISION, MISMATCH, STATE, SAVE, JSON, SPEED)
@one_line_errors
@naming_flags(PARAMETERS)
def calc(path: str, ref: str, num: int, seed: int, metrics: str, detector: str, precision: str,
         allow_mismatch: bool, state: str | None, save: str | None, json_path: str | None,
         batch: int, workers: int, device: str) -> None:
    """Judge images against a reference; the last line is the first number alone.

    The numbers depend on how many images there are: compare those of equal --num only. They are
    the same, bit for bit, on any number of devices of a kind.

    Examples:
    # Statistics of the training set, then the distance of 64 generated images to it
    python fid.py ref --data=datasets/digits-16x16.zip --dest=out/digits.npz --detector=demo
    python fid.py calc --images=out/images --ref=out/digits.npz --num=64 --detector=demo

    # What papers on ImageNet report, in one pass, for a sample batch of ADM's
    python fid.py calc --images=samples_50000x64x64x3.npz --ref=VIRTUAL_imagenet64_labeled.npz --metrics=fid,sfid,is,pr

    # On 8 GPUs; without the two dashes torchrun would take --num for an option of its own
    torchrun --standalone --nproc_per_node=8 -- fid.py calc --images=out/images --ref=out/digits.npz --num=64 \\
        --detector=demo
    """
    names = check_metrics(metrics.split(','))
    check_outputs(save, json_path, needs(names, main_tap(detector)))
    chosen = start(device)
    judge = Judge(ref, names, device=chosen, detector=detector, batch=batch, workers=workers,
                  precision=precision, allow_mismatch=allow_mismatch)
    images = open_images(path, num, seed, workers)
    if len(images) < num:
        raise ValueError(f'--images={path} has {len(images)} images, fewer than --num={num}: '
                         f'generate more, or lower --num and compare with distances of that --num '
                         f'only')
    result = judge(images, state)
    if isinstance(result, Result):
        print_scores(judge, result)
        save_statistics(save, result)
        save_json(json_path, result.about | {'scores': result.scores})
    distributed.shutdown()


@main.command(cls=GroupedCommand, context_settings=WIDE)
@with_all(
    network_options, CLASS, REF,
    method('--num', help='How many images to generate in each block', type=click.IntRange(min=2),
           metavar='INT', default=50000, show_default=True),
    method('--seed', help='The first seed', type=click.IntRange(min=0), metavar='INT', default=0,
           show_default=True),
    method('--blocks', help='How many blocks of seeds, one after the other; papers report the '
                            'lowest number of 3', type=click.IntRange(min=1),
           metavar='INT', default=1, show_default=True),
    METRICS_OPTION, DETECTOR, PRECISION, MISMATCH, STATE, SAVE, JSON, sampler_options,
    guidance_options, SPEED[0], RNG, SPEED[2])
@one_line_errors
@naming_flags(PARAMETERS)
def gen(network_path: str, weights: str | None, classes: list[int] | None, ref: str, num: int,
        seed: int, blocks: int, metrics: str, detector: str, precision: str, allow_mismatch: bool,
        state: str | None, save: str | None, json_path: str | None, batch: int, rng: str | None,
        device: str, **options: Any) -> None:  # noqa: ANN401
    """Judge the images that a network generates from seeds, without writing any.

    The images are those that generate.py writes for the same seeds and options. The last line is
    the best first number of all blocks, which is what papers report.

    Examples:
    # What the paper reports: the lowest FID of seeds 0-49999, 50000-99999 and 100000-149999
    torchrun --standalone --nproc_per_node=8 -- fid.py gen --network=net.pkl --ref=cifar10-32x32.npz --blocks=3 --state=out/fid

    # A trial
    python fid.py gen --network=out/demo/run/network-snapshot-000064.pkl --ref=out/digits.npz --num=256 --detector=demo
    """
    names = check_metrics(metrics.split(','))
    check_outputs(save, json_path, needs(names, main_tap(detector)))
    if save is not None and blocks > 1:
        raise ValueError(f'--save={save} takes the statistics of one block: leave out '
                         f'--blocks={blocks}')
    chosen = start(device)
    drawing = open_with_plan(network_path, weights, options, chosen)
    drawing.say()
    judge = Judge(ref, names, device=chosen, detector=detector, batch=batch, precision=precision,
                  allow_mismatch=allow_mismatch)
    results = []
    for block in range(blocks):
        seeds = range(seed + block * num, seed + (block + 1) * num)
        images = GeneratedImages(drawing.net, drawing.plan, seeds, device=chosen,
                                 classes=classes, rng=rng, batch=batch, source=network_path)
        folder = None if state is None else os.path.join(state, f'seeds-{seeds[0]}-{seeds[-1]}')
        result = judge(images, folder, title=f'seeds {seeds[0]}-{seeds[-1]}')
        if isinstance(result, Result):
            results.append(dataclasses.replace(result,
                                               about=result.about
                                               | {'seeds': f'{seeds[0]}-{seeds[-1]}'}))
            if blocks > 1:
                numbers = '  '.join(f'{name} {value:g}' for name, value in result.scores.items())
                print(f'seeds {seeds[0]}-{seeds[-1]}:  {numbers}', flush=True)
    if results:
        print_scores(judge, results[0]) if blocks == 1 else print_summary(judge, results)
        save_statistics(save, results[0])
        told = [result.about | {'scores': result.scores} for result in results]
        save_json(json_path, {'network': network_path, 'sampler': repr(drawing.plan),
                              'blocks': told, 'summary': summary(results)})
    distributed.shutdown()


@main.command(cls=GroupedCommand, context_settings=WIDE)
@with_all(
    files('--data', 'path', help='The real images: folder, zip or npz', metavar='DIR|ZIP|NPZ',
          required=True),
    files('--dest', help='File of statistics to write; .pkl writes EDM2\'s format',
          metavar='NPZ|PKL', required=True),
    method('--metrics', help=f'Which metrics it should serve, with commas between: '
                             f'{", ".join(METRICS)}', metavar='LIST', default='fid',
           show_default=True),
    method('--features', help='For kid, pr and dc: of how many images the features are kept, a '
                              'random choice', type=click.IntRange(min=2),
           metavar='INT', default=MAX_FEATURES, show_default=True),
    DETECTOR, PRECISION, STATE, SPEED)
@one_line_errors
@naming_flags(PARAMETERS)
def ref(path: str, dest: str, metrics: str, features: int, detector: str, precision: str,
        state: str | None, batch: int, workers: int, device: str) -> None:
    """Compute the statistics of all images of a data set, for fid.py calc and gen.

    The file holds mu and sigma in float64 under the names that EDM's program reads, and what they
    are of.

    Examples:
    python fid.py ref --data=datasets/digits-16x16.zip --dest=out/digits.npz --detector=demo
    python fid.py ref --data=datasets/cifar10-32x32.zip --dest=cifar10.npz --metrics=fid,sfid,kid,pr,fd_dinov2
    """
    names = check_metrics(metrics.split(','))
    main_of, wanted = main_tap(detector), needs_of_reference(names, main_tap(detector))
    check_statistics_path('--dest', dest, wanted)
    chosen = start(device)
    if not wanted.taps:
        raise ValueError(f'--metrics={metrics} compares with no real images: there is nothing to '
                         f'write')
    # Statistics of every tap: they say where its features come from.
    wanted = Wanted(wanted.moments | wanted.features, wanted.features)
    extractors = load_extractors(set(wanted.taps), detector, chosen, precision)
    images = open_images(path, workers=workers)
    if len(images) < 2:
        raise ValueError(f'--data={path} has 1 image, which has no covariance: 2 are the least')
    if wanted.features:
        wanted = dataclasses.replace(wanted, keep=random_choice(len(images), features))
    measured = measure(images, list({id(e): e for e in extractors.values()}.values()), wanted,
                       device=chosen, batch=batch, precision=precision, state=state)
    if isinstance(measured, Measured):
        write_reference(dest, {tap: measured.statistics(tap) for tap in measured.moments},
                        measured.features)
        kept = f', and the features of {len(wanted.keep)}' if wanted.keep is not None else ''
        print(f'Wrote the statistics of {measured.count} images{kept} to {dest}', flush=True)
        for note in notes_on(images, main_of, measured.count):
            print(f'Note: {note}', flush=True)
    distributed.shutdown()


@main.command(cls=GroupedCommand, context_settings=WIDE)
@click.argument('first', metavar='A')
@click.argument('second', metavar='B')
@method('--allow-mismatch', help='Compare although the two were made otherwise', is_flag=True)
@one_line_errors
@naming_flags(PARAMETERS)
def dist(first: str, second: str, allow_mismatch: bool) -> None:
    """Print the Fréchet distance of two files of statistics; no images and no detector are needed.

    Examples:
    python fid.py dist out/digits.npz cifar10-32x32.npz
    """
    a, b = read_reference(first), read_reference(second)
    for note in (*a.notes, *b.notes):
        print(f'Note: {note}')
    common = [tap for tap in TAPS if tap in a.moments and tap in b.moments]
    if not common:
        raise ValueError(f'{first} and {second} have no features in common: {_taps_of(a.moments)} '
                         f'and {_taps_of(b.moments)}')
    distances = {}
    for tap in common:
        x, y = a.moments[tap], b.moments[tap]
        mismatches = [f'{what}: {getattr(x, what)} and {getattr(y, what)}'
                      for what in ('detector_id', 'detector_digest', 'precision', 'image_shape')
                      if getattr(x, what) is not None and getattr(y, what) is not None
                      and getattr(x, what) != getattr(y, what)]
        if mismatches and not allow_mismatch:
            raise ValueError(f'{first} and {second} were made otherwise ({"; ".join(mismatches)}); '
                             f'say --allow-mismatch to compare them all the same')
        for mismatch in mismatches:
            print(f'Note: they differ in {mismatch}')
        for name, stats in ((first, x), (second, y)):
            if stats.detector_id is None and not (a.notes or b.notes):
                print(f'Note: {name} does not say which detector it was made with')
        distances[tap] = frechet_distance(x.mu, x.sigma, y.mu, y.sigma)
        print(f'{TAPS[tap].number} of {_counted(x)} against {_counted(y)}:'
              + (f' {distances[tap]:g}' if len(common) > 1 else ''))
    print(f'{distances[common[0]]:g}')


@main.command(cls=GroupedCommand, context_settings=WIDE)
@with_all(
    files('--images', 'path', help='The generated images: folder, zip or npz',
          metavar='DIR|ZIP|NPZ', required=True),
    files('--data', help='The images that the network was trained on', metavar='DIR|ZIP|NPZ',
          required=True),
    files('--control', help='Real images that it was not trained on: what is normal',
          metavar='DIR|ZIP|NPZ'),
    method('--num', help='How many images to look at, and of --control too; of more a random '
                         'choice  [default: all]', type=click.IntRange(min=1), metavar='INT'),
    method('--seed', help='Random seed of that choice', type=click.IntRange(min=0), metavar='INT',
           default=0, show_default=True),
    method('--xflip', help='The network was trained with x-flips: compare with mirrored training '
                           'images too', is_flag=True),
    method('--among', help='The ratio compares the nearest with the mean of so many after it',
           type=click.IntRange(min=1), metavar='INT', default=AMONG, show_default=True),
    method('--threshold', help='Of the ratio: what is below is a copy',
           type=click.FloatRange(0, 1, min_open=True), metavar='FLOAT', default=THRESHOLD,
           show_default='1/3'),
    method('--detector', help=f'{DETECTOR_HELP}; or dinov2', metavar='inception|dinov2|demo|PATH',
           default='inception', show_default=True),
    PRECISION,
    reports('--dest', help='Picture to write: images beside their nearest, the lowest ratio first',
            metavar='PNG', required=True),
    reports('--k', help='How many neighbours are shown in each space', type=click.IntRange(min=1),
            metavar='INT', default=3, show_default=True),
    reports('--show', help='How many images it shows', type=click.IntRange(min=1), metavar='INT',
            default=64, show_default=True),
    reports('--csv', 'csv_path', help='Write the neighbours and ratio of every image',
            metavar='FILE'),
    JSON, SPEED)
@one_line_errors
@naming_flags(PARAMETERS)
def nearest(path: str, data: str, control: str | None, num: int | None, seed: int, xflip: bool,
            among: int, threshold: float, detector: str, precision: str, dest: str, k: int,
            show: int, csv_path: str | None, json_path: str | None, batch: int, workers: int,
            device: str) -> None:
    """Look for memorised images: for each generated image the nearest training images, in pixels
    and in features.

    The ratio of an image is the distance of the nearest training image over the mean distance of
    the --among that follow it. It is near 1 where none stands out and 0 for an exact copy; what is
    below --threshold counts as a copy. What is normal depends on the data: --control shows it for
    real images that were not trained on.

    Examples:
    # The training set is looked at once; under torchrun each device takes a share
    python generate.py --network=net.pkl --outdir=out/images --seeds=0-999
    python fid.py nearest --images=out/images --data=datasets/cifar10-32x32.zip --control=datasets/cifar10-test.zip \\
        --xflip --dest=out/nearest.png --csv=out/nearest.csv

    # A trial; random features (NOT FID's) say little about what people see as similar
    python fid.py nearest --images=out/images --data=datasets/digits-16x16.zip --dest=out/nearest.png --detector=demo
    """
    for option, file in (('--dest', dest), ('--csv', csv_path), ('--json', json_path)):
        if file is not None:
            check_folder(option, file)
    if not dest.lower().endswith('.png'):
        raise ValueError(f'--dest={dest} should be the name of a file that ends in .png')
    chosen = start(device)
    tap = 'dinov2' if detector == 'dinov2' else main_tap(detector)
    extractor = load_extractors({tap}, detector, chosen, precision)[tap]
    training = open_images(data, workers=workers)
    if len(training) < max(k, 2):
        raise ValueError(f'--data={data} has {len(training)} images: {max(k, 2)} neighbours are '
                         f'the least')
    among = min(among, len(training) - 1)
    sets = {'images': open_images(path, workers=workers)}
    if control is not None:
        sets['control'] = open_images(control, workers=workers)
    for name, images in sets.items():
        if images.image_shape != training.image_shape:
            raise ValueError(f'--{name}={images.source} has images {images.image_shape}, but those '
                             f'of --data={data} are {training.image_shape} (channels, height, '
                             f'width): use images of one size')
    taken = {name: random_choice(len(images), num or len(images), seed)
             for name, images in sets.items()}
    queries = torch.cat([pixels_at(sets[name], positions) for name, positions in taken.items()])
    found = nearest_images(queries, training, extractor, count=max(k, 1 + among), xflip=xflip,
                           device=chosen, batch=batch)
    if found is not None:
        starts = dict(zip(taken, (0, len(taken['images'])), strict=False))
        parts = {name: {space: of_all[starts[name]:starts[name] + len(positions)]
                        for space, of_all in found.items()}
                 for name, positions in taken.items()}
        told = {name: {space: describe(part, among, threshold) for space, part in spaces.items()}
                for name, spaces in parts.items()}
        save_neighbours(dest, queries.numpy(), training, parts['images'], k, show, among, threshold)
        if csv_path is not None:
            text = io.StringIO()
            lines = csv.writer(text, lineterminator='\n')
            lines.writerow(CSV)
            for name, positions in taken.items():
                names = [name_of(sets[name], position) for position in positions.tolist()]
                lines.writerows(csv_lines(name, names, parts[name], partial(name_of, training), k,
                                          among))
            with atomic_write(csv_path) as file:
                file.write(text.getvalue().encode())
        save_json(json_path, {'images': path, 'data': data, 'control': control,
                              'detector': TAPS[tap].detector_id, 'among': among,
                              'threshold': threshold, 'xflip': xflip, 'summary': told})
        print(f'The nearest of {len(training)} training images. Ratio: the distance of the nearest '
              f'/ the mean of the {among} after it; copies: below {threshold:.3g}')
        print(table_of(told), flush=True)
    distributed.shutdown()


def pixels_at(images: FolderImages | ArrayImages, positions: np.ndarray) -> torch.Tensor:
    """uint8 [len(positions), C, H, W], on the CPU."""
    runs = np.split(positions, np.flatnonzero(np.diff(positions) > 1) + 1)
    parts = [range(start, min(start + 64, int(run[-1]) + 1)) for run in runs
             for start in range(int(run[0]), int(run[-1]) + 1, 64)]
    return torch.cat(list(images.batches(parts, torch.device('cpu'))))


def name_of(images: FolderImages | ArrayImages, position: int) -> str:
    """The file of an image; in an array its position."""
    return images.dataset.files.names[images.dataset.get_details(position).raw_idx] if isinstance(
        images, FolderImages) else str(position)


def save_neighbours(path: str, images: np.ndarray, training: FolderImages | ArrayImages,
                    found: dict[str, Neighbours], k: int, show: int, among: int,
                    threshold: float) -> None:
    """The picture of the images that look most like copies in any space, and of what they look
    like."""
    ratios = np.stack([distance_ratio(part.distances, among) for part in found.values()])
    rows = np.argsort(ratios.min(axis=0), kind='stable')[:show]
    wanted = np.unique(np.concatenate([part.positions[rows, :k].ravel()
                                       for part in found.values()]))
    pixels = pixels_at(training, wanted).numpy()
    groups, copied = {}, {}
    for (space, part), ratio in zip(found.items(), ratios, strict=True):
        near = pixels[np.searchsorted(wanted, part.positions[rows, :k])]
        groups[f'nearest in {space}'] = np.where(part.mirrored[rows, :k, None, None, None],
                                                 near[..., ::-1], near)
        copied[f'nearest in {space}'] = ratio[rows] < threshold
    save_png(draw(images[rows], groups, copied), path)


@main.command(cls=GroupedCommand, context_settings=WIDE)
@click.argument('paths', nargs=-1, metavar='[FILE]...')
@files('--fetch', help='Download the published weights, check them, and put them where fid.py '
                       'looks for them', type=click.Choice(['inception', 'dinov2']))
@files('--convert', 'dest', help='Write the weights of FILE under canonical names as a plain file, '
                                 '.pth or .safetensors', metavar='PATH')
@one_line_errors
@naming_flags(PARAMETERS)
def detector(paths: tuple[str, ...], fetch: str | None, dest: str | None) -> None:
    """Say what a file of detector weights is; nothing in it is executed.

    Files of the same weights have the same digest, whatever their format. Without a FILE: where the
    weights are looked for on this machine, and what is there.

    Examples:
    python fid.py detector
    python fid.py detector --fetch=inception
    python fid.py detector pt_inception-2015-12-05-6726825d.pth inception-2015-12-05.pkl
    python fid.py detector inception-2015-12-05.pkl --convert=inception.pth
    """
    if dest is not None and len(paths) != 1:
        raise ValueError(f'--convert={dest} takes one FILE, not {len(paths)}')
    if fetch is not None:
        paths = (*paths, str(fetch_published(fetch)))
    digests = {}
    for path in paths:
        found = identify(path)
        digests[path] = found.digest
        print(f'{path}\n  weights of:  {found.kind}\n  format:      {found.format}\n  size:        '
              f'{found.size} bytes\n  sha256:      {found.sha256}\n  digest:      {found.digest}\n '
              f' published:   {found.published or "not a file whose checksum is known"}')
        for note in found.notes:
            print(f'  Note: {note}')
    if len(digests) > 1:
        print('All have the same weights.' if len(set(digests.values())) == 1 else 'These are '
                                                                                   'different '
                                                                                   'weights.')
    if dest is not None:
        convert(paths[0], dest)
        print(f'Wrote {dest}, with the same digest')
    if not paths:
        print('Weights are looked for here, those of Inception first; --fetch downloads them:')
        for place in search_report():
            print(f'{"found" if place.usable else "damaged" if place.exists else "-":8s} '
                  f'{place.path}')


@main.command(cls=GroupedCommand, context_settings=WIDE)
@with_all(
    files('--network', 'network_path', help='Snapshots, or what else generate.py takes, with '
                                            'commas between; the folder of a run stands for all '
                                            'its snapshots', metavar='PATH,...|DIR', required=True),
    files('--weights', help='Which weights of the files, with commas between: ema, the main '
                            'average; ema:NAME, another  [default: ema]', metavar='NAME,...'),
    files('--ema-length', help='Instead of the snapshots of the run in --network: its '
                               'power-function averages of these relative widths at its end',
          type=FloatList()),
    of_network.OPTIONS[2:], CLASS, REF,
    files('--dest', help='Folder of sweep.csv, sweep.png and report.json; a second command adds to '
                         'it', metavar='DIR', required=True),
    method('--num', help='How many images to generate in each block', type=click.IntRange(min=2),
           metavar='INT', default=50000, show_default=True),
    method('--seed', help='The first seed', type=click.IntRange(min=0), metavar='INT', default=0,
           show_default=True),
    method('--blocks', help='How many blocks of seeds for each point; the best number counts, as '
                            'in papers, which take 3', type=click.IntRange(min=1),
           metavar='INT', default=1, show_default=True),
    METRICS_OPTION, DETECTOR, PRECISION, MISMATCH, swept_options, SPEED[0], RNG, SPEED[2])
@one_line_errors
@naming_flags(PARAMETERS)
def sweep(network_path: str, weights: str | None, ema_length: list[float] | None,
          classes: list[int] | None, ref: str, dest: str, num: int, seed: int, blocks: int,
          metrics: str, detector: str, precision: str, allow_mismatch: bool, batch: int,
          rng: str | None, device: str, **options: Any) -> None:  # noqa: ANN401
    """Judge a network with many samplers: a table, a picture, and the best.

    Each sampler option takes several values with commas between (--sigmas, which is a list already,
    takes one), and all combinations are measured with all networks. The table, sweep.csv, has a
    line for each; it is complete at any time, and what is in it is not measured again. So the same
    command continues after a kill, also in the middle of a point and on another number of devices,
    and a longer list of values adds to a shorter one. The progress of a point is in DIR/state until
    it is in the table.

    The picture, sweep.png, and report.json show the first of the --metrics for the points of this
    command: the best value, and, the rule of the paper, the fewest evaluations of the network (NFE)
    with a value within 3 % of it. The exit code is 1 if a combination was refused; the table says
    why.

    Examples:
    # Which solver for how many evaluations? 12 points, a curve each for Euler and Heun
    torchrun --standalone --nproc_per_node=8 -- fid.py sweep --network=net.pkl --ref=cifar10-32x32.npz --dest=out/sweep \\
        --steps=8,12,18,32,64,128 --solver=euler,heun

    # Figure 5b: the effect of S_churn
    python fid.py sweep --network=net.pkl --ref=cifar10-32x32.npz --dest=out/churn --steps=256 --S_churn=0,10,20,40,80

    # How much guidance?
    python fid.py sweep --network=net.pkl --ref=imagenet-64x64.npz --dest=out/guidance --guidance=1,1.25,1.5,2,3

    # All snapshots of a run, two averages each, judged as the paper does
    python fid.py sweep --network=runs/mine --weights=ema:0.5,ema:0.05 --ref=cifar10-32x32.npz --dest=out/run --blocks=3
    """
    names = check_metrics(metrics.split(','))
    pyplot()   # a picture that cannot be drawn is to be known now
    chosen = start(device)
    judge = Judge(ref, names, device=chosen, detector=detector, batch=batch, precision=precision,
                  allow_mismatch=allow_mismatch)
    opening = {name: options.pop(name) for name in of_network.NAMES}
    evaluator = Evaluator(judge, device=chosen, classes=classes, rng=rng, batch=batch,
                          opening=opening)
    protocol = Protocol(num, seed, blocks)
    if ema_length and weights:
        raise ValueError('--ema-length and --weights exclude each other: both choose an average')
    chosen_networks = averages(network_path, ema_length,
                               Path(dest)) if ema_length else networks(network_path, weights)
    points = evaluator.plan(chosen_networks, combinations(options), protocol)
    with Table(dest, 'sweep.csv') as table:
        images = f'{blocks} x {num}' if blocks > 1 else f'{num}'
        distributed.print0(f'Points: {len(points)} of {images} images, measured before: '
                           f'{sum(point.key in table for point in points)}')
        rows = measure_points(points, table, evaluator)
        if usable(rows, evaluator.metric):
            label = TAPS[tap_of('fid',
                                judge.main)].number if names[0] == 'fid' else evaluator.metric
            lines = distributed.on_rank_0(lambda: write_report(table.folder, rows, evaluator.metric,
                                                   f'{label} of {num} images'))
            distributed.print0('\n'.join(lines))
    distributed.shutdown()
    if any('error' in row for row in rows):
        raise click.exceptions.Exit(1)


@main.command(cls=GroupedCommand, context_settings=WIDE)
@with_all(
    network_options, CLASS, REF,
    files('--dest', help='Folder of search.csv and search.json', metavar='DIR', required=True),
    [method(f'--grid-{name}', f'grid_{name}', help=f'Values of {name} to try, rising  [default: '
                                                   f'{text(values)}]', type=FloatList())
     for name, values in dataclasses.asdict(Grids()).items()],
    method('--rounds',
           help='Most rounds through the four, one after the other; 0: all combinations',
           type=click.IntRange(min=0), metavar='INT', default=2, show_default=True),
    method('--num', help='How many images to generate for each setting', type=click.IntRange(min=2),
           metavar='INT', default=5000, show_default=True),
    method('--seed', help='The first seed', type=click.IntRange(min=0), metavar='INT', default=0,
           show_default=True),
    method('--confirm', help='How many of the best settings to measure again, with more images',
           type=click.IntRange(min=1), metavar='INT', default=3, show_default=True),
    method('--confirm-num', help='How many images then, in each block, from the same first seed on',
           type=click.IntRange(min=2), metavar='INT', default=50000, show_default=True),
    method('--confirm-blocks', help='How many blocks of seeds then; the best number counts, as in '
                                    'papers, which take 3', type=click.IntRange(min=1),
           metavar='INT', default=1, show_default=True),
    METRICS_OPTION, DETECTOR, PRECISION, MISMATCH, searched_options, SPEED[0], RNG, SPEED[2])
@one_line_errors
@naming_flags(PARAMETERS)
def search(network_path: str, weights: str | None, classes: list[int] | None, ref: str, dest: str,
           rounds: int, num: int, seed: int, confirm: int, confirm_num: int, confirm_blocks: int,
           metrics: str, detector: str, precision: str, allow_mismatch: bool, batch: int,
           rng: str | None, device: str, **options: Any) -> None:  # noqa: ANN401
    """Search for the best S_churn, S_min, S_max and S_noise of a network, by the first of the
    --metrics.

    The values tried are those of the paper's Table 5. With --rounds=0 all 11,253 combinations are;
    otherwise one number after the other with the best values of the others, some 40 settings in a
    round. Settings that draw the same images with these --steps are measured once. The best ones
    are then measured with more images. The other sampler options are fixed. Like fid.py sweep, this
    continues where it was stopped, from DIR/search.csv. The last line is the best setting as
    options for generate.py.

    Examples:
    torchrun --standalone --nproc_per_node=8 -- fid.py search --network=net.pkl --ref=imagenet-64x64.npz --dest=out/search \\
        --steps=256 --confirm-blocks=3

    # A trial
    python fid.py search --network=out/demo/run/network-snapshot-000064.pkl --ref=out/digits.npz --detector=demo \\
        --dest=out/search --grid-S_churn=0,5,10 --grid-S_noise=1,1.005 --num=256 --confirm-num=1024
    """
    names = check_metrics(metrics.split(','))
    grids = Grids(**{name: tuple(values) for name in NUMBERS
                     if (values := options.pop(f'grid_{name}')) is not None})
    chosen = start(device)
    judge = Judge(ref, names, device=chosen, detector=detector, batch=batch, precision=precision,
                  allow_mismatch=allow_mismatch)
    opening = {name: options.pop(name) for name in of_network.NAMES}
    evaluator = Evaluator(judge, device=chosen, classes=classes, rng=rng, batch=batch,
                          opening=opening)
    network = Network(network_path, weights)
    same = evaluator.effect(network, options)

    def rows_of(settings: Sequence[Churn], protocol: Protocol) -> list[dict[str, str]]:
        points = [evaluator.point(network, options | numbers_of(churn), protocol)
                  for churn in settings]
        return measure_points(points, table, evaluator)

    with Table(dest, 'search.csv') as table:
        tried = search_settings(grids, lambda churn: loss(rows_of([churn], Protocol(num, seed))[0],
                                                          evaluator.metric), same, rounds)
        best_few = tried[:confirm]
        distributed.print0(f'The best {len(best_few)} of {len(tried)} settings, with '
                           f'{confirm_blocks} x {confirm_num} images:')
        rows = rows_of(best_few, Protocol(confirm_num, seed, confirm_blocks))
        best, _ = report(rows, evaluator.metric)
        told = options | numbers_of(best_few[rows.index(best)])
        distributed.on_rank_0(lambda: write_json(table.folder / 'search.json',
                                     {'metric': evaluator.metric, 'best': spelled(told),
                                      'confirmed': rows}))
    distributed.print0(f'{evaluator.metric} = {float(best[evaluator.metric]):g}\n{spelled(told)}')
    distributed.shutdown()


def start(device: str) -> torch.device:
    chosen = distributed.init(device)
    torch.backends.cudnn.deterministic = True
    return chosen


def check_outputs(save: str | None, json_path: str | None, measured: Wanted = Wanted()) -> None:
    """Before anything is computed: can the results be written?"""
    if save is not None:
        check_statistics_path('--save', save, measured)
        if not measured.moments:
            raise ValueError(f'--save={save} writes means and covariances, which these metrics do '
                             f'not need: add fid to --metrics')
    if json_path is not None:
        check_folder('--json', json_path)


def check_statistics_path(option: str, path: str, held: Wanted) -> None:
    if not path.endswith(('.npz', '.pkl')) or os.path.isdir(path):
        raise ValueError(f'{option}={path} should be the name of a file that ends in .npz or .pkl')
    check_folder(option, path)
    others = sorted({*held.features, *held.moments} - {'pool_3',
                                                       'dinov2'}) + sorted(held.features
                                                                           & {'pool_3', 'dinov2'})
    if path.endswith('.pkl') and others:
        raise ValueError(f'{option}={path}: the format of EDM2 has room for the statistics of fid '
                         f'and fd_dinov2 only; use .npz for the others')


def check_folder(option: str, path: str) -> None:
    """ValueError for a file that cannot be made there."""
    folder = Path(path).absolute().parent
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if os.path.isdir(path):
        raise ValueError(f'{option}={path} is a folder; name a file')
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise ValueError(f'{option}={path}: {there} is no folder that files can be written to')


def notes_on(images: Images, main_of: str, count: int) -> list[str]:
    """What makes a reference doubtful."""
    notes = []
    if getattr(images, 'lossy', False):
        notes.append('some images are JPEG or WebP, and compression adds to the distance: use PNG')
    if count <= TAPS[main_of].dim:
        notes.append(f'{count} images say little about {TAPS[main_of].dim} features')
    return notes


def save_statistics(path: str | None, result: Result) -> None:
    if path is not None:
        write_reference(path, {tap: result.measured.statistics(tap)
                               for tap in result.measured.moments}, result.measured.features)


def save_json(path: str | None, told: dict[str, Any]) -> None:
    if path is not None:
        with atomic_write(path) as file:
            file.write((json.dumps(told, indent=2) + '\n').encode())


def print_scores(judge: Judge, result: Result) -> None:
    """One number for one metric, as scripts expect; else a line for each, and the first number once
    more."""
    print(f'{_title(judge)} of {_against(result)}:')
    first, *_ = result.scores.values()
    if judge.metrics != ['fid']:
        for name, value in result.scores.items():
            print(f'{name} = {value:g}')
    print(f'{first:g}', flush=True)


def print_summary(judge: Judge, results: Sequence[Result]) -> None:
    """Of several blocks of seeds: the best, the mean, and the spread."""
    print(f'{_title(judge)} of {len(results)} x {_against(results[0])}:')
    for name, numbers in summary(results).items():
        best = 'maximum' if higher_is_better(name) else 'minimum'
        print(f'{name}: {best} {numbers["best"]:g}, mean {numbers["mean"]:g}, standard deviation '
              f'{numbers["std"]:g}')
    print(f'{next(iter(summary(results).values()))["best"]:g}', flush=True)


def summary(results: Sequence[Result]) -> dict[str, dict[str, float]]:
    # the spread within a block is no score
    names = [name for name in results[0].scores if not name.endswith('_std')]
    values = {name: np.array([result.scores[name] for result in results]) for name in names}
    return {name: {'best': float(v.max() if higher_is_better(name) else v.min()),
                   'mean': float(v.mean()), 'std': float(v.std(ddof=1)) if len(v) > 1 else 0.0}
            for name, v in values.items()}


def _title(judge: Judge) -> str:
    if judge.metrics != ['fid']:
        return 'Numbers' if judge.main != 'demo' else 'Numbers of random features (NOT FID)'
    return TAPS[tap_of('fid', judge.main)].number


def _against(result: Result) -> str:
    beside = '' if result.reference_count is None else f' against {result.reference_count}'
    features = sorted(set(result.about['ref_features'].values()))
    if features:
        beside += (f' (features of {", ".join(map(str, features))})' if beside else f' against the '
                                                                                    f'features of '
                                                                                    f'{features[0]}')
    return f'{result.count} images{beside}'


def _counted(stats: Statistics) -> str:
    return 'an unknown number of images' if stats.count is None else f'{stats.count} images'


def _taps_of(moments: dict[str, Statistics]) -> str:
    return ', '.join(moments) or 'none'


if __name__ == '__main__':
    main()
