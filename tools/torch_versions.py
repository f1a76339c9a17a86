"""Tests relucheck's core against several versions of torch, each in an environment of its own.

For each version: a virtual environment with that torch and relucheck's core dependencies, in which
tests/helpers/core_check.py runs; then, with the extra "networks" and pytest-xdist added, the tests that need no other
optional package. An environment that is there already is used again. A build of torch for CUDA takes 5 GB.

Exit codes: 0 everything passed; 1 something failed; 2 usage.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
#: The oldest version of the range, and one in its middle; the newest is the one that constraints.txt pins.
OLDER = ("2.4.1", "2.11.0")
#: The tests of what runs with the core dependencies and the extra "networks".
CORE = (
    *("tests/activations", "tests/bifurcation", "tests/data", "tests/gate", "tests/networks", "tests/numerics"),
    *("tests/properties", "tests/work", "tests/test_errors.py", "tests/test_pytest_plugin.py"),
)
#: Packages of other extras: a file that imports one is left out, and named.
OTHERS = ("matplotlib", "ray", "scipy", "syrupy", "torchvision")


@dataclasses.dataclass
class Row:
    """What came of one version."""

    version: str
    check: str = "not run"
    tests: str = "not run"
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        return self.check == "passed" and self.tests.startswith("passed")


def pinned() -> str:
    """The version of torch that constraints.txt names."""
    found = re.search(r"^torch==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert found is not None, "constraints.txt pins torch"
    return found[1]


def selected() -> tuple[list[str], dict[str, str]]:
    """The core's test files, and those left out with the package that each of them needs."""
    paths = [
        path for name in CORE for path in ([ROOT / name] if name.endswith(".py") else sorted((ROOT / name).rglob("*.py")))
    ]
    needed = re.compile(rf"^\s*(?:import|from) ({'|'.join(OTHERS)})\b", re.MULTILINE)
    taken, left = [], {}
    for path in paths:
        if path.name.startswith("test_"):
            name, needs = str(path.relative_to(ROOT)), needed.search(path.read_text())
            if needs is None:
                taken.append(name)
            else:
                left[name] = needs[1]
    return taken, left


def run(*command: str | Path, cwd: Path = ROOT, log: Path | None = None) -> tuple[int, str]:
    """Runs a command; returns its exit code and the last line that it printed."""
    # the tests are those of the profile that repeats the same examples
    environment = {**os.environ, "CI": "true", "PYTHONPATH": ""}
    found = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        text=True,
        check=False,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    if log is not None:
        log.write_text(found.stdout)
    lines = found.stdout.strip().splitlines()
    return found.returncode, lines[-1].strip("= ") if lines else ""


def environment(folder: Path, version: str) -> Path:
    """The Python of an environment with a version of torch, made if need be, and relucheck's core in it."""
    place = folder / f"torch-{version}"
    python = place / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", place], check=True)
    # the version named here is the one that stays: pip changes nothing that fits
    subprocess.run([python, "-m", "pip", "install", "--quiet", f"torch=={version}", "--editable", ROOT], check=True)
    return python


def try_version(version: str, folder: Path, logs: Path, workers: str) -> Row:
    """Runs check and tests for one version."""
    row, start = Row(version), time.monotonic()
    python = environment(folder, version)
    log = logs / f"torch-{version}-check.txt"
    # an empty folder: what is checked is what is installed
    with tempfile.TemporaryDirectory() as empty:
        code, last = run(python, ROOT / "tests" / "helpers" / "core_check.py", cwd=Path(empty), log=log)
    row.check = "passed" if code == 0 else f"FAILED ({last}; {log})"
    subprocess.run(
        [python, "-m", "pip", "install", "--quiet", f"torch=={version}", "--editable", f"{ROOT}[networks]", "pytest-xdist"],
        check=True,
    )
    log = logs / f"torch-{version}-tests.txt"
    code, last = run(python, "-m", "pytest", "-n", workers, *selected()[0], log=log)
    row.tests = f"passed ({last})" if code == 0 else f"FAILED ({last}; {log})"
    row.seconds = time.monotonic() - start
    return row


def table(rows: list[Row]) -> str:
    """The results as a Markdown table."""
    lines = ["| torch | core check, no extra | tests of the core | minutes |", "| --- | --- | --- | ---: |"]
    lines += [f"| {row.version} | {row.check} | {row.tests} | {row.seconds / 60:.0f} |" for row in rows]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = [*OLDER, pinned()]
    parser.add_argument(
        "versions", nargs="*", default=default, metavar="VERSION", help=f"of torch; default: {' '.join(default)}"
    )
    parser.add_argument(
        "--environments", type=Path, metavar="FOLDER", help="keep the environments in FOLDER/torch-VERSION; default: delete"
    )
    parser.add_argument("--logs", type=Path, metavar="FOLDER", help="for the full output; default: a new temporary folder")
    parser.add_argument("--workers", default="auto", metavar="N", help="processes of pytest-xdist; default: auto")
    arguments = parser.parse_args()
    logs = arguments.logs or Path(tempfile.mkdtemp(prefix="torch-versions-"))
    logs.mkdir(parents=True, exist_ok=True)
    taken, left = selected()
    print(f"{len(taken)} test files; full output in {logs}")
    for name, needs in left.items():
        print(f"left out: {name} needs {needs}")
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        for version in arguments.versions:
            print(f"torch {version} ...", flush=True)
            rows.append(try_version(version, arguments.environments or Path(temporary), logs, arguments.workers))
            print(table(rows[-1:]), flush=True)
    print(f"\n{table(rows)}")
    return 0 if all(row.passed for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
