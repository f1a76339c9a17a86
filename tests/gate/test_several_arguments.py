"""Functions of several tensors and gated units are recognised, and other callables are told apart."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import types

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relucheck.activations.kinks import Activation, ActivationError, Kink
from relucheck.gate.config import GateConfig
from relucheck.gate.discovery import as_activation, discover
from relucheck.gate.frameworks import framework_named
from relucheck.gate.frameworks.exchange import View
from relucheck.gate.recognition import recognised
from relucheck.gate.refusals import Mixes, NeedsArguments, NotAnActivation, TargetError
from relucheck.gate.run import Gate
from relucheck.gate.verdicts import Item
from tests.faults import rows_healthy, several_arguments, several_healthy

VIEWS = {
    several_healthy.swiglu: ["swiglu[a]", "swiglu[b]"],
    several_healthy.bias_swiglu: ["bias_swiglu[gate]", "bias_swiglu[bias]", "bias_swiglu[up]"],
    several_healthy.SiLUMul: ["SiLUMul[gate]", "SiLUMul[up]"],
    several_healthy.fused_bias_gelu: ["BiasGELU[x]", "BiasGELU[bias]"],
    several_healthy.SwiGLU: ["SwiGLU[gate]", "SwiGLU[value]"],
    several_healthy.geglu_unit: ["geglu_unit[value]", "geglu_unit[gate]"],
    several_healthy.bilinear_unit: ["bilinear_unit[first]", "bilinear_unit[second]"],
    several_healthy.glu_with_gate: ["glu_with_gate[value]", "glu_with_gate[gate]"],
    several_healthy.relu_with_mask: ["relu_with_mask"],
    torch.relu: ["relu"],
}


@pytest.mark.parametrize("activation", VIEWS, ids=lambda activation: getattr(activation, "__name__", ""))
def test_each_argument_or_part_is_a_subject(activation):
    found = recognised(as_activation(activation))
    assert [subject.name for subject in found.subjects] == VIEWS[activation]


@pytest.mark.parametrize(
    ("activation", "axis", "interleaved"),
    [
        (several_healthy.SwiGLU, -1, False),
        (several_healthy.ChannelGLU, 1, False),
        (several_healthy.simple_gate, -2, False),
        (several_healthy.first_axis_glu, 0, False),
        (several_healthy.interleaved_swiglu, -1, True),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_the_axis_and_the_order_of_the_parts(activation, axis, interleaved):
    for subject in recognised(as_activation(activation)).subjects:
        assert (subject.view.axis, subject.view.interleaved) == (axis, interleaved)


@pytest.mark.parametrize(
    ("activation", "axis", "length"),
    [
        (rows_healthy.softmax, -1, 4),
        (rows_healthy.softmax_of_columns, 0, 4),
        (rows_healthy.ChannelSoftmax, 1, 4),
        (nn.Softmax2d, 1, 4),
        (rows_healthy.LayerNorm, -1, 6),
        (rows_healthy.sparsemax, -1, 4),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_a_function_of_rows_is_one_of_an_element_of_each_row(activation, axis, length):
    (subject,) = recognised(as_activation(activation)).subjects
    assert subject.name == activation.__name__
    assert (subject.view.axis, len(subject.view.names), subject.by_rows) == (axis, length, True)


def by_axes(x: Tensor) -> Tensor:
    """As torch's softmax without ``dim``."""
    return torch.softmax(x, 0 if x.ndim in (0, 1, 3) else 1)


@pytest.mark.parametrize(
    ("activation", "names", "axis", "held"),
    [
        (rows_healthy.rms_norm_of_weight, [""], -1, {"weight": 4}),
        (rows_healthy.layer_norm_of_weight_and_bias, [""], -1, {"weight": 4, "bias": 4}),
        (rows_healthy.softmax_of_scalar, [""], -1, {"rate": 4}),
        (several_healthy.bias_swiglu_unit, ["[gate]", "[value]"], -1, {"bias": 16}),
        (several_healthy.weighted_swiglu_unit, ["[gate]", "[value]"], -1, {"weight": 0}),
        (several_healthy.bias_of_channels, [""], None, {"bias": 4}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_arguments_of_a_whole_row_or_unit_are_held_as_parameters(activation, names, axis, held):
    found = recognised(as_activation(activation))
    assert [subject.name for subject in found.subjects] == [activation.__name__ + name for name in names]
    for subject in found.subjects:
        assert subject.view.axis == axis
        assert {name: len(numbers) if isinstance(numbers, tuple) else 0 for name, numbers in subject.view.held} == held


def test_an_argument_whose_name_modules_use_is_held():
    def scaled(x, type):
        return torch.softmax(x * type, -1)

    (subject,) = recognised(as_activation(scaled)).subjects
    assert dict(subject.original.named_parameters()).keys() == {"type_"}


@pytest.mark.parametrize("other", [nn.BatchNorm1d(4), nn.GroupNorm(2, 4), by_axes, lambda x: x + x.mean()])
def test_what_mixes_more_or_less_than_rows_is_skipped_as_before(other):
    with pytest.raises(NotAnActivation, match="not elementwise"):
        recognised(as_activation(other))


def test_the_kinks_of_a_function_of_rows_are_in_the_table():
    gate = Gate(GateConfig(laws=("subgradient",), dtypes=("float64",)), [rows_healthy.sparsemax])
    (item,) = gate.items()
    # beside -1.25, 0.375 and 1.5, the element is in the support from 0.5 on, and alone in it from 2.5 on
    rows = [(row["at"], row["left"], row["right"]) for row in gate.run(item).kinks]
    assert rows == [(0.5, 0.0, 0.5), (2.5, 0.5, 0.0)]


def test_the_results_that_are_not_checked_are_named():
    found = recognised(as_activation(several_healthy.silu_with_mean))
    assert [subject.view.output for subject in found.subjects] == ["value"]
    (reason,) = found.skipped.values()
    assert list(found.skipped) == ["silu_with_mean[output mean]"]
    assert "'value'" in reason
    assert "without a gradient" in reason


def test_kinks_belong_to_the_argument_that_has_them():
    gate = Gate(GateConfig(laws=("subgradient",), dtypes=("float32",)), [several_healthy.reglu_unit])
    rows = {item.activation: gate.run(item).kinks for item in gate.items()}
    assert [row["at"] for row in rows["reglu_unit[gate]"]] == [0.0]
    assert not rows["reglu_unit[value]"]


class MLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class ConvolutionGLU(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.glu(self.convolution(x), 1)


@pytest.mark.parametrize("block", [MLP, ConvolutionGLU])
def test_linear_layers_are_skipped_and_the_reason_says_what_to_pass(block):
    says = r"linear layers mix .* \((gate|convolution).weight .*; pass the activation between them"
    with pytest.raises(Mixes, match=says):
        recognised(as_activation(block))


def every_second(x: Tensor) -> Tensor:
    return x[..., ::2].relu()


def differences(x: Tensor) -> Tensor:
    return x[..., 1:] - x[..., :-1]


def sum_of_pairs(x: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return a + b.flip(-1)


@pytest.mark.parametrize("function", [every_second, differences, sum_of_pairs])
def test_what_halves_its_input_is_no_gated_unit_for_that_alone(function):
    with pytest.raises(NotAnActivation, match="changes the shape"):
        recognised(as_activation(function))


def attention(q: Tensor, k: Tensor) -> Tensor:
    return torch.softmax(q @ k.transpose(-1, -2), -1)


def by_number(x: Tensor, slope: float) -> Tensor:
    return x * slope


@pytest.mark.parametrize(("function", "name"), [(attention, "k"), (by_number, "slope")])
def test_other_functions_of_several_arguments_are_skipped_as_before(function, name):
    with pytest.raises(NeedsArguments, match=f"needs arguments: {name}; set them under"):
        recognised(as_activation(function))


def test_discovery_takes_functions_of_several_tensors(tmp_path):
    (tmp_path / "gated.py").write_text(
        "import torch\ndef swiglu(gate, up):\n    return torch.nn.functional.silu(gate) * up\n"
        "def scaled(x, slope: float):\n    return slope * x\n"
    )
    found = discover("gated.py", root=tmp_path)
    assert [activation.name for activation in found.activations] == ["swiglu"]
    assert [name for name, _ in found.skipped] == ["scaled"]


def test_a_module_under_a_view_stays_one_and_the_user_s_is_left_alone():
    framework, module = framework_named("torch"), several_healthy.SwiGLU()
    view = View(("gate", "value"), 1, (0.75, 0.75), axis=-1)
    viewed = framework.viewed(module, view)
    x = torch.tensor([-2.0, 0.5, 3.0])
    expected = F.silu(torch.full_like(x, 0.75)) * x
    assert not module._forward_pre_hooks
    assert isinstance(viewed, nn.Module)
    for other in (viewed, copy.deepcopy(viewed), pickle.loads(pickle.dumps(viewed))):
        torch.testing.assert_close(other(x), expected)


def test_a_name_that_two_targets_share_keeps_its_arguments():
    other = types.FunctionType(several_healthy.swiglu.__code__, several_healthy.swiglu.__globals__, "swiglu")
    gate = Gate(GateConfig(laws=("runs",), dtypes=("float32",)), [several_healthy.swiglu, other])
    assert len({item.activation for item in gate.items()}) == len(gate.items()) == 4


def test_a_declared_spelling_is_that_of_the_same_argument():
    def silu_mul(a, b):
        return a * torch.sigmoid(a) * b

    def wrong(a, b):
        return several_healthy.reglu(a, b)

    mine = Activation("mine", lambda: silu_mul, same_as="swiglu")
    other = Activation("wrong", lambda: wrong, same_as="swiglu")
    gate = Gate(GateConfig(laws=("equal_spellings",), dtypes=("float32",)), [several_healthy.swiglu, mine, other])
    verdicts = {item.activation: gate.run(item).outcome for item in gate.items()}
    assert verdicts["mine[a]"] == verdicts["mine[b]"] == "passed"
    assert verdicts["wrong[a]"] == "failed"


def test_a_reference_takes_the_same_arguments():
    def silu_mul(a, b):
        return a * torch.sigmoid(a) * b

    for reference, outcome in ((silu_mul, "passed"), (several_healthy.reglu, "failed")):
        activation = Activation("swiglu", lambda: several_healthy.swiglu, reference=reference)
        gate = Gate(GateConfig(laws=("reference",), dtypes=("float32",)), [activation])
        assert gate.run(Item("swiglu[a]", "reference", "float32")).outcome == outcome


def outcomes(law: str, activation, dtype: str = "float32") -> dict[str, tuple[str, str]]:
    gate = Gate(GateConfig(laws=(law,), dtypes=(dtype,)), [activation])
    return {result.activation: (result.outcome, result.message) for result in map(gate.run, gate.items())}


def test_a_failure_at_a_jump_that_ordinary_numbers_do_not_have_is_a_notice():
    outcome, message = outcomes("other_arguments", several_healthy.soft_threshold)["soft_threshold[x]"]
    assert outcome == "notice"
    assert "threshold = -2" in message


def test_a_divisor_takes_positive_numbers_only():
    found = outcomes("subgradient", several_healthy.soft_cap)
    assert found["soft_cap[cap]"][0] == "notice"
    assert "positive numbers only" in found["soft_cap[cap]"][1]


def test_a_row_of_zeros_is_looked_at():
    ((outcome, message),) = outcomes("other_arguments", rows_healthy.unit_length_without_eps).values()
    assert outcome == "notice"
    assert "element 3 = 0" in message


def test_two_parts_that_are_one_function_may_share_a_gradient_at_a_tie():
    assert not outcomes("equal_spellings", several_healthy.maxout_of_pairs)


def test_declared_kinks_belong_to_the_argument_that_they_name():
    kinks = [Kink(7.0, 5.0, 0.0), Kink(-7.0, 0.0, 1.5, argument="up"), Kink(7.0, 1.5, 0.0, argument="up")]
    activation = Activation("clipped", lambda: several_healthy.clipped_swiglu, kinks=kinks)
    found = {subject.view.name: subject.activation.kinks for subject in recognised(activation).subjects}
    assert {name: [kink.at for kink in declared] for name, declared in found.items()} == {"gate": [7.0], "up": [-7.0, 7.0]}
    wrong = dataclasses.replace(activation, kinks=[Kink(0.0, 0.0, 1.0, argument="down")])
    with pytest.raises(TargetError, match="declares a kink of the argument 'down'; those that are checked are gate, up"):
        recognised(wrong)
    with pytest.raises(ActivationError, match="must be text"):
        Kink(0.0, 0.0, 1.0, argument=1)


def test_a_gradient_that_is_wrong_everywhere_is_not_that_of_the_other_argument():
    found = outcomes("joint_gradients", several_arguments.swiglu_doubled)
    assert [outcome for outcome, _ in found.values()] == ["passed", "failed"]
