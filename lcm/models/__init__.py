"""The nine backbones, and the sites in them where attention can stand."""

from lcm.models.cifar_densenet import CifarDenseNet
from lcm.models.cifar_resnet import CifarResNet
from lcm.models.places import Site
from lcm.models.sites import add_sites, fill_sites, remove_attention, sites
from lcm.models.weights import draw_weights

__all__ = [
    "CifarDenseNet",
    "CifarResNet",
    "Site",
    "add_sites",
    "draw_weights",
    "fill_sites",
    "remove_attention",
    "sites",
]
