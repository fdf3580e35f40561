"""The word digits: scikit-learn's handwritten digits, which come with the package."""

import importlib

import numpy as np

from data.source import NumberedArrays, Source, needs


def is_digits(path: str) -> bool:
    """Return whether the source is the word digits."""
    return path == 'digits'


def read_digits(path: str) -> Source:
    """Read the 1,797 8x8 scans of scikit-learn, whose greys 0..16 are stretched to 0..255."""
    try:
        datasets = importlib.import_module('sklearn.datasets')
    except ImportError as error:
        raise ValueError(needs('scikit-learn', 'demo', '--source=digits')) from error
    digits = datasets.load_digits()
    load = NumberedArrays(np.rint(digits.images * (255 / 16)).astype(np.uint8))
    labels = dict(zip(load.names(), digits.target.tolist(), strict=True))
    return Source(load.names(), load, labels, (16, 16))
