"""Images that a network generates, as the metrics take them: without a file in between.

    judge(GeneratedImages(net, plan, seeds=range(50000), device=device))
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from limpid.denoiser import Counting, Network, traits
from limpid.guidance import Guided
from limpid.ideal import IdealDenoiser
from limpid.sampling import Plan
from limpid.seeds import generate
from limpid.values import is_images
from options.batches import limit_of
from options.network import class_numbers
from torch_utils.digest import digest_of_tensors


class GeneratedImages:
    """The images that a network generates from seeds: the pixels that generate.py would write.

    seeds    one seed for each image
    classes  numbers or names of classes, repeated over the seeds as in generate.py; None: each seed
             draws its own label
    rng      the type of device on which random numbers are drawn; None: `device`
    batch    the largest number of images at a time, or 'auto' (options.batches; collective)
    source   the name of the network, for reports
    stopping a function called before each range of positions; if it returns true, the images end
    """
    lossy = in_subfolders = False

    def __init__(self, net: Network, plan: Plan, seeds: Sequence[int], *, device: torch.device,
                 classes: Sequence[int | str] | None = None, rng: str | None = None,
                 batch: int | str = 64, source: str = 'a network',
                 stopping: Callable[[], bool] = lambda: False) -> None:
        self.net, self.plan, self.seeds = net, plan, seeds
        self.classes = class_numbers(classes, traits(net))
        self.device, self.rng, self.source = device, rng, source
        self.limit = limit_of(batch, net, device, len(seeds))
        self.stopping = stopping
        shape = traits(net).image_shape
        assert shape is not None, 'a network that was opened tells the shape of its images'
        self.image_shape = list(shape)
        self.is_array = not is_images(shape[0], traits(net).standardization)

    def __len__(self) -> int:
        return len(self.seeds)

    def fingerprint(self) -> str:
        """Return a digest of all that the images depend on, such as the device of the draws."""
        told: tuple[object, ...] = (
            digest_of(self.net), repr(self.plan), _short(self.seeds), self.classes,
            self.rng or self.device.type, self.image_shape)
        known = traits(self.net).known_labels
        values = traits(self.net).standardization
        told = told if values is None else (*told, values)
        drawn = '' if known is None or self.classes is not None else repr(known)
        return hashlib.sha256((repr(told) + drawn).encode()).hexdigest()

    def batches(self, parts: Sequence[range], device: torch.device) -> Iterator[Tensor]:
        for part in parts:
            if self.stopping():
                return
            made = [images for _, images in self.limit.pieces(part, self._generate)]
            yield torch.cat(made).to(device)

    def _generate(self, positions: Sequence[int]) -> Tensor:
        classes = (
            None
            if self.classes is None
            else [self.classes[i % len(self.classes)] for i in positions]
        )
        return generate(self.net, self.plan, [self.seeds[i] for i in positions], classes,
                        self.device, self.rng)


def digest_of(net: Network) -> str:
    """Return a text that is equal for equal networks.

    It identifies the weights, or the data of an ideal denoiser, and the way they are used.
    """
    if isinstance(net, Counting):
        return digest_of(net.net)
    if isinstance(net, Guided):
        guide = '' if net.guide is None else f' from {digest_of(net.guide)}'
        return f'{net.guidance!r} of {digest_of(net.net)}{guide}'
    if isinstance(net, torch.nn.Module):
        return (f'{type(net).__name__} {getattr(net, "precond", None)!r} '
                f'{getattr(net, "dtype", None)} {digest_of_tensors(net.state_dict())}')
    if not isinstance(net, IdealDenoiser):
        raise ValueError(f'{type(net).__name__} has neither weights nor data to tell it by')
    data = hashlib.sha256(net.images.detach().cpu().contiguous().numpy().tobytes())
    if net.labels is not None:
        data.update(net.labels.detach().cpu().contiguous().numpy().tobytes())
    return f'{type(net).__name__} {data.hexdigest()}'


def _short(seeds: Sequence[int]) -> str:
    """Return a text for the seeds that does not grow with their number."""
    if isinstance(seeds, range):
        return repr(seeds)
    return hashlib.sha256(repr(list(seeds)).encode()).hexdigest()
