"""A finished run, loaded, evaluated and explained: the examples of docs/finished_run.md."""

import glob
import json
import re
import shlex
import shutil
from types import SimpleNamespace

import evaluate
import numpy as np
import pandas as pd
import pytest
import score_cam
import torch
from invented_runs import edit
from PIL import Image
from plain import digest
from tiny import ROOT, run

import lcm
from lcm.data.digits import Digits
from lcm.errors import UserError
from lcm.reporting.captions import network_titles, trained_on
from lcm.reporting.confusion import by_class, draw
from lcm.runs.load import read_finished
from lcm.score_cam import pictures
from lcm.training import checkpoint

DOCUMENT = (ROOT / "docs" / "finished_run.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", DOCUMENT, re.M | re.S)
MAINS = {"scripts/evaluate.py": evaluate.main, "scripts/score_cam.py": score_cam.main}
COMMANDS = [line for kind, text in BLOCKS if kind == "bash" for line in text.splitlines()]
DIGITS = Digits()


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


@pytest.fixture(scope="module")
def trained(folder):
    (directory,) = (folder / "runs/digits/resnet20/lcm2").iterdir()
    return directory


@torch.no_grad()
def probabilities(directory, pixels):
    """What the network of the run with LCM2 makes of pixels (N, 32, 32, 3) in 0..255, (N, 10): no
    batches, no loader."""
    mean, std = torch.tensor(DIGITS.mean), torch.tensor(DIGITS.std)
    network = lcm.build_network("resnet20", "lcm2", num_classes=10, layers=8).eval()
    network.load_state_dict(checkpoint.newest(directory)["model"])
    x = (torch.from_numpy(np.stack(pixels)) / 255 - mean) / std
    return network(x.permute(0, 3, 1, 2)).softmax(1)


def changed(trained, folder, **changes):
    """A copy of the run in `folder`, with these changes in its run.json."""
    copy = shutil.copytree(trained, folder)
    edit(copy, **changes)
    return copy


def test_load_run_gives_the_trained_network_in_evaluation_mode_and_its_config(trained):
    network, config = lcm.load_run(str(trained))
    assert config == read_finished(trained)["config"] and type(config["model"]) is dict
    assert digest(network.state_dict()) == digest(checkpoint.newest(trained)["model"])
    assert not any(module.training for module in network.modules())


@pytest.mark.parametrize("group", ["data", "model", "attention", "schedule"])
@pytest.mark.parametrize("key", ["_args_", "sneaked"])
def test_a_foreign_run_json_imports_and_calls_nothing(group, key, trained, tmp_path, monkeypatch):
    (tmp_path / "foreign.py").write_text(f"open({str(tmp_path / 'made')!r}, 'w')")
    value = {"_target_": "foreign.Thing", "path": "x"}
    copy = changed(trained, tmp_path / "copy", **{f"config__{group}__{key}": value})
    monkeypatch.syspath_prepend(tmp_path)
    network, config = lcm.load_run(copy)
    evaluate.main([str(copy)])
    assert not (tmp_path / "made").exists() and "foreign" not in str(config)
    assert type(network).__module__ == "lcm.models.cifar_resnet"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"config__attention___target_": "foreign.Thing"}, "_target_ foreign.Thing has changed"),
        ({"config__data___target_": "foreign.Thing"}, "_target_ foreign.Thing has changed"),
        ({"state": "running"}, "not finished, its state is 'running'"),
        ({"config__model__name": "mine"}, "model=mine: no such model"),
        ({"config__attention__name": "os"}, "a file in another folder needs --config-dir FOLDER"),
        ({"config__model__layers": 14}, "weights do not fit"),
        ({"config__data__num_classes": 9}, "weights do not fit"),
    ],
)
def test_what_cannot_be_loaded_is_a_user_error(change, words, trained, tmp_path):
    with pytest.raises(UserError, match=re.escape(words)):
        lcm.load_run(changed(trained, tmp_path / "copy", **change))


@pytest.fixture(scope="module")
def broken(trained, tmp_path_factory):
    """A folder with a good run, one of other images, one with another byte, one with another byte
    and the checkpoint before it, one without checkpoints, and a file."""
    made = tmp_path_factory.mktemp("broken")
    changed(trained, made / "good")
    changed(trained, made / "copy", data_fingerprint="0" * 64)
    for name in ("damaged", "earlier"):
        damaged = changed(trained, made / name) / "checkpoint.pt"
        damaged.write_bytes(damaged.read_bytes().replace(b"conv", b"konv", 1))
    (made / "damaged" / checkpoint.PREVIOUS).unlink()
    for file in changed(trained, made / "bare").glob("*.pt"):
        file.unlink()
    (made / "file").write_text("no folder")
    return made


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("evaluate {}/nothing", "{}/nothing is no run: name a directory that holds run.json"),
        ("evaluate {}/good/checkpoint.pt", "checkpoint.pt is no run: name a directory"),
        ("evaluate {}/good --device cuda:99", "device=cuda:99"),
        ("evaluate {}/good --precision tf32 --device cpu", "precision=tf32"),
        ("evaluate {}/bare", "{}/bare has lost its checkpoint.pt: put it back, or train"),
        ("evaluate {}/damaged", "its checksum does not match"),
        ("evaluate {}/earlier", "{}/earlier has lost its checkpoint.pt: put it back, or train"),
        ("score_cam {}/nothing", "{}/nothing is no run: name a directory that holds run.json"),
        ("score_cam {}/good {}/copy", "{}/copy was trained on digits, and not on this copy of"),
        ("score_cam {}/good --layer stage4", "{}/good: the network has no layer 'stage4'; nearest"),
        ("score_cam {}/good --index 24", "--index 24: the test images are 0 to 23"),
        ("score_cam {}/good --index -1", "--index -1: the test images"),
        ("score_cam {}/good --index 0 --out {}/file/a.png", "cannot write {}/file"),
        ("score_cam {}/good --out {}/a", "--out {}/a: the name must end in .png, .svg, .pdf"),
        ("score_cam {}/good --out {}/good/run.png", "and not be `run`, since a .json"),
        ("score_cam {}/good --out {}/a.svg {}/a.gif", "--out {}/a.gif: the name must end"),
        ("score_cam {}/good --image {}/none.jpg", "  {}/none.jpg: FileNotFoundError"),
        ("score_cam {}/good --image {}/file", "remove:\n  {}/file: no image"),
        ("score_cam {}/good --class 10", "--class 10: no class of digits"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_one_message(command, words, broken, capsys, monkeypatch):
    monkeypatch.chdir(broken)
    before = sorted(broken.rglob("*"))
    script, *arguments = command.replace("{}", str(broken)).split()
    with pytest.raises(SystemExit) as ended:
        MAINS[f"scripts/{script}.py"](arguments)
    message = capsys.readouterr().err
    assert ended.value.code == 2 and message.startswith("error: ")
    assert words.replace("{}", str(broken)) in message and "Traceback" not in message
    assert sorted(broken.rglob("*")) == before


# --------------------------------------------------------------------------------------------------
# Evaluation


def test_evaluation_equals_run_json_and_a_plain_forward_pass(trained, tmp_path, capsys):
    images, labels = (part[:24] for part in DIGITS._test)
    highest, predicted = probabilities(trained, images).max(1)
    right = int((predicted.numpy() == labels).sum())
    recorded = read_finished(trained)["result"]["test_top1"]
    assert 100 * right / 24 == pytest.approx(recorded, abs=1e-9)

    evaluate.main([str(trained), "--out", str(tmp_path / "deep")])
    assert f"top-1 {recorded:.2f} % ({right} of 24); as in run.json" in capsys.readouterr().out
    table = pd.read_csv(tmp_path / "deep" / "predictions.csv")
    expected = {"image": range(24), "class": labels, "predicted": predicted, "probability": highest}
    pd.testing.assert_frame_equal(table, pd.DataFrame(expected), check_dtype=False, atol=2e-6)
    assert {file.name for file in tmp_path.rglob("*.*")} == {"confusion.png", "predictions.csv"}


def test_a_network_may_predict_a_class_that_the_folder_lacks(
    trained, tmp_path, monkeypatch, capsys
):
    """Two classes in the folder, four outputs; the second image is taken for the last of them."""
    data = SimpleNamespace(classes=["cat", "dog"], num_classes=4)
    shares = torch.tensor([[0.7, 0.3, 0.0, 0.0], [0.1, 0.0, 0.2, 0.7]])
    found = read_finished(trained), data, shares, torch.tensor([0, 1])
    monkeypatch.setattr(evaluate, "evaluate", lambda *arguments: found)
    evaluate.main([str(tmp_path)])
    lines = (tmp_path / "predictions.csv").read_text().splitlines()
    assert lines[1:] == ["0,cat,cat,0.700000", "1,dog,3,0.700000"]
    assert "top-1 50.00 % (1 of 2); run.json has" in capsys.readouterr().out


def test_the_confusion_matrix_counts_and_names_mistakes():
    matrix = np.array([[1, 2, 1], [0, 2, 0], [0, 0, 0]])
    lines = [line.split() for line in by_class(matrix, ["cat", "dog", "cow"]).splitlines()[1:]]
    assert lines == [["cat", "4", "1", "25.00", "dog", "(2)"], ["dog", "2", "2", "100.00"],
                     ["cow", "0", "0", "-"]]  # fmt: skip
    (axes,) = draw(matrix, ["cat", "dog", "cow"], "Title").axes
    shown = {text.get_position()[::-1]: text.get_text() for text in axes.texts if text.get_text()}
    assert shown == {(0, 0): "1", (0, 1): "2", (0, 2): "1", (1, 1): "2"}
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cat", "dog", "cow"]
    assert np.allclose(axes.images[0].get_array(), [[0.25, 0.5, 0.25], [0, 1, 0], [0, 0, 0]])
    (axes,) = draw(np.eye(100, dtype=int), [f"$x^$ {i}" for i in range(100)], "Title").axes
    assert not any(label.get_parse_math() for label in axes.get_xticklabels())  # no formulas
    assert not axes.texts and len(axes.get_xticklabels()) == 100


# --------------------------------------------------------------------------------------------------
# Score-CAM


def explained(arguments, *out):
    """The .json beside the figures that the script draws."""
    score_cam.main([*map(str, arguments), "--out", *map(str, out)])
    return json.loads(out[0].with_suffix(".json").read_text())


def test_the_figure_is_the_same_twice_in_each_format_and_explains_true_classes(
    folder, trained, tmp_path
):
    kinds = ("png", "svg", "pdf")
    runs = [next((folder / "runs/digits/resnet20" / a).iterdir()) for a in ("none", "se", "lcm2")]
    for name in ("a", "b"):
        facts = explained(runs, *(tmp_path / "deep" / f"{name}.{kind}" for kind in kinds))
    written = {file.name: file.read_bytes() for file in (tmp_path / "deep").iterdir()}
    assert len(written) == 2 * 4  # and nothing under other names
    assert all(written[f"a.{kind}"] == written[f"b.{kind}"] for kind in (*kinds, "json"))
    svg = written["a.svg"].decode()
    assert svg.count("<image") == 4 * (1 + 2 * 3 + 1)  # with a colour bar
    assert not re.search(r"\d{4}-\d\d-\d\dT", svg)
    assert "Score-CAM of networks trained on digits, 3 epochs, seed 0" in svg
    titles = [network["title"] for network in facts["networks"]]
    assert titles == ["ResNet-20", "ResNet-20 + SE", "ResNet-20 + LCM2"]
    images, labels = (part[:24:6] for part in DIGITS._test)
    found = [
        (image["image"], image["name"], image["explained"], image["predicted"][2], image["P"][2])
        for image in facts["images"]
    ]
    expected = zip((0, 6, 12, 18), labels, probabilities(trained, images), strict=True)
    assert found == [
        (i, str(c), [str(c)] * 3, str(int(row.argmax())), pytest.approx(float(row[c]), abs=1e-5))
        for i, c, row in expected
    ]


def test_pictures_of_ones_own_are_explained_as_the_network_sees_them(
    trained, tmp_path, monkeypatch
):
    """A wide picture, held on its side, and one with a palette; P is worked out from the pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    on_its_side = Image.fromarray(np.rot90(np.pad(pixels, ((0, 0), (8, 8), (0, 0)))).copy())
    exif = on_its_side.getexif()
    exif[0x0112] = 6  # shown after a quarter turn to the right
    monkeypatch.chdir(tmp_path)
    on_its_side.save("a.png", exif=exif)
    Image.fromarray(pixels).convert("P").save("b.gif")
    seen = [pixels, np.array(Image.open("b.gif").convert("RGB"))]
    inputs = pictures.read_pictures(["a.png", "b.gif"], 32, DIGITS.mean, DIGITS.std)
    assert np.allclose(255 * pictures.shown(inputs, DIGITS.mean, DIGITS.std), seen, atol=1e-3)

    expected, out = probabilities(trained, seen), tmp_path / "own.svg"
    predicted = [str(int(row.argmax())) for row in expected]
    for options, classes in (([], predicted), (["--class", "4"], ["4", "4"])):
        facts = explained([trained, "--image", "a.png", "b.gif", *options], out)
        assert facts["images"] == [
            {"image": file, "name": file, "explained": [c], "predicted": [highest],
                "P": [pytest.approx(float(row[int(c)]), abs=1e-5)]}
            for file, c, highest, row in zip(
                ["a.png", "b.gif"], classes, predicted, expected, strict=True
            )
        ]  # fmt: skip
        assert "b.gif" in out.read_text() and f"{classes[1]}: P = " in out.read_text()


def test_titles_tell_seeds_apart_where_needed():
    facts = {"model": "resnet50", "attention": "gc", "data": "cifar10", "epochs": 1}
    states = [facts | {"seed": 4}, facts | {"seed": 7}]
    assert network_titles(states) == ["ResNet-50 + GC, seed 4", "ResNet-50 + GC, seed 7"]
    assert trained_on(states) == "CIFAR-10, 1 epoch, seeds 4, 7, 1 run each"


def test_the_stored_figure_says_what_its_runs_were_trained_on():
    facts = json.loads((ROOT / "results/figure4.json").read_text())
    runs = pd.read_csv(ROOT / "results/runs.csv", dtype=str).set_index("run")
    rows = runs.loc[[network["run"] for network in facts["networks"]], ["data", "epochs", "seed"]]
    assert rows.drop_duplicates().to_numpy().tolist() == [["cifar10", "10", "0"]]
    said = "networks trained on CIFAR-10, 10 epochs, seed 0, 1 run each"
    assert said in facts["heading"] and said in (ROOT / "results/figure4.svg").read_text()


# --------------------------------------------------------------------------------------------------
# The document


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
