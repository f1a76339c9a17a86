"""torch behind the port: calls, copies and differentiates modules and functions of torch."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from relucheck.activations.kinks import Activation
from relucheck.gate.frameworks.exchange import Call, Disconnected, Function, Overwritten, Relaid, Result, Unsupported
from relucheck.gate.frameworks.of_torch.activations import NAMESPACES, cut_off_below, functions
from relucheck.gate.frameworks.of_torch.arrays import described, leaf_of, like, numbers, on_tensors, spread, tensor
from relucheck.gate.frameworks.of_torch.layouts import relaid
from relucheck.gate.frameworks.of_torch.modes import TorchModes
from relucheck.gate.frameworks.of_torch.scripts.whole import TorchScript, arrangements
from relucheck.gate.frameworks.of_torch.views import TorchViews
from relucheck.gate.frameworks.port import CAPABILITIES
from relucheck.numerics.devices import available
from relucheck.numerics.dtypes import as_dtype, dtype_name
from relucheck.numerics.floats import Floats

if TYPE_CHECKING:
    from relucheck.gate.subject import Subject


#: How torch marks a function whose forward takes the context.
_OWN_CONTEXT = torch.autograd.function._SingleLevelFunction.setup_context


class TorchFramework(TorchViews, TorchModes):
    """torch, with all capabilities. Activations are modules, or functions of a tensor."""

    name = "torch"
    capabilities = frozenset(CAPABILITIES)
    noun = "tensor"
    script = TorchScript
    modes: ClassVar[Mapping[str, str]] = {"vmap": "torch.func.grad under vmap", "compile": "torch.compile"}

    # -- activations: construct, recognise, copy --------------------------------------------------------------------

    def constructed(self, make: Callable[[], Any], seed: int) -> Any:
        state = torch.get_rng_state()
        torch.manual_seed(seed)
        try:
            return make()
        finally:
            torch.set_rng_state(state)

    def copied(self, target: Any, again: Callable[[], Any]) -> Any:
        if not isinstance(target, nn.Module):
            return target
        try:
            return copy.deepcopy(target)
        except Exception:
            return again()

    def moved(self, target: Any, dtype: str, device: str) -> Any:
        return target.to(device=device, dtype=as_dtype(dtype)) if isinstance(target, nn.Module) else target

    def called(self, target: Any, x: Floats, dtype: str) -> Call:
        given = tensor(x, dtype)
        argument = given.clone()
        with torch.no_grad():
            result = target(argument)
        # a write through .data does not change the version counter, so compare the values too
        overwrote = argument._version > 0 or not torch.equal(argument, given)
        if not isinstance(result, Tensor):
            return Call(type(result).__name__, None, "", overwrote)
        differentiable = result.is_floating_point()
        return Call("Tensor", numbers(result) if differentiable else None, dtype_name(result.dtype), overwrote)

    def start(self, device: str) -> None:
        available(device)

    def is_module(self, target: Any) -> bool:
        return isinstance(target, nn.Module)

    def is_module_class(self, value: Any) -> bool:
        return inspect.isclass(value) and issubclass(value, nn.Module) and value is not nn.Module

    def is_array_type(self, annotation: Any) -> bool:
        return annotation is Tensor or "Tensor" in str(annotation)

    def namespaces(self) -> Mapping[str, Callable[[], list[Activation]]]:
        return NAMESPACES

    def signed(self, target: Any) -> Any:
        owner = getattr(target, "__self__", None)
        if inspect.isclass(owner) and issubclass(owner, torch.autograd.Function) and target.__name__ == "apply":
            # what ``apply`` takes is what ``forward`` does, without the context where that is an argument
            return owner.forward if owner.setup_context is not _OWN_CONTEXT else functools.partial(owner.forward, None)
        return target.forward if isinstance(target, nn.Module) else target

    def parts(self, target: Any) -> list[Any]:
        return [*target.modules()] if isinstance(target, nn.Module) else [target]

    def stored_numbers(self, target: Any) -> dict[str, list[float]]:
        if not isinstance(target, nn.Module):
            return {}
        held = [*target.named_parameters(), *target.named_buffers()]
        return {name: array.detach().flatten()[:64].tolist() for name, array in held if array.is_floating_point()}

    def thresholds(self, f: Function, x: Floats) -> list[float]:
        return cut_off_below(on_tensors(f)(leaf_of(f, x)))

    def evaluating(self, target: Any) -> bool:
        if not isinstance(target, nn.Module):
            return False
        target.eval()
        return True

    def has_state(self, target: Any) -> bool:
        return isinstance(target, nn.Module) and bool(target.state_dict())

    def parameter_sizes(self, target: Any) -> list[int]:
        held = (*target.parameters(), *target.buffers()) if isinstance(target, nn.Module) else ()
        return [array.numel() for array in held]

    def known_activations(self) -> dict[str, Activation]:
        return {f"torch.nn.functional.{activation.name}": activation for activation in functions()}

    # -- value and reverse mode -------------------------------------------------------------------------------------

    def value(self, f: Function, x: Floats) -> Floats:
        with torch.no_grad():
            return numbers(on_tensors(f)(tensor(x, f.dtype, f.device)))

    def pullback(self, f: Function, x: Floats) -> tuple[Floats, Callable[[Floats], Floats]]:
        leaf = leaf_of(f, x)
        with torch.enable_grad():
            y = on_tensors(f)(leaf)
        if not y.requires_grad:
            raise Disconnected("the output carries no graph")

        def back(cotangent: Floats) -> Floats:
            gradients: tuple[Tensor | None, ...] = torch.autograd.grad(
                y, leaf, like(y, cotangent), retain_graph=True, allow_unused=True
            )
            (gradient,) = gradients
            if gradient is None:
                raise Disconnected("the graph of the output does not reach the input")
            return numbers(gradient)

        return numbers(y), back

    def diagnosis(self, error: Exception) -> str:
        if "modified by an inplace operation" in str(error):
            return "overwritten"
        refused = "not implemented for" in str(error) or "not supported" in str(error).lower()
        return "dtype" if refused else ""

    # -- arrays: shapes, memory layouts, writes -------------------------------------------------------------------------

    def shaped(self, f: Function, x: Floats) -> tuple[Result, Result, Result]:
        leaf = leaf_of(f, x)
        try:
            y = f.target(leaf.clone()) if f.layout.plain or x.ndim > 1 else on_tensors(f)(leaf)
            (gradient,) = torch.autograd.grad(y, leaf, torch.ones_like(y))
        except (RuntimeError, IndexError, ValueError) as error:
            raise Unsupported(f"an input of shape {x.shape}", error) from None
        return described(leaf), described(y), described(gradient)

    def state_shapes(self, target: Any) -> list[tuple[int, ...]]:
        state = target.state_dict().values() if isinstance(target, nn.Module) else ()
        return [tuple(value.shape) for value in state if isinstance(value, Tensor)]

    def layouts(self, f: Function) -> tuple[str, ...]:
        return tuple(arrangements(f.layout))

    def relaid(self, f: Function, name: str, x: Floats, cotangent: Callable[[int], Floats], *, copying: bool) -> Relaid:
        return relaid(f, name, x, cotangent, self._parameters(f.target), copying=copying)

    def overwritten(self, f: Function, x: Floats, cotangent: Callable[[int], Floats]) -> Overwritten:
        leaf = leaf_of(f, x)
        argument = spread(f.layout, leaf)
        before = numbers(argument)
        y = f.target(argument)

        def backward() -> dict[str, tuple[Floats, Floats]]:
            upstream = cotangent(argument.numel()).reshape(before.shape)
            v = tensor(upstream, f.dtype, f.device)
            held = {"input": argument, "output": y} | ({"cotangent": v} if y.dtype == v.dtype else {})
            earlier = {name: numbers(each) for name, each in held.items()}
            torch.autograd.grad(y, leaf, v.to(y.dtype), allow_unused=True)
            return {name: (earlier[name], numbers(each)) for name, each in held.items()}

        return Overwritten(before, numbers(argument), backward)

    def in_place_variant(self, subject: Subject) -> Callable[[], Any] | None:
        original = subject.original
        if callable(subject.activation.inplace):
            return subject.activation.inplace
        if subject.announces_inplace:
            return lambda: subject.copied(original)
        if isinstance(original, nn.Module):
            if not isinstance(getattr(original, "inplace", None), bool):
                return None

            def make() -> nn.Module:
                module = subject.copied(original)
                module.inplace = True
                return module

            return make
        try:
            takes = "inplace" in inspect.signature(original).parameters
        except (TypeError, ValueError):
            return None
        return (lambda: functools.partial(original, inplace=True)) if takes else None

    def announces_in_place(self, target: Any) -> bool:
        """Whether a module has ``inplace`` True, or a function says that it overwrites.

        Of a sequence, the first module counts. A function says so by the default True of its argument ``inplace``, or by
        a name that ends in an underscore, which is PyTorch's convention (https://docs.pytorch.org/docs/stable/tensors.html).
        """
        if isinstance(target, nn.Sequential) and len(target):
            return self.announces_in_place(target[0])
        if isinstance(target, nn.Module):
            return getattr(target, "inplace", False) is True
        name = getattr(target, "__name__", "")
        if name.endswith("_") and not name.endswith("__"):
            return True
        try:
            argument = inspect.signature(target).parameters.get("inplace")
        except (TypeError, ValueError):
            return False
        return argument is not None and argument.default is True

    def after_saving(self, f: Function, x: Floats, *, copying: bool = False) -> Floats:
        leaf = leaf_of(f, x)
        saved = torch.tanh(spread(f.layout, leaf))
        try:
            y = f.target(saved.clone() if copying else saved)
            return numbers(torch.autograd.grad(y[() if f.layout.plain else f.layout.index].sum(), leaf)[0])
        except RuntimeError as error:
            raise Unsupported("overwriting a saved value", error) from None
