"""Determinism switches and generators, and the process as it was afterwards."""

from __future__ import annotations

import os

import pytest
import torch

from relucheck.numerics.determinism import deterministic, generator


@pytest.mark.parametrize("mode", [False, True])
@pytest.mark.parametrize("warn_only", [False, True])
@pytest.mark.parametrize("benchmark", [False, True])
def test_deterministic_puts_the_process_back(
    mode: bool, warn_only: bool, benchmark: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", benchmark)

    def state() -> tuple[bool, bool, bool]:
        return (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
            torch.backends.cudnn.benchmark,
        )

    def run() -> None:
        with deterministic():
            assert state() == (True, False, False)
            assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"  # the user's own stays
            raise KeyError

    torch.use_deterministic_algorithms(mode, warn_only=warn_only)
    try:
        before = state()
        with pytest.raises(KeyError):
            run()
        assert state() == before
    finally:
        torch.use_deterministic_algorithms(False)


def test_deterministic_fixes_the_workspace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # so that monkeypatch puts back what was there
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    with deterministic():
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_generators_do_not_depend_on_each_other() -> None:
    first = torch.rand(4, generator=generator(7))
    torch.rand(3)
    assert torch.equal(torch.rand(4, generator=generator(7)), first)
    assert not torch.equal(torch.rand(4, generator=generator(8)), first)
