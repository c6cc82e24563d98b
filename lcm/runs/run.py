"""A run as train.py sees it: directory, lock, run.json, checkpoints, how it ended."""

import contextlib
import json
import time

from lcm.config.identity import config_hash, identity
from lcm.errors import Stopped, UserError, in_words, one_line
from lcm.runs.directory import now, run_directory
from lcm.runs.lock import owner
from lcm.runs.source import keep_own, put_back, refuse_changed_source, set_aside, source
from lcm.runs.state import begun, environment, read_state, write_state
from lcm.runs.summary import best_and_last, print_start, result_line
from lcm.training import checkpoint
from lcm.training.log import RunLog
from lcm.training.out_of_memory import explained
from lcm.training.progress import Progress
from lcm.training.signals import STOP


class Run:
    """The run of one resolved config (nested plain dicts).

    With `rerun` the run that its directory holds is set aside first.
    Raises UserError where its directory holds another config's run, or a damaged run.json, or where
    a module of the user's own is not what it was.
    """

    def __init__(self, config):
        self._kept = set_aside([config])
        self.config = config
        self.directory = run_directory(config)
        self.saved = None  # the checkpoint that it continues from
        self._take(read_state(self.directory))

    def _take(self, state):
        """Go on from a run.json, unless it is another config's or a module has changed since."""
        refuse_changed_source(self.config, state)
        self.state = state

    @property
    def finished(self):
        return self.state.get("state") == "finished"

    @contextlib.contextmanager
    def owned(self):
        """Own the directory; after `begin`, run.json says how the block ended. Signals stop it.

        Finished; stopped, if a signal or a UserError ended it; failed otherwise.
        Raises OwnedElsewhere where another process trains the run.
        """
        with owner(self.directory), STOP.listening():
            self._take(read_state(self.directory))  # again: another process may have been here
            self._begun = False
            if not self.finished:
                self._find_checkpoint()
            try:
                yield
            except BaseException as error:
                error = explained(error, self.config["device"])
                outcome = "stopped" if isinstance(error, (Stopped, UserError)) else "failed"
                # the first problem is the one to show: a full disk, say
                with contextlib.suppress(UserError):
                    self._write(state=outcome, message=in_words(error))
                if not self._begun:
                    put_back(self._kept)
                raise error
            self._write(state="finished", message=None, end=now())

    def _find_checkpoint(self):
        self.saved = checkpoint.newest(self.directory, config_hash(self.config), set_aside=True)
        # Before anything is written. A kill leaves a row more than the checkpoint's record, because
        # the row is written first; two more than that of the checkpoint before a damaged one.
        metrics = self.directory / "metrics.jsonl"
        here = metrics.read_bytes().count(b"\n") if metrics.exists() else 0
        there = self.saved["metrics"].count("\n") if self.saved else 0
        if here - there > (2 if self.saved else 1):
            raise UserError(
                f"{metrics} has {here} epochs, its checkpoint {there or 'is lost'}: put the newest "
                f"checkpoint.pt back, or move {self.directory} away to start this run anew"
            )
        # The copy in a checkpoint never says `finished`: the run ends again, after no epoch.
        if self.saved and not self.state:
            print(
                f"warning: {self.directory} has lost its run.json; written anew from the checkpoint"
            )
            self._take(json.loads(self.saved["run"]))

    def _write(self, **changes):
        if self._begun:
            self.state |= changes
            write_state(self.directory, self.state)

    @property
    def threads(self):
        """CPU threads: the config's; where it says `auto`, those of the run's checkpoint."""
        # Without a checkpoint no number depends on them yet.
        asked = self.config["threads"]
        return self.state.get("threads", "auto") if asked == "auto" and self.saved else asked

    def begin(self, data, complexity, threads, device):
        """Write run.json and print the plan; `device` in words.

        Raises UserError where the run would continue with other images.
        """
        here = environment(device) | {"source": source(self.config)}
        self.state = begun(
            self.config, self.directory, self.state, self.saved, data, complexity, threads, here
        )
        # A continued run keeps the files of its beginning; `_take` has compared their digests.
        if not self.saved:
            self.state["own_source"] = keep_own(self.config, self.directory)
        print_start(self.config, data, complexity, self.state, self.directory, self.saved)
        # From here on run.json says `running`, and `owned` has to write how that ended.
        write_state(self.directory, self.state | {"state": "running", "message": None})
        self._begun = True

    def epochs(self, training, batches):
        """Each epoch that is left, with the step at which it begins: (1, 0), (2, 0), ...

        training: the TrainingState, restored from the checkpoint and saved in every new one.
        batches: those of training, as `batches_on` returns them.
        """
        # epoch: in progress; index: its steps that are done; metrics: the text of the record.
        first = {"epoch": 1, "index": 0, "seconds": 0.0, "metrics": ""} | (self.saved or {})
        if self.saved:
            try:
                training.restore(self.saved)
            except (KeyError, RuntimeError) as error:
                raise UserError(
                    f"{self.directory}: its checkpoint does not fit this network "
                    f"({one_line(error)}): continue with the code that began it, commit "
                    f"{self.state['commit']}, or move the folder away to train anew"
                ) from error
        self._training = training
        self._batches = batches
        self._seconds = first["seconds"]
        self._began = time.monotonic()
        self._timed = first.get("timed", [0, 0.0])  # images and seconds of training in this epoch
        self._log = RunLog(
            self.directory,
            first["metrics"],
            self.config["tensorboard"],
            settings=identity(self.config),
        )
        self._interval = checkpoint.SaveInterval(self.config["checkpoint"]["every"])
        self._last = self.config["schedule"]["epochs"]
        self._progress = Progress(self.config["progress"], self._last, batches)
        with STOP.patient():
            try:
                # None is left where a kill came between the last checkpoint and the end.
                for epoch in range(first["epoch"], self._last + 1):
                    start = first["index"] if epoch == first["epoch"] else 0
                    # An evaluation is no part of the training's speed.
                    self._mark = time.monotonic()
                    yield epoch, start
                self.state["result"] = best_and_last(self._log.rows)
            finally:
                # Also after an exception: the loop that it leaves drops this generator, which
                # is closed before `owned` writes run.json.
                self.state["seconds"] = self.seconds
                self._progress.clear()
                self._log.close()

    @property
    def seconds(self):
        """Wall time of this run so far, all its parts together."""
        return round(self._seconds + time.monotonic() - self._began, 3)

    def after_step(self, epoch, done):
        """Save where a checkpoint is due; after a signal save and raise Stopped.

        Raises NotFinite on a CPU, where the last step's loss can be read without waiting.
        """
        sums = self._training.sums
        if on_cpu := sums.bad.device.type == "cpu":
            sums.check("the training loss", epoch)
        moment = time.monotonic()
        self._timed[0] += self._batches.size(done - 1)
        self._timed[1] += moment - self._mark
        self._mark = moment
        self._progress.step(epoch, done, sums if on_cpu else None)
        # Counted over the whole run: a continued one saves after the same steps.
        if STOP.requested or self._interval.due((epoch - 1) * len(self._batches) + done):
            self.save(epoch, done)

    def after_test_step(self, epoch, left):
        """After a signal save and raise Stopped: the evaluation is done again.

        left: test steps of this evaluation; with none left the epoch is recorded first.
        """
        if STOP.requested and left:
            self.save(epoch, len(self._batches))

    def record(self, epoch, metrics):
        """An epoch is over: a row of metrics.jsonl, a line on the terminal, a checkpoint."""
        images, seconds = self._timed
        speed = round(images / seconds, 1) if seconds else 0.0
        row = {
            "epoch": epoch,
            "step": epoch * len(self._batches),
            **metrics,
            "images_per_second": speed,
            "seconds": self.seconds,
        }
        # The row, then the checkpoint: after a kill between the two the record is longer than
        # the checkpoint's, which restores it. The other way round an epoch could be missing.
        self._log.append(row)
        self._timed = [0, 0.0]
        try:
            self.save(epoch + 1, 0)
        finally:  # last: whoever reads the output may have gone
            self._progress.epoch(row)

    def save(self, epoch, done):
        """A checkpoint after `done` steps of an epoch; raises Stopped if a signal has come.

        After the last epoch there is nothing left to stop.
        """
        # `run` and `metrics` are whole files, restored to this moment where lost or longer.
        saved = {
            "config_hash": self.state["config_hash"],
            "run": json.dumps(self.state),
            "epoch": epoch,
            "index": done,
            "seconds": self.seconds,
            "timed": self._timed,
            "metrics": self._log.text,
            **self._training.snapshot(epoch),
        }
        checkpoint.save(self.directory, saved)
        if STOP.requested and epoch <= self._last:
            raise Stopped(STOP.requested, f"saved after step {done} of epoch {epoch}")

    def report(self):
        """Print the result, and where it is."""
        print(result_line(self.state), f"run directory: {self.directory}", sep="\n")
        if self.config["tensorboard"]:
            folder = self.config["run_directory"] or self.config["runs"]
            print(f"curves: tensorboard --logdir {folder}")
