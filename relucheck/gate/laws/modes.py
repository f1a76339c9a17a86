"""Laws that compare reverse mode with forward mode, vmap, double backward and compile."""

from __future__ import annotations

import torch
from torch import Tensor

from relucheck.gate.cases.case import Case
from relucheck.gate.cases.probing import dyadic, first
from relucheck.gate.isolation.guard import preserved_state
from relucheck.gate.laws.law import law


def _agrees(case: Case, a: Tensor, b: Tensor, x: Tensor, units: float = 16) -> Tensor:
    """Return a mask of the entries that are equal up to rounding, or whose ``b`` is not finite.

    The tolerance grows with ``|x|``, because rounding errors do.
    """
    wide_a, wide_b = a.to(torch.float64), b.to(torch.float64)
    slack = units * case.eps * (0.125 + wide_b.abs()) * (1 + x.to(torch.float64).abs().clamp(max=16.0) / 4)
    return ((wide_a - wide_b).abs() <= slack) | ~wide_b.isfinite()


def _mode_script(case: Case, x: float, line: str) -> str:
    """Return a script that compares another mode with reverse mode at one input.

    The code ``line`` computes the gradient ``other`` in that mode.
    """
    return "\n".join(
        [
            *case.script.header(),
            case.script.make_x([x]),
            "reverse, = torch.autograd.grad(act(x).sum(), x)",
            "x = x.detach()",
            line,
            'print("reverse", reverse, "other", other)',
            "other, reverse = other.double().flatten(), reverse.double().flatten()",
            f"assert torch.allclose(other, reverse, rtol={32 * case.eps:.3g}, atol={16 * case.eps:.3g})",
        ]
    )


@law(frameworks=("torch",))
def forward_mode(case: Case) -> None:
    """Forward-mode AD gives the same derivative as reverse mode, at kinks and elsewhere.

    Source: jvp(u) = J u and vjp(v) = J^T v have the same J (Griewank & Walther 2008, Evaluating Derivatives). Missing
    support for forward mode is a notice.
    """
    x = case.x
    u = dyadic(x)
    try:
        got = torch.func.jvp(case.f, (x,), (u,))[1].detach()
    except (RuntimeError, TypeError, AttributeError) as error:
        raise case.unsupported("forward-mode AD", error) from None
    expected = case.g.to(torch.float64) * u.to(torch.float64)
    # products of the largest numbers with the tangent overflow
    same = _agrees(case, got, expected, x)
    same |= (got.to(torch.float64) - expected).abs() <= 8 * case.inaccuracy.to(x.device) * u.abs()
    same |= expected.abs() > torch.finfo(case.dtype).max / 4
    # at large |x| an intermediate product (x * x in float16) may overflow in one mode only, which is not a wrong derivative
    same |= ~got.isfinite() & (x.abs() > 64)
    if not bool(same.all()):
        index = first(~same)
        value, tangent = float(x[index]), float(u[index])
        raise case.fail(
            "forward mode and reverse mode differ",
            x=value,
            cotangent=tangent,
            got=f"{float(got[index]) / tangent!r} in forward mode",
            allowed=f"{float(case.g[index])!r}, as in reverse mode",
            script=_mode_script(
                case,
                value,
                f"_, other = torch.func.jvp(act, (x,), (torch.full_like(x, {tangent}),)); other = other / {tangent}",
            ),
        )


@law(frameworks=("torch",))
def vmap(case: Case) -> None:
    """Values and gradients under ``torch.func.vmap`` equal those of plain calls.

    Missing support for vmap is a notice. Source: https://docs.pytorch.org/docs/stable/func.html
    """
    x = case.x
    try:
        value = torch.func.vmap(lambda t: case.f(t.reshape(1)).reshape(()))(x).detach()
        got = torch.func.vmap(torch.func.grad(lambda t: case.f(t.reshape(1)).sum()))(x).detach()
    except (RuntimeError, TypeError, ValueError, AttributeError) as error:
        raise case.unsupported("torch.func.grad under vmap", error) from None
    same = _agrees(case, value, case.y, x)
    if not bool(same.all()):
        index = first(~same)
        at, pick = float(x[index]), case.script.pick
        script = "\n".join(
            [
                *case.script.header(),
                case.script.make_x([at]),
                f"plain = act(x){pick}",
                f"mapped = torch.func.vmap(lambda t: act(t.reshape(x.shape)){pick})(x{pick}[:, None])",
                'print("under vmap", mapped, "plain", plain)',
                "mapped, plain = mapped.flatten(), plain.flatten()",
                f"assert torch.allclose(mapped, plain, rtol={32 * case.eps:.3g}, atol={16 * case.eps:.3g})",
            ]
        )
        raise case.fail(
            "the value under vmap differs from that of a plain call",
            x=at,
            got=float(value[index]),
            allowed=repr(float(case.y[index])),
            script=script,
        )
    same = _agrees(case, got, case.g, x)
    same |= (got.to(torch.float64) - case.g.to(torch.float64)).abs() <= 8 * case.inaccuracy.to(x.device)
    if not bool(same.all()):
        index = first(~same)
        at = float(x[index])
        one = "act(t)" if case.subject.shape == (-1,) else "act(t.expand(x.shape))" + case.script.pick
        raise case.fail(
            "torch.func.grad under vmap differs from reverse mode",
            x=at,
            cotangent=1.0,
            got=float(got[index]),
            allowed=f"{float(case.g[index])!r}, as in reverse mode",
            script=_mode_script(
                case, at, f"other = torch.func.vmap(torch.func.grad(lambda t: {one}.sum()))(x.flatten()[:, None])[:1]"
            ).replace("reverse.double().flatten()", "reverse.double().flatten()[:1]"),
        )


def _second_derivative(gradient: Tensor, leaf: Tensor) -> Tensor | None:
    """Return the derivative of the sum of a gradient; None if no graph reaches the input."""
    second: tuple[Tensor | None, ...] = torch.autograd.grad(gradient.sum(), leaf, retain_graph=True, allow_unused=True)
    return second[0]


def _double_script(case: Case, x: float, condition: str) -> str:
    return "\n".join(
        [
            *case.script.header(),
            case.script.make_x([x]),
            "v = torch.ones_like(x).requires_grad_()",
            "g, = torch.autograd.grad(act(x), x, v, create_graph=True)",
            f"second, = torch.autograd.grad(g{case.script.pick}.sum(), x, allow_unused=True)",
            f"got = 0.0 if second is None else second{case.script.pick}.item()",
            'print("second derivative", got)',
            f"assert {condition}, got",
        ]
    )


@law(frameworks=("torch",))
def double_backward(case: Case) -> None:
    """The second derivative is correct, or double backward raises an error.

    It must be finite in every dtype. In float64 it must also equal the central difference of the gradient, away from kinks.
    A custom function that detaches in backward loses the second derivative silently;
    ``torch.autograd.function.once_differentiable`` makes it raise.
    """
    x = case.x[case.x.abs() <= 1e4]
    leaf = x.detach().clone().requires_grad_()
    y = case.f(leaf)
    v = torch.ones_like(y).requires_grad_()
    try:
        (gradient,) = torch.autograd.grad(y, leaf, v, create_graph=True)
        second: Tensor | None = None
        if gradient.requires_grad:
            second = _second_derivative(gradient, leaf)
            if second is None:
                # backward() also visits nodes that grad() prunes, so once_differentiable raises here as it does for a user
                gradient.sum().backward()
    except RuntimeError as error:
        raise case.unsupported("double backward", error) from None
    got = torch.zeros_like(x) if second is None else second
    bad = ~got.isfinite() & gradient.detach().isfinite() & ~_near_singular(case, x)
    if bool(bad.any()):
        near = bad & (x.abs() <= 10)
        index = first(near if bool(near.any()) else bad)
        value = float(x[index])
        raise case.fail(
            "the second derivative is not finite",
            x=value,
            cotangent=1.0,
            got=float(got[index]),
            allowed="a finite number, or an error from double backward",
            level="error" if bool(near.any()) else "notice",
            script=_double_script(case, value, "abs(got) < float('inf')"),
        )
    if case.dtype != torch.float64 or case.activation.surrogate:
        return
    x = torch.linspace(-6, 6, 49, dtype=torch.float64, device=case.device) + 0.0137
    away = torch.ones_like(x, dtype=torch.bool)
    for kink in case.kinks:
        away &= (x - kink.at).abs() > 0.02
    h = 1e-4
    difference = (case.reverse(x + h) - case.reverse(x - h)) / (2 * h)
    halved = (case.reverse(x + h / 2) - case.reverse(x - h / 2)) / h
    leaf = x.clone().requires_grad_()
    y = case.f(leaf)
    (gradient,) = torch.autograd.grad(y, leaf, torch.ones_like(y).requires_grad_(), create_graph=True)
    second = torch.autograd.grad(gradient.sum(), leaf, allow_unused=True)[0] if gradient.requires_grad else None
    got = torch.zeros_like(x) if second is None else second
    slack = 1e-4 * (1 + difference.abs()) + 10 * (difference - halved).abs()
    bad = away & ((got - difference).abs() > slack)
    if bool(bad.any()):
        index = first(bad)
        value, right = float(x[index]), float(difference[index])
        lost = second is None or not bool(got.any())
        raise case.fail(
            "the second derivative is lost silently" if lost else "the second derivative is wrong",
            x=value,
            cotangent=1.0,
            got=float(got[index]),
            allowed=f"{right:.9g} within {float(slack[index]):.3g}, or an error from double backward",
            script=_double_script(case, value, f"abs(got - {right!r}) <= {float(slack[index]):.6g}"),
        )


def _near_singular(case: Case, x: Tensor) -> Tensor:
    result = torch.zeros(x.shape, dtype=torch.bool, device=x.device)
    for kink in case.kinks:
        if kink.singular:
            result |= (x.to(torch.float64) - kink.at).abs() < 0.05 * max(1.0, abs(kink.at))
    return result


@law(frameworks=("torch",), applies=lambda case: case.activation.compile)
def compile_agreement(case: Case) -> None:
    """Gradients under ``torch.compile`` equal those of eager mode.

    This matters most at kinks and next to them. The law is opt-in (``compile=True`` or ``--relucheck-compile``), because it
    takes seconds. Source: pytorch issue 185472, where the compiled hardtanh compared bfloat16 inputs with a rounded bound.
    Away from kinks the law allows a few machine epsilons, because fused code rounds less often.
    """
    x = case.x
    torch._dynamo.reset()
    try:
        compiled = torch.compile(case.f, dynamic=False, fullgraph=False)
        # torch 2.4's inductor links with -ffast-math: loading its kernels makes the process flush subnormal numbers to 0,
        # which would fail the laws that are checked later. So the first call compiles, and the second one is compared.
        with preserved_state():
            case.reverse(x, f=compiled)
        got = case.reverse(x, f=compiled)
    except Exception as error:
        raise case.unsupported("torch.compile", error) from None
    same = _agrees(case, got, case.g, x, units=32)
    for number, kink in enumerate(case.kinks):
        here = case.on_kink & (case.nearest[0] == number)
        exact = (got.to(torch.float64) - case.g.to(torch.float64)).abs().cpu() <= case.tolerance(kink)
        same = torch.where(here.to(same.device), (exact | ~case.g.isfinite().cpu()).to(same.device), same)
    if not bool(same.all()):
        index = first(~same)
        value = float(x[index])
        raise case.fail(
            "torch.compile and eager mode differ",
            x=value,
            cotangent=1.0,
            got=f"{float(got[index])!r} compiled",
            allowed=f"{float(case.g[index])!r}, as in eager mode",
            script=_mode_script(
                case, value, "x.requires_grad_(); other, = torch.autograd.grad(torch.compile(act)(x).sum(), x)"
            ),
        )


@law(frameworks=("torch",), applies=lambda case: case.dtype == torch.float32)
def autocast(case: Case) -> None:
    """Under autocast, gradients are finite, float32, and at kinks in the Clarke interval.

    The input is float32. Source: https://docs.pytorch.org/docs/stable/amp.html. Under autocast, elementwise functions run
    in the dtype of their input.
    """
    device = torch.device(case.device).type
    low_precision = torch.float16 if device == "cuda" else torch.bfloat16
    x = case.x[case.x.abs() <= 64]
    try:
        with torch.autocast(device, dtype=low_precision):
            got = case.reverse(x)
    except RuntimeError as error:
        raise case.unsupported("autocast", error) from None
    plain = case.reverse(x)
    context = f'torch.autocast("{device}", dtype=torch.{str(low_precision).removeprefix("torch.")})'
    bad = ~got.isfinite() & plain.isfinite()
    eps = float(torch.finfo(low_precision).eps)
    wrong = (got - plain).abs() > 32 * eps * (1 + plain.abs()) * (1 + x.abs().clamp(max=8.0) / 4)
    at_kink = torch.zeros_like(bad)
    for kink in case.corners:
        # inputs that the lower precision rounds to the kink may have the derivative of either side
        here = (x.to(torch.float64) - kink.at).abs() <= 4 * eps * max(1.0, abs(kink.at))
        at_kink |= here
        low, high = kink.hull
        bad |= here & ((got < low - 8 * eps * (1 + abs(low))) | (got > high + 8 * eps * (1 + abs(high))))
    if case.activation.surrogate:
        bad = ~got.isfinite() & plain.isfinite()
    bad |= wrong & ~at_kink
    if got.dtype != x.dtype or bool(bad.any()):
        index = first(bad) if bool(bad.any()) else 0
        value = float(x[index])
        right = float(plain[index])
        script = "\n".join(
            [
                *case.script.header(),
                case.script.make_x([value]),
                f"with {context}:",
                "    got, = torch.autograd.grad(act(x).sum(), x)",
                "plain, = torch.autograd.grad(act(x).sum(), x)",
                'print("autocast", got, "without", plain)',
                f"assert torch.allclose(got, plain, rtol={32 * eps:.3g}, atol={32 * eps:.3g})",
            ]
        )
        raise case.fail(
            "the gradient under autocast is wrong",
            x=value,
            cotangent=1.0,
            got=float(got[index]),
            allowed=repr(right),
            script=script,
        )
