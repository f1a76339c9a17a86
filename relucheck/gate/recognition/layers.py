"""Linear layers around an activation, which are told apart from activations."""

from __future__ import annotations

import numpy as np

from relucheck.gate.recognition.attempts import Attempt, spread_numbers
from relucheck.gate.refusals import Mixes


def refuse_layers(attempt: Attempt) -> None:
    """Refuse a module that mixes its input by matrices, as an MLP block does.

    Raises:
        Mixes: for such a module; the reason says what to check in its place.
    """
    shapes = attempt.framework.shapes_of_parameters(attempt.target)
    matrices = {name: shape for name, shape in shapes.items() if len(shape) > 1 and min(shape[:2]) > 1}
    for _, shape in matrices.items():
        width = shape[1]
        for x in (spread_numbers((3, width)), spread_numbers((2, width, 6)), spread_numbers((2, width, 6, 6))):
            axis = 1
            first = next((output.numbers for output in attempt.outputs(x) if output.numbers is not None), None)
            if first is None:
                continue
            moved = x.copy()
            moved[(0,) * x.ndim] += 0.375
            second = next((output.numbers for output in attempt.outputs(moved) if output.numbers is not None), None)
            if second is None or second.shape != first.shape:
                continue
            changed = np.argwhere(second != first)
            if len({row[axis] for row in changed.tolist()}) > 1:
                listed = ", ".join(f"{name} {shape}" for name, shape in list(matrices.items())[:3])
                raise Mixes(
                    f"not elementwise: linear layers mix the elements of its input ({listed}); pass the activation "
                    "between them, for example the module or function that it applies to their results, or a function "
                    "of those results such as lambda gate, value: act(gate) * value"
                )
