"""Kernels' names from the profiler: on a CPU by running it, on CUDA from events like those that CUDA gives."""

from __future__ import annotations

import enum
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from relucheck.numerics.kernels import Product, exact
from relucheck.numerics.kernels.profiling import labelled, names, profiler, short

CPU = torch.device("cpu")
GEMM = "void cutlass::Kernel2<cutlass_80_tensorop_bf16_s16816gemm_bf16_64x64_32x6_tn_align8>(cutlass_80_tensorop::Params)"
REDUCE = "void cublasLt::splitKreduce_kernel<32, 16, int, float, __nv_bfloat16, float, false>(cublasSplitKParams<float>)"
CAST = "void at::native::elementwise_kernel<128, 4, at::native::direct_copy>(int)"


class Kind(enum.Enum):
    CPU = 0
    CUDA = 1


def event(name: str, start: float, end: float, *kernels: str, kind: Kind = Kind.CPU) -> Any:
    """What the profiler gives for an operator or, with another kind, for a kernel."""
    linked = [SimpleNamespace(name=kernel, device=0, duration=1.0) for kernel in kernels]
    return SimpleNamespace(name=name, device_type=kind, time_range=SimpleNamespace(start=start, end=end), kernels=linked)


def test_operators_of_a_cpu() -> None:
    product = Product((8, 4, 6, 6), (4, 4, 3, 3), True, "weight gradient")
    linear = Product((8, 6), (4, 6), True, "forward")
    with profiler(CPU) as profile:
        product.compute(exact(product, torch.float64, 0), label=labelled("0", CPU))
        linear.compute(exact(linear, torch.float64, 0), label=labelled("1", CPU))
    events = profile.events()
    assert names(events, "0") in {("aten::_slow_conv2d_backward",), ("aten::convolution_backward",)}
    assert names(events, "1") == ("aten::addmm",)
    assert names(events, "2") == ()


def test_kernels_of_cuda_are_those_linked_to_operators_in_the_block() -> None:
    """The backward runs in another thread, so that its operators are in no range of the block's thread but in its time."""
    events = [
        event("relucheck 0", 0, 10),
        event("aten::linear", 1, 9),
        event("aten::addmm", 2, 8, CAST, GEMM, "Memset (Device)", REDUCE),
        event("relucheck 1", 20, 30),
        event("aten::mm", 22, 28, GEMM, GEMM),
        event("aten::fill_", 40, 41, CAST),
        event("relucheck 1", 23, 25, kind=Kind.CUDA),
        event(GEMM, 23, 25, kind=Kind.CUDA),
    ]
    assert names(events, "0") == (GEMM, REDUCE)
    assert names(events, "1") == (GEMM,)


def test_kernels_that_are_linked_to_no_operator_are_those_in_the_blocks_time() -> None:
    events = [
        event("relucheck 0", 0, 10),
        event("aten::addmm", 2, 8),
        event("relucheck 0", 3, 7, kind=Kind.CUDA),
        event(GEMM, 4, 6, kind=Kind.CUDA),
        event(REDUCE, 14, 16, kind=Kind.CUDA),
    ]
    assert names(events, "0") == (GEMM,)


def test_a_kernel_beside_the_product_is_named_if_nothing_else_ran() -> None:
    assert names([event("relucheck 0", 0, 10), event("aten::mul", 1, 2, CAST)], "0") == (CAST,)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        (GEMM, "cutlass_80_tensorop_bf16_s16816gemm_bf16_64x64_32x6_tn_align8"),
        (REDUCE, "cublasLt::splitKreduce_kernel<32, 16, int, float, __nv_bfloat16, float, false>"),
        ("nvjet_tst_64x8_64x16_4x1_v_bz_splitK_TNT", "nvjet_tst_64x8_64x16_4x1_v_bz_splitK_TNT"),
        ("aten::addmm", "aten::addmm"),
    ],
)
def test_short_names(name: str, wanted: str) -> None:
    assert short(name) == wanted
