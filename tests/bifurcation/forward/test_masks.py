"""ReLUs whose mask is far from the product: in time, shape, dtype or function."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relucheck.bifurcation.compare import compare
from relucheck.bifurcation.wiring import WiringError, check_wiring
from tests.helpers.written_out import After, Model

EYE = torch.eye(4)


def after_many_calls(x: Tensor) -> Tensor:
    mask = (x > 0).float()
    for _ in range(100):
        x.sin()
    return x * mask


def of_a_value_computed_before(x: Tensor) -> Tensor:
    shifted = x + 0
    for _ in range(30):
        x.sin()
    return shifted * (x > 0)


def after_many_steps(x: Tensor) -> Tensor:
    mask = (x > 0).float()
    for _ in range(20):
        mask = mask * 1.0
    return x * mask


def under_autocast(x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        h = F.linear(x, EYE)
        mask = (h > 0).float()
    return h.float() * mask


def in_another_dtype(x: Tensor) -> Tensor:
    h = x.bfloat16()
    return h.float() * (h > 0)


def by_a_product_of_matrices(x: Tensor) -> Tensor:
    return torch.stack([torch.diag((row > 0).float()) @ row for row in x])


def against_a_threshold_that_changes(x: Tensor) -> Tensor:
    threshold = THRESHOLD.clone()
    y = torch.where(x > threshold, x, 0.0)
    threshold.add_(100)
    return y


THRESHOLD = torch.zeros(4)


def against_a_constant_that_changes(x: Tensor) -> Tensor:
    y = torch.where(x > THRESHOLD, x, 0.0)
    THRESHOLD.add_(100)
    return y


MASKS: dict[str, Callable[[Tensor], Tensor]] = {
    "after many calls": after_many_calls,
    "of a value that was computed before": of_a_value_computed_before,
    "after many steps of the mask": after_many_steps,
    "after many steps of the value": lambda x: (((((((x + 0) + 0) + 0) + 0) + 0) + 0) + 0) * (x > 0),
    "in one dimension": lambda x: (x.reshape(-1) * (x > 0).float().reshape(-1)).reshape(2, 2, -1),
    "in three dimensions": lambda x: x[:, None] * (x > 0)[:, None],
    "transposed": lambda x: x.t() * (x > 0).t(),
    "under autocast": under_autocast,
    "in another dtype": in_another_dtype,
    "in float16": lambda x: x * (x > 0).half(),
    "in a vmap over columns": lambda x: torch.func.vmap(lambda column: column * (column > 0), in_dims=1, out_dims=1)(x),
    "in a vmap over columns, which become rows": lambda x: torch.func.vmap(lambda c: c * (c > 0), in_dims=1)(x),
    "by a sigmoid": lambda x: x * (torch.sigmoid(x) > 0.5),
    "by a steep tanh": lambda x: x * torch.tanh(1e9 * x.detach()).clamp(min=0),
    "einsum": lambda x: torch.einsum("ij,ij->ij", x, (x > 0).float()),
    "bmm": lambda x: torch.bmm(x.reshape(-1, 1, 1), (x > 0).float().reshape(-1, 1, 1)).reshape(x.shape),
    "a diagonal matrix": by_a_product_of_matrices,
    "a layer that is computed twice": lambda x: F.linear(x, EYE) * (F.linear(x, EYE) > 0),
    "a layer that is computed under no_grad": lambda x: F.linear(x, EYE) * gate(x),
    "a copy of a threshold that changes": against_a_threshold_that_changes,
    "a threshold that changes": against_a_constant_that_changes,
}


@torch.no_grad()
def gate(x: Tensor) -> Tensor:
    return (F.linear(x, EYE) > 0).float() * 1.0


class Shaped(Model):
    """The last layer takes all elements, whatever their shape."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.function(self.first(x))
        return self.last(y.reshape(-1, 4)) + self.relu(self.first(x) + 1).sum()


@pytest.mark.parametrize("name", MASKS)
def test_a_mask_is_named(name: str) -> None:
    for inputs in (torch.zeros(4, 4), torch.randn(4, 4)):
        THRESHOLD.zero_()  # outside of the forward, which must not see where it comes from
        with pytest.raises(WiringError, match=r"\(ReLU\): out of reach"):
            check_wiring(Shaped(MASKS[name]), inputs)
        THRESHOLD.zero_()
        assert "ReLU written out" in {item.node for item in compare(Shaped(MASKS[name]), inputs).out_of_reach}


@pytest.mark.parametrize("shape", [(64, 64), (3, 200), (2, 3, 7, 40), (20, 30, 20), (1000,)])
def test_few_elements_show_a_mask(shape: tuple[int, ...]) -> None:
    """Equal dimensions and a single one are cut, too; the elements may be in another order in another shape."""
    model = Shaped(lambda x: (x * 2).transpose(0, -1) * (x.transpose(0, -1) > 0))
    model.first = nn.Linear(shape[-1], shape[-1], bias=False)
    with pytest.raises(WiringError, match=r"mul\(\) \(ReLU\)"):
        check_wiring(model, torch.randn(shape))


#: The gradient is the same on both sides of the kink, so nothing is chosen there.
STRAIGHT: dict[str, Callable[[Tensor], Tensor]] = {
    "a clip": lambda x: x + (x.clamp(0, 6) - x).detach(),
    "a clip by .data": lambda x: x + (x.clamp(0, 6) - x).data,
    "a clip under no_grad": lambda x: x + clipped(x),
    "a ReLU": lambda x: x + (x * (x > 0) - x).detach(),
    "half": lambda x: 0.5 * x + 0.5 * x.abs().detach(),
    "a sign": lambda x: x + (torch.sign(x) - x).detach(),
}


@torch.no_grad()
def clipped(x: Tensor) -> Tensor:
    return x.clamp(0, 6) - x


@pytest.mark.parametrize("name", STRAIGHT)
def test_a_straight_through_gradient_passes(name: str) -> None:
    for inputs in (torch.zeros(3, 4), torch.randn(3, 4)):
        (wire,) = check_wiring(After(STRAIGHT[name]), inputs)
        assert wire.verdict == "answers"
        assert not [item for item in compare(After(STRAIGHT[name]), inputs).out_of_reach if "written out" in item.node]


#: Masks of other values: the function of one value alone is no activation.
OTHERS: dict[str, Callable[[Tensor], Tensor]] = {
    "a mask of another row": lambda x: x * (x.flip(0) > 0),
    "a mask of another column": lambda x: x.t() * (x > 0).reshape(x.t().shape),
    "a product of matrices by a mask": lambda x: (x > 0).float() @ x.t() @ x,
    "attention with a mask": lambda x: (x @ x.t()).masked_fill(torch.eye(len(x)) > 0, -1e9).softmax(-1) @ x,
    "a layer with another weight": lambda x: F.linear(x, EYE) * (F.linear(x, 2 * EYE.flip(0)) > 0),
    "two masks that differ": lambda x: x * (torch.rand_like(x) > torch.rand_like(x)),
    "a dropout that is drawn twice": lambda x: F.dropout(x) * (F.dropout(x.flip(0)) > 0),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_mask_of_another_value_passes(name: str) -> None:
    for inputs in (torch.zeros(3, 4), torch.randn(3, 4)):
        (wire,) = check_wiring(After(OTHERS[name]), inputs)
        assert wire.verdict == "answers"


def test_what_a_served_activation_overwrites_is_another_value() -> None:
    """The mask is that of the pre-activation, and the product is no function of one value."""

    def gated(x: Tensor) -> Tensor:
        h = x + 0
        mask = h > 0
        F.relu(h, inplace=True)
        return h * mask

    assert compare(After(gated), torch.randn(3, 4)).out_of_reach == ()
