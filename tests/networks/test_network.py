"""Networks: what they are made of, their names, JSON and digests, and what cannot be built."""

from __future__ import annotations

import dataclasses
import json
import math
import pickle
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from relucheck.activations.modules import ChosenSubgradient, LeakyReLU, ReLU, ReLU6
from relucheck.errors import ModelError
from relucheck.networks import ACTIVATIONS, Network
from relucheck.networks import KINDS as network_kinds
from relucheck.networks.mobilenet import MOBILENET_V3_SMALL
from relucheck.networks.resnets import RESNET_18
from relucheck.numerics.arithmetic import Arithmetic
from relucheck.numerics.bits import same_bits
from relucheck.numerics.dtypes import DTYPES, dtype_name

#: (description, activations, linear layers and convolutions in the order of their initialisation).
NETWORKS = {
    "mlp": (Network("mlp", (5, 4), input_shape=(6,), classes=3), 2),
    "convnet": (Network("convnet", (5, 4), input_shape=(2, 5, 5), classes=3), 2),
    "residual": (Network("residual", (5, 5), input_shape=(2, 5, 5), classes=3), 5),
    "lenet": (Network("lenet", (3, 4, 6, 5), classes=3), 4),
    "lenet-pool-relu": (Network("lenet-pool-relu", (3, 4, 6, 5), classes=3), 4),
}
NORMED = ("mlp", "convnet", "residual")
#: Deep kinds with their activations; their layers are written down in test_resnets.py and test_mobilenet.py.
DEEP = {
    "resnet": (Network("resnet", (5, 5, 7), input_shape=(2, 6, 6), classes=3), 7),
    "resnet-convolved-skips": (Network("resnet-convolved-skips", (5, 5, 7), input_shape=(2, 6, 6), classes=3), 7),
    "resnet-convolved-skips-stem-only": (
        Network("resnet-convolved-skips-stem-only", (5, 5, 7), input_shape=(2, 6, 6), classes=3),
        1,
    ),
    "resnet-18": (Network("resnet-18", RESNET_18, batch_norm=True, input_shape=(2, 32, 32), classes=3), 17),
    "inverted-residual": (Network("inverted-residual", (5, 5, 7), batch_norm=True, input_shape=(1, 8, 8), classes=3), 7),
    "mobilenet-v3-small": (Network("mobilenet-v3-small", MOBILENET_V3_SMALL, batch_norm=True, classes=3), 14),
}


def layers_by_hand(kind: str, bias: bool) -> list[nn.Module]:
    """The layers with weights of each network of :data:`NETWORKS`, written down one by one."""

    def conv(before: int, after: int, size: int = 3) -> nn.Module:
        return nn.Conv2d(before, after, size, bias=bias)

    def linear(before: int, after: int) -> nn.Module:
        return nn.Linear(before, after, bias=bias)

    if kind == "mlp":
        return [linear(6, 5), linear(5, 4), linear(4, 3)]
    if kind == "convnet":
        return [conv(2, 5), conv(5, 4), linear(4, 3)]
    if kind == "residual":
        return [conv(2, 5), *(conv(5, 5) for _ in range(4)), linear(5, 3)]
    return [conv(1, 3, 5), conv(3, 4, 5), linear(100, 6), linear(6, 5), linear(5, 3)]


def weights(layers: Iterable[nn.Module]) -> list[Tensor]:
    kept = [layer for layer in layers if isinstance(layer, nn.Linear | nn.Conv2d)]
    return [value for layer in kept for value in (layer.weight, layer.bias) if value is not None]


def test_every_kind_is_tried() -> None:
    assert {*NETWORKS, *DEEP} == set(network_kinds)


@pytest.mark.parametrize("kind", [*NETWORKS, *DEEP])
def test_activations_are_made_in_the_order_of_the_forward(kind: str) -> None:
    network, activations = {**NETWORKS, **DEEP}[kind]
    made: list[nn.Module] = []
    called: list[nn.Module] = []

    def activation() -> nn.Module:
        made.append(ReLU())
        made[-1].register_forward_hook(lambda module, args, output: called.append(module))
        return made[-1]

    model = network.build(activation)
    assert model(torch.randn(2, *network.input_shape)).shape == (2, 3)
    assert len(made) == activations
    assert [id(module) for module in called] == [id(module) for module in made], "each once, in that order"
    assert [id(module) for module in model.modules() if isinstance(module, ReLU)] == [id(module) for module in made]


@pytest.mark.parametrize("kind", [*NETWORKS, *DEEP])
def test_networks_can_be_pickled(kind: str) -> None:
    """A class that is defined in a function cannot, so that a model could be neither saved nor sent to a process."""
    network, _ = {**NETWORKS, **DEEP}[kind]
    x = torch.randn(2, *network.input_shape)
    for arithmetic in ("float32", "bfloat16 emulated (rounded)"):
        model = network.draw(3, Arithmetic.parse(arithmetic)).eval()
        copied = pickle.loads(pickle.dumps(model))
        inputs = x.to(next(model.parameters()).dtype)
        assert torch.equal(copied(inputs), model(inputs))


@pytest.mark.parametrize("kind", DEEP)
def test_a_seed_gives_deep_networks_the_same_weights(kind: str) -> None:
    network, _ = DEEP[kind]
    before = torch.get_rng_state()
    one, same, other = (network.draw(seed, Arithmetic(torch.float32)).state_dict() for seed in (3, 3, 4))
    rounded = network.draw(3, Arithmetic(torch.bfloat16), activation=nn.Tanh).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    assert one.keys() == rounded.keys()
    assert all(torch.equal(value, same[name]) for name, value in one.items())
    assert all(torch.equal(value.to(rounded[name].dtype), rounded[name]) for name, value in one.items())
    assert any(not torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("kind", DEEP)
def test_deep_networks_round_trip(kind: str) -> None:
    network, _ = DEEP[kind]
    again = Network.from_json(json.loads(json.dumps(network.to_json())))
    assert again == network
    assert again.digest == network.digest


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_networks_are_what_they_say(kind: str, batch_norm: bool, bias: bool) -> None:
    network, activations = NETWORKS[kind]
    if batch_norm and kind not in NORMED:
        with pytest.raises(ModelError, match=f"batch_norm=True: {kind} has none"):
            dataclasses.replace(network, batch_norm=True)
        return
    network = dataclasses.replace(network, batch_norm=batch_norm, bias=bias, activation="relu6")
    made: list[nn.Module] = []

    def activation() -> nn.Module:
        made.append(ReLU6())
        return made[-1]

    model = network.build(activation)
    assert model(torch.randn(3, *network.input_shape)).shape == (3, 3)
    assert len(made) == len({id(module) for module in made}) == activations
    assert sum(isinstance(module, ReLU6) for module in model.modules()) == activations
    assert any(isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) for module in model.modules()) == batch_norm
    layers = [module for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    assert len(layers) == activations + 1
    assert all((layer.bias is not None) == bias for layer in layers)
    own = network.build()
    assert [type(m) for m in own.modules() if isinstance(m, ChosenSubgradient)] == [ReLU6] * activations
    assert network.kinks == (0.0, 6.0)


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_a_seed_gives_the_weights_that_layers_made_one_by_one_have(kind: str, bias: bool, dtype: torch.dtype) -> None:
    network = dataclasses.replace(NETWORKS[kind][0], bias=bias)
    for drawn in (None, torch.float32):
        before = torch.get_rng_state()
        model = network.draw(3, Arithmetic(dtype), drawn=drawn)
        assert torch.equal(torch.get_rng_state(), before)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            wide = torch.float64 if dtype == torch.float64 and drawn is None else torch.float32
            torch.set_default_dtype(wide)
            try:
                expected = layers_by_hand(kind, bias)
            finally:
                torch.set_default_dtype(torch.float32)
        found, wanted = weights(model.modules()), [value.to(dtype) for value in weights(expected)]
        assert all(same_bits(a, b, signed_zero=True) for a, b in zip(found, wanted, strict=True))
        other = weights(network.draw(4, Arithmetic(dtype), drawn=drawn).modules())
        assert not any(torch.equal(a, b) for a, b in zip(found, other, strict=True))


def test_weights_do_not_depend_on_activations_or_dropout() -> None:
    network = Network("mlp", (5, 4))
    plain = network.draw(3, Arithmetic(torch.float32))
    for other in (
        network.draw(3, Arithmetic(torch.float32), activation=nn.Tanh),
        dataclasses.replace(network, dropout=0.5).draw(3, Arithmetic(torch.float32)),
        dataclasses.replace(network, activation="leaky_relu", negative_slope=0.25).draw(3, Arithmetic(torch.float32)),
    ):
        assert all(torch.equal(a, b) for a, b in zip(weights(plain.modules()), weights(other.modules()), strict=True))


def test_dropout_stands_behind_every_activation() -> None:
    for kind in NORMED:
        network, activations = NETWORKS[kind]
        made: list[float] = []

        def dropout(probability: float, made: list[float] = made) -> nn.Module:
            made.append(probability)
            return nn.Dropout(probability)

        model = dataclasses.replace(network, dropout=0.25).build(dropout=dropout)
        assert made == [0.25] * activations
        behind = [m for m in model.modules() if isinstance(m, nn.Sequential) and isinstance(m[-1], nn.Dropout)]
        assert [type(module[0]) for module in behind] == [ReLU] * activations


def test_the_slope_is_the_descriptions() -> None:
    model = Network("mlp", (5, 4), "leaky_relu", negative_slope=0.25).build()
    assert [m.negative_slope for m in model.modules() if isinstance(m, LeakyReLU)] == [0.25, 0.25]


def test_an_mlp_flattens() -> None:
    network = Network("mlp", (200, 200, 200))
    assert network.input_shape == (784,)
    assert network == Network("mlp", [200, 200, 200], input_shape=[784])  # type: ignore[arg-type]
    model, x = network.build(), torch.randn(2, 1, 28, 28)
    assert torch.equal(model(x), model(x.flatten(1)))


def test_a_residual_block_adds_what_it_is_given() -> None:
    model = Network("residual", (2,)).build(nn.Identity)
    block = model.blocks[0]
    for parameter in block.parameters():
        nn.init.zeros_(parameter)
    x = torch.randn(1, 2, 4, 4)
    assert torch.equal(block(x), x)


def test_names() -> None:
    assert Network("mlp", (200, 200, 200)).name == "784-200-200-200-10"
    assert str(Network("mlp", (200, 200, 200))) == "784-200-200-200-10"
    small = Network("convnet", (8, 4), "leaky_relu", True, 0.1, False, 0.25, (3, 5, 5), 2)
    assert small.name == "convnet 3x5x5-8-4-2"
    assert small.traits == ("leaky_relu 0.25", "batch norm", "dropout 0.1", "no bias")
    assert str(small) == "convnet 3x5x5-8-4-2 (leaky_relu 0.25, batch norm, dropout 0.1, no bias)"


@st.composite
def descriptions(draw: st.DrawFn) -> Network:
    kind, activation = draw(st.sampled_from(NORMED)), draw(st.sampled_from(sorted(ACTIVATIONS)))
    size = st.integers(1, 9)
    widths = draw(st.lists(size, min_size=1, max_size=4))
    return Network(
        kind,
        (widths[0],) * len(widths) if kind == "residual" else tuple(widths),
        activation,  # type: ignore[arg-type]
        draw(st.booleans()),
        draw(st.floats(0, 0.9)),
        draw(st.booleans()),
        draw(st.floats(-1, 1)) if activation == "leaky_relu" else 0.01,
        draw(st.tuples(size, size, size)),
        draw(size),
    )


@given(descriptions())
def test_json_and_digest_keep_all_of_it(network: Network) -> None:
    again = Network.from_json(json.loads(json.dumps(network.to_json())))
    assert again == network
    assert hash(again) == hash(network)
    assert again.digest == network.digest
    assert eval(repr(network)) == network  # examples print as code


@given(descriptions(), descriptions())
def test_other_networks_have_other_digests(network: Network, other: Network) -> None:
    for field in dataclasses.fields(Network):
        value = getattr(other, field.name)
        try:
            changed = dataclasses.replace(network, **{field.name: value})
        except ModelError:
            continue  # a part of another kind
        assert (changed.digest == network.digest) == (changed == network)


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Network)])
def test_the_digest_depends_on_every_field(field: str) -> None:
    network = Network("convnet", (8, 8), "leaky_relu")
    changes = {"kind": "residual", "widths": (8,), "activation": "relu", "batch_norm": True, "dropout": 0.1, "bias": False}
    changes |= {"negative_slope": 0.25, "input_shape": (3, 28, 28), "classes": 9}
    assert dataclasses.replace(network, **{field: changes[field]}).digest != network.digest


def test_the_digest_is_stable() -> None:
    digest = "cd3cd175119b71ddea2a2cc0d9686f35642bd5de708c6f309ae8a47891729ee2"
    assert Network("mlp", (200, 200, 200)).digest == Network("mlp", [200] * 3, dropout=0).digest == digest  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "mpl"}, "kind='mpl': did you mean 'mlp'"),
        ({"widths": 5}, r"widths=5: must be a list or tuple, for example \(200, 200, 200\)"),
        ({"widths": ()}, r"widths=\(\): at least one hidden layer"),
        *(
            ({"widths": (3, value)}, f"widths={value!r}: must be a whole number of at least 1")
            for value in (0, 1.5, True, "3")
        ),
        ({"input_shape": 784}, r"input_shape=784: must be a list or tuple"),
        ({"input_shape": (0,)}, "input_shape=0: must be a whole number"),
        ({"classes": 0}, "classes=0: must be a whole number of at least 1"),
        ({"activation": "ReLU"}, "activation='ReLU': did you mean 'relu'"),
        ({"batch_norm": "no"}, "batch_norm='no': must be True or False"),
        ({"bias": 1}, "bias=1: must be True or False"),
        ({"dropout": -0.1}, "dropout=-0.1: must be a finite number"),
        ({"dropout": 1}, "dropout=1: must be less than 1"),
        ({"negative_slope": 0.25}, "negative_slope=0.25 with relu: only leaky_relu has one"),
        ({"activation": "leaky_relu", "negative_slope": math.nan}, "negative_slope=nan: must be a finite number"),
        ({"kind": "convnet", "input_shape": (784,)}, r"input_shape=\(784,\): convnet takes images"),
        ({"kind": "residual", "widths": (8, 16)}, r"widths=\(8, 16\): the blocks of a residual network add.*\(8, 8\)"),
        ({"kind": "lenet"}, "widths=.*lenet needs the channels of two convolutions"),
        ({"kind": "lenet", "widths": (1, 1, 1, 1), "input_shape": (3, 32, 32)}, "takes only \\(1, 28, 28\\)"),
        ({"kind": "lenet", "widths": (1, 1, 1, 1), "dropout": 0.5}, "dropout=0.5: lenet has none"),
    ],
    ids=str,
)
def test_what_cannot_be_built_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        Network(**{"kind": "mlp", "widths": (5,), **change})


def test_json_of_something_else_is_refused() -> None:
    content = Network("mlp", (5,)).to_json()
    for wrong in ({}, {**content, "depth": 1}, {k: v for k, v in content.items() if k != "bias"}, [1], "mlp"):
        with pytest.raises(ModelError, match=r"network: .* pass what Network\.to_json wrote"):
            Network.from_json(wrong)  # type: ignore[arg-type]


def test_the_sign_of_zero_changes_no_digest() -> None:
    for field, activation in (("dropout", "relu"), ("negative_slope", "leaky_relu")):
        every = [Network("mlp", (4,), activation=activation, **{field: zero}) for zero in (0.0, -0.0, 0)]  # type: ignore[arg-type]
        assert len({network.digest for network in every}) == len(set(every)) == 1


def test_mixed_precision_is_not_drawn() -> None:
    with pytest.raises(ModelError, match="arithmetic 'mixed bfloat16': mixed precision is autocast around a model"):
        Network("mlp", (4,)).draw(0, Arithmetic.parse("mixed bfloat16"))


@pytest.mark.parametrize("seed", [-1, 0.5, True])
def test_a_seed_is_a_whole_number(seed: Any) -> None:
    with pytest.raises(ModelError, match="seed"):
        Network("mlp", (5,)).draw(seed, Arithmetic(torch.float32))
