"""Check that a subgradient setting reaches every activation of a model; name the others."""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from relucheck.activations.catalogue import CATALOGUE
from relucheck.activations.modules import REPLACEMENTS, ChosenSubgradient
from relucheck.activations.rules import SubgradientError, as_subgradient
from relucheck.bifurcation.forward.arguments import Arguments, Inputs, arguments_of, refuse_empty, tensors_in
from relucheck.bifurcation.forward.calls import plain
from relucheck.bifurcation.forward.recognition import recognised
from relucheck.bifurcation.forward.state import reproducible
from relucheck.bifurcation.forward.written_out import UNEXAMINED
from relucheck.bifurcation.interception import Interception
from relucheck.bifurcation.subgradient import set_subgradient
from relucheck.errors import ModelError
from relucheck.numerics.determinism import generator

Verdict = Literal["answers", "ignores", "wrong rule", "out of reach"]


@dataclasses.dataclass(frozen=True)
class Wire:
    """The result of the check for one activation of a model.

    Attributes:
        site: the qualified name of the module; for a function, the names of the calling module and the function.
        activation: ReLU, ReLU6, LeakyReLU, or the name of the function.
        verdict: "answers" if the gradient at each kink is the subgradient times the upstream gradient. "ignores" if the
            setting does not change the gradient. "wrong rule" if the setting changes the gradient to another value. "out of
            reach" if the activation has no setting.
        detail: what is wrong, with the values; "" if nothing is.
    """

    site: str
    activation: str
    verdict: Verdict
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.site} ({self.activation}): {self.verdict}" + (f"; {self.detail}" if self.detail else "")


class WiringError(ModelError):
    """A model in which the subgradient does not reach every activation.

    Attributes:
        wires: the results of the activations that it does not reach, or not correctly.
    """

    def __init__(self, wires: tuple[Wire, ...]) -> None:
        super().__init__("the subgradient does not reach every activation:\n" + "\n".join(f"  {wire}" for wire in wires))
        self.wires = wires


def probe_wiring(
    build: nn.Module | Callable[[Any], nn.Module],
    inputs: Inputs,
    *,
    values: tuple[float, float] = (0.25, 0.75),
) -> tuple[Wire, ...]:
    """Check for every activation of a model whether a subgradient setting reaches it.

    The model is built with each of two subgradients. Every module without children that computes ReLU, ReLU6 or a leaky
    ReLU, whatever its class, is taken out of it. Its input is set to each of its kinks, with the shape, dtype and device
    that it has in the model. The gradient for a random upstream gradient must be the subgradient times that upstream
    gradient, times a factor if the module computes a multiple of ReLU or ReLU6. A module with other slopes, such as
    ``x - relu(x)``, is "out of reach". Activations outside of such modules have no setting and are "out of reach", too.
    They are functions such as ``F.relu``; any calls that compute ReLU, ReLU6 or a leaky ReLU up to a factor, such as
    ``x * (x.detach() > 0)``; calls that are not examined because there are too many; and
    custom autograd Functions that compute one, or whose computation no call of torch shows.

    Args:
        build: a model, or a function that builds a new model with a given subgradient. For a model, the setting is
            ``set_subgradient`` on copies of it. A function makes it possible to check a model's parameter for the setting.
        inputs: one mini-batch; a list or tuple of the positional arguments of the model; or a mapping of its keyword
            arguments. Only activations that are called with it, with at least one element, are checked.
        values: two different subgradients other than 0, the value that torch uses for ReLU.

    Returns:
        One result per activation: modules in the order of their first call, then those out of reach.

    Raises:
        ModelError: if no activation is called, ``inputs`` is empty or does not fit the model's forward, the model is
            compiled or scripted or cannot be copied, or ``build`` does not return a new ``nn.Module`` with the same modules
            each time.
        SubgradientError: for values that are not two different subgradients other than 0.
    """
    if len(values) != 2 or values[0] == values[1] or 0 in values:
        raise SubgradientError(f"values={values!r}: must be two different subgradients other than 0; pass (0.25, 0.75)")
    for value in values:
        as_subgradient(value, owner="values")
    make = build
    if not callable(build):
        raise ModelError(
            f"build is of class {type(build).__name__}: must be an nn.Module, or a function that returns one for a given "
            "subgradient"
        )
    if isinstance(build, nn.Module):
        original = build

        def configured(value: float) -> nn.Module:
            model = _copied(original, "the model")
            if any(type(module) in REPLACEMENTS or isinstance(module, ChosenSubgradient) for module in model.modules()):
                set_subgradient(model, value)
            return model

        make = configured
    wires: list[Wire] = []
    with torch.inference_mode(False):
        _refuse_arguments(make)
        models = [make(value) for value in (*values, values[0])]  # the third one is used up by a forward of the model
        for model in models:
            if not isinstance(model, nn.Module):
                raise ModelError(
                    f"the model was built as {type(model).__name__}; pass an nn.Module or a function that returns one"
                )
        if models[0] is models[1] or models[0] is models[2]:
            raise ModelError(
                "build returned the same model twice, and a model can have only one setting; return a new model each time"
            )
        arguments = arguments_of(models[2], inputs)
        for name, template, label in _called(models[2], arguments):
            if template is None:
                wires.append(Wire(name, label, "out of reach", "no module whose subgradient could be set"))
                continue
            site = name or type(models[2]).__name__
            try:
                modules = [model.get_submodule(name) for model in models[:2]]
            except AttributeError as error:
                raise ModelError(
                    f"{site!r} is a module of only some of the models that were built; the modules must not depend on the "
                    "subgradient"
                ) from error
            wires.append(_answer(site, label, modules, template, values))
    if not wires:
        raise ModelError(f"{type(models[2]).__name__}: no activation was called on this input; nothing to probe")
    return tuple(wires)


def _refuse_arguments(make: Callable[..., Any]) -> None:
    try:
        inspect.signature(make).bind(0.25)
    except TypeError as error:
        raise ModelError(
            f"build takes no subgradient ({error}): it is called with one number, and returns a new model with that setting"
        ) from error
    except ValueError:  # there is no signature
        pass


def _copied(module: nn.Module, what: str) -> nn.Module:
    try:
        return copy.deepcopy(module)
    except Exception as error:
        raise ModelError(
            f"{what} ({type(module).__name__}) cannot be copied: {error}; pass a function that builds the model, and no "
            "tensors computed from parameters in its modules"
        ) from error


def _called(model: nn.Module, arguments: Arguments) -> Iterator[tuple[str, Tensor | None, str]]:
    """Run one forward, which may change the model, and yield where it may call an activation.

    Yields:
        For an activation module its name, its input and the name of its kind; for any other activation its site, None, and
        the name of the function.
    """
    fed: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given = [value for value in (*args, *kwargs.values()) if value is not None]
            if len(given) == 1 and isinstance(given[0], Tensor) and given[0].is_floating_point() and given[0].numel():
                fed.setdefault(name, plain(given[0]).detach())

        return hook

    device = next((tensor.device for tensor in (*tensors_in(arguments), *model.parameters())), torch.device("cpu"))
    interception = Interception(model, device, tracing=True)
    for parameter in model.parameters():  # so that a frozen model has an autograd graph, too, which is searched below
        parameter.requires_grad_(parameter.is_floating_point() or parameter.is_complex())
    hooks = [
        module.register_forward_pre_hook(keep(name), with_kwargs=True)
        for name, module in model.named_modules()
        if not any(True for _ in module.children())
    ]
    with (
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        reproducible(device),
        torch.enable_grad(),
    ):
        with interception:
            interception.enter(arguments)
            output = arguments.call(model)
        disguised = interception.disguised(list(tensors_in(output)))
        for hook in hooks:
            hook.remove()
        with torch.no_grad():
            computed = {name: recognised(model.get_submodule(name), x) for name, x in fed.items()}
    if not any(computed.values()):
        refuse_empty(interception.calls)
    for name, rule in computed.items():
        if rule is not None:
            yield name, fed[name], rule
    for call in interception.calls:
        if call.elements and computed.get(call.module) is None:
            yield call.site, None, call.rule.name
    for item in disguised:
        if computed.get(item.module) is None or item.node == UNEXAMINED:
            yield item.site, None, item.node


def _answer(site: str, name: str, modules: list[nn.Module], template: Tensor, values: tuple[float, float]) -> Wire:
    """Differentiate an activation at its kinks, with each subgradient, and judge the results."""
    cotangent = torch.randn(template.shape, generator=generator(0), dtype=torch.float64, device="cpu")
    cotangent = cotangent.to(template.device, template.dtype)
    limits = torch.finfo(template.dtype)
    with torch.no_grad():
        right, left = (_copied(modules[0], site)(torch.full_like(template, at)).double() * at for at in (1.0, -1.0))
    # the gradient at 0 of a multiple of ReLU is the same multiple; what relucheck defines has no other slopes
    if bool((right != 1).any() if name == "LeakyReLU" else (left != 0).any()):
        slopes = f"{float(left.flatten()[0]):.4g} left and {float(right.flatten()[0]):.4g} right of 0"
        return Wire(site, name, "out of reach", f"its slopes are {slopes}, for which no gradient at 0 is defined")
    for at in CATALOGUE[name].kinks:
        gradients = []
        for module in modules:
            x = torch.full_like(template, at.at).requires_grad_()
            with torch.enable_grad():
                y = _copied(module, site)(x + 0)
                if not y.requires_grad:
                    return Wire(site, name, "out of reach", "no gradient passes through it")
                (gradient,) = torch.autograd.grad(y, x, cotangent)
            gradients.append(gradient.double())
        if torch.equal(*gradients):
            return Wire(site, name, "ignores", f"at {at.at:g} the gradient is the same for {values[0]} and {values[1]}")
        for value, gradient in zip(values, gradients, strict=True):
            expected = value * right * cotangent.double()
            # the second term allows for products in the subnormal range, whose absolute rounding error is constant
            wrong = ~((gradient - expected).abs() <= 4 * limits.eps * expected.abs() + limits.tiny * limits.eps)
            if bool(wrong.any()):
                got, upstream, product = (float(each[wrong][0]) for each in (gradient, cotangent, expected))
                return Wire(
                    site,
                    name,
                    "wrong rule",
                    f"at {at.at:g} with subgradient {value} and upstream gradient {upstream:.4g} the gradient is "
                    f"{got:.4g}, not their product {product:.4g}",
                )
    return Wire(site, name, "answers")


def check_wiring(build: nn.Module | Callable[[Any], nn.Module], inputs: Inputs, **options: Any) -> tuple[Wire, ...]:
    """Assert that a subgradient setting reaches every activation of a model.

    Args:
        build: a model, or a function that builds a new model with a given subgradient, as for ``probe_wiring``.
        inputs: one mini-batch, as for ``probe_wiring``.
        **options: further arguments of ``probe_wiring``.

    Returns:
        One result per activation, all with the verdict "answers".

    Raises:
        WiringError: if some activation does not answer; the message names all of these.
        ModelError: as ``probe_wiring``.
        SubgradientError: as ``probe_wiring``.
    """
    wires = probe_wiring(build, inputs, **options)
    faults = tuple(wire for wire in wires if wire.verdict != "answers")
    if faults:
        raise WiringError(faults)
    return wires
