"""Check given activations, in plain Python or in a pytest test."""

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
    """An activation that breaks at least one law; the message shows every failure.

    Attributes:
        results: the verdicts of all checks, those that passed included.
    """

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
    """Check one activation against the laws, without pytest.

    Modelled on scikit-learn's ``check_estimator``.

    Args:
        activation: an ``Activation``, an ``nn.Module`` class or instance, or a function of one tensor.
        dtypes: dtypes to check; None for float32, float64, bfloat16 and float16.
        laws: names of the laws to check; all laws if empty.
        convention: which subgradients are allowed at a kink: ``"clarke"`` (the Clarke interval), ``"minimum-norm"`` (its
            element nearest zero), ``"declared"`` (the declared ones) or ``"reference"`` (those of a declared reference).
        on_fail: ``"raise"`` to raise where a law is broken, ``"return"`` to return the verdicts in any case.
        settings: further fields of ``GateConfig``, such as ``time_limit``.

    Returns:
        One verdict per law and dtype.

    Raises:
        GateFailure: where a law is broken; its message shows every failure.
        ConfigError: for an unknown law, dtype or convention.
        NotCallableError: for an object that is not an activation.

    Examples:
        >>> relucheck.check_activation(torch.nn.ReLU, laws=["chain_rule"], dtypes=["float32"])[0].outcome
        'passed'
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
    """Parametrize a pytest test: one case per activation, law and dtype.

    Modelled on scikit-learn's ``parametrize_with_checks``.

    Args:
        activations: activations, each of a kind that ``check_activation`` takes.
        dtypes: dtypes to check; None for float32, float64, bfloat16 and float16.
        laws: names of the laws to check; all laws if empty.
        settings: further fields of ``GateConfig``, such as ``expected``.

    Returns:
        A decorator for a test with the arguments ``activation`` and ``check``.

    Raises:
        ConfigError: for an unknown law, dtype or convention.
        NotCallableError: for an object that is not an activation.

    Examples:
        ```python
        @relucheck.parametrize_with_laws([MyActivation, relucheck.Activation("HS", HS, reference=torch.nn.Hardswish())])
        def test_activation(activation, check):
            check(activation)
        ```
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
    """Run one item inside a user's test, and turn its verdict into pytest's outcome."""
    import pytest

    result = gate.run(item)
    if result.outcome == "failed":
        pytest.fail(result.message, pytrace=False)
    if result.outcome == "skipped":
        pytest.skip(result.message)
    if result.outcome == "expected":
        pytest.xfail(result.message.split("\n")[0])
