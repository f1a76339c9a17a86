"""Laws about calls: they run, have no side effects, are reproducible and independent."""

from __future__ import annotations

import torch

from relucheck.errors import error_text
from relucheck.gate.cases.case import Case
from relucheck.gate.cases.probing import dyadic, first
from relucheck.gate.isolation.guard import preserved_state
from relucheck.gate.laws.law import law
from relucheck.gate.subject import Disconnected
from relucheck.numerics.bits import differs


@law(needs_gradient=False, explains_failure=True)
def runs(case: Case) -> None:
    """Forward returns a tensor and backward reaches the input.

    An output without an autograd graph is right for a function that is constant between jumps, and gives a notice. For
    every other function the gradient was lost, by ``.detach()``, ``torch.no_grad``, ``.data`` or a conversion to NumPy.
    """
    try:
        case.reverse(case.x)
    except Disconnected as error:
        moderate = torch.linspace(-3, 3, 41, dtype=torch.float64) + 0.01
        flat = bool((case.exact(moderate + 1e-4) == case.exact(moderate)).all())
        script = "\n".join(
            [*case.script.header(), case.script.make_x([0.5]), 'assert act(x).requires_grad, "the output carries no graph"']
        )
        what = f"no gradient reaches the input: {error}"
        raise case.fail(what, script=script, level="notice" if flat or case.activation.surrogate else "error") from None
    except RuntimeError as error:
        if "modified by an inplace operation" in str(error):
            script = "\n".join(
                [
                    *case.script.header(),
                    case.script.make_x([0.5]),
                    "try:",
                    "    act(x).sum().backward()",
                    "except RuntimeError as error:",
                    '    raise AssertionError("backward needs a value that was overwritten") from error',
                ]
            )
            raise case.fail(
                "cannot be differentiated: an in-place operation overwrites a value that its own backward needs; compute "
                "out of place, or on a copy (x.clone())",
                got=error_text(error),
                script=script,
            ) from None
        if "not implemented for" in str(error) or "not supported" in str(error).lower():
            raise case.unsupported(f"dtype {case.dtype}", error) from None
        raise


# needs_gradient=False, because this law must see the first call, before any gradient is computed
@law(needs_gradient=False, frameworks=("torch",))
def global_state(case: Case) -> None:
    """Forward and backward do not change global state, such as grad mode and random generators.

    Checked are the default dtype and device, grad mode, flush-denormal mode, anomaly mode, determinism, matmul precision,
    number of threads, the working directory, and the default random generators of torch, Python and NumPy.
    """
    x = case.tensor([-2.0, -0.5, 0.0, 0.5, 2.0])  # not case.x, whose computation calls the activation
    with preserved_state() as changes:
        # not under torch.enable_grad, which would restore the grad mode
        try:
            y = case.f(x.requires_grad_())
            torch.autograd.grad(y, x, torch.ones_like(y), allow_unused=True)
        except (TypeError, ValueError, RuntimeError):
            pass  # the law that explains failures reports it
    if changes:
        script = "\n".join(
            [
                *case.script.header(),
                "def state():",
                "    modes = torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads()",
                "    return *modes, torch.initial_seed(), torch.get_rng_state().sum().item()",
                case.script.make_x([-1.0, 0.5]),
                "before = state()",
                "act(x).sum().backward()",
                "assert state() == before, (before, state())",
            ]
        )
        raise case.fail(f"global state was changed: {'; '.join(changes)}", got="; ".join(changes), script=script)
    if case.changes:
        what = f"its construction or a first call changed global state, which was restored: {'; '.join(case.changes)}"
        raise case.fail(what, level="notice")


@law(frameworks=("torch",))
def input_unchanged(case: Case) -> None:
    """Forward overwrites its input only if announced; backward never overwrites the cotangent.

    Source: https://docs.pytorch.org/docs/stable/notes/extending.html, "never modify them in-place".
    """
    leaf = case.x.detach().clone().requires_grad_()
    argument = case.subject.spread(leaf)
    kept, cotangent = argument.detach().clone(), dyadic(argument)
    v = cotangent.clone()
    y = case.subject.callable_for(case.dtype, case.device)(argument)
    different = differs(argument.detach(), kept, signed_zero=True).flatten()
    if bool(different.any()) and not case.subject.announces_inplace:
        index = first(different)
        value = float(kept.flatten()[index])
        script = "\n".join(
            [
                *case.script.header(copying=False),
                case.script.make_x([value]),
                "z = x * 1",
                "before = z.tolist()",
                "act(z)",
                "assert z.tolist() == before, z",
            ]
        )
        raise case.fail(
            "forward overwrites its input without announcing it; return a new tensor, or announce it by an argument or "
            "attribute inplace=True, a function name that ends in _, or relucheck.Activation(..., inplace=True)",
            x=value,
            got=float(argument.flatten()[index]),
            allowed=repr(value),
            script=script,
        )
    torch.autograd.grad(y, leaf, v.to(y.dtype), allow_unused=True)
    if y.dtype == v.dtype and bool(differs(v, cotangent).any()):
        index = first(differs(v, cotangent).flatten())
        value = float(kept.flatten()[index])
        script = "\n".join(
            [
                *case.script.header(),
                case.script.make_x([value]),
                "y = act(x)",
                "v = torch.full_like(y, 2.0)",
                "y.backward(v)",
                "assert (v == 2).all(), v",
            ]
        )
        raise case.fail("backward overwrites the cotangent", x=value, got=float(v.flatten()[index]), script=script)


@law()
def determinism(case: Case) -> None:
    """Two calls on the same input give bitwise equal values and gradients."""
    once = case.value(case.x), case.reverse(case.x)
    again = case.value(case.x), case.reverse(case.x)
    for what, a, b in zip(("value", "gradient"), once, again, strict=True):
        different = differs(a, b, signed_zero=True)
        if bool(different.any()):
            index = first(different)
            value = float(case.x[index])
            script = "\n".join(
                [
                    *case.script.header(),
                    case.script.make_x([value] * 8),
                    "run = lambda: (act(x).tolist(), torch.autograd.grad(act(x).sum(), x)[0].tolist())",
                    "assert len({str(run()) for _ in range(8)}) == 1",
                ]
            )
            raise case.fail(
                f"two calls on the same input give different {what}s",
                x=value,
                got=f"{float(b[index])!r} after {float(a[index])!r}",
                script=script,
            )


@law()
def independent_calls(case: Case) -> None:
    """A second forward does not change the gradient of the first.

    A module that stores a mask or its input on ``self``, and not in the autograd context, breaks this law.
    """
    y, pullback = case.subject.pullback(case.f, case.x)
    case.subject.pullback(case.f, -case.x)
    got = pullback(torch.ones_like(y))
    different = differs(got, case.g)
    if bool(different.any()):
        index = first(different)
        value = float(case.x[index])
        script = "\n".join(
            [
                *case.script.header(),
                case.script.make_x([value]),
                "alone, = torch.autograd.grad(act(x).sum(), x)",
                "y = act(x)",
                "act(-x.detach())",
                "late, = torch.autograd.grad(y.sum(), x)",
                "assert torch.equal(late, alone), (late, alone)",
            ]
        )
        raise case.fail(
            "a second forward changes the gradient of the first",
            x=value,
            got=float(got[index]),
            allowed=repr(float(case.g[index])),
            script=script,
        )
