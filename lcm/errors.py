"""What ends a program early: an error that a user can mend (what was wrong, where, what to do), and the signals to stop."""

import functools
import os
import signal
import sys

SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP") if hasattr(signal, name))


# Exit codes of train.py; the README documents them.
FINISHED, FAILED, BAD_INPUT, OWNED_ELSEWHERE, STOPPED = 0, 1, 2, 3, 75


class UserError(Exception):
    """A fault that a user can mend. Its text says what was wrong, where, and what to do; it ends in exit code 2."""


class OwnedElsewhere(Exception):
    """Another live process trains this run."""


class Stopped(BaseException):
    """A signal asked the run to stop; everything up to the last step is saved.

    Like KeyboardInterrupt no Exception: a sweep ends with it, and no `except Exception` on the way takes it for a fault.
    """


class NotFinite(Exception):
    """The training loss is not a finite number; the weights are those before the step that gave it."""


def exit_on_user_error(main):
    """Decorate a script's main: a `UserError` becomes one message on stderr and exit code 2, without a traceback.

    `HYDRA_FULL_ERROR=1` in the environment brings the traceback back. A reader of the output that is gone (`| head`) ends the
    script as SIGPIPE would: silently, with the exit code 141.
    """

    @functools.wraps(main)
    def wrapped(*args, **kwargs):
        try:
            result = main(*args, **kwargs)
            sys.stdout.flush()
            return result
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python flushes at its end
            sys.exit(128 + signal.SIGPIPE)
        except UserError as error:
            if os.environ.get("HYDRA_FULL_ERROR") == "1":
                raise
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)

    return wrapped
