"""The undisturbed run with which the runs of these tests are compared."""

import pytest
from tiny import directory_of, run


@pytest.fixture(scope="module")
def reference(request, tiny, tmp_path_factory):
    """The directory of a finished run; a module's REFERENCE are its overrides."""
    folder = tmp_path_factory.mktemp("reference")
    config = tiny(f"runs={folder}", *getattr(request.module, "REFERENCE", ()))
    ended = run(folder, config)
    assert ended.code == 0, ended.err
    return directory_of(config)
