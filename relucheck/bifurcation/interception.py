"""Record the activation calls of a model and choose their subgradient, without changing it.

While an ``Interception`` is active, all calls of ``F.relu``, ``torch.relu``, ``Tensor.relu_``, ``F.relu6``,
``F.leaky_relu``, ``F.hardtanh(x, 0, 6)`` and relucheck's functions by the model run with the chosen subgradient. Other
torch functions with kinks and custom autograd Functions are out of reach. They are named from the autograd graph. An
activation written as a comparison (``x * (x > 0)``, ``torch.where(x > 0, x, 0)``) leaves no such node in the graph, so its
comparison with 0 or 6 is named instead.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from relucheck.activations import functional
from relucheck.activations.rules import LEAKY_RELU, RELU, RELU6, ModelSubgradient, Rule, as_subgradient
from relucheck.bifurcation.gradients import is_custom, nodes_below
from relucheck.errors import ModelError
from relucheck.numerics.bits import positions_of


@dataclasses.dataclass(frozen=True)
class Call:
    """One activation call of one forward.

    Attributes:
        site: the qualified name of the activation module; for a function, the name of the calling module and of the
            function. Further calls of the same site have a suffix: ``#2``, ``#3`` and so on.
        module: the qualified name of the innermost module in which the call happened; "" for the model itself.
        rule: the kind of activation, with its kinks.
        shape: the shape of the input.
        hits: where the input equals a kink: one int64 tensor [hits, dimensions of the input] per kink of the rule.
        differentiated: whether autograd recorded the call. Otherwise no gradient passes through it.
    """

    site: str
    module: str
    rule: Rule
    shape: tuple[int, ...]
    hits: tuple[Tensor, ...]
    differentiated: bool

    @property
    def hit_count(self) -> int:
        """The number of hits at all kinks."""
        return sum(len(positions) for positions in self.hits)

    @property
    def elements(self) -> int:
        """The number of elements of the input."""
        return torch.Size(self.shape).numel()


@dataclasses.dataclass(frozen=True)
class OutOfReach:
    """A function with kinks whose subgradient an interception cannot choose.

    Attributes:
        site: as in ``Call``.
        module: as in ``Call``.
        node: the name of its autograd node, or "comparison with 0" (or 6).
        custom: whether it is a ``torch.autograd.Function`` outside of torch and relucheck.
    """

    site: str
    module: str
    node: str
    custom: bool

    def __str__(self) -> str:
        return f"{self.site} ({self.node})"


# the autograd nodes of torch functions that have kinks or ties, without trailing digits
_KINKED_NODES: Final = frozenset(
    f"{name}Backward"
    for name in (
        *("Relu", "Threshold", "Hardtanh", "LeakyRelu", "PreluKernel", "RreluWithNoise", "Elu", "Celu"),
        *("Hardswish", "Hardsigmoid", "Softshrink", "Hardshrink", "Abs", "Clamp", "ClampMin", "ClampMax"),
        *("Maximum", "Minimum", "Fmax", "Fmin", "Max", "Min", "Amax", "Amin", "Aminmax", "Topk", "Sort", "Median"),
        *("MaxPool2DWithIndices", "MaxPool3DWithIndices"),
        *("AdaptiveMaxPool2D", "AdaptiveMaxPool3D", "FractionalMaxPool2D", "FractionalMaxPool3D"),
    )
)

_Parsed = tuple[Rule, Tensor, float, bool]
_Parser = Callable[..., _Parsed | None]


def _hardtanh(input: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> _Parsed | None:
    return (RELU6, input, 0.0, inplace) if (min_val, max_val) == (0, 6) else None


_PARSERS: Final[dict[Any, _Parser]] = {
    F.relu: lambda input, inplace=False: (RELU, input, 0.0, inplace),
    functional.relu: lambda x, subgradient, inplace=False: (RELU, x, 0.0, inplace),
    F.relu6: lambda input, inplace=False: (RELU6, input, 0.0, inplace),
    functional.relu6: lambda x, alpha, beta, inplace=False: (RELU6, x, 0.0, inplace),
    F.leaky_relu: lambda input, negative_slope=0.01, inplace=False: (LEAKY_RELU, input, negative_slope, inplace),
    functional.leaky_relu: lambda x, subgradient, negative_slope=0.01, inplace=False: (
        LEAKY_RELU,
        x,
        negative_slope,
        inplace,
    ),
    F.hardtanh: _hardtanh,
    **dict.fromkeys((torch.relu, Tensor.relu), lambda input: (RELU, input, 0.0, False)),
    **dict.fromkeys((torch.relu_, Tensor.relu_), lambda input: (RELU, input, 0.0, True)),
    torch._C._nn.relu6: lambda input: (RELU6, input, 0.0, False),
    torch._C._nn.relu6_: lambda input: (RELU6, input, 0.0, True),
    torch._C._nn.hardtanh: _hardtanh,
    torch._C._nn.hardtanh_: lambda input, min_val=-1.0, max_val=1.0: _hardtanh(input, min_val, max_val, True),
    torch._C._nn.leaky_relu: lambda input, negative_slope=0.01: (LEAKY_RELU, input, negative_slope, False),
    torch._C._nn.leaky_relu_: lambda input, negative_slope=0.01: (LEAKY_RELU, input, negative_slope, True),
}


_COMPARISONS: Final = frozenset(
    getattr(owner, name)
    for owner in (torch, Tensor)
    for name in ("gt", "ge", "lt", "le", "greater", "greater_equal", "less", "less_equal")
) | {Tensor.__gt__, Tensor.__ge__, Tensor.__lt__, Tensor.__le__}


# what computes derivatives: the engine in reverse mode, as torch.func calls it, too, and forward mode
_DERIVING: Final = frozenset({torch.autograd.grad, torch.autograd.backward, Tensor.backward, torch._VF._make_dual})


class _Serving(threading.local):
    """Whether this thread runs an activation for an interception; others must not do it again."""

    active = False


_serving: Final = _Serving()


class _Mode(TorchFunctionMode):
    """Pass every call of a torch function to the interception."""

    def __init__(self, owner: Interception) -> None:
        super().__init__()
        self._owner = owner

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self._owner.run(func, args, kwargs or {})


class Interception:
    """A context in which a model's activation calls are recorded and use a chosen subgradient.

    Hooks switch a TorchFunctionMode on when the model or a part of it runs. So it also works in a backward that recomputes
    a checkpointed part, where a mode around the whole would be suspended.

    Args:
        model: any eager ``nn.Module``. The names of its modules become the names of sites.
        device: the device of the model's activations.

    Attributes:
        calls: every activation call so far, in order.
        recording: whether calls are recorded. Set it to False before a backward, which may recompute checkpointed forwards.
        derives: whether derivatives were computed while calls were recorded, so that values may depend on the subgradient.

    Raises:
        ModelError: for a compiled or scripted model, whose calls cannot be seen, and for a model on the meta device.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        for name, module in model.named_modules():
            scripted = isinstance(module, torch.jit.ScriptModule)
            if scripted or hasattr(module, "_orig_mod") or module._compiled_call_impl is not None:
                raise ModelError(
                    f"module {name or '(the model itself)'!r} is {'scripted' if scripted else 'compiled'}: its activation "
                    "calls cannot be seen; pass the eager model (model._orig_mod of a compiled one)"
                )
        if device.type == "meta":
            raise ModelError(
                f"{type(model).__name__} is on the meta device, which holds no values to compare with kinks; move it with "
                "model.to_empty(device='cpu') and initialise it"
            )
        self.calls: list[Call] = []
        self.recording = True
        self.derives = False
        self._model = model
        self._path: list[str] = []
        self._counts: dict[str, int] = {}
        self._compared: list[OutOfReach] = []
        self._origins: dict[Any, tuple[str, str]] = {}  # node: (site, module)
        self._hooks: list[Any] = []
        self._mode = _Mode(self)
        self._lower, self._upper = (torch.zeros((), dtype=torch.float64, device=device) for _ in range(2))

    def choose(self, setting: ModelSubgradient) -> None:
        """Set the subgradient that every later backward uses, on recorded graphs, too."""
        lower, upper = setting if isinstance(setting, tuple) else (setting, setting)
        for tensor, value in ((self._lower, lower), (self._upper, upper)):
            tensor.data.copy_(as_subgradient(value, owner="subgradient", optional=True))

    def __enter__(self) -> Interception:
        for name, module in self._model.named_modules():
            # before all other hooks: if one of them raises, _leaving, which always runs, removes what _entering added
            self._hooks.append(module.register_forward_pre_hook(self._entering(name), prepend=True))
            self._hooks.append(module.register_forward_hook(self._named(name)))
            self._hooks.append(module.register_forward_hook(self._leaving, always_call=True))
        return self

    def __exit__(self, *exc: Any) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        if self._path:  # after a KeyboardInterrupt, even hooks with always_call do not run
            self._path.clear()
            self._mode.__exit__(None, None, None)

    def _entering(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any) -> None:
            self._claim(args, self._inner or type(self._model).__name__, self._inner)
            if not self._path:
                self._mode.__enter__()
            self._path.append(name)

        return hook

    def _leaving(self, module: nn.Module, args: Any, output: Any) -> None:
        if not self._path:
            return
        self._path.pop()
        if not self._path:
            self._mode.__exit__(None, None, None)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Switch the mode on for code outside of the model's modules, such as a loss or a backward."""
        self._path.append("")  # so that the hooks of modules that run inside do not switch it on again
        try:
            with self._mode:
                yield
        finally:
            self._path.clear()

    def call(self, function: Callable[[Any], Any], argument: Any) -> Any:
        """Call a function outside of the model's modules, such as a loss, under the interception."""
        with self.running():
            return function(argument)

    def _claim(self, values: Any, site: str, module: str) -> None:
        """Assign a site to the autograd nodes of tensors and all earlier nodes that have none.

        For the outputs of a call, these are the nodes inside of it; for inputs, custom Functions since the last call.
        """
        waiting = [value.grad_fn for value in values if isinstance(value, Tensor)]
        while waiting:
            node = waiting.pop()
            if node is not None and node not in self._origins:
                self._origins[node] = (site, module)
                waiting.extend(following for following, _ in node.next_functions)

    def _named(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            self._claim(tensors_in(output), name or type(module).__name__, name)

        return hook

    @property
    def _inner(self) -> str:
        return self._path[-1] if self._path else ""

    def _functional(self, func: Any) -> str:
        return f"{self._inner or type(self._model).__name__}.{getattr(func, '__name__', str(func))}()"

    def _numbered(self, site: str) -> str:
        self._counts[site] = self._counts.get(site, 0) + 1
        return site if self._counts[site] == 1 else f"{site}#{self._counts[site]}"

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run a call of a torch function; an activation gets the chosen subgradient."""
        # hits inside a compiled function cannot be counted; its autograd node is reported as out of reach
        if torch.compiler.is_compiling() or _serving.active:
            return func(*args, **kwargs)
        if self.recording:
            self.derives = self.derives or func in _DERIVING
            self._claim(args, self._inner or type(self._model).__name__, self._inner)
        parser = _PARSERS.get(func)
        parsed = parser(*args, **kwargs) if parser is not None else None
        if self.recording and func in _COMPARISONS:
            self._record_comparison(func, args)
        if parsed is None or not parsed[1].is_floating_point():
            result = func(*args, **kwargs)
            if self.recording:
                parts = result if isinstance(result, list | tuple) else [result]
                self._claim(parts, self._functional(func), self._inner)
            return result
        rule, x, slope, inplace = parsed
        if self.recording:
            self._record(rule, x, func)
        _serving.active = True
        try:
            if rule is RELU6:
                return functional.relu6(x, self._lower, self._upper, inplace)
            if rule is LEAKY_RELU:
                return functional.leaky_relu(x, self._lower, slope, inplace)
            return functional.relu(x, self._lower, inplace)
        finally:
            _serving.active = False

    def _record_comparison(self, func: Any, args: Any) -> None:
        """Record a comparison of a differentiable tensor with 0 or 6; it may be an activation."""
        x, *other = args
        if isinstance(x, Tensor) and x.requires_grad and torch.is_grad_enabled() and other:
            number = other[0].item() if isinstance(other[0], Tensor) and other[0].ndim == 0 else other[0]
            if isinstance(number, int | float) and number in (0, 6):
                node = f"comparison with {number:g}"
                self._compared.append(OutOfReach(self._functional(func), self._inner, node, custom=False))

    def _record(self, rule: Rule, x: Tensor, func: Any) -> None:
        if torch._C._are_functorch_transforms_active():  # count hits in the plain tensor, which has all members of vmap
            while torch._C._functorch.is_functorch_wrapped_tensor(x):
                x = torch._C._functorch.get_unwrapped(x)
        hits = tuple(_positions(x.detach(), at) for at in rule.kinks)
        module = self._model.get_submodule(self._inner)
        itself = self._path and isinstance(module, nn.ReLU | nn.ReLU6 | nn.LeakyReLU | nn.Hardtanh)
        site = (self._inner or type(self._model).__name__) if itself else self._functional(func)
        differentiated = x.requires_grad and torch.is_grad_enabled()
        self.calls.append(Call(self._numbered(site), self._inner, rule, tuple(x.shape), hits, differentiated))

    def out_of_reach(self, roots: Sequence[Tensor]) -> tuple[OutOfReach, ...]:
        """List the functions with kinks in the graph below ``roots`` that are out of reach."""
        unreached = list(self._compared)
        for node in nodes_below(root.grad_fn for root in roots):
            name = type(node).__name__
            custom = is_custom(node)
            known = name.rstrip("0123456789") in _KINKED_NODES and not functional.has_chosen_subgradient(node)
            if custom or known:
                site, module = self._origins.get(node, (f"somewhere in {type(self._model).__name__}", ""))
                unreached.append(OutOfReach(site, module, name, custom))
        return tuple(sorted(unreached, key=lambda item: (item.site, item.node)))


def _positions(x: Tensor, at: float) -> Tensor:
    """Where ``x`` equals ``at``: int64 [hits, dimensions of x]."""
    if x.device.type != "cpu" or x.ndim == 0:
        return (x == at).nonzero()
    coordinates = positions_of(x, at)
    return torch.empty(0, x.ndim, dtype=torch.int64, device="cpu") if coordinates is None else torch.stack(coordinates, 1)


def as_arguments(inputs: Tensor | Sequence[Any]) -> tuple[Any, ...]:
    """Turn a tensor, or a list or tuple of arguments, into positional arguments of a model.

    Raises:
        ModelError: for a mapping, and for anything else that is not a tensor, list or tuple.
    """
    if isinstance(inputs, Tensor):
        return (inputs,)
    if isinstance(inputs, Mapping):
        raise ModelError(
            f"inputs is a mapping ({type(inputs).__name__}), but arguments are passed by position; pass (inputs,) to a "
            "model that takes the mapping itself, and wrap one that takes keyword arguments in a module whose "
            "forward(inputs) returns self.model(**inputs)"
        )
    if not isinstance(inputs, list | tuple):
        raise ModelError(
            f"inputs is of class {type(inputs).__name__}: must be a tensor, or a list or tuple of the model's positional "
            "arguments; pass (inputs,) to a model that takes this one object"
        )
    return tuple(inputs)


def refuse_empty(calls: Sequence[Call]) -> None:
    """Raise an error if all activation calls of a forward had empty inputs.

    The shapes of the model's arguments cannot decide this: a graph network may get an empty list of edges.

    Raises:
        ModelError: if there are calls, and none had an element.
    """
    if calls and not any(call.elements for call in calls):
        raise ModelError(
            f"the mini-batch is empty: no activation call had an element (the first, {calls[0].site}, had shape "
            f"{calls[0].shape}), so no activation can be at a kink; pass at least one sample"
        )


def tensors_in(value: Any, _within: frozenset[int] = frozenset()) -> Iterator[Tensor]:
    """Yield the tensors in a model's output: a tensor, containers, dataclasses, other objects."""
    if isinstance(value, Tensor):
        yield value
        return
    if isinstance(value, str | bytes | type | nn.Module) or callable(value) or id(value) in _within:
        return  # the last condition ends the recursion in an object that refers to itself
    parts: Any = ()
    if isinstance(value, Mapping):
        parts = value.values()
    elif isinstance(value, list | tuple | set | frozenset):
        parts = value
    elif hasattr(value, "__dict__"):
        parts = vars(value).values()
    for part in parts:
        yield from tensors_in(part, _within | {id(value)})
