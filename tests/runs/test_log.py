"""TensorBoard's events, read back: the scalars of every epoch and the settings."""

import shutil
import sys
from types import SimpleNamespace

import pytest
from events import events, hparams
from tensorboard.plugins.hparams import metadata
from tensorboard.util import tensor_util

from lcm.training.log import RunLog

SETTINGS = {"seed": 3, "schedule.learning_rate": 0.05, "attention.name": "se", "data.label": None}
SETTINGS |= {"schedule.divide_at": [0.5, 0.75], "attention.sites": {"stages": [2]}}
ROWS = [{"epoch": epoch, "step": epoch, "test_top1": 50.0 + epoch} for epoch in (1, 2, 3)]


def test_the_settings_are_in_the_events_of_the_run_once_also_after_a_continuation(tmp_path):
    text = ""
    for rows in (ROWS[:2], ROWS[2:]):
        log = RunLog(tmp_path, text, settings=SETTINGS)
        for row in rows:
            log.append(row)
        log.close()
        text = log.text
    found = events(tmp_path / "tensorboard")
    top1 = [tensor for tag, _, tensor in found if tag == "accuracy/test_top1"]
    assert [tensor_util.make_ndarray(tensor).item() for tensor in top1] == [51.0, 52.0, 53.0]

    shown = hparams(tmp_path / "tensorboard")
    assert shown["schedule.learning_rate"].number_value == 0.05
    keys = ("attention.name", "schedule.divide_at", "attention.sites")
    assert [shown[key].string_value for key in keys] == ["se", "[0.5, 0.75]", '{"stages": [2]}']
    (content,) = [content for tag, content, _ in found if tag == metadata.EXPERIMENT_TAG]
    metrics = metadata.parse_experiment_plugin_data(content).metric_infos
    assert "accuracy/test_top1" in [metric.name.tag for metric in metrics]


@pytest.mark.parametrize("full", [False, True])
def test_without_tensorboard_or_room_for_it_the_run_goes_on(tmp_path, monkeypatch, capsys, full):
    """Of a full disk nothing is said: the next file that cannot be written says it."""
    if full:
        monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=2**20 - 1))
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    log = RunLog(tmp_path)
    for epoch in (1, 2):
        log.append({"epoch": epoch, "test_top1": 50.0})
    log.close()
    assert log.file.read_text().count("\n") == 2 and not (tmp_path / "tensorboard").exists()
    said, words = capsys.readouterr().out, "warning: no TensorBoard events (ModuleNotFoundError"
    assert said.count(words) == said.count("tensorboard=false") == (not full)
