"""The time that a run takes, and the time that it needs to stop in good order."""

import contextlib
import time
from collections.abc import Iterator


class Clock:
    """Measures a run from now on, after the `seconds` of the processes before this one.

    start         when this process began, or went back to an earlier state; of time.monotonic
    maintenance   seconds of reports, files and evaluations since they were last reported
    longest_step, longest_save
                  in seconds
    last_state    when a training state was last written, or read; of time.monotonic
    """

    def __init__(self, seconds: float) -> None:
        self.longest_step = self.longest_save = 0.0
        self.restart(seconds)
        self.last_step = self.start

    def restart(self, seconds: float) -> None:
        """Go on from another number of `seconds`, that of a state which the run went back to."""
        self.start, self.start_seconds, self.maintenance = time.monotonic(), seconds, 0.0
        self.last_state = self.start

    def seconds(self) -> float:
        """Return the seconds of training, over all processes that took part."""
        return self.start_seconds + time.monotonic() - self.start

    def step(self) -> None:
        """Note the end of a step, or of anything else that cannot be cut short."""
        now = time.monotonic()
        self.longest_step, self.last_step = max(self.longest_step, now - self.last_step), now

    @contextlib.contextmanager
    def pausing_training(self, is_save: bool = False) -> Iterator[None]:
        """Count the block as maintenance, and not as a step."""
        start = self.last_step = time.monotonic()
        yield
        self.last_step = time.monotonic()
        self.maintenance += self.last_step - start
        if is_save:
            self.longest_save = max(self.longest_save, self.last_step - start)

    def ready_by(self) -> float:
        """Return when another step and saving everything will be done, of time.monotonic.

        Both are taken to last half as long again as the longest so far.
        """
        return time.monotonic() + 1.5 * (self.longest_step + self.longest_save)
