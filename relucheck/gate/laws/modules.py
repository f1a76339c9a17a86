"""Laws about tensors and modules: dtype, shape, strides, in-place variants, copies."""

from __future__ import annotations

import copy
import functools
import inspect
import pickle
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from relucheck.gate.cases.case import Case
from relucheck.gate.cases.probing import dyadic, first
from relucheck.gate.cases.violation import NotApplicable
from relucheck.gate.laws.law import law
from relucheck.gate.subject import SEED, Subject, make_seeded
from relucheck.numerics.bits import differs


@law(frameworks=("torch",))
def dtype_and_shape(case: Case) -> None:
    """Value and gradient have the dtype, device and shape of the input.

    The gradients of the elements must not depend on the shape, either. A changed dtype is the commonest defect of
    hand-written activations: a float32 constant tensor promotes a bfloat16 input.
    """
    target = case.subject.callable_for(case.dtype, case.device)
    shapes: list[tuple[int, ...]] = [(7,)]
    if case.subject.shape == (-1,):
        shapes += [(3, 5), (2, 3, 4), (1, 1, 2, 3), (), (0,), (2, 0)]
    for shape in shapes:
        flat = case.tensor([0.5, -1.5, 2.0, -0.25, 3.5, 0.0, -4.0] * 4)
        x = flat[: torch.Size(shape).numel()].reshape(shape) if case.subject.shape == (-1,) else flat[:7]
        leaf = x.detach().clone().requires_grad_()
        try:
            y = target(leaf.clone()) if case.subject.shape == (-1,) else case.f(leaf)
            (gradient,) = torch.autograd.grad(y, leaf, torch.ones_like(y))
        except (RuntimeError, IndexError, ValueError) as error:
            if shape == (7,):
                raise
            raise case.unsupported(f"an input of shape {shape}", error) from None
        for what, result in (("value", y), ("gradient", gradient)):
            if (result.dtype, result.device, result.shape) != (leaf.dtype, leaf.device, leaf.shape):
                got = f"{result.dtype}, {result.device}, {tuple(result.shape)}"
                expected = f"{leaf.dtype}, {leaf.device}, {tuple(leaf.shape)}"
                script = "\n".join(
                    [
                        *case.script.header(),
                        f"x = torch.full({shape}, 0.5, {case.script.place})"
                        + ("" if case.subject.shape == (-1,) else f".reshape((1, 1, -1)).expand{case.subject.shape}"),
                        "y = act(x)",
                        "print(y.dtype, y.shape)",
                        "assert (y.dtype, y.shape) == (x.dtype, x.shape)",
                    ]
                )
                raise case.fail(
                    f"the {what} for an input of shape {shape} has a different dtype, device or shape than the input",
                    got=got,
                    allowed=expected,
                    level="notice" if _broadcasts_scalars(case, leaf, result) else "error",
                    script=script,
                )
        _judge_numbers(case, leaf, gradient)


def _broadcasts_scalars(case: Case, x: Tensor, result: Tensor) -> bool:
    """Whether a 0-dimensional input became a vector by broadcasting with a parameter."""
    original = case.subject.original
    state = original.state_dict().values() if isinstance(original, nn.Module) else ()
    return (
        x.shape == ()
        and (result.dtype, result.device, result.shape) == (x.dtype, x.device, (1,))
        and any(isinstance(value, Tensor) and value.shape == (1,) for value in state)
    )


def _judge_numbers(case: Case, x: Tensor, gradient: Tensor) -> None:
    """Raise a violation where the gradient differs from that of the same elements in a vector."""
    flat = x.detach().reshape(-1)
    if not flat.numel():
        return
    ours, plain = gradient.reshape(-1).to(torch.float64), case.reverse(flat).to(torch.float64)
    slack = 16 * case.eps * (1 + plain.abs()) * (1 + flat.to(torch.float64).abs() / 4)
    bad = (ours - plain).abs() > slack
    if bool(bad.any()):
        index = first(bad)
        shape = tuple(x.shape)
        values = ", ".join(repr(value) for value in flat.tolist())
        script = "\n".join(
            [
                *case.script.header(),
                f"x = torch.tensor([{values}], {case.script.place})",
                f"z = x.reshape({shape}).requires_grad_()",
                "plain, = torch.autograd.grad(act(x.requires_grad_()).sum(), x)",
                "got, = torch.autograd.grad(act(z).sum(), z)",
                f"assert (got.flatten() - plain).abs().max() <= {float(slack.max()):.3g}, (got, plain)",
            ]
        )
        raise case.fail(
            f"the gradient for an input of shape {shape} differs from that for the same numbers in a vector",
            x=float(flat[index]),
            cotangent=1.0,
            got=float(ours[index]),
            allowed=repr(float(plain[index])),
            script=script,
        )


@law(frameworks=("torch",), applies=lambda case: case.subject.shape == (-1,))
def strides(case: Case) -> None:
    """Non-contiguous inputs have the values and gradients of contiguous inputs.

    The inputs are transposed, stepped, expanded and channels-last. A result for a transposed or channels-last input should
    have the strides of the input; other strides are a notice. Source: https://docs.pytorch.org/docs/stable/autograd.html,
    "Default gradient layouts".
    """
    target = case.subject.callable_for(case.dtype, case.device)
    base = case.x[case.x.abs() <= 64]
    base = base.repeat(96 // base.numel() + 1)[:96]
    layouts: dict[str, Tensor] = {
        "transposed": base.reshape(8, 12).t(),
        "stepped": base[::2],
        "expanded": base[:8].reshape(8, 1).expand(8, 9),
        "channels_last": base.reshape(2, 4, 4, 3).contiguous(memory_format=torch.channels_last),
    }
    for name, view in layouts.items():
        v = dyadic(view)
        results = []
        for x in (view.detach(), view.detach().contiguous()):
            x = x.requires_grad_() if x.is_contiguous() else x.detach().requires_grad_()
            # a copy loses steps and expanded dimensions, so only an activation that writes to its input gets a copy
            y = target(x.clone() if case.subject.writes else x)
            (gradient,) = torch.autograd.grad(y, x, v.to(y.dtype))
            results.append((y.detach(), gradient))
        for what, ours, plain in zip(("value", "gradient"), *results, strict=True):
            wide, right = ours.to(torch.float64), plain.to(torch.float64)
            slack = 16 * case.eps * (1 + right.abs()) * (1 + view.to(torch.float64).abs().clamp(max=16.0) / 4)
            bad = ((wide - right).abs() > slack) | (wide.isnan() != right.isnan())
            if bool(bad.any()):
                place = tuple(int(i) for i in bad.nonzero()[0])
                raise case.fail(
                    f"the {what} for a {name} input differs from that for a contiguous input at index {place}",
                    x=float(view[place]),
                    cotangent=float(v[place]),
                    got=float(ours[place]),
                    allowed=repr(float(plain[place])),
                    script=_layout_script(case, name),
                )
        dense = name in ("transposed", "channels_last")
        if dense and results[0][0].stride() != view.stride():
            raise case.fail(
                f"the result for a {name} input has other strides than the input",
                got=str(results[0][0].stride()),
                allowed=str(view.stride()),
                level="notice",
            )


def _layout_script(case: Case, name: str) -> str:
    views = {
        "transposed": "base.reshape(8, 12).t()",
        "stepped": "base[::2]",
        "expanded": "base[:8].reshape(8, 1).expand(8, 9)",
        "channels_last": "base.reshape(2, 4, 4, 3).contiguous(memory_format=torch.channels_last)",
    }
    return "\n".join(
        [
            *case.script.header(),
            f"base = torch.linspace(-8, 8, 96, dtype=torch.float64).to({case.script.place})",
            f"x = {views[name]}.detach().requires_grad_()",
            "v = torch.arange(1.0, x.numel() + 1).to(x).reshape(x.shape)",
            "g, = torch.autograd.grad(act(x), x, v)",
            "z = x.detach().contiguous().requires_grad_()",
            "plain, = torch.autograd.grad(act(z), z, v)",
            f"assert torch.allclose(g, plain, rtol={16 * case.eps:.3g}, atol={16 * case.eps:.3g})",
        ]
    )


def inplace_variant(subject: Subject) -> Callable[[], Any] | None:
    """Return a constructor of an activation's in-place variant; None if there is none.

    The variant is the declared one, the module with its attribute ``inplace`` set, or the function with its argument
    ``inplace`` set. For an activation that announces that it works in place, it is the activation itself.
    """
    original = subject.original
    if callable(subject.activation.inplace):
        return subject.activation.inplace
    if subject.announces_inplace:
        return lambda: subject.copied(original) if isinstance(original, nn.Module) else original
    if isinstance(original, nn.Module):
        if not isinstance(getattr(original, "inplace", None), bool):
            return None

        def make() -> nn.Module:
            module = subject.copied(original)
            module.inplace = True  # type: ignore[assignment]  # the activation's attribute, a bool
            return module

        return make
    try:
        takes = "inplace" in inspect.signature(original).parameters
    except (TypeError, ValueError):
        return None
    return (lambda: functools.partial(original, inplace=True)) if takes else None


def _inplace_line(case: Case) -> str:
    if callable(case.activation.inplace):
        return "act_ = act  # construct the in-place variant here"
    announced = case.subject.announces_inplace
    if isinstance(case.subject.original, nn.Module):
        return "import copy; act_ = copy.deepcopy(act)" + ("" if announced else "; act_.inplace = True")
    return "act_ = act" if announced else "act_ = lambda t: act(t, inplace=True)"


@law(frameworks=("torch",), applies=lambda case: inplace_variant(case.subject) is not None)
def inplace(case: Case) -> None:
    """The in-place variant has the same values and gradients, and never corrupts a saved tensor.

    A write increments the tensor's version counter, so the backward of an operation that saved the old values raises. A
    write through ``.data`` bypasses this check, and the saved values are wrong. Source:
    https://docs.pytorch.org/docs/stable/notes/autograd.html, "In-place correctness checks".
    """
    make = inplace_variant(case.subject)
    assert make is not None
    variant = make()
    if isinstance(variant, nn.Module):
        variant = variant.to(device=case.device, dtype=case.dtype)
    if case.subject.shape != (-1,):
        raise NotApplicable("the law checks in-place variants only of activations without parameters per channel")
    try:
        got = case.reverse(case.x, f=case.subject.flat(variant))
        value = variant(case.x.detach().clone())
    except RuntimeError as error:
        raise case.unsupported("the in-place variant", error) from None
    for what, ours, plain in (("value", value, case.y), ("gradient", got, case.g)):
        wide, right = ours.detach().to(torch.float64), plain.to(torch.float64)
        # variants that save their result compute the derivative from it, with an error relative to 1
        bad = ((wide - right).abs() > 8 * case.eps * (1 + right.abs())) | (wide.isnan() != right.isnan())
        if bool(bad.any()):
            index = first(bad)
            at = float(case.x[index])
            script = "\n".join(
                [
                    *case.script.header(copying=False),
                    _inplace_line(case),
                    *case.script.copying(),
                    case.script.make_x([at]),
                    "plain, = torch.autograd.grad(act(x).sum(), x)",
                    "got, = torch.autograd.grad(act_(x * 1).sum(), x)",
                    'print("in-place", got, "out of place", plain)',
                    "assert torch.allclose(got, plain) and torch.allclose(act_(x.detach() * 1), act(x.detach()))",
                ]
            )
            raise case.fail(
                f"the in-place variant has a different {what}",
                x=at,
                cotangent=1.0,
                got=float(ours[index]),
                allowed=repr(float(plain[index])),
                script=script,
            )
    # tanh saves its result, which the activation overwrites: backward must raise or still be right
    inner = case.tensor([-1.7, -0.3, 0.2, 0.9, 1.6])
    leaf = inner.clone().requires_grad_()
    expected = case.reverse(inner, f=lambda x: case.f(torch.tanh(x)))
    try:
        (chained,) = torch.autograd.grad(variant(torch.tanh(leaf)).sum(), leaf)
    except RuntimeError:
        return
    _judge_saved(case, inner, chained, expected)


def _judge_saved(case: Case, x: Tensor, got: Tensor, expected: Tensor) -> None:
    bad = (got - expected).abs() > 16 * case.eps * (0.125 + expected.abs())
    if bool(bad.any()):
        index = first(bad)
        value = float(x[index])
        script = "\n".join(
            [
                *case.script.header(copying=False),
                _inplace_line(case),
                *case.script.copying(),
                case.script.make_x([value]),
                "expected, = torch.autograd.grad(act(torch.tanh(x)).sum(), x)",
                "try:",
                "    got, = torch.autograd.grad(act_(torch.tanh(x)).sum(), x)",
                "except RuntimeError:",
                "    got = expected  # an error is right",
                'print("got", got, "expected", expected)',
                f"assert torch.allclose(got, expected, rtol={16 * case.eps:.3g}, atol={4 * case.eps:.3g})",
            ]
        )
        raise case.fail(
            "the in-place variant overwrites a value that another operation saved, and backward does not notice",
            x=value,
            got=float(got[index]),
            allowed=f"{float(expected[index])!r}, or an error from autograd",
            script=script,
        )


@law(frameworks=("torch",), applies=lambda case: isinstance(case.subject.original, nn.Module))
def copies(case: Case) -> None:
    """Copied, pickled and reloaded modules have bitwise equal gradients.

    The ways are a deep copy, a pickled copy, and a new module that loads the state_dict. The law first changes the
    parameters, so that state outside the state_dict makes a difference. A module that cannot be copied or pickled is a
    notice.
    """
    module = case.subject.fresh(case.dtype, case.device)
    with torch.no_grad():
        # non-persistent buffers stay as they are, because a state_dict does not contain them
        for tensor in module.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(0.125)
    x = case.x[case.x.abs() <= 64]
    expected = case.reverse(x, f=case.subject.flat(module))

    def reloaded() -> nn.Module:
        fresh: Any = make_seeded(case.activation.make, SEED + 1)
        fresh = fresh.to(device=case.device, dtype=case.dtype)
        fresh.load_state_dict(module.state_dict())
        return fresh.eval() if case.subject.evaluating else fresh

    ways: dict[str, tuple[Callable[[], Any], str]] = {
        "deepcopy": (lambda: copy.deepcopy(module), "import copy; other = copy.deepcopy(act)"),
        "pickle": (lambda: pickle.loads(pickle.dumps(module)), "import pickle; other = pickle.loads(pickle.dumps(act))"),
        "state_dict": (
            reloaded,
            f"other = {(case.activation.source or ('', 'act'))[1]}.to(x.dtype); other.load_state_dict(act.state_dict())",
        ),
    }
    for name, (copied, line) in ways.items():
        try:
            other = copied()
        except Exception as error:
            raise case.unsupported(name, error) from None
        got = case.reverse(x, f=case.subject.flat(other))
        different = differs(got, expected)
        if bool(different.any()):
            index = first(different)
            value = float(x[index])
            script = "\n".join(
                [
                    *case.script.header(copying=False),  # the hook that copies the input cannot be pickled
                    "with torch.no_grad():",
                    "    [p.add_(0.125) for p in act.state_dict().values() if p.is_floating_point()]",
                    case.script.make_x([value]),
                    line,
                    "g = lambda f: torch.autograd.grad(f(x * 1).sum(), x)[0]",
                    "assert torch.equal(g(other), g(act)), (g(other), g(act))",
                ]
            )
            raise case.fail(
                f"a copy by {name} has a different gradient",
                x=value,
                cotangent=1.0,
                got=float(got[index]),
                allowed=repr(float(expected[index])),
                script=script,
            )
