"""The activations under torch.func, forward mode, double backward, autocast, torch.compile and torch.export.

Every mode is compared with plain eager reverse mode, whose values test_functional.py settles.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, stack_module_state, vjp, vmap

from relucheck.activations.functional import leaky_relu, relu, relu6
from relucheck.activations.modules import LeakyReLU, ReLU, ReLU6
from relucheck.activations.rules import SubgradientError
from relucheck.numerics.bits import all_values, same_bits
from relucheck.numerics.dtypes import DTYPES, dtype_name

pytestmark = [
    # torch's forward-mode AD imports its own scripted decompositions
    pytest.mark.filterwarnings(r"ignore:.*torch\.jit\.script.*is deprecated:FutureWarning"),
    pytest.mark.filterwarnings(r"ignore:.*torch\.jit\.script.*is deprecated:DeprecationWarning"),
    # torch 2.11 makes an instance of its own base class when it traces a custom function
    pytest.mark.filterwarnings("ignore:.*autograd.function.Function.*should not be instantiated:DeprecationWarning"),
]


@dataclasses.dataclass(frozen=True)
class Case:
    name: str
    make: Callable[..., nn.Module]
    functional: Callable[[Tensor, Tensor], Tensor]
    native: Callable[[], nn.Module]
    kinks: tuple[float, ...]

    def __str__(self) -> str:
        return self.name


CASES = (
    Case("ReLU", lambda s, **k: ReLU(s, **k), relu, nn.ReLU, (0.0,)),
    Case(
        "ReLU6-alpha",
        lambda s, **k: ReLU6(s, 0.25, **k),
        lambda x, s: relu6(x, s, torch.full((), 0.25, dtype=x.dtype)),
        nn.ReLU6,
        (0.0, 6.0),
    ),
    Case(
        "ReLU6-beta",
        lambda s, **k: ReLU6(0.25, s, **k),
        lambda x, s: relu6(x, torch.full((), 0.25, dtype=x.dtype), s),
        nn.ReLU6,
        (0.0, 6.0),
    ),
    Case("LeakyReLU", lambda s, **k: LeakyReLU(0.01, s, **k), lambda x, s: leaky_relu(x, s), nn.LeakyReLU, (0.0,)),
)
every_case = pytest.mark.parametrize("case", CASES, ids=str)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)


def inputs(dtype: torch.dtype) -> Tensor:
    """Hits of both kinks, both zeros, neighbours, infinities. No NaN, see test_activations.inputs."""
    if dtype in (torch.float16, torch.bfloat16):
        x = all_values(dtype)
        return torch.where(x.isnan(), torch.zeros_like(x), x)
    tiny = torch.finfo(dtype).tiny
    special = [0.0, -0.0, 6.0, -6.0, tiny, -tiny, tiny / 2, 5.999999, 7.0, math.inf, -math.inf, 1.0, -1.0, 2.0, -2.0, 6.0]
    return torch.tensor(special * 8, dtype=dtype)


def cotangents(x: Tensor, seed: int = 0) -> Tensor:
    return torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(x.dtype)


def eager(module: Callable[[Tensor], Tensor], x: Tensor, g: Tensor) -> Tensor:
    x = x.detach().clone().requires_grad_()
    return torch.autograd.grad(module(x), x, g)[0]


# ----------------------------------------------------------------------------------------------------------- one Jacobian


def by_grad(f: Callable[[Tensor], Tensor], x: Tensor, g: Tensor) -> Tensor:
    return vmap(grad(lambda t, c: f(t) * c))(x, g)


def by_vjp(f: Callable[[Tensor], Tensor], x: Tensor, g: Tensor) -> Tensor:
    return vjp(f, x)[1](g)[0]


def by_jvp(f: Callable[[Tensor], Tensor], x: Tensor, g: Tensor) -> Tensor:
    return jvp(f, (x,), (g,))[1]


def by_dual_numbers(f: Callable[[Tensor], Tensor], x: Tensor, g: Tensor) -> Tensor:
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(f(forward_ad.make_dual(x, g))).tangent


def by_vmap(f: Callable[[Tensor], Tensor], x: Tensor, g: Tensor) -> Tensor:
    return eager(vmap(f), x, g)


def by_batched_cotangents(f: Callable[[Tensor], Tensor], x: Tensor, g: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    return torch.autograd.grad(f(x), x, torch.stack([g, -g]), is_grads_batched=True)[0][0]


def by_nested_vmap(f: Callable[[Tensor], Tensor], x: Tensor, g: Tensor) -> Tensor:
    return vmap(vmap(grad(lambda t, c: f(t) * c)))(x.view(2, -1), g.view(2, -1)).view(-1)


MODES = (by_grad, by_vjp, by_jvp, by_dual_numbers, by_vmap, by_batched_cotangents, by_nested_vmap)


@every_case
@every_dtype
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("s", [0.7, -0.5])
def test_every_mode_gives_the_same_jacobian(case: Case, dtype: torch.dtype, mode: Any, s: float) -> None:
    x = inputs(dtype)
    g, module = cotangents(x), case.make(s)
    assert same_bits(mode(module, x, g), eager(module, x, g))


@every_case
@pytest.mark.parametrize("mode", MODES)
def test_own_subgradient_is_torchs_own_in_every_mode(case: Case, mode: Any) -> None:
    module = {"ReLU": ReLU(), "LeakyReLU": LeakyReLU()}.get(case.name, ReLU6())
    x = inputs(torch.float32)
    g = torch.where(x == 0, math.inf, cotangents(x))  # 0 * infinity must not appear
    assert same_bits(mode(module, x, g), mode(case.native(), x, g))


@every_case
@pytest.mark.parametrize("mode", [m for m in MODES if m not in (by_vmap, by_batched_cotangents)])
def test_in_place_in_every_mode(case: Case, mode: Any) -> None:
    x = inputs(torch.float32)
    g = cotangents(x)
    assert same_bits(mode(lambda t: case.make(0.7, inplace=True)(t * 1), x, g), eager(case.make(0.7), x, g))


@every_case
def test_values_in_every_mode_are_torchs_own(case: Case) -> None:
    x, module, native = inputs(torch.float32), case.make(0.7), case.native()(inputs(torch.float32))
    with forward_ad.dual_level():
        dual = forward_ad.unpack_dual(module(forward_ad.make_dual(x, x))).primal
    for value in (vmap(module)(x), vjp(module, x)[0], jvp(module, (x,), (x,))[0], dual):
        assert same_bits(value, native, signed_zero=True)


@every_case
@pytest.mark.parametrize("few", [True, False])
def test_jacobians(case: Case, few: bool) -> None:
    x = torch.full((64,), 2.5)
    x[1], x[2] = case.kinks[0], case.kinks[-1]
    if not few:
        x[3:40] = case.kinks[0]
    module = case.make(0.7)
    want = torch.diag(eager(module, x, torch.ones_like(x)))
    assert torch.equal(jacrev(module)(x), want)
    assert torch.equal(jacfwd(module)(x), want)
    for options in ({"vectorize": True}, {"vectorize": True, "strategy": "forward-mode"}, {}):
        assert torch.equal(torch.autograd.functional.jacobian(module, x, **options), want)


@every_case
def test_vmap_over_input_subgradient_or_both(case: Case) -> None:
    s = torch.tensor([0.0, 0.5, -0.5], dtype=torch.float64)
    x = torch.stack([inputs(torch.float32)] * 3)
    x[1] = x[1].flip(0)
    derivative = grad(lambda t, u: case.functional(t, u).sum())
    want = [[eager(case.make(float(u)), row, torch.ones_like(row)) for u in s] for row in x]
    both = vmap(derivative)(x, s)
    assert all(same_bits(both[i], want[i][i]) for i in range(3))
    only_s = vmap(derivative, in_dims=(None, 0))(x[1], s)
    assert all(same_bits(only_s[i], want[1][i]) for i in range(3))
    only_x = vmap(derivative, in_dims=(0, None))(x, s[1])
    assert all(same_bits(only_x[i], want[i][1]) for i in range(3))
    nested = vmap(vmap(derivative, in_dims=(None, 0)), in_dims=(0, None))(x, s)
    assert all(same_bits(nested[i][j], want[i][j]) for i in range(3) for j in range(3))
    in_place = vmap(grad(lambda t, u: case.functional(t * 1, u).sum()), in_dims=(None, 0))(x[1], s)
    assert all(same_bits(in_place[i], want[1][i]) for i in range(3))


@every_case
def test_per_member_tensor_inside_vmap(case: Case) -> None:
    # the tensor broadcasts to what the function sees, which lacks the mapped dimension
    s = torch.tensor([0.1, 0.2, 0.3, 0.4])
    x = torch.full((5, 4), case.kinks[0])
    if case.name == "ReLU6-beta":
        x[:] = 6.0
    got = vmap(grad(lambda t: case.make(s)(t).sum()))(x)
    assert torch.equal(got, s.expand(5, 4))
    with pytest.raises(SubgradientError, match="does not broadcast"):
        vmap(grad(lambda t: case.make(torch.zeros(5, 1))(t).sum()))(x)


def test_read_at_backward_time_after_vmap() -> None:
    module, x = ReLU(0.5), torch.zeros(3, 2, requires_grad=True)
    y = vmap(module)(x)
    for s in (0.25, -1.0):
        module.subgradient = s
        assert torch.autograd.grad(y.sum(), x, retain_graph=True)[0].tolist() == [[s, s]] * 3


# --------------------------------------------------------------------------------------------------------------- ensembles


def _ensemble(activation: Callable[[float], nn.Module]) -> tuple[nn.Module, list[nn.Module]]:
    torch.manual_seed(0)
    nets = []
    for s in (0.0, 0.5, -0.5):
        net = nn.Sequential(nn.Linear(3, 4), activation(s), nn.Linear(4, 2)).double()
        nn.init.zeros_(net[0].bias)
        nets.append(net)
    return copy.deepcopy(nets[0]), nets


@every_case
def test_stacked_members_equal_separate_ones(case: Case) -> None:
    base, nets = _ensemble(case.make)
    if "beta" in case.name:  # there the hit is at 6
        for net in nets:
            nn.init.constant_(net[0].bias, 6.0)
    parameters, buffers = stack_module_state(nets)
    names = [f"1.{name}_tensor" for name in nets[0][1].rule.names]
    assert sorted(buffers) == sorted(names)
    assert all(buffers[name].shape == (3,) for name in names)
    x = torch.zeros(2, 3, dtype=torch.float64)

    def loss(p: Any, b: Any, x: Tensor) -> Tensor:
        return functional_call(base, (p, b), (x,)).pow(2).sum()

    stacked = vmap(grad(loss), in_dims=(0, 0, None))(parameters, buffers, x)
    vmap(loss, in_dims=(0, 0, None))(parameters, buffers, x).sum().backward()  # reverse mode outside, vmap inside
    for member, net in enumerate(nets):
        net(x).pow(2).sum().backward()
        for name, parameter in net.named_parameters():
            for got in (stacked[name][member], parameters[name].grad[member]):
                torch.testing.assert_close(got, parameter.grad, rtol=1e-12, atol=1e-14)
    biases = stacked["0.bias"]
    assert biases[1].any()
    assert biases[0].any() == (case.name == "never")  # member 0 has s = 0: nothing passes


def test_functional_call_swaps_the_subgradient() -> None:
    module, x = ReLU(0.5), torch.zeros(3, requires_grad=True)
    y = functional_call(module, {"subgradient_tensor": torch.tensor(0.25, dtype=torch.float64)}, (x,))
    assert module.subgradient == 0.5
    assert torch.autograd.grad(y.sum(), x)[0].tolist() == [0.25] * 3


# ---------------------------------------------------------------------------------------------------------- double backward


@every_case
@pytest.mark.parametrize("few", [True, False])
def test_double_backward(case: Case, few: bool) -> None:
    x = torch.full((64,), 2.5, dtype=torch.float64)
    x[: 2 if few else 40] = case.kinks[-1]
    module = case.make(0.7)
    x.requires_grad_()
    g = cotangents(x.detach()).requires_grad_()
    (first,) = torch.autograd.grad(module(x), x, g, create_graph=True)
    weight = cotangents(x.detach(), 1)
    by_cotangent, by_input = torch.autograd.grad(first, (g, x), weight)
    assert same_bits(by_cotangent, eager(module, x, weight))
    assert not by_input.any()  # piecewise linear


@every_case
def test_hessian_of_a_square(case: Case) -> None:
    x = torch.tensor([-1.0, 0.0, 2.0, 6.0, 7.0])
    module = case.make(0.7)
    d = eager(module, x, torch.ones_like(x))
    # d/dx (2 f f') with f'' = 0; LeakyReLU's slope left of 0 is not dyadic, hence the tolerance
    want = torch.diag(2 * d * d)
    for got in (
        hessian(lambda t: module(t).pow(2).sum())(x),
        torch.autograd.functional.hessian(lambda t: module(t).pow(2).sum(), x),
    ):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=0)


@every_case
def test_gradcheck_away_from_kinks(case: Case) -> None:
    x = torch.tensor([-1.0, 2.0, 7.0, 3.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(case.make(0.7), x, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(case.make(0.7), x, check_fwd_over_rev=True, check_batched_grad=True)


# ----------------------------------------------------------------------------------------------------------------- autocast


@every_case
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=dtype_name)
def test_autocast(case: Case, dtype: torch.dtype) -> None:
    linear, module = nn.Linear(4, 64), case.make(0.7)
    nn.init.constant_(linear.bias, case.kinks[-1])
    x = torch.zeros(3, 4)
    with torch.autocast("cpu", dtype=dtype):
        z = linear(x)
        y = module(z)
        assert z.dtype == y.dtype == dtype
        assert same_bits(y, case.native()(z), signed_zero=True)
    g = cotangents(y.detach())
    (inside,) = torch.autograd.grad(y, z, g, retain_graph=True)
    assert same_bits(inside, eager(module, z, g))
    with torch.autocast("cpu", dtype=dtype):  # backward inside autocast, too
        assert same_bits(torch.autograd.grad(y, z, g, retain_graph=True)[0], inside)
    y.float().sum().backward()
    s = 0.25 if case.name == "ReLU6-alpha" else 0.7
    torch.testing.assert_close(linear.bias.grad, torch.full((64,), 3 * s), rtol=0.02, atol=0)


# ------------------------------------------------------------------------------------------------------------------ compile


@pytest.fixture
def compiler() -> Iterator[Callable[..., Any]]:
    """torch.compile without graph breaks; aot_eager traces forward and backward as inductor does."""
    torch._dynamo.reset()
    yield lambda f, backend="aot_eager", **k: torch.compile(f, fullgraph=True, backend=backend, **k)
    torch._dynamo.reset()


@every_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=dtype_name)
def test_compiled_graph_equals_eager(case: Case, dtype: torch.dtype, compiler: Any) -> None:
    x = inputs(dtype)
    module, g = case.make(0.7), cotangents(x)
    compiled = compiler(module)
    assert same_bits(compiled(x), case.native()(x), signed_zero=True)
    assert same_bits(eager(compiled, x, g), eager(module, x, g))
    if dtype == torch.float32:
        in_place = case.make(0.7, inplace=True)
        assert same_bits(eager(compiler(lambda t: in_place(t * 1)), x, g), eager(module, x, g))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
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


def test_inductor_forward_and_backward(compiler: Any) -> None:
    x = inputs(torch.float32)
    modules = [ReLU(0.7), ReLU6(0.7, 0.25), LeakyReLU(0.1, 0.7), LeakyReLU(0.1)]
    g = [cotangents(x, seed) for seed in range(len(modules))]

    def run(x: Tensor) -> tuple[Tensor, ...]:
        return tuple(module(x * 1) for module in modules)

    def native(x: Tensor) -> tuple[Tensor, ...]:
        plain = (nn.ReLU(), nn.ReLU6(), nn.LeakyReLU(0.1), nn.LeakyReLU(0.1))
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


@pytest.mark.parametrize("case", [CASES[0], CASES[2], CASES[3]], ids=str)
@pytest.mark.parametrize("mode", [by_grad, by_jvp, by_vmap, by_vjp])
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
@every_case
@pytest.mark.parametrize("few", [True, False])
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
