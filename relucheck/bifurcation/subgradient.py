"""Set the subgradient of the activation modules of any model."""

from __future__ import annotations

import dataclasses
from typing import Final

import torch
from torch import nn

from relucheck.activations.modules import REPLACEMENTS, ChosenSubgradient
from relucheck.activations.rules import Subgradient, SubgradientError, as_subgradient
from relucheck.bifurcation.forward.arguments import refuse_function
from relucheck.errors import ModelError


@dataclasses.dataclass(frozen=True)
class Reached:
    """The names of the modules that ``set_subgradient`` has set; ``len`` is their number.

    Attributes:
        replaced: torch modules that became relucheck's modules.
        retargeted: modules that were relucheck's already.
        left_out: subclasses of torch's activation modules, and scripted ones. They are not changed: the forward of a
            subclass may do anything, and that of a scripted module is compiled.
    """

    replaced: tuple[str, ...]
    retargeted: tuple[str, ...]
    left_out: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.replaced) + len(self.retargeted)


_NAMES: Final = frozenset(kind.__name__ for kind in REPLACEMENTS)  # relucheck's modules have the same names


def _scripted_name(module: nn.Module) -> str | None:
    """The name of the class from which a module was scripted or traced; None for others."""
    return module.original_name if isinstance(module, torch.jit.ScriptModule) else None


def set_subgradient(model: nn.Module, value: Subgradient | tuple[Subgradient, Subgradient] | None) -> Reached:
    """Set the subgradient of every ReLU, ReLU6 and LeakyReLU module of a model, in place.

    Torch's modules become relucheck's by a change of their class. They stay the same objects, with their hooks, so every
    reference to them stays valid. Functional calls (``F.relu``) have no setting and are not changed. ``check_wiring`` names
    them, and ``backprop`` and ``compare`` control them without a setting.

    Args:
        model: any module, which may be an activation itself.
        value: a number, or a tensor with one value per ensemble member. A pair sets the value at 0 and the value at the
            upper kink of ReLU6; activations with one kink use the first. None means the subgradient that torch uses.

    Returns:
        The names of the modules that were set. A module used in several places counts once.

    Raises:
        SubgradientError: for a value that cannot be a subgradient.
        ModelError: if the model is no module or has no such module.
    """
    refuse_function(model)
    if isinstance(value, tuple) and len(value) != 2:
        raise SubgradientError(
            f"subgradient={value!r}: a tuple holds two values, (at 0, at the upper kink); pass one value or a pair"
        )
    lower, upper = value if isinstance(value, tuple) else (value, value)
    for number in (lower, upper):
        as_subgradient(number, optional=True)  # checked here, so that an error leaves the model unchanged
    replaced, retargeted, left_out = [], [], []
    for name, module in model.named_modules():
        replacement = REPLACEMENTS.get(type(module))
        if replacement is not None:
            module.__class__ = replacement
            assert isinstance(module, ChosenSubgradient)
            module._init_subgradients(**dict.fromkeys(module.rule.names, 0.0))
            _move_like_model(module, model)
            replaced.append(name)
        elif isinstance(module, ChosenSubgradient):
            retargeted.append(name)
        else:
            if isinstance(module, tuple(REPLACEMENTS)) or _scripted_name(module) in _NAMES:
                left_out.append(name)
            continue
        assert isinstance(module, ChosenSubgradient)
        for subgradient, wanted in zip(module.rule.names, (lower, upper), strict=False):
            default = None if module.rule.leaky else 0.0
            setattr(module, subgradient, default if wanted is None else wanted)
    if not replaced and not retargeted:
        left = (
            f"; {', '.join(repr(name or '(the model itself)') for name in left_out)} are subclasses or scripted, which may "
            "compute anything: replace them by torch's or relucheck's modules, and script a model after its setting"
            if left_out
            else "; functional activations (F.relu) take no setting: use modules, or relucheck.compare, which controls both"
        )
        raise ModelError(
            f"{type(model).__name__} has no nn.ReLU, nn.ReLU6 or nn.LeakyReLU (nor relucheck's): nothing to set{left}"
        )
    return Reached(tuple(replaced), tuple(retargeted), tuple(left_out))


def _move_like_model(module: ChosenSubgradient, model: nn.Module) -> None:
    """Move the new buffers of a module to the device of the model's parameters."""
    first = next(model.parameters(), None)
    if first is not None and first.device.type not in ("cpu", "meta"):
        module.to(first.device)
