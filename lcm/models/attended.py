"""A layer and the attention behind it as one module, and a blend of a map with its attention."""

import types

import torch
from torch import nn


class Attended(nn.Module):
    """A layer and the attention behind it: its children `layer` and `attention`.

    It stands where the layer stood. The state dict keeps the layer's names, so that weights of the
    plain network load and its weights can be read by anybody; only `named_parameters()` has
    `layer.` in its names. It is a module like any other: what rebuilds layers (SyncBatchNorm,
    freezing) reaches the layer and leaves the attention alone. Attributes are read from the layer
    and set on it; its tensors and methods are not, because who reads them (to fuse, to prune) may
    mean to replace the layer, or call it without the attention.
    """

    def __init__(self, layer, attention):
        super().__init__()
        self._of_layer = frozenset(dir(layer))  # names that a tool adds later are not the layer's
        self.layer = layer
        self.attention = attention
        # A new nn.Module is in training mode, whatever the mode of its layer.
        self.training = layer.training
        # One runs after the children have written their keys, one before they look for them.
        self.register_state_dict_post_hook(_without_layer)
        self.register_load_state_dict_pre_hook(_with_layer)

    def forward(self, *args, **kwargs):
        return self.attention(self.layer(*args, **kwargs))

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            # Not `self.layer`: while there is none, this method would call itself for ever.
            value = getattr(super().__getattr__("layer"), name)
        if isinstance(value, (torch.Tensor, types.MethodType)):
            raise AttributeError(
                f"attention stands behind this layer: its {name} is .layer.{name}. Replacing the "
                "layer (by a fused one, say) replaces the attention too: do that before "
                "lcm.fill_sites, or remove the attention with lcm.remove_attention"
            )
        return value

    def __setattr__(self, name, value):
        modules = self.__dict__.get("_modules", {})
        # What says how this module runs (`training`, `forward`, what `compile()` sets) is its
        # own, and so are its children. Any other name that the layer had is the layer's.
        own = name in self.__dict__ or name in modules or hasattr(type(self), name)
        if "layer" not in modules or own or name not in self._of_layer:
            super().__setattr__(name, value)
        else:
            setattr(modules["layer"], name, value)


def _without_layer(module, state, prefix, metadata):
    for key in [key for key in state if key.startswith(f"{prefix}layer.")]:
        state[prefix + key.removeprefix(f"{prefix}layer.")] = state.pop(key)


def _with_layer(module, state, prefix, *rest):
    for key in [key for key in state if key.startswith(prefix)]:
        name = key.removeprefix(prefix)
        # Keys that name a child, as those of named_parameters() do, are right already.
        if name.partition(".")[0] not in module._modules:
            state[f"{prefix}layer.{name}"] = state.pop(key)


class Blend(nn.Module):
    """x + a (attention(x) - x), with one learned number a that starts at 0: a trained network
    computes what it did.

    A module that starts as an identity would never learn here: its gradient is multiplied by a,
    that of a by attention(x) - x, and both are 0.
    """

    def __init__(self, attention):
        super().__init__()
        self.attention = attention
        self.a = nn.Parameter(torch.zeros(1))  # FSDP takes no scalars

    def forward(self, x):
        # a has one dimension: as float32 it would make a bfloat16 map float32.
        return x + self.a.to(x.dtype) * (self.attention(x) - x)


def unwrapped(layer):
    """The layer itself, without what stands behind it in an `Attended`."""
    return layer.layer if isinstance(layer, Attended) else layer
