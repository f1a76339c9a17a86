"""Laws reach a framework through its port alone: a second one gets those that it can serve, and the others say why not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from relucheck.activations.kinks import Activation
from relucheck.errors import DeviceError
from relucheck.gate.config import GateConfig
from relucheck.gate.discovery import as_activation, discover
from relucheck.gate.frameworks import FRAMEWORKS, FrameworkError, framework_named
from relucheck.gate.frameworks.exchange import Disconnected, Function, Unwritten
from relucheck.gate.frameworks.port import CAPABILITIES, Framework, missing
from relucheck.gate.laws import LAWS
from relucheck.gate.laws.law import law
from relucheck.gate.run import Gate
from relucheck.numerics.floats import FORMATS
from tests.helpers import numpy_framework
from tests.helpers.numpy_framework import by_hand, relu, relu_backward

DTYPES = ("float32", "float64", "float16")


@pytest.fixture(autouse=True)
def _numpy(monkeypatch):
    monkeypatch.setitem(FRAMEWORKS, numpy_framework.NAME, numpy_framework.PLACE)


def verdicts(activation, dtypes=DTYPES, **settings):
    """Every verdict under a law, by law and dtype."""
    gate = Gate(GateConfig(dtypes=dtypes, **settings), [activation])
    return {(found.law, found.dtype): found for found in map(gate.run, gate.items()) if found.law in LAWS}


def relu6(x):
    return np.clip(x, 0, 6)


def slope_of_tanh(x, v):
    return v * (1 - np.tanh(x) ** 2)


HEALTHY = {
    "relu": by_hand("relu", relu, relu_backward),
    "relu6": by_hand("relu6", relu6, lambda x, v: np.where((x > 0) & (x < 6), v, v * 0)),
    "tanh": by_hand("tanh", np.tanh, slope_of_tanh),
    "sine": by_hand("sine", np.sin, lambda x, v: v * np.cos(x)),
}
#: Faulty activations, each with the law that must fail it.
FAULTY = {
    "subgradient": by_hand("two", relu, lambda x, v: np.where(x > 0, v, v * 0) + np.where(x == 0, 2 * v, 0)),
    "chain_rule": by_hand("dropped", relu, lambda x, v: np.where(x == 0, 0.5, relu_backward(x, v)).astype(x.dtype)),
    "cotangent_additivity": by_hand("absolute", relu, lambda x, v: relu_backward(x, np.abs(v))),
    "cotangent_scaling": by_hand("clipped", relu, lambda x, v: relu_backward(x, np.clip(v, -1, 1))),
    "derivative": by_hand("swapped", np.tanh, lambda x, v: v * (1 - np.tanh(x))),
    "hit_on_input": by_hand(
        "by_output", relu6, lambda x, v: np.where(relu6(x) == 6, v / 2, relu_backward(x, v)).astype(x.dtype)
    ),
    "locality": by_hand("mean", relu, lambda x, v: relu_backward(x, np.full_like(v, v.mean()))),
    "nan_propagates": by_hand("swallows", lambda x: np.fmax(x, 0), relu_backward),
    "finite_gradient": by_hand("trap", relu, lambda x, v: np.where(x == 0.5, np.nan, relu_backward(x, v)).astype(x.dtype)),
    "signed_zero": by_hand("sign_bit", relu, lambda x, v: np.where(np.signbit(x), v * 0, v)),
    "forward_mode": by_hand("modes", relu, relu_backward, lambda x, u: np.where(x >= 0, u, u * 0)),
    "dtype_and_shape": by_hand("widens", lambda x: relu(x).astype(np.float64), relu_backward),
    "runs": by_hand("none", relu, None),
}


@pytest.mark.parametrize("name", HEALTHY)
def test_no_law_fails_what_is_right(name):
    found = verdicts(HEALTHY[name])
    assert {checked for checked, _ in found} >= {"runs", "chain_rule", "derivative", "forward_mode", "vmap", "autocast"}
    assert not [verdict.message for verdict in found.values() if verdict.outcome == "failed"]
    for checked in ("runs", "chain_rule", "derivative", "locality", "position", "forward_mode", "dtype_and_shape"):
        assert {found[checked, dtype].outcome for dtype in DTYPES} == {"passed"}
    if name.startswith("relu"):
        (kink, *_) = found["subgradient", "float32"].kinks
        assert (kink["at"], kink["left"], kink["right"]) == (0.0, 0.0, 1.0)
        assert kink["subgradient"] == {"reverse": 0.0, "forward": 0.0, "vmap": None}


@pytest.mark.parametrize("name", FAULTY)
def test_the_law_fails_what_is_wrong(name):
    failed = verdicts(FAULTY[name], ("float32",))[name, "float32"]
    assert failed.outcome == "failed", failed
    assert f"/{name}/float32: " in failed.message
    assert "reproduce:" not in failed.message  # the framework writes no scripts


def test_a_law_whose_need_is_missing_is_skipped_and_names_the_capability():
    found = verdicts(HEALTHY["relu"], ("float32",))
    lacking = {name for name, checked in LAWS.items() if set(checked.needs) - {"forward_mode", "shapes"}}
    assert lacking >= {"vmap", "autocast", "double_backward", "strides", "input_unchanged", "global_state"}
    for name in lacking & {checked for checked, _ in found}:
        verdict = found[name, "float32"]
        (need,) = LAWS[name].needs
        assert verdict.outcome == "skipped"
        assert verdict.message == (
            f"needs a capability that the framework 'numpy' does not have: {need} ({CAPABILITIES[need]})"
        )
    # of laws that have nothing to look at there is no item: neither an in-place variant nor a module
    assert {"inplace", "copies", "parameters", "compile_agreement"}.isdisjoint(checked for checked, _ in found)


def test_a_dtype_that_the_framework_lacks_is_skipped_by_name():
    found = verdicts(HEALTHY["relu"], ("bfloat16",))
    assert {verdict.outcome for verdict in found.values()} == {"skipped"}
    assert {verdict.message for verdict in found.values()} == {"the framework 'numpy' does not have the dtype bfloat16"}


def test_spellings_come_from_the_framework():
    mine = by_hand("half", relu, lambda x, v: np.where(x == 0, v / 2, relu_backward(x, v)).astype(x.dtype))
    found = verdicts(mine, ("float32",))["equal_spellings", "float32"]
    assert found.outcome == "notice"
    assert "differs from numpy.relu's at the kink" in found.message


def test_each_framework_starts_the_devices_of_the_run():
    with pytest.raises(DeviceError, match="'cuda:99' is not available to numpy"):
        Gate(GateConfig(devices=("cpu", "cuda:99")), [HEALTHY["relu"]])
    with pytest.raises(DeviceError, match="'cuda:99' is not available here"):
        Gate(GateConfig(devices=("cpu", "cuda:99")), [torch.nn.ReLU])


def test_frameworks_share_a_run():
    gate = Gate(GateConfig(dtypes=("float32",), laws=("subgradient", "vmap")), [HEALTHY["relu"], torch.nn.ReLU])
    assert {(verdict.activation, verdict.law): verdict.outcome for verdict in map(gate.run, gate.items())} == {
        ("relu", "subgradient"): "passed",
        ("relu", "vmap"): "skipped",
        ("ReLU", "subgradient"): "passed",
        ("ReLU", "vmap"): "passed",
    }


def test_a_run_needs_no_torch():
    code = """
import sys
sys.modules["torch"] = None  # an import of torch raises from here on
from relucheck.gate.config import GateConfig
from relucheck.gate.frameworks import FRAMEWORKS
from relucheck.gate.run import Gate
from tests.helpers import numpy_framework as numpy
FRAMEWORKS[numpy.NAME] = numpy.PLACE
right = numpy.by_hand("right", numpy.relu, numpy.relu_backward)
wrong = numpy.by_hand("wrong", numpy.relu, lambda x, v: v)
gate = Gate(GateConfig(dtypes=("float32",), targets=("tests/helpers/numpy_framework.py:relu",)), [right, wrong])
verdicts = [gate.run(item) for item in gate.items()]
print(sorted(verdict.id for verdict in verdicts if verdict.outcome == "failed"))
print(sum(verdict.outcome == "passed" for verdict in verdicts) > 30)
"""
    root = Path(__file__).parents[2]
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=root)
    assert found.returncode == 0, found.stderr
    # a function of x is taken for torch's
    laws = ("derivative", "equal_spellings", "hit_on_input")
    assert found.stdout == f"{['relu/runs/float32', *(f'wrong/{law}/float32' for law in laws)]}\nTrue\n"


# -- the port -----------------------------------------------------------------------------------------------------------


def test_an_unknown_framework_gets_a_suggestion():
    with pytest.raises(FrameworkError, match="did you mean 'torch'"):
        framework_named("torhc")
    (item,) = Gate(GateConfig(dtypes=("float32",)), [Activation("a", torch.nn.ReLU, framework="torhc")]).items()
    assert "framework 'torhc' does not exist" in item.problem


def test_a_law_needs_what_is_a_capability():
    with pytest.raises(ValueError, match="needs 'telepathy', which is no capability"):
        law(needs=("telepathy",))
    assert all(set(checked.needs) <= set(CAPABILITIES) for checked in LAWS.values())
    assert {need for checked in LAWS.values() for need in checked.needs} == set(CAPABILITIES)


def test_torch_has_every_capability_and_every_dtype():
    framework = framework_named("torch")
    assert all(not missing(framework, checked.needs, dtype) for checked in LAWS.values() for dtype in FORMATS)


@pytest.mark.parametrize("dtype", FORMATS)
def test_torch_s_numbers_pass_the_port_exactly(dtype):
    form, framework = FORMATS[dtype], framework_named("torch")
    x = form.rounded(np.array([0.0, -0.0, 1 / 3, form.largest, form.tiny, form.tiny * form.eps, np.inf, -np.inf, np.nan]))
    y = framework.value(Function(torch.clone, dtype), x)
    assert np.array_equal(y.view(np.int64)[:-1], x.view(np.int64)[:-1])
    assert np.isnan(y[-1])


def test_what_an_activation_overwrites_does_not_reach_the_caller():
    framework, x = framework_named("torch"), np.array([-1.0, 2.0])
    for dtype in FORMATS:
        assert framework.value(Function(torch.abs_, dtype), x).tolist() == [1.0, 2.0]
        y, back = framework.pullback(Function(torch.abs_, dtype), x)
        assert (y.tolist(), back(np.array([3.0, 5.0])).tolist()) == ([1.0, 2.0], [-3.0, 5.0])
    assert x.tolist() == [-1.0, 2.0]


def test_torch_says_what_carries_no_graph():
    framework, x = framework_named("torch"), np.zeros(3)
    with pytest.raises(Disconnected, match="carries no graph"):
        framework.pullback(Function(lambda x: torch.ones(3), "float32"), x)
    other = torch.zeros(3, requires_grad=True)
    _, back = framework.pullback(Function(lambda x: other * 2, "float32"), x)
    with pytest.raises(Disconnected, match="does not reach the input"):
        back(np.ones(3))


def test_every_capability_s_method_is_torch_s():
    """A method that torch does not override would raise Unwritten in a law."""
    torch_class = type(framework_named("torch"))
    raising = [
        name
        for name, method in vars(Framework).items()
        if callable(method) and "_unwritten" in getattr(getattr(method, "__code__", None), "co_names", ())
    ]
    assert len(raising) > 15
    assert all(getattr(torch_class, name) is not vars(Framework)[name] for name in raising)


def test_a_target_may_hold_activations_of_several_frameworks(tmp_path):
    (tmp_path / "mixed.py").write_text(
        "import torch\n"
        "from tests.helpers.numpy_framework import by_hand, relu, relu_backward\n"
        "array = by_hand('array', relu, relu_backward)\n"
        "def tensor(x: torch.Tensor): return x.relu()\n"
    )
    gate = Gate(GateConfig(targets=("mixed.py",), root=tmp_path, dtypes=("float32",), laws=("chain_rule",)))
    assert {entry.activation.name: entry.activation.framework for entry in gate.entries.values()} == {
        "array": "numpy",
        "tensor": "torch",
    }
    assert {found.outcome for found in map(gate.run, gate.items())} == {"passed"}


class Arrays(numpy_framework.NumPyFramework):
    """The framework, with modules and annotations that discovery can recognise."""

    def is_module(self, target):
        return isinstance(target, numpy_framework.ByHand)

    def is_array_type(self, annotation):
        return annotation is np.ndarray

    def namespaces(self):
        return {"numpy.activations": lambda: list(HEALTHY.values())}


def test_discovery_recognises_a_framework_s_modules_and_functions(monkeypatch, tmp_path):
    monkeypatch.setitem(FRAMEWORKS, numpy_framework.NAME, f"{__name__}:Arrays")
    (tmp_path / "mixed.py").write_text(
        "import numpy as np, torch\n"
        "from tests.helpers.numpy_framework import ByHand, relu, relu_backward\n"
        "module = ByHand(relu, relu_backward)\n"
        "def array(x: np.ndarray): return np.maximum(x, 0)\n"
        "def tensor(x: torch.Tensor): return x.relu()\n"
        "def either(x): return x * 2\n"
        "class Module(torch.nn.Module): pass\n"
    )
    found = discover("mixed.py", root=tmp_path).activations
    assert {activation.name: activation.framework for activation in found} == {
        "module": "numpy",
        "array": "numpy",
        "tensor": "torch",
        "either": "torch",
        "Module": "torch",
    }
    assert as_activation(HEALTHY["relu"].make()).framework == "numpy"
    assert discover("numpy.activations").activations == tuple(HEALTHY.values())


def test_a_capability_without_its_method_is_refused_by_name():
    f = numpy_framework.NumPyFramework()
    with pytest.raises(Unwritten, match=r"framework 'numpy' has no method 'second'; write it, or leave the capability out"):
        f.second(None, np.zeros(1))
