"""The zone engine decides as the plain two-network method does: same outcome, same mini-batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from relucheck import data
from relucheck.activations.modules import ChosenSubgradient, LeakyReLU, ReLU
from relucheck.bifurcation import compare
from relucheck.bifurcation.decide import Decision, Watch, ZoneDataError, decide
from relucheck.bifurcation.subgradient import set_subgradient
from relucheck.errors import ModelError
from relucheck.networks import ACTIVATIONS, Network
from relucheck.networks.mlp import MLP
from relucheck.numerics.arithmetic import Arithmetic
from relucheck.numerics.determinism import generator
from relucheck.numerics.dtypes import DTYPES
from relucheck.volume import engine as volume_engine
from relucheck.volume import proof as volume_proof
from relucheck.volume import sizes as volume_sizes
from relucheck.volume import stack as volume_stack
from relucheck.volume.engine import Engine, ZoneMemoryError
from relucheck.volume.proof import Prover, Shape
from relucheck.volume.stack import Stack
from tests.helpers.uniform import images, mlp
from tests.oracles.two_networks import plain_decision

EMULATIONS = [
    Arithmetic.parse("float16 emulated (rounded)"),
    Arithmetic.parse("bfloat16 emulated (product)"),
    Arithmetic.parse("bfloat16 emulated (split-k 4)"),
    Arithmetic.parse("float32 emulated (tf32)"),
]
PAIRS = {
    "relu": (0.0, 1.0),
    "relu6": ((0.0, 0.0), (1.0, 0.5)),
    "leaky_relu": (0.01, 1.0),
}


def _kinks(setting: float | tuple[float, float]) -> dict[float, float]:
    return {0.0: setting[0], 6.0: setting[1]} if isinstance(setting, tuple) else {0.0: setting}


def _data(rows: int, features: int, seed: int, grid: int) -> tuple[Tensor, Tensor]:
    """Sparse inputs; with a grid multiples of 1 / grid, so that pre-activations hit kinks in every dtype."""
    numbers = generator(seed)
    x = torch.rand(rows, features, generator=numbers, dtype=torch.float64)
    x = x * (torch.rand(rows, features, generator=numbers) < 0.3)
    x = (x * grid).round() / grid if grid else x  # grid 10 has no exact sums: the order of summation decides
    return x, torch.randint(0, 10, (rows,), generator=numbers)


def _coarsen(model: MLP, grid: int, scale: float) -> MLP:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(((parameter.double() * scale * grid).round() / grid) if grid else parameter.double() * scale)
    return model


@st.composite
def cases(draw_: st.DrawFn) -> dict[str, object]:
    arithmetic = draw_(st.sampled_from([*map(Arithmetic, DTYPES), *EMULATIONS]))
    rows, grid = draw_(st.one_of(st.integers(1, 70), st.just(400))), draw_(st.sampled_from([0, 4, 8, 10, 64, 256]))
    return {
        "arithmetic": arithmetic,
        "network": mlp(
            draw_(st.integers(1, 40)),
            draw_(st.sampled_from([1, 2, 3, 4, 7, 16, 40])),
            draw_(st.integers(1, 4)),
            10,
            draw_(st.sampled_from(sorted(ACTIVATIONS))),
        ),
        "networks": draw_(st.integers(1, 5)),
        "rows": rows,
        "grid": grid,
        "scale": draw_(st.sampled_from([1.0, 4.0, 300.0])),
        "batch_size": draw_(st.one_of(st.integers(1, rows + 3), st.sampled_from([16, 32]))),
        "watch": draw_(st.sampled_from(["all", "first layer"])),
        "seed": draw_(st.integers(0, 2**20)),
    }


def _decisions(case: dict[str, object]) -> tuple[list[tuple[str, int | None]], list[tuple[str, int | None]]]:
    network, arithmetic = case["network"], case["arithmetic"]
    x, y = _data(case["rows"], network.features, case["seed"], case["grid"])
    models = [
        _coarsen(network.draw(case["seed"] + index, arithmetic), case["grid"], case["scale"])
        for index in range(case["networks"])
    ]
    pair = PAIRS[network.activation]
    engine = Engine(network, arithmetic, x, y, batch_size=case["batch_size"], subgradients=pair, watch=case["watch"])
    ours = [(found.outcome, found.batch) for found in engine.examine(models)]
    plain = [
        plain_decision(
            model,
            engine.inputs,
            y,
            min(case["batch_size"], len(x)),
            activation=network.activation,
            pair=(_kinks(pair[0]), _kinks(pair[1])),
            first_layer=case["watch"] == "first layer",
            emulation=arithmetic.emulated,
        )
        for model in models
    ]
    return ours, plain


@given(cases())
def test_decides_as_two_networks_do(case: dict[str, object]) -> None:
    ours, plain = _decisions(case)
    assert ours == plain


@pytest.mark.parametrize("arithmetic", [*map(Arithmetic, DTYPES), *EMULATIONS], ids=str)
@pytest.mark.parametrize("width", [7, 15])
@pytest.mark.parametrize("rows", [1, 5])
def test_few_rows_of_odd_widths(arithmetic: Arithmetic, width: int, rows: int) -> None:
    """Kernels for few rows depend on alignment; sums of tenths show every change of order. 0/1 inputs, many trials."""
    network = mlp(7, width, 2)
    for trial in range(6):
        models = []
        for seed in range(4):
            model, numbers = network.draw(seed, arithmetic), generator(100 * trial + seed)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.copy_(torch.randint(-9, 10, parameter.shape, generator=numbers).double() / 10)
            models.append(model)
        numbers = generator(trial)
        x, y = torch.randint(0, 2, (41, 7), generator=numbers).float(), torch.randint(0, 10, (41,), generator=numbers)
        engine = Engine(network, arithmetic, x, y, batch_size=rows)
        ours = [(found.outcome, found.batch) for found in engine.examine(models)]
        assert ours == [plain_decision(model, engine.inputs, y, rows, emulation=arithmetic.emulated) for model in models]


def _misaligned(x: Tensor) -> Tensor:
    return torch.empty(x.numel() + 1, dtype=x.dtype)[1:].view(x.shape).copy_(x)


def _fixed(**changed: object) -> dict[str, object]:
    """A case whose four networks bifurcate, in the second mini-batch at the earliest."""
    case = {
        "arithmetic": Arithmetic(torch.float32),
        "network": mlp(20, 16, 2),
        "networks": 4,
        "rows": 64,
        "grid": 8,
        "scale": 1.0,
        "batch_size": 16,
        "watch": "all",
        "seed": 3,
    }
    return case | changed


@pytest.mark.parametrize("arithmetic", [*map(Arithmetic, DTYPES), *EMULATIONS], ids=str)
@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_bifurcating_networks(arithmetic: Arithmetic, activation: str) -> None:
    ours, plain = _decisions(_fixed(arithmetic=arithmetic, network=mlp(20, 16, 2, 10, activation)))
    assert ours == plain
    assert "bifurcate" in {outcome for outcome, _ in ours}


def test_fresh_networks_on_digits() -> None:
    """PyTorch's own initialisation, as in the published tables; hits are rare and met by rounding."""
    digits = data.load("digits", "train")
    x = (digits.scaled() > 0.5).to(torch.bfloat16)
    engine = Engine(mlp(784, 64, 3), Arithmetic(torch.bfloat16), x, digits.labels, batch_size=128)
    found = list(engine.decide(range(20)))
    assert [decision.seed for decision in found] == list(range(20))
    plain = [
        plain_decision(engine.network.draw(seed, Arithmetic(torch.bfloat16)), x, digits.labels, 128) for seed in range(20)
    ]
    assert [(decision.outcome, decision.batch) for decision in found] == plain
    assert {outcome for outcome, _ in plain} == {"agree", "bifurcate"}


@pytest.mark.parametrize("arithmetic", [Arithmetic(torch.float32), Arithmetic(torch.bfloat16), EMULATIONS[1]], ids=str)
@pytest.mark.parametrize("activation", ["relu", "relu6"])
def test_as_an_accelerator_runs(arithmetic: Arithmetic, activation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large stacks, large blocks and counting without looking decide alike; here on the CPU."""
    for name in ("_CPU_ROWS", "_CPU_ROWS_BFLOAT16", "_CPU_UNITS", "_CPU_WIDEST"):
        monkeypatch.setattr(volume_sizes, name, 10**6)
    monkeypatch.setattr(
        volume_stack, "_count", lambda z, kink, batches, rows, counts: volume_stack._count_unseen(z, kink, batches, counts)
    )
    monkeypatch.setattr(Stack, "_hit", lambda self, x: True)
    network = mlp(20, 16, 2, 10, activation)
    ours, plain = _decisions(_fixed(arithmetic=arithmetic, network=network, rows=500, grid=64, networks=9))
    assert ours == plain
    assert len({batch for _, batch in ours}) > 3


class TestSeededFaults:
    """What the comparison with two networks would catch."""

    def test_a_missed_layer(self, monkeypatch: pytest.MonkeyPatch) -> None:
        count = volume_stack._count

        def blind(z: Tensor, kink: float, batches: int, rows: int, counts: Tensor) -> None:
            if z.shape[-1] != 7:
                count(z, kink, batches, rows, counts)

        monkeypatch.setattr(volume_stack, "_count", blind)
        ours, plain = _decisions(_fixed(network=mlp(20, 7, 2)))
        assert ours != plain

    def test_output_instead_of_input(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Zeros of ReLU's output are no hits: the exact pair sees another number of hits and takes over."""
        real = volume_stack._count
        monkeypatch.setattr(volume_stack, "_count", lambda z, *rest: real(torch.relu(z), *rest))
        monkeypatch.setattr(volume_stack.Stack, "_hit", lambda self, x: True)
        with pytest.raises(AssertionError, match="nothing was fused"):
            _decisions(_fixed())

    def test_first_mini_batch_only(self, monkeypatch: pytest.MonkeyPatch) -> None:
        scan = Stack.scan

        def early(self: Stack, x: Tensor, rows: int, way: str, *, logits: bool = False) -> object:
            counts, finite = scan(self, x, rows, way, logits=logits)
            counts[:, 1:] = 0
            return counts, finite

        monkeypatch.setattr(Stack, "scan", early)
        ours, plain = _decisions(_fixed(arithmetic=Arithmetic(torch.bfloat16), rows=512, grid=64))
        assert ours != plain

    def test_slices_instead_of_own_weights(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The separate way on weights that are not aligned as the network's own: the proof or the pair has to see it."""
        own = Stack.part

        def shifted(self: Stack, chosen: list[int]) -> Stack:
            part = own(self, chosen)
            if len(chosen) == 1:
                part.own = [[(_misaligned(weight), _misaligned(bias)) for weight, bias in part.own[0]]]
            return part

        monkeypatch.setattr(Stack, "part", shifted)
        seen = 0
        for dtype in (torch.float32, torch.float64):
            try:
                test_few_rows_of_odd_widths(Arithmetic(dtype), 15, 1)
            except AssertionError:
                seen += 1
        assert seen

    def test_gradients_of_the_last_layer_only(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(volume_engine, "first_difference", lambda *args: None)
        ours, plain = _decisions(_fixed())
        assert ours != plain


class TestProof:
    """Fused ways are used where they are bitwise the separate one, and nowhere else."""

    def _ways(self, stack: Stack, shape: Shape) -> tuple[str, bool]:
        return Prover().way(stack, shape)

    @pytest.fixture
    def stack(self) -> Stack:
        return Stack([mlp(20, 16, 2).draw(seed, Arithmetic(torch.float32)) for seed in range(4)], Arithmetic(torch.float32))

    def test_a_product_that_rounds_otherwise_is_refused(self, stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
        product = torch.baddbmm
        monkeypatch.setattr(torch, "baddbmm", lambda b, x, w: product(b, x, w) * (1 + 2**-23))
        prover = Prover()
        way, _ = prover.way(stack, Shape(4, 1, 16))
        assert way == "separate"
        assert ("batched", False) in prover.refuted[Shape(4, 1, 16)]
        assert "not bitwise" in str(prover)

    def test_rows_that_depend_on_their_block_are_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        stack = Stack([mlp(20, 16, 2).draw(0, Arithmetic(torch.float32))], Arithmetic(torch.float32))
        linear = nn.functional.linear
        monkeypatch.setattr(
            volume_stack.F, "linear", lambda x, w, b: linear(x, w, b) * (1 + 2**-23) if len(x) > 16 else linear(x, w, b)
        )
        assert self._ways(stack, Shape(1, 2, 16)) == ("separate", False)

    def test_zeros_of_another_sign_are_refused(self, stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
        product = torch.baddbmm
        monkeypatch.setattr(torch, "baddbmm", lambda b, x, w: -product(-b, -x, w))
        with torch.no_grad():
            for layers in stack.own:
                for weight, bias in layers:
                    weight.zero_()
                    bias.zero_()
        prover = Prover()
        assert prover.way(stack, Shape(4, 1, 16))[0] == "separate"
        assert ("batched", False) in prover.refuted[Shape(4, 1, 16)]

    def test_other_logits_are_refused(self, stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
        product = torch.baddbmm
        monkeypatch.setattr(torch, "baddbmm", lambda b, x, w: product(b, x, w) * (1 + 2**-23 if b.shape[-1] == 10 else 1))
        assert self._ways(stack, Shape(4, 1, 16))[0] == "separate"

    def test_networks_of_nan_prove_nothing(self, stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
        product = torch.baddbmm
        monkeypatch.setattr(torch, "baddbmm", lambda b, x, w: product(b, x, w) * (1 + 2**-23))
        sound, prover = stack.own, Prover()
        stack.own = [[(weight * float("nan"), bias) for weight, bias in layers] for layers in sound]
        assert prover.way(stack, Shape(4, 1, 16)) == ("separate", False)
        assert prover.proved == {}
        stack.own = sound
        prover.way(stack, Shape(4, 1, 16))
        assert ("batched", False) in prover.refuted[Shape(4, 1, 16)]

    @pytest.mark.parametrize("offset", [0, 4, 32])
    def test_offsets(self, offset: int) -> None:
        x = volume_proof._at_offset(torch.rand(5, 7), offset)
        assert volume_proof.offset_of(x) == offset
        assert x.shape == (5, 7)

    def test_an_offset_that_changes_bits_is_refused(self, stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
        product = torch.baddbmm
        monkeypatch.setattr(
            torch,
            "baddbmm",
            lambda b, x, w: product(b, x, w) * (1 + 2**-23 if x.data_ptr() % 64 == 32 and x.shape[-1] == 20 else 1),
        )
        monkeypatch.setattr(volume_proof, "_ORDER", ("batched", "separate"))
        assert self._ways(stack, Shape(4, 1, 16, 0))[0] == "batched"
        assert self._ways(stack, Shape(4, 1, 16, 32))[0] == "separate"

    def test_blocks_of_ragged_mini_batches_are_not_tried(self, stack: Stack) -> None:
        assert self._ways(stack, Shape(4, 2, 17))[1] is False

    def test_a_proof_that_does_not_hold_falls_back(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The proof is blinded and the batched product shifted: hits are invented, seen, and decided separately."""
        monkeypatch.setattr(volume_proof, "_holds", lambda *args: True)
        affine = Stack._affine

        def shifted(self: Stack, layer: int, x: Tensor, way: str) -> Tensor:
            z = affine(self, layer, x, way)
            return z.round() if len(self) > 1 else z

        monkeypatch.setattr(Stack, "_affine", shifted)
        told: list[str] = []
        x, y = _data(64, 20, 3, 8)
        network = mlp(20, 16, 2)
        engine = Engine(network, Arithmetic(torch.float32), x, y, batch_size=16, note=told.append)
        models = [_coarsen(network.draw(seed, Arithmetic(torch.float32)), 8, 1.0) for seed in range(4)]
        ours = [(found.outcome, found.batch) for found in engine.examine(models)]
        assert ours == [plain_decision(model, engine.inputs, y, 16) for model in models]
        assert len(told) == 1
        assert "runs separately from here on" in told[0]
        assert told[0] in engine.plan


class TestOutcomes:
    def test_counts(self) -> None:
        """Hits and activations are those of the mini-batches up to the decision."""
        network = mlp(20, 16, 2)
        x, y = _data(64, 20, 3, 8)
        model = _coarsen(network.draw(3, Arithmetic(torch.float32)), 8, 1.0)
        engine = Engine(network, Arithmetic(torch.float32), x, y, batch_size=16)
        (found,) = engine.examine([model])
        assert found.outcome == "bifurcate"
        seen = engine.inputs[: (found.batch + 1) * 16]
        run = compare.backprop(model, seen, y[: len(seen)])
        assert found.hits == run.hit_count > 0
        assert found.activations == run.activation_count

    def test_a_rebuilt_network_decides_alike(self) -> None:
        x, y = _data(64, 20, 3, 8)
        engine = Engine(mlp(20, 16, 2), Arithmetic(torch.bfloat16), x, y, batch_size=16)
        for found in engine.decide([5, 900, 7]):
            model = engine.network.draw(found.seed, Arithmetic(torch.bfloat16))
            (again,) = engine.examine([model])
            assert dataclasses.replace(again, seed=found.seed) == found

    def test_given_networks_keep_their_subgradients(self) -> None:
        x, y = _data(64, 20, 3, 8)
        network = mlp(20, 16, 2)
        model = _coarsen(network.draw(3, Arithmetic(torch.float32)), 8, 1.0)
        set_subgradient(model, 0.5)
        Engine(network, Arithmetic(torch.float32), x, y, batch_size=16).examine([model])
        assert [module.subgradient for module in model.modules() if isinstance(module, ReLU)] == [0.5, 0.5]

    def test_draw_depends_on_the_seed_alone(self) -> None:
        network = mlp(20, 16, 2)
        before = torch.get_rng_state()
        one = network.draw(1, Arithmetic(torch.float16))
        torch.rand(3)
        torch.set_rng_state(before)
        two, other = network.draw(1, Arithmetic(torch.float16)), network.draw(2, Arithmetic(torch.float16))
        assert torch.equal(torch.get_rng_state(), before)
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
        assert not torch.equal(next(one.parameters()), next(other.parameters()))
        assert next(network.draw(1, Arithmetic(torch.float64)).parameters()).dtype == torch.float64

    def test_non_finite_at_once(self) -> None:
        """A NaN is never agreement, and is named at its mini-batch."""
        x, y = _data(64, 20, 3, 8)
        network = mlp(20, 16, 2)
        broken, sound = (network.draw(seed, Arithmetic(torch.float32)) for seed in (0, 1))
        with torch.no_grad():
            broken.layers[1].weight[0, 0] = float("nan")
        engine = Engine(network, Arithmetic(torch.float32), x, y, batch_size=16)
        found = engine.examine([broken, sound])
        assert (found[0].outcome, found[0].batch) == ("non-finite", 0)
        assert found[1].outcome != "non-finite"
        assert decide(broken, engine.inputs, y, batch_size=16).outcome == "non-finite"

    def test_overflow_in_a_later_mini_batch(self) -> None:
        x, y = _data(64, 20, 3, 0)
        x[40] = 60000.0
        network = mlp(20, 16, 2)
        model = _coarsen(network.draw(0, Arithmetic(torch.float16)), 0, 4.0)
        engine = Engine(network, Arithmetic(torch.float16), x, y, batch_size=16)
        (found,) = engine.examine([model])
        assert (found.outcome, found.batch) == plain_decision(model, engine.inputs, y, 16) == ("non-finite", 2)

    @pytest.mark.parametrize("rows", [1, 3])
    def test_few_samples(self, rows: int) -> None:
        """One sample, and mini-batches larger than the data: one mini-batch of what is there."""
        x, y = _data(rows, 20, 3, 8)
        network = mlp(20, 16, 2)
        models = [_coarsen(network.draw(seed, Arithmetic(torch.float32)), 8, 4.0) for seed in range(5)]
        engine = Engine(network, Arithmetic(torch.float32), x, y, batch_size=256)
        ours = [(found.outcome, found.batch) for found in engine.examine(models)]
        assert ours == [plain_decision(model, engine.inputs, y, 256) for model in models]

    def test_no_control_no_decision(self, monkeypatch: pytest.MonkeyPatch) -> None:
        gradients = torch.autograd.grad
        calls = iter(range(100))
        monkeypatch.setattr(
            torch.autograd, "grad", lambda *args, **kw: tuple(g + next(calls) for g in gradients(*args, **kw))
        )
        with pytest.raises(compare.ControlError, match="control"):
            _decisions(_fixed())


def _made(network: Network, dtype: torch.dtype, entries: dict[tuple[int, str, tuple[int, ...]], float]) -> MLP:
    """A network of zeros but for the given entries: (layer, "weight" or "bias", index)."""
    model = network.draw(0, Arithmetic(dtype))
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        for (layer, name, index), value in entries.items():
            getattr(linear[layer], name)[index] = value
    return model


W, B = "weight", "bias"
#: Networks made by hand whose outcome depends on one detail each: network, entries, inputs, pair, watch, outcome.
BY_HAND = {
    # logits of infinity in a mini-batch whose only hit has no way out
    "equal infinities beside an idle hit": (
        *(mlp(1, 2, 2, 2), torch.float16),
        {(0, W, (0, 0)): 1, (1, W, (0, 0)): 1000, (1, B, (0,)): -0.97, (1, B, (1,)): -1, (2, W, (0, 0)): 60000},
        *([[2.0**3]], (0.0, 1.0), "all", "non-finite"),
    ),
    # the gradient of the last weight overflows, those of the first layer do not
    "an overflow above the watched layer": (
        *(mlp(2, 3, 2, 2), torch.float16),
        {
            (0, W, (0, 0)): 60000,
            (0, B, (2,)): -1,
            (1, W, (0, 0)): 2.0**-10,
            (1, W, (0, 1)): 1,
            (1, B, (1,)): -1,
            (1, B, (2,)): -1,
            (1, B, (0,)): -57,
            (2, W, (0, 0)): 2,
        },
        *([[1.0, 1.0]], (0.0, 1.0), "first layer", "bifurcate"),
    ),
    # unit 0 of the first layer hits and leads nowhere, unit 0 of the second layer hits and counts
    "an idle hit below a live one": (
        *(mlp(1, 2, 2, 2), torch.float32),
        {(0, B, (1,)): 1, (1, W, (0, 1)): 1, (1, B, (0,)): -1, (1, B, (1,)): 1, (2, W, (0, 0)): 1},
        *([[1.0]], (0.0, 1.0), "all", "bifurcate"),
    ),
    # the bias's gradient is finite, the weight's is not: only a subgradient that is counted in the bound shows it
    "a steep subgradient and a large input": (
        *(mlp(2, 2, 1, 2), torch.float16),
        {(0, W, (0, 0)): 1, (0, W, (0, 1)): -1, (1, W, (0, 0)): 1},
        *([[200.0, 200.0]], (0.0, 1000.0), "all", "non-finite"),
    ),
    # the same by the weights above, with a subgradient of 1
    "steep weights above and a large input": (
        *(mlp(2, 2, 1, 2), torch.float16),
        {(0, W, (0, 0)): 1, (0, W, (0, 1)): -1, (1, W, (0, 0)): 1000},
        *([[200.0, 200.0]], (0.0, 1.0), "all", "non-finite"),
    ),
}


_ABOVE = BY_HAND["an overflow above the watched layer"]
BY_HAND["the same overflow, watched"] = (*_ABOVE[:-2], "all", "non-finite")


@pytest.mark.parametrize("name", BY_HAND)
def test_networks_made_by_hand(name: str) -> None:
    """Engine, any-model decision and two networks agree, and on what was meant."""
    network, dtype, entries, rows, pair, watch, outcome = BY_HAND[name]
    model = _made(network, dtype, entries)
    x, y = torch.tensor(rows, dtype=dtype), torch.ones(len(rows), dtype=torch.int64)
    (found,) = Engine(network, Arithmetic(dtype), x, y, batch_size=1, subgradients=pair, watch=watch).examine([model])
    plain = plain_decision(model, x, y, 1, pair=(_kinks(pair[0]), _kinks(pair[1])), first_layer=watch == "first layer")
    other = decide(model, x, y, batch_size=1, subgradients=pair, watch=watch)
    assert (found.outcome, found.batch) == plain == (other.outcome, other.batch) == (outcome, 0)


class TestMemory:
    """The first attempts fail as the allocator fails; the engine shrinks, says so, and decides the same."""

    @pytest.fixture
    def plain(self) -> list[Decision]:
        return list(self._engine().decide(range(8)))

    def _engine(self, **options: object) -> Engine:
        x, y = _data(64, 20, 3, 8)
        return Engine(mlp(20, 16, 2), Arithmetic(torch.bfloat16), x, y, batch_size=16, **options)

    @pytest.mark.parametrize(
        "error",
        [
            torch.OutOfMemoryError("CUDA out of memory"),
            RuntimeError("DefaultCPUAllocator: can't allocate memory"),
            MemoryError(),
        ],
        ids=["cuda", "cpu", "python"],
    )
    def test_a_stack_that_does_not_fit_shrinks(
        self, plain: list[Decision], error: BaseException, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        init = Stack.__init__

        def small(self: Stack, models: list[nn.Module], arithmetic: Arithmetic) -> None:
            if len(models) > 2:
                raise error
            init(self, models, arithmetic)

        monkeypatch.setattr(Stack, "__init__", small)
        told: list[str] = []
        engine = self._engine(note=told.append)
        assert list(engine.decide(range(8))) == plain
        assert "stacks of 2 network(s)" in told[-1]
        assert told[-1] in engine.plan

    def test_drawing_that_does_not_fit_shrinks_too(self, plain: list[Decision], monkeypatch: pytest.MonkeyPatch) -> None:
        drawn: list[int] = []

        def scarce(network: Network, seed: int, *rest: object) -> MLP:
            drawn.append(seed)
            if len(drawn) == 5:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return draw(network, seed, *rest)

        draw = Network.draw
        monkeypatch.setattr(Network, "draw", scarce)
        assert list(self._engine().decide(range(8))) == plain

    def test_a_limit_is_kept(self, plain: list[Decision]) -> None:
        engine = self._engine(memory=1)
        assert list(engine.decide(range(8))) == plain
        assert all(shape.networks == 1 for shape in engine._prover.proved)

    def test_nothing_fits(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def never(*args: object) -> None:
            raise MemoryError

        monkeypatch.setattr(Stack, "__init__", never)
        with pytest.raises(ZoneMemoryError, match=r"one network and one mini-batch do not fit .* use smaller mini-batches"):
            list(self._engine().decide([0]))

    def test_other_errors_pass(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def broken(*args: object) -> None:
            raise RuntimeError("shapes do not match")

        monkeypatch.setattr(Stack, "__init__", broken)
        with pytest.raises(RuntimeError, match="shapes do not match"):
            list(self._engine().decide([0]))


class TestBadInput:
    def _engine(self, x: Tensor, y: Tensor, **options: object) -> Engine:
        return Engine(mlp(20, 16, 2), Arithmetic(torch.float32), x, y, **options)

    def test_empty(self) -> None:
        with pytest.raises(ZoneDataError, match="the data set is empty"):
            self._engine(torch.zeros(0, 20), torch.zeros(0, dtype=torch.int64))

    def test_lengths(self) -> None:
        with pytest.raises(ZoneDataError, match="3 inputs but 2 targets"):
            self._engine(torch.zeros(3, 20), torch.zeros(2, dtype=torch.int64))

    def test_features(self) -> None:
        with pytest.raises(ZoneDataError, match=r"takes \[n, 20\]"):
            self._engine(torch.zeros(3, 21), torch.zeros(3, dtype=torch.int64))

    @pytest.mark.parametrize("size", [0, -1, 2.0, True])
    def test_batch_size(self, size: object) -> None:
        with pytest.raises(ZoneDataError, match="batch_size"):
            self._engine(torch.zeros(3, 20), torch.zeros(3, dtype=torch.int64), batch_size=size)

    def test_pair_and_watch(self) -> None:
        x, y = torch.zeros(3, 20), torch.zeros(3, dtype=torch.int64)
        with pytest.raises(ModelError, match="subgradients"):
            self._engine(x, y, subgradients=(0.0,))
        with pytest.raises(ModelError, match="watch"):
            self._engine(x, y, watch="first")

    @pytest.mark.parametrize(
        "network",
        [
            *(mlp(20, 16, 2, batch_norm=True), mlp(20, 16, 2, bias=False), mlp(20, 16, 2, dropout=0.1)),
            *(images("convnet"), images("residual")),
        ],
        ids=str,
    )
    def test_what_a_stack_cannot_hold(self, network: Network) -> None:
        x, y = torch.zeros(3, network.features), torch.zeros(3, dtype=torch.int64)
        with pytest.raises(ModelError, match=r"stacks hold MLPs.*decide takes any model") as error:
            Engine(network, Arithmetic(torch.float32), x, y)
        assert str(network) in str(error.value)

    @pytest.mark.parametrize("seed", [-1, 0.5, True])
    def test_seed(self, seed: object) -> None:
        with pytest.raises(ModelError, match="seed"):
            mlp(20, 16, 2).draw(seed, Arithmetic(torch.float32))

    @pytest.mark.parametrize(
        "model",
        [
            mlp(20, 16, 3).build(),
            mlp(20, 16, 2, batch_norm=True).build(),
            mlp(20, 16, 2, bias=False).build(),
            mlp(20, 16, 2).build().double(),
            mlp(20, 16, 2).build(nn.ReLU),
            mlp(20, 16, 2).build(lambda: ReLU(inplace=True)),
            mlp(20, 16, 2).build().requires_grad_(False),
        ],
        ids=["depth", "batch_norm", "no_bias", "dtype", "torch_relu", "in_place", "frozen"],
    )
    def test_another_model(self, model: nn.Module) -> None:
        engine = self._engine(torch.zeros(3, 20), torch.zeros(3, dtype=torch.int64))
        with pytest.raises(ModelError, match=r"is no 20-16-16-10 in float32"):
            engine.examine([model])

    def test_another_slope(self) -> None:
        x, y = torch.zeros(3, 20), torch.zeros(3, dtype=torch.int64)
        engine = Engine(mlp(20, 16, 2, 10, "leaky_relu"), Arithmetic(torch.float32), x, y)
        engine.examine([mlp(20, 16, 2).build(LeakyReLU)])
        with pytest.raises(ModelError, match=r"slope 0\.01"):
            engine.examine([mlp(20, 16, 2).build(lambda: LeakyReLU(0.25))])

    @pytest.mark.parametrize(
        ("targets", "told"),
        [
            (torch.tensor([0, 1, 10]), "targets from 0 to 10"),
            (torch.tensor([0, -1, 1]), "targets from -1 to 1"),
            (torch.zeros(3), "float32"),
            (torch.zeros(3, 10, dtype=torch.int64), "shape"),
        ],
        ids=["too_large", "negative", "floats", "one_hot"],
    )
    def test_targets(self, targets: Tensor, told: str) -> None:
        for run in (lambda x: self._engine(x, targets), lambda x: decide(mlp(20, 16, 2).build(), x, targets)):
            with pytest.raises(ZoneDataError, match=told):
                run(torch.zeros(3, 20))


class TestAnyModel:
    """The decision of one model through interception."""

    @pytest.fixture
    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        x, y = _data(64, 20, 3, 64)
        return x.float(), y

    @pytest.mark.parametrize("watch", ["all", "first layer"])
    def test_agrees_with_the_engine(self, batches: tuple[Tensor, Tensor], watch: Watch) -> None:
        network = mlp(20, 16, 2)
        engine = Engine(network, Arithmetic(torch.float32), *batches, batch_size=16, watch=watch)
        models = [_coarsen(network.draw(seed, Arithmetic(torch.float32)), 64, 1.0) for seed in range(3, 9)]
        found = engine.examine(models)
        assert found == [decide(model, *batches, batch_size=16, watch=watch) for model in models]
        assert {one.outcome for one in found} == {"agree", "bifurcate"}

    def test_convolutions_and_functions(self) -> None:
        numbers = generator(1)
        x = (torch.rand(40, 1, 8, 8, generator=numbers) * 4).round() / 4
        y = torch.randint(0, 10, (40,), generator=numbers)
        model = Network("convnet", (8,)).build(nn.ReLU)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_((parameter * 8).round() / 8)
        found = decide(model, x, y, batch_size=16)
        assert found.outcome == "bifurcate"
        assert compare.compare(model, x[found.batch * 16 :][:16], y[found.batch * 16 :][:16]).outcome == "bifurcate"

    def test_model_and_random_state_stay(self, batches: tuple[Tensor, Tensor]) -> None:
        model = mlp(20, 16, 2, batch_norm=True).build(nn.ReLU)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        state = torch.get_rng_state()
        decide(model, *batches, batch_size=16)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert torch.equal(torch.get_rng_state(), state)
        assert not any(isinstance(module, ChosenSubgradient) for module in model.modules())

    def test_a_frozen_first_layer(self, batches: tuple[Tensor, Tensor]) -> None:
        model = mlp(20, 16, 2).build()
        model.layers[1].requires_grad_(False)
        decide(model, *batches)
        with pytest.raises(ModelError, match="no parameter of the first layer"):
            decide(model, *batches, watch="first layer")

    def test_no_activation(self, batches: tuple[Tensor, Tensor]) -> None:
        with pytest.raises(ModelError, match="nothing to decide"):
            decide(nn.Linear(20, 10), *batches)

    def test_no_parameter(self, batches: tuple[Tensor, Tensor]) -> None:
        with pytest.raises(ModelError, match="no parameter requires a gradient"):
            decide(nn.ReLU(), *batches)
