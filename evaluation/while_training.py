"""Judging while training: the averaged network at intervals, and the best of its snapshots."""

import contextlib
import hashlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from evaluation.generated import GeneratedImages
from evaluation.images import open_reference
from limpid.denoiser import Denoiser
from limpid.sampling import plan
from metrics.definitions import METRICS, check_metrics, higher_is_better, names_of
from metrics.detectors import main_tap
from metrics.judge import Judge, Result
from metrics.one_pass import Stopped
from torch_utils import distributed
from training.config import TrainConfig, due
from training.state import TrainState
from training.stats_file import nimg_of, read_statistics


@dataclass(frozen=True)
class EvalConfig:
    """The settings by which a network is judged while it trains.

    Its images of the seeds 0 ... num - 1 are compared with real ones.

    interval_nimg   images of training between two evaluations; the end of a run is judged too
    ref, metrics, detector, allow_mismatch   as in Judge; the first metric chooses the best snapshot
    num_steps       steps of the deterministic sampler
    batch           images at a time, per device

    Raises ValueError for an unknown metric, and for a first metric of which more is better. None of
    this is part of the identity of a run: a continuing command may add it or change it.
    """
    interval_nimg: int
    ref: str
    metrics: tuple[str, ...] = ('fid',)
    num: int = 50_000
    detector: str = 'inception'
    num_steps: int = 18
    allow_mismatch: bool = False
    batch: int = 64

    def __post_init__(self) -> None:
        first, *_ = check_metrics(self.metrics)
        distances = [name for name in METRICS if not higher_is_better(METRICS[name].names[0])]
        if first not in distances:
            raise ValueError(f'--metrics={",".join(self.metrics)}: the first chooses the best '
                             f'snapshot, by its lowest number; put one of {", ".join(distances)} '
                             f'before {first}')

    @property
    def names(self) -> list[str]:
        """The names of the numbers."""
        return [name for metric in self.metrics
                for name in names_of(metric, main_tap(self.detector))]


class WhileTraining:
    """A judge of the networks of a run; reference and detectors are loaded once.

    `net` is like the networks to come. Collective: every rank makes one and calls it. Raises
    ValueError, on all ranks, for settings that do not fit together.
    """

    def __init__(self, config: EvalConfig, net: Denoiser, device: torch.device) -> None:
        self.config, self.device = config, device
        self.plan = plan(net, num_steps=config.num_steps)
        with without_a_trace(device):
            self.judge = Judge(open_reference(config.ref), config.metrics, device=device,
                               detector=config.detector, batch=config.batch,
                               allow_mismatch=config.allow_mismatch)
            reference = self.judge.reference()
            with distributed.errors_on_all():
                if reference is not None:
                    self.judge.notes(self._images(net, lambda: False), reference)
        # the settings that numbers must have in common to be compared
        self.protocol = {'ref': config.ref, 'num_images': config.num, 'detector': config.detector,
                         'num_steps': config.num_steps, 'origin': self.judge.origin()}

    def is_missing(self, run_dir: Path, nimg: int) -> bool:
        """Return whether stats.jsonl has a line of `nimg`, but without these numbers."""
        lines = [line for line in read_statistics(run_dir / 'stats.jsonl') if nimg_of(line) == nimg]
        return any(line.get('evaluation') != self.protocol
                   or any(f'Metrics/{name}' not in line for name in self.config.names)
                   for line in lines)

    def is_due(self, state: TrainState, config: TrainConfig, run_dir: Path) -> bool:
        """Return whether the averaged network is due to be judged and has not been; collective."""
        at_end = state.nimg >= config.total_nimg
        at_interval = due(state.nimg, config.batch_size, self.config.interval_nimg)
        if state.nimg == 0 or not (at_end or at_interval):
            return False
        missing = distributed.get_rank() == 0 and self.is_missing(run_dir, state.nimg)
        return bool(distributed.gather_objects(missing)[0])

    def __call__(self, net: Denoiser, run_dir: Path,
                 stopping: Callable[[], bool]) -> Result | Stopped | None:
        """Judge a network; the result is on rank 0, None on the others.

        `stopping` is called before each batch of images; if it returns true on any rank, the result
        is Stopped on all of them. Progress is kept in a hidden folder of the run until there are
        numbers. Raises ValueError, on all ranks, for images that are not finite.
        """
        images = self._images(net, stopping)
        told = repr((images.fingerprint(), self.config))
        folder = run_dir / f'.evaluation-{hashlib.sha256(told.encode()).hexdigest()[:16]}'
        if distributed.get_rank() == 0:
            # Remove the progress of evaluations that will not be continued.
            for other in set(run_dir.glob('.evaluation-*')) - {folder}:
                shutil.rmtree(other, ignore_errors=True)
        with without_a_trace(self.device):
            result = self.judge(images, folder, title='evaluation')
        if isinstance(result, Stopped):
            return result
        shutil.rmtree(folder, ignore_errors=True)
        return result

    @property
    def names(self) -> list[str]:
        """The names of the numbers; the first chooses the best snapshot."""
        return self.config.names

    @property
    def num_images(self) -> int:
        """The number of images that are generated."""
        return self.config.num

    def numbers(self, net: Denoiser, run_dir: Path,
                stopping: Callable[[], bool]) -> dict[str, float] | None:
        """Return the numbers of a network by name, on rank 0; {} on the others, None if stopped."""
        result = self(net, run_dir, stopping)
        if isinstance(result, Stopped):
            return None
        return {} if result is None else result.scores

    def _images(self, net: Denoiser, stopping: Callable[[], bool]) -> GeneratedImages:
        return GeneratedImages(net, self.plan, range(self.config.num), device=self.device,
                               batch=self.config.batch, source='the averaged network',
                               stopping=stopping)


@contextlib.contextmanager
def without_a_trace(device: torch.device) -> Iterator[None]:
    """Run a block without gradients that leaves no trace in the training around it.

    The states of the random generators, and the settings of cuDNN and autograd, are restored.
    """
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark, cudnn.deterministic
    cudnn.benchmark, cudnn.deterministic = False, True
    devices = [device] if device.type == 'cuda' else []
    try:
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            yield
    finally:
        cudnn.benchmark, cudnn.deterministic = before
