"""The exceptions that end a program early, each with its exit code, and how messages are worded."""

import difflib
import functools
import os
import signal
import sys

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)


class UserError(Exception):
    """A problem that a user can solve. Its text says what was wrong, where, and what to do."""

    exit_code = 2


def one_line(error):
    """The type of `error` and the first line of its text."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:200].rstrip(": ")


class OwnedElsewhere(Exception):
    """Another live process trains this run, or the rest of this sweep."""

    exit_code = 3


class NotFinite(Exception):
    """A loss or a weight became infinite or NaN; the last checkpoint is from before it."""

    exit_code = 1


class SweepFailed(Exception):
    """A sweep has ended and some of its runs failed; its summary has said which."""

    exit_code = 1


class Stopped(BaseException):
    """The signal `signal` (a name: "SIGTERM") asked the run to stop; `what` says what was saved.

    No Exception, as KeyboardInterrupt: no `except Exception` may take it for an error.
    """

    exit_code = 75

    def __init__(self, signal, what):
        super().__init__(f"{signal}: {what}")
        self.signal, self.what = signal, what


EXPECTED = (UserError, OwnedElsewhere, NotFinite, SweepFailed, Stopped)  # each with its exit code


def in_words(error):
    """An exception as the message that a user reads."""
    # torch itself only advises .reshape()
    hint = " Or take channels_last=false." if "view size is not compatible" in str(error) else ""
    text = str(error) if isinstance(error, EXPECTED) else f"{type(error).__name__}: {error}{hint}"
    return printable(text)


def printable(text):
    """A text without the bytes that are no UTF-8: names of files may have some."""
    return os.fsencode(text).decode(errors="replace")


def nearest(name, names):
    """`; nearest: NAME` for the shortest of `names` that ends with `.name`, else for the most like
    it; "" where none is."""
    names = sorted(names)  # a set has another order in each process
    same_end = [other for other in names if other.endswith(f".{name}")]
    close = sorted(same_end, key=len) or difflib.get_close_matches(str(name), names, 1, cutoff=0.5)
    return f"; nearest: {close[0]}" if close else ""


def plural(count, noun):
    """ "1 pair", "2 pairs" """
    return f"{count} {noun}{'' if count == 1 else 's'}"


def listed(title, problems):
    """The UserError for several problems, a line each."""
    return UserError("\n".join([title, *(f"  {problem}" for problem in problems)]))


def exit_without_reader():
    """End silently where the reader of the output has gone (`| head`), with exit code 141, as
    SIGPIPE would end the process."""
    # For what Python flushes at its end.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(128 + signal.SIGPIPE)


def exit_on_user_error(main):
    """Decorate a script's main: a UserError becomes one message on stderr and exit code 2."""

    @functools.wraps(main)
    def wrapped(*args, **kwargs):
        try:
            result = main(*args, **kwargs)
            print(end="", flush=True)  # there may be no sys.stdout
            return result
        except BrokenPipeError:
            exit_without_reader()
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(error.exit_code)

    return wrapped
