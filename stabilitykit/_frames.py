"""How each module of a model is watched."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from stabilitykit._calls import NOT_FLAT, Flatness, kind
from stabilitykit._flatness import MODULES, Activation, described
from stabilitykit._switches import Hook

# The files of torch's layers of one function each, which is no activation.
_ONE_FUNCTION = (
    *("batchnorm", "conv", "dropout", "flatten", "instancenorm", "linear", "normalization"),
    *("padding", "pooling", "sparse"),
)
# What torch's activations call, with which of their attributes.
_FUNCTIONS: dict[type[nn.Module], tuple[Callable[..., Any], tuple[str, ...]]] = {
    nn.ReLU: (functional.relu, ()),
    nn.LeakyReLU: (functional.leaky_relu, ("negative_slope",)),
    nn.ELU: (functional.elu, ("alpha",)),
    nn.GELU: (functional.gelu, ("approximate",)),
    nn.SiLU: (functional.silu, ()),
    nn.Sigmoid: (torch.sigmoid, ()),
    nn.Tanh: (torch.tanh, ()),
}


@dataclass(slots=True, eq=False)
class Frame:
    """A module that is watched; recursion and shared modules push the same one again.

    Attributes:
        name: in `named_modules`.
        leaf: whether its output is recorded.
        bare: whether the functions that it calls need not be seen: those of torch's own layers, and
            of sequences of such.
        light: whether nothing has to be done where it begins, as in such a sequence.
        function: that it calls, where it is an activation whose function is known.
        options: its attributes which that gets.
        within: the frames of what a sequence calls, and of what that calls.
        hooks: how many of probes are on the module.
        key: name and kind.
        batch_norm: whether it has the mean and std of the batch while training.
        flatness: of the call that is under way.
    """

    module: nn.Module
    name: str = ""
    leaf: bool = False
    bare: bool = False
    light: bool = False
    function: Callable[..., Any] | None = None
    options: tuple[str, ...] = ()
    within: list[Frame] = field(default_factory=list)
    hooks: int = 0
    key: tuple[str, str] = ("", "")
    batch_norm: bool = False
    flatness: Flatness = NOT_FLAT
    _described: tuple[Any, Activation | None] = None, None  # what for, and it

    def given(self) -> dict[str, Any]:
        """The options as they are now."""
        return {name: getattr(self.module, name) for name in self.options}

    def activation(self) -> Activation | None:
        """What its function is with these; None where they are not plain numbers."""
        function, options = asked = self.function, self.given()
        if self._described[0] != asked:
            self._described = asked, described(function, (None,), options)
        return self._described[1]

    def undisturbed(self) -> bool:
        """Whether no others' hooks, which may act, are on it or on what a sequence calls."""
        for frame in (self, *self.within):
            module = frame.module
            if len(module._forward_pre_hooks) + len(module._forward_hooks) > frame.hooks:
                return False
        return True

    @property
    def pure(self) -> bool:
        """Whether it is an activation whose function is known, and which leaves z as it is."""
        return self.function is not None and not getattr(self.module, "inplace", False)

    def describe(self, name: str, known: dict[nn.Module, Frame]) -> None:
        """Set all but the flatness, before this probe's hooks are there.

        Args:
            name: its own.
            known: the frames of what is in it.
        """
        module, made, self.name = self.module, type(self.module), name
        self.key = name, kind(module)
        self.batch_norm = made in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
        children = [child for n, child in module.named_children() if n != "parametrizations"]
        self.leaf = not children or isinstance(module, nn.MultiheadAttention)
        self.light, self.within = False, []
        self.function, self.options = _FUNCTIONS.get(made, (None, ()))
        hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
        self.hooks = sum(isinstance(hook, Hook) for hook in hooks)  # other probes'
        self.bare = "forward" not in vars(module)
        if self.leaf:
            self.bare &= made.__module__.startswith("torch.nn.modules.")
            self.bare &= self.function is not None or not isinstance(module, MODULES)
            return
        inside = [known[child] for child in children if child in known]
        self.bare &= made.forward is nn.Sequential.forward and len(inside) == len(children)
        self.bare &= all(frame.bare for frame in inside)
        if self.bare:
            self.within = [each for frame in inside for each in (frame, *frame.within)]
            if self.undisturbed():
                for frame in self.within:
                    frame.light = _one_function(frame.module)


def frames(model: nn.Module, known: dict[nn.Module, Frame]) -> dict[nn.Module, Frame]:
    """Of every module, in the order of `named_modules`.

    Args:
        model: the root, which is always seen from its beginning.
        known: of those of which a call may be under way, to be kept.
    """
    found: dict[nn.Module, Frame] = {}
    for name, module in reversed(list(model.named_modules())):  # what is inside comes first
        if "parametrizations" in name.split(".") or isinstance(module, torch.jit.ScriptModule):
            continue
        found[module] = known.get(module) or Frame(module)
        found[module].describe(name, found)
    for frame in found.values():
        frame.hooks += 1 if frame.light else 2
    return dict(reversed(found.items()))


def _one_function(module: nn.Module) -> bool:
    file = type(module).__module__.rpartition(".")[2]
    return file in _ONE_FUNCTION and not getattr(module, "inplace", False)
