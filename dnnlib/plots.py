"""matplotlib, where it is installed, made to draw the same picture everywhere."""

from typing import Any


def pyplot() -> Any:  # noqa: ANN401 (a module)
    """matplotlib.pyplot with its own defaults: no window, no settings of the user's.

    Raises ValueError, which names the extra, where matplotlib is missing.
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
