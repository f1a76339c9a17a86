"""The wiring probe: proves that a model's subgradient setting arrives at every activation, and names the ones it misses."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn

from relucheck.activations import REPLACEMENTS, ChosenSubgradient
from relucheck.interception import Interception, ModelError
from relucheck.kinks import CATALOGUE
from relucheck.networks import set_subgradient
from relucheck.numerics import generator

Verdict = Literal["answers", "ignores", "wrong rule", "out of reach"]


@dataclasses.dataclass(frozen=True)
class Wire:
    """How one activation of a model answers to the subgradient.

    Attributes:
        site: module name, or module and function for a functional call.
        activation: what it computes (ReLU, ReLU6, LeakyReLU, or the function's name).
        verdict: *answers*; *ignores* (the setting does not arrive); *wrong rule* (it changes the gradient, but not to the
            subgradient times the cotangent); *out of reach* (no setting can arrive).
        detail: what was expected and seen.
    """

    site: str
    activation: str
    verdict: Verdict
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.site} ({self.activation}): {self.verdict}" + (f"; {self.detail}" if self.detail else "")


class WiringError(ModelError):
    """A model in which the subgradient does not reach every activation; ``wires`` are the ones at fault."""

    def __init__(self, wires: tuple[Wire, ...]) -> None:
        super().__init__("the subgradient does not reach every activation:\n" + "\n".join(f"  {wire}" for wire in wires))
        self.wires = wires


# Torch functions that compute a ReLU under another name, as prefixes of autograd nodes.
_DISGUISES: Final = ("Threshold", "Clamp", "Maximum", "Minimum")
# Where the values of the three rules differ from one another and from anything smoother.
_PROBES: Final = (-7.0, -1.0, -0.5, 0.0, 0.25, 1.0, 5.75, 6.0, 6.25, 9.0)


def probe_wiring(
    build: nn.Module | Callable[[Any], nn.Module],
    inputs: Tensor,
    *,
    values: tuple[float, float] = (0.25, 0.75),
) -> tuple[Wire, ...]:
    """Drives every activation of a model to its kinks and sees whether each one answers to the subgradient.

    Every module without children that computes ReLU, ReLU6 or a leaky ReLU, whatever its class, is taken out of the model
    built with each of two subgradients, fed with its kinks in the shape, dtype and device that the model feeds it with, and
    differentiated with a random cotangent: the gradient must be the subgradient times the cotangent. Functional activations
    and custom autograd Functions outside such modules cannot be set and are named as out of reach.

    Args:
        build: the model (the setting is then :func:`set_subgradient` on copies of it), or a function that builds the model
            with a given subgradient: the way to test a model's own parameter.
        inputs: one mini-batch, from which the shapes are taken.
        values: two different subgradients, neither of them torch's own 0.

    Returns:
        one :class:`Wire` per activation, in the order of their first call.

    Raises:
        ModelError: if no activation was called at all.
    """
    if isinstance(build, nn.Module):
        original = build

        def configured(value: float) -> nn.Module:
            model = copy.deepcopy(original)
            if any(type(module) in REPLACEMENTS or isinstance(module, ChosenSubgradient) for module in model.modules()):
                set_subgradient(model, value)
            return model

        models = [configured(value) for value in values]
    else:
        models = [build(value) for value in values]
    wires: list[Wire] = []
    for site, template, function in _called(models[0], inputs):
        if template is None:
            wires.append(Wire(site, function or "", "out of reach", "no module whose subgradient could be set"))
        else:
            modules = [model.get_submodule(site) for model in models]
            name = _computes(modules[0], template)
            assert name is not None
            wires.append(_answer(site, name, modules, template, values))
    if not wires:
        raise ModelError(f"{type(models[0]).__name__}: no activation was called on this input; nothing to probe")
    return tuple(wires)


def _called(model: nn.Module, inputs: Tensor) -> Iterator[tuple[str, Tensor | None, str | None]]:
    """Where one forward may call an activation: (module, its input, None), or (site, None, function) without a module."""
    model = copy.deepcopy(model)
    fed: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            if len(args) == 1 and isinstance(args[0], Tensor) and args[0].is_floating_point():
                fed.setdefault(name, args[0].detach())

        return hook

    for name, module in model.named_modules():
        if not any(True for _ in module.children()):
            module.register_forward_pre_hook(keep(name))
    device = inputs.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.enable_grad():
        with Interception(model, device) as interception:
            output = model(inputs)
        roots = [output] if isinstance(output, Tensor) else []
        disguised = interception.out_of_reach(roots)
    activations = {name: x for name, x in fed.items() if _computes(model.get_submodule(name), x) is not None}
    for name, x in activations.items():
        yield name, x, None
    for call in interception.calls:
        if call.module not in activations:
            yield call.site, None, call.rule.name
    for item in disguised:
        if item.module not in activations and (item.custom or item.node.startswith(_DISGUISES)):
            yield item.site, None, item.node


def _computes(module: nn.Module, template: Tensor) -> str | None:
    """Which of the three rules a module computes on the probes, in the shape that the model feeds it with."""
    module = copy.deepcopy(module)
    probes = torch.tensor(_PROBES, dtype=template.dtype, device=template.device)
    order = torch.arange(template.numel(), device=template.device)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        seen = []
        for shift in range(len(_PROBES)):
            x = probes[(order + shift) % len(_PROBES)].reshape(template.shape)
            try:
                y = module(x.clone())
            except (RuntimeError, TypeError, ValueError, IndexError):
                return None  # it does not take these values: no elementwise activation
            if not isinstance(y, Tensor) or y.shape != x.shape or y.dtype != x.dtype:
                return None
            seen.append((x, y))
    x, y = (torch.cat([pair[side].flatten() for pair in seen]).double() for side in (0, 1))
    tolerance = 4 * torch.finfo(template.dtype).eps
    below = x == -1.0
    slope = float(-y[below].mean())
    for name, expected in (
        ("ReLU", x.clamp(min=0)),
        ("ReLU6", x.clamp(0, 6)),
        ("LeakyReLU", torch.where(x > 0, x, slope * x)),
    ):
        if bool(((y - expected).abs() <= tolerance * expected.abs().clamp(min=1e-30)).all()):
            return name if name != "LeakyReLU" or abs(slope - 1) > 0.01 else None
    return None


def _answer(site: str, name: str, modules: list[nn.Module], template: Tensor, values: tuple[float, float]) -> Wire:
    """Differentiates one activation at its kinks, once with each subgradient."""
    cotangent = torch.randn(template.shape, generator=generator(0), dtype=torch.float64)
    cotangent = cotangent.to(template.device, template.dtype)
    tolerance = 4 * torch.finfo(template.dtype).eps
    for at in CATALOGUE[name].kinks:
        gradients = []
        for module in modules:
            x = torch.full_like(template, at.at).requires_grad_()
            with torch.enable_grad():
                (gradient,) = torch.autograd.grad(copy.deepcopy(module)(x + 0), x, cotangent)
            gradients.append(gradient.double())
        if torch.equal(*gradients):
            return Wire(site, name, "ignores", f"at {at.at:g} the gradient is the same for {values[0]} and {values[1]}")
        for value, gradient in zip(values, gradients, strict=True):
            expected = value * cotangent.double()
            if not bool(((gradient - expected).abs() <= tolerance * expected.abs()).all()):
                got, upstream = float(gradient.flatten()[0]), float(cotangent.flatten()[0])
                return Wire(
                    site,
                    name,
                    "wrong rule",
                    f"at {at.at:g} with subgradient {value} and cotangent {upstream:.4g} the gradient is {got:.4g}, not "
                    f"their product {value * upstream:.4g}",
                )
    return Wire(site, name, "answers")


def check_wiring(build: nn.Module | Callable[[Any], nn.Module], inputs: Tensor, **options: Any) -> tuple[Wire, ...]:
    """:func:`probe_wiring` as an assertion.

    Raises:
        WiringError: names every activation that does not answer.
    """
    wires = probe_wiring(build, inputs, **options)
    faults = tuple(wire for wire in wires if wire.verdict != "answers")
    if faults:
        raise WiringError(faults)
    return wires
