"""The activations under torch.compile, compiled autograd and torch.export, against eager mode."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import vjp, vmap

from relucheck.activations.modules import LeakyReLU, ReLU, ReLU6
from relucheck.numerics.bits import same_bits
from relucheck.numerics.dtypes import dtype_name
from tests.helpers.activation_modes import (
    CASES,
    Case,
    by_dual_numbers,
    by_grad,
    by_jvp,
    by_vjp,
    by_vmap,
    cotangents,
    eager,
    every_case,
    inputs,
)

pytestmark = [
    # torch's forward-mode AD imports its own scripted decompositions
    pytest.mark.filterwarnings(r"ignore:.*torch\.jit\.script.*is deprecated:FutureWarning"),
    pytest.mark.filterwarnings(r"ignore:.*torch\.jit\.script.*is deprecated:DeprecationWarning"),
    # torch 2.11 makes an instance of its own base class when it traces a custom function
    pytest.mark.filterwarnings("ignore:.*autograd.function.Function.*should not be instantiated:DeprecationWarning"),
]


# ------------------------------------------------------------------------------------------------------------------ compile


@pytest.fixture
def compiler(subnormal_numbers: None) -> Iterator[Callable[..., Any]]:
    """torch.compile without graph breaks; aot_eager traces forward and backward as inductor does."""
    torch._dynamo.reset()
    yield lambda f, backend="aot_eager", **k: torch.compile(f, fullgraph=True, backend=backend, **k)
    torch._dynamo.reset()


# a dtype changes no operation of the graph: of the 16-bit ones, one is compiled, with the activation of two kinks
@pytest.mark.parametrize(
    ("case", "dtype"),
    [*((case, torch.float32) for case in CASES), (CASES[2], torch.bfloat16)],
    ids=lambda value: dtype_name(value) if isinstance(value, torch.dtype) else str(value),
)
def test_compiled_graph_equals_eager(case: Case, dtype: torch.dtype, compiler: Any) -> None:
    x = inputs(dtype)
    module, g = case.make(0.7), cotangents(x)
    compiled = compiler(module)
    assert same_bits(compiled(x), case.native()(x), signed_zero=True)
    assert same_bits(eager(compiled, x, g), eager(module, x, g))
    if dtype == torch.float32:
        in_place = case.make(0.7, inplace=True)
        assert same_bits(eager(compiler(lambda t: in_place(t * 1)), x, g), eager(module, x, g))


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.long)])
def test_compiled_at_nan_is_torchs_own(backend: str, compiler: Any) -> None:
    """At NaN no side is the right one; the compiled activation takes the one that torch's own takes when compiled."""
    x = torch.full((64,), 1.0)
    x[::3] = math.nan
    g = cotangents(x)
    # torch's eager kernels of hardtanh, which aot_eager runs, differ among themselves at NaN
    pairs = [(ReLU(0.7), nn.ReLU()), (LeakyReLU(0.1, 0.7), nn.LeakyReLU(0.1))]
    pairs += [(ReLU6(0.7, 0.25), nn.ReLU6())] * (backend == "inductor")
    for ours, theirs in pairs:
        assert same_bits(eager(compiler(ours, backend), x, g), eager(compiler(theirs, backend), x, g))


@every_case
def test_compiled_in_place_overwrites_its_input(case: Case, compiler: Any) -> None:
    module = case.make(0.7, inplace=True)

    def both(t: Tensor) -> tuple[Tensor, Tensor]:
        z = t * 1
        return module(z), z

    x = torch.tensor([-2.0, 0.0, 3.0, 6.0, 7.0], requires_grad=True)
    result, overwritten = compiler(both)(x)
    assert torch.equal(result, overwritten)
    assert torch.equal(result, case.native()(x))


@pytest.mark.slow
def test_inductor_forward_and_backward(compiler: Any) -> None:
    x = inputs(torch.float32)
    modules = [ReLU(0.7), ReLU6(0.7, 0.25), LeakyReLU(0.1, 0.7), LeakyReLU(0.2)]
    g = [cotangents(x, seed) for seed in range(len(modules))]

    def run(x: Tensor) -> tuple[Tensor, ...]:
        return tuple(module(x * 1) for module in modules)

    def native(x: Tensor) -> tuple[Tensor, ...]:
        plain = (nn.ReLU(), nn.ReLU6(), nn.LeakyReLU(0.1), nn.LeakyReLU(0.2))
        return tuple(module(x * 1) for module in plain)

    compiled = compiler(run, backend="inductor")
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    # inductor's own relu6 maps -0 to +0: the sign of zero is compared with torch's own modules in the same mode
    for ours, want, own in zip(compiled(a), run(b), compiler(native, backend="inductor")(x), strict=True):
        assert same_bits(ours, want)
        assert same_bits(ours, own, signed_zero=True)
    ours, want = compiled(a), run(b)
    for index in range(len(modules)):
        got = torch.autograd.grad(
            ours, a, [c if i == index else torch.zeros_like(c) for i, c in enumerate(g)], retain_graph=True
        )[0]
        assert same_bits(got, torch.autograd.grad(want[index], b, g[index])[0])
    # read at backward time by the compiled backward as well
    modules[0].subgradient = -0.25
    zeros = [g[0], *[torch.zeros_like(c) for c in g[1:]]]
    assert same_bits(torch.autograd.grad(ours, a, zeros)[0], eager(ReLU(-0.25), x, g[0]))


class Scaled(torch.autograd.Function):
    """The identity, whose gradient is multiplied by a tensor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: Tensor) -> Tensor:
        ctx.save_for_backward(factor)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        return grad_outputs[0] * ctx.saved_tensors[0], None


def gradient_of_both(first: Callable[[Tensor], Tensor], second: Callable[[Tensor], Tensor], compiler: Any) -> list[float]:
    """The gradient at 0 through each of two outputs of one compiled graph."""
    x = torch.zeros(2, requires_grad=True)
    outputs = compiler(lambda t: (first(t), second(t)))(x)
    cotangents = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    return torch.autograd.grad(outputs, x, cotangents)[0].tolist()


def test_compiled_outputs_of_equal_values_keep_their_subgradients(compiler: Any) -> None:
    """torch 2.4 returns two outputs of equal values as one tensor, and then calls the backward of the last for both.

    A custom function of a few lines shows it as well, so it is torch's defect, not the activations'.
    """
    plain = gradient_of_both(*[lambda x, s=s: Scaled.apply(x, torch.tensor(s)) for s in (0.75, 0.25)], compiler)
    if plain == [0.25, 0.25] and torch.__version__ < (2, 11):
        pytest.skip(f"torch {torch.__version__} merges outputs of equal values, of any custom function (seen in 2.4.1)")
    assert plain == [0.75, 0.25]
    assert gradient_of_both(ReLU(0.75), ReLU(0.25), compiler) == [0.75, 0.25]


def test_compiled_activations_in_one_graph_keep_their_subgradients(compiler: Any) -> None:
    """Used inside the graph, equal values are not merged, in any version of torch."""
    x, first, second = torch.zeros(3), ReLU(0.75), ReLU(0.25)
    g = torch.ones(3)
    assert eager(compiler(lambda t: first(t) + 2 * second(t)), x, g).tolist() == [1.25] * 3


def test_compiled_members_and_shapes(compiler: Any) -> None:
    module = ReLU(torch.tensor([[0.1], [0.2], [0.3]]))
    compiled = compiler(module, dynamic=True)
    for columns in (2, 5):
        x = torch.zeros(3, columns)
        assert same_bits(eager(compiled, x, x + 1), eager(module, x, x + 1))
    x = torch.zeros(3, 2, requires_grad=True)
    y = compiled(x)
    module.subgradient = torch.tensor([[0.4], [0.5], [0.6]])
    assert same_bits(torch.autograd.grad(y.sum(), x)[0], eager(module, x, torch.ones(3, 2)))
    assert compiled(torch.tensor([[-1], [0], [1]])).tolist() == [[0], [0], [1]]


def test_compiled_zero_dimensional(compiler: Any) -> None:
    assert eager(compiler(ReLU(0.5)), torch.tensor(0.0), torch.tensor(2.0)) == 1.0


# each way of differentiating with one activation, and each activation with one way: all go through ``_composed``
@pytest.mark.parametrize(
    ("mode", "case"),
    [(by_grad, CASES[0]), (by_grad, CASES[3]), (by_jvp, CASES[2]), (by_vjp, CASES[2]), (by_vmap, CASES[2])],
    ids=lambda value: value.__name__ if callable(value) and not isinstance(value, Case) else str(value),
)
def test_torch_func_inside_compile(case: Case, mode: Any, compiler: Any) -> None:
    if mode is by_vmap and torch.__version__ < (2, 11):
        pytest.skip(f"dynamo of torch {torch.__version__} cannot trace vmap of a module (seen in 2.4.1; 2.11 can)")
    # dynamo traces a custom function's forward alone here: the gradient would be torch's own, silently
    x = inputs(torch.float32)
    g, module = cotangents(x), case.make(-0.7)
    if mode is by_vmap:
        got = eager(compiler(lambda t: vmap(module)(t)), x, g)
    else:
        got, value = compiler(lambda t, c: (mode(module, t, c), vjp(module, t)[0]))(x, g)
        assert same_bits(value, case.native()(x), signed_zero=True)
    assert same_bits(got, eager(module, x, g))


def test_dual_numbers_through_compile_are_right_or_refused(compiler: Any) -> None:
    # torch 2.11 passes them through, 2.14 refuses; a tangent of 0 at the kink would be torch's own, silently
    x = torch.tensor([-1.0, 0.0, 2.0])
    try:
        got = by_dual_numbers(compiler(ReLU(0.5)), x, torch.ones(3))
    except torch._dynamo.exc.Unsupported:
        return
    assert got.tolist() == [0.0, 0.5, 1.0]


# compiled autograd itself reads .grad of every saved tensor, ReLU's result among them
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
# few hits go through the hook of ``_hooked``, many through ``_Eager``, whichever the activation
@pytest.mark.parametrize(
    ("few", "case"), [(True, CASES[0]), (True, CASES[2]), (False, CASES[2]), (False, CASES[3])], ids=str
)
def test_compiled_autograd_of_an_eager_forward(case: Case, few: bool, compiler: Any) -> None:
    if not hasattr(torch._dynamo.compiled_autograd, "_enable"):
        pytest.skip(f"torch {torch.__version__} lacks torch._dynamo.compiled_autograd._enable, which is in 2.11")
    # backward is traced then though forward was not; a second forward has its hits elsewhere, a third none
    module = case.make(0.7)
    for start in (0, 50, 256):
        x = torch.full((256,), 2.5)
        x[start : start + (2 if few else 200)] = case.kinks[-1]
        g = cotangents(x)
        leaf = x.clone().requires_grad_()
        y = module(leaf)
        with torch._dynamo.compiled_autograd._enable(torch.compile(backend="eager")):
            y.backward(g)
        assert same_bits(leaf.grad, eager(module, x, g))


# ------------------------------------------------------------------------------------------------------------------- export


@pytest.mark.parametrize("strict", [False, True])
def test_export_is_torchs_own_forward(strict: bool, compiler: Any) -> None:
    net = nn.Sequential(nn.Linear(3, 4), ReLU(0.5), LeakyReLU(0.1, 0.5), ReLU6(0.5, 0.25), ReLU(0.5, inplace=True)).eval()
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    program = torch.export.export(net, (x,), strict=strict)
    assert same_bits(program.module()(x).detach(), net(x).detach(), signed_zero=True)
    assert not any("subgradient" in name for name in program.state_dict)
