"""Folders of Hugging Face's diffusers, so that every sampler here can use existing weights.

    net = read_diffusers('ddpm-cifar10-32')                                   # a pipeline
    net = read_diffusers('stable-diffusion/unet', embeddings='prompts.npz')   # only its U-Net

The configurations (JSON) and tensors of such a folder are read, and nothing is executed; the
package diffusers (the extra of that name) builds the U-Net. The configuration of the scheduler says
which noise levels there are and what the network predicts; its sampler is ignored.
"""

import contextlib
import functools
import json
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from checkpoints.assemble import LARGEST
from checkpoints.diffusers_unet import PREDICTIONS, TIMESTEPS, DiffusersDenoiser, config_of
from dnnlib.console import shown
from dnnlib.files import read_bounded
from limpid.levels import (
    MOST_TIMESTEPS,
    CosineBetas,
    DiscreteSchedule,
    GivenBetas,
    LinearBetas,
    ScaledLinearBetas,
)
from limpid.resolution import Resolution, height_and_width, resolution_of
from torch_utils import checkpoint
from torch_utils.arrays import floats, is_npy, read_npy, read_npz
from torch_utils.safetensors_file import is_safetensors, load_tensors
from torch_utils.torch_files import TENSORS, read_file

MODELS = ('UNet2DModel', 'UNet2DConditionModel')
STEM = 'diffusion_pytorch_model'   # the beginning of the names of weight files
LINEAR = {'linear': LinearBetas, 'scaled_linear': ScaledLinearBetas}   # by beta_schedule

# The names of layers of attention in earlier versions of diffusers, and in many published files.
OLD_NAMES = {'query': 'to_q', 'key': 'to_k', 'value': 'to_v', 'proj_attn': 'to_out.0'}


def is_diffusers(path: str | os.PathLike[str]) -> bool:
    """Return whether this is a folder of diffusers: a pipeline, or a model of its own."""
    return any((Path(path) / name).is_file() for name in ('model_index.json', 'config.json'))


def read_diffusers(folder: str | os.PathLike[str], weights: str | None = None,
                   embeddings: str | os.PathLike[str] | None = None, null_class: int | None = None,
                   timesteps: str = 'nearest') -> DiffusersDenoiser:
    """Return the denoiser in a folder of diffusers, on the CPU, with its weights in float32.

    folder       a pipeline (model_index.json, unet/, scheduler/), or a U-Net (config.json) with
                 scheduler_config.json or scheduler/ in it or scheduler/ beside it
    weights      the variant of the weights, such as 'fp16' for
                 diffusion_pytorch_model.fp16.safetensors; None: the file without a variant
    embeddings   for a UNet2DConditionModel: .npy [N, tokens, dim], or .npz or .safetensors with
                 `embeddings` of that shape and, optionally, `negative` [tokens, dim]. The network
                 then has N labels, one for each embedding; no label stands for `negative`, or zeros
                 without it
    null_class   for a UNet2DModel with classes: the class that stands for none, and is none of the
                 labels. Without it, no label stands for an embedding of zeros
    timesteps    'nearest' or 'interpolated', see diffusers_unet.Prediction

    The network is in evaluation mode. Settings of the scheduler that are about its sampling
    (clip_sample, thresholding, set_alpha_to_one, steps_offset, timestep_spacing) are no part of a
    denoiser and are ignored. Raises FileNotFoundError, or ValueError in one line that names the
    file.
    """
    if timesteps not in TIMESTEPS:
        raise ValueError(f'timesteps must be one of {", ".join(TIMESTEPS)}, not {timesteps!r}')
    unet, scheduler = _parts(Path(folder))
    config_file = unet / 'config.json'
    config = _json(config_file)
    schedule, prediction_type = read_schedule(_json(scheduler), scheduler)
    model = _build(config, config_file)
    options = config_of(model)   # with the defaults of diffusers for all that the file leaves out
    channels, resolution = _check_shape(options, config_file)
    if options.get('time_embedding_type') == 'learned' and timesteps == 'interpolated':
        raise ValueError(f'timesteps=interpolated: {config_file} has learned timesteps, which know '
                         f'no fractions')
    _load(model, unet, weights)
    if type(model).__name__ == 'UNet2DModel':
        labels = _numbered(model, embeddings, null_class, config_file)
    else:
        labels = _embedded(embeddings, null_class, options, config_file)
    precond = PREDICTIONS[prediction_type](schedule, timesteps)
    net = DiffusersDenoiser(model, precond, resolution, channels, *labels)
    net.eval().requires_grad_(False)
    return net


def read_schedule(config: dict[str, Any], path: Path) -> tuple[DiscreteSchedule, str]:
    """Return the noise levels and the prediction_type in the configuration of a scheduler.

    β_t are trained_betas, or by beta_schedule: linear, scaled_linear (Stable Diffusion),
    squaredcos_cap_v2 (cosine). With rescale_betas_zero_snr Algorithm 1 of Lin et al. 2023 follows,
    also for squaredcos_cap_v2 with its β ≤ 0.999. diffusers computes all of this in float32, with
    errors of up to 4e-5 of ᾱ_t; its Euler and DPM-Solver use 2⁻²⁴ instead of ᾱ_T = 0, for which
    the network was trained.
    """
    if config.get('beta_schedule') is None and config.get('trained_betas') is None:
        raise ValueError(f'{path}: {shown(str(config.get("_class_name")), 60)} has no betas; '
                         f'networks of other kinds than DDPM (VE, EDM, flow matching) are not '
                         f'supported')
    # Early versions had no name for the only type that there was.
    prediction_type = config.get('prediction_type', 'epsilon')
    if prediction_type not in tuple(PREDICTIONS):   # it may be of any type
        raise ValueError(f'{path}: prediction_type is {shown(repr(prediction_type), 60)}, not one '
                         f'of {", ".join(PREDICTIONS)}')
    T = config.get('num_train_timesteps')
    if type(T) is not int or not 2 <= T <= MOST_TIMESTEPS:
        raise ValueError(f'{path}: num_train_timesteps is {shown(repr(T), 60)}, not a whole number '
                         f'from 2 to {MOST_TIMESTEPS}')
    try:
        schedule = _schedule(config, T)
        if not bool((schedule.log_alpha_bar.diff() < 0).all()):
            raise ValueError('its noise levels do not rise')
    except ValueError as error:
        raise ValueError(f'{path}: {error}') from None
    return schedule, prediction_type


def _schedule(config: dict[str, Any], T: int) -> DiscreteSchedule:
    """Return the table of T noise levels."""
    name, trained = config.get('beta_schedule'), config.get('trained_betas')
    zero_terminal_snr = bool(config.get('rescale_betas_zero_snr'))
    if trained is not None:
        fits = isinstance(trained, list) and len(trained) == T
        if not fits or not all(isinstance(beta, float) for beta in trained):
            raise ValueError(f'trained_betas is not a list of {T} numbers')
        return GivenBetas(tuple(trained), zero_terminal_snr)
    if name == 'squaredcos_cap_v2':
        cosine = CosineBetas(T=T)
        return GivenBetas(tuple(cosine.betas.tolist()), True) if zero_terminal_snr else cosine
    if name not in tuple(LINEAR):   # it may be of any type
        raise ValueError(f'beta_schedule is {shown(repr(name), 60)}, not one of '
                         f'{", ".join(LINEAR)}, squaredcos_cap_v2')
    start, end = (config.get(key) for key in ('beta_start', 'beta_end'))
    if not (isinstance(start, float) and isinstance(end, float) and 0 < start <= end < 1):
        raise ValueError(f'beta_start and beta_end are {shown(repr(start), 60)} and '
                         f'{shown(repr(end), 60)}, not numbers that rise between 0 and 1')
    return LINEAR[name](start, end, T, zero_terminal_snr)


def _parts(folder: Path) -> tuple[Path, Path]:
    """Return the folder of the U-Net and the file with the configuration of the scheduler."""
    inside = folder / 'scheduler' / 'scheduler_config.json'
    unet, places = folder, [folder / 'scheduler_config.json', inside,
                            folder.parent / 'scheduler' / 'scheduler_config.json']
    index = folder / 'model_index.json'
    if index.is_file():
        parts = [name for name, value in _json(index).items() if isinstance(value, list)]
        if 'unet' not in parts:
            raise ValueError(f'{index}: this pipeline has no unet; it has '
                             f'{shown(", ".join(parts), 120)}')
        unet, places = folder / 'unet', [inside]
    scheduler = next((place for place in places if place.is_file()), None)
    if scheduler is None:
        missing = 'the configuration of the scheduler, which tells the noise levels, is missing'
        raise FileNotFoundError(2, missing, str(places[0]))
    return unet, scheduler


LARGEST_JSON = 2**24   # bytes of a configuration
MOST_ENTRIES = 100     # of its lists, and layers of a block
MOST_LAYERS = 512      # of all blocks together; Stable Diffusion XL has 6 * 2 * 10 at most


def _json(path: Path) -> dict[str, Any]:
    """Read a file of names and values."""
    if not path.is_file():
        raise FileNotFoundError(2, 'this part of a diffusers model is missing', str(path))
    try:
        contents = json.loads(read_bounded(path, LARGEST_JSON))
    except (ValueError, RecursionError) as error:
        raise ValueError(f'{path} is damaged: {shown(str(error), 200)}') from None
    if not isinstance(contents, dict):
        raise ValueError(f'{path} is damaged: it holds no names and values')
    return contents


def _build(config: dict[str, Any], path: Path) -> nn.Module:
    """Return the U-Net on the device 'meta', so that it takes no memory yet."""
    name = config.get('_class_name')
    if name not in MODELS:
        raise ValueError(f'{path}: _class_name is {shown(repr(name), 60)}, not '
                         f'{" or ".join(MODELS)}')
    try:
        _check_sizes(config)   # before what takes seconds to import
        _check_layers(config)
    except ValueError as error:
        raise ValueError(f'{path}: its arguments do not make a network: {error}') from None
    try:
        import diffusers
    except ImportError as error:
        raise ValueError(f'{path.parent} needs diffusers, of the extra diffusers: pip install '
                         f'".[diffusers]", or pip install diffusers') from error
    try:
        with torch.device('meta'), _silent('diffusers'):
            return getattr(diffusers, name).from_config(config)
    except (ValueError, TypeError, ArithmeticError, RuntimeError, LookupError,
            AttributeError) as error:
        raise ValueError(
            f'{path}: its arguments do not make a network: {shown(str(error), 300)}') from None


@contextlib.contextmanager
def _silent(package: str) -> Iterator[None]:
    """Keep a package from printing what a file says."""
    logger = logging.getLogger(package)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _check_sizes(value: object, name: str = '') -> None:
    """Raise ValueError for numbers of layers, sizes and lists that no network has."""
    if isinstance(value, dict | list) and len(value) > MOST_ENTRIES:
        raise ValueError(f'{shown(name) or "it"} has {len(value)} entries')
    if isinstance(value, dict):
        for key, item in value.items():
            _check_sizes(item, key)
    elif isinstance(value, list):
        for item in value:
            _check_sizes(item, name)
    elif isinstance(value, int | float):
        most = MOST_ENTRIES if 'layers' in name else LARGEST
        if abs(value) > most:
            raise ValueError(f'{shown(name)} is {shown(repr(value))}')


def _check_layers(config: dict[str, Any]) -> None:
    """Raise ValueError for more layers than any network has, each of which takes time to make."""
    blocks = sum(len(value) for key, value in config.items()
                 if key.endswith('_block_types') and isinstance(value, list))
    most = {key: max(_numbers(value), default=1) for key, value in config.items()
            if 'layers' in key}
    layers = max(most.pop('layers_per_block', 1), 1)
    inner = max([1, *most.values()])   # of transformers, forwards or in reverse
    if blocks * layers * inner > MOST_LAYERS:
        raise ValueError(f'{blocks} blocks of {layers} times {inner} layers are more than '
                         f'{MOST_LAYERS}')


def _numbers(value: object) -> list[float]:
    """Return the numbers in lists, which may be nested."""
    if isinstance(value, list):
        return [number for item in value for number in _numbers(item)]
    return [value] if isinstance(value, int | float) else []


def _check_shape(config: Mapping[str, Any], path: Path) -> tuple[int, Resolution]:
    """Return (channels, resolution) of the images.

    Raises ValueError for a network that is no plain denoiser of images.
    """
    channels, outputs, size = (config[name] for name in ('in_channels', 'out_channels',
                                                         'sample_size'))
    if outputs not in (channels, 2 * channels):
        raise ValueError(f'{path}: it takes {channels} channels and returns {outputs}; a network '
                         f'that takes more than the noisy image (inpainting, upscaling) is not '
                         f'supported')
    try:
        size = resolution_of(*height_and_width(size))
    except (TypeError, ValueError):
        raise ValueError(f'{path}: sample_size is {shown(repr(size), 60)}, not the width of a '
                         f'square image, or a height and a width') from None
    if config.get('time_embedding_type') == 'fourier':
        raise ValueError(f'{path}: time_embedding_type is fourier, of VE networks, which are not '
                         f'supported')
    return channels, size


def _load(model: nn.Module, folder: Path, variant: str | None) -> None:
    """Give the model its tensors in float32. Raises ValueError unless they are all of them."""
    path, tensors = _tensors(folder, f'.{variant}' if variant else '')
    renamed = {'.'.join(OLD_NAMES.get(part, part)
                        for part in name.split('.')): tensor.to(torch.float32)
               for name, tensor in tensors.items()}
    checkpoint.load_into(model, {name: tensor.to('meta') for name, tensor in renamed.items()},
                         str(path))
    model.load_state_dict(renamed, assign=True)
    for name, tensor in model.named_buffers():
        if tensor.is_meta:
            raise ValueError(f'{folder / "config.json"}: {name} is in no file; blocks of this kind '
                             f'are not supported')


def _tensors(folder: Path, variant: str) -> tuple[Path, dict[str, Tensor]]:
    """Return the file with the weights, or with the list of such files, and all tensors."""
    for ending in ('safetensors', 'bin'):
        single = folder / f'{STEM}{variant}.{ending}'
        if single.is_file():
            return single, _read_tensors(single)
        index = folder / f'{STEM}.{ending}.index{variant}.json'
        if index.is_file():
            files = _json(index).get('weight_map')
            names = files.values() if isinstance(files, dict) else [None]
            if not all(isinstance(name, str) and Path(name).name == name for name in names):
                raise ValueError(f'{index} is damaged: its weight_map does not lead from names to '
                                 f'files beside it')
            parts = (_read_tensors(folder / name) for name in sorted(set(names)))
            return index, functools.reduce(lambda tensors, part: tensors | part, parts, {})
    expected = folder / f'{STEM}{variant}.safetensors'
    raise FileNotFoundError(2, 'the weights of the model are missing', str(expected))


def _read_tensors(path: Path) -> dict[str, Tensor]:
    if is_safetensors(path):
        return load_tensors(path)[0]
    tensors = read_file(path, TENSORS, 'state dict')
    if not isinstance(tensors, dict) or not all(isinstance(name, str) and isinstance(tensor, Tensor)
                                                for name, tensor in tensors.items()):
        raise ValueError(f'{path} is not a state dict')
    return tensors


class _Labels(NamedTuple):
    """The labels of a network: their number, their embeddings, and any parameter that is missing.

    See DiffusersDenoiser.
    """
    label_dim: int
    embeddings: Tensor | None = None
    lacks_null: str = ''


def _numbered(model: nn.Module, embeddings: str | os.PathLike[str] | None, null_class: int | None,
              path: Path) -> _Labels:
    """Return the labels of a UNet2DModel; the embedding of no label becomes the last one."""
    config = config_of(model)
    if embeddings is not None:
        raise ValueError(f'embeddings={embeddings} would have no effect: {path} is a UNet2DModel, '
                         f'which has no cross-attention')
    kind = config['class_embed_type']
    if kind is not None:
        raise ValueError(f'{path}: class_embed_type is {shown(repr(kind), 60)}; only classes that '
                         f'are numbered (null) are supported')
    count = config['num_class_embeds'] or 0
    if null_class is not None and not 0 <= null_class < count:
        there = f'the classes 0 to {count - 1}' if count else 'no classes'
        raise ValueError(f'null_class={null_class}: {path} has {there}')
    if not count:
        return _Labels(0)
    weight = model.get_parameter('class_embedding.weight').detach()
    labels = [index for index in range(count) if index != null_class]
    none = torch.zeros_like(weight[:1]) if null_class is None else weight[null_class:null_class + 1]
    table = nn.Embedding(len(labels) + 1, weight.shape[1],
                         _weight=torch.cat([weight[labels], none]), _freeze=True)
    model.class_embedding = table
    return _Labels(len(labels), lacks_null='null_class' if null_class is None else '')


def _embedded(path: str | os.PathLike[str] | None, null_class: int | None,
              config: Mapping[str, Any], config_file: Path) -> _Labels:
    """Return the labels of a UNet2DConditionModel: embeddings [N + 1, tokens, dim] float32.

    The last one stands for none.
    """
    dim = _embedding_width(config, null_class, config_file)
    if path is None:
        raise ValueError(f'{config_file} is a UNet2DConditionModel, which needs embeddings: a file '
                         f'.npy, .npz or .safetensors with numbers [N, tokens, {dim}]')
    found = _arrays(Path(path))
    embeddings = found.get('embeddings')
    fits = embeddings is not None and embeddings.ndim == 3 and embeddings.shape[2] == dim
    if embeddings is None or not fits or not embeddings.numel():
        raise ValueError(f'{path}: embeddings must be [N, tokens, {dim}], '
                         f'not {"missing" if embeddings is None else list(embeddings.shape)}')
    shape = list(embeddings.shape[1:])
    negative = found.get('negative', torch.zeros(shape))
    for name, array in (('embeddings', embeddings), ('negative', negative)):
        if not bool(array.isfinite().all()):
            raise ValueError(f'{path}: {name} has numbers that are not finite')
    if list(negative.shape) not in (shape, [1, *shape]):
        raise ValueError(f'{path}: negative must be {shape} like one of the embeddings, not '
                         f'{list(negative.shape)}')
    table = torch.cat([embeddings, negative.reshape(1, *shape)]).to(torch.float32)
    lacks_null = '' if 'negative' in found else 'the array `negative` in the file of embeddings'
    return _Labels(len(embeddings), table, lacks_null)


def _embedding_width(config: Mapping[str, Any], null_class: int | None, path: Path) -> int:
    """Return the width of embeddings. Raises ValueError for a network that takes more than them."""
    if null_class is not None:
        raise ValueError(f'null_class={null_class} would have no effect: {path} is a '
                         f'UNet2DConditionModel, whose labels are embeddings')
    for key in ('class_embed_type', 'num_class_embeds'):
        if config[key] is not None:
            raise ValueError(f'{path}: {key} beside cross-attention is not supported')
    if config['addition_embed_type'] not in (None, 'text') \
            or config['encoder_hid_dim_type'] not in (None, 'text_proj'):
        raise ValueError(f'{path}: a network that takes more than the embeddings of a text '
                         '(addition_embed_type, encoder_hid_dim_type) is not supported')
    width: int = config['encoder_hid_dim'] or config['cross_attention_dim']
    return width


def _arrays(path: Path) -> dict[str, Tensor]:
    """Return the arrays of a file by their names; the one of a .npy file is `embeddings`."""
    if is_safetensors(path):
        tensors = load_tensors(path)[0]
        other = next((name for name, one in tensors.items() if not one.is_floating_point()), None)
        if other is not None:
            raise ValueError(f'{path}: {shown(other)} has no floating-point numbers')
        return tensors
    if not path.is_file():
        raise FileNotFoundError(2, 'there is no such file of embeddings', str(path))
    try:
        arrays = {'embeddings': read_npy(path)} if is_npy(path) else read_npz(path)
        return {name: torch.from_numpy(floats(array, name)) for name, array in arrays.items()}
    except (ValueError, TypeError, EOFError, OSError) as error:
        raise ValueError(f'{path} is no file of embeddings: {shown(str(error), 200)}') from None
