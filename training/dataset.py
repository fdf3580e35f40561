"""The data set that a run is trained on. Published programs look for its class here."""

from dataclasses import dataclass

from data.dataset import ImageFolderDataset
from data.loader import batches, order_index

__all__ = ['DataConfig', 'ImageFolderDataset', 'batches', 'order_index']


@dataclass(frozen=True)
class DataConfig:
    """The data set to train on, and the way it is read.

    `cache` is ram (one copy of the decoded images per rank), mmap (one per machine) or off, as in
    ImageFolderDataset. `workers` is the number of processes that read ahead (0: the training
    process reads itself, as it does with ram).
    `on_bad_image` is 'stop' or 'skip', as in ImageFolderDataset.
    """
    path: str
    use_labels: bool = False
    xflip: bool = False
    max_size: int | None = None
    random_seed: int = 0
    cache: str = 'ram'
    workers: int = 1
    on_bad_image: str = 'stop'   # or 'skip'

    def open(self) -> ImageFolderDataset:
        """Open the data set; a `with` statement closes it."""
        return ImageFolderDataset(
            self.path, use_labels=self.use_labels, xflip=self.xflip, max_size=self.max_size,
            random_seed=self.random_seed, cache=self.cache, on_bad_image=self.on_bad_image)
