"""The zone engine decides as the plain two-network method does: same outcome, same mini-batch."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from relucheck import data
from relucheck.activations.modules import ReLU
from relucheck.bifurcation import compare
from relucheck.bifurcation.decide import decide
from relucheck.bifurcation.subgradient import set_subgradient
from relucheck.networks import ACTIVATIONS, Network
from relucheck.networks.mlp import MLP
from relucheck.numerics.arithmetic import Arithmetic
from relucheck.numerics.determinism import generator
from relucheck.numerics.dtypes import DTYPES
from relucheck.volume import engine as volume_engine
from relucheck.volume import stack as volume_stack
from relucheck.volume.engine import Engine
from relucheck.volume.sizes import ACCELERATOR
from relucheck.volume.stack import Stack
from tests.helpers.uniform import mlp
from tests.helpers.zone import EMULATIONS, coarsen, decisions, drawn_data, fixed_case, kinks_of, misaligned
from tests.oracles.two_networks import plain_decision


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


@given(cases())
def test_decides_as_two_networks_do(case: dict[str, object]) -> None:
    ours, plain = decisions(case)
    assert ours == plain


@pytest.mark.parametrize("arithmetic", [*map(Arithmetic, DTYPES), *EMULATIONS], ids=str)
@pytest.mark.parametrize(("rows", "width"), [(1, 15), (5, 7)])
def test_few_rows_of_odd_widths(arithmetic: Arithmetic, rows: int, width: int) -> None:
    """Kernels for few rows depend on alignment; sums of tenths show every change of order. 0/1 inputs, several trials.

    Each arithmetic meets each width and each number of rows once.
    """
    network = mlp(7, width, 2)
    for trial in range(4):
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


@pytest.mark.parametrize("arithmetic", [*map(Arithmetic, DTYPES), *EMULATIONS], ids=str)
@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_bifurcating_networks(arithmetic: Arithmetic, activation: str) -> None:
    ours, plain = decisions(fixed_case(arithmetic=arithmetic, network=mlp(20, 16, 2, 10, activation)))
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
    monkeypatch.setattr(
        volume_stack, "_count", lambda z, kink, batches, rows, counts: volume_stack._count_unseen(z, kink, batches, counts)
    )
    monkeypatch.setattr(Stack, "_hit", lambda self, x: True)
    network = mlp(20, 16, 2, 10, activation)
    case = fixed_case(arithmetic=arithmetic, network=network, rows=500, grid=64, networks=9)
    ours, plain = decisions(case, limits=ACCELERATOR)
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
        ours, plain = decisions(fixed_case(network=mlp(20, 7, 2)))
        assert ours != plain

    def test_output_instead_of_input(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Zeros of ReLU's output are no hits: the exact pair sees another number of hits and takes over."""
        real = volume_stack._count
        monkeypatch.setattr(volume_stack, "_count", lambda z, *rest: real(torch.relu(z), *rest))
        monkeypatch.setattr(volume_stack.Stack, "_hit", lambda self, x: True)
        with pytest.raises(AssertionError, match="nothing was fused"):
            decisions(fixed_case())

    def test_first_mini_batch_only(self, monkeypatch: pytest.MonkeyPatch) -> None:
        scan = Stack.scan

        def early(self: Stack, x: Tensor, rows: int, way: str, *, logits: bool = False) -> object:
            counts, finite = scan(self, x, rows, way, logits=logits)
            counts[:, 1:] = 0
            return counts, finite

        monkeypatch.setattr(Stack, "scan", early)
        ours, plain = decisions(fixed_case(arithmetic=Arithmetic(torch.bfloat16), rows=512, grid=64))
        assert ours != plain

    def test_slices_instead_of_own_weights(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The separate way on weights that are not aligned as the network's own: the proof or the pair has to see it."""
        own = Stack.part

        def shifted(self: Stack, chosen: list[int]) -> Stack:
            part = own(self, chosen)
            if len(chosen) == 1:
                part.layers = [[(misaligned(weight), misaligned(bias)) for weight, bias in part.layers[0]]]
            return part

        monkeypatch.setattr(Stack, "part", shifted)
        seen = 0
        for dtype in (torch.float32, torch.float64):
            try:
                test_few_rows_of_odd_widths(Arithmetic(dtype), 1, 15)
            except AssertionError:
                seen += 1
        assert seen

    def test_gradients_of_the_last_layer_only(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(volume_engine, "first_difference", lambda *args: None)
        ours, plain = decisions(fixed_case())
        assert ours != plain


class TestOutcomes:
    def test_counts(self) -> None:
        """Hits and activations are those of the mini-batches up to the decision."""
        network = mlp(20, 16, 2)
        x, y = drawn_data(64, 20, 3, 8)
        model = coarsen(network.draw(3, Arithmetic(torch.float32)), 8, 1.0)
        engine = Engine(network, Arithmetic(torch.float32), x, y, batch_size=16)
        (found,) = engine.examine([model])
        assert found.outcome == "bifurcate"
        seen = engine.inputs[: (found.batch + 1) * 16]
        run = compare.backprop(model, seen, y[: len(seen)])
        assert found.hits == run.hit_count > 0
        assert found.activations == run.activation_count

    def test_a_rebuilt_network_decides_alike(self) -> None:
        x, y = drawn_data(64, 20, 3, 8)
        engine = Engine(mlp(20, 16, 2), Arithmetic(torch.bfloat16), x, y, batch_size=16)
        for found in engine.decide([5, 900, 7]):
            model = engine.network.draw(found.seed, Arithmetic(torch.bfloat16))
            (again,) = engine.examine([model])
            assert dataclasses.replace(again, seed=found.seed) == found

    def test_given_networks_keep_their_subgradients(self) -> None:
        x, y = drawn_data(64, 20, 3, 8)
        network = mlp(20, 16, 2)
        model = coarsen(network.draw(3, Arithmetic(torch.float32)), 8, 1.0)
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
        x, y = drawn_data(64, 20, 3, 8)
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
        x, y = drawn_data(64, 20, 3, 0)
        x[40] = 60000.0
        network = mlp(20, 16, 2)
        model = coarsen(network.draw(0, Arithmetic(torch.float16)), 0, 4.0)
        engine = Engine(network, Arithmetic(torch.float16), x, y, batch_size=16)
        (found,) = engine.examine([model])
        assert (found.outcome, found.batch) == plain_decision(model, engine.inputs, y, 16) == ("non-finite", 2)

    @pytest.mark.parametrize("rows", [1, 3])
    def test_few_samples(self, rows: int) -> None:
        """One sample, and mini-batches larger than the data: one mini-batch of what is there."""
        x, y = drawn_data(rows, 20, 3, 8)
        network = mlp(20, 16, 2)
        models = [coarsen(network.draw(seed, Arithmetic(torch.float32)), 8, 4.0) for seed in range(5)]
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
            decisions(fixed_case())


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
    plain = plain_decision(model, x, y, 1, pair=(kinks_of(pair[0]), kinks_of(pair[1])), first_layer=watch == "first layer")
    other = decide(model, x, y, batch_size=1, subgradients=pair, watch=watch)
    assert (found.outcome, found.batch) == plain == (other.outcome, other.batch) == (outcome, 0)
