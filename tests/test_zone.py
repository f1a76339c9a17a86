"""The zone engine decides as the plain two-network method does: same outcome, same mini-batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from relucheck import backprop, data, decision, stacks, zone
from relucheck.activations import ChosenSubgradient
from relucheck.decision import ZoneDataError, decide
from relucheck.emulation import Emulation
from relucheck.interception import ModelError
from relucheck.networks import MLP, ConvNet
from relucheck.numerics import DTYPES, generator
from relucheck.stacks import Architecture, Prover, Shape, Stack, draw
from relucheck.zone import Engine, ZoneMemoryError
from tests.two_networks import plain_decision

EMULATIONS = [
    Emulation(torch.float16, "rounded"),
    Emulation(torch.bfloat16, "product"),
    Emulation(torch.bfloat16, "split-k", 4),
    Emulation(torch.float32, "tf32"),
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
    x = (x * grid).round() / grid if grid else x
    return x, torch.randint(0, 10, (rows,), generator=numbers)


def _coarsen(model: MLP, grid: int, scale: float) -> MLP:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(((parameter.double() * scale * grid).round() / grid) if grid else parameter.double() * scale)
    return model


@st.composite
def cases(draw_: st.DrawFn) -> dict[str, object]:
    arithmetic = draw_(st.sampled_from([*DTYPES, *EMULATIONS]))
    rows, grid = draw_(st.one_of(st.integers(1, 70), st.just(400))), draw_(st.sampled_from([0, 4, 8, 64, 256]))
    return {
        "arithmetic": arithmetic,
        "architecture": Architecture(
            draw_(st.integers(1, 40)),
            draw_(st.sampled_from([1, 2, 3, 4, 7, 16, 40])),
            draw_(st.integers(1, 4)),
            10,
            draw_(st.sampled_from(sorted(stacks.ACTIVATIONS))),
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
    architecture, arithmetic = case["architecture"], case["arithmetic"]
    x, y = _data(case["rows"], architecture.inputs, case["seed"], case["grid"])
    models = [
        _coarsen(draw(architecture, case["seed"] + index, arithmetic), case["grid"], case["scale"])
        for index in range(case["networks"])
    ]
    pair = PAIRS[architecture.activation]
    engine = Engine(architecture, arithmetic, x, y, batch_size=case["batch_size"], pair=pair, watch=case["watch"])
    ours = [(found.outcome, found.batch) for found in engine.examine(models)]
    plain = [
        plain_decision(
            model,
            engine.inputs,
            y,
            min(case["batch_size"], len(x)),
            activation=architecture.activation,
            pair=(_kinks(pair[0]), _kinks(pair[1])),
            first_layer=case["watch"] == "first layer",
            emulation=arithmetic if isinstance(arithmetic, Emulation) else None,
        )
        for model in models
    ]
    return ours, plain


@given(cases())
def test_decides_as_two_networks_do(case: dict[str, object]) -> None:
    ours, plain = _decisions(case)
    assert ours == plain


def _fixed(**changed: object) -> dict[str, object]:
    """A case whose four networks bifurcate, in the second mini-batch at the earliest."""
    case = {
        "arithmetic": torch.float32,
        "architecture": Architecture(20, 16, 2),
        "networks": 4,
        "rows": 64,
        "grid": 8,
        "scale": 1.0,
        "batch_size": 16,
        "watch": "all",
        "seed": 3,
    }
    return case | changed


@pytest.mark.parametrize("arithmetic", [*DTYPES, *EMULATIONS], ids=stacks.arithmetic_name)
@pytest.mark.parametrize("activation", sorted(stacks.ACTIVATIONS))
def test_bifurcating_networks(arithmetic: stacks.LinearArithmetic, activation: str) -> None:
    ours, plain = _decisions(_fixed(arithmetic=arithmetic, architecture=Architecture(20, 16, 2, 10, activation)))
    assert ours == plain
    assert "bifurcate" in {outcome for outcome, _ in ours}


def test_fresh_networks_on_digits() -> None:
    """PyTorch's own initialisation, as in the published tables; hits are rare and met by rounding."""
    digits = data.load("digits", "train")
    x = (digits.scaled() > 0.5).to(torch.bfloat16)
    engine = Engine(Architecture(784, 64, 3), torch.bfloat16, x, digits.labels, batch_size=128)
    found = list(engine.decide(range(20)))
    assert [decision.seed for decision in found] == list(range(20))
    plain = [plain_decision(draw(engine.architecture, seed, torch.bfloat16), x, digits.labels, 128) for seed in range(20)]
    assert [(decision.outcome, decision.batch) for decision in found] == plain
    assert {outcome for outcome, _ in plain} == {"agree", "bifurcate"}


@pytest.mark.parametrize("arithmetic", [torch.float32, torch.bfloat16, EMULATIONS[1]], ids=stacks.arithmetic_name)
@pytest.mark.parametrize("activation", ["relu", "relu6"])
def test_as_an_accelerator_runs(
    arithmetic: stacks.LinearArithmetic, activation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Large stacks, large blocks and counting without looking decide alike; here on the CPU."""
    for name in ("_CPU_ROWS", "_CPU_ROWS_BFLOAT16", "_CPU_UNITS", "_CPU_WIDEST"):
        monkeypatch.setattr(zone, name, 10**6)
    monkeypatch.setattr(
        stacks, "_count", lambda z, kink, batches, rows, counts: stacks._count_unseen(z, kink, batches, counts)
    )
    monkeypatch.setattr(Stack, "_hit", lambda self, x: True)
    architecture = Architecture(20, 16, 2, 10, activation)
    ours, plain = _decisions(_fixed(arithmetic=arithmetic, architecture=architecture, rows=500, grid=64, networks=9))
    assert ours == plain
    assert len({batch for _, batch in ours}) > 3


class TestSeededFaults:
    """What the comparison with two networks would catch."""

    def test_a_missed_layer(self, monkeypatch: pytest.MonkeyPatch) -> None:
        count = stacks._count

        def blind(z: Tensor, kink: float, batches: int, rows: int, counts: Tensor) -> None:
            if z.shape[-1] != 7:
                count(z, kink, batches, rows, counts)

        monkeypatch.setattr(stacks, "_count", blind)
        ours, plain = _decisions(_fixed(architecture=Architecture(20, 7, 2)))
        assert ours != plain

    def test_output_instead_of_input(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Zeros of ReLU's output are no hits: the exact pair sees another number of hits and takes over."""
        real = stacks._count
        monkeypatch.setattr(stacks, "_count", lambda z, *rest: real(torch.relu(z), *rest))
        monkeypatch.setattr(stacks.Stack, "_hit", lambda self, x: True)
        with pytest.raises(AssertionError, match="nothing was fused"):
            _decisions(_fixed())

    def test_first_mini_batch_only(self, monkeypatch: pytest.MonkeyPatch) -> None:
        scan = Stack.scan

        def early(self: Stack, x: Tensor, rows: int, way: str, *, logits: bool = False) -> object:
            counts, finite = scan(self, x, rows, way, logits=logits)
            counts[:, 1:] = 0
            return counts, finite

        monkeypatch.setattr(Stack, "scan", early)
        ours, plain = _decisions(_fixed(arithmetic=torch.bfloat16, rows=512, grid=64))
        assert ours != plain

    def test_gradients_of_the_last_layer_only(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(zone, "_first_difference", lambda *args: None)
        ours, plain = _decisions(_fixed())
        assert ours != plain


class TestProof:
    """Fused ways are used where they are bitwise the separate one, and nowhere else."""

    def _ways(self, stack: Stack, shape: Shape) -> tuple[str, bool]:
        return Prover().way(stack, shape)

    @pytest.fixture
    def stack(self) -> Stack:
        return Stack([draw(Architecture(20, 16, 2), seed, torch.float32) for seed in range(4)], torch.float32)

    def test_a_product_that_rounds_otherwise_is_refused(self, stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
        product = torch.baddbmm
        monkeypatch.setattr(torch, "baddbmm", lambda b, x, w: product(b, x, w) * (1 + 2**-23))
        prover = Prover()
        way, _ = prover.way(stack, Shape(4, 1, 16))
        assert way == "separate"
        assert ("batched", False) in prover.refuted[Shape(4, 1, 16)]
        assert "not bitwise" in str(prover)

    def test_rows_that_depend_on_their_block_are_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        stack = Stack([draw(Architecture(20, 16, 2), 0, torch.float32)], torch.float32)
        linear = nn.functional.linear
        monkeypatch.setattr(
            stacks.F, "linear", lambda x, w, b: linear(x, w, b) * (1 + 2**-23) if len(x) > 16 else linear(x, w, b)
        )
        assert self._ways(stack, Shape(1, 2, 16)) == ("separate", False)

    def test_blocks_of_ragged_mini_batches_are_not_tried(self, stack: Stack) -> None:
        assert self._ways(stack, Shape(4, 2, 17))[1] is False

    def test_a_proof_that_does_not_hold_falls_back(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The proof is blinded and the batched product shifted: hits are invented, seen, and decided separately."""
        monkeypatch.setattr(stacks, "_holds", lambda *args: True)
        affine = Stack._affine

        def shifted(self: Stack, layer: int, x: Tensor, way: str) -> Tensor:
            z = affine(self, layer, x, way)
            return z.round() if len(self) > 1 else z

        monkeypatch.setattr(Stack, "_affine", shifted)
        told: list[str] = []
        x, y = _data(64, 20, 3, 8)
        architecture = Architecture(20, 16, 2)
        engine = Engine(architecture, torch.float32, x, y, batch_size=16, note=told.append)
        models = [_coarsen(draw(architecture, seed, torch.float32), 8, 1.0) for seed in range(4)]
        ours = [(found.outcome, found.batch) for found in engine.examine(models)]
        assert ours == [plain_decision(model, engine.inputs, y, 16) for model in models]
        assert len(told) == 1
        assert "runs separately from here on" in told[0]
        assert told[0] in engine.plan


class TestOutcomes:
    def test_counts(self) -> None:
        """Hits and activations are those of the mini-batches up to the decision."""
        architecture = Architecture(20, 16, 2)
        x, y = _data(64, 20, 3, 8)
        model = _coarsen(draw(architecture, 3, torch.float32), 8, 1.0)
        engine = Engine(architecture, torch.float32, x, y, batch_size=16)
        (found,) = engine.examine([model])
        assert found.outcome == "bifurcate"
        seen = engine.inputs[: (found.batch + 1) * 16]
        run = backprop.backprop(model, seen, y[: len(seen)])
        assert found.hits == run.hit_count > 0
        assert found.activations == run.activation_count

    def test_a_rebuilt_network_decides_alike(self) -> None:
        x, y = _data(64, 20, 3, 8)
        engine = Engine(Architecture(20, 16, 2), torch.bfloat16, x, y, batch_size=16)
        for found in engine.decide([5, 900, 7]):
            model = draw(engine.architecture, found.seed, torch.bfloat16)
            (again,) = engine.examine([model])
            assert dataclasses.replace(again, seed=found.seed) == found

    def test_draw_depends_on_the_seed_alone(self) -> None:
        architecture = Architecture(20, 16, 2)
        before = torch.get_rng_state()
        one = draw(architecture, 1, torch.float16)
        torch.rand(3)
        torch.set_rng_state(before)
        two, other = draw(architecture, 1, torch.float16), draw(architecture, 2, torch.float16)
        assert torch.equal(torch.get_rng_state(), before)
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
        assert not torch.equal(next(one.parameters()), next(other.parameters()))
        assert next(draw(architecture, 1, torch.float64).parameters()).dtype == torch.float64

    def test_non_finite_at_once(self) -> None:
        """A NaN is never agreement, and is named at its mini-batch."""
        x, y = _data(64, 20, 3, 8)
        architecture = Architecture(20, 16, 2)
        broken, sound = (draw(architecture, seed, torch.float32) for seed in (0, 1))
        with torch.no_grad():
            broken.layers[1].weight[0, 0] = float("nan")
        engine = Engine(architecture, torch.float32, x, y, batch_size=16)
        found = engine.examine([broken, sound])
        assert (found[0].outcome, found[0].batch) == ("non-finite", 0)
        assert found[1].outcome != "non-finite"
        assert decide(broken, engine.inputs, y, batch_size=16).outcome == "non-finite"

    def test_overflow_in_a_later_mini_batch(self) -> None:
        x, y = _data(64, 20, 3, 0)
        x[40] = 60000.0
        architecture = Architecture(20, 16, 2)
        model = _coarsen(draw(architecture, 0, torch.float16), 0, 4.0)
        engine = Engine(architecture, torch.float16, x, y, batch_size=16)
        (found,) = engine.examine([model])
        assert (found.outcome, found.batch) == plain_decision(model, engine.inputs, y, 16) == ("non-finite", 2)

    @pytest.mark.parametrize("rows", [1, 3])
    def test_few_samples(self, rows: int) -> None:
        """One sample, and mini-batches larger than the data: one mini-batch of what is there."""
        x, y = _data(rows, 20, 3, 8)
        architecture = Architecture(20, 16, 2)
        models = [_coarsen(draw(architecture, seed, torch.float32), 8, 4.0) for seed in range(5)]
        engine = Engine(architecture, torch.float32, x, y, batch_size=256)
        ours = [(found.outcome, found.batch) for found in engine.examine(models)]
        assert ours == [plain_decision(model, engine.inputs, y, 256) for model in models]

    def test_no_control_no_decision(self, monkeypatch: pytest.MonkeyPatch) -> None:
        gradients = torch.autograd.grad
        calls = iter(range(100))
        monkeypatch.setattr(
            torch.autograd, "grad", lambda *args, **kw: tuple(g + next(calls) for g in gradients(*args, **kw))
        )
        with pytest.raises(backprop.ControlError, match="control"):
            _decisions(_fixed())


class TestMemory:
    """The first attempts fail as the allocator fails; the engine shrinks, says so, and decides the same."""

    @pytest.fixture
    def plain(self) -> list[decision.Decision]:
        return list(self._engine().decide(range(8)))

    def _engine(self, **options: object) -> Engine:
        x, y = _data(64, 20, 3, 8)
        return Engine(Architecture(20, 16, 2), torch.bfloat16, x, y, batch_size=16, **options)

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
        self, plain: list[decision.Decision], error: BaseException, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        init = Stack.__init__

        def small(self: Stack, models: list[nn.Module], arithmetic: torch.dtype) -> None:
            if len(models) > 2:
                raise error
            init(self, models, arithmetic)

        monkeypatch.setattr(Stack, "__init__", small)
        told: list[str] = []
        engine = self._engine(note=told.append)
        assert list(engine.decide(range(8))) == plain
        assert "stacks of 2 network(s)" in told[-1]
        assert told[-1] in engine.plan

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
        return Engine(Architecture(20, 16, 2), torch.float32, x, y, **options)

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
        with pytest.raises(ModelError, match="pair"):
            self._engine(x, y, pair=(0.0,))
        with pytest.raises(ModelError, match="watch"):
            self._engine(x, y, watch="first")

    @pytest.mark.parametrize("changes", [{"width": 0}, {"depth": 2.0}, {"activation": "gelu"}])
    def test_architecture(self, changes: dict[str, object]) -> None:
        with pytest.raises(ModelError, match="architecture"):
            Architecture(**changes)

    @pytest.mark.parametrize("seed", [-1, 0.5, True])
    def test_seed(self, seed: object) -> None:
        with pytest.raises(ModelError, match="seed"):
            draw(Architecture(20, 16, 2), seed, torch.float32)

    @pytest.mark.parametrize(
        "model",
        [
            MLP(20, 16, 3),
            MLP(20, 16, 2, batch_norm=True),
            MLP(20, 16, 2, bias=False),
            MLP(20, 16, 2).double(),
            MLP(20, 16, 2, activation=nn.ReLU),
        ],
        ids=["depth", "batch_norm", "no_bias", "dtype", "torch_relu"],
    )
    def test_another_model(self, model: nn.Module) -> None:
        engine = self._engine(torch.zeros(3, 20), torch.zeros(3, dtype=torch.int64))
        with pytest.raises(ModelError, match=r"is no 20-2x16-10 in float32"):
            engine.examine([model])


class TestAnyModel:
    """The decision of one model through interception."""

    @pytest.fixture
    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        x, y = _data(64, 20, 3, 64)
        return x.float(), y

    @pytest.mark.parametrize("watch", ["all", "first layer"])
    def test_agrees_with_the_engine(self, batches: tuple[Tensor, Tensor], watch: decision.Watch) -> None:
        architecture = Architecture(20, 16, 2)
        engine = Engine(architecture, torch.float32, *batches, batch_size=16, watch=watch)
        models = [_coarsen(draw(architecture, seed, torch.float32), 64, 1.0) for seed in range(3, 9)]
        found = engine.examine(models)
        assert found == [decide(model, *batches, batch_size=16, watch=watch) for model in models]
        assert {one.outcome for one in found} == {"agree", "bifurcate"}

    def test_convolutions_and_functions(self) -> None:
        numbers = generator(1)
        x = (torch.rand(40, 1, 8, 8, generator=numbers) * 4).round() / 4
        y = torch.randint(0, 10, (40,), generator=numbers)
        model = ConvNet(depth=1, activation=nn.ReLU)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_((parameter * 8).round() / 8)
        found = decide(model, x, y, batch_size=16)
        assert found.outcome == "bifurcate"
        assert backprop.compare(model, x[found.batch * 16 :][:16], y[found.batch * 16 :][:16]).outcome == "bifurcate"

    def test_model_and_random_state_stay(self, batches: tuple[Tensor, Tensor]) -> None:
        model = MLP(20, 16, 2, batch_norm=True, activation=nn.ReLU)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        state = torch.get_rng_state()
        decide(model, *batches, batch_size=16)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert torch.equal(torch.get_rng_state(), state)
        assert not any(isinstance(module, ChosenSubgradient) for module in model.modules())

    def test_no_activation(self, batches: tuple[Tensor, Tensor]) -> None:
        with pytest.raises(ModelError, match="nothing to decide"):
            decide(nn.Linear(20, 10), *batches)

    def test_no_parameter(self, batches: tuple[Tensor, Tensor]) -> None:
        with pytest.raises(ModelError, match="no parameter requires a gradient"):
            decide(nn.ReLU(), *batches)
