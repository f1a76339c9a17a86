"""Record the activation calls of a model and choose their subgradient, without changing it.

While an ``Interception`` is active, all calls of ``F.relu``, ``torch.relu``, ``Tensor.relu_``, ``F.relu6``,
``F.leaky_relu``, ``F.hardtanh(x, 0, 6)`` and relucheck's functions by the model run with the chosen subgradient. Other
torch functions with kinks and custom autograd Functions are out of reach. They are named from the autograd graph. An
activation written out (``x * (x > 0)``, ``torch.where(x > 0, x, 0)``) leaves no such node in the graph. It is recognised by
its values.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from relucheck.activations import functional
from relucheck.activations.rules import LEAKY_RELU, RELU, RELU6, ModelSubgradient, Rule, as_subgradient
from relucheck.bifurcation.forward.arguments import is_traced, refuse_nested, refuse_traced, refuse_unseen, tensors_in
from relucheck.bifurcation.forward.calls import plain, tensors_of
from relucheck.bifurcation.forward.names import may_change
from relucheck.bifurcation.forward.nodes import has_kink, is_activation
from relucheck.bifurcation.forward.trace import Trace
from relucheck.bifurcation.forward.written_out import UNEXAMINED, hides, written_out
from relucheck.bifurcation.gradients import ENGINE, is_custom, nodes_below
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
        node: the name of its autograd node; for an activation written out, its kind, as in "ReLU written out".
        custom: whether it is a ``torch.autograd.Function`` outside of torch and relucheck.
    """

    site: str
    module: str
    node: str
    custom: bool

    def __str__(self) -> str:
        return f"{self.site} ({self.node})"


def listed(items: Sequence[OutOfReach]) -> str:
    """The end of a message that names what is out of reach; "" if nothing is."""
    return "; out of reach: " + ", ".join(map(str, items)) if items else ""


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
        tracing: whether calls are kept that may be an activation written out; ``out_of_reach`` needs them.

    Attributes:
        calls: every activation call so far, in order.
        recording: whether calls are recorded. Set it to False before a backward, which may recompute checkpointed forwards.
        changing: is called with tensors that a call may change in place, before it runs; None at first.
        derives: whether derivatives were computed while calls were recorded, so that values may depend on the subgradient.

    Raises:
        ModelError: for a compiled or scripted model, whose calls cannot be seen, and for a model on the meta device.
    """

    def __init__(self, model: nn.Module, device: torch.device, *, tracing: bool = False) -> None:
        refuse_unseen(model, device)
        self.calls: list[Call] = []
        self.recording = True
        self.changing: Callable[[Tensor], None] | None = None
        self.derives = False
        self._model = model
        self._path: list[str] = []
        self._counts: dict[str, int] = {}
        self._trace = Trace() if tracing else None
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
            tensors = list(tensors_in(output))
            self._claim(tensors, name or type(module).__name__, name)
            if self._trace is not None and self.recording:
                self._trace.meet(tensors)

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
        if is_traced(args):
            if func in _PARSERS:
                refuse_traced()
            return func(*args, **kwargs)
        refuse_nested(args)
        if self.changing is not None and may_change(func, kwargs):
            for tensor in tensors_of((args[:1], kwargs.get("out"))):
                self.changing(plain(tensor))
        if self.recording:
            self.derives = self.derives or func in ENGINE or func is torch._VF._make_dual
            self._claim(args, self._inner or type(self._model).__name__, self._inner)
        if func in ENGINE:
            return self._derive(func, args, kwargs)
        parser = _PARSERS.get(func)
        parsed = parser(*args, **kwargs) if parser is not None else None
        if parsed is None or not parsed[1].is_floating_point():
            trace = self._trace if self.recording else None
            noted = trace.before(func, args, kwargs) if trace is not None else None
            result = func(*args, **kwargs)
            refuse_nested((result,))
            if self.recording:
                parts = result if isinstance(result, list | tuple) else [result]
                self._claim(parts, self._functional(func), self._inner)
            if trace is not None and noted is not None:
                trace.after(noted, func, (args, kwargs), result, (self._functional(func), self._inner))
            return result
        rule, x, slope, inplace = parsed
        if self.recording:
            self._record(rule, x, func)
        trace = self._trace if self.recording else None
        noted = trace.before(func, args, kwargs) if trace is not None else None
        _serving.active = True
        try:
            if rule is RELU6:
                result = functional.relu6(x, self._lower, self._upper, inplace)
            elif rule is LEAKY_RELU:
                result = functional.leaky_relu(x, self._lower, slope, inplace)
            else:
                result = functional.relu(x, self._lower, inplace)
        finally:
            _serving.active = False
        if trace is not None:
            trace.after(noted, func, (args, kwargs), result, (self._functional(func), self._inner), served=True)
        return result

    def _derive(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run the engine with the mode on: a part that it recomputes must compute what it has computed before."""
        recording, self.recording = self.recording, False
        try:
            with self._mode:
                return ENGINE[func](*args, **kwargs)
        finally:
            self.recording = recording

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

    def enter(self, inputs: Any) -> None:
        """Take the tensors in the arguments of a call of the model for its inputs."""
        refuse_nested(tensors_in(inputs))
        if self._trace is not None:
            self._trace.enter(tensors_in(inputs))

    def _origin(self, node: Any) -> tuple[str, str]:
        return self._origins.get(node, (f"somewhere in {type(self._model).__name__}", ""))

    def out_of_reach(self, roots: Sequence[Tensor]) -> tuple[OutOfReach, ...]:
        """List the functions with kinks in the graph below ``roots`` that are out of reach."""
        assert self._trace is not None
        nodes = set(nodes_below(root.grad_fn for root in roots))
        known = {node for node in nodes if is_custom(node) or has_kink(node)}
        unreached = [OutOfReach(*self._origin(node), type(node).__name__, is_custom(node)) for node in known]
        for found in written_out(self._trace, nodes, kinks=True):
            if not any(value.node in known for value in found.inside):  # else a node names it already
                kind = found.kind if found.kind == UNEXAMINED else f"{found.kind} written out"
                unreached.append(OutOfReach(found.site, found.module, kind, custom=False))
        return tuple(sorted(unreached, key=lambda item: (item.site, item.node)))

    def disguised(self, roots: Sequence[Tensor]) -> tuple[OutOfReach, ...]:
        """List the activations in the graph below ``roots`` that are no served calls.

        They are calls that compute ReLU, ReLU6 or a leaky ReLU; torch's own activations inside of other functions, such as
        ``nn.RNN``; and custom Functions that hide one, or whose calls are not known.
        """
        assert self._trace is not None
        self._trace.meet(roots)
        nodes = set(nodes_below(root.grad_fn for root in roots))
        named: set[Any] = set()
        disguised = []
        for found in written_out(self._trace, nodes):
            named |= {value.node for value in found.inside}
            site, kind = (found.site, found.module), found.kind
            custom = is_custom(found.value.node)
            if custom:
                site, kind = self._origin(found.value.node), f"{kind} in {type(found.value.node).__name__}"
            disguised.append(OutOfReach(*site, kind, custom))
        for node in nodes - named:
            if is_activation(node) or (is_custom(node) and hides(self._trace, node)):
                disguised.append(OutOfReach(*self._origin(node), type(node).__name__, is_custom(node)))
        return tuple(sorted(disguised, key=lambda item: (item.site, item.node)))


def _positions(x: Tensor, at: float) -> Tensor:
    """Where ``x`` equals ``at``: int64 [hits, dimensions of x]."""
    if x.device.type != "cpu" or x.ndim == 0:
        return (x == at).nonzero()
    coordinates = positions_of(x, at)
    return torch.empty(0, x.ndim, dtype=torch.int64, device="cpu") if coordinates is None else torch.stack(coordinates, 1)
