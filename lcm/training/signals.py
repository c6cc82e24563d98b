"""SIGTERM, SIGINT, SIGUSR1: save within one step, then stop. What a cluster sends before it takes a machine."""

import contextlib
import signal

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class StopRequest:
    """Remembers the first of SIGNALS; the loops ask `requested` after every step. A second SIGINT ends at once."""

    def __init__(self):
        self.requested = None

    def _remember(self, number, frame):
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = signal.Signals(number).name

    @contextlib.contextmanager
    def listening(self):
        """Handle SIGNALS while the block runs; the handlers of before are put back after it."""
        before = {}
        with contextlib.suppress(ValueError):  # not in the main thread: the caller's business
            before = {number: signal.signal(number, self._remember) for number in SIGNALS}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
