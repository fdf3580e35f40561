"""Tables 1 to 5 and Figures 1 to 5 of Karras et al. 2022, as experiments.

The numbers are those of the paper's tables. Training runs are the presets of options/presets.py,
and the settings of Table 5 are those of options/sampler.py.
"""

from collections.abc import Mapping, Sequence

from options import sampler
from options.presets import FID, GFLOP, PRESETS, Preset
from reproduction.experiment import (
    OUT,
    Experiment,
    Line,
    Need,
    Panel,
    Source,
    Task,
    Value,
    judging_flop,
    unique,
)

LOOKS = ('#3b6ea5', '#d98324', '#4d9a57', '#b5302c', '#222222', '#7a5195')
BLUE, ORANGE, GREEN, RED, BLACK, PURPLE = LOOKS

DOWNLOADS = 'datasets/downloads'
PUBLISHED = 'https://nvlabs-fi-cdn.nvidia.com/edm/pretrained'

# Sources of data and published networks: all that no command here makes.
_SETS = {   # name of the data set: file, where from, options of dataset_tool.py, pixels, images
    'cifar10': ('cifar-10-python.tar.gz',
                'CIFAR-10 for Python, https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz '
                '(163 MB)', '', 32, 50_000),
    'ffhq64': ('ffhq/images1024x1024',
               'FFHQ, the folder images1024x1024 of https://github.com/NVlabs/ffhq-dataset '
               '(70,000 PNG files, 89 GB)', ' --resolution=64x64', 64, 70_000),
    'afhqv2-64': ('afhqv2',
                  'AFHQv2, the folders train and test of https://github.com/clovaai/stargan-v2 '
                  'without their names: cat, dog, wild (15,803 PNG files)',
                  ' --resolution=64x64', 64, 15_803),
    'imagenet64': ('imagenet/ILSVRC/Data/CLS-LOC/train',
                   'ImageNet, the training images of ILSVRC 2012, https://image-net.org (1,281,167 '
                   'JPEG files in 1,000 folders)',
                   ' --resolution=64x64 --transform=center-crop', 64, 1_281_167),
    # ADM was trained on images that were made smaller in its own way.
    'imagenet64-adm': ('imagenet/ILSVRC/Data/CLS-LOC/train', '',
                       ' --resolution=64x64 --transform=center-crop-dhariwal', 64, 1_281_167),
}
_NETWORKS = {   # name: file, where from, 10^9 operations, data set, whether it has classes
    'cifar10-vp': ('baseline-cifar10-32x32-uncond-vp.pkl', 'baseline/',
                   GFLOP['ddpmpp', 32, (1, 2, 2, 2)], 'cifar10'),
    'cifar10-ve': ('baseline-cifar10-32x32-uncond-ve.pkl', 'baseline/',
                   GFLOP['ncsnpp', 32, (1, 2, 2, 2)], 'cifar10'),
    'imagenet64-adm': ('baseline-imagenet-64x64-cond-adm.pkl', 'baseline/',
                       GFLOP['adm', 64, (1, 2, 3, 4)], 'imagenet64-adm'),
    'imagenet64-edm': ('edm-imagenet-64x64-cond-adm.pkl', '', GFLOP['adm', 64, (1, 2, 3, 4)],
                       'imagenet64'),
    'cifar10-edm-vp': ('edm-cifar10-32x32-uncond-vp.pkl', '', GFLOP['ddpmpp', 32, (2, 2, 2)],
                       'cifar10'),
    'cifar10-edm-ve': ('edm-cifar10-32x32-uncond-ve.pkl', '', GFLOP['ncsnpp', 32, (2, 2, 2)],
                       'cifar10'),
}
NEEDS = tuple(Need(f'{DOWNLOADS}/{path}', source)
              for path, source, *_ in _SETS.values() if source) + tuple(
    Need(f'{DOWNLOADS}/{file}', f'{PUBLISHED}/{folder}{file} (published with the paper, for use '
                                f'that is not commercial)')
    for file, folder, _, _ in _NETWORKS.values())

NUM = 50_000


def data(name: str) -> tuple[Task, Task]:
    """Return the tasks that make a data set of the paper and the statistics of its images."""
    file, _, options, resolution, images = _SETS[name]
    made = data_file(name)
    return (Task(f'dataset_tool.py --source={DOWNLOADS}/{file} --dest={made}{options}', made,
                 (f'{DOWNLOADS}/{file}',)),
            Task(f'fid.py ref --data={made} --dest={reference(name)}', reference(name), (made,),
                 judging_flop(0, 0, images)))


def data_file(name: str) -> str:
    """Return the file of a data set, under the name that EDM's program gives it."""
    subject, _, variant = name.partition('-')
    size = 'x'.join(2 * [str(_SETS[name][3])])
    return f'datasets/{subject.removesuffix("64")}-{size}{"-adm" if variant == "adm" else ""}.zip'


def reference(name: str) -> str:
    """Return the file of statistics of a data set."""
    return f'{OUT}/references/{name}.npz'


# --- Table 1 ------------------------------------------------------------------------------------

def formulas(experiment: str, title: str, values: Sequence[tuple[str, str, object]],
             unit: str, remarks: tuple[str, ...] = ()) -> Experiment:
    """Return an experiment whose values reproduction.formulas computes, in a second."""
    made = f'{OUT}/{experiment}.json'
    return Experiment(
        title, (Task(f'-m reproduction.formulas {experiment} --dest={made}', made),),
        tuple(Value(row, column, paper, (Source(made, f'{row}/{column}'),),   # type: ignore[arg-type]
                    digits=6) for row, column, paper in values),
        unit=unit, remarks=remarks)


# --- Table 2 ------------------------------------------------------------------------------------

def preset_run(name: str) -> Task:
    """Return the training run of a preset, judged each 2.5 million images."""
    preset, subject = PRESETS[name], _set_of(name)
    steps = 18 if preset.resolution == 32 else 40
    snapshots = preset.options['duration'] / 2.5
    return Task(
        f'train.py --run-dir={OUT}/runs/{name} --data={data_file(subject)} --preset={name} '
        f'--eval=2500 --ref={reference(subject)} --eval-steps={steps}',
        f'{OUT}/runs/{name}/network-best.pkl', (data_file(subject), reference(subject)),
        preset.flop() + snapshots * judging_flop(_gflop(preset), 2 * steps - 1, NUM))


def _set_of(preset: str) -> str:
    return preset.rsplit('-', 3)[0]


def _gflop(preset: Preset) -> float:
    return GFLOP[preset.options['arch'], preset.resolution, tuple(preset.options['cres'])]


def judged(name: str, network: str, subject: str, gflop: float, options: str,
           nfe: float) -> Task:
    """Return the task that judges three blocks of 50,000 images, as the paper does."""
    made = f'{OUT}/judged/{name}.json'
    return Task(f'fid.py gen --network={network} --ref={reference(subject)} --blocks=3 '
                f'--state={OUT}/judged/{name}.state --json={made} {options}', made,
                (network, reference(subject)), judging_flop(gflop, nfe, 3 * NUM))


def table_2(part: str = '') -> Experiment:
    """Return Table 2: A to F, VP and VE, on four data sets; or the preset `part` of it alone."""
    names = [f'{subject}-{column}-{letter}' for subject in FID for letter in 'ABCDEF'
             for column in ('vp', 've')]
    tasks: list[Task] = []
    values = []
    for name in [part] if part else names:
        preset, subject = PRESETS[name], _set_of(name)
        title, column, letter = name.rsplit('-', 2)
        tasks += data(subject)
        path = f'{DOWNLOADS}/{_NETWORKS[f"cifar10-{column}"][0]}' if preset.pretrained else ''
        if not path:
            tasks.append(preset_run(name))
            path = tasks[-1].makes
        tasks.append(judged(name, path, subject, _gflop(preset), preset.sampler,
                            35 if preset.resolution == 32 else 79))
        values.append(Value(letter, f'{title} {column.upper()}', preset.fid,
                            (Source(tasks[-1].makes, 'blocks/*/scores/fid'),), 'lowest'))
    return Experiment(
        'FID of the training configurations A to F', unique(tasks), tuple(values),
        remarks=('The snapshot is that with the lowest FID of one block of 50,000 images (the '
                 'paper: of three); three blocks judge it.',
                 'Unconditional CIFAR-10, A: the published networks of Song et al., as in the '
                 'paper.'))


# --- Tables 3 and 4, Figures 2 and 4 --------------------------------------------------------------

DOUBLING = (8, 16, 32, 64, 128, 256, 512)
HALVES = (4, 7, 10, 14, 18, 28, 40, 64, 96, 128, 256)


def sweep(name: str, network: str, options: str, steps: Sequence[int], per_step: float) -> Task:
    """Return the task that judges a published network with several numbers of steps."""
    file, _, gflop, subject = _NETWORKS[network]
    folder = f'{OUT}/sweeps/{name}'
    counts = f'--steps={",".join(map(str, steps))} ' if steps else ''
    evaluations = sum(per_step * count for count in steps) or per_step
    return Task(f'fid.py sweep --network={DOWNLOADS}/{file} --ref={reference(subject)} --blocks=3 '
                f'--dest={folder} {counts}{options}'.strip(), f'{folder}/report.json',
                (f'{DOWNLOADS}/{file}', reference(subject)),
                judging_flop(gflop, evaluations, 3 * NUM)
                + judging_flop(0, 0, 3 * NUM) * max(len(steps) - 1, 0))


TOLERANCES = '--rtol=0.1,0.01,0.001,0.0001 --atol=0.1,0.01,0.001,0.0001'

# Rows of Table 3 for each network: options of generate.py, numbers of steps, evaluations a step.
TABLE_3: dict[str, dict[str, tuple[str, tuple[int, ...], float]]] = {
    'cifar10-vp': {
        'Original sampler': ('--sampler=em --deterministic=true --original=true', DOUBLING, 1),
        'Our Algorithm 1': ('--family=vp', DOUBLING, 1),
        '+ Heun & our t_i': ('--family=vp --solver=heun --disc=edm', HALVES, 2),
        '+ Our σ(t) & s(t)': ('--solver=heun', HALVES, 2),
        'Black-box RK45': (f'--sampler=rk45 {TOLERANCES}', (), 16 * 120),
    },
    'cifar10-ve': {
        'Original sampler': ('--sampler=pc --predictor=probability-flow --corrector=none',
                             (*DOUBLING, 1024, 2048, 4096, 8192), 1),
        'Our Algorithm 1': ('--family=ve', (*DOUBLING, 1024, 2048, 4096, 8192), 1),
        '+ Heun & our t_i': ('--family=ve --solver=heun --disc=edm', HALVES, 2),
        '+ Our σ(t) & s(t)': ('--solver=heun', HALVES, 2),
        'Black-box RK45': (f'--sampler=rk45 {TOLERANCES}', (), 16 * 120),
    },
    'imagenet64-adm': {
        'Original sampler': ('--sampler=ddim', (*DOUBLING[:-2], 250), 1),
        'Our Algorithm 1': ('--family=iddpm', (*DOUBLING[:-2], 192, 256, 384), 1),
        '+ Heun & our t_i': ('--solver=heun', HALVES, 2),
        'Black-box RK45': (f'--sampler=rk45 {TOLERANCES}', (), 16 * 120),
    },
}
# The paper's (FID, NFE): VP, VE, ImageNet-64.
PAPER_3 = {
    'Original sampler': ((2.85, 256), (5.45, 8192), (2.85, 250)),
    'Our Algorithm 1': ((2.79, 512), (4.78, 8192), (2.73, 384)),
    '+ Heun & our t_i': ((2.88, 255), (4.23, 191), (2.64, 79)),
    '+ Our σ(t) & s(t)': ((2.93, 35), (3.73, 27), None),
    'Black-box RK45': ((2.94, 115), (3.69, 93), (2.66, 131)),
}
PAPER_4 = {
    'Deterministic baseline (Alg. 1)': ((2.93, 35), (3.73, 27), (2.64, 79)),
    'Alg. 2, S_min,max = [0, ∞], S_noise = 1': ((2.69, 95), (2.97, 383), (1.86, 383)),
    'Alg. 2, S_min,max = [0, ∞]': ((2.54, 127), (2.51, 511), (1.63, 767)),
    'Alg. 2, S_noise = 1': ((2.52, 95), (2.84, 191), (1.84, 255)),
    'Alg. 2, optimal settings': ((2.27, 383), (2.23, 767), (1.55, 511)),
    'Previous work': ((2.55, 768), (2.46, 1024), (2.01, 384)),
}
MODELS = ('cifar10-vp', 'cifar10-ve', 'imagenet64-adm')
TITLES = {'cifar10-vp': 'CIFAR-10 VP', 'cifar10-ve': 'CIFAR-10 VE',
          'imagenet64-adm': 'ImageNet-64'}
PREVIOUS = {'cifar10-vp': '--sampler=em', 'cifar10-ve': '--sampler=pc',
            'imagenet64-adm': '--sampler=ancestral'}
STOCHASTIC = (12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384)


def churn_rows(optimal: str, previous: str) -> dict[str, str]:
    """Return the options of each row of Table 4, from the optimal settings of Table 5."""
    numbers = dict(option.removeprefix('--').split('=') for option in optimal.split())

    def with_(*names: str) -> str:
        return ' '.join(f'--{name}={numbers[name]}' for name in names)

    return {
        'Deterministic baseline (Alg. 1)': '--solver=heun',
        'Alg. 2, S_min,max = [0, ∞], S_noise = 1': with_('S_churn'),
        'Alg. 2, S_min,max = [0, ∞]': with_('S_churn', 'S_noise'),
        'Alg. 2, S_noise = 1': with_('S_churn', 'S_min', 'S_max'),
        'Alg. 2, optimal settings': with_('S_churn', 'S_min', 'S_max', 'S_noise'),
        'Previous work': previous,
    }


def optimal(network: str) -> str:
    """Return the numbers of Table 5 for a network, as options."""
    given = sampler.PRESETS[network]
    return ' '.join(f'--{name}={given[name]:g}'
                    for name in ('S_churn', 'S_min', 'S_max', 'S_noise'))


def swept(value: Task, row: str, column: str, paper: tuple[float, float] | None,
          metric: str = 'fid') -> tuple[Value, Value]:
    """Return the two values of a sweep: the lowest distance, and the NFE within 3 % of it."""
    distance, nfe = paper or (None, None)
    return (Value(row, f'{column} {"FID" if metric == "fid" else "distance"}', distance,
                  (Source(value.makes, f'best/{metric}'),)),
            Value(row, f'{column} NFE', nfe,
                  (Source(value.makes, 'fewest evaluations within 3 %/nfe'),), digits=0))


def table_3() -> Experiment:
    """Return Table 3: samplers that follow the flow, on three published networks."""
    found = {(row, network): sweep(f'{network}-{_slug(row)}', network, *TABLE_3[network][row])
             for row, papers in PAPER_3.items()
             for network, paper in zip(MODELS, papers, strict=True) if paper is not None}
    return _of_sweeps('FID and NFE of the samplers that follow the flow', found, PAPER_3,
                      (BLUE, ORANGE, GREEN, RED, BLACK))


def table_4() -> Experiment:
    """Return Table 4: samplers with fresh noise, on three published networks."""
    found = {(row, network): _churn_sweep(row, network) for row in PAPER_4 for network in MODELS}
    return _of_sweeps('FID and NFE of samplers with fresh noise', found, PAPER_4,
                      (RED, ORANGE, BLUE, GREEN, PURPLE, BLACK))


def _churn_sweep(row: str, network: str) -> Task:
    """Return the sweep of a cell of Table 4."""
    imagenet = network == 'imagenet64-adm'
    if row.startswith('Deterministic'):   # a row of Table 3, too
        same = '+ Heun & our t_i' if imagenet else '+ Our σ(t) & s(t)'
        return sweep(f'{network}-{_slug(same)}', network, '--solver=heun', HALVES, 2)
    name, per_step = f'{network}-{_slug(row)}', 2
    steps: tuple[int, ...] = STOCHASTIC
    if row == 'Previous work':
        steps = (*DOUBLING[:-1], 384) if imagenet else (*DOUBLING, 768, 1024)
        per_step = 2 if network == 'cifar10-ve' else 1
    return sweep(name, network, churn_rows(optimal(network), PREVIOUS[network])[row], steps,
                 per_step)


def _of_sweeps(title: str, found: Mapping[tuple[str, str], Task],
               papers: Mapping[str, tuple[tuple[float, float] | None, ...]],
               looks: Sequence[str]) -> Experiment:
    """Return the experiment of these sweeps, by row and network: two values and a line of each."""
    values = [value for (row, network), task in found.items()
              for value in swept(task, row, TITLES[network], papers[row][MODELS.index(network)])]
    panels = [Panel(TITLES[network], 'nfe', tuple(
        Line(row, (task.makes.replace('report.json', 'sweep.csv'),), looks[list(papers).index(row)])
        for (row, of), task in found.items() if of == network)) for network in MODELS]
    tasks = [*data('cifar10'), *data('imagenet64-adm'), *found.values()]
    return Experiment(title, unique(tasks), tuple(values), tuple(panels))


def _slug(row: str) -> str:
    kept = ''.join(letter if letter.isascii() and letter.isalnum() else '-'
                   for letter in row.lower())
    return '-'.join(filter(None, kept.split('-')))


# --- Table 5 ------------------------------------------------------------------------------------

def table_5() -> Experiment:
    """Return Table 5: the search for S_churn, S_min, S_max and S_noise."""
    tasks = [*data('cifar10'), *data('imagenet64'), *data('imagenet64-adm')]
    values: list[Value] = []
    titles = {**TITLES, 'imagenet64-edm': 'ImageNet-64, our training'}
    for network, title in titles.items():
        file, _, gflop, subject = _NETWORKS[network]
        folder, given = f'{OUT}/searches/{network}', sampler.PRESETS[network]
        tasks.append(Task(
            f'fid.py search --network={DOWNLOADS}/{file} --ref={reference(subject)} '
            f'--dest={folder} --steps={given["num_steps"]} --confirm-blocks=3',
            f'{folder}/search.json', (f'{DOWNLOADS}/{file}', reference(subject)),
            judging_flop(gflop, 2 * given['num_steps'] - 1, 80 * 5000 + 3 * 3 * NUM)))
        values += [Value(name, title, float(given[name]),
                         (Source(f'{folder}/search.json', f'best/--{name}'),), digits=3)
                   for name in ('S_churn', 'S_min', 'S_max', 'S_noise')]
    return Experiment('The best numbers of fresh noise', unique(tasks), tuple(values),
                      unit='the number', remarks=(
                          'The paper searched the grid with unknown numbers of images; here each '
                          'setting is tried with 5,000 and the best three with 3 x 50,000.',))


# --- Figures ------------------------------------------------------------------------------------

def figure_1() -> Experiment:
    """Return Figure 1: noisy images, and the ideal denoiser's answers."""
    made, archive = f'{OUT}/edm-figure1.png', data_file('cifar10')
    return Experiment(
        'CIFAR-10 with noise, and the ideal denoiser', (
            data('cifar10')[0],
            Task(f'-m docs.figures denoiser --data={archive} --dest={made}', made, (archive,))),
        images=(made,))


def figure_3() -> Experiment:
    """Return Figure 3: the flow of two points."""
    made = f'{OUT}/edm-figure3.png'
    return Experiment('The flow of two points under three schedules',
                      (Task(f'-m docs.figures trajectories --dest={made}', made),), images=(made,))


CHURNS = (0, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100)


def figure_5() -> Experiment:
    """Return Figure 5: loss per noise level, and FID against S_churn."""
    tasks = [*data('cifar10'), *data('imagenet64'), *data('imagenet64-adm')]
    run = preset_run('cifar10-uncond-vp-F')
    losses, archive = f'{OUT}/losses/cifar10.json', data_file('cifar10')
    first = f'{OUT}/runs/cifar10-uncond-vp-F/network-snapshot-000000.pkl'
    tasks += [run, Task(f'-m reproduction.losses --initial={first} --final={run.makes} '
                        f'--data={archive} --num=10000 --dest={losses}', losses,
                        (run.makes, archive), judging_flop(42.4, 82, 10_000, 0))]
    lines: dict[str, list[Line]] = {'cifar10': [], 'imagenet64': []}
    for (network, label), colour in zip((
            ('cifar10-vp', 'Original training, VP'), ('cifar10-ve', 'Original training, VE'),
            ('cifar10-edm-vp', 'Our training, VP'), ('cifar10-edm-ve', 'Our training, VE'),
            ('imagenet64-adm', 'Original training'), ('imagenet64-edm', 'Our training')),
            (BLUE, GREEN, ORANGE, RED, BLUE, ORANGE), strict=True):
        file, _, gflop, subject = _NETWORKS[network]
        folder = f'{OUT}/sweeps/{network}-churn'
        tasks.append(Task(
            f'fid.py sweep --network={DOWNLOADS}/{file} --ref={reference(subject)} --blocks=3 '
            f'--dest={folder} --steps=256 --S_churn={",".join(map(str, CHURNS))}',
            f'{folder}/report.json', (f'{DOWNLOADS}/{file}', reference(subject)),
            len(CHURNS) * judging_flop(gflop, 511, 3 * NUM)))
        lines[subject.removesuffix('-adm')].append(Line(label, (f'{folder}/sweep.csv',), colour))
    panels = (Panel('(a) loss per noise level', 'sigma', (
                  Line('CIFAR-10', (losses,), BLUE),)),
              Panel('(b) unconditional CIFAR-10, NFE 511', 'S_churn', tuple(lines['cifar10'])),
              Panel('(c) ImageNet-64, NFE 511', 'S_churn', tuple(lines['imagenet64'])))
    return Experiment('Loss per noise level; FID against S_churn', unique(tasks), panels=panels,
                      remarks=('The curve of 64x64 pixels in (a) is left out.',))

