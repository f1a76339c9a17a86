"""An activation as a function of vectors, which laws can call and differentiate.

Activations are modules or functions, with or without parameters, per element or per channel. A ``Subject`` decides in which
layout a callable is a function from shape (n,) to shape (n,). For a callable that is not an elementwise function it raises
an error that says why. It reaches the activation through the framework's port (``relucheck.gate.frameworks.port``).
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from relucheck.activations.bands import Band, find_bands, with_ends
from relucheck.activations.kink_search import SCAN_RANGE, FoundKink, find_kinks
from relucheck.activations.kinks import Activation
from relucheck.errors import error_text
from relucheck.gate.frameworks import framework_named
from relucheck.gate.frameworks.exchange import Function, Layout, NotAnArray, Unsupported, View
from relucheck.gate.refusals import (
    Abstract,
    Mixes,
    NeedsArguments,
    NotAnActivation,
    OtherLayout,
    TargetError,
    Unconstructed,
    is_stated,
    required,
)
from relucheck.numerics.floats import Floats, differs

#: Seed for the parameters of modules, so that they are the same in every dtype, worker and reproducing script.
SEED: Final = 0
#: How Python begins the message of the error for an abstract class.
_ABSTRACT: Final = "Can't instantiate abstract class"
_PROBE: Final = (-2.5, -1.25, -0.625, -0.1, 0.15, 0.7, 1.3, 2.75)


class Subject:
    """One activation under test: a differentiable map from R^n to R^n in any dtype.

    Vectors go in and come out as float64 arrays of NumPy, which hold the values of every dtype.

    Args:
        activation: the activation and its declarations.
        scan: range of inputs in which to search for kinks.
        view: how a callable of several arrays is a function of one; None for one that is.

    Attributes:
        activation: the activation and its declarations.
        view: as above.
        framework: the framework that computes the activation.
        original: the callable that ``activation.make`` returned.
        evaluating: whether it is checked in eval mode, because it draws random numbers in training mode.
        layout: how a vector reaches the callable, and which channel is checked; the law ``channels`` checks the others.
        writes: whether a call writes to its input, announced or not.
        notes: remarks for the user on how the activation is checked.

    Raises:
        NotAnActivation: for a callable to which the laws do not apply.
        TargetError: for an activation that cannot be run.
        FrameworkError: for an activation whose framework does not exist or is not installed.
    """

    def __init__(self, activation: Activation, scan: tuple[float, float] = SCAN_RANGE, view: View | None = None) -> None:
        self.activation, self.view = activation, view
        self.framework = framework_named(activation.framework)
        self.scan = scan
        self.evaluating = False
        self.layout = Layout()
        self.writes = False
        self.notes: list[str] = []
        self._callables: dict[tuple[str, str], Any] = {}
        self._kinks: dict[str, tuple[list[FoundKink], list[Band]]] = {}
        self._drawn: dict[View, Subject] = {}
        self.original = self._constructed(SEED)
        self._classify()

    def _constructed(self, seed: int) -> Any:
        """Construct the activation under its view."""
        try:
            target = self.framework.constructed(self.activation.make, seed)
        except Exception as error:
            if isinstance(error, TypeError) and str(error).startswith(_ABSTRACT):
                raise NotAnActivation(f"an abstract base class: {error}") from error
            raise Unconstructed(f"could not be constructed: {error_text(error)}") from error
        if not callable(target):
            raise Unconstructed(f"its constructor returned {type(target).__name__!r}, which is not callable")
        return self.under_view(target)

    def under_view(self, target: Any) -> Any:
        """Return a callable of the same arguments as a function of the one that is checked.

        Raises:
            NotAnActivation: for a module that cannot be copied.
        """
        if self.view is None:
            return target
        try:
            return self.framework.viewed(target, self.view)
        except Unsupported as error:
            raise NotAnActivation(str(error)) from None

    @property
    def declared_spelling(self) -> str | None:
        """Name of the subject whose gradients this one must equal; None if none is declared."""
        declared = self.activation.same_as
        return declared if declared is None else declared + self.name.removeprefix(self.activation.name)

    @property
    def name(self) -> str:
        """Name of the activation, with that of the argument or part that is checked.

        For example, ``swiglu[gate]``.
        """
        return self.activation.name + (f"[{self.view.name}]" if self.view is not None and self.view.name else "")

    @property
    def joins(self) -> bool:
        """Whether the vector is joined with other parts to the input of the callable."""
        return self.view is not None and self.view.axis is not None

    @functools.cached_property
    def positive(self) -> bool:
        """Whether it is a further argument that seems to have the positive numbers as its domain.

        It is, if values are finite at ordinary positive numbers, and not at 0 or below. It is so, too, if they are not
        finite where all arguments are 0, as in ``cap * tanh(x / cap)``.
        """
        if self.view is None or self.view.row or self.view.axis is not None or self.view.index == 0:
            return False
        zeros = self.seen(dataclasses.replace(self.view, values=(0.0,) * len(self.view.names)))
        for subject, below in ((self, (0.0, -0.5, -2.0)), (zeros, (0.0,))):
            finite = np.isfinite(self.framework.value(subject.function("float64", "cpu"), np.array([0.5, 2.0, *below])))
            if finite[:2].all() and not finite[2:].all():
                return True
        return False

    @property
    def by_rows(self) -> bool:
        """Whether it is a function of rows, checked as a function of one element of each row."""
        return self.view is not None and self.view.row

    @property
    def vector_only(self) -> bool:
        """Whether the argument that is checked has one axis, as a bias has."""
        return self.view is not None and self.view.shared and self.view.index > 0

    @property
    def is_module(self) -> bool:
        """Whether the activation is a module of its framework, and no plain function."""
        return self.framework.is_module(self.original)

    @property
    def learnable(self) -> bool:
        """Whether the activation has trainable parameters."""
        return bool(self.framework.learnable(self.original))

    @property
    def has_state(self) -> bool:
        """Whether its values depend on parameters or buffers, which a change of dtype rounds."""
        return self.framework.has_state(self.original)

    @property
    def announces_inplace(self) -> bool:
        """Whether the activation announces to its callers that it overwrites its input.

        It does so by ``Activation(inplace=True)``, or as its framework's users do.
        """
        return self.activation.inplace is True or self.framework.announces_in_place(self.original)

    # -- classification: is it an elementwise function, and in which layout -------------------------------------------

    def _layouts(self) -> list[Layout]:
        """Return the layouts to try: a vector, those with parameters per channel, and those for images."""
        channels = []
        sizes = self.framework.parameter_sizes(self.original)
        if self.joins and not self.by_rows:
            sizes += [size // 2 for size in sizes if size % 2 == 0]  # of both parts, which follow one another
        for c in sorted({size for size in sizes if size > 1}):
            side = 2 if c != 2 else 3  # no other axis has the length of the channels
            # (n, C, L), (n, C), (n, C, H, W), (n, L, C) and (n, H, W, C)
            channels += [Layout((2, c, -1), 1), Layout((-1, c), 1), Layout((2, c, side, -1), 1)]
            channels += [Layout((side, -1, c), 2), Layout((side, side, -1, c), 3)]
        if self.by_rows:
            return [Layout(), Layout((1, -1, 1))]
        return [Layout(), *channels, Layout((1, -1)), Layout((1, 4, -1, 1)), Layout((1, 1, -1, 1))]

    def _classify(self) -> None:
        needed = [] if self.view is not None else required(self.framework.signed(self.original))[1:]
        if needed:
            names = [parameter.name for parameter in needed]
            raise NeedsArguments(
                f"needs arguments: {', '.join(names)}; set them under [tool.relucheck.constructors] as "
                f"{self.activation.name} = {{ {names[0]} = ... }}, or call relucheck.register_constructor"
            )
        failures: list[Exception] = []
        for layout in self._layouts():
            if layout.axis is None and not self.by_rows and any(isinstance(failure, OtherLayout) for failure in failures):
                continue
            self.layout = layout
            try:
                self._classify_layout()
            except (TargetError, OtherLayout, Abstract) as error:
                # parameters per channel would broadcast a plain vector to another shape, so try the next layout
                failures.append(error)
            else:
                return
        # the first layout is the plain vector, which users think of
        raise failures[0]

    def _classify_layout(self) -> None:
        x = self._spread(_PROBE)
        first = self._try(x)
        if differs(first, self._try(x)).any():
            self.evaluating = self.framework.evaluating(self.original)
            if differs(self._try(x), self._try(x)).any():
                raise NotAnActivation("random: two calls on the same input give different values, in eval mode too")
            self.notes.append("random in training mode, so it is checked in eval mode")
            first = self._try(x)
        # the value 50 exceeds the others, which reveals functions that depend on the largest input (sparsemax, entmax)
        for index, value in ((0, 0.3), (x.size - 3, -3.0), (x.size // 2, 50.0), (1, -50.0), (x.size - 1, 1.35)):
            moved = x.copy()
            moved.flat[index] = value
            different = differs(self._try(moved), first)
            different.flat[index] = False
            if different.any():
                raise Mixes(
                    "not elementwise: an output depends on more than one input element, as in softmax or normalisation"
                )
        # the same numbers at other positions of a longer vector; vectorised code may round them differently
        backwards = np.flip(first, self.layout.along)
        expected = np.concatenate([backwards, first], self.layout.along)
        got = self._try(self._spread((*_PROBE[::-1], *_PROBE)))
        if not np.isclose(got, expected, rtol=1e-3, atol=1e-3, equal_nan=True).all():
            raise OtherLayout("not elementwise: equal inputs at different positions have different values")

    def _spread(self, numbers: tuple[float, ...]) -> Floats:
        vector = np.array(numbers).reshape(self.layout.unexpanded)
        return np.broadcast_to(vector, self.layout.expanded(len(numbers))).copy()

    def _try(self, x: Floats) -> Floats:
        """Call the activation on a copy of ``x``; raise an error if it is no activation."""
        noun = self.framework.noun
        try:
            call = self.framework.called(self.original, x, "float32")
        except MemoryError:
            raise
        except NotImplementedError as error:
            if is_stated(error):
                text = f": {error}" if str(error) else ""
                raise Abstract(f"an abstract base class, or not written yet: raises NotImplementedError{text}") from error
            raise TargetError(f"raised on an input of shape {x.shape}: {error_text(error)}") from error
        except Exception as error:
            raise TargetError(f"raised on an input of shape {x.shape}: {error_text(error)}") from error
        self.writes |= call.overwrote
        if not call.dtype:
            raise TargetError(str(NotAnArray(call.returned, noun)))
        if call.numbers is None:
            raise NotAnActivation(f"returns {call.dtype}, which has no gradient")
        if call.numbers.shape != x.shape:
            raise OtherLayout(f"changes the shape of its input from {x.shape} to {call.numbers.shape}")
        return call.numbers

    # -- calls --------------------------------------------------------------------------------------------------------

    @property
    def channels(self) -> int:
        """Number of channels with separate parameters; 1 without such parameters."""
        return self.layout.channels

    def of_channel(self, channel: int) -> Subject:
        """Return a copy for another channel, with parameters that differ between channels."""
        other = copy.copy(self)
        # drop what was computed for this channel
        other.layout, other._kinks, other._callables = dataclasses.replace(self.layout, channel=channel), {}, {}
        other.__dict__.pop("_shared_exact", None)
        other.original = self.framework.with_distinct_channels(self.copied(self.original), self.channels)
        return other

    def seen(self, view: View) -> Subject:
        """Return the subject under another view: of another argument, or with other numbers.

        Raises:
            NotAnActivation: if the callable is no elementwise function of the other argument.
            TargetError: if it cannot be called so.
        """
        if view not in self._drawn and not self.by_rows and (self.view is None or view.index != self.view.index):
            self._drawn[view] = Subject(self.activation, self.scan, view)
        elif view not in self._drawn:
            other = copy.copy(self)
            other.view, other._kinks, other._callables = view, {}, {}
            other.__dict__.pop("_shared_exact", None)
            other.original = other.remade()
            self._drawn[view] = other
        return self._drawn[view]

    def remade(self, seed: int = SEED) -> Any:
        """Construct the activation again, in the mode in which it is checked."""
        target = self._constructed(seed)
        if self.evaluating:
            self.framework.evaluating(target)
        return target

    def copied(self, target: Any) -> Any:
        """Copy a module; if it cannot be copied, construct it again with the same seed."""
        return self.framework.copied(target, self.remade)

    def placed(self, target: Any, dtype: str, device: str = "cpu") -> Any:
        """Copy a module to a dtype and a device; return any other callable as it is."""
        return self.framework.moved(self.copied(target), dtype, device)

    def fresh(self, dtype: str, device: str = "cpu") -> Any:
        """Return a new copy of the activation in a dtype and on a device.

        A function is returned as it is.
        """
        return self.placed(self.original, dtype, device)

    def function_of(self, target: Any, dtype: str, device: str = "cpu") -> Function:
        """Wrap a callable, already in a dtype and on a device, as a function (n,) to (n,)."""
        return Function(target, dtype, device, self.layout)

    def function(self, dtype: str, device: str = "cpu") -> Function:
        """Return the activation in a dtype and on a device; the copy of a module is cached."""
        key = (dtype, device)
        if key not in self._callables:
            self._callables[key] = self.fresh(dtype, device)
        return self.function_of(self._callables[key], dtype, device)

    def widened(self, dtype: str, device: str = "cpu") -> Function:
        """Return the activation in float64, with its parameters rounded to ``dtype``.

        A slope of 0.3 in bfloat16, for example, is 0.30078125.
        """
        return self.function_of(self.framework.moved(self.fresh(dtype, device), "float64", device), "float64", device)

    # -- the exact function, with which gradients are compared --------------------------------------------------------

    def exact(self, dtype: str) -> Callable[[Floats], Floats]:
        """Return the function of real numbers that the activation in ``dtype`` approximates.

        It maps vectors (n,) to vectors (n,). A module that does not accept float64 is called in float32;
        ``relucheck.activations.kink_search.resolution`` recognises this.
        """
        wide = functools.partial(self.framework.value, self.widened(dtype))
        try:
            if wide(np.array(_PROBE)).shape == (len(_PROBE),):
                return wide
        except (TypeError, ValueError, AssertionError):
            pass
        except self.framework.errors:
            pass
        return functools.partial(self.framework.value, self.function("float32"))

    @functools.cached_property
    def _shared_exact(self) -> Callable[[Floats], Floats]:
        return self.exact("float64")

    def exact_and_kinks(self, dtype: str) -> tuple[Callable[[Floats], Floats], list[FoundKink], list[Band]]:
        """Return the exact function for a dtype, its kinks and its narrow bands.

        The kinks and bands are searched once and cached. Without parameters the function is the same for all dtypes.
        """
        shared = not self.has_state
        f = self._shared_exact if shared else self.exact(dtype)
        key = "" if shared else dtype
        if key not in self._kinks:
            gradient = self._gradient64(dtype)
            kinks = find_kinks(f, gradient, self.scan)
            bands = find_bands(f, gradient, kinks) if gradient is not None else []
            self._kinks[key] = with_ends(kinks, bands), bands
        return f, *self._kinks[key]

    def _gradient64(self, dtype: str) -> Callable[[Floats], Floats] | None:
        """Return the activation's gradient in float64 as a function, or None.

        The kink search uses it to place kinks between adjacent floats.
        """
        f = self.widened(dtype)

        def gradient(x: Floats) -> Floats:
            y, back = self.framework.pullback(f, x)
            return back(np.ones_like(y))

        try:
            gradient(np.array(_PROBE))
        except Exception:
            return None
        return gradient
