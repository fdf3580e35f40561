"""DDPM++ and NCSN++ as trained by Song et al. 2021: modules in a list, in the order of their
use."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from checkpoints.assemble import Found, Source, choose, constant_tensors, without_memory
from limpid.preconditioning import VE, VP, Preconditioner
from limpid.schedules import VPSchedule
from torch_utils.safe_pickle import shown
from training.networks import ARCHITECTURES, NetworkConfig, UNetBlock, complete_arguments


def from_song(contents: dict[str, Any], path: Path, weights: str | None) -> Found:
    """checkpoint_*.pth: DDPM++ cont. (VP), or NCSN++ cont. (VE).

    The file does not say which noise it was trained for: Fourier features with a residual encoder
    are taken for VE, positional embedding with a plain encoder for VP (β_d = 19.9, β_min = 0.1), as
    published; anything else is refused. Networks for VE take data in [0, 1] and bring them to [−1,
    1] in their first line, so that their weights need no change, only their noise levels doubling.
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
    step, is_vp = contents.get('step'), isinstance(config.precond, VP)
    return Found(config, tensors, {
        'kind': 'DDPM++ checkpoint' if is_vp else 'NCSN++ checkpoint', 'weights': chosen,
        'nimg': None, 'training': {'step': step} if type(step) is int else {},
        'notes': ['taken for VP with beta_d=19.9 and beta_min=0.1: one for sub-VP looks the same']
        if is_vp else []})


def _song_average(raw: dict[str, Any], ema: Any, path: Path) -> dict[str, Any]:  # noqa: ANN401
    """The tensors with the averages of all parameters that were trained, which come as a list in
    their order."""
    shadow = ema.get('shadow_params') if isinstance(ema, dict) else None
    names = [name for name in raw if name != 'all_modules.0.W']   # the frequencies are not trained
    if not isinstance(shadow, list) or len(shadow) != len(names):
        raise ValueError(f'{path}: ema.shadow_params is no list of {len(names)} tensors')
    for name, average in zip(names, shadow, strict=True):
        if not isinstance(average, Tensor) or not isinstance(raw[name],
                                                             Tensor) or average.shape != raw[
                                                                 name].shape:
            raise ValueError(f'{path}: ema.shadow_params does not fit the tensor {shown(name)}')
    return {**raw, **dict(zip(names, shadow, strict=True))}


def _song_modules(theirs: dict[str, Any], path: Path) -> list[Source]:
    """The entries of all_modules, each with its tensors."""
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
    names = module.tensors
    for kind, name in SONG_KINDS.items():
        if name in names:
            return kind
    return {1: 'norm', 2: 'linear', 4: 'conv'}.get(names['weight'].ndim,
                                                   '') if 'weight' in names else ''


def _song_config(modules: list[Source], sigmas: Any, path: Path) -> NetworkConfig:  # noqa: ANN401
    kinds = [_song_kind(module) for module in modules]
    fourier, residual = kinds[:1] == ['fourier'], 'pyramid' in kinds
    start = 4 if fourier else 3
    blocks = [(i, modules[i]) for i, kind in enumerate(kinds) if kind == 'block']
    plain = [(i, block) for i, block in blocks if not _is_resampling(block)]
    levels = (len(blocks) - len(plain)) // 2 + 1
    num_blocks = (len(plain) - 2 - levels) // (2 * levels)
    if kinds[start - 3:start] != ['linear', 'linear',
                                  'conv'] or kinds[-2:] != ['norm', 'conv'] or num_blocks < 1 \
            or fourier != residual:
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
    vp_range = VPSchedule().sigma(torch.tensor([1e-5, 1], dtype=torch.float64)).tolist()
    low, high = _song_range(sigmas, path) if fourier else vp_range
    return NetworkConfig(
        'SongUNet', precond, low, high, 16 << attends.pop(), img_channels,
        model=complete_arguments('SongUNet', {
            **ARCHITECTURES['ncsnpp' if fourier else 'ddpmpp'][1], 'model_channels': channels,
            'channel_mult': [width // channels for width in widths],
            'channel_mult_emb': emb_channels // channels, 'num_blocks': num_blocks,
            'attn_resolutions': [16]}))


def _is_resampling(block: Source) -> bool:
    """Whether a block has a projection without needing one for its numbers of channels."""
    return 'Conv_2.weight' in block.tensors and len(set(block.shape('Conv_2.weight', 4)[:2])) == 1


def _song_range(sigmas: Any, path: Path) -> tuple[float, float]:  # noqa: ANN401
    if not isinstance(sigmas, Tensor) or sigmas.ndim != 1 or len(sigmas) < 2:
        raise ValueError(f'{path}: the tensor sigmas is missing')
    # theirs are of data in [0, 1]
    low, high = sorted([2 * sigmas[0].item(), 2 * sigmas[-1].item()])
    return float(f'{low:.6g}'), float(f'{high:.6g}')                    # 0.02, not 0.0199999996


def _song_tensors(model: Any,
                  modules: list[Source]) -> Iterator[tuple[str,
                                                           Tensor]]:  # noqa: ANN401 (a SongUNet)
    """(our name, tensor), taken from their modules in the order of ours."""
    rest = iter(modules)

    def take(kind: str) -> Source:
        module = next(rest, None)
        if module is None or _song_kind(module) != kind:
            found = 'its end' if module is None else _song_kind(module) or 'something unknown'
            raise ValueError(f'{modules[0].path}: {found} stands where DDPM++ and NCSN++ have a '
                             f'{kind}')
        return module

    if _song_kind(modules[0]) == 'fourier':
        yield 'map_noise.freqs', take('fourier').take('W')
    for layer in ('map_layer0', 'map_layer1'):
        yield from _both(layer, take('linear'))
    for half in ('enc', 'dec'):
        for key, module in getattr(model, half).items():
            name = f'{half}.{key}'
            if not isinstance(module, UNetBlock):
                kind = 'pyramid' if key.endswith('_aux_residual') else 'norm' if key.endswith(
                    '_aux_norm') else 'conv'
                yield from _both(name, take(kind), 'Conv2d_0.' if kind == 'pyramid' else '')
                continue
            block = take('block')
            for ours, theirs in SONG_BLOCK.items():
                if ours != 'skip' or module.skip is not None:
                    yield from _both(f'{name}.{ours}', block, f'{theirs}.')
            if module.num_heads:
                yield from _song_attention(name, take('attention'))
    for module in modules:
        module.check_empty()
    if next(rest, None) is not None:
        raise ValueError(f'{modules[0].path}: it has more modules than DDPM++ and NCSN++')


def _both(ours: str, module: Source, theirs: str = '') -> Iterator[tuple[str, Tensor]]:
    for leaf in ('weight', 'bias'):
        yield f'{ours}.{leaf}', module.take(f'{theirs}{leaf}')


def _song_attention(name: str, module: Source) -> Iterator[tuple[str, Tensor]]:
    """q, k, v and the output as matrices [in, out] -> convolutions [out, in, 1, 1], rows ordered
    channel, (q, k, v)."""
    yield from _both(f'{name}.norm2', module, 'GroupNorm_0.')
    W = [module.take(f'NIN_{i}.W') for i in range(4)]
    b = [module.take(f'NIN_{i}.b') for i in range(4)]
    if W[0].ndim != 2 or len({tensor.shape for tensor in W}) != 1 or len({tensor.shape
                                                                          for tensor in b}) != 1:
        raise ValueError(f'{module.path}: NIN_0 to NIN_3 of an attention differ in shape')
    yield f'{name}.qkv.weight', torch.stack([matrix.T for matrix in W[:3]],
                                            dim=1).flatten(0, 1)[:, :, None, None]
    yield f'{name}.qkv.bias', torch.stack(b[:3], dim=1).flatten()
    yield f'{name}.proj.weight', W[3].T[:, :, None, None]
    yield f'{name}.proj.bias', b[3]


SONG_KINDS = {'fourier': 'W', 'attention': 'NIN_0.W', 'block': 'GroupNorm_1.weight',
              'pyramid': 'Conv2d_0.weight'}
SONG_BLOCK = {'norm0': 'GroupNorm_0', 'conv0': 'Conv_0', 'affine': 'Dense_0',
              'norm1': 'GroupNorm_1', 'conv1': 'Conv_1', 'skip': 'Conv_2'}
