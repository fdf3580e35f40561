"""The same tables and figures at a size that a CPU does in minutes, on Fashion-MNIST at 16x16.

What the six configurations share with the paper's: each changes of the one before it what the
paper's does, the batch grows fourfold and the learning rate fivefold from A to B, C leaves out the
lowest resolution and doubles the channels of the highest, and D to F are the paper's. What they do
not: see REMARKS.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from options.presets import FID
from reproduction.edm import (
    BLACK,
    BLUE,
    GREEN,
    MODELS,
    ORANGE,
    PAPER_3,
    PAPER_4,
    PURPLE,
    RED,
    churn_rows,
    optimal,
    swept,
)
from reproduction.experiment import (
    LITE0_GFLOP,
    OUT,
    Experiment,
    Line,
    Need,
    Panel,
    Source,
    Task,
    Value,
    judging_flop,
    training_flop,
    unique,
)

FOLDER = f'{OUT}/small'
DEBIAN = Path('/usr/share/datasets/fashion-mnist')
NEEDS = tuple(Need(f'{DEBIAN}/{part}-images-idx3-ubyte.gz',
                   'Fashion-MNIST: apt install dataset-fashion-mnist (Debian, Ubuntu)')
              for part in ('train', 't10k'))

DETECTOR, METRIC = 'efficientnet-lite0', 'fd_efficientnet_lite0'
SEEDS = (0, 1, 2)
KIMG = 16
NUM, FEW = 500, 250   # generated images of a number of Table 2, and of a point of the others
REFERENCE = 10_000    # real images in the reference

SIZE = '--cond=1 --cbase=16 --blocks=1 --attn=8 --xflip=0'
FROM_B = '--batch=32 --lr=0.002 --lr-rampup=0.0008 --ema=0.001 --dropout=0.13'
CONFIGS = {   # options of train.py; {c} is vp or ve, {ema} that of A
    'A': '--precond={c} --cres=1,2,2 --batch=8 --lr=0.0004 --lr-rampup=0.00005 --ema={ema} '
         '--clip=1 --dropout=0.1 --augment=0',
    'B': f'--precond={{c}} --cres=1,2,2 {FROM_B} --augment=0',
    'C': f'--precond={{c}} --cres=2,2 {FROM_B} --augment=0',
    'D': f'--precond=edm --noise={{c}} --weighting=inverse-variance --cres=2,2 {FROM_B} '
         f'--augment=0',
    'E': f'--precond=edm --cres=2,2 {FROM_B} --augment=0',
    'F': f'--precond=edm --cres=2,2 {FROM_B} --augment=0.12',
}
ARCHITECTURE, EMA = {'vp': 'ddpmpp', 've': 'ncsnpp'}, {'vp': 0.00178, 've': 0.00018}
REMARKS = (
    f'Labelled small: greyscale images of 16x16 pixels, networks of 16 to 32 channels and one '
    f'block a resolution, {KIMG},000 images of training (the paper: 200 million), and {NUM} '
    f'(Table 2) or {FEW} generated images (50,000).',
    f'The distance is {METRIC}, in the features of EfficientNet-Lite0. It is not FID, and its '
    f'values cannot be compared with FIDs; the order of the rows can.',
    'No configuration mirrors images, since the shoes of Fashion-MNIST all point to the left: in '
    'the paper A to E do.',
    'The ramp-up of the learning rate is the same share of the training as in the paper. The '
    'half-life of the average is a larger one: --ema-rampup keeps it at 5 % of the images so far, '
    '800 at the end (A of VE: 180).',
)


def has_fashion() -> bool:
    """Return whether Fashion-MNIST is installed; without it the digits take its place."""
    return Path(NEEDS[0].path).exists()


def remarks() -> tuple[str, ...]:
    """Return what is not as in the paper."""
    if has_fashion():
        return REMARKS
    return (*REMARKS, f'Fashion-MNIST is not installed, and scikit-learn\'s digits take its place. '
                      f'{NEEDS[0].source}.')


def data_tasks() -> tuple[Task, Task, Task, Task]:
    """Return the tasks that make images to train on and for the reference, and its statistics."""
    made = {part: f'{FOLDER}/{part}.zip' for part in ('train', 'reference', 'held-out')}
    size = '--resolution=16x16'
    sources = [NEEDS[0].path, NEEDS[0].path, NEEDS[1].path]
    limits = ['', f' --max-images={REFERENCE}', f' --max-images={NUM}']
    reads: Sequence[tuple[str, ...]] = [(path,) for path in sources]
    if not has_fashion():
        sources, reads = ['digits'] * 3, [(), (), ()]
    sets = [Task(f'dataset_tool.py --source={source} --dest={path} {size}{limit}', path, read)
            for source, path, limit, read in zip(sources, made.values(), limits, reads,
                                                 strict=True)]
    statistics = Task(f'fid.py ref --data={made["reference"]} --dest={FOLDER}/reference.npz '
                      f'--detector={DETECTOR}', f'{FOLDER}/reference.npz', (made['reference'],),
                      judging_flop(0, 0, REFERENCE, LITE0_GFLOP))
    return sets[0], sets[1], sets[2], statistics


TRAIN, _, HELD_OUT, STATISTICS = (task.makes for task in data_tasks())


def gflop(letter: str, column: str) -> float:
    """Return 10^9 operations of an evaluation, counted by torch.utils.flop_counter."""
    return {'vp': (0.039, 0.064), 've': (0.040, 0.065)}[column][letter not in 'AB']


def run(column: str, letter: str, seed: int) -> Task:
    """Return a training run."""
    folder = f'{FOLDER}/{column}-{letter}-{seed}'
    options = CONFIGS[letter].format(c=column, ema=EMA[column])
    return Task(f'train.py --run={folder} --arch={ARCHITECTURE[column]} --data={TRAIN} {SIZE} '
                f'--duration={KIMG / 1000:g} --tick=4 --snap=100 --pictures=0 --workers=0 '
                f'{options} --seed={seed}', f'{folder}/network-snapshot-{KIMG:06d}.pkl', (TRAIN,),
                training_flop(gflop(letter, column), KIMG * 1000))


def judged(column: str, letter: str, seed: int) -> Task:
    """Return the task that judges a run by the deterministic sampler."""
    network = run(column, letter, seed).makes
    made = f'{FOLDER}/judged/{column}-{letter}-{seed}.json'
    # as in the paper: networks of VE's noise levels stop where these do
    lowest = ' --sigma_min=0.02' if column == 've' and letter in 'ABCD' else ''
    return Task(f'fid.py gen --network={network} --ref={STATISTICS} --num={NUM} '
                f'--detector={DETECTOR} --json={made} --steps=18{lowest}', made,
                (network, STATISTICS), judging_flop(gflop(letter, column), 35, NUM, LITE0_GFLOP))


def table_2() -> Experiment:
    """Return Table 2, small. One seed of all configurations comes before the next."""
    tasks = [*data_tasks()]
    floor = f'{FOLDER}/judged/real.json'
    if has_fashion():   # the digits have no images to spare
        tasks.append(Task(f'fid.py calc --images={HELD_OUT} --ref={STATISTICS} --num={NUM} '
                          f'--detector={DETECTOR} --json={floor}', floor, (HELD_OUT, STATISTICS),
                          judging_flop(0, 0, NUM, LITE0_GFLOP)))
    pairs = [(letter, column) for letter in CONFIGS for column in ARCHITECTURE]
    for seed in SEEDS:
        for letter, column in pairs:
            tasks += [run(column, letter, seed), judged(column, letter, seed)]
    papers = {'vp': 0, 've': 1}
    values = [Value(letter, column.upper(), FID['cifar10-cond']['ABCDEF'.index(letter)]
                    [papers[column]], tuple(Source(judged(column, letter, seed).makes,
                                                   f'blocks/*/scores/{METRIC}')
                                            for seed in SEEDS))
              for letter, column in pairs]
    values.append(Value(f'{NUM} real images that no network saw', 'real', None,
                        (Source(floor, f'scores/{METRIC}'),)))
    return Experiment('Small Table 2: A to F, VP and VE', unique(tasks),
                      tuple(values), remarks=remarks(), comparable=False, unit=METRIC)


EULER_STEPS, HEUN_STEPS = (8, 16, 32, 64), (4, 8, 16)
RK45 = '--sampler=rk45 --rtol=0.05 --atol=0.05'
ROWS_3: dict[str, dict[str, tuple[str, tuple[int, ...], float]]] = {
    'vp': {
        'Original sampler': ('--sampler=em --deterministic=true --original=true', EULER_STEPS, 1),
        'Our Algorithm 1': ('--family=vp', EULER_STEPS, 1),
        '+ Heun & our t_i': ('--family=vp --solver=heun --disc=edm', HEUN_STEPS, 2),
        '+ Our σ(t) & s(t)': ('--solver=heun', HEUN_STEPS, 2),
        'Black-box RK45': (RK45, (), 90),
    },
    've': {
        'Original sampler': ('--sampler=pc --predictor=probability-flow --corrector=none',
                             EULER_STEPS, 1),
        'Our Algorithm 1': ('--family=ve', EULER_STEPS, 1),
        '+ Heun & our t_i': ('--family=ve --solver=heun --disc=edm', HEUN_STEPS, 2),
        '+ Our σ(t) & s(t)': ('--solver=heun', HEUN_STEPS, 2),
        'Black-box RK45': (RK45, (), 90),
    },
}
LOOKS_3 = (BLUE, ORANGE, GREEN, RED, BLACK)
LOOKS_4 = (RED, ORANGE, BLUE, GREEN, PURPLE, BLACK)
CHURN_COUNTS = (8, 16, 32)
PREVIOUS = {'vp': ('--sampler=em', (16, 32, 64), 1), 've': ('--sampler=pc', (8, 16, 32), 2)}


def sweep(name: str, column: str, letter: str, options: str, steps: Sequence[int],
          per_step: float, num: int = FEW) -> Task:
    """Return a sweep over numbers of steps with the network of the first seed."""
    network, folder = run(column, letter, 0).makes, f'{FOLDER}/sweeps/{name}'
    counts = f'--steps={",".join(map(str, steps))} ' if steps else ''
    points = max(len(steps), 1)
    evaluations = (sum(steps) if steps else 1) * per_step / points
    return Task(f'fid.py sweep --network={network} --ref={STATISTICS} --num={num} '
                f'--detector={DETECTOR} --dest={folder} {counts}{options}',
                f'{folder}/report.json', (network, STATISTICS),
                points * judging_flop(gflop(letter, column), evaluations, num, LITE0_GFLOP))


def _slug(number: int, column: str, table: int) -> str:
    return f'table{table}-{column}-{number + 1}'


def sweeps_3() -> dict[tuple[str, str], Task]:
    """Return the sweeps of Table 3 by row and column."""
    return {(row, column): sweep(_slug(k, column, 3), column, 'A', *ROWS_3[column][row])
            for column in ROWS_3 for k, row in enumerate(PAPER_3)}


def sweeps_4() -> dict[tuple[str, str], Task]:
    """Return the sweeps of Table 4 by row and column, with the numbers of Table 5."""
    found = {}
    for column, network in zip(ROWS_3, MODELS, strict=False):
        options = churn_rows(optimal(network), '')
        for k, row in enumerate(PAPER_4):
            if row.startswith('Deterministic'):
                task = sweeps_3()['+ Our σ(t) & s(t)', column]
            elif row == 'Previous work':
                task = sweep(_slug(k, column, 4), column, 'A', *PREVIOUS[column])
            else:
                task = sweep(_slug(k, column, 4), column, 'A', options[row], CHURN_COUNTS, 2)
            found[row, column] = task
    return found


def _of_sweeps(title: str, found: dict[tuple[str, str], Task],
               papers: Mapping[str, Sequence[tuple[float, float] | None]],
               looks: Sequence[str], as_figure: bool) -> Experiment:
    """Return the experiment of these sweeps: the values as a table, or the lines as a figure."""
    values = [value for (row, column), task in found.items()
              for value in swept(task, row, column.upper(),
                                 papers[row][list(ROWS_3).index(column)], METRIC)]
    panels = tuple(Panel(f'{column.upper()}, configuration A', 'nfe', tuple(
        Line(row, (task.makes.replace('report.json', 'sweep.csv'),), looks[list(papers).index(row)])
        for (row, of), task in found.items() if of == column)) for column in ROWS_3)
    tasks = [*data_tasks(), *(run(column, 'A', 0) for column in ROWS_3), *found.values()]
    return Experiment(title, unique(tasks), () if as_figure else tuple(values),
                      panels if as_figure else (), remarks=remarks(), comparable=False, unit=METRIC)


def table_3() -> Experiment:
    """Return Table 3, small: samplers that follow the flow."""
    return _of_sweeps('Small Table 3: samplers that follow the flow', sweeps_3(), PAPER_3, LOOKS_3,
                      as_figure=False)


def table_4() -> Experiment:
    """Return Table 4, small: samplers with fresh noise."""
    return _of_sweeps('Small Table 4: samplers with fresh noise', sweeps_4(), PAPER_4, LOOKS_4,
                      as_figure=False)


def figure_2() -> Experiment:
    """Return Figure 2, small: distance against NFE of the samplers of Table 3."""
    return _of_sweeps('Small Figure 2: samplers that follow the flow', sweeps_3(), PAPER_3, LOOKS_3,
                      as_figure=True)


CHURNS = (0, 5, 10, 20)
CHURN_STEPS = 16


def figure_4() -> Experiment:
    """Return Figures 4 and 5b, small: fresh noise, against NFE and against S_churn."""
    against_nfe = _of_sweeps('', sweeps_4(), PAPER_4, LOOKS_4, as_figure=True)
    tasks, lines = list(against_nfe.tasks), []
    for column, letter, label, colour in (('vp', 'A', 'Original training, VP', BLUE),
                                          ('ve', 'A', 'Original training, VE', GREEN),
                                          ('vp', 'F', 'Our training, VP', ORANGE),
                                          ('ve', 'F', 'Our training, VE', RED)):
        network, folder = run(column, letter, 0), f'{FOLDER}/sweeps/churn-{column}-{letter}'
        tasks += [network, Task(
            f'fid.py sweep --network={network.makes} --ref={STATISTICS} --num={FEW} '
            f'--detector={DETECTOR} --dest={folder} --steps={CHURN_STEPS} '
            f'--S_churn={",".join(map(str, CHURNS))}', f'{folder}/report.json',
            (network.makes, STATISTICS), len(CHURNS) * judging_flop(
                gflop(letter, column), 2 * CHURN_STEPS - 1, FEW, LITE0_GFLOP))]
        lines.append(Line(label, (f'{folder}/sweep.csv',), colour))
    panel = Panel(f'S_churn, NFE {2 * CHURN_STEPS - 1}', 'S_churn', tuple(lines))
    return Experiment('Small Figures 4 and 5b: samplers with fresh noise', unique(tasks),
                      panels=(*against_nfe.panels, panel), comparable=False, unit=METRIC,
                      remarks=(*remarks(), f'γ is at most √2 − 1, which {CHURN_STEPS} steps reach '
                                           f'at S_churn = 6.6: beyond it nothing changes.'))


def figure_5() -> Experiment:
    """Return Figure 5a, small: the loss per noise level before and after training."""
    tasks, lines = [*data_tasks()[:1]], []
    for column, letter, colour in (('vp', 'F', BLUE), ('vp', 'A', ORANGE)):
        network, made = run(column, letter, 0), f'{FOLDER}/losses/{column}-{letter}.json'
        first = network.makes.replace(f'{KIMG:06d}', '000000')
        tasks += [network, Task(f'-m reproduction.losses --initial={first} '
                                f'--final={network.makes} --data={TRAIN} --num={FEW} '
                                f'--dest={made}', made, (network.makes, TRAIN),
                                judging_flop(gflop(letter, column), 82, FEW, 0))]
        lines.append(Line(f'{letter} (VP)', (made,), colour))
    return Experiment('Small Figure 5a: loss per noise level', unique(tasks),
                      panels=(Panel('Loss per noise level, λ of EDM', 'sigma', tuple(lines)),),
                      remarks=(*remarks(), "A's initial loss, 1 + 4σ² as D(x; σ) = x, leaves "
                                           'the picture.'), comparable=False, unit='loss')
