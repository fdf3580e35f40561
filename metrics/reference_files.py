"""Files of reference statistics, ours and published ones, read without executing anything.

    reference = read_reference('https://nvlabs-fi-cdn.nvidia.com/edm/fid-refs/cifar10-32x32.npz')
    reference.moments['pool_3'].mu             # float64 [2048]

The contents of a file are returned under the tap that the features come from, a key of
metrics.features.TAPS. If a file does not name its detector, the number of features tells it: 2048
are pool_3, 2023 spatial, 1024 dinov2, 224 demo. (1280 tell nothing: many networks have so many.)

| origin         | file   | content                                                              |
| -------------- | ------ | -------------------------------------------------------------------- |
| limpid         | npz    | see write_reference                                                  |
| EDM            | npz    | mu, sigma                                                            |
| EDM2           | pickle | num_images, fid: {mu, sigma}, fd_dinov2: {mu, sigma}                 |
| ADM            | npz    | mu, sigma, mu_s, sigma_s; arr_0: 10,000 images for precision, recall |
| mu and sigma   | npz    | of TTUR, clean-fid, pytorch-fid, which do not all resize alike       |
| torch-fidelity | .pt    | mu (in float32), sigma; or a tensor of features                      |
| Score-SDE      | npz    | pool_3: features                                                     |
| clean-fid      | npz    | feats: features                                                      |
| dgm-eval       | npz    | reps: features, and pickled objects, which are not read              |
"""

import math
import os
import pickle
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import numpy as np
import torch
from torch import Tensor

from dnnlib.console import shown
from dnnlib.download import STATISTICS, as_fetched, fetch, is_url
from dnnlib.files import atomic_write
from metrics.features import BUILT_IN, OWN, TAPS, register
from metrics.statistics import Moments, Statistics, chunks
from torch_utils import torch_files
from torch_utils.arrays import names_in, read_npz
from torch_utils.safe_pickle import ForbiddenError, Record, record

T = TypeVar('T')

WHAT = 'file of statistics'
FORMAT = 1   # of our npz files; mu and sigma mean the same in every version
# whose mu and sigma are called just that: the first that is there
MAIN = ('pool_3', 'demo', 'arrays', 'efficientnet_lite0', 'dinov2', 'spatial')
TOLD_BY_SIZE = ('pool_3', 'spatial', 'dinov2', 'demo')   # taps that others publish without a name
# key of others' features: origin
FEATURES = {'pool_3': 'Score-SDE', 'reps': 'dgm-eval', 'feats': 'clean-fid'}
EDM_URL = 'https://nvlabs-fi-cdn.nvidia.com/edm/fid-refs/'
# how it resized, in the name of the file
CLEAN_FID = re.compile(r'_(clean|legacy_pytorch|legacy_tensorflow)_')


class LazyArrays(Mapping[str, np.ndarray]):
    """Arrays by name, each of which is read when it is first asked for, and kept."""

    def __init__(self, readers: Mapping[str, Callable[[], np.ndarray]]) -> None:
        self._readers, self._read = dict(readers), dict[str, np.ndarray]()

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._read:
            self._read[name] = self._readers[name]()
        return self._read[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._readers)

    def __len__(self) -> int:
        return len(self._readers)


@dataclass(frozen=True)
class ReferenceFile:
    """The contents of a file of reference statistics, by tap, and notes on it.

    `features` are float32 [N, d]. `has_images` says that arr_0 holds images (metrics.sample_batch
    reads them). In ADM's files these are for precision and recall, and fewer than the images that
    mu and sigma were computed from.
    """
    moments: dict[str, Statistics]
    features: Mapping[str, np.ndarray] = field(default_factory=dict)
    has_images: bool = False
    origin: str = 'limpid'
    notes: list[str] = field(default_factory=list)


def read_reference(source: str | os.PathLike[str]) -> ReferenceFile:
    """Read the reference statistics of a file, or of an http(s) address, kept in the cache.

    Arrays are decompressed only when they are asked for. Raises ValueError, in one line that names
    the file, if it is missing, damaged, or of an unknown kind, and for arrays that are not finite
    or do not fit together.
    """
    name = os.fspath(source)
    path = fetch(name, most=STATISTICS) if is_url(name) else Path(name)
    if path.is_dir():
        raise ValueError(f'{path} is a folder, not a {WHAT}: make one with fid.py ref')
    if not path.exists():
        raise ValueError(f'{path}: no such {WHAT}: make one with fid.py ref')
    with as_fetched(name, path):
        return _read_npz(path, name) if _is_npz(path) else _read_pickled(path)


# npz

def _is_npz(path: Path) -> bool:
    """Return whether a file is a zip, but not of the kind that torch.save writes."""
    if not torch_files.is_zip(path):
        return False
    with torch_files.damage_named(path, WHAT), zipfile.ZipFile(path) as archive:
        return not any(name.endswith('/data.pkl') for name in archive.namelist())


def _read_npz(path: Path, source: str) -> ReferenceFile:
    with torch_files.damage_named(path, WHAT):
        names = set(names_in(path))
    if 'format' in names:
        return _read_ours(path, names)
    has_images = 'arr_0' in names
    if not names.isdisjoint({'mu', 'sigma'}):
        moments = _tapped(_statistics(path, names), str(path))
        if names.isdisjoint({'mu_s', 'sigma_s'}):
            return ReferenceFile(moments, {}, has_images, *_who(source, moments))
        moments['spatial'] = _statistics(path, names, 'spatial')
        return ReferenceFile(moments, {}, has_images, 'ADM')
    for key, origin in FEATURES.items():
        if key in names:
            return _of_features(_features(path, key), f'{path}: {key}', has_images, origin)
    others = shown(', '.join(sorted(names)) or 'nothing')
    remedy = 'it is a batch of images; make statistics of it' if has_images else 'make one'
    raise ValueError(f'{path} has neither mu and sigma nor features, only {others}: {remedy} with '
                     f'fid.py ref')


def _who(source: str, moments: Mapping[str, Statistics]) -> tuple[str, list[str]]:
    """Return, from the name of a file of mu and sigma alone, its origin, and what is doubtful."""
    if source.startswith(EDM_URL):
        return 'EDM', []
    mode = CLEAN_FID.search(Path(source).name)
    if mode is None:
        note = (f'{source} does not say how images were resized: distances to it are FIDs if EDM '
                f'or TTUR made it, or clean-fid in its mode legacy_tensorflow, but not if '
                f'pytorch-fid did, or clean-fid in another mode')
        return 'mu and sigma', [note] if 'pool_3' in moments else []
    note = (f"{source} is named like clean-fid's mode {mode[1]}, which resizes differently: "
            f'distances to it are not FIDs')
    return 'clean-fid', [] if mode[1] == 'legacy_tensorflow' else [note]


def _read_ours(path: Path, names: set[str]) -> ReferenceFile:
    version = _told(path, 'format', int)
    if version != FORMAT:
        raise ValueError(f'{path} has format {version}, but this version reads format {FORMAT}')
    moments = _tapped(_statistics(path, names), str(path))
    for tap in TAPS:
        if tap not in moments and _key(tap, 'mu') in names:
            moments[tap] = _statistics(path, names, tap)
    readers = {tap: partial(_features, path, f'features.{tap}') for tap in TAPS
               if f'features.{tap}' in names}
    return ReferenceFile(moments, LazyArrays(readers), 'arr_0' in names)


def _key(tap: str | None, name: str) -> str:
    """Return the name in an npz of a field of a tap's statistics; None stands for the main tap."""
    if tap == 'spatial' and name in ('mu', 'sigma'):
        return f'{name}_s'
    return {None: '', 'dinov2': 'fd_dinov2.'}.get(tap, f'{tap}.') + name


def _statistics(path: Path, names: set[str], tap: str | None = None) -> Statistics:
    """Read a tap's statistics, with all that a file of this project says of them."""
    mu, sigma = _key(tap, 'mu'), _key(tap, 'sigma')
    for name in (mu, sigma):
        if name not in names:
            raise ValueError(f'{path} has no {name}, only {shown(", ".join(sorted(names)))}: make '
                             f'one with fid.py ref')
    kinds = {'count': int, 'image_shape': list}
    told: dict[str, Any] = {}
    for name in (each.name for each in fields(Statistics)):
        if 'format' in names and name not in ('mu', 'sigma') and _key(tap, name) in names:
            told[name] = _told(path, _key(tap, name), kinds.get(name, str))
    return _checked(_array(path, mu), _array(path, sigma), f'{path}: ', (mu, sigma), **told)


def _told(path: Path, name: str, kind: type[T]) -> T:
    """Read a number, a text, or a list of numbers."""
    value = _array(path, name)
    told = value.tolist() if value.dtype.kind in 'iuU' else None
    if not isinstance(told, kind):
        raise ValueError(f'{path}: {name} is {value.dtype} {list(value.shape)}, not of type '
                         f'{kind.__name__}')
    return told


def _features(path: Path, name: str) -> np.ndarray:
    return _checked_features(_array(path, name), f'{path}: {name}')


def _array(path: Path, name: str) -> np.ndarray:
    """Read one array of the npz, without reading the others."""
    with torch_files.damage_named(path, WHAT):
        return read_npz(path, name)[name]


# Pickles

def _read_pickled(path: Path) -> ReferenceFile:
    value = torch_files.read_file(path, ALLOWED, WHAT)
    if isinstance(value, Tensor):
        return _of_features(_checked_features(value.float().numpy(), str(path)), str(path), False,
                            'torch-fidelity')
    parts = value if isinstance(value, dict) else {}
    if 'mu' in parts:
        return ReferenceFile(_tapped(_pickled_moments(parts, str(path), None), str(path)),
                             origin='torch-fidelity')
    moments, count = {}, parts.get('num_images')
    if not (count is None or (type(count) is int and count > 0)):
        raise ValueError(f'{path}: num_images is {shown(str(count))}, not a number of images')
    for key, tap in EDM2_KEYS.items():
        if isinstance(parts.get(key), dict):
            moments[tap] = _pickled_moments(parts[key], f'{path}: {key}', count)
    if not moments:
        raise ValueError(f'{path} has neither mu and sigma nor fid nor fd_dinov2, only '
                         f'{shown(", ".join(map(str, parts)) or "nothing")}: make one with fid.py '
                         f'ref')
    return ReferenceFile(moments, origin='EDM2')


def _pickled_moments(found: dict[Any, Any], where: str, count: int | None) -> Statistics:
    try:
        mu, sigma = _rebuilt(found.get('mu')), _rebuilt(found.get('sigma'))
    except ValueError as error:
        raise ValueError(f'{where}: {error}') from None
    return _checked(mu, sigma, f'{where}: ', count=count)


def _rebuilt(value: object) -> np.ndarray:
    """Return the array that something in a pickle stands for."""
    match value:
        case Tensor():
            return value.double().numpy()
        case np.ndarray():   # of protocol 5
            return value
        case Record(cls='numpy.ndarray', state=(_, shape, dtype, fortran_order, data)):
            return _from_buffer(data, dtype, shape, 'F' if fortran_order else 'C')
    raise ValueError('it is no array')


def _from_buffer(data: bytes, dtype: Record, shape: tuple[int, ...], order: str) -> np.ndarray:
    """Rebuild numpy's pickled array; the byte order is in the state of its dtype."""
    match dtype:
        case Record(cls='numpy.dtype', args=('f4' | 'f8' as kind, *_), state=(_, '<', *_)):
            pass
        case _:
            raise ValueError('one of its arrays is not of little-endian float32 or float64')
    if (not isinstance(shape, tuple) or len(shape) > 2
            or any(type(n) is not int or not 0 <= n < 2**31 for n in shape)):
        raise ValueError('one of its arrays has an impossible shape')
    if not isinstance(data, bytes) or len(data) != math.prod(shape) * int(kind[1]):
        raise ValueError(f'one of its arrays has not the bytes that its shape {list(shape)} needs')
    return np.frombuffer(data, dtype=f'<{kind}').reshape(shape, order='F' if order == 'F' else 'C')


def _only_named(*_: object) -> NoReturn:
    raise ForbiddenError('it calls the type of an array')


# What the arrays of any file must be.

def _checked(mu: np.ndarray, sigma: np.ndarray, where: str,
             names: tuple[str, str] = ('mu', 'sigma'),
             **told: Any) -> Statistics:  # noqa: ANN401 (the further fields of Statistics)
    if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)):
        raise ValueError(f'{where}{names[0]} has shape {list(mu.shape)} and {names[1]} '
                         f'{list(sigma.shape)}, not [d] and [d, d]')
    for name, array in zip(names, (mu, sigma), strict=True):
        if array.dtype.kind != 'f' or not np.isfinite(array).all():
            raise ValueError(f'{where}{name} holds something else than finite numbers')
    if (sigma.diagonal() < 0).any():
        raise ValueError(f'{where}{names[1]} is no covariance: it has negative variances')
    if told.get('count') is not None and told['count'] < 1:
        raise ValueError(f'{where}count is {told["count"]}, not a number of images')
    return Statistics(mu.astype(np.float64), sigma.astype(np.float64), **told)


def _checked_features(features: np.ndarray, where: str) -> np.ndarray:
    if features.ndim != 2 or features.dtype.kind != 'f' or not np.isfinite(features).all():
        raise ValueError(f'{where} is {features.dtype} {list(features.shape)}, not finite numbers '
                         f'[N, d]')
    return features.astype(np.float32, copy=False)


def _of_features(features: np.ndarray, where: str, has_images: bool, origin: str) -> ReferenceFile:
    """Add up the moments of features as fid.py does."""
    if len(features) < 2:
        raise ValueError(f'{where} has the features of {len(features)} images: 2 are the least')
    total = Moments.zero(features.shape[1])
    for chunk in chunks(len(features)):
        part = Moments.zero(features.shape[1])
        part.add(torch.tensor(features[chunk.start:chunk.stop]))
        total.merge(part)
    moments = _tapped(Statistics(total.mean(), total.cov(), total.count), where)
    notes = []
    if origin == 'dgm-eval':
        notes.append(f'{where} does not say which network and resize it is of; with DINOv2 '
                     f'dgm-eval rounds resized images to uint8, and distances are not those of '
                     f'EDM2')
    return ReferenceFile(moments, dict.fromkeys(moments, features), has_images, origin, notes)


def _tapped(statistics: Statistics, where: str) -> dict[str, Statistics]:
    """Return statistics under their tap, which they name or which their size tells."""
    said, dim = statistics.detector_id, len(statistics.mu)
    for name, tap in TAPS.items():
        told = said == tap.detector_id and (name in BUILT_IN or dim == tap.dim)
        if told or (said is None and dim == tap.dim and name in TOLD_BY_SIZE):
            return {name: statistics}
    own = re.fullmatch(f'{OWN}([A-Za-z][A-Za-z0-9_]*)', said or '')
    if own is not None and own[1] not in BUILT_IN:
        try:
            return {register(own[1], dim, f'MODULE:{own[1]}'): statistics}
        except ValueError as error:
            raise ValueError(f'{where}: {error}') from None
    known = ', '.join(f'{TAPS[name].dim} ({name})' for name in TOLD_BY_SIZE)
    found = (
        f'{dim} features, but known are {known}'
        if said is None
        else f'the unknown detector {shown(said)}'
    )
    raise ValueError(f'{where} has {found}')


# Writing

def write_reference(path: str | os.PathLike[str], moments: Mapping[str, Statistics],
                    features: Mapping[str, np.ndarray] | None = None) -> None:
    """Write moments and features by tap, all of it or nothing.

    In an npz, the fields of Statistics of the main tap (that of a detector of one's own,
    else the first in MAIN that is present) have their plain names: EDM's fid.py asks for mu and
    sigma. Those of spatial are mu_s and sigma_s, the names that ADM's evaluator uses; all others
    are called `fd_dinov2.mu`, `spatial.count`, and so on. Features are `features.pool_3`, float32
    [N, d]. Equal content gives equal bytes.

    A path that ends in .pkl gets EDM2's pickled dictionary, which holds only the moments of pool_3
    and dinov2.
    """
    if not moments:
        raise ValueError(f'{path}: there are no moments to write')
    if os.fspath(path).endswith('.pkl'):
        _write_pickle(path, moments)
        return
    unknown = [tap for tap in [*moments, *(features or {})] if tap not in TAPS]
    if unknown:
        raise ValueError(f'{path}: there is no tap {unknown[0]}, but {", ".join(TAPS)}')
    own = [tap for tap in moments if tap not in MAIN]   # no command takes more than one
    main = next(tap for tap in (*own, *MAIN) if tap in moments)
    arrays: dict[str, Any] = {}
    for tap, statistics in moments.items():
        arrays |= {_key(None if tap == main else tap, name): value
                   for name, value in vars(statistics).items() if value is not None}
    for tap, values in (features or {}).items():
        arrays[f'features.{tap}'] = _checked_features(
            np.asarray(values), f'{path}: features of {tap}'
        )
    with atomic_write(path) as file:
        np.savez(file, format=FORMAT, **arrays)


def _write_pickle(path: str | os.PathLike[str], moments: Mapping[str, Statistics]) -> None:
    parts = {key: moments[tap] for key, tap in EDM2_KEYS.items() if tap in moments}
    if not parts:
        raise ValueError(f"{path}: EDM2's pickles hold moments of "
                         f"{' and '.join(EDM2_KEYS.values())}, "
                         f'not of {", ".join(moments)}: write an .npz')
    counts = list(dict.fromkeys(part.count for part in parts.values()))
    if len(counts) > 1:
        raise ValueError(f"{path}: EDM2's pickles have one number of images, not "
                         f"{' and '.join(map(str, counts))}: "
                         'write an .npz')
    content = {'num_images': counts[0], **{key: {'mu': part.mu, 'sigma': part.sigma}
                                           for key, part in parts.items()}}
    with atomic_write(path) as file:
        pickle.dump(content, file, protocol=4)


EDM2_KEYS = {'fid': 'pool_3', 'fd_dinov2': 'dinov2'}
ALLOWED: dict[tuple[str, str], Callable[..., Any]] = {   # the names that pickled arrays refer to
    **torch_files.TENSORS,
    ('numpy', 'ndarray'): _only_named,
    **{(f'numpy.{core}.multiarray', '_reconstruct'): record('numpy.ndarray')
       for core in ('core', '_core')},
    **{(f'numpy.{core}.numeric', '_frombuffer'): _from_buffer for core in ('core', '_core')},
}
