"""Sees every activation call of a model, module or function, and can choose its subgradient without changing the model.

While an :class:`Interception` is active, calls of ``F.relu``, ``torch.relu``, ``Tensor.relu_``, ``F.relu6``,
``F.leaky_relu``, ``F.hardtanh(x, 0, 6)`` and of relucheck's own functions, from wherever in the model they come, run as
relucheck's functions with the subgradient of the interception. What it cannot reach (other functions with kinks, custom
autograd Functions) it finds in the autograd graph and names; activations written out with a comparison (``x * (x > 0)``,
``torch.where(x > 0, x, 0)``) leave no such node, and are named by the comparison with 0 or 6 that they make.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from relucheck.activations import functional
from relucheck.activations.rules import LEAKY_RELU, RELU, RELU6, ModelSubgradient, Rule, as_subgradient
from relucheck.errors import ModelError
from relucheck.numerics.bits import positions_of


@dataclasses.dataclass(frozen=True)
class Call:
    """One activation call of one forward.

    Attributes:
        site: qualified name of the module that called (or is) the activation, with the function's name for a functional
            call and ``#n`` from the second call of one site on.
        module: qualified name of the innermost module of the call ("" for the model itself).
        rule: which activation.
        shape: shape of its input.
        hits: one tensor per kink of the rule, int64 [hits, input dimensions]: where the input equals the kink.
        differentiated: whether autograd recorded the call; no gradient passes through one that it did not record.
    """

    site: str
    module: str
    rule: Rule
    shape: tuple[int, ...]
    hits: tuple[Tensor, ...]
    differentiated: bool

    @property
    def hit_count(self) -> int:
        """Number of hits over all kinks."""
        return sum(len(positions) for positions in self.hits)

    @property
    def elements(self) -> int:
        """Number of elements of its input."""
        return torch.Size(self.shape).numel()


@dataclasses.dataclass(frozen=True)
class OutOfReach:
    """A function with a kink whose subgradient stays what it is: site and module as in :class:`Call`, its autograd node."""

    site: str
    module: str
    node: str  # of autograd, or "comparison with 0" for an activation that is written out
    custom: bool  # a torch.autograd.Function of somebody's

    def __str__(self) -> str:
        return f"{self.site} ({self.node})"


# Autograd nodes (without their trailing digits) of torch functions that have kinks or ties.
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


class _Serving(threading.local):
    """Whether an interception is running an activation: another one around it (a comparison in a model) lets it pass."""

    active = False


_serving: Final = _Serving()


class _Mode(TorchFunctionMode):
    """Hands every torch function call to its owner."""

    def __init__(self, owner: Interception) -> None:
        super().__init__()
        self._owner = owner

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self._owner.run(func, args, kwargs or {})


class Interception:
    """While active, runs a model's activations with the subgradient in force here, and records their calls.

    Hooks on the modules switch the mode on whenever the model, or a part of it, runs: a backward that recomputes a
    checkpointed part is served too, where a mode around the whole would be suspended by ``torch.autograd.grad``.

    Args:
        model: any eager ``nn.Module``; its modules give the sites their names.
        device: where the subgradients live (the device of the model's activations).

    Attributes:
        calls: every activation call since the interception became active, in order.
        recording: set to False to stop recording (before backwards, which may recompute checkpointed forwards).

    Raises:
        ModelError: for a compiled or scripted model, whose calls cannot be seen, and on the meta device.
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
        self._model = model
        self._path: list[str] = []
        self._counts: dict[str, int] = {}
        self._compared: list[OutOfReach] = []
        self._origins: dict[Any, tuple[str, str]] = {}  # node: (site, module)
        self._hooks: list[Any] = []
        self._mode = _Mode(self)
        self._lower = torch.zeros((), dtype=torch.float64, device=device)
        self._upper = torch.zeros((), dtype=torch.float64, device=device)

    def choose(self, setting: ModelSubgradient) -> None:
        """Sets the subgradient that backwards use from now on, also those of graphs recorded before."""
        lower, upper = setting if isinstance(setting, tuple) else (setting, setting)
        for tensor, value in ((self._lower, lower), (self._upper, upper)):
            tensor.data.copy_(as_subgradient(value, owner="subgradient", optional=True))

    def __enter__(self) -> Interception:
        for name, module in self._model.named_modules():
            # first of all hooks: one that raises must find the path that _leaving, which always runs, shortens
            self._hooks.append(module.register_forward_pre_hook(self._entering(name), prepend=True))
            self._hooks.append(module.register_forward_hook(self._named(name)))
            self._hooks.append(module.register_forward_hook(self._leaving, always_call=True))
        return self

    def __exit__(self, *exc: Any) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        if self._path:  # an interrupt (no Exception) passes by the hooks that always run
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
        """The mode outside of the model's modules (a loss, a backward), whose hooks then do not switch it on once more."""
        self._path.append("")
        try:
            with self._mode:
                yield
        finally:
            self._path.clear()

    def call(self, function: Callable[[Any], Any], argument: Any) -> Any:
        """Runs a function that is no module of the model (a loss) under the interception."""
        with self.running():
            return function(argument)

    def _claim(self, values: Any, site: str, module: str) -> None:
        """Names the nodes that made these tensors, as far back as they have no name yet.

        What a call returned names the nodes inside of it; what it is given, a custom Function that ran since the last one.
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
        """One torch function call: an activation runs with the chosen subgradient, anything else as it is."""
        # inside a compiled function nothing can be counted, and its node is named out of reach
        if torch.compiler.is_compiling() or _serving.active:
            return func(*args, **kwargs)
        if self.recording:
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
        """Notes a comparison of something differentiable with a kink: an activation written out leaves no other trace."""
        x, *other = args
        if isinstance(x, Tensor) and x.requires_grad and torch.is_grad_enabled() and other:
            number = other[0].item() if isinstance(other[0], Tensor) and other[0].ndim == 0 else other[0]
            if isinstance(number, int | float) and number in (0, 6):
                node = f"comparison with {number:g}"
                self._compared.append(OutOfReach(self._functional(func), self._inner, node, custom=False))

    def _record(self, rule: Rule, x: Tensor, func: Any) -> None:
        if torch._C._are_functorch_transforms_active():  # in vmap: all members at once, which can be looked at
            while torch._C._functorch.is_functorch_wrapped_tensor(x):
                x = torch._C._functorch.get_unwrapped(x)
        values = x.detach()
        hits = tuple(_positions(values, at) for at in rule.kinks)
        module = self._model.get_submodule(self._inner)
        itself = self._path and isinstance(module, nn.ReLU | nn.ReLU6 | nn.LeakyReLU | nn.Hardtanh)
        site = (self._inner or type(self._model).__name__) if itself else self._functional(func)
        differentiated = x.requires_grad and torch.is_grad_enabled()
        self.calls.append(Call(self._numbered(site), self._inner, rule, tuple(x.shape), hits, differentiated))

    def out_of_reach(self, roots: Sequence[Tensor]) -> tuple[OutOfReach, ...]:
        """Every node with a kink below ``roots`` in the autograd graph that this interception does not serve."""
        found = list(self._compared)
        for node in nodes_below(root.grad_fn for root in roots):
            name = type(node).__name__
            custom = isinstance(node, torch.autograd.function.BackwardCFunction)
            if (custom or name.rstrip("0123456789") in _KINKED_NODES) and not functional.has_chosen_subgradient(node):
                site, module = self._origins.get(node, (f"somewhere in {type(self._model).__name__}", ""))
                found.append(OutOfReach(site, module, name, custom))
        return tuple(sorted(found, key=lambda item: (item.site, item.node)))


def _positions(x: Tensor, at: float) -> Tensor:
    """Where ``x`` equals ``at``: int64 [hits, dimensions]."""
    if x.device.type != "cpu" or x.ndim == 0:
        return (x == at).nonzero()
    found = positions_of(x, at)
    return torch.empty(0, x.ndim, dtype=torch.int64, device="cpu") if found is None else torch.stack(found, 1)


def nodes_below(nodes: Iterable[Any]) -> Iterator[Any]:
    """Every node of the autograd graph that is reached from some nodes (None: a tensor without one), these included."""
    seen: set[Any] = set()
    waiting = [node for node in nodes if node is not None]
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        yield node
        waiting.extend(following for following, _ in node.next_functions if following is not None)


def as_arguments(inputs: Tensor | Sequence[Any]) -> tuple[Any, ...]:
    """The positional arguments of a model for one mini-batch; a container in a sequence is one argument.

    Raises:
        ModelError: ``inputs`` is a mapping, or anything else that is neither a tensor nor a sequence.
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
    """Refuses a forward whose every activation call had an empty input: nothing can be at a kink.

    The shapes of the arguments cannot decide that: an empty edge list is legitimate beside nodes, and what is empty may
    lie in containers of any kind.

    Raises:
        ModelError: there are calls, and none had an element.
    """
    if calls and not any(call.elements for call in calls):
        raise ModelError(
            f"the mini-batch is empty: no activation call had an element (the first, {calls[0].site}, had shape "
            f"{calls[0].shape}), so no activation can be at a kink; pass a sample or more"
        )


def tensors_in(value: Any, _within: frozenset[int] = frozenset()) -> Iterator[Tensor]:
    """The tensors in what a model returned: a tensor, containers, dataclasses and plain objects of them."""
    if isinstance(value, Tensor):
        yield value
        return
    if isinstance(value, str | bytes | type | nn.Module) or callable(value) or id(value) in _within:
        return  # the last: an object that leads back to itself
    parts: Any = ()
    if isinstance(value, Mapping):
        parts = value.values()
    elif isinstance(value, list | tuple | set | frozenset):
        parts = value
    elif hasattr(value, "__dict__"):
        parts = vars(value).values()
    for part in parts:
        yield from tensors_in(part, _within | {id(value)})
