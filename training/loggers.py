"""Programs that follow a run from outside: TensorBoard, and Weights & Biases.

They get what stats.jsonl and the folder of the run have, which stay complete without them. None of
them can stop a run.
"""

import importlib.util
import math
import os
import secrets
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Protocol

from dnnlib.files import atomic_write, read_bounded


class Logger(Protocol):
    """A program that follows a run; `package` is the one that it needs."""
    package: ClassVar[str]

    def __init__(self, run_dir: Path, config: Mapping[str, Any]) -> None:
        """Begin with a run that has these settings, as training_options.json has them."""
        ...

    def goes_on_from(self, nimg: int) -> None:
        """Note that what came after so many images, if anything did, is void."""
        ...

    def numbers(self, nimg: int, numbers: Mapping[str, float]) -> None:
        """Take finite numbers by their names."""
        ...

    def picture(self, nimg: int, path: Path) -> None:
        """Take a picture, a PNG file."""
        ...

    def close(self) -> None:
        """Finish; the run has ended or stopped."""
        ...


class TensorBoard:
    """TensorBoard, in the folder `tensorboard` of the run; its steps are images shown."""
    package: ClassVar[str] = 'tensorboard'

    def __init__(self, run_dir: Path, config: Mapping[str, Any]) -> None:
        self.folder = run_dir / 'tensorboard'
        self.writer: Any = None

    def goes_on_from(self, nimg: int) -> None:
        from torch.utils.tensorboard import SummaryWriter
        self.close()
        self.writer = SummaryWriter(str(self.folder), purge_step=nimg + 1 if nimg else 0)

    def numbers(self, nimg: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, nimg)
        self.writer.flush()

    def picture(self, nimg: int, path: Path) -> None:
        import numpy as np
        import PIL.Image
        pixels = np.asarray(PIL.Image.open(path).convert('RGB'))
        self.writer.add_image('images', pixels, nimg, dataformats='HWC')

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()


class WandB:
    """Weights & Biases; the axis is thousands of images.

    Its own variables of the environment say where it goes: WANDB_PROJECT (limpid by default),
    WANDB_MODE=offline, ... The file wandb-id in the folder of the run lets a continued run be the
    same one there.
    """
    package: ClassVar[str] = 'wandb'

    def __init__(self, run_dir: Path, config: Mapping[str, Any]) -> None:
        import wandb
        self.wandb: Any = wandb
        path = run_dir / 'wandb-id'
        if not path.exists():
            with atomic_write(path) as file:
                file.write(secrets.token_hex(8).encode())
        self.run = wandb.init(
            project=os.environ.get('WANDB_PROJECT', 'limpid'), name=run_dir.resolve().name,
            id=read_bounded(path, 100).decode().strip(), resume='allow', dir=str(run_dir),
            config=dict(config), settings=wandb.Settings(console='off'))
        self.run.define_metric('kimg')
        self.run.define_metric('*', step_metric='kimg')

    def goes_on_from(self, nimg: int) -> None:
        """Nothing is void there: a curve that went back is seen to have done so."""

    def numbers(self, nimg: int, numbers: Mapping[str, float]) -> None:
        self.run.log({**numbers, 'kimg': nimg / 1000})

    def picture(self, nimg: int, path: Path) -> None:
        self.run.log({'images': self.wandb.Image(str(path)), 'kimg': nimg / 1000})

    def close(self) -> None:
        self.run.finish()


LOGGERS: dict[str, type[Logger]] = {'tensorboard': TensorBoard, 'wandb': WandB}


def check_loggers(names: Collection[str]) -> None:
    """Raise ValueError for a logger whose package is not installed; the message names the extra."""
    for name in names:
        package = LOGGERS[name].package
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:   # the latter is a folder of that name
            raise ValueError(f'--log={name} needs the package {package}, of the extra {name}: pip '
                             f'install ".[{name}]", or pip install {package}')


class Loggers:
    """Several loggers; one that fails is left out from then on, and `say` gets a line about it.

    `with` closes them.
    """

    def __init__(self, names: Collection[str] = (), run_dir: Path = Path(),
                 config: Mapping[str, Any] | None = None,
                 say: Callable[[str], None] = print) -> None:
        self.say = say
        self.loggers: dict[str, Logger] = {}
        for name in names:
            self._trying(name, lambda name=name: self.loggers.update(   # type: ignore[misc]
                {name: LOGGERS[name](run_dir, config or {})}))

    def __enter__(self) -> 'Loggers':
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._each(lambda logger: logger.close())

    def goes_on_from(self, nimg: int) -> None:
        """Tell all that the run goes on from this number of images."""
        self._each(lambda logger: logger.goes_on_from(nimg))

    def numbers(self, nimg: int, numbers: Mapping[str, float]) -> None:
        """Give numbers to all; those that are not finite are left out."""
        finite = {name: value for name, value in numbers.items() if math.isfinite(value)}
        self._each(lambda logger: logger.numbers(nimg, finite))

    def picture(self, nimg: int, path: Path) -> None:
        """Give a picture to all."""
        self._each(lambda logger: logger.picture(nimg, path))

    def _each(self, action: Callable[[Logger], object]) -> None:
        for name, logger in list(self.loggers.items()):
            self._trying(name, lambda logger=logger: action(logger))   # type: ignore[misc]

    def _trying(self, name: str, action: Callable[[], object]) -> None:
        try:
            action()
        except (Exception, SystemExit) as error:
            self.loggers.pop(name, None)
            reason = ' '.join(str(error).split()) or type(error).__name__
            self.say(f'Warning: --log={name} has failed and is left out from here on: {reason}')
