"""The forking executor on a CUDA device: recorded steps have the bits of eager ones, and no step waits for the device."""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from relucheck.networks import Network
from relucheck.numerics.determinism import deterministic
from relucheck.training.engine import without_fill
from relucheck.training.forking import Branch, ForkingExecutor
from relucheck.training.masks import masked
from relucheck.training.members import members_of
from relucheck.training.settings import Optimiser, Settings
from relucheck.training.splits import split_of
from tests.helpers.training_case import changed

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="trains on a CUDA device, and torch finds none")

DEVICE = torch.device("cuda")
SETTINGS = Settings(
    "digits",
    Network("residual", (8, 8), batch_norm=True),
    members_of([3], [-0.5, 1.0], nudges=2),
    arithmetic="bfloat16",  # type: ignore[arg-type]
    optimiser=Optimiser(eps=1e-4),
    epochs=2,
    batch_size=32,
    train_samples=144,
    test_samples=60,
    shuffle=True,
)
CASES: dict[str, dict[str, Any]] = {
    "bfloat16": {},
    "float16": {"arithmetic": "float16"},
    "float32": {"arithmetic": "float32"},
    "float32 TF32": {"arithmetic": "float32 TF32"},
    "float64": {"arithmetic": "float64"},
    "rounded": {"arithmetic": "bfloat16 emulated (rounded)"},
    "product": {"arithmetic": "bfloat16 emulated (product)"},
    "split-k": {"arithmetic": "bfloat16 emulated (split-k 4)"},
    "mixed bfloat16": {"arithmetic": "mixed bfloat16"},
    "mixed float16": {"arithmetic": "mixed float16"},
    "relu6": {"activation": "relu6", "members": members_of([3], [-0.5, 1.0], second=0.5)},
    "leaky_relu": {"activation": "leaky_relu"},
    "dropout": {"dropout": 0.2},
    "every third step": {"every": 3},
    "sgd": {"optimiser": Optimiser("sgd", 0.1, momentum=0.9)},
    "adam fused": {"optimiser": Optimiser(fused=True)},
    "diverges": {"arithmetic": "float16", "optimiser": Optimiser("sgd", 1e4)},
    "convnet": {"kind": "convnet", "widths": (8, 4), "dropout": 0.2},
    "mlp": {"kind": "mlp", "widths": (64, 32), "batch_norm": False, "dropout": 0.2},
    "mlp float32": {"kind": "mlp", "widths": (64, 32), "batch_norm": False, "arithmetic": "float32"},
    # ties of max pooling, and hits of Hardswish and Hardsigmoid, are counted on the device, too
    "lenet": {"kind": "lenet", "widths": (4, 6, 16, 12), "batch_norm": False},
    "inverted-residual": {"kind": "inverted-residual", "widths": (4, 6), "activation": "relu6"},
}


@contextlib.contextmanager
def _trains(settings: Settings) -> Iterator[None]:
    with settings.arithmetic.active(), deterministic(), without_fill():
        yield


def _run(settings: Settings, **options: Any) -> ForkingExecutor:
    with _trains(settings):
        train, test = (split_of(settings, split, None, DEVICE) for split in ("train", "test"))
        run = ForkingExecutor(settings, 3, train, test, DEVICE, **options)
        steps = settings.steps_of(len(train))
        for epoch in range(settings.epochs):
            run.begin(epoch)
            for step in range(steps):
                start = step * settings.batch_size
                run.step(start, min(start + settings.batch_size, len(train)), epoch * steps + step + 1)
            run.end()
    return run


def _check_same(one: ForkingExecutor, other: ForkingExecutor) -> None:
    ours, theirs = (
        {index: branch.model.state_dict() for branch in run.branches for index in branch.members} for run in (one, other)
    )
    assert ours.keys() == theirs.keys()
    for index, values in ours.items():
        for name, value in values.items():
            bits, wanted = (part.contiguous().view(-1).view(torch.uint8) for part in (value, theirs[index][name]))
            assert torch.equal(bits, wanted), f"{name} of member {index}"
    assert [result.to_json() for result in one.results.values()] == [result.to_json() for result in other.results.values()]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_kernels_pass_the_trial(dtype: torch.dtype) -> None:
    pytest.importorskip("triton", reason="tries Triton's kernels, and Triton is not installed")
    assert masked.fused(torch.device("cuda", 0), dtype) is not None


@pytest.mark.parametrize("case", CASES)
def test_recorded_steps_have_the_bits_of_eager_ones(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = changed(SETTINGS, **CASES[case])
    recorded = _run(settings)
    assert recorded.void is None
    recordings = [replay for branch in recorded.branches for replay, _ in branch._recorded.values()]
    assert all(replay is not None for replay in recordings), "a replay has other bits than the work itself"
    assert bool(recordings) != (settings.arithmetic.scaled or not recorded.branches)
    with monkeypatch.context() as patch:
        patch.setattr(Branch, "replay", lambda *_, **options: False)
        _check_same(recorded, _run(settings))  # masks and deferred comparisons, but eager
    _check_same(recorded, _run(settings, deferred=False))  # coordinates of hits, and comparisons after each step


@pytest.mark.parametrize(
    "case", ["bfloat16", "rounded", "dropout", "sgd", "adam fused", "mlp", "lenet", "inverted-residual"]
)
def test_no_step_waits_for_the_device(case: str) -> None:
    """Where each branch has one choice; torch raises where something waits."""
    settings = changed(SETTINGS, **{**CASES[case], "members": members_of([3], [1.0], ["injected"])})
    with _trains(settings):
        train, test = (split_of(settings, split, None, DEVICE) for split in ("train", "test"))
        run = ForkingExecutor(settings, 3, train, test, DEVICE, apart=True)
        run.begin(0)
        size = settings.batch_size
        for step in range(3):
            run.step(step * size, (step + 1) * size, step + 1)
        before = torch.cuda.get_sync_debug_mode()
        try:
            with warnings.catch_warnings():  # torch warns once that the mode is a prototype
                warnings.simplefilter("ignore", UserWarning)
                torch.cuda.set_sync_debug_mode("error")
            run.step(3 * size, 4 * size, 4)
        finally:
            torch.cuda.set_sync_debug_mode(before)
        run.end()
    assert run.void is None
    assert all(len(result.steps.step) == 4 for result in run.results.values())


def test_an_executor_whose_recordings_are_gone_leaves_nothing_behind() -> None:
    """Another one, whose recordings may take over its memory, gives the same results."""
    settings = dataclasses.replace(SETTINGS, members=members_of([3], [1.0]), epochs=1)
    first = _run(settings)
    expected = [result.to_json() for result in first.results.values()]
    del first
    for _ in range(2):
        assert [result.to_json() for result in _run(settings).results.values()] == expected
