"""How a network is built in a checkout of NVlabs/edm, to load a plain state dict of it there."""

import inspect
from typing import Any

from training.networks import PUBLISHED, NetworkConfig

# Those of the published backbones; a network with others, or without squares, is not of these.
BACKBONE = {'augment_dim', 'model_channels', 'channel_mult', 'channel_mult_emb', 'num_blocks',
            'attn_resolutions', 'dropout', 'label_dropout', 'embedding_type', 'channel_mult_noise',
            'encoder_type', 'decoder_type', 'resample_filter'}


def published_arguments(config: NetworkConfig) -> tuple[str, dict[str, Any]] | None:
    """Return the name of the published class of a network, and its arguments by name.

    Arguments with the default of the class are left out, but for those of the backbone. None stands
    for a network that the published classes do not make.
    """
    limits = config.sigma_min, config.sigma_max
    published = PUBLISHED.get(type(config.precond))
    if (published is None or not published.fits(config.precond, limits)
            or not isinstance(config.img_resolution, int) or config.model.keys() - BACKBONE):
        return None
    parameters = inspect.signature(published.cls).parameters
    given = (config.img_resolution, config.img_channels, config.label_dim, False,
             *published.arguments(config.precond, limits))
    arguments = {name: value for name, value in zip(parameters, given, strict=False)
                 if value != parameters[name].default}
    name = getattr(published.cls, '__name__', '')
    return name, {**arguments, 'model_type': config.model_type, **config.model}


def call(name: str, arguments: dict[str, Any]) -> str:
    """Return the call that builds a network, in Python."""
    return f'{name}({", ".join(f"{key}={value!r}" for key, value in arguments.items())})'
