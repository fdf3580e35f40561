"""Opening a network by its name: a trained one, or the ideal denoiser of a data set."""

import contextlib
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from checkpoints.diffusers import is_diffusers, read_diffusers
from checkpoints.read import read_network
from data.image_files import ImageFiles
from dnnlib.download import as_fetched, fetch, is_url
from limpid.denoiser import Network
from limpid.ideal import IdealDenoiser
from limpid.values import to_network
from training.dataset import ImageFolderDataset

IDEAL = 'ideal:'


def open_network(spec: str | os.PathLike[str], device: torch.device | str = 'cpu',
                 weights: str | None = None,
                 **options: Any) -> Network:  # noqa: ANN401 (those of read_diffusers)
    """Return a denoiser, called as net(x, sigma, class_labels), on `device`.

    `spec` is one of these:

        out/run/network-snapshot-010000.pkl
            the averaged network of a snapshot, ours or EDM's, or another file that
            checkpoints/read.py knows; nothing in it is executed
        https://example.org/net.pkl
            the same, downloaded once (dnnlib/download.py)
        ideal:datasets/digits-16x16.zip
            the ideal denoiser of a data set (Eq. 57), conditional if the set has classes
        ddpm-cifar10-32
            a folder of diffusers: a pipeline with a U-Net, or a U-Net (checkpoints/diffusers.py)

    `weights` is 'ema', 'ema:NAME' or 'raw' (None: the average if there is one); for a folder of
    diffusers it is the variant. Further `options` (embeddings, null_class, timesteps) are those of
    read_diffusers; None stands for an option that was not given. Raises FileNotFoundError or
    ValueError, in one line that names the file.
    """
    path = os.fspath(spec)
    options = {name: value for name, value in options.items() if value is not None}
    if os.path.isdir(path) and not is_diffusers(path):
        raise ValueError(f'{path} is a folder without model_index.json or config.json, which a '
                         f'folder of diffusers has; of the folder of a run name a file, such as '
                         f'network-best.pkl or network-snapshot-*.pkl')
    if is_diffusers(path):
        return read_diffusers(path, weights, **options).to(device)
    for name, value in options.items():
        raise ValueError(f'{name}={value} would have no effect: {path} is no folder of diffusers')
    if path.startswith(IDEAL):
        if weights is not None:
            raise ValueError(f'weights={weights} would have no effect: {path} has no weights')
        return ideal_denoiser(path[len(IDEAL):], device)
    local = fetch(path) if is_url(path) else Path(path)
    with as_fetched(path, local):
        net, info = read_network(local, weights)
    # Guidance asks how often this network has seen an image without its class.
    told = info['training'] or {}
    net.label_dropout = told.get('label_dropout', getattr(net.model, 'label_dropout', None))
    return net.to(device)


def ideal_denoiser(path: str | os.PathLike[str],
                   device: torch.device | str = 'cpu') -> IdealDenoiser:
    """Return the ideal denoiser of the images in a zip or folder, with its classes if it has any.

    MPS has no float64: for such a device the work is done on the CPU.
    """
    with contextlib.closing(ImageFiles(path)) as files:
        has_labels = files.labels() is not None
    with ImageFolderDataset(path, use_labels=has_labels) as dataset:
        images, labels = dataset.batch(np.arange(len(dataset)))
        onehot, known = dataset.has_onehot_labels, dataset.known_labels
        standardization = dataset.standardization
    if torch.device(device).type == 'mps':
        device = 'cpu'
    pixels = to_network(torch.from_numpy(images).to(device), standardization)
    net = IdealDenoiser(pixels, torch.from_numpy(labels).to(device) if onehot else None)
    net.traits = replace(net.traits, known_labels=known if onehot else None,
                         standardization=standardization)
    return net
