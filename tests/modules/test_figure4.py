"""scripts/score_cam.py: what it shows of recorded runs, and what it says where it cannot."""

import csv
import json
import re

import numpy as np
import pytest
import score_cam as script
import torch
from PIL import Image
from tiny import ROOT

from lcm.config.compose import plain as compose
from lcm.data import Digits
from lcm.models.build import build_network
from lcm.reporting.captions import network_titles, trained_on
from lcm.runs.directory import run_name
from lcm.runs.state import new_state, write_state
from lcm.score_cam import pictures
from lcm.training import checkpoint

DIGITS = Digits()


def make_run(
    runs, attention, *, seed=0, layers=8, end="2026-01-01T00:00:00+00:00", state="finished"
):
    """A run directory as train.py leaves it, of an untrained network."""
    names = {"data": "digits", "model": "resnet20", "attention": attention, "schedule": "digits"}
    config = compose({group: {"name": name} for group, name in names.items()})
    config["seed"], config["model"]["layers"] = seed, layers
    directory = runs / run_name(config)
    directory.mkdir(parents=True)
    network = build_network(config["model"], config["attention"], num_classes=10, seed=seed)
    checkpoint.save(directory, {"model": network.state_dict()})
    result = {
        "epoch": 8,
        "test_top1": 10.0,
        "test_top5": 50.0,
        "best_test_top1": 10.0,
        "best_epoch": 8,
    }
    changes = {"state": state, "end": end, "result": result if state == "finished" else None}
    write_state(directory, new_state(config, data_fingerprint=DIGITS.fingerprint) | changes)
    return directory


def change_state(directory, change):
    state = json.loads((directory / "run.json").read_text())
    change(state)
    (directory / "run.json").write_text(json.dumps(state))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for attention in ("none", "se", "lcm2"):
        make_run(folder, attention)
    return folder


def directories(runs):
    """The directories of the runs with none, SE and LCM2, as text."""
    return [str(next((runs / "digits/resnet20" / a).iterdir())) for a in ("none", "se", "lcm2")]


@torch.no_grad()
def probabilities(directory, pixels):
    """What the network of the run with SE makes of pixels (N, 32, 32, 3) in 0..255: (N, 10)."""
    network = build_network("resnet20", "se", num_classes=10, layers=8).eval()
    network.load_state_dict(checkpoint.load_model_weights(directory))
    mean, std = torch.tensor(DIGITS.mean), torch.tensor(DIGITS.std)
    x = (torch.as_tensor(np.stack(pixels)).float() / 255 - mean) / std
    return network(x.permute(0, 3, 1, 2)).softmax(1)


def shown_by(script_arguments, out):
    """The images of the .json beside the figure that the script draws."""
    script.main([*script_arguments, "--out", str(out)])
    return json.loads(out.with_suffix(".json").read_text())["images"]


def test_draws_figure_4_the_same_twice(runs, tmp_path, capsys):
    kinds = ("png", "svg", "pdf")
    for name in ("a", "b"):
        out = [str(tmp_path / "deep" / f"{name}.{kind}") for kind in kinds]
        script.main([*directories(runs), "--index", "3", "14", "--out", *out])
    for kind in (*kinds, "json"):
        a, b = ((tmp_path / "deep" / f"{name}.{kind}").read_bytes() for name in "ab")
        assert a == b
    assert a.startswith(b"{") and (tmp_path / "deep" / "a.pdf").read_bytes().startswith(b"%PDF")
    assert len(list((tmp_path / "deep").iterdir())) == 2 * 4  # and nothing under other names
    picture = np.array(Image.open(tmp_path / "deep" / "a.png").convert("RGB"))
    assert picture.shape[0] > 800 and picture.std() > 20 and (picture[0] == 255).all()
    svg = (tmp_path / "deep" / "a.svg").read_text()
    assert svg.count("<image") == 2 * (1 + 2 * 3 + 1)  # with a colour bar
    assert not re.search(r"\d{4}-\d\d-\d\dT", svg)
    assert "Score-CAM of networks trained on digits, 8 epochs, seed 0" in svg

    facts = json.loads((tmp_path / "deep" / "a.json").read_text())
    titles = [n["title"] for n in facts["networks"]]
    assert titles == ["ResNet-20", "ResNet-20 + SE", "ResNet-20 + LCM2"]
    assert [i["image"] for i in facts["images"]] == [3, 14]
    out = capsys.readouterr().out
    assert all(f"{p:.4f}" in out for image in facts["images"] for p in image["P"])


def test_without_out_it_writes_into_the_working_folder_alone(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").mkdir()
    script.main([directories(runs)[1], "--index", "0"])
    assert sorted(file.name for file in tmp_path.rglob("*.*")) == [
        "score_cam.json",
        "score_cam.png",
    ]


def test_explains_pictures_of_ones_own_as_the_network_sees_them(runs, tmp_path, monkeypatch):
    """A wide picture, held on its side, and one with a palette; P is worked out from the pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    wide = np.zeros((32, 48, 3), np.uint8)
    wide[:, 8:40] = pixels
    on_its_side = Image.fromarray(np.rot90(wide).copy())
    exif = on_its_side.getexif()
    exif[0x0112] = 6  # shown after a quarter turn to the right
    on_its_side.save(tmp_path / "a.png", exif=exif)
    Image.fromarray(pixels).convert("P").save(tmp_path / "b.gif")
    palette = np.array(Image.open(tmp_path / "b.gif").convert("RGB"))

    monkeypatch.chdir(tmp_path)
    directory, out = directories(runs)[1], tmp_path / "own.svg"
    expected = probabilities(directory, [pixels, palette])
    predicted = [str(int(row.argmax())) for row in expected]
    images = shown_by([directory, "--image", "a.png", "b.gif"], out)
    assert [image["image"] for image in images] == ["a.png", "b.gif"]
    assert [image["name"] for image in images] == ["a.png", "b.gif"]
    for image, row, highest in zip(images, expected, predicted, strict=True):
        assert image["explained"] == image["predicted"] == [highest]
        assert image["P"][0] == pytest.approx(row.max().item(), abs=1e-5)
    assert "b.gif" in out.read_text() and f"{predicted[1]}: P = " in out.read_text()
    normalisation = DIGITS.mean, DIGITS.std
    inputs = pictures.read_pictures(["a.png", "b.gif"], 32, *normalisation)
    assert np.allclose(255 * pictures.shown(inputs, *normalisation), [pixels, palette], atol=1e-3)

    images = shown_by([directory, "--image", "a.png", "b.gif", "--class", "4"], out)
    assert [image["explained"] for image in images] == [["4"], ["4"]]
    assert [image["predicted"] for image in images] == [[highest] for highest in predicted]
    assert images[1]["P"][0] == pytest.approx(expected[1, 4].item(), abs=1e-5)


def test_P_is_the_softmax_probability_of_the_true_class(runs, tmp_path):
    directory = directories(runs)[1]
    images = shown_by([f"{directory}/checkpoint.pt"], tmp_path / "f.svg")
    numbers = [image["image"] for image in images]
    assert numbers == [0, 88, 177, 266]
    resident = DIGITS.test(1).resident
    expected = probabilities(directory, resident.images[numbers])
    for image, row, label in zip(images, expected, resident.labels[numbers], strict=True):
        assert image["name"] == str(int(label)) and image["explained"] == [image["name"]]
        assert image["predicted"] == [str(int(row.argmax()))]
        assert image["P"][0] == pytest.approx(row[label].item(), abs=1e-5)


def test_nothing_that_a_run_names_is_called(tmp_path):
    """A run.json may come from anybody: what is built is what configs/ has under the same name."""
    directory = make_run(tmp_path, "se")
    call = {"_target_": "os.mkdir", "path": str(tmp_path / "made")}
    change_state(
        directory,
        lambda state: [state["config"][g].update(call) for g in ("model", "attention", "data")],
    )
    script.main([str(directory), "--index", "0", "--out", str(tmp_path / "figure.png")])
    assert (tmp_path / "figure.png").exists() and not (tmp_path / "made").exists()


def test_titles_tell_seeds_apart_where_needed():
    states = [{"model": "resnet50", "attention": "gc", "seed": seed} for seed in (4, 7)]
    assert network_titles(states) == ["ResNet-50 + GC, seed 4", "ResNet-50 + GC, seed 7"]
    states = [
        state | {"data": "cifar10", "epochs": epochs}
        for state, epochs in zip(states, (10, 1), strict=True)
    ]
    assert trained_on(states) == "CIFAR-10, 1 or 10 epochs, seeds 4, 7, 1 run each"
    assert trained_on(states[1:]) == "CIFAR-10, 1 epoch, seed 7"


def test_the_stored_figure_says_what_its_runs_were_trained_on():
    facts = json.loads((ROOT / "results/figure4.json").read_text())
    with open(ROOT / "results/runs.csv", newline="") as file:
        recorded = {row["run"]: row for row in csv.DictReader(file)}
    rows = [recorded[network["run"]] for network in facts["networks"]]
    assert {(row["data"], row["epochs"], row["seed"]) for row in rows} == {("cifar10", "10", "0")}
    said = "networks trained on CIFAR-10, 10 epochs, seed 0, 1 run each"
    assert said in facts["heading"] and said in (ROOT / "results/figure4.svg").read_text()


BROKEN = {  # a run, its attention, and what is wrong with it
    "stopped": ("se", lambda state: state.update(state="stopped", result=None)),
    "copy": ("se", lambda state: state.update(data_fingerprint="0" * 64)),
    "unfit": ("lcm2", lambda state: state["config"]["model"].update(layers=14)),
    "good": ("none", lambda state: None),
}


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """A folder with the runs of `BROKEN`, one whose checkpoint has a flipped bit, and a file."""
    folder = tmp_path_factory.mktemp("broken")
    for name, (attention, change) in BROKEN.items():
        made = make_run(folder / "made" / name, attention)
        change_state(made, change)
        (folder / name).symlink_to(made)
    flipped = make_run(folder / "made" / "flipped", "none") / "checkpoint.pt"
    content = bytearray(flipped.read_bytes())
    content[len(content) // 2] ^= 1
    flipped.write_bytes(content)
    (folder / "flipped").symlink_to(flipped.parent)
    (folder / "file").write_text("no folder")
    return folder


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("{}/nothing", "{}/nothing is no run: name a directory that holds run.json"),
        ("{}/stopped", "{}/stopped is not finished, its state is 'stopped'"),
        ("{}/copy", "was trained on another copy of digits"),
        ("{}/unfit", "its weights do not fit the network of its run.json"),
        ("{}/flipped", "its checksum does not match"),
        ("{}/good --layer stage4", "no layer 'stage4'; nearest: stage"),
        ("{}/good --index 355", "--index 355: the test images are 0 to 354"),
        ("{}/good --index -1", "--index -1: the test images"),
        ("{}/good --chunk 0", "chunk, 0, at least 1"),
        ("{}/good --out {}/file/figure.png", "cannot write {}/file"),
        ("{}/good --out {}/figure", "--out {}/figure: the name must end in .png, .svg, .pdf"),
        ("{}/good --out {}/figure.svg {}/figure.gif", "--out {}/figure.gif: the name must end"),
        (
            "{}/good --image {}/none.jpg",
            "--image {}/none.jpg cannot be read as a picture (FileNotFoundError",
        ),
        ("{}/good --image {}/file", "--image {}/file cannot be read as a picture (Unidentified"),
        ("{}/good --class 10", "--class 10: no class of digits"),
        ("{}/good --device cuda:99", "device=cuda:99"),
    ],
)
def test_what_is_wrong_is_said_in_one_message(arguments, words, broken, capsys):
    out = [] if "--out" in arguments else ["--out", str(broken / "figure.png")]
    with pytest.raises(SystemExit) as ended:
        script.main(arguments.replace("{}", str(broken)).split() + out)
    assert ended.value.code == 2
    message = capsys.readouterr().err
    assert (
        message.startswith("error: ")
        and words.replace("{}", str(broken)) in message
        and "Traceback" not in message
    )
    assert not list(broken.glob("figure*"))
