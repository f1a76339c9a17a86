"""The proof that a stack of networks computes each network's bits, and the fall-back where it does not hold."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from relucheck.numerics.arithmetic import Arithmetic
from relucheck.volume import proof as volume_proof
from relucheck.volume import stack as volume_stack
from relucheck.volume.engine import Engine
from relucheck.volume.proof import Prover, Shape
from relucheck.volume.stack import Stack
from tests.helpers.uniform import mlp
from tests.helpers.zone import coarsen, drawn_data
from tests.oracles.two_networks import plain_decision


class TestProof:
    """Fused ways are used where they are bitwise the separate one, and nowhere else."""

    def _ways(self, stack: Stack, shape: Shape, **options: Any) -> tuple[str, bool]:
        return Prover(**options).way(stack, shape)

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
            for layers in stack.layers:
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
        sound, prover = stack.layers, Prover()
        stack.layers = [[(weight * float("nan"), bias) for weight, bias in layers] for layers in sound]
        assert prover.way(stack, Shape(4, 1, 16)) == ("separate", False)
        assert prover.proved == {}
        stack.layers = sound
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
        assert self._ways(stack, Shape(4, 1, 16, 0), order=("batched", "separate"))[0] == "batched"
        assert self._ways(stack, Shape(4, 1, 16, 32), order=("batched", "separate"))[0] == "separate"

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
        notes: list[str] = []
        x, y = drawn_data(64, 20, 3, 8)
        network = mlp(20, 16, 2)
        engine = Engine(network, Arithmetic(torch.float32), x, y, batch_size=16, note=notes.append)
        models = [coarsen(network.draw(seed, Arithmetic(torch.float32)), 8, 1.0) for seed in range(4)]
        ours = [(found.outcome, found.batch) for found in engine.examine(models)]
        assert ours == [plain_decision(model, engine.inputs, y, 16) for model in models]
        assert len(notes) == 1
        assert "runs separately from here on" in notes[0]
        assert notes[0] in engine.plan
