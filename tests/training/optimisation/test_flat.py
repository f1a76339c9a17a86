"""All parameters in one tensor: what is where, and that one step for all is taken only where it is a step for each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from relucheck.numerics.bits import neighbour
from relucheck.numerics.determinism import generator
from relucheck.training.optimisation import optimisers
from relucheck.training.optimisation.flat import Flat
from relucheck.training.optimisation.optimisers import make_optimiser, same_as_apart
from relucheck.training.settings import Optimiser

DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
OPTIMISERS = {
    "adam": Optimiser(eps=1e-4),
    "adam, eps 1e-8": Optimiser(),
    "adam fused": Optimiser(eps=1e-4, fused=True),
    "sgd": Optimiser("sgd", 0.1),
    "sgd momentum": Optimiser("sgd", 0.1, momentum=0.9),
}


def _model(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(7, 13), nn.Linear(13, 3)).to(dtype)  # no size is a multiple of a vector's


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_parameters_are_views_on_aligned_places(dtype: torch.dtype) -> None:
    model = _model(dtype)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    whole = Flat(model)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name])
        assert (parameter.data_ptr() - whole.values.data_ptr()) % 64 == 0
    with torch.no_grad():
        whole.whole.fill_(2.0)
    assert all(bool((parameter == 2).all()) for parameter in model.parameters())
    assert whole.whole.data_ptr() == whole.values.data_ptr()


def test_gradients_are_collected_whatever_their_strides_and_zeros_stay_between() -> None:
    whole = Flat(_model())
    gradients = [
        torch.randn(parameter.shape[::-1], generator=generator(1)).permute(*range(parameter.ndim - 1, -1, -1))
        for parameter in whole.parameters
    ]
    for factor in (1.0, -3.0):
        whole.collect([factor * gradient for gradient in gradients])
        assert whole.whole.grad is not None
        found, taken = whole.whole.grad, torch.zeros(len(whole.values), dtype=torch.bool)
        for parameter, gradient in zip(whole.parameters, gradients, strict=True):
            start = (parameter.data_ptr() - whole.values.data_ptr()) // 4
            part = slice(start, start + parameter.numel())
            assert torch.equal(found[part].view(parameter.shape), factor * gradient)
            taken[part] = True
        assert bool((found[~taken] == 0).all())


def test_what_differs_is_named_signs_of_zeros_included() -> None:
    one, other = Flat(_model()), Flat(_model())
    assert one.same_bits(other)
    assert one.first_unequal(other) is None
    with torch.no_grad():
        for whole, value in ((one, 0.0), (other, -0.0)):
            whole.parameters[1][12] = value
    assert not one.same_bits(other)
    assert one.first_unequal(other) == "0.bias"
    assert one.finite()
    with torch.no_grad():
        one.parameters[2][0, 0] = float("nan")
    assert not one.finite()


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_a_buffer_that_differs_is_named(dtype: torch.dtype) -> None:
    """By one ulp, by the sign of a zero, and in an integer; a parameter that differs is named first."""
    models = [nn.Sequential(nn.Linear(7, 3), nn.BatchNorm1d(3)).to(dtype) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    one, other = map(Flat, models)
    assert one.first_unequal(other) is None
    norm: Any = models[1][1]
    for name, change in {
        "running_var": lambda value: neighbour(value, 1),
        "running_mean": torch.neg,
        "num_batches_tracked": lambda value: value + 1,
    }.items():
        buffer = getattr(norm, name)
        before = buffer.clone()
        buffer.copy_(change(before))
        assert one.same_bits(other), "of the parameters"
        assert one.first_unequal(other) == f"1.{name}"
        buffer.copy_(before)
    assert one.first_unequal(other) is None
    norm.running_mean.add_(1)
    with torch.no_grad():
        other.parameters[1][0] += 1
    assert one.first_unequal(other) == "0.bias"


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("chosen", OPTIMISERS.values(), ids=OPTIMISERS)
def test_where_the_proof_holds_a_long_run_is_the_same_bit_for_bit(chosen: Optimiser, dtype: torch.dtype) -> None:
    model, apart = _model(dtype), list(_model(dtype).parameters())
    whole = Flat(model)
    if not same_as_apart(chosen, whole):
        # torch's own: SGD in 16 bits rounds otherwise in a tensor's tail, eps of 1e-8 is 0 in float16
        assert chosen.fused or dtype in (torch.bfloat16, torch.float16)
        return
    one, many = make_optimiser(chosen, [whole.whole]), make_optimiser(chosen, apart)
    random = generator(2)
    for step in range(60):
        gradients = [torch.randn(p.shape, generator=random).mul(10.0 ** -(step % 7)).to(dtype) for p in apart]
        whole.collect(gradients)
        for parameter, gradient in zip(apart, gradients, strict=True):
            parameter.grad = gradient
        one.step()
        many.step()
    for mine, theirs in zip(whole.parameters, apart, strict=True):
        assert torch.equal(mine.view(torch.uint8), theirs.view(torch.uint8))


def test_an_eps_that_is_zero_is_not_taken_as_one() -> None:
    """The zeros between the parameters would become 0 / 0."""
    assert not same_as_apart(Optimiser(eps=0.0), Flat(_model()))
    assert not same_as_apart(Optimiser(), Flat(_model(torch.float16)))


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_a_fused_optimiser_is_one_pass_already(dtype: torch.dtype) -> None:
    assert not same_as_apart(Optimiser(fused=True), Flat(_model(dtype)))


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_torchs_defaults_change_nothing(device: str) -> None:
    whole = Flat(_model())
    optimisers._tried.cache_clear()
    before = same_as_apart(Optimiser(), whole)
    optimisers._tried.cache_clear()
    torch.set_default_dtype(torch.float16)
    try:
        with torch.device(device):
            assert same_as_apart(Optimiser(), whole) == before
    finally:
        torch.set_default_dtype(torch.float32)
        optimisers._tried.cache_clear()


class _ElementByElement(torch.optim.SGD):
    """No fault: the positive control."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        with torch.no_grad():
            for parameter in self.param_groups[0]["params"]:
                parameter.copy_(parameter.double() - 0.1 * parameter.grad.double())


class _FillsGaps(torch.optim.SGD):
    """A seeded fault: what is 0 and has a gradient of 0 moves."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        with torch.no_grad():
            for parameter in self.param_groups[0]["params"]:
                parameter[(parameter == 0) & (parameter.grad == 0)] = 1.0


class _ForgetsItsSecondStep(torch.optim.SGD):
    """A seeded fault of what is kept between steps: the last elements of a tensor lose it."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        with torch.no_grad():
            for parameter in self.param_groups[0]["params"]:
                state = self.state[parameter]
                kept = state.setdefault("kept", torch.zeros_like(parameter)).view(-1)
                kept[len(kept) // 8 * 8 :] = 0
                kept += parameter.grad.view(-1)
                parameter.view(-1).sub_(kept)


class _TailsRoundOtherwise(torch.optim.SGD):
    """A seeded fault: a kernel whose last elements, too few for a vector, take another way."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        with torch.no_grad():
            for parameter in self.param_groups[0]["params"]:
                values, change = parameter.view(-1), parameter.grad.view(-1)
                body = len(values) // 8 * 8
                values[:body] -= 0.1 * change[:body]
                values[body:] -= (0.1 * change[body:].double()).float()


class _StepsOfTheNorm(torch.optim.SGD):
    """A seeded fault: an element's step depends on its tensor."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        with torch.no_grad():
            for parameter in self.param_groups[0]["params"]:
                parameter -= 0.1 * parameter.grad / parameter.grad.norm()


@pytest.mark.parametrize("even", [False, True], ids=["odd sizes", "sizes of whole vectors"])
@pytest.mark.parametrize(
    ("fault", "right"),
    [
        (_ElementByElement, True),
        (_TailsRoundOtherwise, False),
        (_StepsOfTheNorm, False),
        (_FillsGaps, False),
        (_ForgetsItsSecondStep, False),
    ],
)
def test_a_kernel_that_is_not_element_by_element_is_found(
    fault: type[torch.optim.Optimizer], right: bool, even: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With sizes of whole vectors nothing of the model is a tail; the proof has tails of its own."""

    def faulty(chosen: Optimiser, parameters: Sequence[Tensor]) -> torch.optim.Optimizer:
        return fault(parameters, lr=0.1)  # type: ignore[call-arg]

    monkeypatch.setattr(optimisers, "make_optimiser", faulty)
    optimisers._tried.cache_clear()
    try:
        model = nn.Linear(16, 32) if even else _model()
        assert same_as_apart(Optimiser("sgd", 0.1), Flat(model)) == right
    finally:
        optimisers._tried.cache_clear()
