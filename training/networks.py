"""Networks: the layers, the backbones DDPM++, NCSN++ and ADM, and the denoiser around them.

The names of classes, constructor arguments and state-dict entries are those that published
checkpoints use. Images are NCHW by shape. Parameters are float32 and contiguous for good: every
layer casts its own to the precision and the memory layout of what it is given.
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from dnnlib.config import did_you_mean
from limpid.denoiser import Denoiser
from limpid.levels import IDDPMLevels
from limpid.preconditioning import EDM, IDDPM, VE, VP, Preconditioner
from limpid.resolution import Resolution, height_and_width, named, resolution_of
from limpid.schedules import VPSchedule


def initial(shape: Sequence[int], mode: str, fan_in: int, fan_out: int) -> Tensor:
    """Return random values of variance 2/(fan_in + fan_out), for xavier modes, or 1/fan_in.

    They are uniform or normal, as the mode says.
    """
    if mode not in INIT_MODES:
        raise ValueError(f'init_mode={mode!r} is unknown{did_you_mean(mode, INIT_MODES)}')
    family, distribution = mode.split('_')
    std = math.sqrt(2 / (fan_in + fan_out)) if family == 'xavier' else math.sqrt(1 / fan_in)
    if distribution == 'normal':
        return std * torch.randn(*shape)
    return math.sqrt(3) * std * (torch.rand(*shape) * 2 - 1)


class Linear(nn.Module):
    """y = x Wᵀ + b for x [..., in_features]."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True,
                 init_mode: str = 'kaiming_normal', init_weight: float = 1,
                 init_bias: float = 0) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        fans = in_features, out_features
        self.weight = nn.Parameter(initial([out_features, in_features], init_mode,
                                           *fans) * init_weight)
        self.bias = nn.Parameter(initial([out_features], init_mode,
                                         *fans) * init_bias) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight.to(x.dtype), _cast(self.bias, x.dtype))


class Conv2d(nn.Module):
    """A convolution that can double (up) or halve (down) the resolution.

    The filter of the resampling is f ⊗ f/(Σf)², f = resample_filter; kernel=0 only resamples.
    The filter [1, 1] repeats each pixel, or averages four of them. fused_resample lets the
    convolution take over the padding of the resampling.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int, bias: bool = True,
                 up: bool = False, down: bool = False, resample_filter: Sequence[float] = (1, 1),
                 fused_resample: bool = False, init_mode: str = 'kaiming_normal',
                 init_weight: float = 1, init_bias: float = 0) -> None:
        super().__init__()
        if up and down:
            raise ValueError('a Conv2d takes up or down, not both')
        self.in_channels, self.out_channels = in_channels, out_channels
        self.up, self.down, self.fused_resample = up, down, fused_resample
        fans = in_channels * kernel**2, out_channels * kernel**2
        shape = [out_channels, in_channels, kernel, kernel]
        self.weight = nn.Parameter(initial(shape, init_mode,
                                           *fans) * init_weight) if kernel else None
        self.bias = nn.Parameter(initial([out_channels], init_mode,
                                         *fans) * init_bias) if kernel and bias else None
        f = torch.as_tensor(resample_filter, dtype=torch.float32)
        self.resample_filter: Tensor   # [1, 1, taps, taps]; None where nothing is resampled
        self.register_buffer('resample_filter', (f.outer(f) / f.sum() ** 2)[None, None] if up
                             or down else None)
        self.padding = kernel // 2
        self.resample_padding = (len(resample_filter) - 1) // 2
        self.box = len(resample_filter) == 2 and resample_filter[0] == resample_filter[1]

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = _like(self.weight, x), _cast(self.bias, x.dtype)
        p, q = self.padding, self.resample_padding
        if weight is None:
            return self._upsample(x, q) if self.up else self._downsample(x, q) if self.down else x
        if self.fused_resample and self.up:
            return functional.conv2d(self._upsample(x, max(q - p, 0)), weight, bias,
                                     padding=max(p - q, 0))
        if self.fused_resample and self.down:
            return self._downsample(functional.conv2d(x, weight, padding=p + q), 0, bias)
        if self.up:
            x = self._upsample(x, q)
        if self.down:
            x = self._downsample(x, q)
        return functional.conv2d(x, weight, bias, padding=p)

    def _upsample(self, x: Tensor, padding: int) -> Tensor:
        if self.box:
            return functional.interpolate(x, scale_factor=2.0, mode='nearest')
        return functional.conv_transpose2d(x, self._taps(x, gain=4), groups=x.shape[1], stride=2,
                                           padding=padding)

    def _downsample(self, x: Tensor, padding: int, bias: Tensor | None = None) -> Tensor:
        if self.box:
            x = functional.avg_pool2d(x, 2)
            return x if bias is None else x + bias.reshape(-1, 1, 1)
        return functional.conv2d(x, self._taps(x), bias, groups=x.shape[1], stride=2,
                                 padding=padding)

    def _taps(self, x: Tensor, gain: float = 1) -> Tensor:
        """Return the filter for each channel of x, without copies of it."""
        assert isinstance(self.resample_filter, Tensor)
        return (gain * self.resample_filter).to(x.dtype).expand(x.shape[1], -1, -1, -1)


class GroupNorm(nn.Module):
    """Group normalisation with min(num_groups, num_channels // min_channels_per_group) groups."""

    def __init__(self, num_channels: int, num_groups: int = 32, min_channels_per_group: int = 4,
                 eps: float = 1e-5) -> None:
        super().__init__()
        self.num_groups = min(num_groups, num_channels // min_channels_per_group)
        if self.num_groups < 1 or num_channels % self.num_groups:
            raise ValueError(f'{num_channels} channels cannot be normalised in '
                             f'{max(self.num_groups, 1)} groups of at least '
                             f'{min_channels_per_group}; channel counts that are multiples of '
                             f'{num_groups} always can')
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(num_channels))
        self.bias = nn.Parameter(torch.zeros(num_channels))

    def forward(self, x: Tensor) -> Tensor:
        if is_channels_last(x):
            if x.device.type == 'cpu':   # where float32 is four times as fast as bfloat16
                return functional.group_norm(x.to(torch.float32), self.num_groups, self.weight,
                                             self.bias, self.eps).to(x.dtype)
            return group_norm_channels_last(x, self.num_groups, self.weight, self.bias, self.eps)
        return functional.group_norm(x, self.num_groups, self.weight.to(x.dtype),
                                     self.bias.to(x.dtype), self.eps)


def is_channels_last(x: Tensor) -> bool:
    """Return whether the channels of a pixel lie side by side in memory, and pixels do not."""
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def group_norm_channels_last(x: Tensor, num_groups: int, weight: Tensor, bias: Tensor,
                             eps: float) -> Tensor:
    """Normalise the groups of x [B, C, H, W], which stays channels-last; in float32 within.

    torch's own group_norm on CUDA turns its input to NCHW first. Here all sums, those of the
    gradient too, are first taken over the pixels of each channel, side by side in memory, and the
    rest is y = scale x + shift: a compiler makes a few kernels of it. The variance is the mean of
    squares less the square of the mean, so that its relative error grows with mean²/variance:
    1e-7 times that, far below the rounding of half precision.
    """
    wide = x.to(torch.float32)

    def group_mean(values: Tensor) -> Tensor:
        """Average [B, C, H, W] over each group, and give it to each channel: [B, C]."""
        means = values.mean(dim=(2, 3)).unflatten(1, (num_groups, -1)).mean(dim=2, keepdim=True)
        return means.expand(-1, -1, x.shape[1] // num_groups).flatten(1)

    mean = group_mean(wide)
    var = (group_mean(wide.square()) - mean.square()).clamp(min=0)
    scale = (var + eps).rsqrt() * weight
    shift = bias - mean * scale
    return torch.addcmul(shift[:, :, None, None], wide, scale[:, :, None, None]).to(x.dtype)


class PositionalEmbedding(nn.Module):
    """[cos(x f), sin(x f)],  f_i = max_positions^(−i/(h − endpoint)),  i = 0 … h−1

    h = num_channels/2
    """

    def __init__(self, num_channels: int, max_positions: int = 10000,
                 endpoint: bool = False) -> None:
        super().__init__()
        self.h, self.max_positions, self.endpoint = _half(num_channels), max_positions, endpoint

    def forward(self, x: Tensor) -> Tensor:
        h = self.h
        exponents = torch.arange(h, dtype=torch.float32,
                                 device=x.device) / (h - (1 if self.endpoint else 0))
        phases = x.outer((1 / self.max_positions) ** exponents)
        return torch.cat([phases.cos(), phases.sin()], dim=1)


class FourierEmbedding(nn.Module):
    """[cos(2π f x), sin(2π f x)],  f ~ N(0, scale²) drawn once"""

    def __init__(self, num_channels: int, scale: float = 16) -> None:
        super().__init__()
        self.freqs: Tensor
        self.register_buffer('freqs', torch.randn(_half(num_channels)) * scale)

    def forward(self, x: Tensor) -> Tensor:
        phases = x.outer(2 * math.pi * self.freqs)
        return torch.cat([phases.cos(), phases.sin()], dim=1)


def attention(qkv: Tensor, num_heads: int) -> Tensor:
    """Σ_j softmax_j(q_i · k_j / √c) v_j over pixels, per head; the softmax is taken in float32.

    qkv [B, heads · c · 3, H, W], ordered head, channel, (q, k, v) -> [B, heads · c, H, W].
    """
    B, _, H, W = qkv.shape
    dtype = qkv.dtype
    if torch.is_grad_enabled() and qkv.device.type == 'cpu':
        qkv = qkv.to(torch.float32)   # the gradient of bfloat16 takes four times as long there
    # [B, heads, HW, c]
    q, k, v = qkv.reshape(B, num_heads, -1, 3, H * W).permute(3, 0, 1, 4, 2).contiguous()
    a = functional.scaled_dot_product_attention(q, k, v).to(dtype)
    return a.transpose(2, 3).reshape(B, -1, H, W)


class UNetBlock(nn.Module):
    """The residual block of all backbones: two convolutions, steered by `emb`, and attention.

    x [B, in_channels, H, W], emb [B or 1, emb_channels] -> [B, out_channels, H′, W′], where H′ is
    2H with up and H/2 with down. The channels of `skip`, if given, are joined to x, in_channels
    together. With fewer channels than channels_per_head there is no attention.
    """
    checkpointing = False   # compute features anew in the backward pass instead of keeping them

    def __init__(self, in_channels: int, out_channels: int, emb_channels: int, up: bool = False,
                 down: bool = False, attention: bool = False, num_heads: int | None = None,
                 channels_per_head: int = 64, dropout: float = 0, skip_scale: float = 1,
                 eps: float = 1e-5, resample_filter: Sequence[float] = (1, 1),
                 resample_proj: bool = False, adaptive_scale: bool = True,
                 init: Mapping[str, Any] = MappingProxyType({}),
                 init_zero: Mapping[str, Any] = MappingProxyType({'init_weight': 0}),
                 init_attn: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.emb_channels = (in_channels, out_channels,
                                                                  emb_channels)
        self.dropout, self.skip_scale, self.adaptive_scale = dropout, skip_scale, adaptive_scale
        heads = out_channels // channels_per_head if num_heads is None else num_heads
        self.num_heads = heads if attention else 0
        if self.num_heads and out_channels % self.num_heads:
            raise ValueError(f'{out_channels} channels cannot be shared among {self.num_heads} '
                             f'attention heads; use a multiple of {self.num_heads}')
        resampling: dict[str, Any] = {'up': up, 'down': down, 'resample_filter': resample_filter}

        self.norm0 = GroupNorm(in_channels, eps=eps)
        self.conv0 = Conv2d(in_channels, out_channels, kernel=3, **resampling, **init)
        self.affine = Linear(emb_channels, out_channels * (2 if adaptive_scale else 1), **init)
        self.norm1 = GroupNorm(out_channels, eps=eps)
        self.conv1 = Conv2d(out_channels, out_channels, kernel=3, **init_zero)
        self.skip = None
        if out_channels != in_channels or up or down:
            kernel = 1 if resample_proj or out_channels != in_channels else 0
            self.skip = Conv2d(in_channels, out_channels, kernel=kernel, **resampling, **init)
        if self.num_heads:
            self.norm2 = GroupNorm(out_channels, eps=eps)
            self.qkv = Conv2d(out_channels, out_channels * 3, kernel=1,
                              **(init if init_attn is None else init_attn))
            self.proj = Conv2d(out_channels, out_channels, kernel=1, **init_zero)

    def __call__(self, *given: Tensor) -> Any:  # noqa: ANN401 (as nn.Module has it)
        """Evaluate the block, whether it is compiled or not."""
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(super().__call__, *given, use_reentrant=False)
        return super().__call__(*given)

    def forward(self, x: Tensor, emb: Tensor, skip: Tensor | None = None) -> Tensor:
        if skip is not None:
            x = torch.cat([x, skip], dim=1)
        h = self.conv0(functional.silu(self.norm0(x)))
        params = self.affine(emb)[:, :, None, None].to(x.dtype)
        if self.adaptive_scale:
            scale, shift = params.chunk(2, dim=1)
            h = functional.silu(torch.addcmul(shift, self.norm1(h), scale + 1))
        else:
            h = functional.silu(self.norm1(h + params))
        h = self.conv1(functional.dropout(h, self.dropout, self.training))
        x = (h + (x if self.skip is None else self.skip(x))) * self.skip_scale
        if self.num_heads:
            a = self.proj(self.attend(self.qkv(self.norm2(x))))
            x = (x + a) * self.skip_scale
        return x

    def attend(self, qkv: Tensor) -> Tensor:
        """Return the attention among the pixels of [B, 3 out_channels, H, W]."""
        return attention(qkv, self.num_heads)


class EncoderLevel(NamedTuple):
    """The modules of one resolution, by their keys in `enc`, in the order of use.

    None stands for a module that is not there.
    """
    blocks: list[str]
    conv: str | None = None
    down: str | None = None
    aux_down: str | None = None
    aux_skip: str | None = None
    aux_residual: str | None = None


class DecoderLevel(NamedTuple):
    """The modules of one resolution, by their keys in `dec`; `first` is in0 and in1, or up."""
    first: list[str]
    blocks: list[str]
    aux_up: str | None = None
    aux_norm: str | None = None
    aux_conv: str | None = None


@dataclass(frozen=True)
class UNetPlan:
    """The settings that both halves of a U-Net share.

    img_resolution  (H, W) of the highest resolution
    widths          channels per level, from the highest resolution down
    """
    img_resolution: tuple[int, int]
    widths: list[int]
    num_blocks: int
    attn_resolutions: Sequence[int]
    block: dict[str, Any]   # arguments of every UNetBlock

    def name(self, level: int) -> str:
        height, width = self.img_resolution
        return f'{height >> level}x{width >> level}'

    def attends(self, level: int) -> bool:
        """Return whether attn_resolutions lists the height of the level."""
        return self.img_resolution[0] >> level in self.attn_resolutions


def make_encoder(plan: UNetPlan, in_channels: int, first_channels: int,
                 encoder_type: str = 'standard') -> tuple[nn.ModuleDict, list[EncoderLevel],
                                                          list[int]]:
    """Make the way down: its modules, their purposes, and the channels of the skips they leave."""
    enc, levels, skips = nn.ModuleDict(), [], []
    init = plan.block['init']
    c, aux_channels = first_channels, in_channels
    for level, width in enumerate(plan.widths):
        res, names = plan.name(level), {}
        if level == 0:
            names['conv'] = _add(enc, f'{res}_conv', Conv2d(in_channels, c, kernel=3, **init))
        else:
            names['down'] = _add(enc, f'{res}_down', UNetBlock(c, c, down=True, **plan.block))
        if level > 0 and encoder_type == 'skip':
            names['aux_down'] = _add(enc, f'{res}_aux_down', Conv2d(
                aux_channels, aux_channels, kernel=0, down=True,
                resample_filter=plan.block['resample_filter']))
            names['aux_skip'] = _add(enc, f'{res}_aux_skip',
                                     Conv2d(aux_channels, c, kernel=1, **init))
        if level > 0 and encoder_type == 'residual':
            names['aux_residual'] = _add(enc, f'{res}_aux_residual', Conv2d(
                aux_channels, c, kernel=3, down=True, resample_filter=plan.block['resample_filter'],
                fused_resample=True, **init))
            aux_channels = c
        skips.append(c)
        blocks = []
        for i in range(plan.num_blocks):
            block = UNetBlock(c, width, attention=plan.attends(level), **plan.block)
            blocks.append(_add(enc, f'{res}_block{i}', block))
            c = width
            skips.append(c)
        levels.append(EncoderLevel(blocks, **names))
    return enc, levels, skips


def make_decoder(plan: UNetPlan, skips: list[int], attending: Sequence[int], out_channels: int = 0,
                 decoder_type: str | None = None) -> tuple[nn.ModuleDict, list[DecoderLevel]]:
    """Make the way up, using up `skips`; the blocks numbered `attending` of a level may attend.

    With a decoder_type it also makes the image of out_channels: at the highest resolution, or
    ('skip') by a contribution from each.
    """
    dec, levels = nn.ModuleDict(), []
    lowest = len(plan.widths) - 1
    c = skips[-1]
    for level in range(lowest, -1, -1):
        res, names = plan.name(level), {}
        if level == lowest:
            first = [_add(dec, f'{res}_in0', UNetBlock(c, c, attention=True, **plan.block)),
                     _add(dec, f'{res}_in1', UNetBlock(c, c, **plan.block))]
        else:
            first = [_add(dec, f'{res}_up', UNetBlock(c, c, up=True, **plan.block))]
        blocks = []
        for i in range(plan.num_blocks + 1):
            attention = plan.attends(level) and i in attending
            block = UNetBlock(c + skips.pop(), plan.widths[level], attention=attention,
                              **plan.block)
            blocks.append(_add(dec, f'{res}_block{i}', block))
            c = plan.widths[level]
        if decoder_type == 'skip' and level < lowest:
            names['aux_up'] = _add(dec, f'{res}_aux_up', Conv2d(
                out_channels, out_channels, kernel=0, up=True,
                resample_filter=plan.block['resample_filter']))
        if decoder_type == 'skip' or (decoder_type is not None and level == 0):
            names['aux_norm'] = _add(dec, f'{res}_aux_norm', GroupNorm(c, eps=plan.block['eps']))
            names['aux_conv'] = _add(dec, f'{res}_aux_conv', Conv2d(
                c, out_channels, kernel=3, **plan.block['init_zero']))
        levels.append(DecoderLevel(first, blocks, **names))
    return dec, levels


def encode(enc: nn.ModuleDict, levels: list[EncoderLevel], x: Tensor, emb: Tensor,
           channels_last: bool = False) -> list[Tensor]:
    """Go down the U: return the skips of an image, of which the last is the bottom."""
    skips, aux = [], x
    for level in levels:
        if level.conv is not None:
            x = enc[level.conv](x)
            if channels_last:   # here, since an image of one channel has no such layout
                x = x.contiguous(memory_format=torch.channels_last)
        if level.down is not None:
            x = enc[level.down](x, emb)
        if level.aux_down is not None and level.aux_skip is not None:
            aux = enc[level.aux_down](aux)
            x = x + enc[level.aux_skip](aux)
        if level.aux_residual is not None:
            x = aux = (x + enc[level.aux_residual](aux)) * math.sqrt(0.5)
        skips.append(x)
        for name in level.blocks:
            x = enc[name](x, emb)
            skips.append(x)
    return skips


def decode(dec: nn.ModuleDict, levels: list[DecoderLevel], skips: list[Tensor],
           emb: Tensor) -> tuple[Tensor, Tensor | None]:
    """Go up the U, using up the skips.

    Returns the last features, and the image where the levels contribute to one.
    """
    x, image = skips[-1], None
    for level in levels:
        for name in level.first:
            x = dec[name](x, emb)
        for name in level.blocks:
            x = dec[name](x, emb, skips.pop())
        if level.aux_up is not None:
            image = dec[level.aux_up](image)
        if level.aux_norm is not None and level.aux_conv is not None:
            detail = dec[level.aux_conv](functional.silu(dec[level.aux_norm](x)))
            image = detail if image is None else detail + image
    return x, image


class SongUNet(nn.Module):
    """DDPM++ and NCSN++ (Song et al. 2021), the U-Nets of Table 2, described in Table 8.

    net(x [B, in_channels, H, W], noise_labels [B or 1], class_labels [B or 1, label_dim],
    augment_labels [B or 1, augment_dim]) -> [B, out_channels, H, W]. Raises ValueError in one line
    for arguments that do not fit together.
    """
    channels_last = False   # the memory layout of features, which training.compiled chooses

    def __init__(self, img_resolution: Resolution, in_channels: int, out_channels: int,
                 label_dim: int = 0, augment_dim: int = 0, model_channels: int = 128,
                 channel_mult: Sequence[int] = (1, 2, 2, 2), channel_mult_emb: int = 4,
                 num_blocks: int = 4, attn_resolutions: Sequence[int] = (16,),
                 dropout: float = 0.10, label_dropout: float = 0,
                 embedding_type: str = 'positional', channel_mult_noise: int = 1,
                 encoder_type: str = 'standard', decoder_type: str = 'standard',
                 resample_filter: Sequence[float] = (1, 1)) -> None:
        super().__init__()
        _check_resolution(img_resolution, channel_mult)
        _check_choice('embedding_type', embedding_type, ['positional', 'fourier'])
        _check_choice('encoder_type', encoder_type, ['standard', 'skip', 'residual'])
        _check_choice('decoder_type', decoder_type, ['standard', 'skip'])
        if len(resample_filter) % 2:
            raise ValueError(f'resample_filter={list(resample_filter)} has an odd number of taps, '
                             f'which cannot double a resolution; use an even number, such as [1, '
                             f'1] or [1, 3, 3, 1]')
        self.label_dim, self.label_dropout = label_dim, label_dropout
        noise_channels, emb_channels = (model_channels * channel_mult_noise,
                                        model_channels * channel_mult_emb)
        init: dict[str, Any] = {'init_mode': 'xavier_uniform'}

        self.map_noise = FourierEmbedding(noise_channels) if embedding_type == 'fourier' else \
            PositionalEmbedding(noise_channels, endpoint=True)
        self.map_label = Linear(label_dim, noise_channels, **init) if label_dim else None
        self.map_augment = Linear(augment_dim, noise_channels, bias=False,
                                  **init) if augment_dim else None
        self.map_layer0 = Linear(noise_channels, emb_channels, **init)
        self.map_layer1 = Linear(emb_channels, emb_channels, **init)

        widths = [model_channels * mult for mult in channel_mult]
        plan = UNetPlan(height_and_width(img_resolution), widths, num_blocks, attn_resolutions, {
            'emb_channels': emb_channels, 'num_heads': 1, 'dropout': dropout,
            'skip_scale': math.sqrt(0.5), 'eps': 1e-6, 'resample_filter': resample_filter,
            'resample_proj': True, 'adaptive_scale': False, 'init': init,
            'init_zero': {**init, 'init_weight': 1e-5},
            'init_attn': {**init, 'init_weight': math.sqrt(0.2)},
        })
        self.enc, self.encoder_levels, skips = make_encoder(plan, in_channels, model_channels,
                                                            encoder_type)
        self.dec, self.decoder_levels = make_decoder(plan, skips, [num_blocks], out_channels,
                                                     decoder_type)

    def forward(self, x: Tensor, noise_labels: Tensor, class_labels: Tensor | None,
                augment_labels: Tensor | None = None) -> Tensor:
        emb = self.embedding(len(x), noise_labels, class_labels, augment_labels)
        skips = encode(self.enc, self.encoder_levels, x, emb, self.channels_last)
        image = decode(self.dec, self.decoder_levels, skips, emb)[1]
        assert image is not None   # a SongUNet's last level has one
        return image

    def embedding(self, batch_size: int, noise_labels: Tensor, class_labels: Tensor | None,
                  augment_labels: Tensor | None) -> Tensor:
        """Return the embedding that steers all blocks, [B or 1, model_channels · channel_mult_emb].

        It is in float32.
        """
        emb = self.map_noise(noise_labels)
        emb = emb.roll(emb.shape[1] // 2, dims=1)   # sin first
        if self.map_label is not None:
            labels = _dropped(class_labels, self.label_dropout if self.training else 0, batch_size)
            emb = emb + self.map_label(labels * math.sqrt(self.label_dim))
        if self.map_augment is not None and augment_labels is not None:
            emb = emb + self.map_augment(augment_labels.to(emb.dtype))
        return functional.silu(self.map_layer1(functional.silu(self.map_layer0(emb))))


class DhariwalUNet(nn.Module):
    """ADM (Dhariwal & Nichol 2021; Table 8), called like SongUNet.

    Raises ValueError in one line for arguments that do not fit together.
    """
    channels_last = False   # the memory layout of features, which training.compiled chooses

    def __init__(self, img_resolution: Resolution, in_channels: int, out_channels: int,
                 label_dim: int = 0, augment_dim: int = 0, model_channels: int = 192,
                 channel_mult: Sequence[int] = (1, 2, 3, 4), channel_mult_emb: int = 4,
                 num_blocks: int = 3, attn_resolutions: Sequence[int] = (32, 16, 8),
                 dropout: float = 0.10, label_dropout: float = 0) -> None:
        super().__init__()
        _check_resolution(img_resolution, channel_mult)
        self.label_dim, self.label_dropout = label_dim, label_dropout
        emb_channels = model_channels * channel_mult_emb
        init: dict[str, Any] = {
            'init_mode': 'kaiming_uniform', 'init_weight': math.sqrt(1 / 3),
            'init_bias': math.sqrt(1 / 3)}
        init_zero: dict[str, Any] = {**init, 'init_weight': 0, 'init_bias': 0}

        self.map_noise = PositionalEmbedding(model_channels)
        self.map_augment = Linear(augment_dim, model_channels, bias=False,
                                  **init_zero) if augment_dim else None
        self.map_layer0 = Linear(model_channels, emb_channels, **init)
        self.map_layer1 = Linear(emb_channels, emb_channels, **init)
        self.map_label = Linear(label_dim, emb_channels, bias=False, init_mode='kaiming_normal',
                                init_weight=math.sqrt(label_dim)) if label_dim else None

        widths = [model_channels * mult for mult in channel_mult]
        plan = UNetPlan(height_and_width(img_resolution), widths, num_blocks, attn_resolutions, {
            'emb_channels': emb_channels, 'channels_per_head': 64, 'dropout': dropout,
            'init': init, 'init_zero': init_zero,
        })
        self.enc, self.encoder_levels, skips = make_encoder(plan, in_channels,
                                                            first_channels=widths[0])
        self.dec, self.decoder_levels = make_decoder(plan, skips, range(num_blocks + 1))
        self.out_norm = GroupNorm(widths[0])
        self.out_conv = Conv2d(widths[0], out_channels, kernel=3, **init_zero)

    def forward(self, x: Tensor, noise_labels: Tensor, class_labels: Tensor | None,
                augment_labels: Tensor | None = None) -> Tensor:
        emb = self.embedding(len(x), noise_labels, class_labels, augment_labels)
        skips = encode(self.enc, self.encoder_levels, x, emb, self.channels_last)
        x, _ = decode(self.dec, self.decoder_levels, skips, emb)
        return self.out_conv(functional.silu(self.out_norm(x)))

    def embedding(self, batch_size: int, noise_labels: Tensor, class_labels: Tensor | None,
                  augment_labels: Tensor | None) -> Tensor:
        """Return the embedding that steers all blocks, [B or 1, model_channels · channel_mult_emb].

        It is in float32.
        """
        emb = self.map_noise(noise_labels)
        if self.map_augment is not None and augment_labels is not None:
            emb = emb + self.map_augment(augment_labels.to(emb.dtype))
        emb = self.map_layer1(functional.silu(self.map_layer0(emb)))
        if self.map_label is not None:
            emb = emb + self.map_label(_dropped(class_labels, self.label_dropout if self.training
                                                else 0, batch_size))
        return functional.silu(emb)


def _cast(parameter: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if parameter is None else parameter.to(dtype)


def _like(weight: Tensor | None, x: Tensor) -> Tensor | None:
    """Return the weight of a convolution in the precision and the layout of its input."""
    if weight is None:
        return None
    if is_channels_last(x):
        return weight.to(x.dtype, memory_format=torch.channels_last)
    return weight.to(x.dtype)


def _half(num_channels: int) -> int:
    if num_channels % 2:
        raise ValueError(f'an embedding of the noise level takes an even number of channels, not '
                         f'{num_channels}')
    return num_channels // 2


def _add(modules: nn.ModuleDict, name: str, module: nn.Module) -> str:
    modules[name] = module
    return name


def _dropped(labels: Tensor | None, p: float, batch_size: int) -> Tensor:
    """Return the label vectors, each of the batch zeroed with probability p."""
    if labels is None:
        raise ValueError('a class-conditional backbone needs class_labels; a vector of zeros '
                         'stands for no class')
    if not p:
        return labels
    return labels * (torch.rand([batch_size, 1], device=labels.device) >= p).to(labels.dtype)


def _check_resolution(img_resolution: Resolution, channel_mult: Sequence[int]) -> None:
    if not channel_mult:
        raise ValueError('channel_mult is empty; it takes one factor per resolution, such as [1, '
                         '2, 2, 2]')
    sides, halvings = height_and_width(img_resolution), len(channel_mult) - 1
    if any(side % 2**halvings for side in sides):
        levels = min((side & -side).bit_length() for side in sides)
        nearest = named([_nearest_multiple(side, 2**halvings) for side in sides])
        raise ValueError(f'a resolution of {named(sides)} cannot be halved {halvings} times, as '
                         f'the {halvings + 1} levels of channel_mult={list(channel_mult)} need: '
                         f'use {nearest}, the nearest multiple of {2**halvings}, or at most '
                         f'{levels} levels')


def _nearest_multiple(side: int, factor: int) -> int:
    return max((side + factor // 2) // factor, 1) * factor


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f'{name}={value!r} is unknown; it is one of {", ".join(choices)}')


class VPPrecond(Denoiser):
    """The VP column of Table 1, for noise levels from σ(ε_t) to σ(1)."""

    def __init__(self, img_resolution: Resolution, img_channels: int, label_dim: int = 0,
                 use_fp16: bool = False, beta_d: float = 19.9, beta_min: float = 0.1, M: int = 1000,
                 epsilon_t: float = 1e-5, model_type: str = 'SongUNet',
                 **model_kwargs: object) -> None:
        precond = VP(VPSchedule(beta_d, beta_min), M)
        model = make_backbone(model_type, img_resolution, img_channels, img_channels, label_dim,
                              model_kwargs)
        super().__init__(model, precond, *precond.sigma_range(epsilon_t), img_resolution,
                         img_channels, label_dim, use_fp16)
        self.beta_d, self.beta_min, self.M, self.epsilon_t = beta_d, beta_min, M, epsilon_t


class VEPrecond(Denoiser):
    """The VE column of Table 1."""

    def __init__(self, img_resolution: Resolution, img_channels: int, label_dim: int = 0,
                 use_fp16: bool = False, sigma_min: float = 0.02, sigma_max: float = 100,
                 model_type: str = 'SongUNet', **model_kwargs: object) -> None:
        model = make_backbone(model_type, img_resolution, img_channels, img_channels, label_dim,
                              model_kwargs)
        super().__init__(model, VE(), sigma_min, sigma_max, img_resolution, img_channels, label_dim,
                         use_fp16)


class iDDPMPrecond(Denoiser):  # noqa: N801 (the published name)
    """The iDDPM column of Table 1, for noise levels from u_{M−1} to u_0.

    The backbone has 2 img_channels outputs; the second half is the learned variance.
    """

    def __init__(self, img_resolution: Resolution, img_channels: int, label_dim: int = 0,
                 use_fp16: bool = False, C_1: float = 0.001, C_2: float = 0.008, M: int = 1000,
                 model_type: str = 'DhariwalUNet', **model_kwargs: object) -> None:
        precond = IDDPM(IDDPMLevels(M, C_1, C_2))
        model = make_backbone(model_type, img_resolution, img_channels, 2 * img_channels, label_dim,
                              model_kwargs)
        super().__init__(model, precond, *precond.sigma_range(), img_resolution, img_channels,
                         label_dim, use_fp16)
        self.C_1, self.C_2, self.M = C_1, C_2, M

    def round_sigma(self, sigma: Tensor | float, return_index: bool = False) -> Tensor:
        """Return the nearest u_j, or with return_index its j, int64."""
        sigma, precond = torch.as_tensor(sigma), self.precond
        assert isinstance(precond, IDDPM)
        return precond.index(sigma) if return_index else precond.nearest(sigma)


class EDMPrecond(Denoiser):
    """The EDM column of Table 1."""

    def __init__(self, img_resolution: Resolution, img_channels: int, label_dim: int = 0,
                 use_fp16: bool = False, sigma_min: float = 0, sigma_max: float = float('inf'),
                 sigma_data: float = 0.5, model_type: str = 'DhariwalUNet',
                 **model_kwargs: object) -> None:
        model = make_backbone(model_type, img_resolution, img_channels, img_channels, label_dim,
                              model_kwargs)
        super().__init__(model, EDM(sigma_data), sigma_min, sigma_max, img_resolution, img_channels,
                         label_dim, use_fp16)
        self.sigma_data = sigma_data


@dataclass(frozen=True)
class NetworkConfig:
    """A network without its weights: all that `build_network` needs.

    model_type  key of MODELS
    img_resolution
                the side of square images, else (H, W)
    precision   key of PRECISIONS, in which the backbone works
    model       the backbone's arguments (complete_arguments fills in defaults)
    """
    model_type: str
    precond: Preconditioner
    sigma_min: float
    sigma_max: float
    img_resolution: Resolution
    img_channels: int
    label_dim: int = 0
    precision: str = 'fp32'
    model: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.img_resolution, list | tuple):   # a square has one name
            object.__setattr__(self, 'img_resolution',
                               resolution_of(*height_and_width(self.img_resolution)))


def complete_arguments(model_type: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return all arguments of a backbone beyond resolution, channels and labels.

    Those that are not given have the backbone's defaults. Sequences come out as lists, as JSON has
    them. Raises ValueError for a name that the backbone does not take, with the nearest that it
    does, and for an unknown model_type.
    """
    if model_type not in MODELS:
        raise ValueError(f'model_type={model_type!r} is unknown{did_you_mean(model_type, MODELS)}')
    parameters = inspect.signature(MODELS[model_type]).parameters
    defaults = {name: p.default for name, p in parameters.items() if p.default is not p.empty
                and name != 'label_dim'}
    for name in given:
        if name not in defaults:
            raise ValueError(f'{model_type} takes no argument '
                             f'{name!r}{did_you_mean(name, defaults)}')
    complete = {**defaults, **given}
    return {name: list(value) if isinstance(value, tuple) else value
            for name, value in complete.items()}


def make_backbone(model_type: str, img_resolution: Resolution, in_channels: int, out_channels: int,
                  label_dim: int, arguments: Mapping[str, Any]) -> nn.Module:
    """Return a new backbone F by the name of its class; raises ValueError for unknown names."""
    arguments = complete_arguments(model_type, arguments)
    return MODELS[model_type](img_resolution, in_channels, out_channels, label_dim, **arguments)


Limits = tuple[float, float]   # the lowest and the highest noise level


class Published(NamedTuple):
    """The published class of a preconditioner.

    arguments  those of the class beyond the size, from the preconditioner and the noise levels
    limits     the noise levels that the class has of itself; None where it is given them
    """
    cls: Callable[..., Denoiser]
    arguments: Callable[[Any, Limits], tuple[float, ...]]
    limits: Callable[[Any], Limits] | None = None

    def fits(self, precond: Preconditioner, limits: Limits) -> bool:
        """Return whether the class has these limits, up to rounding."""
        return self.limits is None or all(map(math.isclose, limits, self.limits(precond)))


PUBLISHED: dict[type, Published] = {
    VP: Published(VPPrecond, lambda c, _: (c.schedule.beta_d, c.schedule.beta_min, c.M),
                  limits=VP.sigma_range),
    VE: Published(VEPrecond, lambda c, limits: limits),
    IDDPM: Published(iDDPMPrecond, lambda c, _: (c.levels.C_1, c.levels.C_2, c.levels.M),
                     limits=IDDPM.sigma_range),
    EDM: Published(EDMPrecond, lambda c, limits: (*limits, c.sigma_data)),
}


def build_network(config: NetworkConfig) -> Denoiser:
    """Return the freshly initialised network of a configuration.

    It is of the published class of its preconditioner where there is one that fits, else a plain
    Denoiser. Raises ValueError in one line for what does not fit together.
    """
    if config.precision not in PRECISIONS:
        raise ValueError(f'precision={config.precision!r} is '
                         f'unknown{did_you_mean(config.precision, PRECISIONS)}')
    c, limits = config.precond, (config.sigma_min, config.sigma_max)
    size: tuple[Resolution, int, int] = (config.img_resolution, config.img_channels,
                                         config.label_dim)
    published = PUBLISHED.get(type(c))
    if published is not None and published.fits(c, limits):
        net = published.cls(*size, False, *published.arguments(c, limits),
                            model_type=config.model_type, **config.model)
    else:
        out_channels = config.img_channels * (2 if isinstance(c, IDDPM) else 1)
        backbone = make_backbone(config.model_type, config.img_resolution, config.img_channels,
                                 out_channels, config.label_dim, config.model)
        net = Denoiser(backbone, c, *limits, config.img_resolution, config.img_channels,
                       config.label_dim)
    net.dtype = PRECISIONS[config.precision]
    return net


INIT_MODES = ['xavier_uniform', 'xavier_normal', 'kaiming_uniform', 'kaiming_normal']
# Of the backbone. tf32 is float32 whose products a GPU may round: training.compiled.set_tf32.
PRECISIONS = {'fp32': torch.float32, 'tf32': torch.float32, 'fp16': torch.float16,
              'bf16': torch.bfloat16}
MODELS: dict[str, Any] = {'SongUNet': SongUNet, 'DhariwalUNet': DhariwalUNet}
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    'ddpmpp': ('SongUNet', {
        'embedding_type': 'positional', 'encoder_type': 'standard', 'decoder_type': 'standard',
        'channel_mult_noise': 1, 'resample_filter': [1, 1], 'model_channels': 128,
        'channel_mult': [2, 2, 2],
    }),
    'ncsnpp': ('SongUNet', {
        'embedding_type': 'fourier', 'encoder_type': 'residual', 'decoder_type': 'standard',
        'channel_mult_noise': 2, 'resample_filter': [1, 3, 3, 1], 'model_channels': 128,
        'channel_mult': [2, 2, 2],
    }),
    'adm': ('DhariwalUNet', {'model_channels': 192, 'channel_mult': [1, 2, 3, 4]}),
}
