"""From the command line to a run: the overrides checked, Hydra's errors and ours turned into one message and an exit code."""

import contextlib
import os
import sys
import traceback

from lcm.config.check import CONFIGS
from lcm.config.command_line import composition_fault, override_faults
from lcm.errors import BAD_INPUT, FAILED, OWNED_ELSEWHERE, STOPPED, NotFinite, OwnedElsewhere, Stopped, UserError
from lcm.files import unwritable
from lcm.runs.worker import run_one
from lcm.training.signals import StopRequest

STOP = StopRequest()  # one for the whole process
EXIT_CODES = {UserError: BAD_INPUT, OwnedElsewhere: OWNED_ELSEWHERE, Stopped: STOPPED, NotFinite: FAILED}
_composed = False
_tracebacks = False  # what a user asks for with HYDRA_FULL_ERROR=1


def run_job(train, cfg):
    """Hydra's task: resolve the config and train. A single run's failure ends in its message and exit code here.

    A run of a sweep returns an Outcome instead (lcm/job.py).
    """
    composed()
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        try:
            config = OmegaConf.to_container(cfg, resolve=True)
        except OmegaConfBaseException as error:
            raise UserError(f"the config does not resolve: {error.full_key}: {str(error).splitlines()[0]}") from error
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            return run_one(train, config)
        return train(config)
    except Exception as error:
        end(error, debug=cfg.get("debug") is True)


def composed():
    """Note that there is a config now: what goes wrong from here on is no bad input, unless it says so."""
    global _composed
    _composed = True


def end(error, debug=False):
    """Print an exception as one message and exit with its code; unknown ones, and all of them with `debug`, with traceback.

    What goes wrong before a config is composed is bad input, whatever Hydra calls it.
    """
    if STOP.at_once and not isinstance(error, Stopped):  # code that a signal's exception left half done
        error = Stopped(STOP.requested)
    expected = isinstance(error, tuple(EXIT_CODES))
    if debug or not expected or _tracebacks:
        traceback.print_exception(error)
    if isinstance(error, Stopped):
        print(f"stopped by {error}; the same command continues", file=sys.stderr)
    else:
        print(f"error: {error if expected else f'{type(error).__name__}: {error}'}", file=sys.stderr)
    unknown = FAILED if _composed else BAD_INPUT
    sys.exit(next((code for kind, code in EXIT_CODES.items() if isinstance(error, kind)), unknown))


class Lasting:
    """A stream to the user whose loss ends no run: `python train.py | head`, a terminal that was closed."""

    def __init__(self, stream):
        self._stream = stream

    def write(self, text):
        with self._surviving():
            return self._stream.write(text)

    def flush(self):
        with self._surviving():
            self._stream.flush()

    @contextlib.contextmanager
    def _surviving(self):
        try:
            yield
        except OSError:  # from here on to nowhere, for what the stream still holds too
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())

    def __getattr__(self, name):
        return getattr(self._stream, name)


def make_sweep_known():
    """Let Hydra find this project's sweeper: it takes sweepers only from a package `hydra_plugins`, by their full name."""
    from hydra.core.plugins import Plugins

    from lcm.runs.sweep import Sweep

    Plugins.instance().class_name_to_class["hydra_plugins.lcm.Sweep"] = Sweep


def main(task):
    """Run Hydra's `task` on this process's command line; never returns a traceback for what a user can mend."""
    global _tracebacks
    from hydra._internal.utils import get_args_parser
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    sys.stdout, sys.stderr = Lasting(sys.stdout), Lasting(sys.stderr)
    multirun = ("-m", "--multirun")  # Hydra takes it before or behind all overrides, not amid them
    sys.argv[1:] = sorted(sys.argv[1:], key=lambda word: word not in multirun)
    _tracebacks = os.environ.get("HYDRA_FULL_ERROR") == "1"
    if not CONFIGS.is_dir():
        sys.exit(f"error: no configs folder at {CONFIGS}: run train.py from a checkout")
    try:
        with STOP.listening():
            options = get_args_parser().parse_args()  # ends with a usage message for flags that Hydra has not
            faults = override_faults(options.overrides, options.multirun)
            if faults:
                raise UserError("\n".join(["nothing was started:", *(f"  {fault}" for fault in faults)]))
            make_sweep_known()
            os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises what it would have printed
            task()
    except (HydraException, OmegaConfBaseException) as error:
        if _tracebacks:
            traceback.print_exception(error)
        end(UserError(f"the config cannot be composed: {composition_fault(error)}"))
    except OSError as error:
        end(error if _composed else unwritable(error.filename, error))  # hydra.run.dir
    except (Stopped, Exception) as error:
        end(error)
