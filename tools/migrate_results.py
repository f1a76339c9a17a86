"""Rewrite results from schema 1 to schema 2; remove this script when schema 1 is gone.

    python tools/migrate_results.py reports

Schema 1 has one ``result.json`` for a training comparison. It stores an arithmetic and a network in several fields, and the
device of a volume cell is part of the cell's identity. Schema 2 has one file for each seed (``seed-N.json``). It stores an
arithmetic by its name and a network by its description. The device, the processor and the versions are the origin, which is
stored beside the identity.

No number is computed again. Fields are renamed, moved, or (a member's ``parent``) removed, and the digests in the files
and in their names are updated. Reports, tables and figures are not changed; ``relucheck reproduce SCENARIO --out FOLDER``
writes them again from the results. An unfinished run of schema 1 is not migrated and has to start again. Files of schema 2
are not changed, so the script can be run twice.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from relucheck.networks import Network
from relucheck.numerics.arithmetic import DEFAULT, STRICT, Arithmetic
from relucheck.reproduction.folder import LAYOUT_VERSION
from relucheck.results.files import write_atomically
from relucheck.results.store import SCHEMA, Store
from relucheck.training import engine
from relucheck.training.result import MemberResult, SeedResult
from relucheck.training.settings import SCHEMA as SETTINGS_SCHEMA
from relucheck.training.settings import Settings
from relucheck.volume.cell import Cell

_OLD = 1
_NETWORK = ("widths", "activation", "batch_norm", "dropout")


def arithmetic(fields: Mapping[str, Any]) -> Arithmetic:
    """Read an arithmetic from fields of schema 1, where ``strict`` did nothing to wide dtypes."""
    dtype: Any = fields["dtype"]
    narrow = fields.get("mixed") is not None or dtype in ("float16", "bfloat16")
    reduction = STRICT if fields["strict"] and narrow and fields["emulation"] is None else DEFAULT
    return Arithmetic(dtype, fields.get("mixed"), fields["emulation"], fields["tf32"], reduction)


def settings(old: Mapping[str, Any]) -> Settings:
    """Convert the settings of a training comparison."""
    replaced = {"precision", *_NETWORK}
    network = Network("mlp", **{name: old[name] for name in _NETWORK})
    renamed = {"schema": SETTINGS_SCHEMA, "arithmetic": arithmetic(old["precision"]).name, "network": network.to_json()}
    return Settings.from_json({**{key: value for key, value in old.items() if key not in replaced}, **renamed})


def cell(old: Mapping[str, Any]) -> Cell:
    """Convert a cell of a volume table."""
    replaced = {"dtype", "emulation", "strict", "tf32", "hidden_layers", "neurons", "pair"}
    network = Network("mlp", (old["neurons"],) * old["hidden_layers"])
    renamed = {"arithmetic": arithmetic(old).name, "network": network.to_json(), "subgradients": old["pair"]}
    return Cell.from_json({**{key: value for key, value in old.items() if key not in replaced}, **renamed})


def device(old: str) -> str:
    """Convert the words for a device: "cpu AVX512, 1 thread" becomes "cpu (AVX512), 1 thread"."""
    kind, space, rest = old.partition(" ")
    if not space or rest.startswith("("):
        return old
    model, comma, threads = rest.partition(", ")
    return f"{kind} ({model}){comma}{threads}"


def training(folder: Path) -> int:
    """Migrate the runs of a training scenario; return the number of files rewritten.

    Each seed gets an equal share of the comparison's wall time. Schema 1 did not record the processor.
    """
    changed = 0
    for path in sorted(folder.glob("runs/*/result.json")):
        content = json.loads(path.read_bytes())
        new = settings(content["settings"])
        origin = {"device": content["device"], "executor": content["executor"], **content["versions"]}
        fields = [{name: value for name, value in member.items() if name != "parent"} for member in content["members"]]
        members = [MemberResult.from_json(member) for member in fields]
        seconds = content["wall_s"] / len(new.seeds)
        seeds = {
            seed: SeedResult([m for m in members if m.member.seed == seed], content["void"], seconds, origin)
            for seed in new.seeds
        }
        engine.keep(new, path.parent, content["executor"], seeds)
        path.unlink()
        changed += 1
    return changed


def volume(folder: Path) -> int:
    """Migrate the cells and splits of E4 under new names; return the number of files rewritten.

    Their names contain a digest of the identity, which changes.
    """
    changed = 0
    for place in ("cells", "splits"):
        for path in sorted((folder / place).glob("*.json")):
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["schema"] != _OLD:
                continue
            old, result = content["identity"], content["result"]
            new = cell(old["cell"])
            identity = {"cell": new.deciding, "data": old["data"]}
            origin = {"device": device(old["device"]), "torch": old["torch"]}
            if place == "cells":
                result = {**result, "cell": new.deciding, "device": origin["device"]}
                origin["processor"] = old["processor"]
            else:
                identity |= {"decisions": old["decisions"], "limit": old["limit"]}
            Store(folder / place).finish(("split-" if place == "splits" else "") + new.name, identity, origin, result)
            path.unlink()
            changed += 1
    return changed


def mark(path: Path) -> int:
    """Migrate the file scenario.json of a folder, and return the number of files rewritten."""
    content = json.loads(path.read_text(encoding="utf-8"))
    if content.get("results_schema") != _OLD:
        return 0
    new = {**content, "layout_version": LAYOUT_VERSION, "results_schema": SCHEMA, "scenario_version": 2}
    write_atomically(path, json.dumps(new, indent=1) + "\n")
    return 1


def main(root: Path) -> None:
    """Migrate every scenario below ``root``, and print the number of files rewritten in each."""
    marks = sorted(root.rglob("scenario.json"))
    if not marks:
        sys.exit(f"{root} contains no scenario.json, so there is nothing to migrate; name a folder with results")
    for path in marks:
        folder = path.parent
        changed = training(folder) + volume(folder) + mark(path)
        print(f"{folder}: {changed} files rewritten" if changed else f"{folder}: nothing to do")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python tools/migrate_results.py FOLDER")
    main(Path(sys.argv[1]))
