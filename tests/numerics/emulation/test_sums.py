"""Emulated arithmetics against products that are summed one by one, in Python, and against seeded mutants of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from relucheck.numerics.bits import same_bits
from relucheck.numerics.emulation import Emulation, EmulationError
from relucheck.numerics.emulation import sums as emulation
from relucheck.numerics.emulation.layers import emulate

KINDS: dict[str, Emulation] = {
    "rounded": Emulation(torch.bfloat16, "rounded"),
    "product": Emulation(torch.bfloat16, "product"),
    "product float16": Emulation(torch.float16, "product"),
    "split-k 4": Emulation(torch.bfloat16, "split-k", 4),
    "split-k 3": Emulation(torch.float16, "split-k", 3),
    "tf32": Emulation(torch.float32, "tf32"),
}


def _integers(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    """Values k / 32: their products and float32 sums are exact, so that nothing but the emulated rounding rounds."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randint(-60, 61, shape, generator=generator) / 32).to(dtype)


def _product(chosen: Emulation, a: Tensor, b: Tensor) -> Tensor:
    """The stated rounding, by float64 sums that are exact here."""
    length = a.shape[-1]
    size = -(-length // chosen.parts)
    a, b = a.double(), b.double()
    parts = [(a[:, i : i + size] @ b[i : i + size]).to(chosen.dtype) for i in range(0, length, size)]
    total = parts[0]
    for part in parts[1:]:
        total = (total.double() + part.double()).to(chosen.dtype)  # exact in float64, rounded once
    return total


def _linear(chosen: Emulation, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    if chosen.kind == "rounded":
        return (x.double() @ weight.double().T + bias.double()).to(chosen.dtype)
    return (_product(chosen, x, weight.T).double() + bias.double()).to(chosen.dtype)


def _broken_by(chosen: Emulation) -> list[str]:
    """The properties that an emulation breaks: of forward, and of each gradient."""
    x, weight, bias = (_integers(shape, chosen.dtype, i) for i, shape in enumerate([(24, 40), (16, 40), (16,)]))
    cotangent = _integers((24, 16), chosen.dtype, 3)
    for tensor in (x, weight, bias):
        tensor.requires_grad_()
    y = chosen.linear(x, weight, bias)
    grads = torch.autograd.grad(y, (x, weight, bias), cotangent)
    wanted = (
        _linear(chosen, x.detach(), weight.detach(), bias.detach()),
        _product(chosen, cotangent, weight.detach()),
        _product(chosen, cotangent.T, x.detach()),
        cotangent.sum(0),
    )
    names = ("forward", "gradient of x", "gradient of the weight", "gradient of the bias")
    found = (y.detach(), *grads)
    return [name for name, a, b in zip(names, found, wanted, strict=True) if not same_bits(a, b)]


@pytest.mark.parametrize("kind", KINDS)
def test_rounds_where_it_says_forward_and_backward(kind: str) -> None:
    assert _broken_by(KINDS[kind]) == []


def _late_bias(self: Emulation, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The bias is added before rounding, where the product is to be rounded first."""
    return torch.nn.functional.linear(x.double(), weight.double(), None if bias is None else bias.double()).to(self.dtype)


def _unrounded(self: Emulation, a: Tensor, b: Tensor) -> Tensor:
    """One rounding of the whole sum, where partial sums are to be rounded."""
    return (a.double() @ b.double()).to(self.dtype)


def _wide_partials(self: Emulation, a: Tensor, b: Tensor) -> Tensor:
    """Partial sums are rounded, but added in float64."""
    length = a.shape[-1]
    step = -(-length // self.parts)
    parts = [(a[:, i : i + step].double() @ b[i : i + step].double()).to(self.dtype) for i in range(0, length, step)]
    return torch.stack([part.double() for part in parts]).sum(0).to(self.dtype)


def _native_backward(ctx: Any, *grad_outputs: Any) -> Any:
    """Backward in the device's own arithmetic."""
    (cotangent,) = grad_outputs
    x, weight = ctx.saved_tensors
    wide = cotangent.double()
    return (wide @ weight.double()).to(cotangent.dtype), (wide.T @ x.double()).to(cotangent.dtype), cotangent.sum(-2), None


_MUTANTS: dict[str, tuple[str, Any, str, Callable[..., Any], str]] = {
    "bias before rounding": ("product", Emulation, "_forward", _late_bias, "forward"),
    "split-k as one sum": ("split-k 4", Emulation, "_multiply", _unrounded, "gradient of x"),
    "partials added wide": ("split-k 4", Emulation, "_multiply", _wide_partials, "forward"),
    "native backward": (
        "split-k 4",
        emulation._Linear,
        "backward",
        staticmethod(_native_backward),
        "gradient of the weight",
    ),
}


@pytest.mark.parametrize("mutant", _MUTANTS)
def test_seeded_mutants_are_found(mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, owner, name, replacement, expected = _MUTANTS[mutant]
    monkeypatch.setattr(owner, name, replacement)
    assert expected in _broken_by(KINDS[kind])


def test_tf32_rounds_factors_to_ten_bits_ties_to_even() -> None:
    one = 1.0
    cases = {
        one + 2**-10: one + 2**-10,  # representable
        one + 2**-11: one,  # a tie, to even: down
        one + 3 * 2**-11: one + 2 * 2**-10,  # a tie, to even: up
        one + 2**-11 + 2**-23: one + 2**-10,
        2 - 2**-23: 2.0,  # carries into the exponent
        -(one + 2**-11 + 2**-23): -(one + 2**-10),
        float("inf"): float("inf"),
        0.0: 0.0,
    }
    x = torch.tensor(list(cases)).unsqueeze(1)
    identity = torch.ones(1, 1)
    assert Emulation(torch.float32, "tf32").matmul(x, identity).squeeze(1).tolist() == list(cases.values())
    assert bool(Emulation(torch.float32, "tf32").matmul(torch.tensor([[float("nan")]]), identity).isnan().all())


def _eleven_bits(x: Tensor) -> Tensor:
    """The nearest number of 11 significant bits, ties to even, by float64."""
    mantissa, exponent = torch.frexp(x.double())
    return torch.ldexp((mantissa * 2**11).round() / 2**11, exponent)


def _tf32_is_right() -> list[bool]:
    """Forward, gradients of input and weight; odd factors of 12 bits, each of which is rounded, and sums that are exact."""
    random = torch.Generator().manual_seed(5)
    x, weight, cotangent = ((2 * torch.randint(1024, 2048, (4, 4), generator=random) + 1).float() for _ in range(3))
    assert not any(bool((_eleven_bits(value) == value).any()) for value in (x, weight, cotangent))
    a, b, c = map(_eleven_bits, (x, weight, cotangent))
    x.requires_grad_()
    weight.requires_grad_()
    y = Emulation(torch.float32, "tf32").linear(x, weight)
    found = (y.detach(), *torch.autograd.grad(y, (x, weight), cotangent))
    return [torch.equal(one.double(), other) for one, other in zip(found, (a @ b.T, c @ b, c.T @ a), strict=True)]


def test_tf32_rounds_the_factors_of_all_three_products(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _tf32_is_right() == [True, True, True]
    original = emulation._Linear.forward

    def unrounded(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, chosen: Emulation) -> Tensor:
        result = original(ctx, x, weight, bias, chosen)
        ctx.save_for_backward(x, weight)  # a seeded fault: as they came, not as the forward took them
        return result

    with monkeypatch.context() as patch:
        patch.setattr(emulation._Linear, "forward", staticmethod(unrounded))
        assert _tf32_is_right() == [True, False, False]
    monkeypatch.setattr(Emulation, "_widen", lambda self, x: x)
    assert _tf32_is_right() == [False, False, False]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "tf32"])
def test_members_stacked_round_where_they_say(kind: str) -> None:
    """Forward and gradients of members in one call, each against the stated rounding of its own."""
    chosen = KINDS[kind]
    shapes = [(3, 24, 40), (3, 16, 40), (3, 16)]
    x, weight, bias = (_integers(shape, chosen.dtype, i).requires_grad_() for i, shape in enumerate(shapes))
    cotangent = _integers((3, 24, 16), chosen.dtype, 3)
    y = chosen.linear(x, weight, bias)
    grads = torch.autograd.grad(y, (x, weight, bias), cotangent)
    for i in range(3):
        own, factor, c = x[i].detach(), weight[i].detach(), cotangent[i]
        assert same_bits(y[i].detach(), _linear(chosen, own, factor, bias[i].detach()))
        wanted = (_product(chosen, c, factor), _product(chosen, c.T, own), c.sum(0))
        assert all(same_bits(gradient[i], right) for gradient, right in zip(grads, wanted, strict=True))


def test_members_stacked_are_each_one() -> None:
    chosen = KINDS["split-k 4"]
    x, weight, bias = (_integers(shape, chosen.dtype, i) for i, shape in enumerate([(2, 24, 40), (2, 16, 40), (2, 16)]))
    together = chosen.linear(x, weight, bias)
    for member in range(2):
        assert same_bits(together[member], chosen.linear(x[member], weight[member], bias[member]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("leading", [(), (24,), (4, 6), (2, 3, 4), (0, 3)])
def test_leading_dimensions_are_rows(kind: str, leading: tuple[int, ...]) -> None:
    """The gradients of weight and bias are one sum over all of them."""
    chosen = KINDS[kind]
    x, weight, bias, cotangent = (
        _integers(shape, chosen.dtype, i) for i, shape in enumerate([(*leading, 40), (16, 40), (16,), (*leading, 16)])
    )
    flat = x.reshape(x.numel() // 40, 40)
    for tensor in (x, weight, bias, flat):
        tensor.requires_grad_()
    y, rows = chosen.linear(x, weight, bias), chosen.linear(flat, weight, bias)
    assert y.shape == (*leading, 16)
    assert same_bits(y.reshape(rows.shape), rows)
    found = torch.autograd.grad(y, (x, weight, bias), cotangent)
    wanted = torch.autograd.grad(rows, (flat, weight, bias), cotangent.reshape(rows.shape))
    assert found[0].shape == x.shape
    assert all(same_bits(a.reshape(b.shape), b) for a, b in zip(found, wanted, strict=True))


def test_a_number_is_no_input() -> None:
    with pytest.raises(EmulationError, match="got a number; a linear layer takes a tensor"):
        KINDS["product"].linear(torch.tensor(1.0).bfloat16(), torch.ones(1, 1).bfloat16())


def test_emulations_make_the_hits_that_they_are_for() -> None:
    """Products rounded before the bias cancel it exactly far more often than sums that are rounded once."""
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(s, generator=generator).to(torch.bfloat16) for s in [(512, 64), (64, 64), (64,)])
    zeros = {name: int((KINDS[name].linear(x, weight, bias) == 0).sum()) for name in ("rounded", "product", "split-k 4")}
    assert zeros["product"] > 5 * max(1, zeros["rounded"])
    assert zeros["split-k 4"] > 5 * max(1, zeros["rounded"])


def test_emulate_turns_linear_layers_and_refuses_the_rest() -> None:
    chosen = KINDS["product"]
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).bfloat16()
    assert emulate(model, chosen) == ("0", "2")
    assert "product" in repr(model)
    x = torch.ones(1, 3, dtype=torch.bfloat16)
    hidden = torch.relu(chosen.linear(x, model[0].weight, model[0].bias))
    assert same_bits(model(x).detach(), chosen.linear(hidden, model[2].weight, model[2].bias).detach())
    with pytest.raises(EmulationError, match=r"'0' is no nn\.Linear and no nn\.Conv2d"):
        emulate(nn.Sequential(nn.Conv1d(1, 1, 3)).bfloat16(), chosen)
    with pytest.raises(EmulationError, match=r"'0.weight' is not bfloat16; convert the model"):
        emulate(nn.Sequential(nn.Linear(1, 1)), chosen)
    with pytest.raises(EmulationError, match=r"has no nn\.Linear"):
        emulate(nn.Sequential(nn.ReLU()), chosen)
    with pytest.raises(EmulationError, match="got a tensor of float32; convert"):
        chosen.linear(torch.ones(1, 3), model[0].weight)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.bfloat16, "exact"), "kind 'exact': must be one of"),
        ((torch.bfloat16, "tf32"), "use float32"),
        ((torch.bfloat16, "split-k", 1), "at least 2 parts"),
        ((torch.bfloat16, "product", 2), "the other kinds take 1"),
        ((torch.bfloat16, "split-k", True), "at least 2 parts"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_emulations_are_refused(arguments: Any, message: str) -> None:
    with pytest.raises(EmulationError) as caught:
        Emulation(*arguments)
    assert message in str(caught.value)
