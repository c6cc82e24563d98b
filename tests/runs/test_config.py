"""The check of a composed config, its identity, and how far it is from the protocol."""

import itertools

import pytest
from hydra_config import composed, config

from lcm.config.check import IDLE, check
from lcm.config.compose import choices, flatten, load, plain
from lcm.config.identity import config_hash, deviations, identity
from lcm.runs.grid import problems

MODELS, ATTENTIONS, SETS = choices("model"), choices("attention"), choices("data")
SMALL = {name for name in MODELS if load("model", name)["image_size"] == 32}


def test_every_combination_composes_and_only_those_that_fit_pass():
    """Networks x attentions x data sets; the message names the networks and data sets that fit."""
    for model, attention, data in itertools.product(MODELS, ATTENTIONS, SETS):
        found = check(chosen := config(model, attention, data))
        if data == "folder" or (model in SMALL) == (data != "mini_imagenet"):
            assert found == [] and deviations(chosen) == {}, (model, attention, data)
        else:
            (problem,) = found
            fitting = {*MODELS} - SMALL if model in SMALL else SMALL
            sets = "cifar10, cifar100, digits" if model in SMALL else "mini_imagenet"
            assert problem.startswith(f"model={model} is for ") and f" data={data} has " in problem
            assert problem.endswith(f": take model={', '.join(sorted(fitting))}, or data={sets}")


@pytest.mark.parametrize(
    ("group", "name"), [(g, n) for g in ("model", "attention", "data") for n in choices(g)]
)
def test_hydra_composes_what_the_check_expects(group, name):
    """`plain` composes each name once and joins the parts as Hydra composes the whole."""
    large = name not in SMALL if group == "model" else name == "mini_imagenet"
    names = {"data": "mini_imagenet", "model": "resnet50"} if large else {}
    chosen = composed(*(f"{key}={value}" for key, value in (names | {group: name}).items()))
    assert check(chosen) == []
    assert flatten({key: chosen[key] for key in plain(chosen)}) == flatten(plain(chosen))


NOT_IDENTITY = {
    "device": "cuda:1", "threads": 3, "allocator": False, "capture": False, "runs": "elsewhere",
        "run_directory": "here",
    "checkpoint__every": "5 minutes", "tensorboard": False, "progress": "bar", "debug": True,
        "rerun": True,
}  # fmt: skip
ROUNDING = {  # part of the identity, and no deviation from the protocol
    "seed": 1, "precision": "bf16", "compile": True, "deterministic": True, "channels_last": False,
    "schedule__test_batch_size": 50,
}  # fmt: skip
DEVIATIONS = {
    "model__layers": 32, "attention__reduction": 8, "attention__sites": {"stages": [2]},
        "attention__expand_bias": True,
    "data__pad": 2, "data__mirror": True, "schedule__epochs": 2, "schedule__batch_size": 32,
        "schedule__learning_rate": 0.2,
    "schedule__divide_at": [0.5], "schedule__divide_by": 5, "schedule__momentum": 0.8,
        "schedule__nesterov": False,
    "schedule__weight_decay": 0.0, "schedule__decay": "cosine", "schedule__warm_up": 1,
        "schedule__label_smoothing": 0.1,
    "schedule__optimizer": "adamw", "schedule__betas": [0.8, 0.99], "schedule__eps": 1e-6,
}  # fmt: skip


def with_effect(key, *value):
    """The config in which a key has this value, and an effect; without a value its default."""
    adamw = {"schedule__optimizer": "adamw"} if key in ("schedule__betas", "schedule__eps") else {}
    return config(**adamw, **({key: value[0]} if value else {}))


@pytest.mark.parametrize("key, value", (NOT_IDENTITY | ROUNDING | DEVIATIONS).items())
def test_what_can_change_a_number_is_part_of_the_identity(key, value):
    one, other = with_effect(key), with_effect(key, value)
    assert check(other) == []
    assert (config_hash(other) == config_hash(one)) == (key in NOT_IDENTITY)
    different = {key.replace("__", "."): value} if key in DEVIATIONS else {}
    assert deviations(other) == deviations(one) | different


@pytest.mark.parametrize(
    ("key", "choice", "other"),
    [(key, *choice) for choice, keys in IDLE.items() for key in keys],
)
def test_a_key_without_effect_is_refused(key, choice, other):
    """Two hashes for one run: where it has none, and only there."""
    chosen = {f"schedule__{choice}": other, f"schedule__{key}": DEVIATIONS[f"schedule__{key}"]}
    (problem,) = check(config(**chosen))
    assert problem.endswith(f": has no effect with schedule.{choice}={other}")
    effective = {"sgd": "adamw", "adamw": "sgd", "cosine": "steps", 0: 0.8}
    chosen[f"schedule__{choice}"] = effective[other]
    assert check(config(**chosen)) == []


def test_every_key_is_on_one_side():
    """A key that is added to the configs has to be thought about here."""
    configs = config("resnet50", data="mini_imagenet"), config(data="cifar10"), config("densenet40")
    keys = {key for each in configs for key in flatten(each)}
    keys -= {key.replace("__", ".") for key in (*ROUNDING, *DEVIATIONS, *NOT_IDENTITY)}
    facts = {
        key for key in keys if key.endswith((".name", ".image_size", ".family", ".num_classes"))
    }
    sources = ("root", "workers", "download", "places", "cache_dir")
    sources = {f"data.{key}" for key in sources}
    others = {
        "data.cache_size",
        "data.complete",
        "data.verify",
        "model.growth_rate",
        "model.memory",
    }
    assert all(
        key.startswith("attention.paper.") or key.endswith(("_target_", "_convert_"))
        for key in keys - facts - sources - others
    )
    named = {key for each in configs for key in identity(each)}
    assert others | facts <= named and not sources & named


def test_a_short_schedule_and_another_cache_are_no_deviations_and_two_epochs_are():
    uncached = config("resnet50", data="mini_imagenet", data__cache_size=None)
    assert check(uncached) == [] and deviations(uncached) == {}
    for key, value in {"cache_size": 0, "workers": -1, "root": ""}.items():
        wrong = config("resnet50", data="mini_imagenet", **{f"data__{key}": value})
        assert len(check(wrong)) == 1, key
    assert config_hash(uncached) != config_hash(config("resnet50", data="mini_imagenet"))
    assert deviations(config(data="cifar10", schedule="short")) == {}
    assert deviations(config(data="cifar10", schedule="short", schedule__epochs=2)) == {
        "schedule.epochs": 2
    }


VALUES = {  # right ones, wrong ones
    "seed": ([0, 2**31 - 1], [-1, 2**31, 1.5, "zero", True, None]),
    "device": (["auto", "cpu", "cuda", "cuda:12"], ["gpu", "cuda:", 0, None]),
    "precision": (["fp32", "tf32", "bf16"], ["fp16", "FP32", 32]),
    "compile": ([True], ["yes", 1, None]),
    "threads": (["auto", 1, 1024], [0, 1025, "many", 1.5]),
    "runs": (["here"], ["", " ", None, 3]),
    "run_directory": ([None, "here"], ["", 3]),
    "checkpoint.every": (["epoch", "1 step", "500 steps", "1 minute", "2.5 minutes"],
        ["never", "0 steps", "5", "1 hour", 5]),
    "progress": (["auto", "bar", "lines"], [True, "none"]),
    "schedule.epochs": ([1, 10**6], [0, -1, 10**400, 1.5, "ten", float("inf"), True]),
    "schedule.batch_size": ([2], [0, 1, "64", None]),
    "schedule.learning_rate": ([1e-9, 10],
        [0, -0.1, 10**400, float("nan"), float("inf"), "0.1", None]),
    "schedule.divide_at": ([[], [0.1, 0.9]],
        [[0.75, 0.5], [0.5, 0.5], [150, 225], [0], [1], [0.5, "0.7"], 0.5, "0.5"]),
    "schedule.divide_by": ([1, 2.5], [0.5, 0, "ten"]),
    "schedule.momentum": ([0, 0.999], [1, -0.1, "much"]),
    "schedule.weight_decay": ([0], [-1e-4, "none"]),
    "schedule.test_batch_size": ([1], [0]),
    "schedule.decay": (["steps", "cosine"], ["linear", None]),
    "schedule.warm_up": ([0, 7], [8, -1, 0.5]),
    "schedule.label_smoothing": ([0, 0.1], [1, -0.1, "much"]),
    "schedule.optimizer": (["sgd", "adamw"], ["adam", None]),
    "schedule.betas": ([[0, 0.5]], [[0.9], [0.9, 1], 0.9, None]),
    "schedule.eps": ([1e-8], [0, -1]),
    "data.pad": ([0, 16], [-1, 17, 4.0]),
    "data.mirror": ([True], ["yes", 1]),
    "model.layers": ([8, 14], [21, 7, 0, "20", 20.0]),
    "attention.reduction": ([1, 16], [0, -4, 17, 2.5, "4"]),
    "attention.sites": (["every", {"stages": [1]}, {"stages": [2, 3]}, {"last_of_stage": 1}],
                        ["some", [2, 3], {"stages": []}, {"stages": [3, 2]}, {"stages": [0]},
                         {"stages": 2}, {"stage": 2}, {"last_of_stage": 9}, {"last_of_stage": 0},
                         {"last_of_stage": 2, "stages": [2]}]),
    "attention.expand_bias": ([True], ["no", 0]),
}  # fmt: skip


@pytest.mark.parametrize("key", VALUES)
def test_a_wrong_value_is_named_with_what_it_may_be(key):
    for value in VALUES[key][0]:
        assert problems(with_effect(key.replace(".", "__"), value)) == [], value
    for value in VALUES[key][1]:
        (problem,) = problems(with_effect(key.replace(".", "__"), value))
        assert problem.startswith((key, "attention=lcm2 does not fit", "model=resnet20: "))
        expected = (
            "must be",
            'is not "every"',
            "the stages are",
            "have to rise",
            "larger than the 16 channels",
            "has 6n + 2 layers",
        )
        assert any(words in problem for words in expected)


@pytest.mark.parametrize("section", [{"name": "resnet2"}, {}, None, {"name": ["a"]}])
def test_a_name_that_no_file_has(section):
    (problem,) = check(config() | {"model": section})
    assert "no such model" in problem and "choose from" in problem


def test_the_hash_of_the_planned_runs_stays():
    """schedule=tenth extends cifar now; it was written out when its plan was made."""
    planned = config("resnet20", "lcm2", "cifar100", "tenth")
    assert config_hash(planned).startswith("57e0981df85f5427")
