"""The forking executor against every member trained by itself, and against a plain PyTorch loop: bit for bit."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from relucheck import activations, data, executors, members, networks
from relucheck.executors import ForkingExecutor, Split
from relucheck.numerics import deterministic
from relucheck.training_settings import Optimiser, Precision, Settings, members_of

SETTINGS = Settings(
    "digits",
    (16, 12),
    members_of([3], [-0.5, 1.0]),
    optimiser=Optimiser(eps=1e-4),
    epochs=2,
    batch_size=32,
    train_samples=144,
    test_samples=60,
)
CPU = torch.device("cpu")
VARIATIONS: dict[str, dict[str, Any]] = {
    "float64": {"precision": Precision("float64")},
    "float32": {},
    "bfloat16": {"precision": Precision("bfloat16")},
    "float16": {"precision": Precision("float16")},
    "mixed bfloat16": {"precision": Precision("float32", mixed="bfloat16")},
    "mixed float16": {"precision": Precision("float32", mixed="float16")},
    "product": {"precision": Precision("bfloat16", emulation="product")},
    "split-k": {"precision": Precision("bfloat16", emulation="split-k 4")},
    "product float16": {"precision": Precision("float16", emulation="product")},
    "tf32": {"precision": Precision("float32", emulation="tf32")},
    "sgd": {"optimiser": Optimiser("sgd", lr=0.1)},
    "sgd momentum": {"optimiser": Optimiser("sgd", lr=0.1, momentum=0.9)},
    "adam unfused bfloat16": {"optimiser": Optimiser(fused=False), "precision": Precision("bfloat16")},
    "adam unfused mixed": {"optimiser": Optimiser(fused=False), "precision": Precision("float32", mixed="float16")},
    "sgd unfused": {"optimiser": Optimiser("sgd", lr=0.1, momentum=0.9, fused=False)},
    "batch norm": {"batch_norm": True},
    "batch norm bfloat16": {"batch_norm": True, "precision": Precision("bfloat16", emulation="product")},
    "dropout": {"dropout": 0.2},
    "shuffle": {"shuffle": True},
    "relu6": {"activation": "relu6", "members": members_of([3], [-0.5, 1.0], second=0.5)},
    "leaky_relu": {"activation": "leaky_relu"},
}


def _splits(settings: Settings) -> tuple[Split, Split]:
    found = []
    for split, count in (("train", settings.train_samples), ("test", settings.test_samples)):
        loaded = data.load("digits", split)
        order = torch.randperm(len(loaded), generator=torch.Generator().manual_seed(0))[:count]
        images = data.scale(loaded.images[order], settings.precision.torch_dtype)
        found.append(Split(images, loaded.labels[order]))
    return found[0], found[1]


def _run(settings: Settings, **options: Any) -> ForkingExecutor:
    train, test = _splits(settings)
    with settings.precision.arithmetic.active(), deterministic():
        run = ForkingExecutor(settings, settings.seeds[0], train, test, CPU, **options)
        steps = -(-len(train) // settings.batch_size)
        for epoch in range(settings.epochs):
            run.begin(epoch)
            for step in range(steps):
                start = step * settings.batch_size
                run.step(start, min(start + settings.batch_size, len(train)), epoch * steps + step + 1)
            run.end()
    return run


@pytest.fixture
def dead_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two units of the first layer that start at exactly 0 on every image: hits in every arithmetic."""
    original = members.build

    def build(settings: Settings, *rest: Any) -> nn.Module:
        model = original(settings, *rest)
        first: Any = model[0]
        with torch.no_grad():
            first.weight[2:4].zero_()
            first.bias[2:4] = 6.0 if settings.activation == "relu6" else 0.0
            first.bias[3] = 0.0
        return model

    monkeypatch.setattr(executors, "build", build)


def _parameters(run: ForkingExecutor) -> dict[int, dict[str, torch.Tensor]]:
    return {index: dict(branch.model.state_dict()) for branch in run.branches for index in branch.members}


def _without_forks(run: ForkingExecutor) -> list[dict[str, Any]]:
    rows = [result.to_json() for result in run.results.values()]
    return [{k: v for k, v in row.items() if k not in ("forked_at", "parent")} for row in rows]


@pytest.mark.usefixtures("dead_units")
@pytest.mark.parametrize("variation", VARIATIONS)
def test_forking_equals_every_member_by_itself(variation: str) -> None:
    settings = dataclasses.replace(SETTINGS, **VARIATIONS[variation])
    forked, apart = _run(settings), _run(settings, apart=True)
    assert forked.void is None
    assert apart.void is None
    assert len(forked.branches) > 2, "no member forked, so nothing was tested"
    ours, theirs = _parameters(forked), _parameters(apart)
    assert ours.keys() == theirs.keys() == forked.results.keys()
    for index, parameters in ours.items():
        for name, value in parameters.items():
            assert torch.equal(
                value.contiguous().view(-1).view(torch.uint8), theirs[index][name].contiguous().view(-1).view(torch.uint8)
            )
    assert _without_forks(forked) == _without_forks(apart)


PLAIN: dict[str, Callable[[], Any]] = {
    "float64": lambda: torch.float64,
    "float32": lambda: torch.float32,
    "bfloat16": lambda: torch.bfloat16,
    "float16": lambda: torch.float16,
}


@pytest.mark.usefixtures("dead_units")
@pytest.mark.parametrize("dtype", PLAIN)
def test_chain_equals_a_plain_loop_with_public_modules(dtype: str) -> None:
    """relucheck's public modules, set_subgradient, torch's own optimiser: the chain rule's member is that run."""
    settings = dataclasses.replace(SETTINGS, precision=Precision(dtype))
    run = _run(settings)
    train, _ = _splits(settings)
    for subgradient in (0.0, -0.5, 1.0):
        index = next(i for i, m in enumerate(settings.members) if m.subgradient == subgradient and m.rule == "chain")
        made = executors.build(settings, 3, members.Clock(3), members.Switch())
        plain = nn.Sequential(*[activations.ReLU() if isinstance(m, members.Kinked) else m for m in made])
        networks.set_subgradient(plain, subgradient)
        optimiser = torch.optim.Adam(plain.parameters(), lr=1e-3, eps=1e-4, fused=True)
        for _ in range(settings.epochs):
            for x, y in zip(train.images.split(32), train.labels.split(32), strict=True):
                optimiser.zero_grad()
                nn.functional.cross_entropy(plain(x), y).backward()
                optimiser.step()
        ours = [p for b in run.branches if index in b.members for p in b.model.parameters()]
        for a, b in zip(ours, plain.parameters(), strict=True):
            assert torch.equal(a, b)
