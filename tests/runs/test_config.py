"""The check of a composed config, its identity, and how far it is from the protocol."""

import itertools
import json
import time
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
    refused = slowest = 0
    for model, attention, data in itertools.product(MODELS, ATTENTIONS, SETS):
        started = time.process_time()
        composed = config(model, attention, data)
        faults = check(composed)
        slowest = max(slowest, time.process_time() - started)
        fits = (model in SMALL) == (data != "mini_imagenet")
        if fits:
            assert faults == [], (model, attention, data)
            assert deviations(composed) == {}
        else:
            refused += 1
            near = "resnet50" if model == "resnet50_cifar" else "resnet50_cifar" if model == "resnet50" else None
            assert len(faults) == 1 and f"model={model} is for " in faults[0] and f"data={data} has " in faults[0]
            assert near is None or f"take model={near}," in faults[0]
            assert "or data=" in faults[0]
    small = len(SMALL)
    assert refused == len(ATTENTIONS) * (small * 1 + (len(MODELS) - small) * (len(SETS) - 1))
    assert slowest < 2


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
ROUNDING = {
    "seed",
    "precision",
    "compile",
    "deterministic",
    "channels_last",
    "fold_batch_norm",
    "schedule__test_batch_size",
}


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
    keys = {
        key
        for data in SETS
        for key in flatten(config("resnet50" if data == "mini_imagenet" else "resnet20", data=data))
    }
    keys -= {key for key in keys if key.endswith(("_target_", "_convert_")) or key.startswith("attention.paper")}
    named = {key.replace("__", ".") for key in {**IDENTITY, **NOT_IDENTITY}}
    facts = {
        f"{group}.{key}"
        for group in ("data", "model", "attention", "schedule")
        for key in ("name", "image_size", "family")
    }
    rest = keys - named - facts - {"data.num_classes"}
    assert (
        rest
        == {"data.verify", "data.download", "data.places", "data.cache", "data.cache_dir", "data.cache_size"} & rest
    )
    in_identity = set(identity(config("resnet50", data="mini_imagenet"))) | set(identity(config(data="cifar10")))
    assert in_identity & rest == {"data.cache", "data.cache_size"} & rest


def test_the_hash_does_not_depend_on_the_order_of_keys():
    one = config()
    other = {
        key: dict(reversed(value.items())) if isinstance(value, dict) else value for key, value in reversed(one.items())
    }
    assert config_hash(one) == config_hash(other)


def test_arms_and_seeds_have_directories_of_their_own():
    hashes = {config_hash(config(attention=a, seed=s)) for a in ATTENTIONS for s in range(3)}
    assert len(hashes) == 3 * len(ATTENTIONS)


def test_a_short_schedule_is_no_deviation_and_two_epochs_are():
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
    "threads": [0, "many", 1.5],
    "runs": ["", " ", None, 3],
    "run_directory": ["", 3],
    "checkpoint.every": ["never", "0 steps", "5", "1 hour", 5],
    "progress": [True, "none"],
    "schedule.epochs": [0, -1, 1.5, "ten", float("inf"), True],
    "schedule.batch_size": [0, 1, "64", None],
    "schedule.learning_rate": [0, -0.1, float("nan"), float("inf"), "0.1", None],
    "schedule.divide_at": [[0.75, 0.5], [0.5, 0.5], [150, 225], [0], 0.5, "0.5"],
    "schedule.divide_by": [0.5, 0, "ten"],
    "schedule.momentum": [1, -0.1, "much"],
    "schedule.weight_decay": [-1e-4, "none"],
    "data.workers": [-1, 1.5, "two"],
    "data.pad": [-1, 17, 4.0],
    "data.mirror": ["yes", 1],
    "model.layers": [21, 7, "20", 20.0],
    "attention.reduction": [0, -4, 17, 2.5, "4"],
    "attention.sites": [
        "some",
        {"stages": []},
        {"stages": [0]},
        {"stage": 2},
        {"last_of_stage": 9},
        [2, 3],
        {"stages": 2},
    ],
    "attention.expand_bias": ["no", 0],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in WRONG.items() for value in values])
def test_a_wrong_value_is_named_with_what_it_may_be(key, value):
    faults = problems(config(**{key.replace(".", "__"): value}))
    assert len(faults) == 1 and faults[0].startswith((key, "attention=lcm2 does not fit"))
    assert any(words in faults[0] for words in ("must be", "take", "the stages are", "larger than the 16 channels"))


def test_unknown_keys_and_missing_ones_all_at_once():
    broken = config(schedule__epoch=3, attention__reductions=4, lr=0.1, seed=-1)
    del broken["model"]["layers"]
    faults = check(broken)
    assert len(faults) == 5
    for part in (
        "schedule.epoch: no such key; nearest: schedule.epochs",
        "attention.reductions: no such key; nearest: attention.reduction",
        "lr: no such key",
        "seed=-1: must be a whole number >= 0",
        "model.layers: missing from the config",
    ):
        assert any(fault.startswith(part) for fault in faults), part


@pytest.mark.parametrize("group", ["data", "model", "attention", "schedule"])
@pytest.mark.parametrize("section", [{"name": "resnet2"}, {}, None, "resnet20", {"name": ["a"]}])
def test_unknown_names(group, section):
    faults = check(config() | {group: section})
    assert len(faults) == 1 and "no such " + group in faults[0] and "choose from" in faults[0]


def test_facts_are_not_choices():
    for key in ("model__image_size", "data__num_classes", "model__family", "data___target_", "attention___target_"):
        faults = check(config(**{key: "os.system"}))
        assert len(faults) == 1 and "not a choice" in faults[0]


def test_a_reduction_where_there_is_none():
    assert check(config(attention="none", attention__reduction=4)) == [
        "attention.reduction: attention=none has no reduction"
    ]


def test_widths_bound_the_reduction():
    """A DenseNet's sites are as wide as its growth rate, a ResNet's as the stage."""
    assert problems(config("densenet40", attention__reduction=12)) == []
    assert "larger than the 12 channels" in problems(config("densenet40", attention__reduction=13))[0]
    assert problems(config("densenet40", model__growth_rate=24, attention__reduction=24)) == []
    assert problems(config(attention__reduction=64, attention__sites={"stages": [3]})) == []
    assert "larger than the 16 channels" in problems(config(attention__reduction=64))[0]


def test_load_reads_yaml():
    assert load("model", "resnet20")["layers"] == 20


def test_the_hashes_of_the_recorded_runs_stay():
    records = sorted((ROOT / "results" / "metrics").glob("*.jsonl"))
    assert records
    for file in records:
        with open(file) as lines:
            run = json.loads(lines.readline())["run"]
        assert config_hash(run["config"]) == run["config_hash"], file.name


def test_where_regions_are_cut_from_is_no_deviation_but_another_run():
    other = config("resnet50", data="mini_imagenet", data__cache_size=None)
    assert check(other) == [] and deviations(other) == {}
    assert config_hash(other) != config_hash(config("resnet50", data="mini_imagenet"))


@pytest.mark.parametrize("name", ["../../etc", "resnet20/../..", "os.system", None, 3])
def test_a_run_of_unknown_names_is_not_instantiated(name):
    with pytest.raises(UserError, match="no such model"):
        known_targets(config() | {"model": {"name": name, "_target_": "os.system"}})
    assert known_targets(config(model___target_="os.system"))["model"]["_target_"] == "lcm.models.CifarResNet"
