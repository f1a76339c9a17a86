"""The gate for explicit lists: ``check_activation`` without pytest, ``parametrize_with_laws`` for a test of one's own."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch

from relucheck.activations.kinks import Activation
from relucheck.errors import FAILED, RelucheckError
from relucheck.gate.config import ConfigError, GateConfig
from relucheck.gate.run import Gate
from relucheck.gate.verdicts import Item, Verdict
from relucheck.numerics.dtypes import as_dtype, dtype_name


class GateFailure(RelucheckError, AssertionError):
    """Laws that an activation breaks, all of them; ``results`` holds the verdicts."""

    exit_code = FAILED

    def __init__(self, results: Sequence[Verdict]) -> None:
        self.results = tuple(results)
        failed = [result for result in results if result.outcome == "failed"]
        super().__init__(
            f"{len(failed)} of {len(results)} checks failed\n" + "\n".join(result.message for result in failed)
        )


def check_activation(
    activation: Any,
    *,
    dtypes: Sequence[torch.dtype | str] | None = None,
    laws: Sequence[str] = (),
    convention: str = "clarke",
    on_fail: Literal["raise", "return"] = "raise",
    **settings: Any,
) -> list[Verdict]:
    """Runs the laws on one activation, without pytest; in the manner of scikit-learn's ``check_estimator``.

    Args:
        activation: an :class:`Activation`, an ``nn.Module`` class or instance, or a function of one tensor.
        dtypes: dtypes under test; all four unless given.
        laws: names of the laws to run; all unless given.
        convention: ``"clarke"``, ``"minimum-norm"``, ``"declared"`` or ``"reference"``.
        on_fail: ``"raise"``, or ``"return"`` to get the verdicts whatever they are.
        settings: further fields of :class:`~relucheck.gate.config.GateConfig`.

    Returns:
        One verdict per law and dtype.

    Raises:
        GateFailure: where a law is broken, with every message.
        ConfigError: for an unknown law, dtype or convention.
    """
    if on_fail not in ("raise", "return"):
        raise ConfigError(f"on_fail={on_fail!r}: must be 'raise' or 'return'")
    if dtypes is not None:
        settings["dtypes"] = tuple(dtype_name(as_dtype(dtype)) for dtype in dtypes)
    gate = Gate(GateConfig(laws=tuple(laws), convention=convention, **settings), [activation])
    results = [gate.run(item) for item in gate.items()]
    if on_fail == "raise" and any(result.outcome == "failed" for result in results):
        raise GateFailure(results)
    return results


def parametrize_with_laws(
    activations: Sequence[Any],
    *,
    dtypes: Sequence[torch.dtype | str] | None = None,
    laws: Sequence[str] = (),
    **settings: Any,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A pytest decorator: one case per activation, law and dtype, like scikit-learn's ``parametrize_with_checks``.

        @relucheck.parametrize_with_laws([MyActivation, relucheck.Activation("HS", HS, reference=torch.nn.Hardswish())])
        def test_activation(activation, check):
            check(activation)

    Args:
        activations: as :func:`check_activation` takes them.
        dtypes: dtypes under test; all four unless given.
        laws: names of the laws; all unless given.
        settings: further fields of :class:`~relucheck.gate.config.GateConfig`, ``expected`` for one.

    Raises:
        ConfigError: for an unknown law, dtype or convention; TypeError for what is no activation.
    """
    import pytest

    if dtypes is not None:
        settings["dtypes"] = tuple(dtype_name(as_dtype(dtype)) for dtype in dtypes)
    gate = Gate(GateConfig(laws=tuple(laws), **settings), activations)
    cases = []
    for item in gate.items():
        entry = gate.entries.get(item.activation)
        cases.append(pytest.param(entry.activation if entry else None, functools.partial(_check, gate, item), id=item.id))
    return pytest.mark.parametrize(("activation", "check"), cases)


def _check(gate: Gate, item: Item, activation: Activation | None) -> None:
    """Runs one item inside a user's test: fails, skips, marks an expected failure, or passes."""
    import pytest

    result = gate.run(item)
    if result.outcome == "failed":
        pytest.fail(result.message, pytrace=False)
    if result.outcome == "skipped":
        pytest.skip(result.message)
    if result.outcome == "expected":
        pytest.xfail(result.message.split("\n")[0])
