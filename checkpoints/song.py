"""DDPM++ and NCSN++ as trained by Song et al. 2021, stored as a list of modules in order of use."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from checkpoints.assemble import Found, Source, choose, constant_tensors, without_memory
from dnnlib.console import shown
from limpid.preconditioning import VE, VP, Preconditioner
from training.networks import ARCHITECTURES, NetworkConfig, SongUNet, UNetBlock, complete_arguments


def from_song(contents: dict[str, Any], path: Path, weights: str | None) -> Found:
    """Describe checkpoint_*.pth: DDPM++ cont. (VP), or NCSN++ cont. (VE).

    The file does not say for which noise it was trained. Fourier features with a residual encoder
    are taken to mean VE, and positional embedding with a plain encoder VP (β_d = 19.9,
    β_min = 0.1), as published; anything else is refused. Networks for VE take data in [0, 1] and
    convert them to [−1, 1] in their first line, so that only their noise levels change: they
    double.
    """
    raw = {str(name).removeprefix('module.'): tensor for name, tensor in contents['model'].items()}
    sigmas = raw.pop('sigmas', None)
    chosen = choose(weights, ['ema', 'raw'], path)
    theirs = _song_average(raw, contents.get('ema'), path) if chosen == 'ema' else raw
    modules = _song_modules(theirs, path)
    config = _song_config(modules, sigmas, path)
    net = without_memory(config, len(theirs), path)
    tensors = constant_tensors(config, net)
    tensors.update((f'model.{name}', tensor) for name, tensor in _song_tensors(net.model, modules))
    step = contents.get('step')
    info: dict[str, Any] = {'kind': 'NCSN++ checkpoint', 'weights': chosen, 'nimg': None,
                            'training': {'step': step} if type(step) is int else {}, 'notes': []}
    if isinstance(config.precond, VP):
        note = 'taken for VP with beta_d=19.9 and beta_min=0.1: one for sub-VP looks the same'
        info |= {'kind': 'DDPM++ checkpoint', 'notes': [note]}
    return Found(config, tensors, info)


def _song_average(raw: dict[str, Any], ema: object, path: Path) -> dict[str, Any]:
    """Return the tensors with the averages of all trained parameters.

    The averages come as a list, in the order of the parameters.
    """
    shadow = ema.get('shadow_params') if isinstance(ema, dict) else None
    names = [name for name in raw if name != 'all_modules.0.W']   # the frequencies are not trained
    if not isinstance(shadow, list) or len(shadow) != len(names):
        raise ValueError(f'{path}: ema.shadow_params is no list of {len(names)} tensors')
    for name, average in zip(names, shadow, strict=True):
        own = raw[name]
        both = isinstance(average, Tensor) and isinstance(own, Tensor)
        if not both or average.shape != own.shape:
            raise ValueError(f'{path}: ema.shadow_params does not fit the tensor {shown(name)}')
    return {**raw, **dict(zip(names, shadow, strict=True))}


def _song_modules(theirs: dict[str, Any], path: Path) -> list[Source]:
    """Return the entries of all_modules, each with its tensors."""
    grouped: dict[int, dict[str, Any]] = {}
    for name, tensor in theirs.items():
        match = re.fullmatch(r'all_modules\.(\d{1,4})\.(.+)', name)
        if match is None or not isinstance(tensor, Tensor):
            raise ValueError(f'{path}: {shown(name)} is unknown to DDPM++ and NCSN++')
        grouped.setdefault(int(match[1]), {})[match[2]] = tensor
    # SiLU and the like have no tensors, but in these networks every entry has some.
    if sorted(grouped) != list(range(len(grouped))):
        raise ValueError(f'{path}: its all_modules are not numbered without gaps')
    return [Source(grouped[i], path) for i in range(len(grouped))]


def _song_kind(module: Source) -> str:
    """Return the kind of a module, by the names of its tensors; '' for an unknown one."""
    names = module.tensors
    for kind, name in SONG_KINDS.items():
        if name in names:
            return kind
    if 'weight' not in names:
        return ''
    return {1: 'norm', 2: 'linear', 4: 'conv'}.get(names['weight'].ndim, '')


def _song_config(modules: list[Source], sigmas: object, path: Path) -> NetworkConfig:
    """Return the configuration that follows from the order and the shapes of the modules."""
    kinds = [_song_kind(module) for module in modules]
    fourier, residual = kinds[:1] == ['fourier'], 'pyramid' in kinds
    start = 4 if fourier else 3
    blocks = [(i, modules[i]) for i, kind in enumerate(kinds) if kind == 'block']
    plain = [(i, block) for i, block in blocks if not _is_resampling(block)]
    levels = (len(blocks) - len(plain)) // 2 + 1
    num_blocks = (len(plain) - 2 - levels) // (2 * levels)
    begins = kinds[start - 3:start] == ['linear', 'linear', 'conv']
    ends = kinds[-2:] == ['norm', 'conv']
    if not begins or not ends or num_blocks < 1 or fourier != residual:
        raise ValueError(f'{path}: only DDPM++ cont. (VP) and NCSN++ cont. (VE) are known here, '
                         f'and this is neither')
    channels, img_channels = modules[start - 1].shape('weight', 4)[:2]
    emb_channels = modules[start - 2].shape('weight', 2)[0]
    widths = [plain[level * num_blocks][1].shape('Conv_0.weight', 4)[0] for level in range(levels)]
    attends = {n // num_blocks for n, (i, _) in enumerate(plain[:levels * num_blocks])
               if kinds[i + 1] == 'attention'}
    if len(attends) != 1:
        raise ValueError(f'{path}: it attends at {len(attends)} resolutions; one, of 16x16 pixels, '
                         f'is known here')
    precond: Preconditioner = VE() if fourier else VP()
    low, high = _song_range(sigmas, path) if fourier else VP().sigma_range()
    arguments = complete_arguments('SongUNet', {
        **ARCHITECTURES['ncsnpp' if fourier else 'ddpmpp'][1], 'model_channels': channels,
        'channel_mult': [width // channels for width in widths],
        'channel_mult_emb': emb_channels // channels, 'num_blocks': num_blocks,
        'attn_resolutions': [16]})
    return NetworkConfig('SongUNet', precond, low, high, 16 << attends.pop(), img_channels,
                         model=arguments)


def _is_resampling(block: Source) -> bool:
    """Return whether a block has a projection that its numbers of channels do not need."""
    return 'Conv_2.weight' in block.tensors and len(set(block.shape('Conv_2.weight', 4)[:2])) == 1


def _song_range(sigmas: object, path: Path) -> tuple[float, float]:
    """Return the lowest and the highest noise level, for data in [−1, 1]."""
    if not isinstance(sigmas, Tensor) or sigmas.ndim != 1 or len(sigmas) < 2:
        raise ValueError(f'{path}: the tensor sigmas is missing')
    low, high = sorted([2 * sigmas[0].item(), 2 * sigmas[-1].item()])   # theirs: data in [0, 1]
    return float(f'{low:.6g}'), float(f'{high:.6g}')                    # 0.02, not 0.0199999996


class _Modules:
    """The modules of the file, taken one by one in the order of SongUNet."""

    def __init__(self, modules: list[Source]) -> None:
        self.path, self.rest = modules[0].path, list(modules)

    def take(self, kind: str) -> Source:
        """Return the next module, which must be of this kind."""
        found = _song_kind(self.rest[0]) or 'something unknown' if self.rest else 'its end'
        if found != kind:
            raise ValueError(f'{self.path}: {found} stands where DDPM++ and NCSN++ have a {kind}')
        return self.rest.pop(0)


def _song_tensors(model: nn.Module, modules: list[Source]) -> Iterator[tuple[str, Tensor]]:
    """Yield (our name, tensor) for a SongUNet, taken from their modules in the order of ours."""
    assert isinstance(model, SongUNet)
    theirs = _Modules(modules)
    if _song_kind(modules[0]) == 'fourier':
        yield 'map_noise.freqs', theirs.take('fourier').take('W')
    for layer in ('map_layer0', 'map_layer1'):
        yield from _both(layer, theirs.take('linear'))
    for half, layers in (('enc', model.enc), ('dec', model.dec)):
        for key, module in layers.items():
            if isinstance(module, UNetBlock):
                yield from _song_block(f'{half}.{key}', module, theirs)
            elif key.endswith('_aux_residual'):
                yield from _both(f'{half}.{key}', theirs.take('pyramid'), 'Conv2d_0.')
            else:
                kind = 'norm' if key.endswith('_aux_norm') else 'conv'
                yield from _both(f'{half}.{key}', theirs.take(kind))
    for source in modules:
        source.check_empty()
    if theirs.rest:
        raise ValueError(f'{theirs.path}: it has more modules than DDPM++ and NCSN++')


def _song_block(name: str, block: UNetBlock, theirs: _Modules) -> Iterator[tuple[str, Tensor]]:
    source = theirs.take('block')
    for ours, part in SONG_BLOCK.items():
        if ours != 'skip' or block.skip is not None:
            yield from _both(f'{name}.{ours}', source, f'{part}.')
    if block.num_heads:
        yield from _song_attention(name, theirs.take('attention'))


def _both(ours: str, module: Source, theirs: str = '') -> Iterator[tuple[str, Tensor]]:
    for leaf in ('weight', 'bias'):
        yield f'{ours}.{leaf}', module.take(f'{theirs}{leaf}')


def _song_attention(name: str, module: Source) -> Iterator[tuple[str, Tensor]]:
    """Turn the matrices [in, out] of q, k, v and the output into convolutions [out, in, 1, 1].

    The rows of the first are ordered channel, (q, k, v).
    """
    yield from _both(f'{name}.norm2', module, 'GroupNorm_0.')
    W = [module.take(f'NIN_{i}.W') for i in range(4)]
    b = [module.take(f'NIN_{i}.b') for i in range(4)]
    shapes = {tensor.shape for tensor in W}, {tensor.shape for tensor in b}
    if W[0].ndim != 2 or any(len(different) != 1 for different in shapes):
        raise ValueError(f'{module.path}: NIN_0 to NIN_3 of an attention differ in shape')
    qkv = torch.stack([matrix.T for matrix in W[:3]], dim=1).flatten(0, 1)
    yield f'{name}.qkv.weight', qkv[:, :, None, None]
    yield f'{name}.qkv.bias', torch.stack(b[:3], dim=1).flatten()
    yield f'{name}.proj.weight', W[3].T[:, :, None, None]
    yield f'{name}.proj.bias', b[3]


SONG_KINDS = {'fourier': 'W', 'attention': 'NIN_0.W', 'block': 'GroupNorm_1.weight',
              'pyramid': 'Conv2d_0.weight'}
SONG_BLOCK = {'norm0': 'GroupNorm_0', 'conv0': 'Conv_0', 'affine': 'Dense_0',
              'norm1': 'GroupNorm_1', 'conv1': 'Conv_1', 'skip': 'Conv_2'}
