"""matplotlib, set up to draw the same picture everywhere."""

from types import ModuleType


def pyplot() -> ModuleType:
    """Return matplotlib.pyplot with its own defaults: without windows and the user's settings.

    Raises ValueError where matplotlib is missing; the message names the extra to install.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise ValueError('pictures need matplotlib, of the extra demo: pip install ".[demo]", '
                         'or pip install matplotlib') from error
    matplotlib.use('Agg')
    matplotlib.rcdefaults()
    import matplotlib.pyplot
    matplotlib.rcParams.update({'font.size': 10, 'axes.titlesize': 11, 'axes.linewidth': 0.6})
    return matplotlib.pyplot
