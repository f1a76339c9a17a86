"""Where kinks are, for every kind of network: as derived by hand, and in the order in which training counts."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from relucheck.activations.modules import ReLU
from relucheck.errors import ModelError
from relucheck.networks import KINDS, Network
from relucheck.networks import sites as networks_sites
from relucheck.networks.mobilenet import MOBILENET_V3_SMALL
from relucheck.networks.resnets import RESNET_18, RESNET_20
from relucheck.networks.sites import Site, chosen, graph, nodes, sites
from relucheck.training.members import members_of
from relucheck.training.model import Clock, Switch, build, layers
from relucheck.training.settings import Settings

#: (activation, what is before it, depth, whether it is chosen) of each site, written down from the papers and the code.
_Row = tuple[str, str, int, bool]
NORM, SUM, CONV, LINEAR = "batch norm", "residual sum", "convolution", "linear layer"


def _residual(stem: str, inner: str, blocks: int, reached: bool = True) -> list[_Row]:
    """A stem, then blocks with an activation in the branch and one behind the sum."""
    rows: list[_Row] = [("ReLU", stem, 1, True)]
    for block in range(blocks):
        rows += [("ReLU", inner, 2 * block + 2, reached), ("ReLU", SUM, 2 * block + 3, reached)]
    return rows


def _inverted(wide: str, depth: int, expands: bool, squeezes: bool) -> tuple[list[_Row], int]:
    """An inverted residual block: its sites, and the depth after its last convolution."""
    rows: list[_Row] = []
    for _ in range(1 + expands):  # the 1x1 convolution that expands, and the depthwise one
        depth += 1
        rows.append((wide, NORM, depth, wide == "ReLU6"))
    if squeezes:
        rows += [("ReLU6", CONV, depth + 1, True), ("Hardsigmoid", CONV, depth + 2, False)]
        depth += 2
    return rows, depth + 1


def _mobilenet(rows: Sequence[tuple[str, bool, bool]]) -> list[_Row]:
    found, depth = [("Hardswish", NORM, 1, False)], 1
    for row in rows:
        more, depth = _inverted(row[0], depth, row[1], row[2])
        found += more
    return [*found, ("Hardswish", NORM, depth + 1, False), ("Hardswish", LINEAR, depth + 2, False)]


#: Of table 2 of Howard et al. 2019: each block's activation, whether it expands, whether it has squeeze and excitation.
_SMALL = [("ReLU6", False, True), ("ReLU6", True, False), ("ReLU6", True, False), *[("Hardswish", True, True)] * 8]
_PLAIN = [("ReLU", LINEAR, depth, True) for depth in (1, 2, 3)]
_MOBILE: dict[str, Any] = {"activation": "relu6", "batch_norm": True, "dropout": 0.2}

EXPECTED: dict[str, tuple[Network, list[_Row]]] = {
    "mlp": (Network("mlp", (5, 4, 3)), _PLAIN),
    "convnet": (Network("convnet", (5, 4), batch_norm=True), [("ReLU", NORM, 1, True), ("ReLU", NORM, 2, True)]),
    "residual": (Network("residual", (3, 3), batch_norm=True), _residual(CONV, NORM, 2)),
    "lenet": (
        Network("lenet", (3, 4, 6, 5)),
        [
            *(("ReLU", CONV, 1, True), ("MaxPool2d", "activation", 1, False)),
            *(("ReLU", CONV, 2, True), ("MaxPool2d", "activation", 2, False)),
            *(("ReLU", LINEAR, 3, True), ("ReLU", LINEAR, 4, True)),
        ],
    ),
    "lenet-pool-relu": (
        Network("lenet-pool-relu", (3, 4, 6, 5)),
        [
            *(("ReLU", "max pooling", 1, True), ("MaxPool2d", CONV, 1, False)),
            *(("ReLU", "max pooling", 2, True), ("MaxPool2d", CONV, 2, False)),
            *(("ReLU", LINEAR, 3, True), ("ReLU", LINEAR, 4, True)),
        ],
    ),
    "resnet": (Network("resnet", (3, 5)), _residual(CONV, CONV, 2)),
    "resnet-convolved-skips": (
        Network("resnet-convolved-skips", RESNET_20, batch_norm=True),
        _residual(NORM, NORM, 9),
    ),
    "resnet-convolved-skips-stem-only": (
        Network("resnet-convolved-skips-stem-only", (3, 5), batch_norm=True),
        _residual(NORM, NORM, 2, reached=False),
    ),
    "resnet-18": (
        Network("resnet-18", RESNET_18, batch_norm=True),
        [("ReLU", NORM, 1, True), ("MaxPool2d", "activation", 1, False), *_residual(NORM, NORM, 8)[1:]],
    ),
    "mobilenet-v3-small": (Network("mobilenet-v3-small", MOBILENET_V3_SMALL, **_MOBILE), _mobilenet(_SMALL)),
    "inverted-residual": (
        Network("inverted-residual", (3, 3), **_MOBILE),
        _mobilenet([("ReLU6", True, True), ("Hardswish", True, True)]),
    ),
}


def _rows(found: Sequence[Site]) -> list[_Row]:
    return [(site.activation, site.before, site.depth, site.chosen) for site in found]


def test_every_kind_is_tried() -> None:
    assert set(EXPECTED) == set(KINDS)


@pytest.mark.parametrize("kind", EXPECTED)
def test_sites_are_those_of_the_architecture(kind: str) -> None:
    network, expected = EXPECTED[kind]
    state = torch.get_rng_state()
    assert _rows(sites(network)) == expected
    assert torch.equal(torch.get_rng_state(), state)
    for site in sites(network):
        kinks = {"ReLU": (0.0,), "ReLU6": (0.0, 6.0), "MaxPool2d": ()}.get(site.activation, (-3.0, 3.0))
        assert site.kinks == kinks
        assert site.kinds == (tuple(f"at {kink:g}" for kink in kinks) or ("ties",))


@pytest.mark.parametrize("kind", EXPECTED)
def test_chosen_sites_are_in_the_order_in_which_training_counts(kind: str) -> None:
    network = EXPECTED[kind][0]
    model = build(Settings("mnist", network, members_of((0,), (1.0,))), 0, Clock(0), Switch())
    names = {id(module): name for name, module in model.named_modules()}
    assert [site.module for site in chosen(network)] == [names[id(module)] for module in layers(model)]


def test_dropout_and_missing_norms_change_no_site() -> None:
    network = EXPECTED["resnet"][0]
    assert _rows(sites(dataclasses.replace(network, dropout=0.5))) == EXPECTED["resnet"][1]
    assert _rows(sites(dataclasses.replace(network, batch_norm=True))) == _residual(NORM, NORM, 2)
    leaky = dataclasses.replace(EXPECTED["mlp"][0], activation="leaky_relu", batch_norm=True, dropout=0.5)
    assert _rows(sites(leaky)) == [("LeakyReLU", NORM, depth, True) for depth in (1, 2, 3)]


class _Swapped(nn.Module):
    """Registers its second activation first."""

    def __init__(self) -> None:
        super().__init__()
        self.second, self.first = ReLU(), ReLU()
        self.layer = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(x + self.first(self.layer(x)))


def test_the_order_is_that_of_modules_and_not_that_of_the_forward() -> None:
    model = _Swapped()
    assert [node.target for node in nodes(graph(model), model)] == ["second", "first"]


def test_what_has_no_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seeded faults: sums that are not recognised, and a module that is not looked through."""
    uncached = sites.__wrapped__
    with monkeypatch.context() as patched:
        patched.setattr(networks_sites, "_ADDITIONS", ())
        with pytest.raises(ModelError, match=r"computes the input of blocks\.0\.activation2; add a name for it"):
            uncached(EXPECTED["resnet"][0])
    monkeypatch.setattr(networks_sites, "_PASSING", ())
    with pytest.raises(ModelError, match="'norm' computes the input of activation; add a name"):
        uncached(EXPECTED["resnet"][0])
