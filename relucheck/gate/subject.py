"""An activation as something that can be called on a vector in any dtype, and what kind of function it turns out to be.

Activations come as modules and functions, with or without parameters, per element or per channel. A :class:`Subject` makes
one of them a function from shape (n,) to shape (n,); what cannot be made that says why.
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

#: Seeds the parameters of modules, so that every dtype, worker and reproducing script sees the same ones.
SEED: Final = 0
_PROBE: Final = (-2.5, -1.25, -0.625, -0.1, 0.15, 0.7, 1.3, 2.75)


class NotAnActivation(RelucheckError):
    """A callable that the laws do not speak about (changes shapes, mixes elements, draws random numbers): skipped."""


class _ChangesShape(NotAnActivation):
    """One of the reasons, which may hold for one layout of the input and not for another."""


class TargetError(RelucheckError):
    """An activation that cannot be run at all: raises, returns something else than a tensor, needs arguments."""


class Disconnected(RelucheckError):
    """The output does not depend on the input, as far as differentiation knows."""


def _required_tensors(module: Any) -> list[str]:
    """Names of the arguments after the first that ``forward`` (or the function) needs."""
    try:
        parameters = inspect.signature(module.forward if isinstance(module, nn.Module) else module).parameters.values()
    except (TypeError, ValueError):
        return []
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    keyword = [p for p in parameters if p.kind == p.KEYWORD_ONLY]
    return [p.name for p in (*positional[1:], *keyword) if p.default is p.empty]


def make_seeded(make: Callable[[], Any], seed: int = SEED) -> Any:
    """What ``make`` returns, its parameters drawn from one seed; torch's generator goes on where it was."""
    state = torch.get_rng_state()
    torch.manual_seed(seed)
    try:
        return make()
    finally:
        torch.set_rng_state(state)


class Subject:
    """One activation under test: a map from R^n to R^n in any dtype, with reverse mode.

    It is the port to a framework, torch here. A subclass for another one says its name, calls the activation
    (:meth:`function`, :meth:`widened`, :meth:`exact`) and differentiates it (:meth:`pullback`), with torch's tensors as the
    vectors that go in and come out; every law that is not for torch alone then serves it.

    Attributes:
        framework: name of the framework that differentiates the activation.
        activation: what is declared about it.
        learnable: whether it has trainable parameters.
        evaluating: whether it is checked in eval mode, because it draws random numbers in training mode.
        shape: shape that a vector is expanded to before the call; -1 stands for the vector. ``(-1,)`` mostly, ``(1, 3,
            -1)`` for a module with a parameter per channel.
        channel: the channel that is looked at, where there are several; the law ``channels`` looks at the others.
        writes: whether a call writes to its input, announced or not.
        notes: what a user should know about how it is checked.

    Raises:
        NotAnActivation: for a function that the laws do not speak about.
        TargetError: for one that cannot be run.
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
            raise TargetError(f"making it gave {type(self.original).__name__!r}, which cannot be called")
        self._classify()

    @property
    def name(self) -> str:
        return self.activation.name

    @property
    def learnable(self) -> bool:
        return any(parameter.requires_grad for parameter in self.parameters(self.original))

    @staticmethod
    def parameters(target: Any) -> Iterator[nn.Parameter]:
        """Parameters of a module; none of a function."""
        return target.parameters() if isinstance(target, nn.Module) else iter(())

    @property
    def announces_inplace(self) -> bool:
        """Whether it says that it overwrites its input, which callers then know.

        It is declared, an attribute ``inplace`` of the module or the default of an argument ``inplace`` is True, or the
        function's name ends in an underscore (https://docs.pytorch.org/docs/stable/tensors.html, "in-place variants").
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
        """Whether its values depend on parameters or buffers, which a dtype rounds."""
        return isinstance(self.original, nn.Module) and bool(self.original.state_dict())

    # -- what kind of function it is --------------------------------------------------------------------------------

    def _shapes(self) -> list[tuple[int, ...]]:
        return [(-1,), *self._channel_shapes(), (1, -1), (1, 4, -1, 1), (1, 1, -1, 1)]

    def _channel_shapes(self) -> list[tuple[int, ...]]:
        return [(1, c, -1) for c in sorted({p.numel() for p in self.parameters(self.original) if p.numel() > 1})]

    def _classify(self) -> None:
        needed = _required_tensors(self.original)
        if needed:
            raise NotAnActivation(
                f"needs more arguments than one tensor ({', '.join(needed)}); register a constructor that fixes them"
            )
        failures: list[Exception] = []
        channels = self._channel_shapes()
        for shape in self._shapes():
            if any(isinstance(failure, _ChangesShape) for failure in failures) and shape not in channels:
                continue  # only a layout with channels can mend that
            self.shape = shape
            try:
                self._classify_shape()
            except (TargetError, _ChangesShape) as error:
                # a parameter per channel broadcasts a plain vector to another shape
                failures.append(error)
            else:
                return
        # the first attempt is the plain vector: its message is the one a user understands
        raise failures[0]

    def _classify_shape(self) -> None:
        x = self.spread(torch.tensor(_PROBE))
        first = self._try(x)
        if not torch.equal(first, self._try(x)):
            if isinstance(self.original, nn.Module):
                self.original.eval()
                self.evaluating = True
            if not torch.equal(self._try(x), self._try(x)):
                raise NotAnActivation("random, or changed by being called: two calls on one input differ, in eval mode too")
            self.notes.append("random in training mode: checked in eval mode")
            first = self._try(x)
        # (a value that dwarfs the others shows what only looks at the largest: sparsemax, entmax)
        for index, value in ((0, 0.3), (x.numel() - 3, -3.0), (x.numel() // 2, 50.0), (1, -50.0), (x.numel() - 1, 1.35)):
            moved = x.clone()
            moved.view(-1)[index] = value
            other = self._try(moved)
            different = ~((other == first) | (other.isnan() & first.isnan()))
            different.view(-1)[index] = False
            if bool(different.any()):
                raise NotAnActivation("not elementwise: an output depends on other inputs than its own (softmax, norms)")

    def _try(self, x: Tensor) -> Tensor:
        """One call on a fresh copy, with every way of being no activation told apart."""
        given = x.clone()
        try:
            with torch.no_grad():
                result = self.original(given)
        except MemoryError:
            raise
        except Exception as error:
            raise TargetError(f"raised on an input of shape {tuple(x.shape)}: {error_text(error)}") from error
        # (writing through .data leaves the version counter where it was)
        self.writes |= given._version > 0 or not torch.equal(given, x)
        if not isinstance(result, Tensor):
            raise TargetError(f"returned {type(result).__name__!r} for a tensor; an activation returns a tensor")
        if not result.is_floating_point():
            raise NotAnActivation(f"returns {dtype_name(result.dtype)}, which has no gradient")
        if result.shape != x.shape:
            raise _ChangesShape(f"changes the shape: {tuple(x.shape)} to {tuple(result.shape)}")
        return result.detach().clone()

    # -- calling it -------------------------------------------------------------------------------------------------

    def spread(self, x: Tensor) -> Tensor:
        """A copy of the vector in the layout that the activation wants; in a graph it is no leaf and may be overwritten."""
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
        """How many channels have parameters of their own; 1 without such parameters."""
        return self.shape[1] if self.shape in self._channel_shapes() else 1

    def of_channel(self, channel: int) -> Subject:
        """The same activation looked at in another channel, where no two channels have the same parameters."""
        other = copy.copy(self)
        # what was computed for this channel is not the other's
        other.channel, other._kinks, other._callables = channel, {}, {}
        other.__dict__.pop("_shared_exact", None)
        other.original = self.copied(self.original)
        with torch.no_grad():
            for parameter in self.parameters(other.original):
                if parameter.numel() == self.channels:
                    parameter.add_(torch.linspace(0, 0.25, parameter.numel()).to(parameter).reshape(parameter.shape))
        return other

    def callable_for(self, dtype: torch.dtype, device: str = "cpu") -> Any:
        """The activation itself, moved to a dtype and a device; a module is a copy of its own, kept for the next call."""
        key = (dtype, device)
        if key not in self._callables:
            self._callables[key] = self.fresh(dtype, device)
        return self._callables[key]

    def fresh(self, dtype: torch.dtype, device: str = "cpu") -> Any:
        """A new copy of the activation in a dtype and on a device (a function is itself)."""
        return self.placed(self.original, dtype, device)

    def placed(self, target: Any, dtype: torch.dtype, device: str = "cpu") -> Any:
        """A copy of a module in a dtype and on a device; any other callable as it is."""
        return self.copied(target).to(device=device, dtype=dtype) if isinstance(target, nn.Module) else target

    def copied(self, module: nn.Module) -> nn.Module:
        """A deep copy; where the module cannot be copied, one made anew with the same seed."""
        try:
            return copy.deepcopy(module)
        except Exception:
            fresh: Any = make_seeded(self.activation.make)
            return fresh.eval() if self.evaluating else fresh

    def flat(self, target: Any) -> Callable[[Tensor], Tensor]:
        """``target`` as a function from shape (n,) to shape (n,) that autograd can differentiate.

        Every call gets a copy of the input: what ``target`` writes reaches nobody else, and in-place activations can be
        called on leaves of a graph.
        """
        return lambda x: self._pick(target(self.spread(x)))

    def function(self, dtype: torch.dtype, device: str = "cpu") -> Callable[[Tensor], Tensor]:
        """The activation in a dtype as a function from shape (n,) to shape (n,)."""
        return self.flat(self.callable_for(dtype, device))

    def widened(self, dtype: torch.dtype, device: str = "cpu") -> Callable[[Tensor], Tensor]:
        """The activation in float64, its parameters rounded to ``dtype``: a bfloat16 slope of 0.3 is 0.30078125."""
        target = self.fresh(dtype, device)
        return self.flat(target.to(torch.float64) if isinstance(target, nn.Module) else target)

    @staticmethod
    def pullback(f: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """The value of ``f`` at a vector, and what takes one cotangent of it back to the gradient at the vector.

        Raises:
            Disconnected: where the value does not depend on the vector, here or when the cotangent is taken back.
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

    # -- the truth it is judged by ----------------------------------------------------------------------------------

    def exact(self, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
        """The function over the reals that the activation in ``dtype`` approximates: float64 (n,) in and out, no graph.

        A module that takes no float64 is called in float32, which :func:`relucheck.activations.kink_search.resolution`
        notices.
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

    def truth(self, dtype: torch.dtype) -> tuple[Callable[[Tensor], Tensor], list[FoundKink]]:
        """The exact function for a dtype and its kinks, found once per dtype (once in all without parameters)."""
        shared = not self.has_state()
        f = self._shared_exact if shared else self.exact(dtype)
        key = "" if shared else dtype_name(dtype)
        if key not in self._kinks:
            self._kinks[key] = find_kinks(f, self._gradient64(dtype), self.scan)
        return f, self._kinks[key]

    def _gradient64(self, dtype: torch.dtype) -> Callable[[Tensor], Tensor] | None:
        """The activation's own float64 gradient, None where it has none; tells neighbouring floats at a kink apart."""
        f = self.widened(dtype)

        def gradient(x: Tensor) -> Tensor:
            y, back = self.pullback(f, x)
            return back(torch.ones_like(y))

        try:
            gradient(torch.tensor(_PROBE, dtype=torch.float64))
        except Exception:
            return None
        return gradient
