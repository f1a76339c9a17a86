"""Activations written out are recognised by what they compute; healthy models are left alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relucheck.bifurcation.compare import backprop, compare
from relucheck.bifurcation.forward import trace, written_out
from relucheck.bifurcation.forward.recognition import bends, recognised
from relucheck.bifurcation.wiring import WiringError, check_wiring, probe_wiring
from tests.helpers.written_out import After, Identity, Model

ZERO, SLOPE = torch.zeros(()), nn.Parameter(torch.full((4,), 0.25))
INFINITY = float("inf")


def under_no_grad(x: Tensor) -> Tensor:
    with torch.no_grad():
        mask = (x > 0).float()
    return x * mask


def overwritten(x: Tensor) -> Tensor:
    y = x.clone()
    y[y < 0] = 0
    return y


def overwritten_through_a_view(x: Tensor) -> Tensor:
    y = x.clone()
    flat = y.view(-1)
    flat[flat < 0] = 0
    return y


def overwritten_in_part(x: Tensor) -> Tensor:
    y = x.clone()
    y[:, :2].clamp_(min=0)
    return y


def overwritten_at_indices(x: Tensor) -> Tensor:
    y = x.clone()
    y[(y < 0).nonzero(as_tuple=True)] = 0.0
    return y


def much_later(x: Tensor) -> Tensor:
    mask = x > 0
    other = sum(x.sin() * 0 for _ in range(20))
    return x * mask + other


class Masked(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):  # type: ignore[no-untyped-def]
        mask = x > 0
        ctx.save_for_backward(mask)
        return x * mask

    @staticmethod
    def backward(ctx, cotangent):  # type: ignore[no-untyped-def]
        return cotangent * ctx.saved_tensors[0]


class Foreign(Masked):
    """Its values come from another library, and no call of torch shows them."""

    @staticmethod
    def forward(ctx, x):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x > 0)
        return torch.from_numpy(np.maximum(x.detach().numpy(), 0))


class Kernel(Masked):
    """Its values are written into memory of torch, as a kernel of Triton does."""

    @staticmethod
    def forward(ctx, x):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x > 0)
        result = torch.empty_like(x)
        result.numpy()[...] = np.maximum(x.detach().numpy(), 0)
        return result


#: The kind of each, and the site at which it is named.
SPELLINGS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "x * (x.detach() > 0)": (lambda x: x * (x.detach() > 0), "ReLU mul"),
    "x * (x.data > 0)": (lambda x: x * (x.data > 0), "ReLU mul"),
    "x * (x > 0).float()": (lambda x: x * (x > 0).float(), "ReLU mul"),
    "x * (x > 0).type_as(x)": (lambda x: x * (x > 0).type_as(x), "ReLU mul"),
    "x * (0 < x)": (lambda x: x * x.new_zeros(()).lt(x), "ReLU mul"),
    "x * ~(x <= 0)": (lambda x: x * torch.logical_not(x <= 0), "ReLU mul"),
    "x * ~signbit(x)": (lambda x: x * (~torch.signbit(x)), "ReLU mul"),
    "1.5 * x * (x > 0)": (lambda x: 1.5 * x * (x > 0), "ReLU mul"),
    "-((-x) * ((-x) > 0))": (lambda x: -((-x) * ((-x) > 0)), "ReLU mul"),
    "a mask under no_grad": (under_no_grad, "ReLU mul"),
    "a mask that is used much later": (much_later, "ReLU mul"),
    "a mask in place": (lambda x: (x + 0).mul_((x > 0).to(x.dtype)), "ReLU mul_"),
    "x * heaviside(x, 0)": (lambda x: x * torch.heaviside(x.detach(), x.new_zeros(())), "ReLU mul"),
    "x * (sign(x) + 1) / 2": (lambda x: x * (torch.sign(x) + 1) / 2, "ReLU mul"),
    "x * (sign(x.detach()) + 1) / 2": (lambda x: x * ((torch.sign(x.detach()) + 1) * 0.5), "ReLU mul"),
    "x * (x / |x| + 1) / 2": (lambda x: x * ((x / (x.abs() + 1e-30) + 1) / 2), "ReLU mul"),
    "where(x > 0, x, 0)": (lambda x: torch.where(x > 0, x, 0.0), "ReLU where"),
    "where(x <= 0, 0, x)": (lambda x: torch.where(x <= 0, 0.0, x), "ReLU where"),
    "where(x > zeros_like(x), x, zeros_like(x))": (
        lambda x: torch.where(x > torch.zeros_like(x), x, torch.zeros_like(x)),
        "ReLU where",
    ),
    "where(x > 0, x, new_zeros)": (lambda x: torch.where(x > 0, x, x.new_zeros(())), "ReLU where"),
    "fmax(x, 0)": (lambda x: torch.fmax(x, torch.zeros_like(x)), "ReLU fmax"),
    "fmax(0, x)": (lambda x: torch.fmax(torch.zeros_like(x), x), "ReLU fmax"),
    "max(x, constant)": (lambda x: torch.max(x, ZERO), "ReLU max"),
    "-minimum(-x, 0)": (lambda x: -torch.minimum(-x, ZERO), "ReLU minimum"),
    "minimum(maximum(x, 0), 6)": (lambda x: torch.minimum(torch.maximum(x, ZERO), ZERO + 6), "ReLU maximum"),
    "(x + |x|) / 2": (lambda x: (x + x.abs()) / 2, "ReLU add"),
    "(x + sqrt(x²)) / 2": (lambda x: (x + torch.sqrt(x * x)) / 2, "ReLU add"),
    "(x + l1(x)) / 2": (lambda x: (x + F.l1_loss(x, torch.zeros_like(x), reduction="none")) / 2, "ReLU add"),
    "(x + norm(x)) / 2": (lambda x: (x + x[..., None].norm(dim=-1)) / 2, "ReLU add"),
    "x - clamp(x, max=0)": (lambda x: x - x.clamp(max=0), "ReLU clamp"),
    "hardtanh(x, 0, inf)": (lambda x: F.hardtanh(x, 0, INFINITY), "ReLU hardtanh"),
    "clamp(x, 0, 6)": (lambda x: x.clamp(0, 6), "ReLU6 clamp"),
    "clamp(x, tensor)": (lambda x: torch.clamp(x, min=torch.zeros(4)), "ReLU clamp"),
    "clip(x, 0)": (lambda x: torch.clip(x, 0, None), "ReLU clip"),
    "aten.clamp_min": (lambda x: torch.ops.aten.clamp_min(x, 0), "ReLU clamp_min"),
    "masked_fill": (lambda x: x.masked_fill(x < 0, 0), "ReLU masked_fill"),
    "masked_scatter": (lambda x: x.masked_scatter(x < 0, torch.zeros_like(x)), "ReLU masked_scatter"),
    "index_put": (lambda x: x.index_put((x < 0,), ZERO), "ReLU index_put"),
    "x[x < 0] = 0": (overwritten, "ReLU __setitem__"),
    "x[x < 0] = 0, through a view": (overwritten_through_a_view, "ReLU __setitem__"),
    "x[indices] = 0": (overwritten_at_indices, "ReLU __setitem__"),
    "a part in place": (overwritten_in_part, "ReLU clamp_"),
    "the larger of two": (lambda x: torch.stack([x, torch.zeros_like(x)]).amax(0), "ReLU amax"),
    "the last of two sorted": (
        lambda x: torch.stack([x, torch.zeros_like(x)], -1).sort(-1)[0][..., 1],
        "ReLU __getitem__",
    ),
    "where(x > 0, x, slope * x)": (lambda x: torch.where(x > 0, x, SLOPE * x), "LeakyReLU where"),
    "maximum(x, 0.1 x)": (lambda x: torch.maximum(x, 0.1 * x), "LeakyReLU maximum"),
    "in a vmap": (lambda x: torch.func.vmap(lambda row: row * (row > 0))(x), "ReLU mul"),
    "a custom Function": (Masked.apply, "ReLU in MaskedBackward"),
    "a Function of another library": (Foreign.apply, "ForeignBackward"),
    "a kernel": (Kernel.apply, "KernelBackward"),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_an_activation_written_out_is_named(name: str) -> None:
    """Zeros hide what a mask does, and so do indices of elements of which there are none."""
    function, expected = SPELLINGS[name]
    inputs = torch.randn(3, 4) if "indices" in name else torch.zeros(2, 4)
    with pytest.raises(WiringError) as error:
        check_wiring(Model(function), inputs)
    named = [(wire.site, wire.activation, wire.verdict) for wire in error.value.wires]
    kind, _, site = expected.partition(" ")
    custom = expected.endswith("Backward")
    assert named == [("Model" if custom else f"Model.{site}()", expected if custom else kind, "out of reach")]
    assert compare(Model(function), inputs).out_of_reach, "compare is not silent"


def test_compare_names_what_has_no_node_of_its_own_once() -> None:
    def named(function: Callable[[Tensor], Tensor]) -> list[str]:
        return [str(item) for item in compare(Model(function), torch.zeros(2, 4)).out_of_reach]

    assert named(lambda x: x * (x.detach() > 0)) == ["Model.mul() (ReLU written out)"]
    assert named(lambda x: (x + x.abs()) / 2) == ["Model.abs() (AbsBackward0)"]
    assert named(lambda x: torch.where(x > 0, x, 2 * torch.expm1(x))) == ["Model.where() (kink at 0 written out)"]
    assert named(lambda x: x * torch.sign(x.detach())) == ["Model.mul() (kink at 0 written out)"]
    assert named(lambda x: torch.where(x > 0, x, torch.expm1(x))) == [], "equal slopes: no choice at 0"


class Viewed(Identity):
    @staticmethod
    def forward(ctx, x):  # type: ignore[no-untyped-def]
        return x.view_as(x)


class Rounded(Identity):
    @staticmethod
    def forward(ctx, x):  # type: ignore[no-untyped-def]
        return x.round()


class Swish(Identity):
    @staticmethod
    def forward(ctx, x):  # type: ignore[no-untyped-def]
        return x * torch.sigmoid(x)


def watched(x: Tensor) -> Tensor:
    with torch.no_grad():
        assert (x > 0).float().mean() <= 1
        assert (x * (x > 0)).sum() >= 0
    assert (x * (x > 0)).mean().item() >= 0
    return x + 0 * (x > 0).float().mean()


def hooked(register: Callable[[After], Any]) -> After:
    model = After()
    register(model)
    return model


HEALTHY: dict[str, Callable[[], nn.Module]] = {
    "a backward hook of a layer": lambda: hooked(lambda m: m.last.register_full_backward_hook(lambda *a: None)),
    "a backward pre-hook": lambda: hooked(lambda m: m.last.register_full_backward_pre_hook(lambda *a: None)),
    "a backward hook of an activation": lambda: hooked(lambda m: m.relu.register_full_backward_hook(lambda *a: None)),
    "a backward hook of the model": lambda: hooked(lambda m: m.register_full_backward_hook(lambda *a: None)),
    **{
        name: lambda function=function: After(function)  # type: ignore[misc]
        for name, function in {
            "clamp(-20, 2)": lambda x: x.clamp(-20, 2),
            "clamp(0, 1)": lambda x: x.clamp(0, 1),
            "clamp(min=1e-6)": lambda x: x.clamp(min=1e-6),
            "clamp(max=5)": lambda x: x.clamp(max=5),
            "F.normalize": lambda x: F.normalize(x, dim=1),
            "normalised by hand": lambda x: x / x.norm(dim=1, keepdim=True).clamp_min(1e-6),
            "clipped by norm": lambda x: x * torch.clamp(1 / (x.norm() + 1e-6), max=1.0),
            "maximum of two maps": lambda x: torch.maximum(x[:, :2], x[:, 2:]),
            "where of two maps": lambda x: torch.where(x[:, :2] > x[:, 2:], x[:, :2], x[:, 2:]),
            "maxout": lambda x: x.view(-1, 2, 2).max(1)[0],
            "a gate of another map": lambda x: x[:, :2] * (x[:, 2:] > 0),
            "metrics": watched,
            "an absolute value": torch.abs,
            "an L1 penalty": lambda x: x + 1e-3 * x.abs().mean(),
            "a mask of scores": lambda x: x.masked_fill(torch.tensor([True, False, True, False]), -1e9).softmax(1),
            "ELU by where": lambda x: torch.where(x > 0, x, torch.expm1(x)),
            "hardswish": F.hardswish,
            "hardtanh": F.hardtanh,
            "a dropout written out": lambda x: x * (torch.rand_like(x) > 0.5) / 0.5,
            "stochastic depth": lambda x: x * (torch.rand(x.shape[0], 1) > 0.5),
            "rounding with a straight-through gradient": lambda x: x + (x.round() - x).detach(),
            "the largest two": lambda x: x * (x >= x.topk(2, 1)[0][:, -1:]),
            "a smooth ReLU": lambda x: 0.5 * (x + torch.sqrt(x * x + 1e-12)),
            "a smooth absolute value beside others": lambda x: x.flip(0) + torch.sqrt(x * x + 1e-6),
            "NaN replaced": lambda x: torch.where(torch.isnan(x), torch.zeros_like(x), x),
            "an identity that returns its input": Identity.apply,
            "gradient reversal": Viewed.apply,
            "a straight-through Function": Rounded.apply,
            "a smooth Function": Swish.apply,
            "a Function, then in place": lambda x: Swish.apply(x).add_(1),
        }.items()
    },
}


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_model_passes(name: str) -> None:
    """Zeros make a maximum of two maps look like a ReLU."""
    for inputs in (torch.zeros(2, 4), torch.randn(3, 4, requires_grad=True)):
        (wire,) = check_wiring(HEALTHY[name](), inputs)
        assert (wire.site, wire.verdict) == ("relu", "answers")


@pytest.mark.parametrize(
    "name",
    [
        *("a dropout written out", "stochastic depth", "metrics", "a gate of another map", "ELU by where"),
        *("a smooth ReLU", "a smooth absolute value beside others", "rounding with a straight-through gradient"),
    ],
)
def test_compare_names_nothing_in_a_healthy_model(name: str) -> None:
    for inputs in (torch.zeros(2, 4), torch.randn(300, 4)):
        assert compare(HEALTHY[name](), inputs).out_of_reach == ()


def test_an_activation_that_passes_no_gradient_is_not_named() -> None:
    """A mask that only a metric uses, beside the same activation where the gradient passes."""
    model = After(lambda x: (x, (x * (x > 0)).detach()))
    assert [wire.verdict for wire in probe_wiring(model, torch.zeros(2, 4))] == ["answers"]
    model = After(lambda x: (x, x * (x > 0)))
    assert [wire.verdict for wire in probe_wiring(model, torch.zeros(2, 4))] == ["answers", "out of reach"]


def shifted(x: Tensor) -> Tensor:
    return F.relu(x) + 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("function", "kind", "bent"),
    [
        (F.relu, "ReLU", True),
        (F.relu6, "ReLU6", True),
        (lambda x: F.leaky_relu(x, 0.3), "LeakyReLU", True),
        (lambda x: -3 * F.relu(-x), "ReLU", True),
        (torch.abs, None, True),
        (lambda x: F.elu(x, 2.0), None, True),
        (F.elu, None, False),
        (torch.tanh, None, False),
        (lambda x: x, None, False),
        (lambda x: F.relu(x - 1), None, False),
        (lambda x: F.relu(x).flip(0), None, True),
        (lambda x: F.relu(x).sum(), None, False),
        (lambda x: (x > 0).to(x.dtype), None, False),
        (shifted, None, True),
        (lambda x: F.relu(x).to(torch.complex64), None, False),
    ],
)
def test_functions_are_judged_by_their_values(
    function: Callable[[Tensor], Tensor], kind: str | None, bent: bool, dtype: torch.dtype
) -> None:
    like = torch.empty(3, 4, dtype=dtype)
    with torch.no_grad():
        assert recognised(function, like) == kind
        if dtype.itemsize > 2 or function is not shifted:  # beside a 1 the bend is as small as the rounding of 16 bits
            assert bends(function, like) == bent
            assert not bends(function, like, 6.0) or function is F.relu6


def test_the_trace_keeps_nothing_of_a_plain_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """No candidate, so no call runs again; and a few calls at most are kept."""
    ran: list[Any] = []
    monkeypatch.setattr(trace, "run_again", lambda *args, **kwargs: ran.append(args))
    monkeypatch.setattr("relucheck.bifurcation.forward.written_out.run_again", trace.run_again)
    kept: list[trace.Trace] = []
    enter = trace.Trace.enter
    monkeypatch.setattr(trace.Trace, "enter", lambda self, tensors: (kept.append(self), enter(self, tensors))[1])
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 2))
    backprop(model, torch.randn(2, 1, 6, 6))
    assert ran == []
    assert kept[0].candidates == []


class Deep(nn.Module):
    """Smooth functions written out of many calls, and one ReLU written out, at a width where each call takes its time."""

    def __init__(self, function: Callable[[Tensor], Tensor] = torch.clone) -> None:
        super().__init__()
        self.layers, self.relu = nn.ModuleList(nn.Linear(64, 64) for _ in range(2)), nn.ReLU()
        self.__dict__["function"] = function

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            h = layer(x)
            x = x + 0.5 * h * (1 + torch.tanh(0.8 * (h + 0.04 * h**3)))
            x = self.function(x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))
        return self.relu(x)


def written_relu(x: Tensor) -> Tensor:
    return 1.5 * x * (x > 0)


def test_few_elements_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """Candidates of a large mini-batch cost no more than a small one, and an activation is named all the same."""
    computed: list[int] = []
    run_again = written_out.run_again

    def counted(*args: Any, **kwargs: Any) -> Any:
        computed.append(args[2].numel())
        return run_again(*args, **kwargs)

    monkeypatch.setattr(written_out, "run_again", counted)
    inputs = torch.randn(500, 64)
    check_wiring(Deep(), inputs)
    assert compare(Deep(), inputs).out_of_reach == ()
    assert computed
    assert max(computed) < 2000
    assert sum(computed) < 10 * inputs.numel()
    with pytest.raises(WiringError, match=r"Deep\.mul\(\).* \(ReLU\): out of reach"):
        check_wiring(Deep(written_relu), inputs)


def test_a_part_that_few_elements_hide_is_no_activation() -> None:
    """The middle row is an activation, and the others are not."""
    mask = torch.arange(500)[:, None] == 250
    (wire,) = check_wiring(Deep(lambda x: torch.where((x > 0) | ~mask, x, 0.0)), torch.randn(500, 64))
    assert wire.verdict == "answers"


def test_what_is_not_looked_at_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(written_out, "_MOST_ELEMENTS", 0)
    with pytest.raises(WiringError, match="not examined"):
        check_wiring(Deep(), torch.randn(500, 64))
    assert [item.node for item in compare(Deep(), torch.randn(500, 64)).out_of_reach] == [written_out.UNEXAMINED]


@pytest.mark.parametrize("shape", [(3, 4), (300, 70)])
def test_a_smooth_function_of_an_absolute_value_is_no_activation(shape: tuple[int, int]) -> None:
    """The absolute value has a node, and the function in which its kink cancels is not named."""

    def silu(x: Tensor) -> Tensor:
        e = torch.exp(-x.abs())
        return x * torch.where(x >= 0, 1 / (1 + e), e / (1 + e))

    model = nn.Sequential(nn.Linear(shape[1], shape[1], bias=False), nn.ReLU(), Applied(silu), nn.Linear(shape[1], 1))
    named = {item.node for item in compare(model, torch.randn(shape)).out_of_reach}
    assert named == {"AbsBackward0"}


class Applied(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


@pytest.mark.parametrize("width", [4, 10, 11, 20])
def test_a_gate_over_the_batch_is_no_activation(width: int) -> None:
    assert recognised(lambda x: x * (x.mean(0) > 0), torch.empty(8, width)) is None


@pytest.mark.parametrize("shape", [(300, 64), (64, 64)])
def test_random_numbers_make_no_kink(shape: tuple[int, int]) -> None:
    """Each number of one run would have another mask."""
    model = nn.Sequential(nn.Linear(shape[1], shape[1]), nn.ReLU(), Applied(lambda x: x * (torch.rand_like(x) > 0.5)))
    model = nn.Sequential(model, nn.Linear(shape[1], 1))
    assert compare(model, torch.randn(shape)).out_of_reach == ()
