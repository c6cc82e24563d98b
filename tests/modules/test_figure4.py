"""scripts/score_cam.py: which runs it takes, what it shows, and what it says where it cannot."""

import json
import re

import numpy as np
import pytest
import score_cam as script
import torch
from PIL import Image

from lcm.config.compose import plain as compose
from lcm.data import Digits
from lcm.errors import UserError
from lcm.models.build import build_network
from lcm.reporting.heatmaps import titles
from lcm.runs.directory import run_name
from lcm.runs.finished import newest_arms
from lcm.runs.state import new_state, write_state
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


def test_draws_figure_4_the_same_twice(runs, tmp_path, capsys):
    for name in ("a", "b"):
        script.main(
            ["--runs-root", str(runs), "--index", "3", "14", "--out", str(tmp_path / "deep" / name)]
        )
    for kind in ("png", "svg", "json"):
        a, b = ((tmp_path / "deep" / f"{name}.{kind}").read_bytes() for name in "ab")
        assert a == b
    picture = np.array(Image.open(tmp_path / "deep" / "a.png").convert("RGB"))
    assert picture.shape[0] > 800 and picture.std() > 20 and (picture[0] == 255).all()
    svg = (tmp_path / "deep" / "a.svg").read_text()
    assert svg.count("<image") == 2 * (1 + 2 * 3) + 1  # a colour bar
    assert not re.search(r"\d{4}-\d\d-\d\dT", svg)

    facts = json.loads((tmp_path / "deep" / "a.json").read_text())
    assert [n["title"] for n in facts["networks"]] == [
        "ResNet-20",
        "ResNet-20 + SE",
        "ResNet-20 + LCM2",
    ]
    assert [i["image"] for i in facts["images"]] == [3, 14]
    out = capsys.readouterr().out
    assert all(f"{p:.4f}" in out for image in facts["images"] for p in image["P"])


@torch.no_grad()
def test_P_is_the_softmax_probability_of_the_true_class(runs, tmp_path):
    (directory,) = (runs / "digits/resnet20/se").iterdir()
    script.main([str(directory / "checkpoint.pt"), "--out", str(tmp_path / "f.svg")])
    shown, resident = (
        json.loads((tmp_path / "f.json").read_text())["images"],
        DIGITS.test(1).resident,
    )
    assert [image["image"] for image in shown] == [0, 88, 177, 266]
    network = build_network("resnet20", "se", num_classes=10, layers=8).eval()
    network.load_state_dict(checkpoint.load_model_weights(directory))
    mean, std = torch.tensor(DIGITS.mean), torch.tensor(DIGITS.std)
    for image in shown:
        pixels, label = resident.images[image["image"]], resident.labels[image["image"]]
        probabilities = network(((pixels / 255 - mean) / std).permute(2, 0, 1)[None]).softmax(1)[0]
        assert image["class"] == str(int(label)) and image["predicted"] == [
            str(int(probabilities.argmax()))
        ]
        assert image["P"][0] == pytest.approx(probabilities[label].item(), abs=1e-5)


def test_takes_the_newest_runs_that_differ_in_the_attention_alone(tmp_path):
    make_run(tmp_path, "none", seed=0, end="2026-01-01T00:00:00+00:00")
    make_run(tmp_path, "se", seed=0, end="2026-01-02T00:00:00+00:00")
    make_run(tmp_path, "none", seed=1, end="2026-01-03T00:00:00+00:00")
    make_run(tmp_path, "se", seed=1, end="2026-01-03T00:00:00+00:00")
    make_run(tmp_path, "none", seed=2, end="2026-01-04T00:00:00+00:00")
    make_run(tmp_path, "se", seed=2, layers=14, end="2026-01-04T00:00:00+00:00")  # another network
    make_run(tmp_path, "none", seed=3, end="2026-01-05T00:00:00+00:00")
    make_run(tmp_path, "se", seed=3, state="stopped", end=None)

    def found(attentions=("none", "se"), seed=None):
        return [
            (s["attention"], s["seed"])
            for _, s in newest_arms(tmp_path, "digits", "resnet20", attentions, seed)
        ]

    assert found() == [("none", 1), ("se", 1)]
    assert found(seed=0) == [("none", 0), ("se", 0)]
    with pytest.raises(UserError, match=r"(?s)none: seed 2, .*'model.layers': 8.*se: seed 2, .*14"):
        found(seed=2)
    message = f"no finished run of seed 3 with attention se: train it .*seed=3 runs={re.escape(str(tmp_path))}"
    with pytest.raises(UserError, match=message):
        found(seed=3)
    assert found(("se", "se"), 1) == [("se", 1)]


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [("precision", "bf16", "precision=bf16"), ("compile", True, "compiled")],
)
def test_arms_of_one_figure_have_one_precision_and_are_all_compiled_or_none(
    key, value, words, tmp_path
):
    make_run(tmp_path, "none")
    change_state(make_run(tmp_path, "se"), lambda state: state.update({key: value}))
    with pytest.raises(UserError, match=f"no protocol in common.*(?s:.)*se: seed 0, .*{words}"):
        newest_arms(tmp_path, "digits", "resnet20", ["none", "se"])


def test_nothing_that_a_run_names_is_called(tmp_path):
    """A run.json may come from anybody: what is built is what configs/ has under the same name."""
    directory = make_run(tmp_path, "se")
    call = {"_target_": "os.mkdir", "path": str(tmp_path / "made")}
    change_state(
        directory,
        lambda state: [state["config"][g].update(call) for g in ("model", "attention", "data")],
    )
    script.main([str(directory), "--index", "0", "--out", str(tmp_path / "figure")])
    assert (tmp_path / "figure.png").exists() and not (tmp_path / "made").exists()


def test_titles_tell_seeds_apart_where_needed():
    states = [{"model": "resnet50", "attention": "gc", "seed": seed} for seed in (4, 7)]
    assert titles(states) == ["ResNet-50 + GC, seed 4", "ResNet-50 + GC, seed 7"]


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
        ("{}/good --index 355", "--index 355: the test images of digits are 0 to 354"),
        ("{}/good --index -1", "--index -1: the test images"),
        ("{}/good --chunk 0", "chunk, 0, at least 1"),
        ("{}/good --out {}/file/figure", "cannot make the folder"),
        ("{}/good --device cuda:99", "device=cuda:99"),
        (
            "--runs-root {}/empty",
            "has no finished run with attention none, se, lcm2: train it (python train.py",
        ),
        ("--runs-root {}/empty --attention lcm3", "attention=lcm3: no such attention"),
        ("--runs-root {}/empty --model resnt20", "model=resnt20: no such model"),
    ],
)
def test_what_is_wrong_is_said_in_one_message(arguments, words, broken, capsys):
    out = [] if "--out" in arguments else ["--out", str(broken / "figure")]
    with pytest.raises(SystemExit) as ended:
        script.main(arguments.replace("{}", str(broken)).split() + out)
    assert ended.value.code == 2
    message = capsys.readouterr().err
    assert (
        message.startswith("error: ")
        and words.format(broken) in message
        and "Traceback" not in message
    )
    assert not list(broken.glob("figure*"))
