"""The report on explained networks is written whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from relucheck import data
from relucheck.reproduction.experiments import explained


def test_the_report_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "folder" / "explained.md"
    options = {"images": data.load("digits"), "dtypes": (torch.float64,)}
    explained.write(target, **options)
    text = target.read_text(encoding="utf-8")
    assert "## float64" in text
    assert "zone: " in text
    monkeypatch.setattr(explained, "_example", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        explained.write(target, **options)
    assert target.read_text(encoding="utf-8") == text
    assert list(target.parent.iterdir()) == [target]
