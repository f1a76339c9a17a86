"""What cannot be a subgradient or an input is refused with one clear error."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from relucheck.activations.modules import LeakyReLU, ReLU, ReLU6
from relucheck.activations.rules import SubgradientError, as_subgradient

NOT_SUBGRADIENTS = [
    math.nan, math.inf, -math.inf, True, False, "0.5", 1j, [0.5], np.array([0.5]), np.bool_(True), 10**400,
    torch.tensor(math.nan), torch.tensor([0.5, math.inf]), torch.tensor(True), torch.tensor(1j), torch.empty(0),
    torch.zeros(2, device="meta"),
]  # fmt: skip


@pytest.mark.parametrize("value", NOT_SUBGRADIENTS, ids=lambda value: str(value)[:24])
@pytest.mark.parametrize(
    ("make", "owner"),
    [(ReLU, "ReLU(subgradient)"), (ReLU6, "ReLU6(alpha)"), (lambda s: ReLU6(0.0, s), "ReLU6(beta)"),
     (lambda s: LeakyReLU(0.1, s), "LeakyReLU(subgradient)")],
    ids=["ReLU", "ReLU6-alpha", "ReLU6-beta", "LeakyReLU"],
)  # fmt: skip
def test_what_cannot_be_a_subgradient(make: Callable[[Any], nn.Module], owner: str, value: Any) -> None:
    with pytest.raises(SubgradientError) as error:
        make(value)
    for part in (
        f"{owner}={value!r}",
        "finite real number",
        "one per ensemble member",
        "pass a float such as 0.0, 0.5 or -0.5",
    ):
        assert part in str(error.value)


@pytest.mark.parametrize("value", NOT_SUBGRADIENTS, ids=lambda value: str(value)[:24])
def test_setting_what_cannot_be_a_subgradient_changes_nothing(value: Any) -> None:
    module = ReLU6(0.5, 0.25)
    with pytest.raises(SubgradientError, match=r"ReLU6\.beta="):
        module.beta = value
    assert (module.alpha, module.beta) == (0.5, 0.25)


def test_none_is_for_leaky_only() -> None:
    for make in (ReLU, ReLU6):
        with pytest.raises(SubgradientError, match="=None: a subgradient is a finite real number"):
            make(None)
    with pytest.raises(SubgradientError, match=r"ReLU\.subgradient=None"):
        ReLU().subgradient = None


@pytest.mark.parametrize(
    "value",
    [1, 0.5, -0.5, 0.0, -0.0, 5e-324, 1e300, Fraction(1, 2), np.float16(0.5), np.float32(0.1), np.float64(0.1), np.int64(2),
     torch.tensor(0.5), torch.tensor(2), torch.tensor(0.1, dtype=torch.bfloat16), torch.tensor(0.5, requires_grad=True)],
    ids=str,
)  # fmt: skip
def test_any_real_number_is_a_subgradient(value: Any) -> None:
    module = ReLU(value)
    assert module.subgradient == float(value.detach() if isinstance(value, Tensor) else value)
    assert type(module.subgradient) is float
    assert not module.subgradient_tensor.requires_grad
    assert as_subgradient(value).dtype == torch.float64


def test_unsupported_input_dtype() -> None:
    x = torch.tensor([1 + 1j], requires_grad=True)
    with pytest.raises(RuntimeError):  # torch's own refusal
        ReLU(0.5)(x)
    from relucheck.numerics.dtypes import UnsupportedDtypeError

    x = torch.zeros(2).to(torch.float8_e4m3fn).requires_grad_()
    with pytest.raises((RuntimeError, UnsupportedDtypeError)):
        ReLU(0.5)(x)
