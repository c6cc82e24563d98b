"""Checkpoints: written whole or not at all, damage recognised, nothing but weights read."""

import contextlib
import errno
import functools
import hashlib
import io
import os
import pickle
import random
import re
from unittest.mock import Mock

import pytest
import torch
from plain import sgd
from tiny import ROOT

from lcm.errors import UserError
from lcm.training import checkpoint
from lcm.training.checkpoint import (
    DAMAGED,
    NAME,
    PREVIOUS,
    DamagedCheckpoint,
    SaveInterval,
    newest,
    read,
    save,
)
from lcm.training.state import Sums, TrainingState


def payload(step):
    generator = torch.Generator().manual_seed(step)
    return {
        "config_hash": "c0ffee",
        "step": step,
        "model": {"weight": torch.randn(64, generator=generator)},
    }


def saved_by_torch(value, sealed=True, **options):
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return with_checksum(buffer.getvalue()) if sealed else buffer.getvalue()


def with_checksum(body):
    return body + b"\nsha256 " + hashlib.sha256(body).hexdigest().encode() + b"\n"


class Dead(BaseException):
    """A kill: no `except Exception` catches it."""


@pytest.fixture
def directory(tmp_path):
    """A run directory with two checkpoints: step 1, and before it step 0."""
    save(tmp_path, payload(0))
    save(tmp_path, payload(1))
    return tmp_path


def steps(directory):
    """The steps of a directory's two checkpoints, which are all that it holds."""
    assert sorted(os.listdir(directory)) == [PREVIOUS, NAME]
    return read(directory / NAME)["step"], read(directory / PREVIOUS)["step"]


def test_the_newest_is_read_bit_for_bit(directory):
    found = newest(directory, "c0ffee", set_aside=True)
    assert torch.equal(found["model"]["weight"], payload(1)["model"]["weight"])
    assert steps(directory) == (1, 0)
    assert torch.load(directory / NAME, weights_only=True)["step"] == 1  # without this program too


def adamw(network):
    return torch.optim.AdamW(network.parameters(), torch.tensor(0.1), fused=True)


@pytest.mark.parametrize("make, own", [(sgd, 1), (adamw, 3)])
def test_a_state_is_restored(tmp_path, make, own):
    networks = [torch.nn.Linear(3, 2) for _ in range(2)]
    one, same = (TrainingState(network, make(network), Sums("cpu")) for network in networks)
    with torch.no_grad():
        for number, tensor in enumerate(one.tensors()[:-1]):  # but for `bad`
            tensor.fill_(number)
    save(tmp_path, one.snapshot(1))
    same.restore(newest(tmp_path))
    assert all(map(torch.equal, one.tensors(), same.tensors()))
    assert len(one.tensors()) == 4 + 2 * own


def test_500_damages_recognised_and_the_one_before_used(directory):
    """Bits flipped and files cut anywhere, checksum included; who only reads changes nothing."""
    whole, dice = (directory / NAME).read_bytes(), random.Random(0)
    for number in range(500):
        damaged = bytearray(whole[: dice.randrange(len(whole)) if number % 2 else None])
        if number % 2 == 0:
            damaged[dice.randrange(len(whole))] ^= 1 << dice.randrange(8)
        (directory / NAME).write_bytes(damaged)
        warnings = []
        assert newest(directory, "c0ffee", warn=warnings.append)["step"] == 0
        assert (
            len(warnings) == 1 and str(directory / NAME) in warnings[0] and PREVIOUS in warnings[0]
        )
    assert sorted(os.listdir(directory)) == [PREVIOUS, NAME]


class Malice:
    """Unpickled by a reader that runs what it reads, it fails the test past `except Exception`."""

    def __reduce__(self):
        return pytest.fail, ("code of a checkpoint ran",)


FOREIGN = {  # content -> how it is named
    b"": "cut short, or no checkpoint",
    b"not a checkpoint": "cut short, or no checkpoint",
    saved_by_torch(payload(7), sealed=False): "cut short, or no checkpoint",
    with_checksum(b"not a torch file"): "not readable as weights",
    saved_by_torch(payload(7) | {"extra": Malice()}): "not readable as weights",
    with_checksum(pickle.dumps(Malice(), protocol=2)): "not readable as weights",
    saved_by_torch(payload(7) | {"config_hash": "beef"}): "another run's",
    saved_by_torch([1, 2, 3]): "another run's",
}


@pytest.mark.parametrize("content, reason", FOREIGN.items(), ids=range(len(FOREIGN)))
def test_what_is_no_checkpoint_of_this_run_is_named(directory, content, reason):
    with pytest.raises(pytest.fail.Exception):
        pickle.loads(pickle.dumps(Malice()))
    (directory / NAME).write_bytes(content)
    warnings = []
    assert newest(directory, "c0ffee", warn=warnings.append)["step"] == 0
    assert reason in warnings[0]


def test_nothing_in_this_repository_unpickles():
    """torch.load with weights_only=True alone; data files and results are read by readers that can
    run nothing.
    """
    unsafe = re.compile(
        r"pickle\.(load|loads|Unpickler)\(|allow_pickle=True|read_pickle|weights_only=False"
    )
    for file in (*ROOT.glob("*.py"), *ROOT.glob("lcm/**/*.py"), *ROOT.glob("scripts/**/*.py")):
        text = file.read_text()
        safe = re.findall(r"torch\.load\((?:[^()]|\([^()]*\))*weights_only=True\)", text)
        assert text.count("torch.load(") == len(safe) and not unsafe.search(text), file


@pytest.mark.parametrize(
    "function, error, raised",
    [
        # a network folder, for a moment
        ("pathlib.Path.read_bytes", OSError(errno.ESTALE, "away"), UserError),
        ("torch.load", MemoryError(), MemoryError),
    ],
)
def test_an_error_that_passes_is_no_damage(directory, monkeypatch, function, error, raised):
    with (
        monkeypatch.context() as patch,
        pytest.raises(raised, match=r"^(cannot read .*checkpoint\.pt \(away\).*)?$"),
    ):
        patch.setattr(function, Mock(side_effect=error))
        newest(directory, "c0ffee", set_aside=True)
    assert steps(directory) == (1, 0)


@pytest.mark.parametrize(
    ("error", "reason"),
    [(ValueError("why\nfifty lines of advice"), "ValueError: why"), (ValueError(), "ValueError")],
)
def test_the_reason_is_one_line_and_the_first(directory, monkeypatch, error, reason):
    monkeypatch.setattr(torch, "load", Mock(side_effect=error))
    with pytest.raises(DamagedCheckpoint, match=rf"^not readable as weights \({reason}\)$"):
        read(directory / NAME)


@pytest.mark.parametrize(
    ("every", "due"),
    [
        ("epoch", []),
        ("1 step", [1, 2, 3, 4, 5]),
        ("2 steps", [2, 4]),
        ("500 steps", []),
        ("1 minutes", [2, 5]),
    ],
)
def test_when_a_checkpoint_is_due(monkeypatch, every, due):
    moments = [0, 59, 60, 61, 119, 121]  # in seconds, of the start and of five steps
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: now)
    now = moments[0]
    interval, found = SaveInterval(every), []
    for step, now in enumerate(moments[1:], 1):  # noqa: B007
        found += [step] * interval.due(step)
    assert found == due


def test_a_damaged_one_never_replaces_the_good_one(directory, monkeypatch):
    (directory / NAME).write_bytes(b"damaged")
    assert newest(directory, "c0ffee", set_aside=True)["step"] == 0
    assert (directory / DAMAGED).read_bytes() == b"damaged"
    monkeypatch.setattr(os, "replace", Mock(side_effect=Dead()))  # before the new one has its name
    with pytest.raises(Dead):
        save(directory, payload(2))
    assert newest(directory, "c0ffee")["step"] == 0


def test_a_death_between_any_two_system_calls_loses_nothing(directory, monkeypatch):
    """Around each call that changes the directory, the old newest or the new one is found."""
    found = []
    for moment in range(20):
        save(directory, payload(1))
        moments = iter(range(moment))  # a kill comes when they are used up

        def live(moments=moments):
            if next(moments, None) is None:
                raise Dead

        def called(function, *args, live=live):
            live()
            function(*args)
            live()

        with monkeypatch.context() as patch, contextlib.suppress(Dead):
            for name in ("replace", "fsync"):
                patch.setattr(os, name, functools.partial(called, getattr(os, name)))
            save(directory, payload(2))
        found.append(newest(directory, "c0ffee", warn=pytest.fail)["step"])
    assert found == sorted(found) and 4 <= found.count(1) <= 10
    assert steps(directory) == (2, 1)


def test_all_of_it_is_on_the_disk_before_it_has_its_name(directory, monkeypatch):
    sizes = []
    monkeypatch.setattr(os, "fsync", lambda file: sizes.append(os.fstat(file).st_size))
    save(directory, payload(2))
    assert sizes[0] == (directory / NAME).stat().st_size and steps(directory) == (2, 1)
