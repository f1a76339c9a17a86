"""What cannot be audited is refused with one error, which says what to pass."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import relucheck
from relucheck.auditing.asked import AuditError
from relucheck.errors import ModelError, RelucheckError
from tests.helpers.own_models import Penalised, digits, drawn, mlp

BATCHES = digits(2)
MODEL = mlp()


def returning(value: Any) -> Callable[..., Any]:
    return lambda *args: value


def raising(*args: Any) -> Any:
    raise ValueError("no such file")


class Lazy(nn.Module):
    """A model with a tensor that was computed from a parameter, which no copy may hold."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(784, 10)
        self.kept = self.linear.weight * 2

    def forward(self, x: Tensor) -> Any:
        return torch.relu(self.linear(x))


def in_two_dtypes() -> nn.Module:
    model = mlp()
    model.get_submodule("5").bfloat16()
    return model


def with_label_99(number: int) -> list[tuple[Tensor, Tensor]]:
    """Mini-batches of which one has a label that the model does not know."""
    batches = digits(3)
    x, y = batches[number]
    batches[number] = x, torch.full_like(y, 99)
    return batches


class Unreadable(torch.utils.data.Dataset[Any]):
    """A data set whose samples from the fifth on are not there."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Any:
        return {number: (torch.rand(784), 0) for number in range(4)}[index]


def breaking(error: Exception) -> Iterator[tuple[Tensor, Tensor]]:
    """One mini-batch, and then an error."""
    yield BATCHES[0]
    raise error


REFUSED: dict[str, tuple[Any, Any, dict[str, Any], str]] = {
    "no model": (3, BATCHES, {}, "model is of class int: must be an nn.Module, or a function that builds one"),
    "no module": (returning("net"), BATCHES, {}, "returned str: must return an nn.Module"),
    "a factory that raises": (raising, BATCHES, {}, "raising raised ValueError: no such file; it must build the model"),
    "a factory of arguments": (nn.Linear, BATCHES, {}, "Linear raised TypeError: .*missing 2 required positional"),
    "a tensor": (MODEL, torch.rand(2, 784), {}, r"batches is of class Tensor: pass a list of pairs \(inputs, targets\)"),
    "no batches": (MODEL, 3, {}, "batches is of class int: pass a list of pairs"),
    "an empty list": (MODEL, [], {}, "batches is empty: pass a list of pairs"),
    "inputs alone": (MODEL, [torch.rand(2, 784)], {}, "batch 0 is a Tensor: pass a list of pairs"),
    "three parts": (MODEL, [(*BATCHES[0], 1)], {}, "batch 0 is a tuple of length 3: pass a list of pairs"),
    "no tensor": (MODEL, [("x", BATCHES[0][1])], {}, r"batch 0: its inputs hold no tensor \(str\)"),
    "other inputs": (
        MODEL,
        [(torch.rand(2, 3), BATCHES[0][1])],
        {},
        "Sequential.forward fails on these inputs .*",
    ),
    "other targets": (MODEL, [(BATCHES[0][0], "six")], {}, "the loss raised TypeError: .* it gets the output of the model"),
    "no loss": (MODEL, BATCHES, {"loss": 3}, "loss is of class int: must be a function of output and targets"),
    "a label in the last batch": (MODEL, with_label_99(2), {}, "the loss raised IndexError: Target 99 .* on batch 2; "),
    "a label that is compared": (
        MODEL,
        with_label_99(1),
        {"compared": 2, "steps": 0},
        "raised IndexError: Target 99 .* on batch 1; .*: correct the targets of this mini-batch, or pass a loss that fits",
    ),
    "a generator": (
        MODEL,
        breaking(ValueError("bad row")),
        {},
        "reading batch 1 raised ValueError: bad row; pass data that",
    ),
    "a file": (MODEL, breaking(OSError("gone")), {}, "reading batch 1 raised OSError: gone"),
    "a loader": (MODEL, torch.utils.data.DataLoader(Unreadable(), 4), {}, "reading batch 1 raised KeyError: 4"),
    "a loss of vectors": (MODEL, BATCHES, {"loss": lambda o, y: o[:, 0]}, r"a tensor of shape \(16,\), not a scalar"),
    "a loss of floats": (MODEL, BATCHES, {"loss": lambda o, y: 1.0}, "the loss returned float, not a scalar tensor"),
    "a loss apart": (MODEL, BATCHES, {"loss": lambda o, y: torch.zeros(())}, "does not depend on any parameter"),
    "no optimiser": (MODEL, BATCHES, {"optimiser": "adam"}, "optimiser is of class str: must be a function from a list"),
    "half an optimiser": (MODEL, BATCHES, {"optimiser": returning(0)}, "optimiser returned int: must return a torch.optim"),
    "an optimiser that raises": (MODEL, BATCHES, {"optimiser": raising}, "optimiser raised ValueError: no such file"),
    "lbfgs": (MODEL, BATCHES, {"optimiser": torch.optim.LBFGS}, "LBFGS runs the model several times a step"),
    "another's parameters": (
        MODEL,
        BATCHES,
        {"optimiser": lambda p: torch.optim.SGD(mlp().parameters(), lr=0.1)},
        "holds parameters that it was not given",
    ),
    "steps": (MODEL, BATCHES, {"steps": 15}, "steps=15: must be a multiple of 10"),
    "compared": (MODEL, BATCHES, {"compared": 0}, "compared=0: must be a whole number of at least 1"),
    "samples": (MODEL, BATCHES, {"samples": 1.5}, "samples=1.5: must be a whole number"),
    "a name for names": (MODEL, BATCHES, {"arithmetics": "bfloat16"}, "must be a list of names"),
    "no arithmetic": (MODEL, BATCHES, {"arithmetics": ["bfloat17"]}, "bfloat17"),
    "no device": (MODEL, BATCHES, {"device": "cuba"}, "device 'cuba' is not available"),
    "no activation": (nn.Linear(784, 10), BATCHES, {}, "no activation was called on this input"),
    "no parameters": (nn.ReLU(), BATCHES, {}, "no parameter requires a gradient"),
    "two dtypes": (in_two_dtypes, BATCHES, {}, r"parameters of 2 dtypes \(bfloat16, float32\)"),
    "no copy": (Lazy(), BATCHES, {}, "Lazy cannot be copied .*keep no tensors that were computed from parameters"),
    "a compiled model": (torch.compile(mlp()), BATCHES, {}, "is compiled: its activation calls cannot be seen"),
    "a gradient penalty": (drawn(Penalised), BATCHES, {}, "differentiates in its forward or its loss"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_one_clear_error(name: str) -> None:
    model, batches, options, message = REFUSED[name]
    with pytest.raises(RelucheckError, match=message) as caught:
        relucheck.audit(model, batches, **{"steps": 10, "compared": 1, "progress": False, **options})
    assert len(str(caught.value).splitlines()) == 1


def test_a_model_that_is_served_is_not_refused() -> None:
    """The errors above are not those of every call."""
    relucheck.audit(MODEL, BATCHES, steps=0, compared=1, progress=False)
    x, y = BATCHES[0]
    loader = torch.utils.data.DataLoader(list(zip(x, y, strict=True)), batch_size=4)
    audit = relucheck.audit(functools.partial(mlp, dead=1), loader, steps=0, compared=2, progress=False)
    assert (audit.batches, audit.batch_samples) == (2, 4)


def test_errors_have_classes_and_exit_codes() -> None:
    with pytest.raises(ModelError) as caught:
        relucheck.audit(nn.Linear(784, 10), BATCHES, steps=0, progress=False)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("batches", [with_label_99(2), breaking(OSError("gone"))], ids=["loss", "data"])
def test_a_fault_of_a_later_mini_batch_is_an_error_of_the_audit(batches: Any) -> None:
    with pytest.raises(AuditError) as caught:
        relucheck.audit(MODEL, batches, steps=10, compared=1, progress=False)
    assert caught.value.exit_code == 2
