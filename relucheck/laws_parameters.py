"""The law of learnable slopes: gradients of parameters obey what gradients of inputs obey."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from relucheck.cases import Case
from relucheck.law import law
from relucheck.laws_gradients import dyadic
from relucheck.subjects import Subject
from relucheck.violations import LawViolation, NotApplicable


def _learnable(subject: Subject) -> bool:
    return subject.learnable


@law(relevant=_learnable)
def parameters(case: Case) -> None:
    """Gradients of learnable parameters are linear in the cotangent, finite, of the parameter's dtype and shape, and right.

    Right: equal to the central difference of the float64 module with respect to each parameter, at inputs off the kinks.
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
            what = f"its gradient has dtype {got.dtype}, shape {tuple(got.shape)}, not the parameter's, for parameter"
            raise _parameter_failure(case, name, what, str(got.dtype), expected)
        if bool(((twice - 2 * got).abs() > 4 * case.eps * twice.abs() + case.tiny).any()):
            raise _parameter_failure(case, name, "gradient does not scale with the cotangent for parameter", twice / 2, got)
        wide = got.to(torch.float64).cpu()
        slack = 1e-6 + 10 * error + 16 * case.eps * scale
        if not bool((((wide - expected).abs() <= slack) | ~expected.isfinite()).all()):
            raise _parameter_failure(case, name, "wrong gradient for parameter", wide, expected)


def _difference(case: Case, name: str, inputs: Tensor, v: Tensor) -> tuple[Tensor, Tensor, float]:
    """Central difference of sum(v * f) with respect to one parameter in float64, its error, and the sum of magnitudes."""
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
                # a kink in the parameter (a clamped slope at its bound): any value between the two sides is right
                bend = float((above[0] - 2 * here + below[0]).sum().abs() / (2 * h))
                error[index] = max(
                    float(error[index]), bend / 10 if bend > 1e-3 * (1 + abs(float(result[row, index]))) else 0.0
                )
                scale = max(scale, float(((above[0] - below[0]) / (2 * h)).abs().sum()), float(above[0].abs().max()))
    shape = parameter.shape
    error = torch.maximum(error, (result[0] - result[1]).abs())
    return result[1].reshape(shape), error.reshape(shape), scale


def _parameter_failure(case: Case, name: str, what: str, got: object, expected: object) -> LawViolation:
    lines = [
        *case.header(),
        "x = torch.tensor([-7.3, -2.9, -1.37, -0.61, -0.23, 0.19, 0.47, 0.83, 1.71, 2.3, 3.9, 8.1], " + case.place + ")",
    ]
    if case.subject.shape != (-1,):
        view = tuple(n if n == -1 else 1 for n in case.subject.shape)
        lines.append(f"x = x.reshape{view}.expand{case.subject.shape}.clone()")
    lines += [
        f'p = dict(act.named_parameters())["{name}"]',
        "v = torch.linspace(-1, 2, x.numel(), dtype=x.dtype).reshape(x.shape)",
        "def loss(c=1.0):",
        "    return (c * v.double() * act(x).double()).sum()",
        "g = torch.autograd.grad(loss(), p, allow_unused=True)[0]",
        "twice = torch.autograd.grad(loss(2.0), p, allow_unused=True)[0]",
        "with torch.no_grad():",
        f"    h = {'1e-4' if case.dtype == torch.float64 else '0.0625'}",
        "    p += h; up = loss(); p -= 2 * h; down = loss()",
        'print("gradient", g, "difference", (up - down) / (2 * h))',
        'assert g is not None, "no gradient"',
        "assert torch.allclose(twice, 2 * g, rtol=0.02, atol=1e-3), (twice, g)",
        "off = abs(g.double().sum() - (up - down) / (2 * h))",
        f"assert off <= {'1e-3' if case.dtype == torch.float64 else '0.1'} * (1 + abs(g.double().sum())), off",
    ]
    return case.fail(
        f"{what} {name!r}", cotangent="different per element", got=got, allowed=f"{expected}", script="\n".join(lines)
    )
