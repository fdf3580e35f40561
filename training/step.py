"""One step of training."""

import contextlib
import inspect
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from limpid.loss import DenoisingLoss, Loss, VelocityLoss
from limpid.values import to_network
from torch_utils import distributed
from torch_utils.random import ALL, generator_at, normal_at, seed_of
from torch_utils.tensors import local, whole
from training.augment import Augmentation, AugmentPipe
from training.compiled import Recorder, checkpoint_blocks, hasten
from training.config import TrainConfig, learning_rate
from training.course import FirstStep, first_step
from training.ema import HalfLife
from training.state import TrainState
from training.stats_file import SIGMA_RANGES, place_of

# The purposes of the random streams of a step. They are part of the seed: never renumber them.
WEIGHTS, NOISE_LEVEL, NOISE, AUGMENT, LABEL_DROPOUT, DROPOUT, VALIDATION = range(7)


@dataclass(frozen=True)
class Randomness:
    """All random numbers of a step, except those of dropout, for some rows of the batch."""
    u: Tensor                # [rows] float64 on the CPU: the noise level's quantile
    noise: Tensor            # [rows, C, H, W] on the device
    keep_labels: Tensor      # [rows, 1] on the CPU: 0 where the label is dropped
    augmentation: Augmentation | None


def draw(config: TrainConfig, pipe: AugmentPipe | None, nimg: int, image_shape: list[int],
         device: torch.device, rows: slice = ALL) -> Randomness:
    """Return the randomness of the step at `nimg`, for these rows of the batch.

    It is a function of (seed, nimg), whatever the number of ranks and their rows.
    """
    batch = config.batch_size

    def generator(purpose: int) -> torch.Generator:
        return generator_at(config.seed, nimg, purpose)

    u = torch.rand([batch], dtype=torch.float64, generator=generator(NOISE_LEVEL)).clamp(min=2**-53)
    noise = normal_at([batch, *image_shape], config.seed, nimg, NOISE, device=device,
                      rows=rows)
    keep = torch.rand([batch, 1], generator=generator(LABEL_DROPOUT)) >= config.label_dropout
    augmentation = None
    if pipe is not None:
        augmentation = pipe.draw(batch, image_shape, generator(AUGMENT))[rows]
    return Randomness(u[rows], noise, keep[rows].to(torch.float32), augmentation)


def range_of(loss: Loss, u: Tensor) -> Tensor:
    """Return the place in SIGMA_RANGES of the noise levels at quantiles u [B]; int64 [B]."""
    return place_of(loss.noise_distribution.quantile(u))


@dataclass(frozen=True)
class Given:
    """A noise distribution whose levels are drawn elsewhere: its u is σ itself."""

    def quantile(self, u: Tensor) -> Tensor:
        return u


def norm_of(gradients: list[Tensor]) -> Tensor:
    """Return the norm of all gradients together, also of those that are divided among ranks."""
    return whole(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients))))


def settle_layouts(net: nn.Module) -> None:
    """Let gradients of 1x1 convolutions have the strides of their weights.

    A kernel of one pixel is in both memory layouts at once, and autograd takes the strides of the
    features, which may be the other's. DistributedDataParallel warns of such gradients.
    """
    for parameter in net.parameters():
        if parameter.ndim == 4 and parameter.shape[2:] == (1, 1) and parameter.requires_grad:
            parameter.register_hook(lambda grad: grad.flatten(1)[:, :, None, None])


class StepFunction:
    """One training step with Adam on this rank's share of a batch (Section 5)."""

    def __init__(self, config: TrainConfig, state: TrainState, device: torch.device) -> None:
        self.config, self.state, self.device = config, state, device
        self.pipe = None if config.augment is None else AugmentPipe.from_config(config.augment)
        self.rank, self.world_size = distributed.get_rank(), distributed.get_world_size()
        # of the micro-batches of this step so far: losses, and where their images' levels are in
        # SIGMA_RANGES
        self.losses: list[tuple[Tensor, Tensor]] = []
        # On rank 0, until its verdict is fetched.
        self.course: FirstStep | None = None
        if state.nimg == 0 and state.transferred is None and self.rank == 0:
            self.course = first_step(config)
        self.net: Any = state.net
        self.loss: Loss = config.loss
        self.recorder: Recorder | None = None
        if config.checkpointing:
            checkpoint_blocks(state.net)
        hasten(state.net, device, config.compile)
        # CUDA graphs hold the forward and backward pass of the losses that stay on the GPU.
        if (config.compile and device.type == 'cuda' and self.world_size == 1
                and not config.checkpointing
                and isinstance(config.loss, DenoisingLoss | VelocityLoss)):
            self.loss = replace(config.loss, noise_distribution=Given())
            self.recorder = Recorder(self._gradient)
        if self.world_size > 1 and not config.shard:
            settle_layouts(state.net)
            ddp = nn.parallel.DistributedDataParallel
            known = inspect.signature(ddp).parameters   # torch 2.13 has another name for it
            sync = ('forward_sync_buffers' if 'forward_sync_buffers' in known
                    else 'broadcast_buffers')
            options: dict[str, Any] = {sync: False}
            self.net = ddp(state.net, device_ids=[device] if device.type == 'cuda' else None,
                           gradient_as_bucket_view=True, **options)

    def _forget_gradients(self) -> None:
        """Start from gradients of 0, which a recording keeps in one place."""
        if self.recorder is None:
            self.state.optimizer.zero_grad(set_to_none=True)
            return
        for parameter in self.state.net.parameters():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self.state.optimizer.zero_grad(set_to_none=False)

    def __call__(self, images: Tensor, labels: Tensor) -> None:
        """Take a step on this rank's share of the batch at nimg.

        images uint8 or arrays [b, C, H, W], labels [b, label_dim]
        """
        state, config = self.state, self.config
        share = len(images)
        mine = slice(self.rank * share, (self.rank + 1) * share)
        randomness = draw(config, self.pipe, state.nimg, list(images.shape[1:]), self.device, mine)
        self._forget_gradients()
        self.losses = []
        micro = min(config.batch_gpu or share, share)
        for number, start in enumerate(range(0, share, micro)):
            part = slice(start, min(start + micro, share))
            with self._sync_only_if(part.stop == share):
                self._accumulate(images, labels, randomness, part, number)
        # Up to here the state is as it was before the step, and an error leaves it so.
        state.is_whole = False
        self._update()
        if state.bad_steps == 0:   # the losses of the others would spoil the mean
            for losses, ranges in self.losses:
                state.stats.add('Loss/loss', losses)
                state.stats.add_by_group(tuple(SIGMA_RANGES), losses, ranges)
        state.is_whole = True

    def verdict(self) -> str:
        """Return a line on the loss of the first step, once after it; '' where there is none."""
        course, self.course = self.course, None
        return course.verdict() if course is not None else ''

    def _sync_only_if(self, last: bool) -> contextlib.AbstractContextManager[None]:
        # Sums of divided gradients are divided, too: whole ones would take the memory of a model.
        alone = last or self.world_size == 1 or self.config.shard
        return contextlib.nullcontext() if alone else self.net.no_sync()

    def _accumulate(self, images: Tensor, labels: Tensor, randomness: Randomness,
                    part: slice, number: int) -> None:
        """Add the gradient of a micro-batch: of the rows `part` of this rank's share."""
        config = self.config
        y = to_network(images[part].to(self.device, non_blocking=True),
                       self.state.net.standardization)
        conditions = {}
        if randomness.augmentation is not None:
            augmentation = randomness.augmentation[part]
            y, conditions['augment_labels'] = augmentation.apply(y)
        kept = (labels[part] * randomness.keep_labels[part]).to(self.device, non_blocking=True)
        # DDP averages over ranks; with this factor the gradient is that of the mean over the batch.
        factor = self.state.loss_scale.scale * self.world_size / config.batch_size
        given: dict[str, Any] = {
            'y': y, 'u': randomness.u[part], 'noise': randomness.noise[part],
            'class_labels': kept if config.network.label_dim else None, 'factor': factor,
            **conditions}
        seed = None
        if config.network.model.get('dropout'):
            seed = seed_of(config.seed, self.state.nimg, DROPOUT, self.rank, number)
        if self.recorder is None:
            if seed is not None:
                torch.manual_seed(seed)
            loss = self._gradient(**given)
        else:
            loss = self._replayed(self.recorder, given, seed)
        if self.course is not None:
            self.course.note(randomness.u[part], y, loss)
        self.losses.append((loss, range_of(config.loss, randomness.u[part])
                            .to(self.device, non_blocking=True)))

    def _gradient(self, y: Tensor, u: Tensor, noise: Tensor, class_labels: Tensor | None,
                  factor: float | Tensor, **conditions: Tensor) -> Tensor:
        """Add the gradient of factor · Σ loss to that of the parameters, and return the loss."""
        loss = self.loss(self.net, y, u, noise, class_labels, **conditions)
        torch.autograd.backward(loss.sum() * factor)
        return loss.detach()

    def _replayed(self, recorder: Recorder, given: dict[str, Any], seed: int | None) -> Tensor:
        """Do the work of `_gradient` from a recording; make one first for new shapes."""
        on_device = {
            **given,
            # The levels are computed where they always are: the same bits, and no waiting.
            'u': self.config.loss.noise_distribution.quantile(given['u']).to(torch.float32)
            .to(self.device, non_blocking=True),
            'factor': torch.full([], given['factor'], device=self.device)}
        if on_device not in recorder:
            gradients = [p.grad for p in self.state.net.parameters() if p.grad is not None]
            before = [gradient.clone() for gradient in gradients]
            recorder.record(on_device)
            torch._foreach_copy_(gradients, before)
        if seed is not None:
            torch.manual_seed(seed)
        loss: Tensor = recorder.replay(on_device)
        return loss.clone()   # the next replay overwrites it

    @torch.no_grad()
    def _update(self) -> None:
        """Step with Adam on the gradients.

        They are the same on every rank, and so is everything that depends on them.
        """
        state, config = self.state, self.config
        gradients = [p.grad for p in state.net.parameters() if p.grad is not None]
        norm = norm_of(gradients)
        gradients = [local(gradient) for gradient in gradients]
        state.stats.add('Loss/nonfinite_gradients', (~norm.isfinite()).to(torch.float32))
        finite = bool(norm.isfinite())   # the one place where a step waits for the device
        scale = state.loss_scale.scale
        if finite:
            state.stats.add('Training/gradient_norm', norm / scale)
        state.bad_steps = 0 if finite else state.bad_steps + 1
        state.loss_scale.update(finite)
        if finite or config.nan.policy == 'zero':
            for group in state.optimizer.param_groups:
                group['lr'] = learning_rate(state.nimg, config.optimizer) * state.lr_factor
            if not finite:
                for gradient in gradients:
                    torch.nan_to_num(gradient, nan=0, posinf=1e5, neginf=-1e5, out=gradient)
                norm = norm_of([p.grad for p in state.net.parameters() if p.grad is not None])
            if state.loss_scale.dynamic:   # a static one stays: Adam does not see it
                torch._foreach_div_(gradients, scale)
                norm, scale = norm / scale, 1.0
            if config.optimizer.clip is not None:
                torch._foreach_mul_(gradients,
                                    (config.optimizer.clip * scale / (norm + 1e-12)).clamp(max=1))
            state.optimizer.step()
            for average in config.averages:
                if isinstance(average, HalfLife) and not state.ema_rampup:
                    average = replace(average, rampup_ratio=None)
                state.averages[average.name].update(state.net,
                                                    average.beta(state.nimg, config.batch_size))
        state.nimg += config.batch_size
