"""The undisturbed run with which the runs of these tests are compared, and the comparison."""

import pytest
from prove_resume import compare_runs
from tiny import directory_of, run


@pytest.fixture(scope="module")
def reference(request, tiny, tmp_path_factory):
    """The directory of a finished run; a module's REFERENCE are its overrides."""
    folder = tmp_path_factory.mktemp("reference")
    config = tiny(f"runs={folder}", *getattr(request.module, "REFERENCE", ()))
    ended = run(folder, config)
    assert ended.code == 0, ended.err
    return directory_of(config)


@pytest.fixture
def finishes_exactly(reference, tmp_path):
    """A function: train a config's run to its end; it has to end with the bytes of the undisturbed one. Returns Ended."""

    def finish(config, prepare=None):
        ended = run(tmp_path, config, prepare)
        assert ended.code == 0, ended.err
        assert compare_runs(reference, directory_of(config)) == []
        return ended

    return finish
