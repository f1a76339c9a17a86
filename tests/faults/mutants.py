"""The mutants of the gate: which law must fail each planted fault, and in which dtype."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from relucheck import Activation, Kink
from tests.faults import wrong_behaviour, wrong_gradients, wrong_modules, wrong_second_order
from tests.faults.wrong_behaviour import HardtanhRoundedWhenCompiled, compiled_differs, hardtanh_rounded_when_compiled
from tests.faults.wrong_gradients import (
    attorch_hardswish,
    clamp_closed,
    hardtanh_passes_at_bounds,
    jax_maximum,
    relu_from_maximum,
    xpu_hardswish,
)


# -- declarations --------------------------------------------------------------------------------------------------------
def gelu_by_sigmoid(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


#: The modules that hold the faults.
SOURCES = (wrong_gradients, wrong_behaviour, wrong_modules, wrong_second_order)
DECLARED = [
    Activation(
        "attorch_hardswish_declared",
        lambda: attorch_hardswish,
        kinks=[Kink(-3.0, 0.0, -0.5, -0.5), Kink(3.0, 1.5, 1.0, 1.5)],
    ),
    Activation("jump_claimed_continuous", nn.Hardshrink, continuous=True),
    Activation("kink_declared_elsewhere", nn.ReLU, kinks=[Kink(1.0, 0.0, 1.0)]),
    Activation("slopes_declared_wrong", nn.LeakyReLU, kinks=[Kink(0.0, 0.1, 1.0)]),
    Activation("kink_undeclared", nn.ReLU6, kinks=[Kink(0.0, 0.0, 1.0)]),
    Activation("reference_value", lambda: gelu_by_sigmoid, reference=nn.GELU()),
    Activation("reference_subgradient", lambda: clamp_closed, reference=nn.ReLU6()),
    Activation("spelled_otherwise", lambda: relu_from_maximum, same_as="torch.nn.functional.relu"),
    Activation("compiled_differently", lambda: compiled_differs, compile=True),
    Activation("compiled_hardtanh", lambda: hardtanh_rounded_when_compiled, compile=True),
    Activation("compiled_hardtanh_module", HardtanhRoundedWhenCompiled, compile=True),
    Activation("xpu_hardswish_reference", lambda: xpu_hardswish, reference=nn.Hardswish()),
    Activation("hardtanh_passes_reference", lambda: hardtanh_passes_at_bounds, reference=nn.Hardtanh()),
    Activation("jax_maximum_spelled", lambda: jax_maximum, same_as="torch.nn.functional.relu"),
]


@dataclasses.dataclass(frozen=True)
class Mutant:
    """A name in one of the files of :data:`SOURCES` or in :data:`DECLARED`, the law that must fail it, and where."""

    name: str
    law: str
    dtype: str = "float32"
    convention: str = "clarke"
    slow: bool = False


MUTANTS = [
    Mutant("injected_relu", "chain_rule"),
    Mutant("injected_relu", "cotangent_scaling", "bfloat16"),
    Mutant("injected_relu6", "cotangent_scaling"),
    Mutant("injected_relu6", "subgradient", "float64"),
    Mutant("sign_of_cotangent", "cotangent_scaling"),
    Mutant("absolute_cotangent", "cotangent_scaling"),
    Mutant("squared_cotangent", "cotangent_additivity"),
    Mutant("rectified_cotangent", "cotangent_additivity", "float64"),
    Mutant("clipped_cotangent", "chain_rule", "float64"),
    Mutant("small_cotangent_dropped", "chain_rule"),
    Mutant("constant_gradient", "chain_rule", "float16"),
    Mutant("normalised_cotangent", "locality"),
    Mutant("subgradient_two", "subgradient"),
    Mutant("subgradient_minus_half", "subgradient", "bfloat16"),
    Mutant("hardswish_hole_at_bounds", "subgradient", "float16"),
    Mutant("attorch_hardswish_declared", "subgradient"),
    Mutant("clamp_closed", "subgradient", convention="minimum-norm"),
    Mutant("relu6_hit_on_output", "hit_on_input"),
    Mutant("saturation_leaks", "hit_on_input", "bfloat16"),
    Mutant("rounded_bound_doubles", "rounded_kinks", "bfloat16"),
    Mutant("rounded_bound_doubles", "rounded_kinks", "float16"),
    Mutant("other_in_bfloat16", "dtype_agreement", "bfloat16"),
    Mutant("quotient_by_square", "dtype_agreement"),
    Mutant("quotient_by_square", "dtype_agreement", "bfloat16"),
    Mutant("quotient_by_square", "dtype_agreement", "float16"),
    Mutant("slope_by_square", "dtype_agreement"),
    Mutant("slope_by_square", "dtype_agreement", "bfloat16"),
    Mutant("wrong_table_entry", "dtype_agreement", "float16"),
    Mutant("silu_without_second_term", "derivative"),
    Mutant("softshrink_wrong_sign", "derivative", "bfloat16"),
    Mutant("wrong_at_one", "derivative", "float16"),
    Mutant("wrong_at_smooth_zero", "derivative"),
    Mutant("softplus_by_relu", "derivative", "bfloat16"),
    Mutant("elu_by_minimum", "derivative", "float16"),
    Mutant("shifted_threshold", "derivative"),
    Mutant("elu_slope_lost", "derivative", "float64"),
    Mutant("softplus_where_trap", "finite_gradient"),
    Mutant("softplus_where_trap", "finite_gradient", "bfloat16"),
    Mutant("square_root_trap", "finite_gradient"),
    Mutant("mish_overflows", "finite_value", "float16"),
    Mutant("nan_at_zero", "finite_gradient", "float64"),
    Mutant("infinite_at_one", "finite_gradient"),
    Mutant("shrinks_by_quotient", "finite_value"),
    Mutant("shrinks_by_quotient", "finite_value", "bfloat16"),
    Mutant("entropy_by_logarithm", "finite_value", "float16"),
    Mutant("sinc_by_quotient", "finite_value", "float64"),
    Mutant("sigmoid_by_quotient", "finite_value"),
    Mutant("sigmoid_by_quotient", "finite_value", "float64"),
    Mutant("softplus_by_logarithm", "finite_value", "float64"),
    Mutant("softplus_by_logarithm", "finite_value", "bfloat16"),
    Mutant("softplus_linear_too_late", "finite_value", "float64"),
    Mutant("squareplus_by_square", "finite_value"),
    Mutant("squareplus_by_square", "finite_value", "float64"),
    Mutant("squareplus_by_square", "finite_value", "bfloat16"),
    Mutant("squareplus_by_square", "finite_value", "float16"),
    Mutant("saturation_by_polynomials", "finite_value", "float64"),
    Mutant("softplus_slope_lost_in_a_gap", "derivative"),
    Mutant("nan_swallowed", "nan_propagates"),
    Mutant("nan_cotangent_swallowed", "nan_propagates"),
    Mutant("sign_bit_decides", "signed_zero"),
    Mutant("subnormals_flushed", "subnormals"),
    Mutant("subnormal_gradient_flushed", "subnormals", "float16"),
    Mutant("subnormal_cotangent_flushed", "subnormals", "bfloat16"),
    Mutant("mean_of_gradient", "locality"),
    Mutant("neighbour_leaks", "locality", "float64"),
    Mutant("tail_dropped", "position"),
    Mutant("tail_closed", "position", "bfloat16"),
    Mutant("forward_mode_differs", "forward_mode"),
    Mutant("forward_mode_drops_tangent", "forward_mode"),
    Mutant("vmap_differs", "vmap"),
    Mutant("second_derivative_lost", "double_backward", "float64"),
    Mutant("second_derivative_nan", "double_backward"),
    Mutant("second_derivative_wrong", "double_backward", "float64"),
    Mutant("FusedLeakyGainLost", "double_backward_cotangent"),
    Mutant("FusedLeakyCutOff", "double_backward_cotangent", "bfloat16"),
    Mutant("FusedLeakyPassedOn", "double_backward_cotangent", "float64"),
    Mutant("FusedLeakyInMemoryOrder", "strides"),
    Mutant("leaky_without_graph", "double_backward_cotangent"),
    Mutant("FusedSwishDetached", "double_backward_parameters"),
    Mutant("threshold_at_a_tenth", "decomposition", "bfloat16"),
    Mutant("compiled_differently", "compile_agreement", slow=True),
    Mutant("compiled_hardtanh", "compile_agreement", "bfloat16", slow=True),
    Mutant("compiled_hardtanh_module", "compile_agreement", "bfloat16", slow=True),
    Mutant("autocast_scales", "autocast"),
    Mutant("three_dimensions_closed", "dtype_and_shape"),
    Mutant("saturates_at_100", "derivative", "float64"),
    Mutant("steep_above_the_kink", "derivative"),
    Mutant("steep_above_the_kink", "derivative", "float64"),
    Mutant("mean_around_the_kink", "derivative", "bfloat16"),
    Mutant("FirstChannelForAll", "channels"),
    Mutant("xpu_hardswish", "subgradient", "bfloat16", convention="minimum-norm"),
    Mutant("xpu_hardswish_reference", "reference", "float16"),
    Mutant("hardtanh_passes_at_bounds", "subgradient", convention="minimum-norm"),
    Mutant("hardtanh_passes_reference", "reference"),
    Mutant("jax_maximum", "subnormals"),
    Mutant("jax_maximum", "subgradient", convention="minimum-norm"),
    Mutant("jax_maximum_spelled", "equal_spellings"),
    Mutant("promotes", "dtype_and_shape", "bfloat16"),
    Mutant("scalars_gain_a_dimension", "dtype_and_shape"),
    Mutant("reads_memory_order", "strides"),
    Mutant("MaskAfterOverwriting", "inplace"),
    Mutant("WritesThroughData", "inplace"),
    Mutant("overwrites_input", "input_unchanged"),
    Mutant("overwrites_cotangent", "input_unchanged"),
    Mutant("gradient_in_input", "input_unchanged"),
    Mutant("gradient_in_output", "input_unchanged", "bfloat16"),
    Mutant("alternating_subgradient", "determinism"),
    Mutant("MaskOnSelf", "independent_calls"),
    Mutant("sets_default_dtype", "global_state"),
    Mutant("seeds_the_generator", "global_state"),
    Mutant("turns_gradients_off", "global_state"),
    Mutant("detaches", "runs"),
    Mutant("through_numpy", "runs"),
    Mutant("SlopeDetached", "parameters"),
    Mutant("SlopeInjected", "parameters"),
    Mutant("SlopeWrongSign", "parameters", "float64"),
    Mutant("SlopeAveraged", "parameters"),
    Mutant("ChannelSlopesOfFirstSample", "batches"),
    Mutant("ChannelSlopesInFirstSample", "batches", "bfloat16"),
    Mutant("ChannelSlopesWithNan", "batches"),
    Mutant("ChannelSlopesInMemoryOrder", "strides"),
    Mutant("ChannelSlopesByOutput", "parameter_values"),
    Mutant("SlopeByOutput", "parameter_values"),
    Mutant("SlopeByOutput", "parameter_values", "float64"),
    Mutant("SlopeConverted", "autocast_mixed"),
    Mutant("CopiesForget", "copies"),
    Mutant("StateDictForgets", "copies"),
    Mutant("jump_claimed_continuous", "continuity"),
    Mutant("kink_declared_elsewhere", "declared_kinks"),
    Mutant("slopes_declared_wrong", "declared_kinks"),
    Mutant("kink_undeclared", "declared_kinks"),
    Mutant("reference_value", "reference"),
    Mutant("reference_subgradient", "reference", "bfloat16"),
    Mutant("spelled_otherwise", "equal_spellings"),
]
