"""Tests of the documents run where the documents are."""

from __future__ import annotations

import pytest

from tests.docs.documents import ROOT


@pytest.fixture(autouse=True)
def documents() -> None:
    """Skip where there are none."""
    if not (ROOT / "docs").is_dir():
        pytest.skip("an sdist holds no documents but the README")
