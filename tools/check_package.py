"""Builds sdist and wheel, looks at what they contain, and runs relucheck from the wheel where there is no clone.

The wheel is built from the sdist and installed into a new virtual environment, which borrows every other package from the
environment that runs this script. There tests/helpers/core_check.py runs the gate, the plugin and the command, from an
empty folder and without any optional package. Exit codes: 0 all is well; 1 something is not.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
#: What the package needs beside its modules, by its path inside the package's parent folder.
NEEDED = ("relucheck/py.typed", "relucheck/_data/digits.npz", "relucheck/_data/LICENSE-MNIST")
#: What only the sdist has.
SOURCES = ("pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE", "constraints.txt", "conftest.py", "tests/__init__.py")
#: Folders that no archive may have.
NEVER = ("__pycache__", ".ruff_cache", ".mypy_cache", ".pytest_cache", ".hypothesis", ".import_linter_cache", "reports")


def build(folder: Path) -> tuple[Path, Path]:
    """The sdist, and the wheel that is built from it."""
    subprocess.run([sys.executable, "-m", "build", "--outdir", folder, ROOT], check=True, stdout=subprocess.DEVNULL)
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return sdist, wheel


def contents(sdist: Path, wheel: Path) -> list[str]:
    """What is wrong with the archives."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    # whatever is in the package's folder and not a cache
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "relucheck").rglob("*.py")}
    with tarfile.open(sdist) as archive:
        sources = {name.partition("/")[2] for name in archive.getnames()}
    with zipfile.ZipFile(wheel) as archive:
        installed = set(archive.namelist())
    info = f"relucheck-{version}.dist-info"
    licences = {f"{info}/licenses/LICENSE", f"{info}/licenses/relucheck/_data/LICENSE-MNIST"}
    wrong = [f"{sdist.name} lacks {name}" for name in sorted({*modules, *NEEDED, *SOURCES} - sources)]
    wrong += [f"{wheel.name} lacks {name}" for name in sorted({*modules, *NEEDED, *licences} - installed)]
    wrong += [f"{wheel.name} holds {name}" for name in installed if not name.startswith(("relucheck/", f"{info}/"))]
    for archive, names in ((sdist, sources), (wheel, installed)):
        wrong += [f"{archive.name} holds {name}" for name in names if set(Path(name).parts) & set(NEVER)]
    return wrong


def install(wheel: Path, folder: Path) -> Path:
    """The Python of a new environment that has the wheel, and all else from the environment of this process."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    site = Path(
        subprocess.run(
            [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    )
    # a line of a .pth file adds a folder, and reads no .pth file in it: an editable installation there stays out of reach
    (site / "borrowed.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel],
        check=True,
    )
    return python


def check(python: Path, folder: Path, place: Path) -> list[str]:
    """What is wrong with the installed package, run from an empty folder."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    # a copy: a script's folder is on the path of imports
    script = place / "core_check.py"
    script.write_text((ROOT / "tests" / "helpers" / "core_check.py").read_text())
    found = subprocess.run([python, script], cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    print(found.stdout, end="")
    wrong = [] if found.returncode == 0 else ["the installed package fails its check"]
    if f" of {place}" not in found.stdout.partition("\n")[0]:
        wrong.append(f"what was checked is not the package that was installed into {place}")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary).resolve()
        sdist, wheel = build(folder / "dist")
        print(
            f"{sdist.name} ({sdist.stat().st_size / 2**20:.1f} MiB), {wheel.name} ({wheel.stat().st_size / 2**20:.1f} MiB)"
        )
        empty = folder / "empty"
        empty.mkdir()
        wrong = [*contents(sdist, wheel), *check(install(wheel, folder / "environment"), empty, folder / "environment")]
    for line in wrong:
        print(f"FAIL {line}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
