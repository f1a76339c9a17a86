"""Callables with several results: an activation that also returns a mask or a statistic."""

from __future__ import annotations

from collections.abc import Iterator

from relucheck.gate.frameworks.exchange import Output
from relucheck.gate.recognition.attempts import Attempt, Skipped, spread_numbers
from relucheck.numerics.floats import Floats


def _inputs(attempt: Attempt) -> Iterator[list[Floats]]:
    """Yield arguments of shapes that callables take."""
    count = max(1, len(attempt.names))
    for shape in ((16,), (4, 16), (2, 4, 16), (2, 4, 6, 16)):
        yield [spread_numbers(shape)] * count
        if count > 1:
            yield [spread_numbers(shape), *[spread_numbers(shape[-1:])] * (count - 1)]


def differentiable(attempt: Attempt) -> tuple[int | str | None, Skipped]:
    """Return which of several results is the first with a gradient.

    The others come with the reason why they are skipped. It is None for a callable with one result, or whose results have
    no gradient.
    """
    found: list[Output] = next(filter(None, (attempt.outputs(*arrays) for arrays in _inputs(attempt))), [])
    chosen = next((output for output in found if output.numbers is not None), None)
    if chosen is None or chosen.key is None:
        return None, {}
    reasons = {
        f"{attempt.activation.name}[output {output.key}]": f"returns {len(found)} results, of which the first with a "
        f"gradient is checked, {chosen.key!r}; this one is {output.kind}"
        for output in found
        if output is not chosen
    }
    return chosen.key, reasons
