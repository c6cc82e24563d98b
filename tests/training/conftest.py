"""The undisturbed run with which the runs of these tests are compared, and how a run has to end."""

import pytest
import torch
from tiny import compare_runs, directory_of, run

from lcm.training.device import set_deterministic


@pytest.fixture(scope="module")
def reference(request, tiny, tmp_path_factory):
    """The directory of a finished run; a module's REFERENCE are its overrides."""
    folder = tmp_path_factory.mktemp("reference")
    config = tiny(f"runs={folder}", *getattr(request.module, "REFERENCE", ()))
    ended = run(folder, config)
    assert ended.code == 0, ended.err
    return directory_of(config)


@pytest.fixture
def ends(tmp_path):
    """A function: train a run; it ends with this exit code and one message, which has these words.

    Returns Ended.
    """

    def end(config, code, *words, prepare=None):
        ended = run(tmp_path, config, prepare)
        assert ended.code == code and "Traceback" not in ended.err, ended
        assert all(part in ended.err for part in words), ended.err
        return ended

    return end


@pytest.fixture
def finishes_exactly(ends, reference):
    """A function: train a run to its end, which has the bytes of the undisturbed run and was
    continued from a place.
    """

    def finish(config, place="", prepare=None):
        ended = ends(config, 0, prepare=prepare)
        assert place in ended.out, ended.out
        assert compare_runs(reference, directory_of(config)) == []
        return ended

    return finish


@pytest.fixture
def deterministic(monkeypatch):
    """Deterministic algorithms, as a GPU gets them."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    set_deterministic(True, torch.device("cuda:0"))
    yield
    set_deterministic(False, torch.device("cuda:0"))
    torch.utils.deterministic.fill_uninitialized_memory = True
