"""torch behind the port: calls, copies and differentiates modules and functions of torch."""

from __future__ import annotations

import copy
import functools
import inspect
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from relucheck.activations.kinks import Activation
from relucheck.gate.frameworks.exchange import Call, Disconnected, Function, Overwritten, Relaid, Result, Unsupported
from relucheck.gate.frameworks.port import CAPABILITIES, Framework
from relucheck.gate.frameworks.torch_activations import NAMESPACES, cut_off_below, functions
from relucheck.gate.frameworks.torch_arrays import described, leaf_of, like, numbers, on_tensors, spread, tensor
from relucheck.gate.frameworks.torch_decompositions import Decomposing
from relucheck.gate.frameworks.torch_layouts import relaid
from relucheck.gate.frameworks.torch_scripts import TorchScript, arrangements
from relucheck.gate.frameworks.torch_views import TorchViews
from relucheck.gate.isolation.guard import preserved_state
from relucheck.numerics.devices import available
from relucheck.numerics.dtypes import as_dtype, dtype_name
from relucheck.numerics.floats import Floats

if TYPE_CHECKING:
    from relucheck.gate.subject import Subject


#: How torch marks a function whose forward takes the context.
_OWN_CONTEXT = torch.autograd.function._SingleLevelFunction.setup_context


class TorchFramework(TorchViews, Framework):
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

    # -- other modes --------------------------------------------------------------------------------------------------

    def forward(self, f: Function, x: Floats, tangent: Floats) -> Floats:
        primal, direction = tensor(x, f.dtype, f.device), tensor(tangent, f.dtype, f.device)
        try:
            return numbers(torch.func.jvp(on_tensors(f), (primal,), (direction,))[1])
        except (RuntimeError, TypeError, AttributeError) as error:
            raise Unsupported("forward-mode AD", error) from None

    def mapped_value(self, f: Function, x: Floats) -> Floats:
        call = on_tensors(f)
        return self._mapped(lambda t: call(t.reshape(1)).reshape(()), f, x)

    def mapped_gradient(self, f: Function, x: Floats) -> Floats:
        call = on_tensors(f)
        return self._mapped(torch.func.grad(lambda t: call(t.reshape(1)).sum()), f, x)

    def _mapped(self, call: Callable[[Tensor], Tensor], f: Function, x: Floats) -> Floats:
        try:
            return numbers(torch.func.vmap(call)(tensor(x, f.dtype, f.device)))
        except (RuntimeError, TypeError, ValueError, AttributeError) as error:
            raise Unsupported(self.modes["vmap"], error) from None

    def second(
        self,
        f: Function,
        x: Floats,
        by: str = "input",
        cotangent: Floats | None = None,
        weights: Floats | None = None,
    ) -> tuple[Floats, Floats | None]:
        leaf = leaf_of(f, x)
        try:
            gradient, upstream, total = _weighted_gradient(f, leaf, cotangent, weights)
            wanted = {"input": leaf, "cotangent": upstream}[by]
            second: Tensor | None = None
            if total.requires_grad:
                seconds: tuple[Tensor | None, ...] = torch.autograd.grad(
                    total, wanted, retain_graph=True, allow_unused=True
                )
                (second,) = seconds
                if second is None:
                    # backward() also visits nodes that grad() prunes, so once_differentiable raises here as for a user
                    total.backward()
        except RuntimeError as error:
            raise Unsupported("double backward", error) from None
        return numbers(gradient), None if second is None else numbers(second)

    def second_by_parameters(self, f: Function, x: Floats, cotangent: Floats, weights: Floats) -> dict[str, Result | None]:
        parameters = self._parameters(f.target)
        try:
            _, _, total = _weighted_gradient(f, leaf_of(f, x), cotangent, weights)
            if not total.requires_grad:
                return dict.fromkeys(parameters)
            found = torch.autograd.grad(total, list(parameters.values()), retain_graph=True, allow_unused=True)
            if all(each is None for each in found):
                total.backward()  # raises where the gradient refuses to be differentiated
        except RuntimeError as error:
            raise Unsupported("double backward", error) from None
        return _described(parameters, found)

    def compiled(self, f: Function, x: Floats) -> Floats:
        torch._dynamo.reset()

        def gradient() -> Floats:
            leaf = leaf_of(f, x)
            y = compiled(leaf)
            return numbers(torch.autograd.grad(y, leaf, torch.ones_like(y))[0])

        try:
            compiled = torch.compile(on_tensors(f), dynamic=False, fullgraph=False)
            # torch 2.4's inductor links with -ffast-math: loading its kernels makes the process flush subnormal numbers to
            # 0, which would fail the laws that are checked later. So the first call compiles, and the second one counts.
            with preserved_state():
                gradient()
            return gradient()
        except Exception as error:
            raise Unsupported(self.modes["compile"], error) from None

    def decomposed(self, f: Function, x: Floats) -> tuple[Floats, Floats]:
        try:
            with Decomposing():
                y, back = self.pullback(f, x)
                return y, back(np.ones_like(y))
        except Exception as error:
            raise Unsupported("decomposition into core operations", error) from None

    def lower_precision(self, device: str) -> str:
        return "float16" if torch.device(device).type == "cuda" else "bfloat16"

    def autocast(self, f: Function, x: Floats) -> Floats:
        try:
            with torch.autocast(torch.device(f.device).type, dtype=as_dtype(self.lower_precision(f.device))):
                y, back = self.pullback(f, x)
                return back(np.ones_like(y))
        except RuntimeError as error:
            raise Unsupported("autocast", error) from None

    def autocast_parameters(self, f: Function, x: Floats, cotangent: Floats) -> dict[str, Result | None]:
        try:
            with torch.autocast(torch.device(f.device).type, dtype=as_dtype(self.lower_precision(f.device))):
                return self.parameter_gradients(f, x, cotangent)
        except RuntimeError as error:
            raise Unsupported("autocast", error) from None

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

    # -- modules: parameters, copies, global state ----------------------------------------------------------------------

    def learnable(self, target: Any) -> list[str]:
        named = target.named_parameters() if isinstance(target, nn.Module) else ()
        return [name for name, parameter in named if parameter.requires_grad]

    def parameter(self, target: Any, name: str) -> Result:
        return described(target.get_parameter(name))

    def with_parameter(self, target: Any, name: str, values: Floats) -> Any:
        with torch.no_grad():
            target.get_parameter(name).copy_(torch.from_numpy(values))
        return target

    def _parameters(self, target: Any) -> dict[str, Tensor]:
        return {name: target.get_parameter(name) for name in self.learnable(target)}

    def parameter_gradients(self, f: Function, x: Floats, cotangent: Floats) -> dict[str, Result | None]:
        parameters = self._parameters(f.target)
        y = on_tensors(f)(tensor(x, f.dtype, f.device))
        if not y.requires_grad:
            return dict.fromkeys(parameters)
        return _described(
            parameters, torch.autograd.grad(y, list(parameters.values()), like(y, cotangent), allow_unused=True)
        )

    def batch_gradients(self, f: Function, x: Floats, cotangent: Floats) -> tuple[Result, Result, dict[str, Result | None]]:
        leaf, parameters = leaf_of(f, x), self._parameters(f.target)
        try:
            y = f.target(leaf.clone())
            gradient, *more = torch.autograd.grad(
                y, [leaf, *parameters.values()], like(y, cotangent).reshape(y.shape), allow_unused=True
            )
        except (RuntimeError, IndexError, ValueError) as error:
            raise Unsupported(f"an input of shape {x.shape}", error) from None
        return described(y), described(gradient), _described(parameters, more)

    def with_distinct_channels(self, target: Any, channels: int) -> Any:
        with torch.no_grad():
            for parameter in target.parameters():
                if parameter.numel() == channels:
                    parameter.add_(torch.linspace(0, 0.25, channels).to(parameter).reshape(parameter.shape))
        return target

    def with_changed_state(self, target: Any) -> Any:
        with torch.no_grad():
            # non-persistent buffers stay as they are, because a state_dict does not contain them
            for value in target.state_dict().values():
                if value.is_floating_point():
                    value.add_(0.125)
        return target

    def copies(self, target: Any, again: Callable[[], Any], dtype: str, device: str) -> Iterator[tuple[str, Any]]:
        def reloaded() -> nn.Module:
            fresh: nn.Module = self.moved(again(), dtype, device)
            fresh.load_state_dict(target.state_dict())
            return fresh

        ways: dict[str, Callable[[], Any]] = {
            "deepcopy": lambda: copy.deepcopy(target),
            "pickle": lambda: pickle.loads(pickle.dumps(target)),
            "state_dict": reloaded,
        }
        for name, way in ways.items():
            try:
                copied = way()
            except Exception as error:
                raise Unsupported(name, error) from None
            yield name, copied

    def state_changes(self, f: Function, x: Floats) -> list[str]:
        leaf = leaf_of(f, x)
        with preserved_state() as changes:
            # not under torch.enable_grad, which would restore the grad mode
            try:
                y = on_tensors(f)(leaf)
                torch.autograd.grad(y, leaf, torch.ones_like(y), allow_unused=True)
            except (TypeError, ValueError, RuntimeError):
                pass
        return changes


def _weighted_gradient(
    f: Function, leaf: Tensor, cotangent: Floats | None, weights: Floats | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the gradient with a graph, the cotangent that it depends on, and the gradient's weighted sum."""
    y = on_tensors(f)(leaf)
    upstream = (torch.ones_like(y) if cotangent is None else like(y, cotangent)).requires_grad_()
    (gradient,) = torch.autograd.grad(y, leaf, upstream, create_graph=True)
    total = gradient.sum() if weights is None else (gradient * like(gradient, weights)).sum()
    return gradient, upstream, total


def _described(parameters: Mapping[str, Tensor], gradients: Sequence[Tensor | None]) -> dict[str, Result | None]:
    return {
        name: None if gradient is None else described(gradient)
        for name, gradient in zip(parameters, gradients, strict=True)
    }
