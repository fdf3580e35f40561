"""The safetensors format: a JSON header of names, types, shapes and positions, then the numbers.

Nothing in such a file can be executed. Layout: 8 bytes (little-endian length of the header), the
header, the data; `data_offsets` count from the end of the header.
"""

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from dnnlib.console import shown
from dnnlib.files import atomic_write, open_regular
from torch_utils.digest import digest_of_tensors

DIGEST = 'digest'    # the key of that of all tensors in a file of ours
MOST_TENSORS = 20_000
MAX_HEADER = 2**24   # bytes; ten thousand tensors take 1 MB
DTYPES = {'F64': torch.float64, 'F32': torch.float32, 'F16': torch.float16, 'BF16': torch.bfloat16,
          'I64': torch.int64, 'I32': torch.int32, 'I16': torch.int16, 'I8': torch.int8,
          'U8': torch.uint8}


def save_tensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, str],
                 path: str | os.PathLike[str]) -> None:
    """Write tensors and texts, all of them or nothing."""
    names = {dtype: name for name, dtype in DTYPES.items()}
    header: dict[str, object] = {'__metadata__': dict(metadata)} if metadata else {}
    position = 0
    for name, tensor in tensors.items():
        header[name] = {'dtype': names[tensor.dtype], 'shape': list(tensor.shape),
                        'data_offsets': [position, position + tensor.nbytes]}
        position += tensor.nbytes
    encoded = json.dumps(header).encode()
    encoded += b' ' * (-len(encoded) % 8)   # so that the numbers are aligned
    with atomic_write(path) as file:
        file.write(len(encoded).to_bytes(8, 'little') + encoded)
        for tensor in tensors.values():
            values = tensor.detach().cpu().contiguous()
            file.write(values.reshape(-1).view(torch.uint8).numpy().data)


def is_safetensors(path: str | os.PathLike[str]) -> bool:
    """Return whether a file starts like one of this format."""
    try:
        with open_regular(path) as file:
            start = file.read(9)
    except (OSError, ValueError):
        return False
    length = int.from_bytes(start[:8], 'little')
    return len(start) == 9 and start[8:] == b'{' and length <= MAX_HEADER


def load_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors, on the CPU, and the texts of a file.

    Raises ValueError in one line, which names the file, for a damaged one.
    """
    try:
        with open_regular(path) as file:
            tensors, metadata = _read(file)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError,
            RuntimeError) as error:
        raise ValueError(
            f'{Path(path)} is a damaged safetensors file: {str(error)[:200]}') from None
    if not isinstance(metadata, dict) or not all(isinstance(value, str)
                                                 for value in metadata.values()):
        raise ValueError(f'{Path(path)} is a damaged safetensors file: its metadata are no texts')
    return tensors, metadata


def check_digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str],
                 path: str | os.PathLike[str],
                 digest: Callable[[Mapping[str, Tensor]], str] = digest_of_tensors) -> bool:
    """Return whether the texts of a file have a digest of its tensors.

    Raises ValueError, which names the file, where that is another one than theirs.
    """
    if DIGEST not in metadata:
        return False
    found = digest(tensors)
    if metadata[DIGEST] != found:
        raise ValueError(f'{Path(path)} is damaged: its tensors have the digest {found}, not '
                         f'{shown(metadata[DIGEST])} as it says')
    return True


def _read(file: IO[bytes]) -> tuple[dict[str, Tensor], object]:
    """Read all tensors, which must lie one behind the other, and the metadata."""
    size = file.seek(0, 2) - 8
    file.seek(0)
    length = int.from_bytes(file.read(8), 'little')
    if length > min(size, MAX_HEADER):
        raise ValueError(f'it claims a header of {length} bytes')
    header = json.loads(file.read(length))
    metadata = header.pop('__metadata__', {})
    if len(header) > MOST_TENSORS:
        raise ValueError(f'it claims {len(header):,} tensors, more than {MOST_TENSORS:,}')
    tensors, position = {}, 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]['data_offsets']):
        dtype, shape, offsets = DTYPES[entry['dtype']], entry['shape'], entry['data_offsets']
        start, end = offsets
        if len(shape) > 8 or any(type(n) is not int or not 0 <= n < 2**48 for n in shape):
            raise ValueError(f'the tensor {name[:80]!r} has a shape that none has')
        count = math.prod(shape)
        if start != position or end - start != count * dtype.itemsize or end > size - length:
            raise ValueError(f'the tensor {name[:80]!r} does not lie where it should')
        values = torch.empty(count, dtype=dtype)
        target = values.view(torch.uint8).numpy().data
        if count and file.readinto(target) != values.nbytes:   # type: ignore[attr-defined]
            raise ValueError('it became shorter while it was read')
        tensors[name], position = values.reshape(shape), end
    return tensors, metadata
