"""The lines of reproducing scripts that depend on the framework.

Most laws put their scripts together from the methods that return a line or an expression. A script about a capability is
written by the framework as a whole, because its code looks different in each. It is empty where a framework writes none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from relucheck.numerics.floats import FORMATS, Floats

if TYPE_CHECKING:
    from relucheck.gate.subject import Subject


def literal(value: float) -> str:
    """Return a Python expression for a float, NaN and infinities included."""
    return repr(value) if math.isfinite(value) else f'float("{value}")'


def within(expression: str, low: float, high: float, tolerance: float) -> str:
    """Return the condition that an expression lies in an interval, up to a tolerance."""
    return f"{literal(_digits(low - tolerance))} <= {expression} <= {literal(_digits(high + tolerance))}"


def _digits(value: float) -> float:
    """Round a bound to the digits that a script shows."""
    return float(f"{value:.9g}")


class Script:
    """Writes reproducing scripts for one activation in one dtype on one device.

    Tolerances in scripts follow ``eps``, the machine epsilon of the precision in which the activation computes.

    A script defines the activation as ``act`` and the input as ``x``. A framework that writes no scripts uses this class as
    it is. Then violations show the input, the values and no script.
    """

    #: Whether the framework writes scripts; the methods that return lines are needed only then.
    writes = False

    def __init__(self, subject: Subject, dtype: str, device: str, eps: float | None = None) -> None:
        self.subject, self.dtype, self.device = subject, dtype, device
        self.eps = FORMATS[dtype].eps if eps is None else eps
        #: How often a single element stands in ``x``: more than once where one alone has another gradient than in a vector.
        self.times = 1
        #: Which of them is looked at.
        self.position = 0

    def text(self, *lines: str, x: Sequence[float] | None = None, copying: bool = True) -> str:
        """Return a script that defines ``act``, and ``x`` where numbers are given, and goes on.

        An activation that writes to its input gets a copy of the input, unless ``copying`` is False.
        """
        if not self.writes:
            return ""
        start = self.header(copying=copying)
        if x is not None:
            start.append(self.input(x, self.times if len(x) == 1 else 1))
        return "\n".join([*start, *lines])

    # -- lines and expressions, needed for scripts ----------------------------------------------------------------------

    def header(self, *, copying: bool = True, viewing: bool = True) -> list[str]:
        """Return the lines that define ``act``.

        It is a function of one array, unless ``viewing`` is False.
        """
        return []

    def input(self, numbers: Sequence[float], times: int = 1) -> str:
        """Return the line that defines ``x``, in the layout that the activation needs.

        Args:
            numbers: the elements.
            times: how often the elements are repeated.
        """
        return ""

    @property
    def pick(self) -> str:
        """The index that selects the checked channel, as Python code; empty for plain vectors."""
        layout = self.subject.layout
        if layout.plain:
            return ""
        return "[" + ", ".join(":" if isinstance(n, slice) else str(n) for n in layout.index) + "]"

    @property
    def value(self) -> str:
        """Expression for the checked values."""
        return f"act(x){self.pick}"

    def gradient(self, cotangent: str = "") -> str:
        """Expression for the gradient at ``x``; the cotangent is an expression, ones if it is empty."""
        return ""

    def set_gradient(self, name: str, cotangent: str = "") -> str:
        """Line that gives a name to ``gradient``."""
        return ""

    def set_gradients(self, name: str) -> list[str]:
        """Lines that give a name to the gradients of the checked elements for cotangent 1."""
        return []

    def full(self, value: str) -> str:
        """Expression for an array like ``x`` of one value, which is an expression."""
        return ""

    def wide(self, expression: str) -> str:
        """Expression for an array in float64."""
        return ""

    def is_nan(self, expression: str) -> str:
        """Expression for a mask of the elements that are NaN."""
        return ""

    def equal(self, a: str, b: str) -> str:
        """Condition that two arrays are equal."""
        return ""

    def close(self, a: str, b: str, rtol: str, atol: str) -> str:
        """Condition that two arrays are equal up to tolerances."""
        return ""

    def set_first(self, name: str, value: float) -> str:
        """Line that sets the first element of the vector in an array, ``x`` or a cotangent."""
        return ""

    def rest(self, name: str) -> str:
        """Expression for an array without the first element of the vector."""
        return ""

    # -- whole scripts --------------------------------------------------------------------------------------------------

    def one_gradient(self, x: float, cotangent: float, condition: str, comment: str) -> str:
        """Compute one gradient, and assert a condition about it.

        Args:
            x: the input element.
            cotangent: the upstream gradient.
            condition: Python expression in ``got`` that is true if the law holds.
            comment: comment on the line that prints the gradient.
        """
        return ""

    def disconnected(self) -> str:
        """Assert that the value carries a graph of operations."""
        return ""

    def overwritten_value(self) -> str:
        """Assert that backward runs, which needs a value that the forward has overwritten."""
        return ""

    def late_gradient(self, x: float) -> str:
        """Assert that a second forward does not change the gradient of the first."""
        return ""

    def second_gradient(self, x: float) -> str:
        """Assert that a second backward through one graph gives the same gradient."""
        return ""

    def zeros(self, what: str) -> str:
        """Assert that ``"value"`` or ``"gradient"`` are the same at +0 and -0."""
        return ""

    # -- whole scripts about capabilities -------------------------------------------------------------------------------

    def forward(self, x: float, tangent: float) -> str:
        """``forward_mode``: compare the derivative along a tangent with reverse mode."""
        return ""

    def mapped_value(self, x: float) -> str:
        """``vmap``: compare a mapped value with that of a plain call."""
        return ""

    def mapped_gradient(self, x: float) -> str:
        """``vmap``: compare a mapped gradient with reverse mode."""
        return ""

    def second(self, x: float, condition: str, by: str = "input", cotangent: float = 1.0) -> str:
        """``second_order``: compute the derivative ``got`` of the gradient; assert a condition.

        It is taken by the ``"input"`` or by the ``"cotangent"``.
        """
        return ""

    def compiled(self, x: float) -> str:
        """``compile``: compare the gradient of the compiled activation with that of the plain one."""
        return ""

    def decomposed(self, x: float) -> str:
        """``decompositions``: compare simpler operations with a plain call."""
        return ""

    def autocast(self, x: float, lower: str) -> str:
        """``autocast``: compare the gradient in the mode with the plain one."""
        return ""

    def autocast_mixed(self, x: float, lower: str, name: str = "") -> str:
        """``autocast``: compare a gradient for an input of lower precision with float32's.

        It is the gradient of the input, or of the parameter of a name.
        """
        return ""

    def shape(self, shape: tuple[int, ...]) -> str:
        """``shapes``: assert that a value has the dtype and shape of its input."""
        return ""

    def numbers_in_shape(self, shape: tuple[int, ...], numbers: Sequence[float], slack: float) -> str:
        """``shapes``: compare the gradient for a shape with that for the same numbers in a vector."""
        return ""

    def layout(self, name: str, what: str = "gradient") -> str:
        """``memory_layouts``: compare a result for a layout with that for a contiguous copy.

        The result is named as by ``relaid``."""
        return ""

    def overwritten_input(self, x: float) -> str:
        """``in_place``: assert that the forward does not overwrite its input."""
        return ""

    def overwritten_in_inference(self) -> str:
        """Assert that a call without gradients does not write to its input."""
        return ""

    def overwritten_by_backward(self, x: float, what: str) -> str:
        """``in_place``: assert that backward does not overwrite what is named.

        It is ``"cotangent"``, ``"input"`` or ``"output"``."""
        return ""

    def joint(
        self,
        arrays: Sequence[Floats],
        dtypes: Sequence[str],
        cotangent: Floats,
        expected: Floats | str,
        slack: float,
        *,
        stepped: bool = False,
        along: tuple[int, float] | None = None,
    ) -> str:
        """``views``: compare a gradient of a call with an array for each argument or part.

        Args:
            arrays: the arrays.
            dtypes: names of their dtypes.
            cotangent: the upstream gradient.
            expected: the right gradient of the argument that is checked; ``"dtype"`` to compare the value's dtype with
                those of the arguments, ``"cotangent"`` to assert that backward does not write to the cotangent, ``"input"``
                that forward does not write to the arguments.
            slack: how far a gradient may differ from it.
            stepped: whether the elements of what the call gets lie two apart in memory.
            along: index and sign of another argument, whose gradient is added to the one that is compared.
        """
        return ""

    def in_place(self, x: float) -> str:
        """``in_place``: compare the in-place variant with the activation."""
        return ""

    def in_place_runs(self) -> str:
        """``in_place``: assert that the backward of the in-place variant runs."""
        return ""

    def after_saving(self, x: float) -> str:
        """``in_place``: compare gradients after an operation that saves its result."""
        return ""

    def parameter(self, name: str, x: Sequence[float], value: float | None = None, of: str = "parameter") -> str:
        """``parameters``: compare a gradient with a difference of values.

        Args:
            name: the parameter.
            x: the inputs.
            value: what the parameter is set to; None to leave it.
            of: what the gradient is of, ``"parameter"`` or ``"input"``.
        """
        return ""

    def batch(self, shape: tuple[int, ...]) -> str:
        """``parameters``: compare the gradients for a batch with those for its samples."""
        return ""

    def second_by_parameter(
        self, name: str, x: Floats, cotangent: Floats, weights: Floats, expected: Floats, slack: float
    ) -> str:
        """``second_order``: compare a gradient's derivative by a parameter with its value.

        It is the derivative of the gradient's weighted sum."""
        return ""

    def copy(self, x: float, way: str) -> str:
        """``copies``: compare the gradient of a copied module with that of the module."""
        return ""

    def state(self) -> str:
        """``global_state``: assert that forward and backward do not change the global state."""
        return ""
