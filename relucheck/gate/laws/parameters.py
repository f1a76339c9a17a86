"""Laws about learnable parameters: their gradients, and the other laws in every channel."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn

from relucheck.gate.cases.case import Case
from relucheck.gate.cases.probing import dyadic
from relucheck.gate.cases.violation import LawViolation, NotApplicable
from relucheck.gate.laws.law import REGISTRY, law

#: Number of channels that the law checks, taken from the end, so that confusing the first with the last is detected.
_MOST_CHANNELS: Final = 3


@law(frameworks=("torch",), applies=lambda case: case.subject.learnable)
def parameters(case: Case) -> None:
    """Gradients of learnable parameters are correct and linear in the cotangent.

    A gradient is correct if it is finite, equals the central difference of the float64 module with respect to the
    parameter, at inputs away from kinks, and has the parameter's dtype and shape.
    """
    module = case.subject.fresh(case.dtype, case.device)
    if not isinstance(module, nn.Module):
        raise NotApplicable("a function has no parameters")
    inputs = case.tensor([-7.3, -2.9, -1.37, -0.61, -0.23, 0.19, 0.47, 0.83, 1.71, 2.3, 3.9, 8.1])
    f, v = case.subject.flat(module), dyadic(inputs)
    names = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
    tensors = [parameter for parameter in module.parameters() if parameter.requires_grad]

    def gradients(cotangent: Tensor) -> list[Tensor | None]:
        y = f(inputs)
        if not y.requires_grad:
            return [None] * len(tensors)
        return list(torch.autograd.grad(y, tensors, cotangent.to(y.dtype), allow_unused=True))

    once, doubled = gradients(v), gradients(2 * v)
    for name, parameter, got, twice in zip(names, tensors, once, doubled, strict=True):
        expected, error, scale = _difference(case, name, inputs, v)
        if got is None:
            if bool((expected.abs() > 1e-6 + 10 * error).any()):
                raise _parameter_failure(case, name, "no gradient reaches parameter", "None", expected)
            continue
        assert twice is not None
        if got.dtype != parameter.dtype or got.shape != parameter.shape:
            what = f"the gradient has dtype {got.dtype} and shape {tuple(got.shape)}, which are not those of parameter"
            raise _parameter_failure(case, name, what, str(got.dtype), expected)
        if bool(((twice - 2 * got).abs() > 4 * case.eps * twice.abs() + case.tiny).any()):
            what = "the gradient does not scale with the cotangent for parameter"
            raise _parameter_failure(case, name, what, twice / 2, got)
        wide = got.to(torch.float64).cpu()
        slack = 1e-6 + 10 * error + 16 * case.eps * scale
        if not bool((((wide - expected).abs() <= slack) | ~expected.isfinite()).all()):
            raise _parameter_failure(case, name, "the gradient is wrong for parameter", wide, expected)


def _difference(case: Case, name: str, inputs: Tensor, v: Tensor) -> tuple[Tensor, Tensor, float]:
    """Compute the central difference of sum(v * f) in one parameter, in float64.

    Also returns its error, and the scale of its terms.
    """
    module = case.subject.fresh(case.dtype).to(torch.float64)
    f = case.subject.flat(module)
    parameter = dict(module.named_parameters())[name]
    x, weights = inputs.to(torch.float64).cpu(), v.to(torch.float64).cpu()
    flat = parameter.data.view(-1)
    result = torch.zeros(2, flat.numel(), dtype=torch.float64)
    error = torch.zeros(flat.numel(), dtype=torch.float64)
    scale = 0.0
    with torch.no_grad():
        here = weights * f(x).to(torch.float64)
        for index in range(flat.numel()):
            before = float(flat[index])
            for row, h in enumerate((1e-4, 5e-5)):
                above: list[Tensor] = []
                below: list[Tensor] = []
                for sign, values in ((1, above), (-1, below)):
                    flat[index] = before + sign * h
                    values.append(weights * f(x).to(torch.float64))
                flat[index] = before
                result[row, index] = (above[0] - below[0]).sum() / (2 * h)
                # the function may have a kink in the parameter (a clamped slope at its bound): then any value between the
                # two one-sided differences is right
                bend = float((above[0] - 2 * here + below[0]).sum().abs() / (2 * h))
                error[index] = max(
                    float(error[index]), bend / 10 if bend > 1e-3 * (1 + abs(float(result[row, index]))) else 0.0
                )
                scale = max(scale, float(((above[0] - below[0]) / (2 * h)).abs().sum()), float(above[0].abs().max()))
    shape = parameter.shape
    error = torch.maximum(error, (result[0] - result[1]).abs())
    return result[1].reshape(shape), error.reshape(shape), scale


def _parameter_failure(case: Case, name: str, what: str, got: object, expected: object) -> LawViolation:
    step, slack = ("1e-4", "1e-3") if case.dtype == torch.float64 else ("0.0625", "0.1")
    lines = [
        *case.script.header(),
        "x = torch.tensor([-7.3, -2.9, -1.37, -0.61, -0.23, 0.19, 0.47, 0.83, 1.71, 2.3, 3.9, 8.1], "
        + case.script.place
        + ")",
    ]
    if case.subject.shape != (-1,):
        view = tuple(n if n == -1 else 1 for n in case.subject.shape)
        lines.append(f"x = x.reshape{view}.expand{case.subject.shape}.clone()")
    lines += [
        f'p = dict(act.named_parameters())["{name}"]',
        "loss = lambda c=1.0: (c * torch.linspace(-1, 2, x.numel()).reshape(x.shape).to(x) * act(x)).double().sum()",
        "g, twice = (torch.autograd.grad(loss(c), p, allow_unused=True)[0] for c in (1.0, 2.0))",
        f"h = {step}; p.data += h; up = loss(); p.data -= 2 * h; difference = ((up - loss()) / (2 * h)).item()",
        "assert g is not None and torch.allclose(twice, 2 * g, rtol=0.02, atol=1e-3), (g, twice)",
        f"assert abs(g.double().sum() - difference) <= {slack} * (1 + abs(g.double().sum())), (g, difference)",
    ]
    return case.fail(
        f"{what} {name!r}", cotangent="different per element", got=got, allowed=f"{expected}", script="\n".join(lines)
    )


@law(applies=lambda case: case.subject.channels > 1)
def channels(case: Case) -> None:
    """What holds in the first channel also holds in the others.

    The other laws check a module with parameters per channel only in its first channel. This law checks up to three of the
    last channels, with parameters that differ between channels, against the laws on scaling, derivatives, subgradients and
    the agreement of dtypes.
    """
    count = case.subject.channels
    for channel in range(max(1, count - _MOST_CHANNELS), count):
        other = Case(case.subject.of_channel(channel), case.dtype, case.device, case.config)
        other.law = case.law
        for checked in (entry for entry in REGISTRY.values() if entry.per_channel):
            try:
                checked.check(other)
            except NotApplicable:
                continue
            except LawViolation as error:
                what = f"in channel {channel} of {count}: {error.what}"
                raise LawViolation(
                    error.activation,
                    case.law,
                    error.dtype,
                    what,
                    device=error.device,
                    level=error.level,
                    counterexample=error.counterexample,
                ) from None
