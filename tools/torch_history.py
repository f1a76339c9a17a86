"""Write reports/gate/history.md: what the gate sees change in torch from one version to the next.

    python tools/torch_history.py                 writes the page from the stored reports
    python tools/torch_history.py --add PYTHON    first runs the gate under PYTHON, and stores its report

PYTHON is that of an environment with another version of torch, such as tools/torch_versions.py makes and keeps
(--environments FOLDER). It runs this source tree. The report of a version is reports/gate/history/torch-VERSION.json;
`relucheck kinks torch.nn --against FILE` can compare with it, too.

A person judges each change in reports/gate/history/judgements.toml. Exit codes: 0 the page is written; 1 a change has no
judgement, or a judgement no change; 3 PYTHON cannot run the gate.
"""

from __future__ import annotations

import argparse
import collections
import fnmatch
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from relucheck.gate.report.documents import read_json
from relucheck.gate.report.drift import drift
from relucheck.gate.report.tables import modes
from relucheck.gate.verdicts import item_id
from relucheck.results.files import write_atomically
from relucheck.results.tables import Table, listed

ROOT: Final = Path(__file__).resolve().parents[1]
FOLDER: Final = ROOT / "reports" / "gate" / "history"
#: The targets of the runs of one report: apart, since the gate compares the activations of one run with each other.
TARGETS: Final = (("torch.nn", "torch.nn.functional"), ("reports/gate/history/spellings.py",))
_DESCRIBE: Final = (
    "import json; from relucheck.numerics.devices import environment; print(json.dumps(environment('cpu').to_json()))"
)
_CELLS: Final = {"failed": "fails", "notice": "notice", "skipped": "skipped", "passed": "passes", "absent": "not there"}
_NUMBER: Final = re.compile(r"-?\d[\d.]*(e[+-]?\d+)?|\b(nan|inf)\b")
Report = Mapping[str, Any]


class NoRun(Exception):
    """The gate cannot run under a given Python."""


# -- reports --------------------------------------------------------------------------------------------------------------


def thinned(bodies: Sequence[Report], environment: Mapping[str, Any]) -> dict[str, Any]:
    """Return one report for those of several runs, with the kink tables and the first lines of messages.

    The list "outcomes" holds, by law, outcome and message, activations with their dtypes. What passed is left out.
    """
    groups: dict[tuple[str, str, str], dict[str, list[str]]] = {}
    for result in itertools.chain.from_iterable(body["results"] for body in bodies):
        if result["outcome"] != "passed":
            message = (
                result["message"].split("\n")[0].removeprefix(f"{result['activation']}/{result['law']}/{result['dtype']}: ")
            )
            names = groups.setdefault((result["law"], result["outcome"], message), {})
            names.setdefault(result["activation"], []).append(result["dtype"])
    keys = ("law", "outcome", "message")
    return {
        **{key: bodies[0][key] for key in ("schema", "schema_version")},
        "versions": dict(environment),
        "targets": [target for body in bodies for target in body["targets"]],
        "counts": dict(sum((collections.Counter(body["counts"]) for body in bodies), collections.Counter())),
        "outcomes": [dict(zip(keys, group, strict=True)) | {"items": names} for group, names in groups.items()],
        "searched": {name: dtypes for body in bodies for name, dtypes in body["searched"].items()},
        "kinks": [row for body in bodies for row in body["kinks"]],
    }


def add(python: Path) -> Path:
    """Run the gate under a Python, and store its report.

    Raises:
        NoRun: the gate does not run there.
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryDirectory() as temporary:
        bodies = []
        for number, targets in enumerate(TARGETS):
            file = Path(temporary) / f"{number}.json"
            command = [python, "-m", "relucheck", "check", *targets, "--quiet", "--report", file]
            found = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
            if found.returncode not in (0, 1):
                raise NoRun(f"{python} cannot run the gate (exit code {found.returncode}): {found.stderr.strip()}")
            bodies.append(read_json(file))
        found = subprocess.run([python, "-c", _DESCRIBE], env=environment, capture_output=True, text=True, check=True)
    body = thinned(bodies, json.loads(found.stdout))
    place = FOLDER / f"torch-{release(body)}.json"
    lines = ",\n".join(f'"{key}": {_lines(value)}' for key, value in body.items())
    write_atomically(place, f"{{\n{lines}\n}}\n")
    return place


def _lines(value: Any) -> str:
    """Format a value as JSON, with a line for each element of a list of objects."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return "[\n" + ",\n".join(json.dumps(each, ensure_ascii=False) for each in value) + "\n]"
    return json.dumps(value, ensure_ascii=False)


def release(body: Report) -> str:
    """The version of torch without the name of its build."""
    return str(body["versions"]["torch"]).partition("+")[0]


def stored(folder: Path = FOLDER) -> list[dict[str, Any]]:
    """Return the stored reports, the oldest version of torch first."""
    bodies = [read_json(path) for path in folder.glob("torch-*.json")]
    return sorted(bodies, key=lambda body: [int(part) for part in release(body).split(".")])


# -- changes --------------------------------------------------------------------------------------------------------------


class Change(NamedTuple):
    """An item of the gate, or a kink, that is not the same in all versions.

    Attributes:
        id: the item's id, or "ACTIVATION/kink at POSITION".
        cells: what each version does there, in words; equal words where the versions differ in the text of a message.
    """

    id: str
    cells: tuple[str, ...]


def changes(bodies: Sequence[Report]) -> list[Change]:
    """Return what differs between reports, given from the oldest to the newest."""
    return [*_of_laws(bodies), *_of_kinks(bodies)]


def _of_laws(bodies: Sequence[Report]) -> list[Change]:
    tables = [
        {
            item_id(name, group["law"], dtype): (group["outcome"], group["message"])
            for group in body["outcomes"]
            for name, dtypes in group["items"].items()
            for dtype in dtypes
        }
        for body in bodies
    ]
    there = [{*body["searched"], *(name for group in body["outcomes"] for name in group["items"])} for body in bodies]
    found = []
    for id in dict.fromkeys(itertools.chain.from_iterable(tables)):
        name = id.partition("/")[0]
        states = [
            table.get(id, ("passed", "")) if name in names else ("absent", "")
            for table, names in zip(tables, there, strict=True)
        ]
        # numbers in a message, such as a count of inputs, differ with the position that was tried first
        if len({(outcome, _NUMBER.sub("#", message)) for outcome, message in states}) > 1:
            found.append(Change(id, tuple(_CELLS[outcome] for outcome, _ in states)))
    return found


def _of_kinks(bodies: Sequence[Report]) -> list[Change]:
    changed = {
        line.partition(":")[0]
        for old, new in itertools.pairwise(bodies)
        for line in drift(*(_both(body, old, new) for body in (old, new)))
    }
    found = []
    for label in sorted(changed):
        name, _, at = label.rpartition(" at ")
        cells = []
        for body in bodies:
            rows = [row for row in body["kinks"] if row["activation"] == name and f"{row['at']:g}" == at]
            cells.append(_subgradients(rows[0]) if rows else "no kink" if name in body["searched"] else "not there")
        found.append(Change(f"{name}/kink at {at}", tuple(cells)))
    return found


def _both(body: Report, *others: Report) -> list[Mapping[str, Any]]:
    """Return the rows of activations that two reports have."""
    return [row for row in body["kinks"] if all(row["activation"] in other["searched"] for other in others)]


def _subgradients(row: Mapping[str, Any]) -> str:
    """Format the subgradients of a kink: one text where the dtypes agree."""
    dtypes: dict[str, list[str]] = {}
    for dtype, subgradient in row["subgradient"].items():
        dtypes.setdefault(modes(subgradient), []).append(dtype)
    return (
        next(iter(dtypes))
        if len(dtypes) == 1
        else "; ".join(f"{', '.join(names)}: {text}" for text, names in dtypes.items())
    )


# -- page -----------------------------------------------------------------------------------------------------------------


def judged(found: Iterable[Change], judgements: Sequence[Mapping[str, Any]]) -> tuple[dict[int, list[Change]], list[str]]:
    """Give each change to the first judgement whose patterns match it.

    Returns:
        The changes by the index of their judgement, and a line for each change and each judgement that is left over.
    """
    rows: dict[int, list[Change]] = {}
    problems = []
    for change in found:
        for number, judgement in enumerate(judgements):
            if any(fnmatch.fnmatchcase(change.id, pattern) for pattern in judgement["items"]):
                rows.setdefault(number, []).append(change)
                break
        else:
            problems.append(f"no judgement: {change.id}: {' -> '.join(change.cells)}")
    problems += [
        f"no change: {listed(judgement['items'])}" for number, judgement in enumerate(judgements) if number not in rows
    ]
    return rows, problems


def page(bodies: Sequence[Report], text: Mapping[str, Any]) -> tuple[str, list[str]]:
    """Return the page, and what its judgements lack."""
    versions = [release(body) for body in bodies]
    rows, problems = judged(changes(bodies), text["change"])
    table = []
    for number, judgement in enumerate(text["change"]):
        groups: dict[tuple[str, ...], list[str]] = {}
        for change in rows.get(number, ()):
            groups.setdefault(change.cells, []).append(change.id)
        # one cell for all items of a change where they agree, else one for each group of items
        cells = [
            "; ".join(dict.fromkeys(column) if len(set(column)) == 1 else column) for column in zip(*groups, strict=True)
        ]
        where = "; ".join(map(items, groups.values()))
        table.append([judgement["what"], where, *cells, judgement["right"], " ".join(judgement["why"].split())])
    runs = [
        [
            version,
            body["versions"]["python"],
            f"{body['versions']['processor']}, {body['versions']['model']}",
            *(str(body["counts"].get(outcome, 0)) for outcome in ("failed", "notice", "passed", "skipped")),
        ]
        for version, body in zip(versions, bodies, strict=True)
    ]
    header = ["torch", "Python", "processor, vector instructions", "failed", "notices", "passed", "skipped"]
    return (
        "\n".join(
            [
                text["opening"].strip(),
                "",
                *Table(header, runs, right=header[3:]).markdown(),
                "",
                "## What changed",
                "",
                text["table"].strip(),
                "",
                *Table(["change", "items", *versions, "right", "why"], table).markdown(),
                "",
                text["closing"].strip(),
                "",
            ]
        ),
        problems,
    )


def items(ids: Sequence[str]) -> str:
    """Format ids, with the dtypes and then the activations of one law together."""
    dtypes: dict[tuple[str, str], list[str]] = {}
    for id in ids:
        name, law, *dtype = id.split("/")
        dtypes.setdefault((name, law), []).extend(dtype)
    names: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for (name, law), found in dtypes.items():
        names.setdefault((law, tuple(found)), []).append(name)
    return "; ".join(
        f"{', '.join(activations)}: {law}" + (f" ({', '.join(found) if len(found) < 4 else 'all dtypes'})" if found else "")
        for (law, found), activations in names.items()
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--add", type=Path, metavar="PYTHON", action="append", default=[], help="run the gate under it first"
    )
    try:
        for python in parser.parse_args(argv).add:
            print(f"stored {add(python).relative_to(ROOT)}", flush=True)
    except NoRun as problem:
        print(problem, file=sys.stderr)
        return 3
    text, problems = page(stored(), tomllib.loads((FOLDER / "judgements.toml").read_text(encoding="utf-8")))
    write_atomically(FOLDER.with_suffix(".md"), text)
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
