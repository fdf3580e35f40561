"""Tables 1 and 2 and Figures 1 and 2 of Lin et al. 2023, as experiments."""

from reproduction.edm import formulas
from reproduction.experiment import OUT, Experiment, Line, Panel, Task

# Table 1: SNR(T) and √ᾱ_T. (The paper's "cosine" is float32's; float64 gives 2.428767e-09 and
# 4.928252e-05.)
TERMINAL = (('Linear', 4.035993e-05, 0.006353), ('Cosine', 2.428735e-09, 4.928220e-05),
            ('Stable Diffusion', 0.004682, 0.068265))
# Table 2, T = 1000, S = 10.
TIMESTEPS = {
    'Leading': tuple(map(float, range(1, 1000, 100))),
    'Linspace': (1.0, 112.0, 223.0, 334.0, 445.0, 556.0, 667.0, 778.0, 889.0, 1000.0),
    'Trailing': tuple(map(float, range(100, 1001, 100))),
}


def table_1() -> Experiment:
    """Return Table 1: the signal that is left at the last timestep."""
    values = [value for name, snr, root in TERMINAL
              for value in ((name, 'SNR(T)', snr), (name, '√ᾱ_T', root))]
    return formulas('zero-snr-table1', 'Signal left at the last timestep of common schedules',
                    values, 'the number', (
                        "The paper's numbers of the cosine schedule are those of float32.",))


def table_2() -> Experiment:
    """Return Table 2: the timesteps that a sampler visits."""
    return formulas('zero-snr-table2', 'Timesteps of ten steps out of 1,000',
                    [(name, 'timesteps', steps) for name, steps in TIMESTEPS.items()], 'timesteps')


def figure_1() -> Experiment:
    """Return Figure 1, small: the brightness of images under a flawed and a corrected schedule."""
    made = f'{OUT}/zero-snr-figure1.png'
    return Experiment(
        'Brightness under a flawed and a corrected schedule', (
            Task(f'-m docs.brightness --run={OUT}/brightness --dest={made}', made, flop=4e13),),
        images=(made,), remarks=(
            'The paper fine-tunes Stable Diffusion on images from Laion, which are no longer '
            'distributed; this is the same comparison of two networks trained here, on digits of '
            'all brightnesses.',))


def figure_2() -> Experiment:
    """Return Figure 2: log SNR(t) and √ᾱ_t of Stable Diffusion's schedule, before and after."""
    made = f'{OUT}/zero-snr-figure2.json'
    return Experiment(
        "Stable Diffusion's schedule, original and rescaled",
        (Task(f'-m reproduction.formulas zero-snr-figure2 --dest={made}', made),),
        panels=tuple(Panel(title, x, (Line('Original', (made,), '#3b6ea5', ''),
                                      Line('Ours', (made,), '#d98324', '')))
                     for title, x in (('(a) log SNR(t)', 'log SNR'), ('(b) √ᾱ_t', '√ᾱ'))))
