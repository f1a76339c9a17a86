"""The committed audits of four models say in Markdown what their JSON says, and find the planted fault."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.docs.documents import ROOT, tool

FOLDER = ROOT / "reports" / "audit"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))


def content(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return loaded


def test_every_model_is_there() -> None:
    audit_models = tool("audit_models")
    assert sorted(audit_models.CASES) == NAMES
    page = audit_models.page({name: content(name) for name in audit_models.CASES})
    assert (FOLDER / "README.md").read_text(encoding="utf-8") == page


@pytest.mark.parametrize("name", NAMES)
def test_pages_say_what_was_found(name: str) -> None:
    found = content(name)
    page = (FOLDER / f"{name}.md").read_text(encoding="utf-8")
    assert page.splitlines()[2] == f"**{found['conclusion']}**"
    faults = [wire["site"] for wire in found["wires"] if wire["verdict"] == "ignores"]
    assert faults == (["blocks.1.act"] if name == "transformer" else [])
    assert found["failed"] == bool(faults)
    assert not any(part["trained"]["void"] for part in found["parts"])
