"""Checks an installed relucheck: everything that must run with the core dependencies alone.

Run it as a script, by the Python of the environment to check and from any folder. It starts itself again where the optional
packages cannot be imported, prints a line for each check, and exits with 1 where one fails. It imports nothing from this
repository, so that it checks what is installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
import sysconfig
import tempfile
import traceback
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

OPTIONAL = ("hypothesis", "matplotlib", "ray", "scipy", "torchvision")
#: Makes an interpreter look as if some packages were not installed.
WITHOUT = """
import sys
from importlib.machinery import PathFinder

def find_spec(finder, name, path=None, target=None, real=PathFinder.find_spec):
    return None if name.partition(".")[0] in {missing!r} else real(name, path, target)

PathFinder.find_spec = classmethod(find_spec)
"""
#: Is set where they are hidden.
HIDDEN = "CORE_CHECK_HIDES_OPTIONAL_PACKAGES"

#: A library of activations, one of them with the published fault: at 0 its gradient ignores the upstream gradient.
LIBRARY = """
import torch

import relucheck


class Injected(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.relu()

    @staticmethod
    def backward(ctx, v):
        (x,) = ctx.saved_tensors
        return torch.where(x == 0, torch.full_like(v, 0.5), v * (x > 0).to(v.dtype))


class Faulty(torch.nn.Module):
    def forward(self, x):
        return Injected.apply(x)


class Healthy(relucheck.ReLU):
    def __init__(self):
        super().__init__(subgradient=0.5)
"""


def run(*command: str, code: int, said: str = "") -> str:
    """Runs a command in the folder of the library, and asserts its exit code and a part of its output."""
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    output = found.stdout + found.stderr
    assert found.returncode == code, f"{' '.join(command)}: exit code {found.returncode}, not {code}\n{output}"
    assert said in output, f"{' '.join(command)}: {said!r} is not in\n{output}"
    return found.stdout


def relucheck_command() -> str:
    """The script that pip installed."""
    return str(Path(sysconfig.get_path("scripts")) / "relucheck")


def command_line() -> None:
    version = metadata.version("relucheck")
    assert run(relucheck_command(), "--version", code=0) == f"relucheck {version}\n"
    run(relucheck_command(), "reproduce", "--help", code=0, said="scenarios:")


def gate_command() -> None:
    quick = ("--dtypes", "float32,bfloat16")
    run(relucheck_command(), "check", *quick, "library.py:Healthy", "torch.nn:ReLU", code=0, said="passed")
    run(relucheck_command(), "check", *quick, "library.py:Faulty", code=1, said="failed")


def gate_in_pytest() -> None:
    """The plugin is loaded by its entry point."""
    pytest = (sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--relucheck-dtypes", "float16")
    said = "FAILED relucheck::Faulty/cotangent_scaling/float16"
    output = run(*pytest, "--relucheck", "torch.nn:ReLU", "--relucheck", "library.py:Faulty", code=1, said=said)
    assert "FAILED relucheck::ReLU/" not in output, output


def gate_in_a_process() -> None:
    import torch

    import relucheck
    from relucheck.gate.api import GateFailure

    sys.path.insert(0, ".")
    from library import Faulty  # type: ignore[import-not-found]

    relucheck.check_activation(torch.nn.ReLU, dtypes=["float64"])
    try:
        relucheck.check_activation(Faulty, dtypes=["float64"])
    except GateFailure:
        pass
    else:
        raise AssertionError("the planted fault is not found")


def comparison() -> None:
    import torch

    import relucheck

    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    inputs, targets = torch.randn(4, 2, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 0, 1])
    with torch.no_grad():
        model[0].weight[0], model[0].bias[0] = 0.0, 0.0  # a unit that is 0 for every input
    found = relucheck.compare(model, inputs, targets, subgradients=(0.0, 1.0))
    assert found.outcome == "bifurcate", found
    with torch.no_grad():
        model[0].bias[0] = 1.0
    assert relucheck.compare(model, inputs, targets, subgradients=(0.0, 1.0)).outcome == "agree"


def subgradient() -> None:
    import torch

    import relucheck

    model = torch.nn.Sequential(torch.nn.ReLU(), torch.nn.ReLU6(), torch.nn.LeakyReLU())
    assert len(relucheck.set_subgradient(model, 0.5)) == 3
    x = torch.zeros(2, requires_grad=True)
    assert torch.autograd.grad(model(x).sum(), x)[0].tolist() == [0.125, 0.125]


def explanation() -> None:
    import torch

    import relucheck

    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    torch.nn.init.zeros_(model[0].weight)
    torch.nn.init.zeros_(model[0].bias)
    found = relucheck.explain(model, torch.ones(4, 2), torch.tensor([0, 1, 0, 1]))
    assert str(found), "an explanation has a text"


def wiring() -> None:
    import torch

    import relucheck
    from relucheck.bifurcation.wiring import WiringError

    relucheck.check_wiring(lambda s: torch.nn.Sequential(torch.nn.Linear(2, 2), relucheck.ReLU(s)), torch.ones(3, 2))
    try:
        relucheck.check_wiring(lambda s: torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU()), torch.ones(3, 2))
    except WiringError:
        pass
    else:
        raise AssertionError("a setting that reaches nothing is not noticed")


def networks() -> None:
    """Networks and their generated examples are described without Hypothesis."""
    import relucheck.networks.examples  # noqa: F401
    from relucheck.data import load_digits

    assert len(load_digits().labels) == 2000


def optional_packages() -> None:
    """What ran before in this process imported none of them, and nothing could."""
    assert not any(map(importlib.util.find_spec, OPTIONAL)), OPTIONAL
    assert not set(OPTIONAL) & set(sys.modules), sorted(set(OPTIONAL) & set(sys.modules))


CHECKS: tuple[Callable[[], None], ...] = (
    command_line,
    gate_command,
    gate_in_pytest,
    gate_in_a_process,
    comparison,
    subgradient,
    explanation,
    wiring,
    networks,
    optional_packages,
)


def hiding() -> int:
    """Runs this script where the optional packages are hidden, also from the processes that it starts; its exit code."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "sitecustomize.py").write_text(WITHOUT.format(missing=set(OPTIONAL)))
        path = os.pathsep.join(filter(None, (folder, os.environ.get("PYTHONPATH"))))
        environment = {**os.environ, HIDDEN: "1", "PYTHONPATH": path}
        return subprocess.run([sys.executable, __file__], env=environment, check=False).returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    if HIDDEN not in os.environ:
        return hiding()
    import torch

    import relucheck

    failed = 0
    print(f"relucheck {relucheck.__version__} of {Path(relucheck.__file__).parent}, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        Path("library.py").write_text(LIBRARY)
        for check in CHECKS:
            word = "ok  "
            try:
                check()
            except Exception:
                word, failed = "FAIL", failed + 1
                traceback.print_exc()
            print(word, check.__name__.replace("_", " "), flush=True)
        os.chdir("/")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
