"""Laws about calls: they run, have no side effects, are reproducible and independent."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from relucheck.errors import error_text
from relucheck.gate.cases.case import Case
from relucheck.gate.cases.probing import dyadic, first
from relucheck.gate.cases.violation import NotApplicable
from relucheck.gate.frameworks.exchange import Disconnected
from relucheck.gate.laws.law import law
from relucheck.numerics.floats import Floats, differs


@law(needs_gradient=False, explains_failure=True, group="")
def runs(case: Case) -> None:
    """Forward returns a tensor and backward reaches the input.

    An output without an autograd graph is right for a function that is constant between jumps, and gives a notice. For
    every other function the gradient was lost, by ``.detach()``, ``torch.no_grad``, ``.data`` or a conversion to NumPy.
    """
    try:
        case.reverse(case.x)
    except Disconnected as error:
        moderate = np.linspace(-3, 3, 41) + 0.01
        flat = bool((case.exact(moderate + 1e-4) == case.exact(moderate)).all())
        raise case.fail(
            f"no gradient reaches the input: {error}",
            script=case.script.disconnected(),
            level="notice" if flat or case.activation.surrogate else "error",
        ) from None
    except case.framework.errors as error:
        diagnosis = case.framework.diagnosis(error)
        if diagnosis == "overwritten":
            raise case.fail(
                "cannot be differentiated: an in-place operation overwrites a value that its own backward needs; compute "
                "out of place, or on a copy (x.clone())",
                got=error_text(error),
                script=case.script.overwritten_value(),
            ) from None
        if diagnosis == "dtype":
            raise case.unsupported(error, f"dtype {case.framework.spelled(case.dtype)}") from None
        raise


# needs_gradient=False, because this law must see the first call, before any gradient is computed
@law(needs_gradient=False, needs=("global_state",), group="")
def global_state(case: Case) -> None:
    """Forward and backward do not change global state, such as grad mode and random generators.

    Checked are the default dtype and device, grad mode, flush-denormal mode, anomaly mode, determinism, matmul precision,
    number of threads, the working directory, the loaded modules, threads that keep running, the functions by which torch
    differentiates, and the default random generators of torch, Python and NumPy.
    """
    # not case.x, whose computation calls the activation; the law that explains failures reports those of the call
    changes = case.framework.state_changes(case.f, case.rounded([-2.0, -0.5, 0.0, 0.5, 2.0]))
    if changes and all("generator" in change for change in changes) and _draws(case):
        raise NotApplicable("it draws random numbers, as its results show")
    if changes:
        what = f"global state was changed: {'; '.join(changes)}"
        raise case.fail(what, got="; ".join(changes), script=case.script.state())
    if case.changes:
        what = f"its construction or a first call changed global state, which was restored: {'; '.join(case.changes)}"
        raise case.fail(what, level="notice")


def _draws(case: Case) -> bool:
    try:
        return case.unstable is not None
    except Exception:
        return False


@law(needs=("in_place",), group="")
def input_unchanged(case: Case) -> None:
    """Forward overwrites its input only if announced; backward overwrites nothing.

    Backward must leave the input, the output and the cotangent as they are.

    An activation that announces to work in place may write to its input and output in backward, too. Source:
    https://docs.pytorch.org/docs/stable/notes/extending.html, "never modify them in-place".
    """
    call = case.framework.overwritten(case.f, case.x, dyadic)
    different = differs(call.x_after, call.x, signed_zero=True).ravel()
    if different.any() and not case.subject.announces_inplace:
        plain = differs(call.x_after, call.x).ravel()  # a script shows a changed sign of zero less well
        index = case.example(plain if plain.any() else different, call.x.ravel())
        value = float(call.x.flat[index])
        raise case.fail(
            "forward overwrites its input without announcing it; return a new tensor, or announce it by an argument or "
            "attribute inplace=True, a function name that ends in _, or relucheck.Activation(..., inplace=True)",
            x=value,
            got=float(call.x_after.flat[index]),
            allowed=repr(value),
            script=case.script.overwritten_input(value),
        )
    if case.subject.writes and not case.subject.announces_inplace:
        raise case.fail(
            "forward overwrites its input where no gradient is needed, as in inference, without announcing it",
            script=case.script.overwritten_in_inference(),
        )
    for name, (before, after) in sorted(call.backward().items()):
        # an activation that is announced to work in place may use the buffer that it was given for its gradient
        if name != "cotangent" and case.subject.announces_inplace:
            continue
        different = differs(after, before).ravel()
        if different.any():
            index = first(different)
            value = float(call.x.flat[index])
            raise case.fail(
                f"backward overwrites the {name}",
                x=value,
                got=float(after.flat[index]),
                allowed=repr(float(before.flat[index])),
                script=case.script.overwritten_by_backward(value, name),
            )


@law(cause="random numbers, or memory that nobody has written", needs_stable=False, group="")
def determinism(case: Case) -> None:
    """Two calls on the same input give bitwise equal values and gradients."""
    if case.unstable is not None:
        what, x, got = case.unstable
        raise case.fail(
            f"two calls on the same input give different {what}s, so most other laws are skipped",
            x=x,
            got=got,
            script=case.script.text(
                f"run = lambda: (act(x).tolist(), {case.script.gradient()}.tolist())",
                "assert len({str(run()) for _ in range(1024)}) == 1",
                x=[x] * 8,
            ),
        )


@law(cause="backward reads a state that the next call overwrites", group="")
def independent_calls(case: Case) -> None:
    """A second forward or backward does not change the gradient.

    A module that stores a mask or its input on ``self``, and not in the autograd context, breaks this law. So does a
    backward that writes over what it saved, because ``retain_graph=True`` lets it run again. It may raise an error then.
    """
    y, pullback = case.framework.pullback(case.f, case.x)
    case.framework.pullback(case.f, -case.x)
    _judge_gradient(case, pullback(np.ones_like(y)), "forward", case.script.late_gradient, "")
    try:
        again = pullback(np.ones_like(y))
    except case.framework.errors:
        return
    _judge_gradient(case, again, "backward", case.script.second_gradient, "backward writes over what forward saved")


def _judge_gradient(case: Case, got: Floats, second: str, script: Callable[[float], str], cause: str) -> None:
    different = differs(got, case.g)
    if different.any():
        index = case.example(different, case.x)
        value = float(case.x[index])
        raise case.fail(
            f"a second {second} changes the gradient of the first",
            x=value,
            got=float(got[index]),
            allowed=repr(float(case.g[index])),
            script=script(value),
            cause=cause,
        )
