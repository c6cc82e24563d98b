"""Checkpoints: written whole or not at all, damage recognised, the one before used, nothing but weights read from them."""

import errno
import hashlib
import io
import os
import pickle
import random
import re

import pytest
import torch
from tiny import ROOT

from lcm.errors import UserError
from lcm.training import checkpoint
from lcm.training.checkpoint import DAMAGED, NAME, PREVIOUS, Damaged, SaveInterval, newest, read, save


def payload(step):
    generator = torch.Generator().manual_seed(step)
    return {"config_hash": "c0ffee", "step": step, "model": {"weight": torch.randn(64, generator=generator)}}


def sealed(body):
    """Bytes with the seal that a whole checkpoint has."""
    return body + b"\nsha256 " + hashlib.sha256(body).hexdigest().encode() + b"\n"


def saved_by_torch(value, **options):
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def raising(error):
    """A function that raises `error`, whatever its arguments."""

    def raises(*args, **keys):
        raise error

    return raises


@pytest.fixture
def directory(tmp_path):
    """A run directory with two checkpoints: step 1, and before it step 0."""
    save(tmp_path, payload(0))
    save(tmp_path, payload(1))
    return tmp_path


def test_the_newest_is_read_bit_for_bit(directory):
    found = newest(directory, "c0ffee", set_aside=True)
    assert found["step"] == 1 and torch.equal(found["model"]["weight"], payload(1)["model"]["weight"])
    assert read(directory / PREVIOUS)["step"] == 0
    assert sorted(os.listdir(directory)) == [PREVIOUS, NAME]
    assert torch.load(directory / NAME, weights_only=True)["step"] == 1  # without this program too
    assert list(checkpoint.load_model_weights(directory)) == ["weight"]


def test_there_may_be_none_yet(tmp_path):
    assert newest(tmp_path, "c0ffee") is None
    with pytest.raises(UserError, match=r"has no checkpoint\.pt: train the run first"):
        checkpoint.load_model_weights(tmp_path)


def test_500_damages_recognised_and_the_one_before_used(directory):
    """Bits flipped anywhere, seal included, and files cut anywhere."""
    whole, dice, used = (directory / NAME).read_bytes(), random.Random(0), 0
    for number in range(500):
        if number % 2:
            place = dice.randrange(len(whole) * 8)
            damaged = bytearray(whole)
            damaged[place // 8] ^= 1 << place % 8
        else:
            damaged = whole[: dice.randrange(len(whole))]
        (directory / NAME).write_bytes(damaged)
        warnings = []
        used += newest(directory, "c0ffee", warn=warnings.append)["step"] == 0
        assert len(warnings) == 1 and str(directory / NAME) in warnings[0] and PREVIOUS in warnings[0]
    assert used == 500 and not (directory / DAMAGED).exists()  # whoever only reads changes nothing


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"not a checkpoint", "cut short, or no checkpoint"),
        (saved_by_torch(payload(7)), "cut short, or no checkpoint"),  # another program's, without a seal
        (sealed(b"not a torch file"), "not readable as weights"),
        (sealed(saved_by_torch(payload(7) | {"config_hash": "beef"})), "another run's"),
        (sealed(saved_by_torch([1, 2, 3])), "another run's"),
    ],
)
def test_what_is_not_ours_is_named(directory, content, reason):
    (directory / NAME).write_bytes(content)
    warnings = []
    assert newest(directory, "c0ffee", warn=warnings.append)["step"] == 0
    assert reason in warnings[0]


class Malice:
    """Unpickled by a reader that runs what it reads, it leaves a file behind."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.system, (f"touch {self.file}",)


@pytest.mark.parametrize("form", ["zip", "legacy", "bare pickle"])
def test_a_malicious_pickle_is_refused_and_not_run(directory, tmp_path_factory, form):
    trace = tmp_path_factory.mktemp("trace") / "ran"
    if form == "bare pickle":
        body = pickle.dumps(Malice(trace))
    else:
        evil = payload(2) | {"extra": Malice(trace)}
        body = saved_by_torch(evil, _use_new_zipfile_serialization=form == "zip")
    (directory / NAME).write_bytes(sealed(body))
    with pytest.raises(Damaged, match="not readable as weights"):
        read(directory / NAME)
    assert not trace.exists()
    pickle.loads(pickle.dumps(Malice(trace)))  # the pickle is what it is said to be
    assert trace.exists()


def test_nothing_in_this_repository_unpickles():
    """torch.load with weights_only=True alone; data files and results are read by readers that can run nothing."""
    loads = re.compile(r"torch\.load\((?:[^()]|\([^()]*\))*\)")
    unsafe = re.compile(r"pickle\.(load|loads|Unpickler)\(|allow_pickle=True|read_pickle|weights_only=False")
    for file in (*ROOT.glob("*.py"), *ROOT.glob("lcm/**/*.py"), *ROOT.glob("scripts/**/*.py")):
        text = file.read_text()
        assert all("weights_only=True" in call for call in loads.findall(text)), file
        assert text.count("torch.load(") == len(loads.findall(text)), file
        assert not unsafe.search(text), file


def test_none_usable_is_said_and_nothing_deleted(directory):
    (directory / NAME).write_bytes(b"")
    (directory / PREVIOUS).write_bytes(b"rubbish")
    with pytest.raises(UserError) as caught:
        newest(directory, "c0ffee", set_aside=True)
    for part in (str(directory / NAME), "empty", str(directory / PREVIOUS), "nothing was deleted", "move"):
        assert part in str(caught.value)
    assert (directory / PREVIOUS).read_bytes() == b"rubbish" and (directory / NAME).read_bytes() == b""


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE])
def test_a_read_error_that_passes_is_no_damage(directory, monkeypatch, number):
    """A network folder that is away for a moment: the good checkpoint stays where it is."""
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.Path, "read_bytes", raising(OSError(number, "away")))
        with pytest.raises(UserError, match=rf"cannot read {directory}/checkpoint\.pt \(away\)"):
            newest(directory, "c0ffee", set_aside=True)
    assert sorted(os.listdir(directory)) == [PREVIOUS, NAME] and newest(directory, "c0ffee")["step"] == 1


def test_all_of_it_is_on_the_disk_before_it_has_its_name(directory, monkeypatch):
    sizes, fsync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (sizes.append(os.fstat(file).st_size), fsync(file)))
    save(directory, payload(2))
    assert sizes[0] == (directory / NAME).stat().st_size


@pytest.mark.parametrize(
    ("error", "reason"), [(ValueError("why\nfifty lines of advice"), "why"), (ValueError(), r"ValueError\(\)")]
)
def test_the_reason_is_one_line_and_the_first(directory, monkeypatch, error, reason):
    monkeypatch.setattr(torch, "load", raising(error))
    with pytest.raises(Damaged, match=rf"^not readable as weights \({reason}\)$"):
        read(directory / NAME)


@pytest.mark.parametrize(
    ("every", "steps"), [("epoch", []), ("1 step", [1, 2, 3, 4, 5, 6]), ("2 steps", [2, 4, 6]), ("500 steps", [])]
)
def test_every_few_steps(every, steps):
    interval = SaveInterval(every)
    assert [step for step in range(1, 7) if interval.due(step)] == steps


def test_every_few_minutes(monkeypatch):
    now = [0]
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: now[0])
    interval, due = SaveInterval("1 minutes"), []
    for now[0] in (59, 60, 61, 119, 121):
        due.append(interval.due(1))
    assert due == [False, True, False, False, True]


def test_a_damaged_one_never_takes_the_place_of_the_good_one(directory, monkeypatch):
    (directory / NAME).write_bytes(b"damaged")
    assert newest(directory, "c0ffee", set_aside=True)["step"] == 0
    assert (directory / DAMAGED).read_bytes() == b"damaged"
    with monkeypatch.context() as patch:  # killed before the new one has its name
        patch.setattr(os, "replace", raising(Dead()))
        with pytest.raises(Dead):
            save(directory, payload(2))
    assert newest(directory, "c0ffee")["step"] == 0
    save(directory, payload(2))
    save(directory, payload(3))
    assert (read(directory / NAME)["step"], read(directory / PREVIOUS)["step"]) == (3, 2)


class Dead(BaseException):
    """In place of SIGKILL: no `except OSError` sees it."""


@pytest.mark.parametrize("links", [True, False], ids=["with hard links", "without"])
def test_a_death_between_any_two_system_calls_loses_nothing(directory, monkeypatch, links):
    """Before and after each call that changes the directory, as a kill would leave it: the old newest or the new one is found."""
    if not links:  # FAT, some network folders
        monkeypatch.setattr(os, "link", raising(OSError(95, "Operation not supported")))
    deaths = 0
    for moment in range(40):  # even: before a call, odd: after it
        save(directory, payload(1))
        calls = [0]

        def dying(function, calls=calls, moment=moment):
            def called(*args):
                if calls[0] == moment:
                    raise Dead
                result = function(*args)
                if calls[0] + 1 == moment:
                    raise Dead
                calls[0] += 2
                return result

            return called

        with monkeypatch.context() as patch:
            for name in ("link", "replace", "fsync", "unlink") if links else ("replace", "fsync", "unlink"):
                patch.setattr(os, name, dying(getattr(os, name)))
            try:
                save(directory, payload(2))
            except Dead:
                deaths += 1
        warnings = []
        assert newest(directory, "c0ffee", warn=warnings.append)["step"] in (1, 2) and warnings == []
    assert deaths >= 8
    save(directory, payload(2))
    save(directory, payload(3))
    assert (read(directory / NAME)["step"], read(directory / PREVIOUS)["step"]) == (3, 2)


def test_a_failed_write_leaves_both_old_ones(directory, monkeypatch):
    monkeypatch.setattr(os, "fsync", raising(OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(
        UserError, match=r"no space left while writing .*checkpoint\.pt: what was saved before is intact"
    ):
        save(directory, payload(2))
    assert read(directory / NAME)["step"] == 1 and read(directory / PREVIOUS)["step"] == 0
    assert sorted(os.listdir(directory)) == [PREVIOUS, NAME]
