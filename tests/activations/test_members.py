"""One subgradient for each member of an ensemble, in one tensor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from relucheck.activations import rules
from relucheck.activations.modules import LeakyReLU, ReLU, ReLU6
from relucheck.activations.rules import SubgradientError
from relucheck.numerics.bits import same_bits
from relucheck.training.model import Kinked, Switch
from tests.helpers.activation_cases import Case, at_each, cotangents, every_case, every_dtype, gradient


@every_case
@every_dtype
def test_one_value_per_member(case: Case, dtype: torch.dtype) -> None:
    values = torch.tensor([0.0, 0.5, -0.5, case.own[0]], dtype=torch.float64)
    x = torch.full((4, 64, 8), 2.5, dtype=dtype)
    x[:, 1, 2], x[:, 3, 4] = case.kinks[0], case.kinks[-1]
    g = cotangents(x)
    stacked = [values.view(4, 1, 1) / (index + 1) for index in range(len(case.kinks))]
    got = gradient(case.ours(stacked), x, g)
    for member, value in enumerate(values.tolist()):
        alone = gradient(case.ours(at_each(case, value)), x[member], g[member])
        assert same_bits(got[member], alone, signed_zero=True)


@every_case
def test_setting_members_between_two_backwards(case: Case) -> None:
    x = torch.full((3, 64), 2.5)
    x[:, 1] = case.kinks[0]
    for few in (True, False):
        x[:, 2:] = 2.5 if few else case.kinks[0]
        module, leaf, g = case.ours(at_each(case, 0.3)), x.clone().requires_grad_(), cotangents(x)
        name = module.rule.names[0]
        y = module(leaf)
        for value in (torch.tensor([[0.1], [0.2], [0.3]]), torch.tensor([[0.4], [0.5], [0.6]]), -1.0, torch.rand(3, 64)):
            setattr(module, name, value)
            (got,) = torch.autograd.grad(y, leaf, g, retain_graph=True)
            fresh = case.ours(at_each(case, 0.3))
            setattr(fresh, name, value)
            assert same_bits(got, gradient(fresh, x, g))
            s = torch.as_tensor(value, dtype=torch.float32).expand(3, 64)
            assert torch.equal(got[:, 1], (g * s)[:, 1])


def test_reading_members_gives_a_copy() -> None:
    module = ReLU(torch.tensor([0.25, 0.5]))
    before = module.subgradient
    module.subgradient = 0.75
    module.subgradient = before  # put back what was read
    assert module.subgradient.tolist() == [0.25, 0.5]
    given = torch.tensor([0.1, 0.2], dtype=torch.float64)
    module.subgradient = given
    given.zero_()
    module.subgradient.zero_()
    assert module.subgradient.tolist() == [0.1, 0.2]


@pytest.mark.parametrize("shape", [(3,), (2, 1), (1, 1, 2), (2, 2), (1, 2)])
@pytest.mark.parametrize(
    "make", [ReLU, lambda s: LeakyReLU(0.1, s), lambda s: ReLU6(0.0, s)], ids=["ReLU", "LeakyReLU", "ReLU6"]
)
def test_members_that_do_not_fit_the_input(make: Callable[[Any], nn.Module], shape: tuple[int, ...]) -> None:
    module = make(torch.full(shape, 0.5))
    with pytest.raises(SubgradientError) as error:
        module(torch.zeros(2, requires_grad=True))
    for part in (type(module).__name__, str(tuple(shape)), "(2,)", "does not broadcast", "(members, 1, ..., 1)"):
        assert part in str(error.value)


def test_a_members_activation_straight_on_data() -> None:
    """Nothing that needs a gradient: no node to put a hook on."""
    act = Kinked(rules.RELU, Switch(((0.5, 0.5), "chain")))
    assert act(torch.zeros(1000)).grad_fn is None
    assert act.hits == [1000]


@pytest.mark.parametrize("make", [lambda x: x.sum(), lambda x: x.clone()[:1]], ids=["no dimensions", "a view, in place"])
def test_a_shape_that_does_not_fit_where_there_is_a_mask(make: Callable[[Tensor], Tensor]) -> None:
    act = ReLU(0.5, inplace=True)
    x = torch.zeros(3, requires_grad=True)
    y = act(make(x))
    act.subgradient = torch.ones(4, 1, 1)
    with pytest.raises(SubgradientError, match="does not broadcast to an input of shape"):
        torch.autograd.grad(y.sum(), x)


@pytest.mark.parametrize("shape", [(4, 1, 1), (4,), (2, 3, 1)])
def test_a_shape_set_between_forward_and_backward_that_does_not_fit(shape: tuple[int, ...]) -> None:
    act = ReLU(0.5)
    x = torch.zeros(2, 3, requires_grad=True)
    y = act(x)
    act.subgradient = torch.ones(shape)
    with pytest.raises(SubgradientError, match=r"does not broadcast to an input of shape \(2, 3\)"):
        torch.autograd.grad(y.sum(), x, retain_graph=True)
    act.subgradient = torch.tensor([[0.25], [0.75]])
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert gradient.tolist() == [[0.25] * 3, [0.75] * 3]
