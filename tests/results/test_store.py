"""Finished files: compressed, equal bytes for equal results, and refused where they are damaged."""

from __future__ import annotations

import gzip
import json
import time
from pathlib import Path

import pytest

from relucheck.results.store import SCHEMA, Store, StoreError, packed


def test_a_finished_file_is_compressed_json_without_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = {"steps": list(range(1000)), "void": None}
    first = Store(tmp_path / "a").finish("unit", {"seed": 1}, {"device": "cpu"}, result)
    monkeypatch.setattr(time, "time", lambda: 4e9)
    second = Store(tmp_path / "b").finish("unit", {"seed": 1}, {"device": "cpu"}, result)
    assert first.name == "unit.json.gz"
    assert first.read_bytes() == second.read_bytes()
    content = json.loads(gzip.decompress(first.read_bytes()))
    assert content == {"schema": SCHEMA, "identity": {"seed": 1}, "origin": {"device": "cpu"}, "result": result}
    found = Store(tmp_path / "a").finished("unit", {"seed": 1})
    assert found is not None
    assert found.result == result


@pytest.mark.parametrize(
    "damaged",
    [b"", b"{}", packed({})[:-4], packed({})[:12], gzip.compress(b"\xff\xfe"), gzip.compress(b"[1]"), gzip.compress(b"{")],
    ids=["empty", "plain", "cut", "cut in the header", "no text", "no object", "no JSON"],
)
def test_a_damaged_file_is_refused_and_left_as_it_is(damaged: bytes, tmp_path: Path) -> None:
    store = Store(tmp_path)
    path = store.finished_path("unit")
    path.write_bytes(damaged)
    with pytest.raises(StoreError, match=r"unit\.json\.gz is .*move it away, or name another folder"):
        store.finished("unit", {})
    assert path.read_bytes() == damaged
