"""Names, mappings and overrides; what is wrong is named."""

import copy
import re

import pytest
from omegaconf import OmegaConf
from plain import digest

from lcm import UserError, build_network
from lcm.attention import LCM2, SqueezeExcite
from lcm.config.compose import choices, load

TINY = {
    "name": "tiny",
    "family": "tiny",
    "image_size": 32,
    "_target_": "lcm.models.CifarResNet",
    "layers": 8,
}


def test_reductions_follow_the_family_and_overrides_reach_both_mappings():
    site = build_network("resnet20", "lcm2").stage3[0].site
    assert site.w1.weight.shape[:2] == (16, 64) and site.w2.bias is None
    assert build_network("densenet40", "lcm2").block1[0].site.w2.bias is not None
    assert build_network("densenet40", "cbam").block1[0].site.w0.bias is None
    changes = {"layers": 8, "reduction": 8, "sites": {"last_of_stage": 3}}
    network = build_network("resnet20", "se", num_classes=3, **changes)
    found = {n: m.w1.out_features for n, m in network.named_modules() if type(m) is SqueezeExcite}
    assert found == {"stage3.0.site": 8} and network.fc.out_features == 3


def test_mappings_as_hydra_composes_them_are_left_alone():
    pair = {"model": load("model", "densenet40"), "attention": load("attention", "cbam")}
    raw = OmegaConf.create(pair)
    resolved = OmegaConf.to_container(raw, resolve=True)
    expected = digest(build_network("densenet40", "cbam", seed=1, layers=7).state_dict())
    for model, attention in ((raw.model, raw.attention), resolved.values(), pair.values()):
        before = copy.deepcopy((model, attention))
        network = build_network(model, attention, seed=1, layers=7)
        assert digest(network.state_dict()) == expected and (model, attention) == before


def test_a_model_of_ones_own_gives_its_sizes_itself():
    assert isinstance(
        build_network(TINY, "lcm2", reduction=4, expand_bias=False).stage1[0].site, LCM2
    )
    with pytest.raises(UserError, match="no sizes for networks of the family tiny"):
        build_network(TINY, "lcm2")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "model=resnet_20",
            "model=resnet_20: no such model; choose from densenet100, densenet121, densenet40",
        ),
        ("model=resnet20 attention=lcm", "attention=lcm: no such attention; choose from "),
        (
            "model=resnet20 attention=se reducton=8",
            "'reducton' is no key of resnet20 and attention se; nearest: reduction; the "
            "keys are: layers",
        ),
        ("model=resnet20 reduction=8", "the keys are: layers."),
        (
            "model=resnet20 attention=lcm2 reduction=17",
            "reduction 17 is larger than the 16 channels",
        ),
        ("model=resnet20 layers=2", "6n + 2 layers (8, 14, 20, 26, 32, ...), not 2"),
        ("model=resnet20 layers=21", "6n + 2 layers (8, 14, 20, 26, 32, ...), not 21"),
        ("model=densenet40 layers=4", "3n + 4 layers (7, ..., 40, 64, 100, ...), not 4"),
        ("model=densenet40 layers=41", "3n + 4 layers (7, ..., 40, 64, 100, ...), not 41"),
        ("model=densenet40 memory=big", "memory='big' is not one of: fast, linear"),
        ("model=resnet20 attention=se sites=some", 'is not "every"'),
    ],
)
def test_what_is_wrong_is_named(words, message):
    with pytest.raises(UserError, match=re.escape(message)):
        build_network(**OmegaConf.from_dotlist(words.split()))


@pytest.mark.parametrize("group", ["model", "attention"])
def test_a_file_carries_its_own_name(group):
    assert [load(group, name)["name"] for name in choices(group)] == choices(group)


@pytest.mark.parametrize("group, key", [("model", "layers"), ("attention", "gamma")])
def test_a_target_below_a_key_is_not_called(group, key, tmp_path):
    """A run.json may come from anybody: Hydra would call what stands below a key, too."""
    mappings = {"model": load("model", "resnet20"), "attention": load("attention", "eca")}
    mappings[group][key] = {"_target_": "os.mkdir", "path": str(tmp_path / "called")}
    with pytest.raises((UserError, TypeError)):
        build_network(**mappings)
    assert not (tmp_path / "called").exists()
