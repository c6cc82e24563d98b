"""How SIGTERM, SIGINT, SIGUSR1 and SIGHUP stop a run: it saves within one step."""

import contextlib
import signal

from lcm.errors import SIGNALS, Stopped


class StopRequest:
    """The signals' handler.

    While a network trains (`patient`), the first signal is stored in `requested`, which the loop
    reads after each step. Later signals change nothing: SIGUSR1 before a time limit remains the
    reason. Only a second SIGINT raises Stopped at once. At any other time, during a download for
    example, there is nothing to save and the first signal raises Stopped at once.
    """

    def __init__(self):
        self.requested = None  # the first signal's name
        self.at_once = False  # whether Stopped was raised in the middle of something
        self.is_listening = self._patient = self._interrupted = False

    def _handle(self, number, frame):
        name = signal.Signals(number).name
        self.requested = self.requested or name
        # What a handler raises comes out of whatever the main thread is doing at that moment.
        if not self._patient:
            raise self._nothing_saved()
        # Not told from `requested`: after a SIGTERM the next SIGINT is the first one.
        if name == "SIGINT" and self._interrupted:
            raise Stopped(
                name,
                "a second SIGINT: at once, what was done since the last checkpoint will be done "
                "again",
            )
        self._interrupted |= name == "SIGINT"

    def _nothing_saved(self):
        self.at_once = True
        return Stopped(self.requested, "there was nothing to save")

    def behind(self, error):
        """The Stopped behind an exception: other code may catch the signal's and raise its own, and
        after Ctrl-C in `train.py -m ... | tee log` nobody reads what is printed.
        """
        if self.at_once and not isinstance(error, Stopped):
            return self._nothing_saved()
        if self.requested and isinstance(error, BrokenPipeError):
            return Stopped(self.requested, "nobody reads the output any more")
        return error

    @contextlib.contextmanager
    def listening(self):
        """Handle SIGNALS while the block runs, then restore the earlier handlers.

        A nested block changes nothing. A signal that is ignored stays ignored (nohup, a shell's
        background jobs).
        """
        # A sweep listens around all its runs: what came at the end of one is kept for the next.
        if self.is_listening:
            yield
            return
        self.requested = None
        self.at_once = self._interrupted = False
        self.is_listening = True
        before = {}
        try:
            with contextlib.suppress(ValueError):  # not in the main thread, which has the signals
                for number in SIGNALS:
                    if signal.getsignal(number) is not signal.SIG_IGN:
                        before[number] = signal.signal(number, self._handle)
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            self.is_listening = False

    @contextlib.contextmanager
    def patient(self):
        """A block in which a signal only sets `requested`: the block saves when it can."""
        # Also one from the end of a sweep's earlier run, which had nothing left to stop.
        if self.requested:  # before this block, where other code caught the exception
            raise self._nothing_saved()
        self._patient = True
        try:
            yield
        finally:
            self._patient = False


STOP = StopRequest()  # of this process
