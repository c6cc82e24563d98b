"""SIGTERM, SIGINT, SIGUSR1, SIGHUP: save within one step, then stop. What a cluster sends before it takes a machine."""

import contextlib
import signal

from lcm.errors import SIGNALS, Stopped


class StopRequest:
    """What the signals do.

    While a network trains (`patient`) the first of them is remembered, and the loop over steps asks `requested` after each one;
    later ones change nothing, so that SIGUSR1 before a time limit stays a SIGUSR1. A second SIGINT, from somebody who does not want
    to wait, raises Stopped at once. At any other time there is nothing to save and the first signal raises Stopped at once: a
    download of an hour ends there and then.
    """

    def __init__(self):
        self.requested = None  # the first signal's name
        self.at_once = False  # Stopped was raised wherever the program was
        self._listening = self._patient = self._interrupted = False

    def _handle(self, number, frame):
        name = signal.Signals(number).name
        self.requested = self.requested or name
        if not self._patient:
            self._stop_now()
        if name == "SIGINT" and self._interrupted:
            raise Stopped(name, "a second SIGINT: at once, what was done since the last checkpoint will be done again")
        self._interrupted |= name == "SIGINT"

    def _stop_now(self):
        self.at_once = True
        raise Stopped(self.requested, "nothing was in progress that is not saved")

    @contextlib.contextmanager
    def listening(self):
        """Handle SIGNALS while the block runs; the handlers of before are put back after it. Inside another: no change.

        A signal that is ignored stays so (nohup, a shell's background jobs).
        """
        if self._listening:
            yield self
            return
        self.requested, self.at_once, self._interrupted, self._listening, before = None, False, False, True, {}
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

    @property
    def is_listening(self):
        return self._listening

    def patient(self):
        """A block in which signals are only remembered: it saves when it is ready."""
        return self._with_patience(True)

    def impatient(self):
        """A block within `patient` in which signals raise Stopped at once again."""
        return self._with_patience(False)

    @contextlib.contextmanager
    def _with_patience(self, patient):
        if self.requested:  # it came before, or at a moment at which Python swallows exceptions
            self._stop_now()
        before, self._patient = self._patient, patient
        try:
            yield
        finally:
            self._patient = before


STOP = StopRequest()  # the one of this process
