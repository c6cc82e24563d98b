"""The check of a composed config, its identity, and how far it is from the protocol."""

import itertools
import json
from pathlib import Path

import pytest
from hydra_config import composed

from lcm.config.check import check
from lcm.config.identity import config_hash, deviations, identity
from lcm.config.options import choices, flatten, known_targets, load, plain
from lcm.errors import UserError
from lcm.runs.grid import problems

ROOT = Path(__file__).resolve().parents[2]

SCHEDULE = {"digits": "digits", "cifar10": "cifar", "cifar100": "cifar", "mini_imagenet": "mini_imagenet"}
MODELS, ATTENTIONS, SETS = choices("model"), choices("attention"), choices("data")
SMALL = {name for name in MODELS if load("model", name)["image_size"] == 32}


def config(model="resnet20", attention="lcm2", data="digits", schedule=None, **changes):
    """What these names compose to, with changes: config(schedule__epochs=2)."""
    names = {"model": model, "attention": attention, "data": data, "schedule": schedule or SCHEDULE[data]}
    composed = plain({group: {"name": name} for group, name in names.items()})
    for key, value in changes.items():
        *groups, last = key.split("__")
        place = composed
        for group in groups:
            place = place[group]
        place[last] = value
    return composed


def test_every_combination_composes_and_only_those_that_fit_pass():
    """Networks x attentions x data sets; the message names a network and a data set that fit."""
    nearest = {"resnet50": "resnet50_cifar", "resnet50_cifar": "resnet50"}
    for model, attention, data in itertools.product(MODELS, ATTENTIONS, SETS):
        composed = config(model, attention, data)
        found = check(composed)
        if (model in SMALL) == (data != "mini_imagenet"):
            assert found == [] and deviations(composed) == {}, (model, attention, data)
        else:
            (problem,) = found
            assert f"model={model} is for " in problem and f"data={data} has " in problem
            assert f"take model={nearest.get(model, '')}" in problem
            assert problem.endswith("or data=mini_imagenet" if data != "mini_imagenet" else "cifar10, cifar100, digits")


@pytest.mark.parametrize(("group", "name"), [(g, n) for g in ("model", "attention", "data") for n in choices(g)])
def test_hydra_composes_what_the_check_expects(group, name):
    """`plain` is this project's own reading of the YAML files: it has to agree with Hydra's."""
    data = name if group == "data" else "mini_imagenet" if group == "model" and name not in SMALL else "digits"
    model = name if group == "model" else "resnet50" if data == "mini_imagenet" else "resnet20"
    overrides = list(dict.fromkeys([f"data={data}", f"model={model}", f"{group}={name}"]))
    config = composed(*overrides)
    assert check(config) == []
    assert flatten({key: config[key] for key in plain(config)}) == flatten(plain(config))


NOT_IDENTITY = {
    "device": "cuda:1", "threads": 3, "allocator": False, "capture": False, "runs": "elsewhere", "run_directory": "here",
    "checkpoint__every": "5 minutes", "tensorboard": False, "progress": "bar", "debug": True, "data__root": "/data",
    "data__workers": 7,
}  # fmt: skip
IDENTITY = {
    "seed": 1, "precision": "bf16", "compile": True, "deterministic": True, "channels_last": False, "fold_batch_norm": False,
    "model__layers": 32, "attention__reduction": 8, "attention__sites": {"stages": [2]}, "attention__expand_bias": True,
    "data__pad": 2, "data__mirror": True, "schedule__epochs": 2, "schedule__batch_size": 32, "schedule__learning_rate": 0.2,
    "schedule__divide_at": [0.5], "schedule__divide_by": 5, "schedule__momentum": 0.8, "schedule__nesterov": False,
    "schedule__weight_decay": 0.0, "schedule__test_batch_size": 50,
}  # fmt: skip
ROUNDING = (
    "seed",
    "precision",
    "compile",
    "deterministic",
    "channels_last",
    "fold_batch_norm",
    "schedule__test_batch_size",
)


@pytest.mark.parametrize("key", NOT_IDENTITY)
def test_the_machine_and_places_are_no_part_of_the_identity(key):
    other = config(**{key: NOT_IDENTITY[key]})
    assert check(other) == []
    assert config_hash(other) == config_hash(config()) and deviations(other) == {}


@pytest.mark.parametrize("key", IDENTITY)
def test_what_can_change_a_number_is(key):
    other = config(**{key: IDENTITY[key]})
    assert check(other) == []
    assert config_hash(other) != config_hash(config())
    assert deviations(other) == ({} if key in ROUNDING else {key.replace("__", "."): IDENTITY[key]})


def test_every_key_is_on_one_side():
    """A key that is added to the configs has to be thought about here."""
    configs = config("resnet50", data="mini_imagenet"), config(data="cifar10"), config("densenet40")
    keys = {key for each in configs for key in flatten(each) if not key.endswith(("_target_", "_convert_"))}
    keys -= {key.replace("__", ".") for key in (*IDENTITY, *NOT_IDENTITY)}
    facts = {key for key in keys if key.endswith((".name", ".image_size", ".family", ".num_classes"))}
    sources = {f"data.{key}" for key in ("verify", "download", "places", "cache_dir")}
    choices = {"data.cache", "data.cache_size", "model.growth_rate", "model.compression", "model.memory"}
    assert {key for key in keys - facts - sources - choices if not key.startswith("attention.paper.")} == set()
    named = {key for each in configs for key in identity(each)}
    assert choices | facts <= named | {"model.compression"} and not sources & named


def test_the_hash_does_not_depend_on_the_order_of_keys():
    one = config()
    other = {
        key: dict(reversed(value.items())) if isinstance(value, dict) else value for key, value in reversed(one.items())
    }
    assert config_hash(one) == config_hash(other)


def test_a_short_schedule_and_another_cache_are_no_deviations_and_two_epochs_are():
    uncached = config("resnet50", data="mini_imagenet", data__cache_size=None)
    assert check(uncached) == [] and deviations(uncached) == {}
    assert check(config("resnet50", data="mini_imagenet", data__cache_size=1)) == []
    assert len(check(config("resnet50", data="mini_imagenet", data__cache_size=0))) == 1
    assert config_hash(uncached) != config_hash(config("resnet50", data="mini_imagenet"))
    assert deviations(config(data="cifar10", schedule="short")) == {}
    assert deviations(config(data="cifar10", schedule__epochs=2)) == {"schedule.epochs": 2}
    assert deviations(config(attention__reduction=8, model__layers=32)) == {
        "attention.reduction": 8,
        "model.layers": 32,
    }


WRONG = {
    "seed": [-1, 2**31, 1.5, "zero", True, None],
    "device": ["gpu", "cuda:", 0, None],
    "precision": ["fp16", "FP32", 32],
    "compile": ["yes", 1, None],
    "threads": [0, 1025, "many", 1.5],
    "runs": ["", " ", None, 3],
    "run_directory": ["", 3],
    "checkpoint.every": ["never", "0 steps", "5", "1 hour", 5],
    "progress": [True, "none"],
    "schedule.epochs": [0, -1, 1.5, "ten", float("inf"), True],
    "schedule.batch_size": [0, 1, "64", None],
    "schedule.learning_rate": [0, -0.1, float("nan"), float("inf"), "0.1", None],
    "schedule.divide_at": [[0.75, 0.5], [0.5, 0.5], [150, 225], [0], [1], [0.5, "0.7"], 0.5, "0.5"],
    "schedule.divide_by": [0.5, 0, "ten"],
    "schedule.momentum": [1, -0.1, "much"],
    "schedule.weight_decay": [-1e-4, "none"],
    "schedule.test_batch_size": [0],
    "data.workers": [-1, 1.5, "two"],
    "data.pad": [-1, 17, 4.0],
    "data.mirror": ["yes", 1],
    "model.layers": [21, 7, "20", 20.0],
    "attention.reduction": [0, -4, 17, 2.5, "4"],
    "attention.sites": [
        "some", [2, 3], {"stages": []}, {"stages": [0]}, {"stages": 2}, {"stage": 2}, {"last_of_stage": 9}, {"last_of_stage": 0},
        {"last_of_stage": 2, "stages": [2]},
    ],
    "attention.expand_bias": ["no", 0],
}  # fmt: skip
RIGHT = {
    "seed": [0, 2**31 - 1],
    "device": ["auto", "cpu", "cuda", "cuda:12"],
    "precision": ["fp32", "tf32", "bf16"],
    "threads": ["auto", 1, 1024],
    "run_directory": [None, "here"],
    "checkpoint.every": ["epoch", "1 step", "500 steps", "1 minute", "2.5 minutes"],
    "progress": ["auto", "bar", "lines"],
    "schedule.epochs": [1, 10**400],
    "schedule.batch_size": [2],
    "schedule.learning_rate": [1e-9, 10],
    "schedule.divide_at": [[], [0.1, 0.9]],
    "schedule.divide_by": [1, 2.5],
    "schedule.momentum": [0, 0.999],
    "schedule.weight_decay": [0],
    "schedule.test_batch_size": [1],
    "data.root": [None, "/data"],
    "data.workers": [0],
    "data.pad": [0, 16],
    "model.layers": [8, 14],
    "attention.reduction": [1, 16],
    "attention.sites": ["every", {"stages": [1]}, {"stages": [3, 2]}, {"last_of_stage": 1}],
}


def cases(table):
    return pytest.mark.parametrize(
        ("key", "value"), [(key, value) for key, values in table.items() for value in values]
    )


@cases(WRONG)
def test_a_wrong_value_is_named_with_what_it_may_be(key, value):
    (problem,) = problems(config(**{key.replace(".", "__"): value}))
    assert problem.startswith((key, "attention=lcm2 does not fit"))
    assert any(words in problem for words in ("must be", "the stages are", "larger than the 16 channels"))


@cases(RIGHT)
def test_a_right_value_passes(key, value):
    assert problems(config(**{key.replace(".", "__"): value})) == []


@pytest.mark.parametrize(
    ("model", "layers", "nearest"),
    [("resnet20", 9, "8 or 14"), ("resnet20", 21, "20 or 26"), ("densenet40", 8, "7 or 10"), ("densenet40", 41, "40 or 43")],
)  # fmt: skip
def test_a_depth_that_cannot_be_is_named_with_the_two_around_it(model, layers, nearest):
    (problem,) = check(config(model, model__layers=layers))
    assert problem.endswith(f"nearest: {nearest}")


def test_unknown_keys_and_missing_ones_all_at_once():
    broken = config(schedule__epoch=3, attention__reductions=4, lr=0.1, seed=-1, checkpoint=3)
    del broken["model"]["layers"]
    assert sorted(check(broken)) == [
        "attention.reductions: no such key for these choices; nearest: attention.reduction",
        "checkpoint.every: missing from the config",
        "checkpoint: no such key for these choices; nearest: checkpoint.every",
        "lr: no such key for these choices",
        "model.layers: missing from the config",
        "schedule.epoch: no such key for these choices; nearest: schedule.epochs",
        "seed=-1: must be a whole number >= 0 and < 2147483648",
    ]


@pytest.mark.parametrize("group", ["data", "model", "attention", "schedule"])
@pytest.mark.parametrize("section", [{"name": "resnet2"}, {}, None, "resnet20", {"name": ["a"]}])
def test_unknown_names(group, section):
    (problem,) = check(config() | {group: section})
    assert "no such " + group in problem and "choose from" in problem


@pytest.mark.parametrize(
    "key", ["model__image_size", "data__num_classes", "model__family", "data___target_", "attention___target_"]
)
def test_facts_are_not_choices(key):
    (problem,) = check(config(**{key: "os.system"}))
    assert "not a choice" in problem


def test_widths_bound_the_reduction():
    """A DenseNet's sites are as wide as its growth rate, a ResNet's as the stage."""
    assert problems(config("densenet40", attention__reduction=12)) == []
    assert "larger than the 12 channels" in problems(config("densenet40", attention__reduction=13))[0]
    assert problems(config("densenet40", model__growth_rate=24, attention__reduction=24)) == []
    assert problems(config(attention__reduction=64, attention__sites={"stages": [3]})) == []


def test_the_hashes_of_the_recorded_runs_stay():
    records = sorted((ROOT / "results" / "metrics").glob("*.jsonl"))
    assert records
    for file in records:
        with open(file) as lines:
            run = json.loads(lines.readline())["run"]
        assert config_hash(run["config"]) == run["config_hash"], file.name


@pytest.mark.parametrize("name", ["../../etc", "resnet20/../..", "os.system", None, 3])
def test_a_run_of_unknown_names_is_not_instantiated(name):
    with pytest.raises(UserError, match="no such model"):
        known_targets(config() | {"model": {"name": name, "_target_": "os.system"}})
    assert known_targets(config(model___target_="os.system"))["model"]["_target_"] == "lcm.models.CifarResNet"
