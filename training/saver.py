"""Saving: the snapshots, states and pictures of a run."""

import time
from pathlib import Path

import torch

from limpid.denoiser import Denoiser
from torch_utils import distributed
from torch_utils.grids import save_grid
from training.clock import Clock
from training.config import TrainConfig
from training.dataset import ImageFolderDataset
from training.loggers import Loggers
from training.pictures import generate_grid, grid_labels, names_in, real_images
from training.run_folder import fresh, prune_states, thin_snapshots
from training.sharding import whole_network, whole_state
from training.state import TrainState, save_snapshot, save_state


class Saver:
    """A writer of the files of a run; every rank calls it, and rank 0 writes.

    saved   the image counter of the last training state; there is never a state of 0
    """

    def __init__(self, config: TrainConfig, state: TrainState, run_dir: Path,
                 device: torch.device, dataset: ImageFolderDataset, clock: Clock,
                 loggers: Loggers | None = None) -> None:
        self.config, self.state, self.run_dir, self.device = config, state, run_dir, device
        self.dataset, self.clock, self.loggers = dataset, clock, loggers or Loggers()
        self.fingerprint = state.fingerprint or dataset.contents()
        for net in (state.net, *(average.net for average in state.averages.values())):
            net.known_labels, net.standardization = dataset.known_labels, dataset.standardization
        self.is_first = distributed.get_rank() == 0
        self.saved = state.nimg or -1   # the state that is continued has been saved already

    def real_images(self) -> None:
        """Write a picture of training images, one row per class, unless it exists; collective."""
        path = self.run_dir / 'reals.png'
        with distributed.errors_on_all():
            if self.is_first and not path.exists():
                labels, columns = grid_labels(self.dataset)
                save_grid(real_images(self.dataset, labels), fresh(path), columns,
                          names_in(self.dataset, labels))

    def snapshot(self) -> None:
        """Write the averaged network and, once it was trained, a picture from it; collective."""
        with self.clock.pausing_training(is_save=True):
            state = self._whole_state()
            if self.is_first:
                written = save_snapshot(state, self.config, self.run_dir)
                thin_snapshots(self.run_dir, self.config.keep_snapshots, written)
            if self.config.pictures and self.state.nimg > 0:
                self._picture()

    def _whole_state(self) -> TrainState:
        return whole_state(self.state, self.config) if self.config.shard else self.state

    def drawing_network(self) -> Denoiser:
        """Return the averaged network, whole where it is divided among the ranks; collective."""
        net = self.state.ema.net
        return whole_network(net, self.config, self.device) if self.config.shard else net

    def _picture(self) -> None:
        labels, columns = grid_labels(self.dataset, self.config.pictures)
        images = generate_grid(self.drawing_network(), labels, self.device,
                               self.config.picture_steps)
        if self.is_first and images is not None:
            path = fresh(self.run_dir / f'fakes{self.state.nimg // 1000:06d}.png')
            save_grid(images, path, columns, names_in(self.dataset, labels))
            self.loggers.picture(self.state.nimg, path)
        elif self.is_first:
            distributed.print0('Warning: no picture of images, since they came out as numbers '
                               'that are not finite')

    def training_state(self, alone: bool = False) -> None:
        """Write all that is needed to continue; collective, unless `alone`.

        A rank that is alone, since the others wait for it in vain, writes the state itself: weights
        and moments are the same on all ranks. What the others have counted since the last tick is
        missing from it.
        """
        if alone and self.config.shard:
            return   # it has only a part
        mine = self.state.stats.state_dict()
        stats = [mine] if alone else distributed.gather_objects(mine)
        self.state.seconds = self.clock.seconds()
        with self.clock.pausing_training(is_save=True):
            state = self._whole_state()
            if self.is_first or alone:
                written = save_state(state, self.config, self.run_dir, self.fingerprint,
                                     stats)
                prune_states(self.run_dir, self.config.keep_states, written)
        self.saved, self.clock.last_state = self.state.nimg, time.monotonic()

    def is_late(self) -> bool:
        """Return whether the last state is older than it is to be, by the clock of this rank."""
        longest = self.config.state_seconds
        return longest is not None and time.monotonic() - self.clock.last_state >= longest

    def last_state(self, alone: bool = False) -> None:
        """Write the present training state, unless it has been written; collective or `alone`."""
        if self.state.nimg not in (0, self.saved):
            self.training_state(alone)

    def rewind(self) -> None:
        """Note that the run went back to a state that has been written."""
        self.saved = self.state.nimg
