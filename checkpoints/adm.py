"""The network of Dhariwal and Nichol 2021 for 64x64 images: a state dict under other names.

time_embed, label_emb, input_blocks, middle_block, output_blocks and out become the parts of
DhariwalUNet in an iDDPM denoiser with learned variance (2C outputs).
"""

import re
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor, nn

from checkpoints.assemble import Found, Source, choose, constant_tensors, without_memory
from limpid.levels import IDDPMLevels
from limpid.preconditioning import IDDPM
from training.networks import DhariwalUNet, NetworkConfig, UNetBlock, complete_arguments


def from_adm(theirs: dict[str, Tensor], path: Path, weights: str | None) -> Found:
    """Describe 64x64_diffusion.pt: iDDPM preconditioning with learned variance, cosine levels.

    The file says neither its resolution nor its noise levels. A network that attends at all levels
    but the first is taken to be the published one for 64x64 images, which attends at 32, 16 and 8
    and has the cosine levels and the newer order of attention; the other networks of that
    publication have linear noise levels.
    """
    config = _adm_config(Source(theirs, path))
    net = without_memory(config, len(theirs), path)
    source, tensors = Source(theirs, path), constant_tensors(config, net)
    for ours, name in _adm_names(net.model):
        for leaf in ('weight', 'bias'):
            tensors[f'model.{ours}.{leaf}'] = source.take(f'{name}.{leaf}')
    if config.label_dim:
        tensors['model.map_label.weight'] = source.take('label_emb.weight').T.contiguous()
    source.check_empty()
    for name, tensor in tensors.items():
        if '.qkv.' in name:
            tensor = _qkv_from_adm(tensor)
        if name.endswith(('.qkv.weight', '.proj.weight')):
            tensor = tensor[..., None]   # 1-D convolutions become 2-D
        tensors[name] = tensor
    note = ('taken for 64x64 images, cosine noise levels and the newer order of attention: the '
            'file says nothing of them')
    return Found(config, tensors, {
        'kind': 'ADM state dict', 'weights': choose(weights, ['ema'], path), 'nimg': None,
        'training': {}, 'notes': [note]})


def _adm_config(source: Source) -> NetworkConfig:
    theirs, path = source.tensors, source.path
    emb_channels, channels = source.shape('time_embed.0.weight', 2)
    levels, num_blocks = _adm_depth(source)
    first = [1 + level * (num_blocks + 1) for level in range(levels)]
    widths = [source.shape(f'input_blocks.{k}.0.out_layers.3.weight', 4)[0] for k in first]
    attends = [f'input_blocks.{k}.1.qkv.weight' in theirs for k in first]
    if attends != [False] + [True] * (levels - 1) or levels < 2:
        raise ValueError(f'{path}: of the networks of ADM only that for 64x64 images is known '
                         f'here, which attends at all levels but the first; of the {levels} levels '
                         f'of this one, {[level for level in range(levels) if attends[level]]} '
                         f'attend')
    if min(channels, *widths) < 128 or any(width % channels for width in widths):
        raise ValueError(f'{path}: {widths} channels are no multiples of {channels}, or too few '
                         f'for 32 groups of 4')
    img_channels = source.shape('input_blocks.0.0.weight', 4)[1]
    outputs = source.shape('out.2.weight', 4)[0]
    if outputs != 2 * img_channels:
        raise ValueError(f'{path}: out.2.weight has {outputs} outputs, not {2 * img_channels}: '
                         'only networks with learned variance are known here')
    label_dim = source.shape('label_emb.weight', 2)[0] if 'label_emb.weight' in theirs else 0
    precond = IDDPM(IDDPMLevels())
    arguments = complete_arguments('DhariwalUNet', {
        'model_channels': channels, 'channel_mult': [width // channels for width in widths],
        'channel_mult_emb': emb_channels // channels, 'num_blocks': num_blocks,
        'attn_resolutions': [64 >> level for level in range(1, levels)]})
    return NetworkConfig('DhariwalUNet', precond, *precond.sigma_range(), 64, img_channels,
                         label_dim, model=arguments)


def _adm_depth(source: Source) -> tuple[int, int]:
    """Return the number of levels, and of blocks in each level of the encoder."""
    blocks = [re.fullmatch(r'output_blocks\.\d+\.(\d)\.in_layers\.0\.weight', str(name))
              for name in source.tensors]
    entries = [match[1] for match in blocks if match]
    levels = 1 + len(entries) - entries.count('0')   # all but the last end with one that enlarges
    return levels, entries.count('0') // levels - 1


def _adm_names(model: nn.Module) -> Iterator[tuple[str, str]]:
    """Yield (our name, their name) for each module of a DhariwalUNet with a weight and a bias."""
    assert isinstance(model, DhariwalUNet)
    yield from [('map_layer0', 'time_embed.0'), ('map_layer1', 'time_embed.2')]
    yield from [('out_norm', 'out.0'), ('out_conv', 'out.2')]
    for k, (name, module) in enumerate(model.enc.items()):
        if isinstance(module, UNetBlock):
            yield from _adm_block(f'enc.{name}', module, f'input_blocks.{k}.0',
                                  f'input_blocks.{k}.1')
        else:
            yield f'enc.{name}', f'input_blocks.{k}.0'
    k, entries = -1, 0   # the newest of output_blocks, and the number of its entries
    for name, module in model.dec.items():
        assert isinstance(module, UNetBlock)
        if name.endswith(('_in0', '_in1')):
            place = 'middle_block.0' if name.endswith('_in0') else 'middle_block.2'
        elif name.endswith('_up'):
            place = f'output_blocks.{k}.{entries}'
        else:
            k, entries = k + 1, 2 if module.num_heads else 1
            place = f'output_blocks.{k}.0'
        attention = 'middle_block.1' if place == 'middle_block.0' else f'output_blocks.{k}.1'
        yield from _adm_block(f'dec.{name}', module, place, attention)


def _adm_block(ours: str, block: UNetBlock, theirs: str,
               attention: str) -> Iterator[tuple[str, str]]:
    yield from [(f'{ours}.norm0', f'{theirs}.in_layers.0'),
                (f'{ours}.conv0', f'{theirs}.in_layers.2'),
                (f'{ours}.affine', f'{theirs}.emb_layers.1'),
                (f'{ours}.norm1', f'{theirs}.out_layers.0'),
                (f'{ours}.conv1', f'{theirs}.out_layers.3')]
    if block.skip is not None and block.skip.weight is not None:
        yield f'{ours}.skip', f'{theirs}.skip_connection'
    if block.num_heads:
        yield from [(f'{ours}.norm2', f'{attention}.norm'), (f'{ours}.qkv', f'{attention}.qkv'),
                    (f'{ours}.proj', f'{attention}.proj_out')]


def _qkv_from_adm(rows: Tensor) -> Tensor:
    """Reorder rows from (q|k|v, head, channel) to (head, channel, q|k|v), 64 channels a head."""
    if rows.shape[0] % (3 * 64):
        return rows   # its shape will be refused later
    return rows.reshape(3, -1, 64, *rows.shape[1:]).movedim(0, 2).reshape(rows.shape)
