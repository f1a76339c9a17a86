"""The networks, and setting the subgradient of any model."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from relucheck.activations.modules import ChosenSubgradient, LeakyReLU, ReLU, ReLU6
from relucheck.activations.rules import SubgradientError
from relucheck.bifurcation.subgradient import Reached, set_subgradient
from relucheck.errors import ModelError
from relucheck.networks import ACTIVATIONS, Network
from relucheck.networks import KINDS as network_kinds
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
    assert set(NETWORKS) == set(network_kinds)


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
        ({"kind": "lenet"}, "widths=.*lenet has channels of two convolutions"),
        ({"kind": "lenet", "widths": (1, 1, 1, 1), "input_shape": (3, 32, 32)}, "takes \\(1, 28, 28\\) only"),
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


def mixed() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Sequential(nn.ReLU6(), nn.LeakyReLU(0.25)), ReLU(0.5), LeakyReLU())


def check_reaches_all(setter: Callable[[nn.Module, float], Any], model: nn.Module) -> None:
    """After setting, the gradient of every activation at 0 is the subgradient times the cotangent."""
    setter(model, 0.75)
    for name, module in model.named_modules():
        if isinstance(module, nn.ReLU | nn.ReLU6 | nn.LeakyReLU):
            x = torch.zeros(2, requires_grad=True)
            (gradient,) = torch.autograd.grad(module(x + 0), x, torch.tensor([3.0, -5.0]))
            assert gradient.tolist() == [2.25, -3.75], name


def test_every_activation_is_reached() -> None:
    check_reaches_all(set_subgradient, mixed())
    check_reaches_all(set_subgradient, torchvision.models.mobilenet_v3_small(num_classes=3))


def test_the_check_fails_when_one_is_missed() -> None:
    with pytest.raises(AssertionError, match=r"2\.0"):
        check_reaches_all(lambda model, value: set_subgradient(model[1], value), mixed())


def test_names_are_reported() -> None:
    model = mixed()
    reached = set_subgradient(model, 0.5)
    assert reached == Reached(("1", "2.0", "2.1"), ("3", "4"))
    assert len(reached) == 5
    assert set_subgradient(model, 0.5) == Reached((), ("1", "2.0", "2.1", "3", "4"))
    assert set_subgradient(nn.ReLU(), 1.0) == Reached(("",), ())


def test_plain_modules_change_in_place() -> None:
    relu = nn.ReLU(inplace=True)
    elsewhere = [relu]
    calls: list[int] = []
    relu.register_forward_hook(lambda *args: calls.append(1))
    model = nn.Sequential(nn.Linear(4, 4), relu, nn.Linear(4, 4), relu).eval()
    state = copy.deepcopy(model.state_dict())
    x = torch.randn(2, 4)
    before = model(x)
    reached = set_subgradient(model, 0.5)
    assert reached.replaced == ("1",), "shared modules count once"
    assert model[1] is model[3] is elsewhere[0] is relu
    assert isinstance(relu, ReLU)
    assert relu.subgradient == 0.5
    assert relu.inplace
    assert not relu.training
    assert torch.equal(model(x), before)
    assert calls == [1] * 4
    assert state.keys() == model.state_dict().keys()
    assert copy.deepcopy(model)[1].subgradient == 0.5


def test_pairs_none_and_members() -> None:
    model = mixed()
    set_subgradient(model, (0.25, 0.75))
    assert (model[1].subgradient, model[2][0].alpha, model[2][0].beta, model[2][1].subgradient) == (0.25, 0.25, 0.75, 0.25)
    set_subgradient(model, (None, 1.0))
    assert (model[1].subgradient, model[2][0].alpha, model[2][0].beta, model[2][1].subgradient) == (0.0, 0.0, 1.0, None)
    assert model[2][1].negative_slope == 0.25
    set_subgradient(model, None)
    assert (model[2][0].alpha, model[2][0].beta, model[4].subgradient) == (0.0, 0.0, None)
    members = torch.tensor([[0.0], [1.0]])
    set_subgradient(model, members)
    assert all(torch.equal(value, members) for value in (model[1].subgradient, model[2][0].beta, model[4].subgradient))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (float("nan"), "finite real number"),
        (float("inf"), "finite real number"),
        ("half", "finite real number"),
        ([0.5, 0.5], "finite real number"),
        (True, "finite real number"),
        ((0.5, float("nan")), "finite real number"),
        ((0.5,), "pass one value or a pair"),
        ((0.0, 0.5, 1.0), "pass one value or a pair"),
    ],
    ids=str,
)
def test_a_wrong_value_changes_nothing(value: Any, message: str) -> None:
    model = mixed()
    with pytest.raises(SubgradientError, match=message):
        set_subgradient(model, value)
    assert type(model[1]) is nn.ReLU
    assert model[3].subgradient == 0.5


class OtherReLU(nn.ReLU):
    """Somebody's own: nothing says that it would take a setting."""


@pytest.mark.parametrize("model", [nn.Linear(2, 2), nn.Sequential(nn.Tanh()), nn.Hardtanh(0, 6), OtherReLU()], ids=repr)
def test_a_model_without_an_activation_is_refused(model: nn.Module) -> None:
    with pytest.raises(ModelError) as error:
        set_subgradient(model, 0.5)
    for part in (type(model).__name__, "nn.ReLU6", "nothing to set", "relucheck.bifurcation.compare"):
        assert part in str(error.value)


def test_a_meta_model_keeps_values() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    set_subgradient(model, 0.5)
    assert model[1].subgradient == 0.5
    assert isinstance(model[1], ChosenSubgradient)
    assert isinstance(model(torch.empty(1, 2, device="meta")), Tensor)


def test_subclasses_are_left_out_and_named() -> None:
    class Shifted(nn.ReLU):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input - 1)

    reached = set_subgradient(nn.Sequential(nn.ReLU(), nn.Sequential(Shifted())), 0.5)
    assert (reached.replaced, reached.left_out) == (("0",), ("1.0",))
