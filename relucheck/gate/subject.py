"""An activation as a function of vectors, which laws can call and differentiate.

Activations are modules or functions, with or without parameters, per element or per channel. A ``Subject`` turns each of
them into a function from shape (n,) to shape (n,). For a callable that is not an elementwise function it raises an error
that says why.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Final

import torch
from torch import Tensor, nn

from relucheck.activations.kink_search import SCAN_RANGE, FoundKink, find_kinks
from relucheck.activations.kinks import Activation
from relucheck.errors import RelucheckError, error_text
from relucheck.numerics.dtypes import dtype_name

#: Seed for the parameters of modules, so that they are the same in every dtype, worker and reproducing script.
SEED: Final = 0
_PROBE: Final = (-2.5, -1.25, -0.625, -0.1, 0.15, 0.7, 1.3, 2.75)


class NotAnActivation(RelucheckError):
    """A callable to which the laws do not apply.

    It changes shapes, mixes elements or draws random numbers.
    """


class _ChangesShape(NotAnActivation):
    """A callable that changes the shape of its input, for one layout of the input at least."""


class TargetError(RelucheckError):
    """An activation that cannot be run: it raises, needs arguments, or does not return a tensor."""


class Disconnected(RelucheckError):
    """An output that has no autograd graph to the input."""


def _required_tensors(module: Any) -> list[str]:
    """Return the names of the required arguments after the first."""
    try:
        parameters = inspect.signature(module.forward if isinstance(module, nn.Module) else module).parameters.values()
    except (TypeError, ValueError):
        return []
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    keyword = [p for p in parameters if p.kind == p.KEYWORD_ONLY]
    return [p.name for p in (*positional[1:], *keyword) if p.default is p.empty]


def make_seeded(make: Callable[[], Any], seed: int = SEED) -> Any:
    """Call ``make`` with torch's random generator seeded, and restore the generator afterwards."""
    state = torch.get_rng_state()
    torch.manual_seed(seed)
    try:
        return make()
    finally:
        torch.set_rng_state(state)


class Subject:
    """One activation under test: a differentiable map from R^n to R^n in any dtype.

    The class isolates the laws from the framework, here torch. A subclass for another framework sets ``framework``, calls
    the activation (``function``, ``widened``, ``exact``) and differentiates it (``pullback``). Vectors go in and come out
    as torch tensors. Every law that is not specific to torch then works for that framework.

    Args:
        activation: the activation and its declarations.
        scan: range of inputs in which to search for kinks.

    Attributes:
        framework: name of the framework that differentiates the activation.
        activation: the activation and its declarations.
        original: the callable that ``activation.make`` returned.
        evaluating: whether it is checked in eval mode, because it draws random numbers in training mode.
        shape: shape to which a vector is expanded before the call; -1 stands for the vector. Usually ``(-1,)``, and
            ``(1, 3, -1)`` for a module with a parameter for each of 3 channels.
        channel: index of the channel that is checked, where there are several; the law ``channels`` checks the others.
        writes: whether a call writes to its input, announced or not.
        notes: remarks for the user on how the activation is checked.

    Raises:
        NotAnActivation: for a callable to which the laws do not apply.
        TargetError: for an activation that cannot be run.
    """

    framework: ClassVar[str] = "torch"

    def __init__(self, activation: Activation, scan: tuple[float, float] = SCAN_RANGE) -> None:
        self.activation = activation
        self.scan = scan
        self.evaluating = False
        self.shape: tuple[int, ...] = (-1,)
        self.channel = 0
        self.writes = False
        self.notes: list[str] = []
        self._callables: dict[tuple[torch.dtype, str], Any] = {}
        self._kinks: dict[str, list[FoundKink]] = {}
        try:
            self.original = make_seeded(activation.make)
        except Exception as error:
            raise TargetError(f"could not be constructed: {error_text(error)}") from error
        if not callable(self.original):
            raise TargetError(f"its constructor returned {type(self.original).__name__!r}, which is not callable")
        self._classify()

    @property
    def name(self) -> str:
        """Name of the activation."""
        return self.activation.name

    @property
    def learnable(self) -> bool:
        """Whether the activation has trainable parameters."""
        return any(parameter.requires_grad for parameter in self.parameters(self.original))

    @staticmethod
    def parameters(target: Any) -> Iterator[nn.Parameter]:
        """Iterate over the parameters of a module; a function has none."""
        return target.parameters() if isinstance(target, nn.Module) else iter(())

    @property
    def announces_inplace(self) -> bool:
        """Whether the activation announces to its callers that it overwrites its input.

        It does so by ``Activation(inplace=True)``, by a module's attribute ``inplace`` or the default of an argument
        ``inplace`` that is True, or by a function's name that ends in an underscore, which is PyTorch's convention
        (https://docs.pytorch.org/docs/stable/tensors.html).
        """
        if self.activation.inplace is True:
            return True
        if isinstance(self.original, nn.Module):
            return getattr(self.original, "inplace", False) is True
        name = getattr(self.original, "__name__", "")
        if name.endswith("_") and not name.endswith("__"):
            return True
        try:
            argument = inspect.signature(self.original).parameters.get("inplace")
        except (TypeError, ValueError):
            return False
        return argument is not None and argument.default is True

    def has_state(self) -> bool:
        """Whether its values depend on parameters or buffers, which a change of dtype rounds."""
        return isinstance(self.original, nn.Module) and bool(self.original.state_dict())

    # -- classification: is it an elementwise function, and in which layout -------------------------------------------

    def _shapes(self) -> list[tuple[int, ...]]:
        return [(-1,), *self._channel_shapes(), (1, -1), (1, 4, -1, 1), (1, 1, -1, 1)]

    def _channel_shapes(self) -> list[tuple[int, ...]]:
        return [(1, c, -1) for c in sorted({p.numel() for p in self.parameters(self.original) if p.numel() > 1})]

    def _classify(self) -> None:
        needed = _required_tensors(self.original)
        if needed:
            raise NotAnActivation(
                f"needs arguments after its input ({', '.join(needed)}); register a constructor that fixes them"
            )
        failures: list[Exception] = []
        channels = self._channel_shapes()
        for shape in self._shapes():
            if any(isinstance(failure, _ChangesShape) for failure in failures) and shape not in channels:
                continue  # only a layout with channels can avoid the change of shape
            self.shape = shape
            try:
                self._classify_shape()
            except (TargetError, _ChangesShape) as error:
                # parameters per channel would broadcast a plain vector to another shape, so try the next layout
                failures.append(error)
            else:
                return
        # the first layout is the plain vector, which users think of
        raise failures[0]

    def _classify_shape(self) -> None:
        x = self.spread(torch.tensor(_PROBE))
        first = self._try(x)
        if not torch.equal(first, self._try(x)):
            if isinstance(self.original, nn.Module):
                self.original.eval()
                self.evaluating = True
            if not torch.equal(self._try(x), self._try(x)):
                raise NotAnActivation("random: two calls on the same input give different values, in eval mode too")
            self.notes.append("random in training mode, so it is checked in eval mode")
            first = self._try(x)
        # the value 50 exceeds the others, which reveals functions that depend on the largest input (sparsemax, entmax)
        for index, value in ((0, 0.3), (x.numel() - 3, -3.0), (x.numel() // 2, 50.0), (1, -50.0), (x.numel() - 1, 1.35)):
            moved = x.clone()
            moved.view(-1)[index] = value
            other = self._try(moved)
            different = ~((other == first) | (other.isnan() & first.isnan()))
            different.view(-1)[index] = False
            if bool(different.any()):
                raise NotAnActivation(
                    "not elementwise: an output depends on more than one input element, as in softmax or normalisation"
                )

    def _try(self, x: Tensor) -> Tensor:
        """Call the activation on a copy of ``x``; raise an error if it is no activation."""
        argument = x.clone()
        try:
            with torch.no_grad():
                result = self.original(argument)
        except MemoryError:
            raise
        except Exception as error:
            raise TargetError(f"raised on an input of shape {tuple(x.shape)}: {error_text(error)}") from error
        # a write through .data does not change the version counter, so compare the values too
        self.writes |= argument._version > 0 or not torch.equal(argument, x)
        if not isinstance(result, Tensor):
            raise TargetError(f"returned {type(result).__name__!r} for a tensor; an activation returns a tensor")
        if not result.is_floating_point():
            raise NotAnActivation(f"returns {dtype_name(result.dtype)}, which has no gradient")
        if result.shape != x.shape:
            raise _ChangesShape(f"changes the shape of its input from {tuple(x.shape)} to {tuple(result.shape)}")
        return result.detach().clone()

    # -- calls --------------------------------------------------------------------------------------------------------

    def spread(self, x: Tensor) -> Tensor:
        """Copy a vector (n,) into the layout ``shape`` that the activation needs.

        Under autograd the copy is not a leaf, so an activation may overwrite it.
        """
        if self.shape == (-1,):
            return x.clone()
        view = x.reshape([x.numel() if n == -1 else 1 for n in self.shape])
        return view.expand([x.numel() if n == -1 else n for n in self.shape]).clone()

    def _pick(self, y: Tensor) -> Tensor:
        return (
            y if self.shape == (-1,) else y[tuple(slice(None) if n == -1 else min(self.channel, n - 1) for n in self.shape)]
        )

    @property
    def channels(self) -> int:
        """Number of channels with separate parameters; 1 without such parameters."""
        return self.shape[1] if self.shape in self._channel_shapes() else 1

    def of_channel(self, channel: int) -> Subject:
        """Return a copy for another channel, with parameters that differ between channels."""
        other = copy.copy(self)
        # drop what was computed for this channel
        other.channel, other._kinks, other._callables = channel, {}, {}
        other.__dict__.pop("_shared_exact", None)
        other.original = self.copied(self.original)
        with torch.no_grad():
            for parameter in self.parameters(other.original):
                if parameter.numel() == self.channels:
                    parameter.add_(torch.linspace(0, 0.25, parameter.numel()).to(parameter).reshape(parameter.shape))
        return other

    def callable_for(self, dtype: torch.dtype, device: str = "cpu") -> Any:
        """Return the activation in a dtype and on a device; the copy of a module is cached."""
        key = (dtype, device)
        if key not in self._callables:
            self._callables[key] = self.fresh(dtype, device)
        return self._callables[key]

    def fresh(self, dtype: torch.dtype, device: str = "cpu") -> Any:
        """Return a new copy of the activation in a dtype and on a device.

        A function is returned as it is.
        """
        return self.placed(self.original, dtype, device)

    def placed(self, target: Any, dtype: torch.dtype, device: str = "cpu") -> Any:
        """Copy a module to a dtype and a device; return any other callable as it is."""
        return self.copied(target).to(device=device, dtype=dtype) if isinstance(target, nn.Module) else target

    def copied(self, module: nn.Module) -> nn.Module:
        """Copy a module deeply; if it cannot be copied, construct it again with the same seed."""
        try:
            return copy.deepcopy(module)
        except Exception:
            fresh: Any = make_seeded(self.activation.make)
            return fresh.eval() if self.evaluating else fresh

    def flat(self, target: Any) -> Callable[[Tensor], Tensor]:
        """Wrap a callable as a differentiable function from shape (n,) to shape (n,).

        Each call passes a copy of the input to ``target``. The caller's input is therefore never overwritten, and in-place
        activations can be called on leaves of an autograd graph.
        """
        return lambda x: self._pick(target(self.spread(x)))

    def function(self, dtype: torch.dtype, device: str = "cpu") -> Callable[[Tensor], Tensor]:
        """Return the activation in a dtype, as a function from shape (n,) to shape (n,)."""
        return self.flat(self.callable_for(dtype, device))

    def widened(self, dtype: torch.dtype, device: str = "cpu") -> Callable[[Tensor], Tensor]:
        """Return the activation in float64, with its parameters rounded to ``dtype``.

        A slope of 0.3 in bfloat16, for example, is 0.30078125.
        """
        target = self.fresh(dtype, device)
        return self.flat(target.to(torch.float64) if isinstance(target, nn.Module) else target)

    @staticmethod
    def pullback(f: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Compute the value of ``f`` at a vector, and its pullback.

        Args:
            f: a function from shape (n,) to shape (n,).
            x: the vector, (n,).

        Returns:
            The value, and a function from a cotangent (n,) to the gradient (n,), which can be called once. It raises
            ``Disconnected`` if the graph does not reach the vector.

        Raises:
            Disconnected: for a value without an autograd graph.
        """
        leaf = x.detach().clone().requires_grad_()
        with torch.enable_grad():
            y = f(leaf)
        if not y.requires_grad:
            raise Disconnected("the output carries no graph")

        def back(cotangent: Tensor) -> Tensor:
            (gradient,) = torch.autograd.grad(y, leaf, cotangent.to(y.dtype), allow_unused=True)
            if gradient is None:
                raise Disconnected("the graph of the output does not reach the input")
            return gradient.detach()

        return y, back

    # -- the exact function, with which gradients are compared --------------------------------------------------------

    def exact(self, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
        """Return the function of real numbers that the activation in ``dtype`` approximates.

        It maps float64 vectors (n,) to float64 vectors (n,), without an autograd graph. A module that does not accept
        float64 is called in float32; ``relucheck.activations.kink_search.resolution`` recognises this.
        """
        wide = self.widened(dtype)

        def call(x: Tensor) -> Tensor:
            with torch.no_grad():
                return wide(x).to(torch.float64)

        try:
            if call(torch.tensor(_PROBE, dtype=torch.float64)).shape == (len(_PROBE),):
                return call
        except (RuntimeError, TypeError, ValueError, AssertionError):
            pass
        narrow = self.function(torch.float32)

        def call_float32(x: Tensor) -> Tensor:
            with torch.no_grad():
                return narrow(x.to(torch.float32)).to(torch.float64)

        return call_float32

    @functools.cached_property
    def _shared_exact(self) -> Callable[[Tensor], Tensor]:
        return self.exact(torch.float64)

    def exact_and_kinks(self, dtype: torch.dtype) -> tuple[Callable[[Tensor], Tensor], list[FoundKink]]:
        """Return the exact function for a dtype and its kinks, which are searched once and cached.

        Without parameters the function is the same for all dtypes.
        """
        shared = not self.has_state()
        f = self._shared_exact if shared else self.exact(dtype)
        key = "" if shared else dtype_name(dtype)
        if key not in self._kinks:
            self._kinks[key] = find_kinks(f, self._gradient64(dtype), self.scan)
        return f, self._kinks[key]

    def _gradient64(self, dtype: torch.dtype) -> Callable[[Tensor], Tensor] | None:
        """Return the activation's gradient in float64 as a function, or None.

        The kink search uses it to place kinks between adjacent floats.
        """
        f = self.widened(dtype)

        def gradient(x: Tensor) -> Tensor:
            y, back = self.pullback(f, x)
            return back(torch.ones_like(y))

        try:
            gradient(torch.tensor(_PROBE, dtype=torch.float64))
        except Exception:
            return None
        return gradient
