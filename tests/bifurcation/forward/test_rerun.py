"""Calls that are run again: what is replaced, what is drawn, and what is cut."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from relucheck.bifurcation.forward.calls import Step, Value
from relucheck.bifurcation.forward.rerun import run_again

X = torch.zeros(200)


def value_of(tensor: Tensor, *, variable: bool = True) -> Value:
    return Value(tensor.shape, tensor.dtype, variable)


def step(func: Callable[..., Any], result: Value, *given: tuple[Tensor, Value], order: int = 1, **options: Any) -> Step:
    arguments = tuple(tensor for tensor, _ in given), {}
    return Step(order, "", "", func, arguments, list(given), [result], **options)


def test_other_variables_are_drawn_and_constants_are_not() -> None:
    source, result = value_of(X), value_of(X)
    for other, changes in ((torch.ones(200), True), (torch.ones(200).bool(), True), (torch.ones(200).int(), False)):
        for variable in (True, False):
            steps = [step(torch.mul, result, (X, source), (other, value_of(other, variable=variable)))]
            computed = run_again(steps, source, torch.ones(200))[result]
            assert torch.equal(computed, torch.ones(200)) != (changes and variable)
    a, b = value_of(X), value_of(X)
    differences = run_again([step(torch.sub, result, (X, a), (X.clone(), b))], source, X)[result]
    assert (differences != 0).all(), "two variables are drawn in two ways"


def test_random_numbers_repeat_and_leave_the_state() -> None:
    source, result = value_of(X), value_of(X)
    steps = [step(torch.rand_like, result, (X, source))]
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = run_again(steps, source, X)[result]
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(run_again(steps, source, X)[result], first)
    torch.manual_seed(3)
    steps[0].random = torch.get_rng_state()
    expected = torch.rand_like(X)
    assert torch.equal(run_again(steps, source, X, draw=False)[result], expected), "those of the forward"
    assert torch.equal(run_again(steps, source, X)[result], first)


def test_a_call_that_fails_has_no_result() -> None:
    source, middle, last, aside = (value_of(X) for _ in range(4))
    steps = [
        step(lambda x: x.reshape(199), middle, (X, source)),
        step(torch.sin, last, (X, middle), order=2),
        step(torch.cos, aside, (X, source), order=3),
    ]
    held = run_again(steps, source, X)
    assert middle not in held
    assert last not in held
    assert torch.equal(held[aside], torch.ones(200))


def test_a_result_that_is_not_cut_fails() -> None:
    source, result, same = value_of(X), value_of(X), value_of(X)
    steps = [
        step(lambda x: torch.zeros(200), result, (X, source)),
        step(torch.cos, same, (X, source), order=2),
    ]
    held = run_again(steps, source, torch.zeros(7), sizes={200: 7})
    assert result not in held
    assert held[same].shape == (7,)


def test_a_constant_that_was_overwritten_is_as_it_was() -> None:
    source, result = value_of(X), value_of(X)
    constant = value_of(X, variable=False)
    constant.copy = torch.full((200,), 2.0)
    held = run_again([step(torch.add, result, (X, source), (torch.ones(200), constant))], source, X)
    assert torch.equal(held[result], torch.full((200,), 2.0))


def test_a_gradient_passes_where_the_forward_has_recorded_it() -> None:
    source, middle, last = (value_of(X) for _ in range(3))
    for recorded in (True, False):
        steps = [
            step(torch.sin, middle, (X, source), recorded=recorded),
            step(torch.add, last, (X, middle), (X, source), order=2),
        ]
        x = X.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(run_again(steps, source, x, differentiable=True)[last].sum(), x)
        assert torch.equal(gradient, torch.full((200,), 1.0 + recorded))
