"""Where the kinks of a network are, and what computes the inputs of its activations.

All of it is read from a symbolic trace of the network, so it holds for every kind in ``KINDS``.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Mapping
from typing import Any, Final

import torch
import torch.fx
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from relucheck.activations.pooling import MaxPool2d
from relucheck.errors import ModelError
from relucheck.networks.network import ACTIVATIONS, Network

BATCH_NORM: Final = "batch norm"
RESIDUAL_SUM: Final = "residual sum"
CONVOLUTION: Final = "convolution"
LINEAR: Final = "linear layer"
#: What computes the input of an activation, by the module.
_LAYERS: Final[tuple[tuple[type[nn.Module] | tuple[type[nn.Module], ...], str], ...]] = (
    (_BatchNorm, BATCH_NORM),
    (nn.Conv2d, CONVOLUTION),
    (nn.Linear, LINEAR),
    ((MaxPool2d, nn.MaxPool2d), "max pooling"),
)
_ADDITIONS: Final = (operator.add, operator.iadd, torch.add, "add", "add_")
#: Modules that hand on the values of their input.
_PASSING: Final = (nn.Identity, nn.Flatten, nn.Dropout)
_POOLINGS: Final = (MaxPool2d, nn.MaxPool2d)
#: The kinks of torch's activations. Hardswish has the one-sided derivatives 0 and -1/2 at -3, and 3/2 and 1 at 3.
_KINKS: Final[Mapping[type[nn.Module], tuple[float, ...]]] = {
    nn.ReLU: ACTIVATIONS["relu"].rule.kinks,
    nn.ReLU6: ACTIVATIONS["relu6"].rule.kinks,
    nn.LeakyReLU: ACTIVATIONS["leaky_relu"].rule.kinks,
    nn.Hardswish: (-3.0, 3.0),
    nn.Hardsigmoid: (-3.0, 3.0),
}


@dataclasses.dataclass(frozen=True)
class Site:
    """An activation or a max pooling of a network: a place where hits or ties can occur.

    Attributes:
        module: the name of its module in the network.
        activation: the name of its class, for example "ReLU6", "Hardswish" or "MaxPool2d".
        kinks: the positions of its kinks; empty for max pooling, which has ties.
        before: what computes its input: "batch norm", "residual sum", "convolution", "linear layer", "max pooling" or
            "activation".
        depth: the number of convolutions and linear layers before it, along the longest path from the network's input.
        chosen: whether the network's factory makes it. A chosen subgradient reaches these activations and no others.
    """

    module: str
    activation: str
    kinks: tuple[float, ...]
    before: str
    depth: int
    chosen: bool

    @property
    def kinds(self) -> tuple[str, ...]:
        """What can occur here, in words: "at 0" and so on for each kink, or "ties"."""
        return tuple(f"at {kink:g}" for kink in self.kinks) or ("ties",)


@functools.cache
def sites(network: Network) -> tuple[Site, ...]:
    """Every activation with kinks and every max pooling of a network.

    They are in the order of the network's modules. The network is built without memory for its parameters, so this takes
    less than a second.

    Raises:
        ModelError: something computes the input of an activation that has no name here.
        MissingExtraError: the network is one of torchvision's, which is not installed.
    """
    made: list[nn.Module] = []

    def activation() -> nn.Module:
        made.append(network.activation_module())
        return made[-1]

    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        model = network.build(activation)
    return tuple(
        site_of(node, model, chosen=any(model.get_submodule(str(node.target)) is one for one in made))
        for node in nodes(graph(model), model)
    )


def chosen(network: Network) -> tuple[Site, ...]:
    """The activations of a network that a chosen subgradient reaches.

    They are in the order in which training counts their hits.
    """
    return tuple(site for site in sites(network) if site.chosen)


def unreached(network: Network) -> tuple[Site, ...]:
    """The activations and max poolings of a network that no chosen subgradient reaches.

    They have torch's gradient at every hit and tie. They are in the order in which training counts those.
    """
    return tuple(site for site in sites(network) if not site.chosen)


class _Tracer(torch.fx.Tracer):
    """Traces into every module that has children, torch's and relucheck's alike."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return next(m.children(), None) is None


def graph(model: nn.Module) -> torch.fx.Graph:
    """A symbolic trace of a model, in which every call of a module without children is one node."""
    return _Tracer().trace(model)


def nodes(graph: torch.fx.Graph, model: nn.Module) -> list[torch.fx.Node]:
    """The first call of each activation with kinks and each max pooling of a model.

    They are in the order of the model's modules.

    Args:
        graph: of the model.
        model: what ``Network.build`` returns.
    """
    found: dict[str, torch.fx.Node] = {}
    for node in graph.nodes:
        if node.op == "call_module" and _kinks(model.get_submodule(node.target)) is not None:
            found.setdefault(node.target, node)
    return [found[name] for name, _ in model.named_modules() if name in found]


def site_of(node: torch.fx.Node, model: nn.Module, *, chosen: bool) -> Site:
    """Describe the activation or max pooling of a node.

    Args:
        node: one of ``nodes``.
        model: the model that was traced.
        chosen: as in ``Site``.

    Raises:
        ModelError: something computes the input that has no name here.
    """
    name = str(node.target)
    module, before = model.get_submodule(name), _before(source(node, model), model)
    if before is None:
        raise ModelError(
            f"{type(model).__name__}: {source(node, model).target!r} computes the input of {name}; add a name for it to "
            "relucheck.networks.sites"
        )
    return Site(name, type(module).__name__, _kinks(module) or (), before, _depth(node, model, {}), chosen)


def source(node: torch.fx.Node, model: nn.Module) -> torch.fx.Node:
    """The node that computes the first argument of a node.

    Modules that hand on their input are passed over.
    """
    before = _argument(node)
    while before.op == "call_module" and isinstance(model.get_submodule(str(before.target)), _PASSING):
        before = _argument(before)
    return before


def summands(node: torch.fx.Node) -> tuple[torch.fx.Node, ...]:
    """The two nodes that a residual sum adds; empty for a node that is no sum of two."""
    if node.op in ("call_function", "call_method") and node.target in _ADDITIONS:
        return tuple(one for one in node.args if isinstance(one, torch.fx.Node))
    return ()


def _argument(node: torch.fx.Node) -> torch.fx.Node:
    first = node.args[0]
    assert isinstance(first, torch.fx.Node)
    return first


def _kinks(module: nn.Module) -> tuple[float, ...] | None:
    """The kinks of a module; () for max pooling, None for one without kinks."""
    rule: Any = getattr(module, "rule", None)
    if rule is not None:
        return tuple(rule.kinks)
    return () if isinstance(module, _POOLINGS) else _KINKS.get(type(module))


def _before(node: torch.fx.Node, model: nn.Module) -> str | None:
    if len(summands(node)) == 2:
        return RESIDUAL_SUM
    if node.op != "call_module":
        return None
    module = model.get_submodule(str(node.target))
    if _kinks(module):
        return "activation"
    return next((name for kind, name in _LAYERS if isinstance(module, kind)), None)


def _depth(node: torch.fx.Node, model: nn.Module, known: dict[torch.fx.Node, int]) -> int:
    """The number of products on the longest path to a node, the node itself included."""
    if node not in known:
        module = model.get_submodule(str(node.target)) if node.op == "call_module" else None
        deepest = max((_depth(one, model, known) for one in node.all_input_nodes), default=0)
        known[node] = deepest + isinstance(module, nn.Conv2d | nn.Linear)
    return known[node]
