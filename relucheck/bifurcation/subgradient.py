"""Gives the activations of any model one subgradient."""

from __future__ import annotations

import dataclasses

from torch import nn

from relucheck.activations.modules import REPLACEMENTS, ChosenSubgradient
from relucheck.activations.rules import Subgradient, SubgradientError, as_subgradient
from relucheck.errors import ModelError


@dataclasses.dataclass(frozen=True)
class Reached:
    """What :func:`set_subgradient` reached: names of modules made into relucheck's, and of ones that were already.

    ``left_out`` names subclasses of the three torch modules, whose own forward may do anything: they keep what they do.
    """

    replaced: tuple[str, ...]
    retargeted: tuple[str, ...]
    left_out: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.replaced) + len(self.retargeted)


def set_subgradient(model: nn.Module, value: Subgradient | tuple[Subgradient, Subgradient] | None) -> Reached:
    """Gives every ReLU, ReLU6 and LeakyReLU module of a model one subgradient.

    Plain torch modules become relucheck's in place: the same objects, with their hooks, under every name and reference that
    leads to them. Functional calls (``F.relu``) hold no setting and are not reached; :mod:`relucheck.bifurcation.wiring`
    names them, and :func:`relucheck.bifurcation.compare.backprop` serves them.

    Args:
        model: any module, or one activation module.
        value: a number or one value per ensemble member; a pair is (at 0, at the upper kink), where activations with one
            kink take the first; None is torch's own.

    Returns:
        the names reached (a module used in several places counts once).

    Raises:
        SubgradientError: for a value that is no subgradient.
        ModelError: if the model has no such module.
    """
    if isinstance(value, tuple) and len(value) != 2:
        raise SubgradientError(
            f"subgradient={value!r}: a tuple holds two values, (at 0, at the upper kink); pass one value or a pair"
        )
    lower, upper = value if isinstance(value, tuple) else (value, value)
    for number in (lower, upper):
        as_subgradient(number, optional=True)  # before anything is changed
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
            if isinstance(module, tuple(REPLACEMENTS)):
                left_out.append(name)
            continue
        assert isinstance(module, ChosenSubgradient)
        for subgradient, wanted in zip(module.rule.names, (lower, upper), strict=False):
            own = None if module.rule.leaky else 0.0
            setattr(module, subgradient, own if wanted is None else wanted)
    if not replaced and not retargeted:
        raise ModelError(
            f"{type(model).__name__} has no nn.ReLU, nn.ReLU6 or nn.LeakyReLU (nor relucheck's): nothing to set; "
            "functional activations (F.relu) take no setting: use modules, or relucheck.bifurcation.compare, which "
            "serves both"
        )
    return Reached(tuple(replaced), tuple(retargeted), tuple(left_out))


def _move_like_model(module: ChosenSubgradient, model: nn.Module) -> None:
    first = next(model.parameters(), None)
    if first is not None and first.device.type not in ("cpu", "meta"):
        module.to(first.device)
