"""Networks made faster without being changed: memory layout, weights cast once, compiler, graphs.

    hasten(net, device, compiled=True)               # for training, in place
    net = hastened_for_sampling(net, compiled=True)  # a copy that only draws images

State dicts, checkpoints and averages stay as they are. Results are those of the plain network but
for the rounding of fused operations; tests/training/test_compiled.py has the bounds.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from limpid.denoiser import Denoiser, Network, Traits, traits
from training.networks import Conv2d, GroupNorm, UNetBlock

# A U-Net has so many kinds of blocks: by channels, resolution, attention, and up or down.
KINDS_OF_BLOCKS = 128


def compile_blocks(net: nn.Module, backend: str = 'inductor') -> None:
    """Let torch.compile translate every residual block of `net` when it is first called, in place.

    Blocks of one kind share their translation, which makes the start-up several times shorter than
    that of the whole network as one piece; there is next to nothing to be fused across blocks.
    Nothing is left to the interpreter within a block: what cannot be translated is an error.
    """
    options: dict[str, Any] | None = None
    if backend == 'inductor' and next(net.parameters()).device.type == 'cpu':
        # By itself it turns the convolutions of each block to channels-last, and features and
        # gradients of weights to and fro: a tenth of a training step of the CIFAR-10 network.
        options = {'layout_optimization': False}
    settings: Any = torch._dynamo.config
    # torch 2.6 has the second name
    name = 'recompile_limit' if hasattr(settings, 'recompile_limit') else 'cache_size_limit'
    setattr(settings, name, max(getattr(settings, name), KINDS_OF_BLOCKS))
    for module in _outermost(net, (UNetBlock, GroupNorm)):
        module.compile(backend=backend, dynamic=False, fullgraph=True, options=options)


def _outermost(net: nn.Module, kinds: tuple[type, ...]) -> Iterator[nn.Module]:
    """Yield the modules of these kinds that do not lie within another one of them."""
    for module in net.children():
        if isinstance(module, kinds):
            yield module
        else:
            yield from _outermost(module, kinds)


def prefers_channels_last(precision: torch.dtype, device: torch.device, compiled: bool) -> bool:
    """Return whether a network on `device` is faster with the channels of a pixel side by side.

    Convolutions on matrix units are: those of NVIDIA in all but true float32, and those of CPUs in
    half precision. Norms in that layout are fast with the compiler alone on a GPU, and without it
    alone on a CPU.
    """
    if device.type == 'cuda':
        return compiled and (precision != torch.float32 or torch.backends.cudnn.allow_tf32)
    return device.type == 'cpu' and not compiled and precision != torch.float32


def set_tf32(allowed: bool) -> None:
    """Choose whether float32 products on a GPU may round their factors to TF32, 11 bits."""
    torch.backends.cudnn.allow_tf32 = allowed
    torch.backends.cuda.matmul.allow_tf32 = allowed


def hasten(net: Denoiser, device: torch.device, compiled: bool) -> None:
    """Give a network that is trained the faster layout, and compile its blocks if so, in place."""
    _set_layout(net, device, compiled)
    if compiled:
        compile_blocks(net.model)


def checkpoint_blocks(net: Denoiser) -> None:
    """Let every residual block keep its inputs alone, and compute the rest anew when it is needed.

    That is in the backward pass (Chen et al. 2016). Masks of dropout are drawn again from the same
    state of the generator, so that gradients keep their bits.
    """
    for module in net.modules():
        if isinstance(module, UNetBlock):
            module.checkpointing = True


def _set_layout(net: Denoiser, device: torch.device, compiled: bool) -> None:
    """Let the network hold its features in the layout that is faster on `device`, in place."""
    channels_last = prefers_channels_last(net.dtype, device, compiled)
    net.model.channels_last = channels_last  # type: ignore[assignment]  # not a module


@torch.no_grad()
def cast_weights(net: Denoiser) -> None:
    """Cast the weights of convolutions to the network's precision for good, in place.

    A forward pass casts them, too, to the same values; this saves doing so at every call. The
    network is of no use for training after it.
    """
    layout = torch.channels_last if net.model.channels_last else torch.contiguous_format
    for module in net.model.modules():
        if isinstance(module, Conv2d) and module.weight is not None:
            module.weight.data = module.weight.to(net.dtype, memory_format=layout)
            if module.bias is not None:
                module.bias.data = module.bias.to(net.dtype)


def hastened_for_sampling(net: Denoiser, compiled: bool) -> Network:
    """Return a copy of `net` that draws images faster: with `compiled`, by compiler and graph.

    The network must lie on its device, and have its precision, already.
    """
    device = next(net.parameters()).device
    fast = copy.deepcopy(net).eval().requires_grad_(False)
    if fast.use_fp16 and device.type == 'cpu':
        fast.dtype = torch.float32   # as Denoiser does
    _set_layout(fast, device, compiled)
    cast_weights(fast)
    if not compiled:
        return fast
    compile_blocks(fast.model)
    return Graphed(fast) if device.type == 'cuda' else fast


class Recorder:
    """A function of tensors on a GPU, recorded for each of their shapes and then replayed.

    A replay starts hundreds of kernels with one call (CUDA graphs), so that small networks and
    batches do not wait for the interpreter. It gives the same bits as the function itself, which
    must neither look at values nor leave the GPU.
    """

    def __init__(self, work: Callable[..., Any]) -> None:
        self.work = work
        self.recorded: dict[Any, tuple[torch.cuda.CUDAGraph, dict[str, Tensor], Any]] = {}

    def __contains__(self, given: Mapping[str, Any]) -> bool:
        return _signature(given) in self.recorded

    def record(self, given: Mapping[str, Any]) -> None:
        """Record the work for inputs like these, after doing it three times.

        That is when algorithms are chosen and code is compiled.
        """
        inputs = {name: value.clone() if isinstance(value, Tensor) else value
                  for name, value in given.items()}
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self.work(**inputs)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            answer = self.work(**inputs)
        self.recorded[_signature(given)] = graph, inputs, answer

    def replay(self, given: Mapping[str, Any]) -> Any:  # noqa: ANN401 (what the work answers)
        """Return the answer, which the next replay overwrites."""
        graph, inputs, answer = self.recorded[_signature(given)]
        for name, value in given.items():
            if isinstance(value, Tensor):
                inputs[name].copy_(value, non_blocking=True)
        graph.replay()
        return answer


def _signature(given: Mapping[str, Any]) -> tuple[object, ...]:
    """Return what a recording depends on: shapes and dtypes of tensors, and all other values."""
    return tuple((name, value.shape, value.dtype) if isinstance(value, Tensor) else (name, value)
                 for name, value in given.items())


class Graphed:
    """A network on a GPU whose evaluations are recorded and replayed."""

    def __init__(self, net: Denoiser) -> None:
        self.net, self.recorder = net, Recorder(net)

    @property
    def traits(self) -> Traits:
        """Those of the network."""
        return traits(self.net)

    @torch.no_grad()
    def __call__(self, x: Tensor, sigma: Tensor, class_labels: Tensor | None = None,
                 **conditions: Any) -> Any:  # noqa: ANN401 (what the network takes and answers)
        """Return what the network answers: D, or (D, F_var). All tensors lie on the GPU."""
        given = {'x': x, 'sigma': sigma, 'class_labels': class_labels, **conditions}
        if given not in self.recorder:
            self.recorder.record(given)
        answer = self.recorder.replay(given)
        if isinstance(answer, tuple):
            return tuple(part.clone() for part in answer)
        return answer.clone()
