"""What the gate needs of a framework, such as torch, to check its activations.

Laws know no framework. They speak float64 arrays of NumPy, which hold every value of float16, bfloat16, float32 and float64
exactly, with the sign of zero. A ``Framework`` converts them to its own arrays in a dtype and back.

What some frameworks lack is a capability. A framework lists the capabilities that it has, a law lists those that it needs,
and the gate skips a law whose need is missing. So a framework implements the abstract methods, and the methods of its
capabilities. Those of other capabilities are never called.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Final

from relucheck.errors import DeviceError
from relucheck.gate.frameworks.exchange import Call, Function, Overwritten, Relaid, Result, Unwritten
from relucheck.gate.frameworks.script import Script
from relucheck.gate.frameworks.views import Views
from relucheck.numerics.floats import FORMATS, Floats

if TYPE_CHECKING:
    from relucheck.activations.kinks import Activation
    from relucheck.gate.subject import Subject

#: What some frameworks lack: capability, and what it is, as the reason of a skipped law says it.
CAPABILITIES: Final[Mapping[str, str]] = {
    "autocast": "a mode that lowers the precision of some operations",
    "compile": "a compiler of functions",
    "copies": "modules that can be copied, pickled and restored from their state",
    "decompositions": "simpler operations that a compiler puts in the place of an operation",
    "forward_mode": "forward-mode differentiation",
    "global_state": "modes and random generators that a call can change",
    "in_place": "arrays that a call can overwrite",
    "memory_layouts": "arrays with strides",
    "parameters": "learnable parameters",
    "second_order": "derivatives of gradients",
    "shapes": "dtype, device and shape of a result",
    "views": "calls with several arrays or several results",
    "vmap": "a transformation that maps a function over an axis",
}


class Framework(Views, abc.ABC):
    """A framework whose activations the gate checks.

    Attributes:
        name: its name in ``Activation.framework``.
        capabilities: those of ``CAPABILITIES`` that it has.
        dtypes: names of the dtypes that it has.
        noun: the word for its arrays.
        errors: the exceptions by which it refuses an operation.
        script: the class that writes its reproducing scripts.
        modes: what it calls ``vmap`` and ``compile`` in messages, if it has these capabilities.
    """

    name: ClassVar[str]
    capabilities: ClassVar[frozenset[str]] = frozenset()
    dtypes: ClassVar[frozenset[str]] = frozenset(FORMATS)
    noun: ClassVar[str] = "array"
    errors: ClassVar[tuple[type[Exception], ...]] = (RuntimeError,)
    script: ClassVar[type[Script]] = Script
    modes: ClassVar[Mapping[str, str]] = {}

    # -- activations: construct, recognise, copy --------------------------------------------------------------------

    @abc.abstractmethod
    def constructed(self, make: Callable[[], Any], seed: int) -> Any:
        """Call ``make`` with the random generator seeded, and restore the generator afterwards."""

    @abc.abstractmethod
    def copied(self, target: Any, again: Callable[[], Any]) -> Any:
        """Copy a module deeply; return a callable without state as it is.

        Args:
            target: the callable.
            again: constructs the module again, for a module that cannot be copied.
        """

    @abc.abstractmethod
    def moved(self, target: Any, dtype: str, device: str) -> Any:
        """Move a module to a dtype and a device, in place or not, and return it.

        Any other callable is returned as it is.
        """

    @abc.abstractmethod
    def called(self, target: Any, x: Floats, dtype: str) -> Call:
        """Call an activation on an array of any shape, and describe what it did."""

    def start(self, device: str) -> None:
        """Start a device. The gate calls this before it limits the memory.

        Raises:
            DeviceError: the device is not available.
        """
        if device != "cpu":
            raise DeviceError(f"device {device!r} is not available to {self.name}; use device 'cpu'")

    def spelled(self, dtype: str) -> str:
        """Spell a dtype as users of the framework do."""
        return f"{self.name}.{dtype}"

    def is_module(self, target: Any) -> bool:
        """Whether a callable is an object of the framework's kind of modules, and no plain function."""
        return False

    def is_module_class(self, value: Any) -> bool:
        """Whether an object is a class of such modules that a library defines."""
        return False

    def is_array_type(self, annotation: Any) -> bool:
        """Whether the annotation of a parameter says that it takes one of the framework's arrays."""
        return False

    def namespaces(self) -> Mapping[str, Callable[[], list[Activation]]]:
        """Return the targets that are parts of the framework, each with a list of its activations.

        The list is a function without arguments, which is called when the target is checked.
        """
        return {}

    def signed(self, target: Any) -> Any:
        """Return the callable whose signature states the arguments of an activation."""
        return target

    def parts(self, target: Any) -> list[Any]:
        """Return the objects of which a callable consists, the callable among them."""
        return [target]

    def stored_numbers(self, target: Any) -> dict[str, list[float]]:
        """Return the numbers in the parameters and other arrays of a module, by name.

        Of many, these are the first.
        """
        return {}

    def thresholds(self, f: Function, x: Floats) -> list[float]:
        """Return the numbers below which operations of a call cut off inputs, as hardshrink does."""
        return []

    def evaluating(self, target: Any) -> bool:
        """Switch a module to its evaluation mode; return whether there is one."""
        return False

    def has_state(self, target: Any) -> bool:
        """Whether its values depend on parameters or buffers, which a change of dtype rounds."""
        return False

    def parameter_sizes(self, target: Any) -> list[int]:
        """Return the number of elements of each parameter and of each array that a module holds."""
        return []

    def known_activations(self) -> dict[str, Activation]:
        """Return the framework's activations by full name, which others may spell differently."""
        return {}

    # -- value and reverse mode -------------------------------------------------------------------------------------

    @abc.abstractmethod
    def value(self, f: Function, x: Floats) -> Floats:
        """Compute the values at a vector (n,), without a graph of operations."""

    @abc.abstractmethod
    def pullback(self, f: Function, x: Floats) -> tuple[Floats, Callable[[Floats], Floats]]:
        """Compute the value of a function at a vector, and its pullback.

        Args:
            f: the function.
            x: the vector, (n,).

        Returns:
            The value, and a function from a cotangent (n,) to the gradient (n,). It raises ``Disconnected`` if no gradient
            reaches the vector. It can be called again, and may raise an error then.

        Raises:
            Disconnected: for a value that does not depend on the vector as far as the framework knows.
        """

    def diagnosis(self, error: Exception) -> str:
        """Say what an exception of ``pullback`` means.

        Returns:
            ``"overwritten"`` if an operation has overwritten what its own backward needs, ``"dtype"`` if there is no
            implementation for the dtype, and an empty text otherwise.
        """
        return ""

    def _unwritten(self, method: str) -> Unwritten:
        return Unwritten(
            f"framework {self.name!r} has no method {method!r}; write it, or leave the capability out that needs it"
        )

    # -- capabilities -------------------------------------------------------------------------------------------------

    def forward(self, f: Function, x: Floats, tangent: Floats) -> Floats:
        """``forward_mode``: compute the derivative of a function along a tangent, (n,) each.

        Raises:
            Unsupported: if the activation does not support the mode.
        """
        raise self._unwritten("forward")

    def mapped_value(self, f: Function, x: Floats) -> Floats:
        """``vmap``: compute the values, mapped over the elements of a vector (n,).

        Raises:
            Unsupported: if the activation does not support the mode.
        """
        raise self._unwritten("mapped_value")

    def mapped_gradient(self, f: Function, x: Floats) -> Floats:
        """``vmap``: compute the gradients for cotangent 1, mapped over the elements of a vector.

        Raises:
            Unsupported: if the activation does not support the mode.
        """
        raise self._unwritten("mapped_gradient")

    def second(
        self,
        f: Function,
        x: Floats,
        by: str = "input",
        cotangent: Floats | None = None,
        weights: Floats | None = None,
    ) -> tuple[Floats, Floats | None]:
        """``second_order``: compute the gradient, and the derivative of its weighted sum, (n,) each.

        The derivative is None if no graph of operations leads from the gradient to what it is taken by.

        Args:
            f: the function.
            x: the vector, (n,).
            by: what to differentiate by, ``"input"`` or ``"cotangent"``.
            cotangent: the upstream gradient, (n,); ones if None.
            weights: weights of the gradient's elements in the sum, (n,); ones if None.

        Raises:
            Unsupported: if the activation refuses to differentiate its gradient.
        """
        raise self._unwritten("second")

    def second_by_parameters(self, f: Function, x: Floats, cotangent: Floats, weights: Floats) -> dict[str, Result | None]:
        """``second_order``: differentiate the gradient's weighted sum by learnable parameters.

        The arguments are those of ``second``. None stands for a parameter to which no graph of operations leads.

        Raises:
            Unsupported: if the activation refuses to differentiate its gradient.
        """
        raise self._unwritten("second_by_parameters")

    def compiled(self, f: Function, x: Floats) -> Floats:
        """``compile``: compute the gradient of the compiled function for cotangent 1, (n,).

        Raises:
            Unsupported: if the function cannot be compiled.
        """
        raise self._unwritten("compiled")

    def decomposed(self, f: Function, x: Floats) -> tuple[Floats, Floats]:
        """``decompositions``: compute value and gradient by simpler operations, (n,) each.

        The gradient is that for cotangent 1.

        Raises:
            Unsupported: if the function cannot be decomposed.
        """
        raise self._unwritten("decomposed")

    def lower_precision(self, device: str) -> str:
        """``autocast``: name the dtype to which the mode lowers the precision on a device."""
        raise self._unwritten("lower_precision")

    def autocast(self, f: Function, x: Floats) -> Floats:
        """``autocast``: compute the gradient for cotangent 1 in the mode that lowers the precision.

        Raises:
            Unsupported: if the activation does not run in the mode.
        """
        raise self._unwritten("autocast")

    def autocast_parameters(self, f: Function, x: Floats, cotangent: Floats) -> dict[str, Result | None]:
        """``autocast``: compute ``parameter_gradients`` in the mode that lowers the precision.

        Raises:
            Unsupported: if the activation does not run in the mode.
        """
        raise self._unwritten("autocast_parameters")

    def shaped(self, f: Function, x: Floats) -> tuple[Result, Result, Result]:
        """``shapes``: call a function on an array of any shape.

        A function with another layout than the vector's gets a vector and spreads it, and any other array as it is.

        Returns:
            The input, the value, and the gradient for cotangent 1.

        Raises:
            Unsupported: if the activation refuses the shape.
        """
        raise self._unwritten("shaped")

    def state_shapes(self, target: Any) -> list[tuple[int, ...]]:
        """``shapes``: return the shapes of the arrays that a module holds."""
        raise self._unwritten("state_shapes")

    def layouts(self, f: Function) -> Sequence[str]:
        """``memory_layouts``: return the names of the layouts in which a function can be called."""
        raise self._unwritten("layouts")

    def relaid(self, f: Function, name: str, x: Floats, cotangent: Callable[[int], Floats], *, copying: bool) -> Relaid:
        """``memory_layouts``: call a function for a memory layout, and on a contiguous copy.

        Args:
            f: the function.
            name: one of ``layouts``.
            x: 96 numbers, from which the input is built.
            cotangent: returns cotangents for a number of elements.
            copying: whether the call gets a copy, because it overwrites its argument.

        Raises:
            Unsupported: if the activation refuses the shape of the input.
        """
        raise self._unwritten("relaid")

    def overwritten(self, f: Function, x: Floats, cotangent: Callable[[int], Floats]) -> Overwritten:
        """``in_place``: call a function and its pullback on arrays that are read again afterwards.

        The cotangent is a function from a number of elements to as many numbers.
        """
        raise self._unwritten("overwritten")

    def in_place_variant(self, subject: Subject) -> Callable[[], Any] | None:
        """``in_place``: return a constructor of the in-place variant; None if there is none."""
        return None

    def announces_in_place(self, target: Any) -> bool:
        """``in_place``: whether a callable announces to its callers that it overwrites its argument."""
        return False

    def after_saving(self, f: Function, x: Floats, *, copying: bool = False) -> Floats:
        """``in_place``: compute the gradient of f(tanh(x)), whose tanh saves its result.

        The function overwrites that result, unless it gets a copy (``copying``).

        Raises:
            Unsupported: if the framework notices that the saved result was overwritten.
        """
        raise self._unwritten("after_saving")

    def learnable(self, target: Any) -> list[str]:
        """``parameters``: return the names of the learnable parameters."""
        return []

    def parameter(self, target: Any, name: str) -> Result:
        """``parameters``: describe a parameter."""
        raise self._unwritten("parameter")

    def with_parameter(self, target: Any, name: str, values: Floats) -> Any:
        """``parameters``: set a parameter, and return the module, which may be the same object."""
        raise self._unwritten("with_parameter")

    def parameter_gradients(self, f: Function, x: Floats, cotangent: Floats) -> dict[str, Result | None]:
        """``parameters``: compute the gradients by name; None for one that none reaches."""
        raise self._unwritten("parameter_gradients")

    def batch_gradients(self, f: Function, x: Floats, cotangent: Floats) -> tuple[Result, Result, dict[str, Result | None]]:
        """``parameters``: call the callable itself on an array as it is, of any shape.

        Returns:
            The value, the gradient of the input, and the gradients of parameters as ``parameter_gradients``.

        Raises:
            Unsupported: if the activation refuses the shape.
        """
        raise self._unwritten("batch_gradients")

    def with_distinct_channels(self, target: Any, channels: int) -> Any:
        """Change parameters with one element a channel so that they differ, and return the module.

        The elements get the addends 0 to 0.25 at equal distances. A framework whose ``parameter_sizes`` are empty does not
        need it.
        """
        raise self._unwritten("with_distinct_channels")

    def with_changed_state(self, target: Any) -> Any:
        """``copies``: add 0.125 to each float array of a module's state; return the module."""
        raise self._unwritten("with_changed_state")

    def copies(self, target: Any, again: Callable[[], Any], dtype: str, device: str) -> Iterator[tuple[str, Any]]:
        """``copies``: yield the name of each way to copy a module, and the copy.

        Args:
            target: the module.
            again: constructs the module again, with other random numbers.
            dtype: name of the dtype of the module.
            device: the device of the module.

        Raises:
            Unsupported: if the module cannot be copied in a way.
        """
        raise self._unwritten("copies")

    def state_changes(self, f: Function, x: Floats) -> list[str]:
        """``global_state``: call a function and its pullback; return a line for each change.

        The state is restored, and exceptions of the call are ignored.
        """
        raise self._unwritten("state_changes")


def missing(framework: Framework, needs: Sequence[str], dtype: str) -> str:
    """Return why a framework cannot serve a law in a dtype; empty if it can."""
    if dtype not in framework.dtypes:
        return f"the framework {framework.name!r} does not have the dtype {dtype}"
    lacking = [need for need in needs if need not in framework.capabilities]
    if not lacking:
        return ""
    listed = "; ".join(f"{need} ({CAPABILITIES[need]})" for need in lacking)
    return f"needs a capability that the framework {framework.name!r} does not have: {listed}"
