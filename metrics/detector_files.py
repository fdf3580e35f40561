"""Files of detectors' weights: identifying, converting, downloading and finding them.

    identify('inception-2015-12-05.pt')   # kind, format, checksums, whether the file is published
    convert('inception-2015-12-05.pkl', 'inception.safetensors')

The same weights in two formats have different checksums but the same digest, which files of
statistics store. Nothing in any of these files is executed.
"""

import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from dnnlib.download import DETECTOR, fetch
from dnnlib.files import atomic_write, expanded, sha256_of_file
from metrics import dinov2, lite0
from metrics import weights as inception
from torch_utils import torch_files
from torch_utils.safetensors_file import is_safetensors, save_tensors

# the first of each is the one to have
PUBLISHED = {'inception': inception.PUBLISHED, 'dinov2': (dinov2.PUBLISHED,),
             'efficientnet-lite0': (lite0.PUBLISHED,)}
FETCHED = ('inception', 'dinov2')   # what can be downloaded; the others come in a package
SAFETENSORS = 'safetensors'


@dataclass(frozen=True)
class DetectorFile:
    """A description of a file of weights.

    `published` is the name of the published file that has this checksum, if there is one.
    """
    path: Path
    kind: str     # a key of PUBLISHED
    format: str   # a key of metrics.weights.FORMATS, or safetensors
    sha256: str   # the checksum of the file
    size: int     # bytes
    digest: str   # the digest of the weights: the same in every format
    published: str | None
    notes: list[str] = field(default_factory=list)


class Place(NamedTuple):
    """A place where a detector's weights are looked for.

    `usable` says that there is a file, and that its checksum, if one is known, is right.
    """
    path: Path
    exists: bool
    usable: bool

    @property
    def condition(self) -> str:
        """The word found or damaged, or - if there is no file."""
        if self.usable:
            return 'found'
        return 'damaged' if self.exists else '-'


def identify(path: str | os.PathLike[str]) -> DetectorFile:
    """Read a file of weights in any published format or written by `convert`, and describe it.

    Raises FileNotFoundError, or ValueError in one line that names the file and what is wrong with
    it.
    """
    return _identified(Path(path), *_load(Path(path)))


def described(file: DetectorFile) -> str:
    """Return the description of a file as lines of text."""
    facts = {'weights of': file.kind, 'format': file.format, 'size': f'{file.size} bytes',
             'sha256': file.sha256, 'digest': file.digest,
             'published': file.published or 'not a file whose checksum is known'}
    lines = [f'  {name + ":":12} {value}' for name, value in facts.items()]
    return '\n'.join([*lines, *(f'  Note: {note}' for note in file.notes)])


def convert(path: str | os.PathLike[str], dest: str | os.PathLike[str]) -> DetectorFile:
    """Write the weights of `path` to `dest` under canonical names, and check the result.

    A name that ends in .pth gets a dictionary written by torch.save, and one that ends in
    .safetensors gets that format. The file is read again and its digest compared. Raises errors
    as `identify` does, and ValueError for other names and if the digests differ.
    """
    path, dest = Path(path), Path(dest)
    if dest.suffix not in WRITERS:
        raise ValueError(f'{dest} should end in {" or ".join(WRITERS)}')
    kind, _, weights = _load(path)
    digest = inception.digest(weights)
    WRITERS[dest.suffix](weights, kind, dest)
    written = identify(dest)
    if (written.kind, written.digest) != (kind, digest):
        raise ValueError(f'{dest} has the digest {written.digest} after writing, not {digest} as '
                         f'{path}: do not use it, and check the disk')
    return written


def fetch_published(kind: str) -> Path:
    """Download a detector's weights, unless they are there already, and check their sha256.

    They are put where the detectors look for them. Returns the path.
    """
    if kind not in FETCHED:
        raise ValueError(f'there are no published weights of {kind}, but of '
                         f'{" and ".join(FETCHED)}')
    file = PUBLISHED[kind][0]
    return fetch(file.url, file.sha256, most=DETECTOR)


def search_report() -> list[Place]:
    """Return all places where weights are looked for, in order, those of Inception first.

    A file that an environment variable names comes before the others of its detector, and is then
    the only one that is used.
    """
    places = []
    for variable, downloads in (('LIMPID_DETECTOR', inception.downloads),
                                ('LIMPID_DINOV2', dinov2.downloads)):
        named = os.environ.get(variable)
        for path, sha256 in [*([(Path(expanded(named)), None)] if named else []), *downloads()]:
            exists = path.is_file()
            places.append(Place(path, exists, exists
                                and (sha256 is None or sha256_of_file(path) == sha256)))
    return [*places, Place(*lite0.installed())]


def _identified(path: Path, kind: str, form: str, weights: Mapping[str, Tensor]) -> DetectorFile:
    sha256 = sha256_of_file(path)
    published = next((Path(file.url).name for file in PUBLISHED[kind] if file.sha256 == sha256),
                     None)
    notes = []
    if published is None and form != SAFETENSORS:
        notes.append('its sha256 is not that of a published file')
    scaled = sum(not bool((tensor == 1).all()) for name, tensor in weights.items()
                 if name.endswith('bn.weight'))
    if scaled:
        notes.append(f'{scaled} of its layers have a gamma other than 1: files that leave gamma '
                     f'out hold other weights')
    return DetectorFile(path, kind, form, sha256, path.stat().st_size, inception.digest(weights),
                        published, notes)


def _load(path: Path) -> tuple[str, str, dict[str, Tensor]]:
    """Return the kind, the format, and the weights under canonical names."""
    if is_safetensors(path):
        tensors = inception.read_safetensors(path)
        kind = _kind(tensors)
        try:
            return kind, SAFETENSORS, CHECKS[kind](tensors)
        except ValueError as error:
            raise ValueError(f'{path} does not have the weights of {kind}: {error}') from None
    kind = _kind(_names(path))
    if kind in LOADERS:
        return kind, 'state dict', LOADERS[kind](path)
    return 'inception', inception.sniff(path), inception.load_weights(path)


def _kind(names: Collection[object]) -> str:
    """Return, from the names of tensors, whose weights they are: a key of PUBLISHED."""
    return next((kind for name, kind in TOLD_BY.items() if name in names), 'inception')


def _names(path: Path) -> Collection[object]:
    """Return the names in a dictionary of torch.save, none for others. Numbers are not read."""
    if not path.is_file():
        return ()   # metrics.weights says so
    if path.stat().st_size <= inception.MAX_FILE and inception.sniff(path) != 'state dict':
        return ()
    found = torch_files.read_file(path, torch_files.TENSORS, 'file of weights', data=False)
    return found if isinstance(found, dict) else ()


def _write_state_dict(weights: Mapping[str, Tensor], kind: str, dest: Path) -> None:
    with atomic_write(dest) as file:
        torch.save(dict(weights), file)


def _write_safetensors(weights: Mapping[str, Tensor], kind: str, dest: Path) -> None:
    save_tensors(weights, {'detector': kind, 'digest': inception.digest(weights)}, dest)


WRITERS: dict[str, Callable[[Mapping[str, Tensor], str, Path], None]] = {
    '.pth': _write_state_dict, '.safetensors': _write_safetensors,
}
CHECKS: dict[str, Callable[[Mapping[str, Tensor]], dict[str, Tensor]]] = {
    'inception': inception.to_canonical,
    'dinov2': dinov2.to_canonical,
    'efficientnet-lite0': lite0.to_canonical,
}
LOADERS = {'dinov2': dinov2.load_weights, 'efficientnet-lite0': lite0.load_weights}
TOLD_BY = {'cls_token': 'dinov2', '_conv_stem.weight': 'efficientnet-lite0'}
