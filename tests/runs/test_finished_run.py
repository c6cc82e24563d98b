"""A finished run, loaded, evaluated and explained: the examples of docs/finished_run.md."""

import csv
import glob
import json
import re
import shlex
import shutil
from types import SimpleNamespace

import evaluate
import numpy as np
import pytest
import score_cam
import torch
from PIL import Image
from sklearn.metrics import confusion_matrix
from tiny import ROOT, run

import lcm
from lcm.data.digits import Digits
from lcm.errors import UserError
from lcm.reporting.confusion import by_class, draw
from lcm.training import checkpoint

DOCUMENT = (ROOT / "docs" / "finished_run.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", DOCUMENT, re.M | re.S)
MAINS = {"scripts/evaluate.py": evaluate.main, "scripts/score_cam.py": score_cam.main}
COMMANDS = [line for kind, text in BLOCKS if kind == "bash" for line in text.splitlines()]


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    """A folder in which three arms were trained, with two pictures."""
    folder = tmp_path_factory.mktemp("finished")
    for attention in ("none", "se", "lcm2"):
        ended = run(folder, tiny(f"runs={folder}/runs", f"attention={attention}"))
        assert ended.code == 0, ended.err
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "a.jpg")
    Image.fromarray(pixels[..., 0]).save(folder / "b.png")
    return folder


@pytest.fixture
def trained(folder):
    (directory,) = (folder / "runs/digits/resnet20/lcm2").iterdir()
    return directory


@torch.no_grad()
def predicted_plainly(directory):
    """(labels, probabilities) of the tiny setting's 24 test images: no batches, no loader."""
    images, labels = (part[:24] for part in Digits()._test)
    pixels = torch.from_numpy(images) / 255
    mean, std = torch.tensor(Digits().mean), torch.tensor(Digits().std)
    network = lcm.build_network("resnet20", "lcm2", num_classes=10, layers=8).eval()
    network.load_state_dict(checkpoint.load_model_weights(directory))
    return labels, network(((pixels - mean) / std).permute(0, 3, 1, 2)).softmax(1)


def changed(directory, folder, change):
    """A copy of a run, whose run.json was changed."""
    copy = shutil.copytree(directory, folder / "copy")
    state = json.loads((copy / "run.json").read_text())
    change(state)
    (copy / "run.json").write_text(json.dumps(state))
    return copy


def test_load_run_gives_the_trained_network_in_evaluation_mode_and_its_config(trained):
    network, config = lcm.load_run(str(trained))
    state = json.loads((trained / "run.json").read_text())
    assert config == state["config"] and type(config["model"]) is dict
    saved = checkpoint.load_model_weights(trained)
    assert list(network.state_dict()) == list(saved)
    assert all(torch.equal(value, saved[name]) for name, value in network.state_dict().items())
    assert not any(module.training for module in network.modules())
    again, _ = lcm.load_run(trained / "checkpoint.pt")
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(again(x), network(x))


@pytest.mark.parametrize("group", ["data", "model", "attention", "schedule"])
@pytest.mark.parametrize("key", ["_target_", "_args_", "sneaked"])
def test_a_foreign_run_json_imports_and_calls_nothing(group, key, trained, tmp_path):
    (tmp_path / "foreign.py").write_text(f"open({str(tmp_path / 'made')!r}, 'w')")
    call = "foreign.Thing" if key == "_target_" else {"_target_": "foreign.Thing", "path": "x"}
    copy = changed(trained, tmp_path, lambda state: state["config"][group].update({key: call}))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        network, config = lcm.load_run(copy)
    assert not (tmp_path / "made").exists() and "foreign" not in str(config)
    assert type(network).__module__ == "lcm.models.cifar_resnet"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state.update(state="running"), "not finished, its state is 'running'"),
        (lambda state: state["config"]["model"].update(name="mine"), "model=mine: no such model"),
        (lambda state: state["config"]["attention"].update(name="os"), "attention=os: no such"),
        (lambda state: state["config"]["model"].update(layers=14), "weights do not fit"),
        (lambda state: state["config"]["data"].update(num_classes=9), "weights do not fit"),
    ],
)
def test_what_cannot_be_loaded_is_a_user_error(change, words, trained, tmp_path):
    copy = changed(trained, tmp_path, change)
    with pytest.raises(UserError, match=re.escape(words)):
        lcm.load_run(copy)


def test_evaluation_equals_run_json_and_a_plain_forward_pass(trained, tmp_path, capsys):
    """And the picture is written in each format."""
    labels, probabilities = predicted_plainly(trained)
    highest, predicted = probabilities.max(1)
    right = int((predicted.numpy() == labels).sum())
    recorded = json.loads((trained / "run.json").read_text())["result"]["test_top1"]
    assert 100 * right / 24 == pytest.approx(recorded, abs=1e-9)

    for kind, begins in (("PNG", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")):
        picture, table = tmp_path / f"deep/c.{kind}", tmp_path / "p.csv"
        evaluate.main([str(trained), "--confusion", str(picture), "--predictions", str(table)])
        assert picture.read_bytes().startswith(begins)
    out = capsys.readouterr().out
    assert f"top-1 {recorded:.2f} % ({right} of 24); as in run.json" in out
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert [row["image"] for row in rows] == [str(i) for i in range(24)]
    assert [row["class"] for row in rows] == [str(label) for label in labels]
    assert [row["predicted"] for row in rows] == [str(int(p)) for p in predicted]
    found = torch.tensor([float(row["probability"]) for row in rows])
    assert torch.allclose(found, highest, atol=2e-6)
    written = {file.name for file in tmp_path.rglob("*.*")}
    assert written == {"c.PNG", "c.svg", "c.pdf", "p.csv"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("{} --confusion c.gif", "--confusion c.gif: the name must end in .png, .svg, .pdf"),
        ("{}/nothing", "nothing is no run: name a directory"),
        ("{} --device cuda:99", "device=cuda:99"),
        ("{} --precision tf32 --device cpu", "precision=tf32"),
        ("{} --root {}", "digits.csv.gz"),
    ],
)
def test_what_cannot_be_evaluated_is_said_in_one_message(arguments, words, trained, capsys):
    with pytest.raises(SystemExit) as ended:
        evaluate.main(arguments.replace("{}", str(trained)).split())
    message = capsys.readouterr().err
    assert ended.value.code == 2 and message.startswith("error: ") and words in message
    assert not list(trained.glob("confusion*")) and not (trained / "nothing").exists()


def test_a_network_may_predict_a_class_that_the_folder_lacks(
    trained, tmp_path, monkeypatch, capsys
):
    """Two classes in the folder, four outputs; the second image is taken for the last of them."""
    state = json.loads((trained / "run.json").read_text())
    data = SimpleNamespace(classes=["cat", "dog"], num_classes=4)
    probabilities = torch.tensor([[0.7, 0.3, 0.0, 0.0], [0.1, 0.0, 0.2, 0.7]])
    found = state, data, probabilities, torch.tensor([0, 1])
    monkeypatch.setattr(evaluate, "evaluate", lambda *arguments: found)
    table = tmp_path / "p.csv"
    evaluate.main([str(tmp_path), "--predictions", str(table)])
    assert table.read_text().splitlines()[1:] == ["0,cat,cat,0.700000", "1,dog,3,0.700000"]
    assert "top-1 50.00 % (1 of 2); run.json has" in capsys.readouterr().out


def test_the_confusion_matrix_counts_and_names_mistakes():
    labels, predicted = np.array([0, 0, 0, 1, 1, 0]), np.array([0, 1, 1, 1, 1, 2])
    matrix = confusion_matrix(labels, predicted, labels=range(3))
    assert matrix.tolist() == [[1, 2, 1], [0, 2, 0], [0, 0, 0]]
    lines = [line.split() for line in by_class(matrix, ["cat", "dog", "cow"]).splitlines()[1:]]
    assert lines == [["cat", "4", "1", "25.00", "dog", "(2)"], ["dog", "2", "2", "100.00"],
                     ["cow", "0", "0", "-"]]  # fmt: skip
    (axes,) = draw(matrix, ["cat", "dog", "cow"], "Title").axes
    assert sorted(text.get_text() for text in axes.texts) == ["1", "1", "2", "2"]
    assert np.allclose(axes.images[0].get_array(), [[0.25, 0.5, 0.25], [0, 1, 0], [0, 0, 0]])
    (axes,) = draw(np.eye(100, dtype=int), [f"class {i}" for i in range(100)], "Title").axes
    assert not axes.texts and len(axes.get_xticklabels()) == 100


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_of_the_document_does_what_it_says(line, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    python, script, *words = shlex.split(line)
    arguments = [path for word in words for path in (sorted(glob.glob(word)) or [word])]
    assert python == "python"
    MAINS[script](arguments)
    written = capsys.readouterr().out.splitlines()[-1].split(", ")
    assert len(written) >= 2 and all((folder / file).stat().st_size > 100 for file in written)


def test_the_python_of_the_document_runs(folder, trained, monkeypatch):
    monkeypatch.chdir(folder)
    loading, explaining = (text for kind, text in BLOCKS if kind == "python")
    names = {"images": torch.randn(2, 3, 32, 32)}
    exec(re.sub(r'"runs/.*?"', repr(str(trained)), loading), names)
    exec(explaining, names)
    assert names["cam"].heatmap.shape == (2, 32, 32)
