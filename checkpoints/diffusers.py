"""A U-Net of Hugging Face's diffusers as a denoiser: existing weights under every sampler here.

    net = read_diffusers('ddpm-cifar10-32')                                   # a folder with
    model_index.json
    net = read_diffusers('stable-diffusion/unet', embeddings='prompts.npz')   # a U-Net, its
    scheduler beside it

Of such a folder the configurations (JSON) and tensors are read, and nothing is executed; the
package diffusers (the extra of that name) builds the U-Net. The scheduler's configuration tells the
noise levels and what the network predicts; which of diffusers' samplers it names is of no interest.
"""

import functools
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from limpid.levels import CosineBetas, DiscreteSchedule, GivenBetas, LinearBetas, ScaledLinearBetas
from limpid.preconditioning import NoisePrediction, V, check_finite
from limpid.steps import DiscreteSteps
from limpid.unit import Level
from torch_utils import checkpoint
from torch_utils.safe_pickle import shown
from torch_utils.safetensors_file import is_safetensors, load_tensors
from torch_utils.torch_files import TENSORS, read_file

MODELS = ('UNet2DModel', 'UNet2DConditionModel')
PREDICTIONS = ('epsilon', 'v_prediction', 'sample')
TIMESTEPS = ('nearest', 'interpolated')
STEM = 'diffusion_pytorch_model'   # of the files with weights
LINEAR = {'linear': LinearBetas, 'scaled_linear': ScaledLinearBetas}   # by beta_schedule
MAX_TIMESTEPS = 2**20

# What diffusers called the layers of attention in earlier versions, as many published weights still
# do.
OLD_NAMES = {'query': 'to_q', 'key': 'to_k', 'value': 'to_v', 'proj_attn': 'to_out.0'}


class DiffusersDenoiser(nn.Module):
    """D(x; σ) from a U-Net F that was trained on z = a y + b ε, at the timesteps t = 0 … T − 1 of a
    table

        epsilon        F = ε̂    D = (z − b F)/a        not at σ = ∞: pure noise tells nothing of
                       the image
        v_prediction   F = v̂    D = a z − b F          (Lin et al. 2023, Eq. 19)
        sample         F = ŷ    D = F

    with a = √ᾱ_t = 1/√(σ² + 1), b = √(1 − ᾱ_t) = σ/√(σ² + 1), and z = x/√(σ² + 1), the unit
    variable.

    model        the U-Net; `net.dtype` is the precision of its parameters, changed by
                 net.to(torch.bfloat16). What goes in and comes out stays float32
    schedule     the table: the noise levels σ_t of the timesteps, of which the last may be inf
    timesteps    'nearest': F is told the t of the nearest level, and round_sigma is σ_t;
                 'interpolated': a fractional t, linear in ln σ, and round_sigma is the identity
    embeddings   [label_dim + 1, tokens, dim] for cross-attention, one for each label and one for
                 none
    lacks_null   what would have told it how training expressed that there is no class: until then,
                 by zeros that it has not seen; '' where nothing is missing
    """
    unit_scale = 1.0

    def __init__(self, model: nn.Module, schedule: DiscreteSchedule, prediction_type: str,
                 img_resolution: int, img_channels: int, label_dim: int = 0,
                 embeddings: Tensor | None = None, timesteps: str = 'nearest',
                 lacks_null: str = '') -> None:
        super().__init__()
        self.model, self.schedule = model, schedule
        self.prediction_type, self.timesteps, self.lacks_null = (prediction_type, timesteps,
                                                                 lacks_null)
        self.img_resolution, self.img_channels, self.label_dim = (img_resolution, img_channels,
                                                                  label_dim)
        self.no_infinity = NoisePrediction.no_infinity if prediction_type == 'epsilon' else ''
        sigmas = schedule.sigma[schedule.sigma.isfinite()] if self.no_infinity else schedule.sigma
        self.sigma_min, self.sigma_max = sigmas[0].item(), sigmas[-1].item()
        self.register_buffer('embeddings', embeddings)
        # which knows the nearest timestep
        self._nearest = V(noise_label='timestep', schedule=schedule)

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def learned_variance(self) -> bool:
        """Whether `forward` takes return_variance=True."""
        return bool(self.model.config.out_channels == 2 * self.img_channels)

    @property
    def native_steps(self) -> DiscreteSteps:
        """The timesteps of the table, the last one included ("trailing")."""
        return DiscreteSteps(self.schedule)

    def forward(self, x: Tensor, sigma: Tensor | float, class_labels: Tensor | None = None, *,
                unit: bool = False, return_variance: bool = False) -> Tensor | tuple[Tensor,
                                                                                     Tensor]:
        """The denoised x, float32 [B, C, H, W], of x [B, C, H, W] at noise levels sigma [], [B] or
        [B, 1, 1, 1].

        With unit=True, x is the unit variable z = x/√(σ² + 1), and σ may be inf. class_labels [B or
        1, label_dim] are one-hot; a row of zeros, like None, stands for no class. With
        return_variance, (D, F_var): also the outputs of F beyond the first C, float32 [B, C, H, W],
        which mean what iDDPM's do (variance_type learned_range).
        """
        x = x.to(torch.float32)
        sigma = self._noise_levels(sigma, x)
        level = Level.of_sigma(sigma)
        z = x if unit else level.a * x
        F = self.model(z.to(self.dtype), self.timestep(sigma.flatten()), return_dict=False,
                       **self._conditions(class_labels, x))[0].to(torch.float32)
        F_x, F_var = F[:, :self.img_channels], F[:, self.img_channels:]
        if self.prediction_type == 'epsilon':
            D_x = (z - level.b * F_x) / level.a
        else:
            D_x = level.denoised(z, F_x) if self.prediction_type == 'v_prediction' else F_x
        if not return_variance:
            return D_x
        if F_var.shape != F_x.shape:
            raise ValueError(f'return_variance needs a network with {2 * self.img_channels} '
                             f'outputs (iDDPM); this one has {F.shape[1]}')
        return D_x, F_var

    def timestep(self, sigma: Tensor) -> Tensor:
        """What F is told of the noise level, in the shape of sigma: the nearest t, int64, or a
        fraction, float32."""
        if self.timesteps == 'nearest':
            return self._nearest.index(sigma)
        levels, level = _log_sigmas(self.schedule, sigma.device), sigma.to(torch.float32).log()
        t = (torch.bucketize(level, levels, right=True) - 1).clamp(0, len(levels) - 2)
        # ∞/∞: at σ = ∞ itself
        share = ((level - levels[t]) / (levels[t + 1] - levels[t])).nan_to_num(nan=1.0)
        return t + share.clamp(0, 1)

    def round_sigma(self, sigma: Tensor | float) -> Tensor:
        """The noise level that F is told in place of sigma, in the dtype and on the device of
        sigma; 0 stays 0."""
        sigma = torch.as_tensor(sigma)
        return self._nearest.nearest(sigma) if self.timesteps == 'nearest' else sigma

    def _noise_levels(self, sigma: Tensor | float, x: Tensor) -> Tensor:
        sigma = torch.as_tensor(sigma, dtype=torch.float32)
        if sigma.numel() not in (1, len(x)):
            raise ValueError(f'sigma has {sigma.numel()} noise levels for {len(x)} images; give '
                             f'one, or one per image')
        check_finite(sigma, self.no_infinity)
        return sigma.to(x.device, non_blocking=x.is_cuda).reshape(-1, 1, 1, 1)

    def _conditions(self, class_labels: Tensor | None, x: Tensor) -> dict[str, Tensor]:
        """The keywords of F for one-hot labels. No class is the last entry of a table that is one
        longer."""
        if not self.label_dim:
            return {}
        if class_labels is None:
            class_labels = x.new_zeros([1, self.label_dim])
        if class_labels.shape[-1] != self.label_dim:
            raise ValueError(f'class_labels has shape {list(class_labels.shape)}; this network '
                             f'takes one-hot vectors [batch, {self.label_dim}]')
        labels = class_labels.to(x.device).reshape(-1, self.label_dim).expand(len(x), -1)
        index = torch.where(labels.any(dim=1), labels.argmax(dim=1), self.label_dim)
        if self.embeddings is None:
            return {'class_labels': index}
        return {'encoder_hidden_states': self.embeddings[index]}


@functools.lru_cache(maxsize=16)
def _log_sigmas(schedule: DiscreteSchedule, device: torch.device) -> Tensor:
    """ln σ_t, [T] float32, kept on the device."""
    return schedule.sigma.log().to(device, torch.float32)


def is_diffusers(path: str | os.PathLike[str]) -> bool:
    """Whether this is a folder as diffusers writes them: a pipeline, or a model of its own."""
    return any((Path(path) / name).is_file() for name in ('model_index.json', 'config.json'))


def read_diffusers(folder: str | os.PathLike[str], weights: str | None = None,
                   embeddings: str | os.PathLike[str] | None = None, null_class: int | None = None,
                   timesteps: str = 'nearest') -> DiffusersDenoiser:
    """The denoiser in a folder of diffusers, in evaluation mode on the CPU, its weights in float32.

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
    timesteps    'nearest' or 'interpolated', see DiffusersDenoiser

    What else the scheduler says of its sampling (clip_sample, thresholding, set_alpha_to_one,
    steps_offset, timestep_spacing) is no part of a denoiser and is ignored. Raises
    FileNotFoundError, or ValueError in one line that names the file.
    """
    if timesteps not in TIMESTEPS:
        raise ValueError(f'timesteps must be one of {", ".join(TIMESTEPS)}, not {timesteps!r}')
    unet, scheduler = _parts(Path(folder))
    config_file = unet / 'config.json'
    config = _json(config_file)
    schedule, prediction_type = read_schedule(_json(scheduler), scheduler)
    model = _build(config, config_file)
    options = model.config   # with the defaults of diffusers for what the file leaves out
    channels, resolution = _check_shape(options, config_file)
    if options.get('time_embedding_type') == 'learned' and timesteps == 'interpolated':
        raise ValueError(f'timesteps=interpolated: {config_file} has learned timesteps, which know '
                         f'no fractions')
    _load(model, unet, weights)
    if type(model).__name__ == 'UNet2DModel':
        if embeddings is not None:
            raise ValueError(f'embeddings={embeddings} would have no effect: {config_file} is a '
                             f'UNet2DModel, which has no cross-attention')
        table, label_dim = None, _number_classes(model, null_class, config_file)
        lacks_null = '--null-class' if label_dim and null_class is None else ''
    else:
        table, has_negative = _read_embeddings(embeddings, null_class, options, config_file)
        label_dim = len(table) - 1
        lacks_null = '' if has_negative else 'the array `negative` in the file of --embeddings'
    net = DiffusersDenoiser(model, schedule, prediction_type, resolution, channels, label_dim,
                            table, timesteps, lacks_null)
    return net.eval().requires_grad_(False)


def read_schedule(config: dict[str, Any], path: Path) -> tuple[DiscreteSchedule, str]:
    """The noise levels, and the prediction_type, that the configuration of one of diffusers'
    schedulers tells.

    β_t are trained_betas, or by beta_schedule: linear, scaled_linear (Stable Diffusion),
    squaredcos_cap_v2 (cosine). With rescale_betas_zero_snr Algorithm 1 of Lin et al. 2023 follows,
    also for squaredcos_cap_v2 with its β ≤ 0.999. diffusers computes all of this in float32, off by
    up to 4e-5 of ᾱ_t; its Euler and DPM-Solver put 2⁻²⁴ in the place of ᾱ_T = 0, where the network
    was trained on 0.
    """
    if config.get('beta_schedule') is None and config.get('trained_betas') is None:
        raise ValueError(f'{path}: {shown(str(config.get("_class_name")), 60)} has no betas; '
                         f'networks of other kinds than DDPM (VE, EDM, flow matching) are not '
                         f'supported')
    # the only one when it had no name yet
    prediction_type = config.get('prediction_type', 'epsilon')
    if prediction_type not in PREDICTIONS:
        raise ValueError(f'{path}: prediction_type is {shown(repr(prediction_type), 60)}, not one '
                         f'of {", ".join(PREDICTIONS)}')
    T = config.get('num_train_timesteps')
    if type(T) is not int or not 2 <= T <= MAX_TIMESTEPS:
        raise ValueError(f'{path}: num_train_timesteps is {shown(repr(T), 60)}, not a whole number '
                         f'from 2 to {MAX_TIMESTEPS}')
    try:
        schedule = _schedule(config, T)
        if not bool((schedule.log_alpha_bar.diff() < 0).all()):
            raise ValueError('its noise levels do not rise')
    except ValueError as error:
        raise ValueError(f'{path}: {error}') from None
    return schedule, prediction_type


def _schedule(config: dict[str, Any], T: int) -> DiscreteSchedule:
    name, trained = config.get('beta_schedule'), config.get('trained_betas')
    zero_terminal_snr = bool(config.get('rescale_betas_zero_snr'))
    if trained is not None:
        if not isinstance(trained, list) or len(trained) != T or not all(isinstance(beta, float)
                                                                         for beta in trained):
            raise ValueError(f'trained_betas is not a list of {T} numbers')
        return GivenBetas(tuple(trained), zero_terminal_snr)
    if name == 'squaredcos_cap_v2':
        cosine = CosineBetas(T=T)
        return GivenBetas(tuple(cosine.betas.tolist()), True) if zero_terminal_snr else cosine
    if name not in tuple(LINEAR):   # it may be of any kind
        raise ValueError(f'beta_schedule is {shown(repr(name), 60)}, not one of '
                         f'{", ".join(LINEAR)}, squaredcos_cap_v2')
    start, end = (config.get(key) for key in ('beta_start', 'beta_end'))
    if not (isinstance(start, float) and isinstance(end, float) and 0 < start <= end < 1):
        raise ValueError(f'beta_start and beta_end are {shown(repr(start), 60)} and '
                         f'{shown(repr(end), 60)}, not numbers that rise between 0 and 1')
    return LINEAR[name](start, end, T, zero_terminal_snr)


def _parts(folder: Path) -> tuple[Path, Path]:
    """The folder of the U-Net and the configuration of the scheduler."""
    unet, places = folder, [folder / 'scheduler_config.json',
                            folder / 'scheduler' / 'scheduler_config.json',
                            folder.parent / 'scheduler' / 'scheduler_config.json']
    index = folder / 'model_index.json'
    if index.is_file():
        parts = [name for name, value in _json(index).items() if isinstance(value, list)]
        if 'unet' not in parts:
            raise ValueError(f'{index}: this pipeline has no unet; it has '
                             f'{shown(", ".join(parts), 120)}')
        unet, places = folder / 'unet', places[1:2]
    scheduler = next((place for place in places if place.is_file()), None)
    if scheduler is None:
        raise FileNotFoundError(2, 'the configuration of the scheduler, which tells the noise '
                                   'levels, is missing',
                                str(places[0]))
    return unet, scheduler


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(2, 'this part of a diffusers model is missing', str(path))
    try:
        contents = json.loads(path.read_text(encoding='utf-8'))
    except (ValueError, RecursionError) as error:
        raise ValueError(f'{path} is damaged: {shown(str(error), 200)}') from None
    if not isinstance(contents, dict):
        raise ValueError(f'{path} is damaged: it holds no names and values')
    return contents


def _build(config: dict[str, Any], path: Path) -> Any:  # noqa: ANN401 (a class of diffusers)
    """The U-Net on the device 'meta': no memory is taken yet."""
    name = config.get('_class_name')
    if name not in MODELS:
        raise ValueError(f'{path}: _class_name is {shown(repr(name), 60)}, not '
                         f'{" or ".join(MODELS)}')
    try:
        import diffusers
    except ImportError as error:
        raise ValueError(f'{path.parent} needs diffusers, of the extra diffusers: pip install '
                         f'".[diffusers]", or pip install diffusers') from error
    try:
        with torch.device('meta'):
            return getattr(diffusers, name).from_config(config)
    except (ValueError, TypeError, ArithmeticError, RuntimeError, LookupError,
            AttributeError) as error:
        raise ValueError(
            f'{path}: its arguments do not make a network: {shown(str(error), 300)}') from None


def _check_shape(config: Any, path: Path) -> tuple[int, int]:  # noqa: ANN401
    """(channels, resolution) of the images; ValueError for what a plain denoiser of images cannot
    be."""
    channels, outputs, size = config.in_channels, config.out_channels, config.sample_size
    if outputs not in (channels, 2 * channels):
        raise ValueError(f'{path}: it takes {channels} channels and returns {outputs}; a network '
                         f'that takes more than the noisy image (inpainting, upscaling) is not '
                         f'supported')
    if isinstance(size, list | tuple) and len(size) == 2 and size[0] == size[1]:
        size = size[0]
    if type(size) is not int or size < 1:
        raise ValueError(f'{path}: sample_size is {shown(repr(size), 60)}, not the width of a '
                         f'square image')
    if config.get('time_embedding_type') == 'fourier':
        raise ValueError(f'{path}: time_embedding_type is fourier, of VE networks, which are not '
                         f'supported')
    return channels, size


def _load(model: Any, folder: Path, variant: str | None) -> None:  # noqa: ANN401
    """Give the model its tensors, float32; ValueError unless they are all of its tensors."""
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
    """The file with the weights, or with the list of such files, and all tensors."""
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
    raise FileNotFoundError(2, 'the weights of the model are missing',
                            str(folder / f'{STEM}{variant}.safetensors'))


def _read_tensors(path: Path) -> dict[str, Tensor]:
    tensors = load_tensors(path)[0] if is_safetensors(path) else read_file(path, TENSORS,
                                                                           'state dict')
    if not isinstance(tensors, dict) or not all(isinstance(name, str) and isinstance(tensor, Tensor)
                                                for name, tensor in tensors.items()):
        raise ValueError(f'{path} is not a state dict')
    return tensors


def _number_classes(model: Any, null_class: int | None, path: Path) -> int:  # noqa: ANN401
    """How many labels there are; the embedding of no label becomes the last one."""
    config = model.config
    if config.class_embed_type is not None:
        raise ValueError(f'{path}: class_embed_type is {shown(repr(config.class_embed_type), 60)}; '
                         f'only classes that are numbered (null) are supported')
    count = config.num_class_embeds or 0
    if null_class is not None and not 0 <= null_class < count:
        there = f'the classes 0 to {count - 1}' if count else 'no classes'
        raise ValueError(f'null_class={null_class}: {path} has {there}')
    if not count:
        return 0
    weight = model.class_embedding.weight.detach()
    labels = [index for index in range(count) if index != null_class]
    none = torch.zeros_like(weight[:1]) if null_class is None else weight[null_class:null_class + 1]
    model.class_embedding = nn.Embedding.from_pretrained(torch.cat([weight[labels], none]))
    return len(labels)


def _read_embeddings(path: str | os.PathLike[str] | None, null_class: int | None,
                     config: Any,  # noqa: ANN401
                     config_file: Path) -> tuple[Tensor, bool]:
    """[N + 1, tokens, dim] float32, those of the file and the one that stands for none; whether the
    file has it too."""
    if null_class is not None:
        raise ValueError(f'null_class={null_class} would have no effect: {config_file} is a '
                         f'UNet2DConditionModel, whose labels are embeddings')
    for key in ('class_embed_type', 'num_class_embeds'):
        if config[key] is not None:
            raise ValueError(f'{config_file}: {key} beside cross-attention is not supported')
    if config.addition_embed_type not in (None, 'text') or config.encoder_hid_dim_type not in (None,
                                                                                               'text_proj'):
        raise ValueError(f'{config_file}: a network that takes more than the embeddings of a text '
                         '(addition_embed_type, encoder_hid_dim_type) is not supported')
    dim = config.encoder_hid_dim or config.cross_attention_dim
    if path is None:
        raise ValueError(f'{config_file} is a UNet2DConditionModel, which needs embeddings: a file '
                         f'.npy, .npz or .safetensors with numbers [N, tokens, {dim}]')
    found = _arrays(Path(path))
    embeddings = found.get('embeddings')
    if embeddings is None or embeddings.ndim != 3 or embeddings.shape[
        2] != dim or not embeddings.numel():
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
    return torch.cat([embeddings,
                      negative.reshape(1, *shape)]).to(torch.float32), 'negative' in found


def _arrays(path: Path) -> dict[str, Tensor]:
    """The arrays of a file by their names; that of a .npy file is `embeddings`."""
    if is_safetensors(path):
        return load_tensors(path)[0]
    if not path.is_file():
        raise FileNotFoundError(2, 'there is no such file of embeddings', str(path))
    try:
        loaded = np.load(path, allow_pickle=False)
        arrays = {'embeddings': loaded} if isinstance(loaded, np.ndarray) else dict(loaded)
        return {name: torch.from_numpy(array.astype(np.float32)) for name, array in arrays.items()}
    except (ValueError, TypeError, EOFError, OSError) as error:
        raise ValueError(f'{path} is no file of embeddings: {shown(str(error), 200)}') from None
