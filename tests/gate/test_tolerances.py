"""Tolerances follow what an activation resolves: healthy kinds pass every law, and their faulty twins fail."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from torch import nn

from relucheck.activations.kinks import Activation
from relucheck.gate.cases.case import Case
from relucheck.gate.config import GateConfig
from relucheck.gate.laws import LAWS
from relucheck.gate.run import Gate
from relucheck.gate.subject import Subject
from relucheck.gate.verdicts import Item
from tests.faults import behind_smooth, kinds, scaled

HEALTHY = kinds.HEALTHY | scaled.HEALTHY
FAULTY = kinds.FAULTY | scaled.FAULTY


def verdicts(*activations, **settings):
    """Every verdict under a law, by name and law."""
    gate = Gate(GateConfig(**({"dtypes": ("float32",), "memory_limit": 2048} | settings)), activations)
    return {(found.activation, found.law): found for found in map(gate.run, gate.items()) if found.law in LAWS}


def failed(found):
    return [verdict.message for verdict in found.values() if verdict.outcome == "failed"]


def named(table):
    return pytest.mark.parametrize("activation", table, ids=lambda activation: activation.__name__)


@pytest.fixture(scope="module")
def healthy():
    gate = Gate(GateConfig(memory_limit=2048), HEALTHY)
    return gate, gate.items()


@pytest.fixture(scope="module")
def faulty():
    return Gate(GateConfig(memory_limit=2048, laws=tuple({law for law, _ in FAULTY.values()})), FAULTY)


@named(HEALTHY)
def test_no_law_fails_a_healthy_kind(activation, healthy):
    gate, items = healthy
    mine = [item for item in items if item.activation == activation.__name__ and item.dtype in HEALTHY[activation]]
    found = [gate.run(item) for item in mine]
    assert len(found) > 20
    messages = [verdict.message for verdict in found if verdict.outcome == "failed"]
    assert not messages, "\n".join(messages)


@named(FAULTY)
def test_its_law_fails_a_faulty_twin(activation, faulty):
    law, dtype = FAULTY[activation]
    found = faulty.run(Item(activation.__name__, law, dtype))
    assert found.outcome == "failed", found
    assert f"/{law}/{dtype}: " in found.message


def test_two_spellings_differ_where_products_round():
    for dtype in ("float32", "bfloat16"):
        spellings = (kinds.Snake, kinds.SnakeBySinc, kinds.SnakeWithoutSine)
        found = verdicts(*spellings, dtypes=(dtype,), laws=("equal_spellings", "channels"))
        outcomes = {name: found[name, "equal_spellings"].outcome for name, _ in found}
        assert outcomes == {"Snake": "passed", "SnakeBySinc": "passed", "SnakeWithoutSine": "failed"}
        assert found["Snake", "channels"].outcome == found["SnakeBySinc", "channels"].outcome == "passed"


def test_what_is_wrong_without_autocast_is_no_fault_of_autocast():
    found = verdicts(kinds.relu_two_at_kink, laws=("autocast", "subgradient"))
    assert found["relu_two_at_kink", "autocast"].outcome == "passed"
    assert found["relu_two_at_kink", "subgradient"].outcome == "failed"


def test_nan_in_every_dtype_is_no_disagreement_of_dtypes():
    found = verdicts(kinds.relu_nan_at_kink, laws=("dtype_agreement", "finite_gradient"))
    assert found["relu_nan_at_kink", "dtype_agreement"].outcome == "passed"
    assert found["relu_nan_at_kink", "finite_gradient"].outcome == "failed"


def test_a_function_of_positions_is_skipped():
    (entry,) = Gate(GateConfig(), [kinds.relu_at_even_places]).entries.values()
    assert entry.skip == "not elementwise: equal inputs at different positions have different values"


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (functools.partial(kinds.FeaturePReLU, 8), (-1, 8)),  # as many features as the probe has numbers
        (kinds.DynamicTanh, (-1, 4)),
        (kinds.SequencePReLU, (2, -1, 4)),
        (kinds.ImagePReLU, (2, 4, 2, -1)),
        (kinds.ImageLastPReLU, (2, 2, -1, 4)),
        (kinds.Snake, (2, 4, -1)),
        (functools.partial(kinds.FeaturePReLU, 2), (-1, 2)),
        (functools.partial(nn.PReLU, 3), (2, 3, -1)),
        (nn.PReLU, (-1,)),
    ],
)
def test_layout_of_parameters(module, shape):
    layout = Subject(Activation("layout", module)).layout
    assert layout.shape == shape
    assert layout.channels == (1 if layout.plain else shape[layout.axis])


def test_one_that_cannot_be_differentiated_in_place_is_an_error_that_says_so():
    for inplace, law in ((False, "inplace"), (True, "runs")):
        found = verdicts(kinds.TimesCosine(inplace), laws=("runs", "inplace"))
        (message,) = failed(found)
        assert f"/{law}/float32: " in message
        assert "cannot be differentiated" in message
        assert "overwrites a value that its own backward needs" in message


def test_rounding_inside_moves_gradients_of_parameters():
    for dtype, law in (("float32", "parameters"), ("float16", "parameters"), ("float32", "autocast_mixed")):
        found = verdicts(kinds.Siren, dtypes=(dtype,), laws=(law,))
        assert found["Siren", law].outcome == "passed", found


def test_a_sequence_announces_what_its_first_module_does():
    class Unannounced(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.ReLU(inplace=True)

        def forward(self, x):
            return self.first(x)

    for first, outcome in ((nn.ReLU(inplace=True), "passed"), (Unannounced(), "failed")):
        found = verdicts(nn.Sequential(nn.Sequential(first), nn.Tanh()), laws=("input_unchanged",))
        assert {verdict.outcome for verdict in found.values()} == {outcome}


def resolution(f, dtype="float64"):
    return Case(Subject(Activation("f", lambda: f)), dtype).resolution


def test_precision_is_read_off_values_and_gradients():
    assert resolution(torch.tanh).format.name == "float64"
    assert resolution(kinds.tanh_in_float32).format.name == "float32"
    assert resolution(lambda x: 1.7 * kinds.tanh_in_float32(x)).format.name == "float32"
    assert resolution(kinds.tanh_with_gradient_in_float32).format.name == "float64"
    assert resolution(kinds.tanh_in_float32, "bfloat16").format.name == "bfloat16"
    # few values are in every format by chance
    for few in (torch.relu, torch.sign, torch.round, nn.Hardtanh()):
        assert resolution(few).format.name == "float64"


def test_movement_between_neighbours():
    x = np.array([0.5, 12.0, 1e4])
    turning = resolution(lambda x: torch.sin(30 * x), "bfloat16")
    small, large, larger = turning.of_gradient(x)
    assert small < 30 < large
    assert larger > 30
    assert (turning.of_gradient(x[:2], 2.0**-52) < 0.1).all()  # the same inputs, rounded to float64
    # neighbours are taken on one side of a kink
    relu = resolution(torch.relu, "bfloat16")
    assert (relu.of_gradient(np.array([-1e-3, 0.0, 1e-3, 5.0])) < 1e-6).all()
    assert relu.of_value(np.array([-1.0, 0.0, 4.0])) == pytest.approx([0, 0, 4 * 1.91 * 2.0**-7])


@named(behind_smooth.HEALTHY)
def test_a_kink_behind_a_smooth_function_has_two_sides(activation):
    """Vector and scalar kernels put an input beside it on either side, and both gradients are right."""
    assert not failed(verdicts(activation, dtypes=("float32", "float64")))


def test_a_threshold_in_a_buffer_is_chosen():
    assert not failed(verdicts(behind_smooth.ShrinksByBuffer()))


def test_two_gradients_are_right_only_beside_a_rounded_kink_and_between_its_slopes():
    case = Case(Subject(Activation("f", lambda: lambda x: 2 * nn.functional.relu(x - 0.1))), "float32")
    at = case.rounded([0.1, 0.1, 0.1, 0.1, 0.2])
    zeros, others = np.zeros(5), np.array([2.0, 1.0, 2.1, -0.1, 2.0])
    assert case.both_sides(at, zeros, others).tolist() == [True, True, False, False, False]
    assert case.both_sides(at, zeros, -3 * others, np.full(5, -3.0)).tolist() == [True, True, False, False, False]
    whole = Case(Subject(Activation("f", lambda: nn.functional.relu)), "float32")
    assert not whole.both_sides(np.zeros(1), np.zeros(1), np.ones(1)).any(), "0 is a number of the dtype"


def test_slopes_at_a_kink_keep_the_decimals_that_differences_show():
    for activation, outcome in ((scaled.relu_of_sine, "passed"), (scaled.relu_of_sine_five_at_kinks, "failed")):
        found = verdicts(activation, dtypes=("float64",), laws=("subgradient",), scan=(-31.0, -30.0))
        assert {verdict.outcome for verdict in found.values()} == {outcome}
