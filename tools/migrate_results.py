"""Rewrites committed results whose arithmetic and network are spelt in several fields: a one-off, for schema 1.

    python tools/migrate_results.py reports

Schema 1 said an arithmetic in the fields of a ``precision`` (training: dtype, mixed, emulation, strict, tf32) or of a cell
(volumes: dtype, emulation, strict, tf32), and a network in the fields widths, activation, batch_norm and dropout (training)
or hidden_layers and neurons (volumes). Schema 2 stores an arithmetic's name, which ``Arithmetic.parse`` reads, and a
network's description, which ``Network.from_json`` reads. No number is computed anew: fields are renamed, digests and the
file names that hold them follow. Files of schema 2 stay as they are, so running it twice does nothing.
Remove this script when no result of schema 1 is left.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from relucheck.networks import Network
from relucheck.numerics.arithmetic import DEFAULT, STRICT, Arithmetic
from relucheck.reproduction.report.document import SUMMARY_VERSION
from relucheck.results.files import write_atomically
from relucheck.results.store import SCHEMA as STORE_SCHEMA
from relucheck.results.store import Store
from relucheck.training.settings import SCHEMA, Settings
from relucheck.volume.cell import Cell

_OLD = 1
_NETWORK = ("widths", "activation", "batch_norm", "dropout")


def arithmetic(fields: Mapping[str, Any]) -> Arithmetic:
    """The arithmetic that the fields of schema 1 spelt; ``strict`` of float32 and float64 changed nothing."""
    dtype: Any = fields["dtype"]
    narrow = fields.get("mixed") is not None or dtype in ("float16", "bfloat16")
    reduction = STRICT if fields["strict"] and narrow and fields["emulation"] is None else DEFAULT
    return Arithmetic(dtype, fields.get("mixed"), fields["emulation"], fields["tf32"], reduction)


def settings(old: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON form of a training comparison's settings."""
    spelt = {"precision", *_NETWORK}
    network = Network("mlp", **{name: old[name] for name in _NETWORK})
    said = {"schema": SCHEMA, "arithmetic": arithmetic(old["precision"]).name, "network": network.to_json()}
    return Settings.from_json({**{key: value for key, value in old.items() if key not in spelt}, **said}).to_json()


def cell(old: Mapping[str, Any]) -> Cell:
    """A cell of a volume table."""
    spelt = {"dtype", "emulation", "strict", "tf32", "hidden_layers", "neurons"}
    network = Network("mlp", (old["neurons"],) * old["hidden_layers"])
    said = {"arithmetic": arithmetic(old).name, "network": network.to_json()}
    return Cell.from_json({**{key: value for key, value in old.items() if key not in spelt}, **said})


def training(folder: Path) -> int:
    """Migrates the folder of a training scenario: runs, summary and the digests in the report. Files rewritten."""
    digests: dict[str, str] = {}
    changed = 0
    for path in sorted(folder.glob("runs/*/result.json")):
        content = json.loads(path.read_bytes())
        if content["schema"] != _OLD:
            continue
        new = settings(content["settings"])
        digests[content["digest"]] = digest = Settings.from_json(new).digest
        content |= {"schema": SCHEMA, "settings": new, "digest": digest}
        write_atomically(path, json.dumps(content, allow_nan=False, separators=(",", ":")).encode())
        changed += 1
    summary = folder / "summary.json"
    if summary.exists():
        content = json.loads(summary.read_text(encoding="utf-8"))
        if content["schema_version"] < SUMMARY_VERSION:
            content["schema_version"] = SUMMARY_VERSION
            for run in content["runs"]:
                run["settings"] = settings(run["settings"])
                run["digest"] = Settings.from_json(run["settings"]).digest
            write_atomically(summary, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
            changed += 1
    report = folder / "report.md"
    if digests and report.exists():
        text = report.read_text(encoding="utf-8")
        for old, digest in digests.items():
            text = text.replace(old[:12], digest[:12])
        write_atomically(report, text)
        changed += 1
    return changed


def volume(folder: Path) -> int:
    """Migrates the folder of E4: cells, splits (renamed, as names hold a digest) and E4.json. Files rewritten."""
    changed = 0
    for place in ("cells", "splits"):
        for path in sorted((folder / place).glob("*.json")):
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["schema"] != _OLD:
                continue
            new = cell(content["identity"]["cell"])
            identity = {**content["identity"], "cell": new.deciding}
            result = content["result"]
            if "cell" in result:
                result = {**result, "cell": new.deciding}
            Store(folder / place).finish(("split-" if place == "splits" else "") + new.name, identity, result)
            path.unlink()
            changed += 1
    table = folder / "E4.json"
    if table.exists():
        content = json.loads(table.read_text(encoding="utf-8"))
        if content["schema"] == _OLD:
            content["schema"] = STORE_SCHEMA
            for row in content["rows"]:
                new = cell(row["cell"])
                row |= {"cell": new.deciding, "file": f"cells/{new.name}.json"}
            write_atomically(table, json.dumps(content, indent=1) + "\n")
            changed += 1
    return changed


def mark(path: Path) -> int:
    """Migrates a folder's scenario.json."""
    content = json.loads(path.read_text(encoding="utf-8"))
    if content.get("results_schema") != _OLD:
        return 0
    write_atomically(path, json.dumps({**content, "results_schema": SCHEMA}, indent=1) + "\n")
    return 1


def main(root: Path) -> None:
    """Migrates every scenario's folder below ``root``, and says of each what it did."""
    marks = sorted(root.rglob("scenario.json"))
    if not marks:
        sys.exit(f"{root} holds no scenario.json, so there is nothing to migrate; name a folder of results")
    for path in marks:
        folder = path.parent
        changed = training(folder) + volume(folder) + mark(path)
        print(f"{folder}: {changed} files rewritten" if changed else f"{folder}: nothing to do")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python tools/migrate_results.py FOLDER")
    main(Path(sys.argv[1]))
