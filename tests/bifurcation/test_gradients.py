"""Gradients that autograd keeps out of the graph: reentrant checkpoints and the like are refused, never *agree*."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from relucheck.activations.functional import relu
from relucheck.bifurcation.compare import backprop, compare
from relucheck.bifurcation.decide import decide
from relucheck.bifurcation.explain import explain
from relucheck.bifurcation.gradients import gradients
from relucheck.errors import ModelError
from relucheck.volume import ties

X = torch.tensor([[1.0, 1.0], [2.0, 2.0]])
Y = torch.tensor([0, 1])
REENTRANT = r"checkpoints a part of itself with use_reentrant=True.*pass use_reentrant=False"


class Net(nn.Module):
    """Its first hidden unit is exactly at zero for every sample, and the part that holds it may be checkpointed."""

    def __init__(
        self, run: Callable[..., Tensor], activation: Callable[[Tensor], Tensor] = F.relu, before: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.before = before or nn.Identity()
        self.inside, self.head = nn.Linear(2, 2, bias=False), nn.Linear(2, 2)
        with torch.no_grad():
            self.inside.weight.copy_(torch.tensor([[1.0, -1.0], [1.0, 1.0]]))
            self.head.weight.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
            self.head.bias.zero_()
        self.run, self.activation = run, activation

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.run(lambda u: self.activation(self.inside(u)), self.before(x)))


def plainly(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return function(x)


def reentrant(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return checkpoint(function, x, use_reentrant=True)


def recomputing(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return checkpoint(function, x, use_reentrant=False)


def nested(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return recomputing(lambda u: reentrant(function, u), x)


class Inner(torch.autograd.Function):
    """A checkpoint of somebody's, which does not look at how the backward was started."""

    @staticmethod
    def forward(ctx, function, x):  # type: ignore[no-untyped-def]
        ctx.function = function
        ctx.save_for_backward(x)
        return function(x)

    @staticmethod
    def backward(ctx, cotangent):  # type: ignore[no-untyped-def]
        x = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad():
            y = ctx.function(x)
        y.backward(cotangent)
        return None, x.grad


def somebodys(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return Inner.apply(function, x)


def by_hand(run: Callable[..., Tensor], subgradient: float, x: Tensor) -> Tensor | None:
    """The gradient of the layer inside, as ``.backward()`` accumulates it."""
    model = Net(run, lambda z: relu(z, torch.tensor(subgradient)))
    F.cross_entropy(model(x), Y).backward()
    return model.inside.weight.grad


MEASURES: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "compare": lambda model, x: compare(model, x, Y),
    "compare with a loss": lambda model, x: compare(model, x, loss=lambda y: y.sum()),
    "compare with a cotangent": lambda model, x: compare(model, x),
    "backprop": lambda model, x: backprop(model, x, Y),
    "decide": lambda model, x: decide(model, x, Y),
    "explain": lambda model, x: explain(model, x, Y),
}


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("run", [reentrant, nested, somebodys])
def test_a_reentrant_checkpoint_is_refused(run: Callable[..., Tensor], measure: str) -> None:
    x = X.clone().requires_grad_()
    zero, one = (by_hand(run, value, x) for value in (0.0, 1.0))
    assert zero is not None
    assert one is not None
    assert not torch.equal(zero, one), "it bifurcates"
    x.grad = None
    model = Net(run)
    kept = model.inside.weight.grad = torch.ones(2, 2)
    message = REENTRANT if run is not somebodys else r"InnerBackward accumulates the gradient of 'inside.weight' in .grad"
    with pytest.raises(ModelError, match=message):
        MEASURES[measure](model, x)
    assert model.inside.weight.grad is kept
    assert torch.equal(kept, torch.ones(2, 2))
    assert model.head.weight.grad is x.grad is None


@pytest.mark.parametrize("run", [reentrant, somebodys])
def test_a_reentrant_checkpoint_behind_a_layer_is_refused(run: Callable[..., Tensor]) -> None:
    before = nn.Linear(2, 2)
    with torch.no_grad():
        before.weight.copy_(torch.eye(2))
        before.bias.zero_()
    with pytest.raises(ModelError, match=r"use_reentrant=False|'inside.weight' in .grad"):
        compare(Net(run, before=before), X)


def test_the_fix_gives_the_gradients_of_backward() -> None:
    run = backprop(Net(recomputing), X, Y)
    for value, found in zip((0.0, 1.0), run.gradients, strict=True):
        expected = by_hand(reentrant, value, X.clone().requires_grad_())
        assert expected is not None
        assert torch.equal(found["inside.weight"], expected)  # type: ignore[arg-type]
    comparison = compare(Net(recomputing), X, Y)
    assert comparison.outcome == "bifurcate"
    assert comparison.differences == compare(Net(plainly), X, Y).differences


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True:UserWarning")
def test_a_checkpoint_that_backward_does_not_enter_has_no_gradients() -> None:
    """Its inputs require no gradient, so ``.backward()`` gives the parameters inside none, whatever the subgradient."""
    assert by_hand(reentrant, 0.0, X) is by_hand(reentrant, 1.0, X) is None
    comparison = compare(Net(reentrant), X, Y)
    assert (comparison.outcome, comparison.hit_count) == ("agree", 2)


@pytest.mark.parametrize("run", [reentrant, somebodys])
def test_max_pooling_in_a_reentrant_checkpoint_is_refused(run: Callable[..., Tensor]) -> None:
    class Pools(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.pool, self.head = nn.Conv2d(1, 2, 1), nn.MaxPool2d(2), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(run(lambda u: self.pool(self.conv(u)), x).flatten(1))

    x = torch.ones(2, 1, 4, 4, requires_grad=True)
    with pytest.raises(ModelError, match=r"use_reentrant=False|'conv.weight' in .grad"):
        ties.decide(Pools(), x, Y)


class Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):  # type: ignore[no-untyped-def]
        return 2 * x

    @staticmethod
    def backward(ctx, cotangent):  # type: ignore[no-untyped-def]
        return 2 * cotangent


def test_other_functions_are_served_and_leave_no_trace() -> None:
    """Several backwards of one graph; ``.grad`` and the hooks that wait for its accumulation stay as they are."""
    model, x = Net(lambda function, u: function(Twice.apply(u))), X.clone().requires_grad_()
    expected = torch.autograd.grad(model(x).sum(), list(model.parameters()))
    kept = model.inside.weight.grad = torch.ones(2, 2)
    accumulated: list[Tensor] = []
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(accumulated.append)
    root, named = model(x).sum(), dict(model.named_parameters())
    for _ in range(2):
        found = gradients(root, named)
        assert list(found) == list(named)
        for got, wanted in zip(found.values(), expected, strict=True):
            assert got is not None
            assert torch.equal(got, wanted)
    assert accumulated == []
    assert model.inside.weight.grad is kept
    assert torch.equal(kept, torch.ones(2, 2))
    assert model.head.weight.grad is x.grad is None
