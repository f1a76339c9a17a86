"""The zone engine shrinks its stack when memory runs out, says so, and decides the same."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from relucheck.bifurcation.decide import Decision
from relucheck.networks import Network
from relucheck.networks.mlp import MLP
from relucheck.numerics.arithmetic import Arithmetic
from relucheck.volume.engine import Engine, ZoneMemoryError
from relucheck.volume.stack import Stack
from tests.helpers.uniform import mlp
from tests.helpers.zone import drawn_data


class TestMemory:
    """The first attempts fail as the allocator fails; the engine shrinks, says so, and decides the same."""

    @pytest.fixture
    def plain(self) -> list[Decision]:
        return list(self._engine().decide(range(8)))

    def _engine(self, **options: object) -> Engine:
        x, y = drawn_data(64, 20, 3, 8)
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
        notes: list[str] = []
        engine = self._engine(note=notes.append)
        assert list(engine.decide(range(8))) == plain
        assert "stacks of 2 network(s)" in notes[-1]
        assert notes[-1] in engine.plan

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
