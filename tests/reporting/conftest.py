"""Stored runs, and a folder of results with them."""

import shutil

import pytest
from invented_runs import STORED, results_of

from lcm.reporting.runs import read_runs


@pytest.fixture
def results(tmp_path):
    folder = results_of(tmp_path)
    shutil.copy(STORED / "runs.csv", folder)
    return folder


@pytest.fixture
def runs():
    return read_runs(STORED / "runs.csv")
