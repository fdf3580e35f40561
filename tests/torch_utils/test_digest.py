"""Digests of tensors."""

import hashlib

import numpy as np
import torch

from torch_utils.digest import digest_of_tensors


def test_the_digest_is_over_names_shapes_and_float32_values_in_the_order_of_the_names():
    a, b = np.arange(6, dtype='<f4').reshape(2, 3), np.float32(0.5)
    expected = hashlib.sha256(b'a [2, 3]\n' + a.tobytes() + b'b []\n' + b.tobytes()).hexdigest()
    found = digest_of_tensors({'b': torch.tensor(0.5, dtype=torch.float64),
                               'a': torch.from_numpy(a.T.copy()).T})
    assert found == expected
    assert digest_of_tensors({'a': torch.from_numpy(a)}) != expected
