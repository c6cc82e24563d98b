"""SIGTERM, SIGINT, SIGUSR1, SIGHUP: save within one step, then stop. What a cluster sends before it takes a machine."""

import contextlib
import signal

from lcm.errors import SIGNALS, Stopped


class StopRequest:
    """What the first of SIGNALS does.

    While a network trains (`patient`) it is remembered, and the loops ask `requested` after every step. At any other time
    there is nothing to save, and it raises Stopped there and then: a download of an hour ends at once. So does a second SIGINT.
    """

    def __init__(self):
        self.requested = None
        self.at_once = False  # Stopped was raised wherever the program was
        self._listening = self._patient = False

    def _handle(self, number, frame):
        again, self.requested = self.requested, signal.Signals(number).name
        if not self._patient:
            self._stop_now()
        if again and number == signal.SIGINT:
            raise Stopped("a second SIGINT: at once, what was done since the last checkpoint will be done again")

    def _stop_now(self):
        self.at_once = True
        raise Stopped(f"{self.requested}: nothing was in progress that is not saved")

    @contextlib.contextmanager
    def listening(self):
        """Handle SIGNALS while the block runs; the handlers of before are put back after it. Inside another: no change.

        A signal that is ignored stays so (nohup, a shell's background jobs).
        """
        if self._listening:
            yield self
            return
        self.requested, self.at_once, self._listening, before = None, False, True, {}
        try:
            for number in SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    with contextlib.suppress(ValueError):  # not in the main thread: the caller's business
                        before[number] = signal.signal(number, self._handle)
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            self._listening = False

    @contextlib.contextmanager
    def patient(self):
        """Only remember the first signal while the block runs: it saves when it is ready."""
        if self.requested:  # it came at a moment at which Python swallows exceptions
            self._stop_now()
        self._patient = True
        try:
            yield
        finally:
            self._patient = False

    @contextlib.contextmanager
    def impatient(self):
        """Inside `patient`: for a block before which everything is saved, and which may take minutes. Stops at once again."""
        if self.requested:
            self._stop_now()
        before, self._patient = self._patient, False
        try:
            yield
        finally:
            self._patient = before
