"""What the gate needs of a framework to check callables of several arrays.

It belongs to the capability ``views``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from relucheck.gate.frameworks.exchange import Function, Held, JointCall, Output, Unwritten, View
from relucheck.numerics.floats import Floats


class Views:
    """The methods of the capability ``views``, which a framework without it leaves unwritten."""

    def outputs(self, target: Any, arrays: Sequence[Floats], dtype: str) -> list[Output]:
        """Call a callable with arrays of any shapes, and describe each of its results.

        A result has numbers if it depends on an array as far as the framework knows.
        """
        raise Unwritten("write the method 'outputs', or leave out the capability 'views'")

    def holding(self, target: Any, held: Held) -> Any:
        """Return a module that calls a callable with learnable parameters.

        They take the place of arguments after the first.
        """
        raise Unwritten("write the method 'holding', or leave out the capability 'views'")

    def viewed(self, target: Any, view: View) -> Any:
        """Return a callable of one array.

        It is a module if the target is one, or if the view holds arguments.

        The target stays as it is.

        Raises:
            Unsupported: for a module that cannot be copied.
        """
        raise Unwritten("write the method 'viewed', or leave out the capability 'views'")

    def whole(self, f: Function) -> Function:
        """Return the function under a view, for calls with all arguments: ``joint`` takes it."""
        raise Unwritten("write the method 'whole', or leave out the capability 'views'")

    def joint(
        self,
        whole: Function,
        view: View,
        arrays: Sequence[Floats],
        cotangent: Floats | None = None,
        dtypes: Sequence[str] = (),
        *,
        stepped: bool = False,
    ) -> JointCall:
        """Call a function with an array for each argument, and differentiate by all of them.

        Args:
            whole: the function, as ``whole`` returns it.
            view: names the arguments or parts, and the result.
            arrays: one array for each of them.
            cotangent: the upstream gradient, of the shape of the value; None to compute the value alone.
            dtypes: names of the dtypes of the arrays; that of the function if empty.
            stepped: whether the elements of what the call gets lie two apart in memory.

        Raises:
            Unsupported: if the callable refuses the arrays, or the cotangent's shape is not that of the value.
        """
        raise Unwritten("write the method 'joint', or leave out the capability 'views'")

    def shapes_of_parameters(self, target: Any) -> dict[str, tuple[int, ...]]:
        """Return the shapes of a module's parameters by name."""
        return {}
