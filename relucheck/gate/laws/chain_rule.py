"""Laws about the chain rule: gradients are linear in the cotangent, elementwise and alike."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from relucheck.gate.cases.case import TAIL_LENGTH, Case
from relucheck.gate.cases.probing import dyadic, first
from relucheck.gate.cases.violation import literal
from relucheck.gate.laws.law import law
from relucheck.numerics.bits import differs


def _judge_product(case: Case, x: Tensor, v: Tensor, got: Tensor, expected: Tensor, slack: Tensor, what: str) -> None:
    """Raise a violation where a gradient and the expected product differ by over ``slack``."""
    wide_got, wide = got.to(torch.float64), expected.to(torch.float64)
    # products near the largest number overflow, and in float16 intermediate results do so earlier
    in_range = wide.abs() < torch.finfo(case.dtype).max / 4
    if case.dtype == torch.float16:
        in_range &= wide_got.isfinite() | (v.abs() <= 1)
    bad = ((wide_got - wide).abs() > slack) & in_range
    # where the expected gradient is not finite, the law finite_gradient decides
    bad |= in_range & ~wide_got.isfinite()
    bad &= wide.isfinite()
    if bool(bad.any()):
        index = first(bad)
        at, cotangent = float(x[index]), float(v[index])
        raise case.fail(
            what,
            x=at,
            cotangent=cotangent,
            got=float(got[index]),
            allowed=f"{float(wide[index]):.9g} (the cotangent times the gradient for cotangent 1)",
            script=_product_script(case, at, cotangent),
        )


def _product_script(case: Case, x: float, cotangent: float) -> str:
    return "\n".join(
        [
            *case.script.header(),
            case.script.make_x([x]),
            "one, = torch.autograd.grad(act(x).sum(), x)",
            f"got, = torch.autograd.grad(act(x), x, torch.full_like(x, {literal(cotangent)}))",
            f"expected = {literal(cotangent)} * one.double()",
            'print("got", got, "expected", expected)',
            f"assert torch.allclose(got.double(), expected, rtol={4 * case.eps:.3g}, atol={case.tiny:.3g})",
        ]
    )


def _ordinary(case: Case) -> tuple[Tensor, Tensor]:
    """Return probe points of ordinary size, and the inaccuracy of the gradient there.

    These are the kinks, their neighbours and the points up to 4 in size.

    At larger points polynomials lose digits by cancellation, and 16-bit dtypes overflow.
    """
    chosen = case.x.abs() <= 4
    chosen[: case.near_kinks.numel()] = True
    return case.x[chosen], 8 * case.inaccuracy.to(case.x.device)[chosen]


@law(per_channel=True)
def cotangent_scaling(case: Case) -> None:
    """The gradient scales with the cotangent, at kinks and elsewhere: vjp(c v) = c vjp(v).

    Source: reverse mode computes the linear map v -> J^T v (Griewank & Walther 2008, Evaluating Derivatives, section 3.2).
    The law scales by powers of two, which do not round, so equality holds to a few machine epsilons for every function.
    """
    x, noise = _ordinary(case)
    v = torch.ones_like(x)
    base = case.reverse(x, v).to(torch.float64)
    for factor in (2.0, -1.0, 0.5, -4.0):
        expected = factor * base
        slack = 4 * case.eps * expected.abs() + case.tiny + abs(factor) * noise
        _judge_product(
            case,
            x,
            factor * v,
            case.reverse(x, factor * v),
            expected,
            slack,
            "the gradient does not scale with the cotangent",
        )


@law()
def cotangent_additivity(case: Case) -> None:
    """The gradient is additive in the cotangent: vjp(u + w) = vjp(u) + vjp(w).

    Neighbouring elements have different cotangents. Source: as for ``cotangent_scaling``. A rule such as ``|v|`` scales for
    positive factors, but is not additive.
    """
    x, noise = _ordinary(case)
    u, w = dyadic(x), dyadic(x).roll(1).neg() * 0.25
    gu, gw = case.reverse(x, u).to(torch.float64), case.reverse(x, w).to(torch.float64)
    got = case.reverse(x, u + w)
    expected = gu + gw
    # a derivative such as 1 - tanh^2 has an error relative to 1, not to itself, and the product with each cotangent rounds
    slack = 8 * case.eps * (gu.abs() + gw.abs() + u.abs() + w.abs()).to(torch.float64) + case.tiny
    slack = slack + noise
    bad = ((got.to(torch.float64) - expected).abs() > slack) & expected.isfinite()
    if bool(bad.any()):
        index = first(bad)
        at, a, b = float(x[index]), float(u[index]), float(w[index])
        script = "\n".join(
            [
                *case.script.header(),
                case.script.make_x([at]),
                "g = lambda v: torch.autograd.grad(act(x), x, torch.full_like(x, v))[0].double()",
                f"got, expected = g({a!r} + {b!r}), g({a!r}) + g({b!r})",
                'print("got", got, "expected", expected)',
                f"assert torch.allclose(got, expected, rtol=0, atol={float(slack[index]):.3g})",
            ]
        )
        raise case.fail(
            "the gradient is not additive in the cotangent",
            x=at,
            cotangent=f"{a!r} + {b!r}",
            got=float(got[index]),
            allowed=f"{float(expected[index]):.9g}",
            script=script,
        )


@law()
def chain_rule(case: Case) -> None:
    """Backward does not drop, clip or replace the cotangent, even if it is tiny, huge or zero.

    The ReLU released with Bertoin et al. (2021) breaks this law. Its gradient at the kink is s, while the chain rule
    requires s times the cotangent. That is right for a cotangent of 1, but a thousand times too large for a cotangent of
    1e-3, which is typical of a mean loss.
    """
    x, noise = _ordinary(case)
    base = case.reverse(x).to(torch.float64)
    reach = {torch.float16: 8, torch.float64: 400}.get(case.dtype, 60)
    for v in (math.ldexp(1.0, -reach), -math.ldexp(1.0, -reach // 2), math.ldexp(1.0, reach), 0.0):
        expected = v * base
        slack = 4 * case.eps * expected.abs() + min(case.tiny, abs(v) * 1e-3 if v else case.tiny)
        # a subnormal gradient for cotangent 1 has few digits, and products with it have fewer
        slack = slack + 8 * abs(v) * case.tiny * case.eps + case.tiny * case.eps * 4 + abs(v) * noise
        _judge_product(
            case,
            x,
            torch.full_like(x, v),
            case.reverse(x, torch.full_like(x, v)),
            expected,
            slack,
            "the gradient is not the cotangent times the derivative",
        )


@law()
def locality(case: Case) -> None:
    """The gradient of an element depends on no other element of the input or the cotangent.

    Source: the Jacobian of an elementwise function is diagonal.
    """
    x = case.x[case.x.abs() <= 64]
    v = dyadic(x)
    base = case.reverse(x, v)
    for spoiled, value in (("input", math.inf), ("input", -2.0), ("cotangent", 1024.0), ("cotangent", math.nan)):
        for index in (0, x.numel() // 2, x.numel() - 1):
            moved, cotangent = x.clone(), v.clone()
            (moved if spoiled == "input" else cotangent)[index] = value
            different = differs(case.reverse(moved, cotangent), base)
            different[index] = False
            if bool(different.any()):
                other = first(different)
                at = float(x[other])
                line = f"x.data[..., 0] = {literal(value)}" if spoiled == "input" else f"v[..., 0] = {literal(value)}"
                script = "\n".join(
                    [
                        *case.script.header(),
                        case.script.make_x([-0.25 if value > 0 else 0.25, at]),
                        "v = torch.full_like(x, 1.5)",
                        "alone, = torch.autograd.grad(act(x), x, v)",
                        line,
                        "got, = torch.autograd.grad(act(x), x, v)",
                        'print("got", got, "alone", alone)',
                        "assert torch.equal(got[..., 1:], alone[..., 1:])",
                    ]
                )
                raise case.fail(
                    f"the gradient of one element depends on another element's {spoiled}",
                    x=at,
                    cotangent=float(v[other]),
                    got=f"{float(case.reverse(moved, cotangent)[other])!r} with the other {spoiled} at {value}",
                    allowed=repr(float(base[other])),
                    script=script,
                )


@law()
def position(case: Case) -> None:
    """Equal inputs have equal gradients at every position of a tensor.

    The tensors are long enough for a vectorised kernel's vector body and its scalar tail, the last elements, which scalar
    code computes. The two may give different gradients: pytorch issue 136345 (hardswish at 3), and NaN in the backward of
    hardtanh. The law allows a difference of a few machine epsilons. At NaN and infinities mathematics defines no gradient,
    so a difference there is a notice.
    """
    info = torch.finfo(case.dtype)
    special = [0.0, -0.0, 1.0, -1.0, info.tiny / 2, -info.tiny / 2, math.nan, math.inf, -math.inf, 2.5, -2.5]
    values = torch.cat([case.near_kinks, case.tensor(special)])
    values = torch.cat([values[values.isfinite()], values[~values.isfinite()]])  # errors before notices
    alone = []
    for number in range(values.numel()):
        x = values[number].repeat(TAIL_LENGTH)
        got = case.reverse(x)
        alone.append(got[0])
        _judge_position(case, float(values[number]), got, got[0].expand_as(got))
    mixed = values.repeat(TAIL_LENGTH // values.numel() + 2)[: max(TAIL_LENGTH, values.numel())]
    expected = torch.stack(alone).repeat(TAIL_LENGTH // values.numel() + 2)[: mixed.numel()]
    got = case.reverse(mixed)
    same = _same(case, got, expected) | ~mixed.isfinite()
    if not bool(same.all()):
        index = first(~same)
        raise case.fail(
            "the gradient of an element depends on the values of its neighbours",
            x=float(mixed[index]),
            got=float(got[index]),
            allowed=repr(float(expected[index])),
        )


def _same(case: Case, a: Tensor, b: Tensor) -> Tensor:
    close = (a.to(torch.float64) - b.to(torch.float64)).abs() <= 8 * case.eps * (0.125 + b.to(torch.float64).abs())
    return close | ~differs(a, b)


def _judge_position(case: Case, value: float, got: Tensor, expected: Tensor) -> None:
    same = _same(case, got, expected)
    if bool(same.all()):
        return
    index = first(~same)
    script = "\n".join(
        [
            *case.script.header(),
            case.script.make_x([0.0]).replace("[0.0]", f"[{literal(value)}] * {TAIL_LENGTH}"),
            "act(x).sum().backward()",
            f"g = x.grad{case.script.pick}",
            f'print("first", g[0].item(), "position {index}", g[{index}].item())',
            f"assert str(g[0].item()) == str(g[{index}].item())",
        ]
    )
    raise case.fail(
        f"equal inputs ({value!r}) have different gradients: position {index} of {TAIL_LENGTH} differs from position 0",
        x=value,
        cotangent=1.0,
        got=f"{float(got[index])!r} at position {index}",
        allowed=f"{float(expected[index])!r}, as at position 0",
        level="error" if math.isfinite(value) else "notice",
        script=script,
    )
