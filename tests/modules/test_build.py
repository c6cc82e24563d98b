"""Names, mappings and overrides; what is wrong is named."""

import re

import pytest
import torch
from omegaconf import OmegaConf

from lcm import UserError, build_network
from lcm.attention import CBAM, LCM2, SqueezeExcite
from lcm.config.options import CONFIGS
from lcm.config.options import load as load_config
from lcm.models.build import paper_complexity

TINY = {"name": "tiny", "family": "tiny", "image_size": 32, "_target_": "lcm.models.CifarResNet", "layers": 8}


def test_reductions_follow_the_family_and_can_be_overridden():
    assert build_network("resnet20", "lcm2").stage3[0].site.w1.weight.shape[:2] == (16, 64)
    assert build_network("resnet20", "lcm2", reduction=8).stage3[0].site.w1.weight.shape[:2] == (8, 64)
    assert build_network("densenet40", "lcm2").block1[0].site.w2.bias is not None
    assert build_network("resnet20", "lcm2").stage3[0].site.w2.bias is None
    assert build_network("densenet40", "cbam").block1[0].site.w0.bias is None


def test_overrides_reach_both_mappings():
    network = build_network("resnet20", "se", num_classes=3, layers=8, sites={"last_of_stage": 3})
    assert [name for name, m in network.named_modules() if isinstance(m, SqueezeExcite)] == ["stage3.0.site"]
    assert network.fc.out_features == 3


def test_mappings_as_hydra_composes_them():
    raw = OmegaConf.create({"model": load_config("model", "densenet40"), "attention": load_config("attention", "cbam")})
    resolved = OmegaConf.to_container(raw, resolve=True)
    for model, attention in ((raw.model, raw.attention), (resolved["model"], resolved["attention"])):
        network = build_network(model, attention, seed=1)
        assert isinstance(network.block1[0].site, CBAM)
        expected = build_network("densenet40", "cbam", seed=1).state_dict()
        assert all(torch.equal(value, expected[key]) for key, value in network.state_dict().items())


def test_a_model_of_ones_own_gives_its_sizes_itself():
    assert isinstance(build_network(TINY, "lcm2", reduction=4, expand_bias=False).stage1[0].site, LCM2)
    with pytest.raises(UserError, match="no sizes for the family 'tiny'"):
        build_network(TINY, "lcm2")


def test_building_leaves_the_callers_mappings_alone():
    model, attention = load_config("model", "resnet20"), load_config("attention", "lcm2")
    build_network(model, attention, layers=8, reduction=2)
    assert model == load_config("model", "resnet20")
    assert attention == load_config("attention", "lcm2")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "resnet_20"}, "model=resnet_20: no such model; choose from densenet100, "),
        ({"model": "vgg"}, "model=vgg: no such model; choose from densenet100, densenet121, densenet40"),
        ({"model": "resnet20", "attention": "lcm"}, "attention=lcm: no such attention; choose from "),
        (
            {"model": "resnet20", "attention": "se", "reducton": 8},
            "'reducton' is no key of resnet20 and attention se; nearest: reduction; the keys are: layers",
        ),
        ({"model": "resnet20", "reduction": 8}, "the keys are: layers."),
        ({"model": "resnet20", "attention": "lcm2", "reduction": 17}, "reduction 17 is larger than the 16 channels"),
        ({"model": "densenet40", "attention": "se", "reduction": 13}, "reduction 13 is larger than the 12 channels"),
        ({"model": "resnet20", "layers": 21}, "6n + 2 layers"),
        ({"model": "densenet40", "layers": 41}, "3n + 4 layers"),
        ({"model": "densenet40", "memory": "big"}, "memory='big'"),
        (
            {"model": "resnet20", "attention": "se", "sites": {"stages": [4]}},
            "no free site in stage 4: the stages are 1, 2, 3",
        ),
        ({"model": "resnet20", "attention": "se", "sites": "some"}, 'is not "every"'),
    ],
    ids=lambda value: None if isinstance(value, dict) else value[:40],
)
def test_what_is_wrong_is_named(arguments, message):
    with pytest.raises(UserError, match=re.escape(message)):
        build_network(**arguments)


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*/*.yaml")), ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_a_file_of_models_or_attention_carries_its_own_name(file):
    if file.parent.name in ("model", "attention"):
        assert load_config(file.parent.name, file.stem)["name"] == file.stem


def test_the_papers_densenet121_counts_a_head_that_never_runs():
    complexity = paper_complexity("densenet121", "none")
    trained = build_network("densenet121", num_classes=100)
    assert complexity.params == 7_978_856 + 102_500
    assert sum(p.numel() for p in trained.parameters()) == 7_056_356
    assert not hasattr(trained, "fc")
