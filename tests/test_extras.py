"""What runs without the optional packages, what says that one is missing, and what starts without torch."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path

import pytest

import relucheck
from relucheck.errors import MISSING, RelucheckError
from relucheck.extras import EXTRAS, MissingExtraError, require
from relucheck.reproduction.run import reproduce
from tests.helpers import core_check, forked

ROOT = Path(relucheck.__file__).parents[1]


def run_without(missing: set[str], program: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Runs a program in a process where some packages cannot be imported; torch, which needs none of them, has been."""
    code = core_check.WITHOUT.format(missing=missing) + textwrap.dedent(program)
    return forked.python("-c", code, cwd=cwd)


REPRODUCE = 'run: pip install "relucheck[reproduce]"'
#: A statement that needs an optional package, and what it says without any of them.
NEEDS = {
    "from relucheck.networks.strategies import examples": (
        'relucheck.networks.strategies needs hypothesis; run: pip install "relucheck[networks]"'
    ),
    "from relucheck.hits.rates import poisson_interval; poisson_interval(3)": (
        f"an interval of a hit rate needs scipy; {REPRODUCE}"
    ),
    "from relucheck.hits.validation import _probability; _probability(3, 2.0)": (
        f"the p-value of a number of hits needs scipy; {REPRODUCE}"
    ),
    "from relucheck.results.statistics import summarise; summarise([1.0, 2.0])": (
        f"a test or interval of a mean needs scipy; {REPRODUCE}"
    ),
    "from relucheck.results.statistics import paired; paired([2.0, 4.0], [1.0, 1.0])": (
        f"a test or interval of a mean needs scipy; {REPRODUCE}"
    ),
    "from relucheck.results.proportions import interval; interval(3, 10)": (
        f"an interval of a share needs scipy; {REPRODUCE}"
    ),
    "from relucheck.results.proportions import exact_test; exact_test(3, 10, 4, 10)": (
        f"a test of two shares needs scipy; {REPRODUCE}"
    ),
    "from relucheck.results.figures import blank; blank(3.0, 2.0)": f"a figure needs matplotlib; {REPRODUCE}",
    "from relucheck.hits.architectures import resnet50; resnet50()": f"a ResNet-50 needs torchvision; {REPRODUCE}",
    "import torch; from relucheck.hits.validation import resnet50_hits as hits; hits(torch.half, mixed=False)": (
        f"a ResNet-50 needs torchvision; {REPRODUCE}"
    ),
    "import relucheck.work.cluster": 'work on Ray needs ray; run: pip install "relucheck[ray]"',
    "import relucheck.search.tuning": 'a search needs ray; run: pip install "relucheck[ray]"',
    "from relucheck.data import load_mnist; load_mnist('here', 'test')": (
        "data root here lacks MNIST/raw/t10k-images-idx3-ubyte, MNIST/raw/t10k-labels-idx1-ubyte, and a download needs "
        f"torchvision; {REPRODUCE}, or put t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte (as they are, or "
        "gzip-compressed with .gz added) into here/MNIST/raw"
    ),
}


def test_a_missing_package_is_one_line_with_the_command(tmp_path: Path) -> None:
    program = f"""
        from relucheck.extras import MissingExtraError
        import relucheck.hits.rates, relucheck.networks, relucheck.training.engine, relucheck.volume.estimate

        for statement in {list(NEEDS)!r}:
            try:
                exec(statement)
            except MissingExtraError as error:
                print(error)
            else:
                print("nothing was missing")
    """
    found = run_without(set(EXTRAS), program, tmp_path)
    assert (found.returncode, found.stderr) == (0, "")
    assert dict(zip(NEEDS, found.stdout.splitlines(), strict=True)) == NEEDS
    assert list(tmp_path.iterdir()) == [], "nothing is written before"


def test_reproducing_asks_for_its_packages_before_any_work(tmp_path: Path) -> None:
    program = """
        from relucheck.__main__ import main
        sys.exit(main(["reproduce", "E1", "--scale", "smoke"]))
    """
    found = run_without({"matplotlib"}, program, tmp_path)
    said = f"relucheck: reproducing experiments needs scipy and matplotlib; {REPRODUCE}\n"
    assert (found.returncode, found.stderr, found.stdout) == (MISSING, said, "")
    assert list(tmp_path.iterdir()) == []


def test_a_package_that_cannot_be_imported_is_noticed_before_any_work(tmp_path: Path) -> None:
    """As one that was built for another numpy: it is installed, and fails when it is imported."""
    broken = tmp_path / "packages" / "matplotlib"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text('raise AttributeError("module numpy\\nhas no attribute")')
    program = f"""
        import sys
        sys.path.insert(0, {str(broken.parent)!r})
        from relucheck.__main__ import main
        sys.exit(main(["reproduce", "E1", "--scale", "smoke"]))
    """
    empty = tmp_path / "empty"
    empty.mkdir()
    found = run_without(set(), program, empty)
    said = (
        "relucheck: reproducing experiments needs matplotlib, which is installed and cannot be imported (AttributeError: "
        "module numpy has no attribute); install a version that fits the other packages\n"
    )
    assert (found.returncode, found.stderr, found.stdout) == (MISSING, said, "")
    assert list(empty.iterdir()) == []


def test_reproducing_needs_no_torchvision_where_nothing_is_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    done = reproduce("E1", "smoke", tmp_path / "out", device="cpu", only=("float32",), progress=False)
    assert done.report.exists()


@pytest.mark.long  # tools/check_package.py, which is a part of CI, runs it in every change with the wheel
def test_the_core_runs_without_any_optional_package(tmp_path: Path) -> None:
    """In one process, and in the commands and the run of pytest that it starts."""
    found = subprocess.run(
        [sys.executable, core_check.__file__],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert found.returncode == 0, found.stdout + found.stderr
    assert found.stdout.count("\nok  ") == len(found.stdout.splitlines()) - 1 >= 9


def test_the_check_of_the_core_hides_every_optional_package() -> None:
    assert set(core_check.OPTIONAL) == set(EXTRAS)


@pytest.mark.parametrize("missing", EXTRAS)
def test_one_missing_package_of_several_is_enough(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    together = [package for package, extra in EXTRAS.items() if extra == EXTRAS[missing]]
    require("a figure", *together)
    monkeypatch.setitem(sys.modules, missing, None)
    needed = r"(\w+, )*(\w+ and )?\w+"
    with pytest.raises(
        MissingExtraError, match=rf'^this needs {needed}; run: pip install "relucheck\[{EXTRAS[missing]}\]"$'
    ) as caught:
        require("this", *together)
    assert isinstance(caught.value, RelucheckError)
    assert isinstance(caught.value, ImportError)
    assert caught.value.exit_code == MISSING


def test_the_table_names_the_extra_of_every_package() -> None:
    """As pyproject.toml has them."""
    metadata = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    core = {re.match(r"[\w-]+", line)[0] for line in metadata["dependencies"]}  # type: ignore[index]
    assert core == {"torch", "numpy", "pytest", "rich"}
    for package, extra in EXTRAS.items():
        assert any(line.startswith(package) for line in metadata["optional-dependencies"][extra])


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["--help"], "usage: relucheck"),
        (["--version"], f"relucheck {relucheck.__version__}"),
        (["reproduce", "--help"], "E4  Volume of the bifurcation zone"),
        (["check", "--help"], "against laws"),
    ],
)
def test_help_imports_nothing_heavy(arguments: list[str], shown: str) -> None:
    program = f"""
        import sys
        from relucheck.__main__ import main
        try:
            main({arguments!r})
        except SystemExit as stop:
            assert stop.code == 0
        heavy = {{"torch", "numpy", "pytest", "rich", *{list(EXTRAS)!r}}} & set(sys.modules)
        assert not heavy, heavy
    """
    found = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stderr) == (0, "")
    assert shown in found.stdout
