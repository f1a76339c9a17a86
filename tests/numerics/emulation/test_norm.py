"""Batch norm rounded once: float32 rounded to 16 bits, in output, gradients and statistics, by module and stacked."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relucheck.networks import Network
from relucheck.numerics.arithmetic import Arithmetic, UnsupportedArithmeticError
from relucheck.numerics.bits import same_bits
from relucheck.numerics.dtypes import dtype_name
from relucheck.numerics.emulation import Emulation, EmulationError, RoundedBatchNorm, Rounding, batch_norm, emulate
from relucheck.numerics.emulation.norm import NORMS
from relucheck.training.engine import train
from relucheck.training.members import members_of
from relucheck.training.settings import Settings
from relucheck.training.stacked.layers import batch_norm as stacked_batch_norm

NARROW = [torch.bfloat16, torch.float16]
IMAGES: dict[type[nn.Module], tuple[int, ...]] = {
    nn.BatchNorm1d: (7, 5),
    nn.BatchNorm2d: (4, 5, 3, 2),
    nn.BatchNorm3d: (3, 5, 2, 3, 2),
}


def made(kind: type[nn.Module], dtype: torch.dtype, **options: Any) -> Any:
    """A batch norm of 5 channels that ``emulate`` has changed, with parameters and statistics of every size."""
    random = torch.Generator().manual_seed(1)
    norm: Any = kind(5, **options)  # type: ignore[call-arg]
    for value in (norm.weight, norm.bias, norm.running_mean):
        if value is not None:
            value.data.copy_(torch.randn(5, generator=random))
    if norm.running_var is not None:
        norm.running_var.copy_(torch.rand(5, generator=random) + 0.1)
    model = nn.Sequential(nn.Linear(5, 5), norm).to(dtype)
    emulate(model, Emulation(dtype, Rounding(bias="joined")))
    return model[1]


def inputs(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    scale = torch.tensor([1.0, 0.01, 30.0, 1.0, 3.0]).view(-1, *[1] * (len(shape) - 2))
    return (torch.randn(shape, generator=random) * scale + scale).to(dtype)


def run(norm: Any, x: Tensor, cotangent: Tensor) -> dict[str, Tensor]:
    """Output, gradients, and statistics after one forward."""
    x = x.clone().requires_grad_()
    parameters = dict(norm.named_parameters())
    y = norm(x)
    gradients = torch.autograd.grad(y, [x, *parameters.values()], cotangent)
    found = {"output": y.detach(), "x": gradients[0], **dict(zip(parameters, gradients[1:], strict=True))}
    return found | {name: value.clone() for name, value in norm.named_buffers()}


@pytest.mark.parametrize("kind", IMAGES, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("dtype", NARROW, ids=dtype_name)
@pytest.mark.parametrize("training", [True, False])
def test_it_is_float32_rounded_once(kind: type[nn.Module], dtype: torch.dtype, training: bool) -> None:
    """Bit for bit; the statistics are rounded after every forward, because they are kept in 16 bits."""
    for affine, momentum, tracked in itertools.product((True, False), (0.1, None, 1.0), (True, False)):
        norm = made(kind, dtype, affine=affine, momentum=momentum, track_running_stats=tracked).train(training)
        assert isinstance(norm, RoundedBatchNorm)
        assert isinstance(norm, kind)
        wide: Any = kind(5, affine=affine, momentum=momentum, track_running_stats=tracked)  # type: ignore[call-arg]
        wide.train(training)
        for step in range(3):
            wide.load_state_dict(norm.state_dict())  # widened
            x, cotangent = inputs(IMAGES[kind], dtype, step), torch.randn(IMAGES[kind]).to(dtype)
            expected = run(wide, x.float(), cotangent.float())
            for name, value in run(norm, x, cotangent).items():
                wanted = expected[name].to(value.dtype)
                assert value.dtype == (torch.int64 if name == "num_batches_tracked" else dtype)
                assert same_bits(value, wanted, signed_zero=True), (name, affine, momentum, tracked, step)
        if tracked:
            assert int(norm.num_batches_tracked) == (3 if training else 0)


def exact(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Batch norm of [n, channels], written out in float64."""
    x = x.double()
    centred = x - x.mean(0)
    return centred / (centred.square().mean(0) + eps).sqrt() * weight.double() + bias.double()


def is_rounded_once(normalised: Callable[..., Tensor], dtype: torch.dtype) -> None:
    """Asserts that results lie within half an ulp of the exact ones, plus what float32 may be off."""
    random = torch.Generator().manual_seed(2)
    x = (torch.randn(64, 50, generator=random) + 4 * torch.rand(50, generator=random)).to(dtype)
    weight, bias = (torch.randn(50, generator=random).to(dtype) for _ in range(2))
    found = normalised(x, None, None, weight, bias, True, 0.1, 1e-5).double()
    wanted = exact(x, weight, bias, 1e-5)
    exponent = wanted.abs().clamp(min=torch.finfo(dtype).tiny).log2().floor()
    half = torch.exp2(exponent) * torch.finfo(dtype).eps / 2
    float32 = 2.0**-18 * (weight.double().abs() * 8 + bias.double().abs())
    assert bool(((found - wanted).abs() <= half + float32).all())


def several_roundings(x: Tensor, mean: Any, var: Any, weight: Tensor, bias: Tensor, *rest: Any) -> Tensor:
    """A seeded fault: scale and offset are rounded first, as a kernel in the narrow dtype would."""
    wide = x.float()
    scale = weight.float() / (wide.var(0, correction=0) + rest[-1]).sqrt()
    offset = bias.float() - wide.mean(0) * scale
    return x * scale.to(x.dtype) + offset.to(x.dtype)


@pytest.mark.parametrize("dtype", NARROW, ids=dtype_name)
def test_it_is_exact_up_to_one_rounding(dtype: torch.dtype) -> None:
    is_rounded_once(batch_norm, dtype)
    with pytest.raises(AssertionError):
        is_rounded_once(several_roundings, dtype)


@pytest.mark.parametrize("dtype", NARROW, ids=dtype_name)
def test_what_has_a_batch_norm_is_emulated_with_it(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))).to(
        dtype
    )
    state = {name: value.clone() for name, value in model.state_dict().items()}
    Arithmetic.parse(f"{dtype_name(dtype)} emulated (rounded)").apply(model)
    assert [type(module) for module in model.modules() if isinstance(module, RoundedBatchNorm)] == [
        NORMS[nn.BatchNorm2d],
        NORMS[nn.BatchNorm1d],
    ]
    assert "rounded once" in repr(model[1])
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    x = torch.randn(3, 2, 4, 4).to(dtype)
    assert torch.equal(copy.deepcopy(model[1])(x), model[1](x))
    with pytest.raises(ValueError, match="expected 4D input"):
        model[1](x[0])


@pytest.mark.parametrize("label", ["rounded", "product; layer 1 forward: split-k 4", "split-k 4 wide"])
def test_native_batch_norm_is_named_and_left_alone(label: str) -> None:
    name = f"bfloat16 emulated ({label}; batch norm native)"
    arithmetic = Arithmetic.parse(name)
    assert arithmetic.name == name
    assert arithmetic.emulated is not None
    assert arithmetic.emulated.native_norm
    assert all(layer.native_norm for layer in arithmetic.emulated.layers(2))
    assert Arithmetic.parse(name.upper().replace("BFLOAT16 EMULATED", "bfloat16 emulated")) == arithmetic
    rounded = Arithmetic.parse(f"bfloat16 emulated ({label})")
    assert rounded != arithmetic
    network = Network("convnet", (3,), batch_norm=True)
    native, once = (network.draw(0, one) for one in (arithmetic, rounded))
    assert [type(m) for m in native.modules() if isinstance(m, nn.BatchNorm2d)] == [nn.BatchNorm2d]
    assert [type(m) for m in once.modules() if isinstance(m, nn.BatchNorm2d)] == [NORMS[nn.BatchNorm2d]]
    x = torch.randn(3, 3, 4, 4).bfloat16()
    (norm,) = (m for m in native.modules() if isinstance(m, nn.BatchNorm2d))
    assert torch.equal(norm(x), nn.BatchNorm2d(3).bfloat16()(x))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Emulation.parse(torch.float32, "tf32; batch norm native"),
            "float32: batch norm is the device's own anyway",
        ),
        (lambda: Emulation(torch.float64, Rounding(2), native_norm=True), "float64: batch norm is .*leave out 'batch norm"),
        (lambda: Arithmetic.parse("float32 emulated (tf32; batch norm native)"), "device's own anyway"),
        (lambda: Emulation(torch.bfloat16, Rounding(), native_norm=1), "native_norm=1: must be True or False"),  # type: ignore[arg-type]
        (lambda: Emulation.parse(torch.bfloat16, "batch norm native"), "rounding 'batch norm native'"),
        (lambda: Emulation.parse(torch.bfloat16, "rounded; batch norm native; layer 1: product"), "batch norm native"),
    ],
    ids=["float32", "float64", "arithmetic", "no bool", "alone", "not last"],
)
def test_where_it_changes_nothing_or_means_nothing_it_is_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises((EmulationError, UnsupportedArithmeticError), match=message):
        make()


@pytest.mark.parametrize(("dtype", "label"), [(torch.bfloat16, "rounded; batch norm native"), (torch.float64, "rounded")])
def test_another_emulation_gives_the_batch_norm_back(dtype: torch.dtype, label: str) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).bfloat16()
    emulate(model, Emulation.parse(torch.bfloat16, "rounded"))
    assert isinstance(model[1], RoundedBatchNorm)
    emulate(model.to(dtype), Emulation.parse(dtype, label))
    assert type(model[1]) is nn.BatchNorm1d


def test_statistics_that_are_no_longer_tracked_stay() -> None:
    models = [nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).bfloat16() for _ in range(2)]
    emulate(models[0], Emulation.parse(torch.bfloat16, "rounded"))
    for model in models:
        model[1].track_running_stats = False
        model(torch.ones(2, 3, dtype=torch.bfloat16))
    ours, theirs = (dict(model[1].named_buffers()) for model in models)
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())


def test_32_bits_keep_their_batch_norm() -> None:
    model = Network("convnet", (3,), batch_norm=True).draw(0, Arithmetic.parse("float32 emulated (tf32)"))
    assert [type(m) for m in model.modules() if isinstance(m, nn.BatchNorm2d)] == [nn.BatchNorm2d]


def mlp(arithmetic: str) -> Settings:
    return Settings(
        "digits",
        Network("mlp", (16, 12), batch_norm=True),
        members_of([3], [1.0]),
        arithmetic=Arithmetic.parse(arithmetic),
        epochs=2,
        batch_size=32,
        train_samples=96,
        test_samples=40,
    )


@pytest.mark.parametrize("dtype", NARROW, ids=dtype_name)
@pytest.mark.parametrize("training", [True, False])
def test_stacked_members_get_what_the_module_computes(dtype: torch.dtype, training: bool) -> None:
    """Member by member bit for bit; as features of one batch norm up to the order of float32 sums."""
    members = [made(nn.BatchNorm1d, dtype).train(training) for _ in range(3)]
    for number, member in enumerate(members):
        member.weight.data *= number + 1
    x = torch.stack([inputs((7, 5), dtype, number) for number in range(3)])
    names = ("running_mean", "running_var", "weight", "bias")
    parts = {name: torch.stack([getattr(member, name).detach().clone() for member in members]) for name in names}
    native = nn.BatchNorm1d(5).to(dtype)
    for apart, module in itertools.product((True, False), (members[0], native)):
        given = [parts[name].clone() for name in names]
        found = stacked_batch_norm(x, *given, module, training=training, apart=apart)
        fresh = copy.deepcopy(members)
        wanted = torch.stack([member(h) for member, h in zip(fresh, x, strict=True)])
        if module is not native:
            off = (found.float() - wanted.float()).abs() / wanted.float().abs().clamp(min=0.1)
            assert float(off.detach().max()) <= (0.0 if apart else torch.finfo(dtype).eps)
            for name, after in zip(names[:2], given, strict=False):
                updated = torch.stack([getattr(member, name) for member in fresh])
                assert torch.allclose(after.float(), updated.float(), rtol=0.0 if apart else torch.finfo(dtype).eps, atol=0)
                assert torch.equal(after, parts[name]) == (not training)
        else:
            own = [[value[number].clone() for value in parts.values()] for number in range(3)]
            one = [F.batch_norm(h, *values, training, 0.1, 1e-5) for h, values in zip(x, own, strict=True)]
            assert not apart or torch.equal(found, torch.stack(one)), "native stays native"


def test_stacked_and_forked_runs_agree() -> None:
    """Within the rounding of products, as without emulation."""
    stacked, forked = (
        train(mlp("bfloat16 emulated (rounded)"), progress=False, executor=name) for name in ("stacked", "forking")
    )
    assert stacked.void is forked.void is None
    for ours, theirs in zip(stacked.members, forked.members, strict=True):
        for one, other in zip(ours.epochs, theirs.epochs, strict=True):
            assert one.train_loss is not None
            assert math.isfinite(one.train_loss)
            assert one.train_loss == pytest.approx(other.train_loss, rel=0.02)
            assert one.test_loss == pytest.approx(other.test_loss, rel=0.02)
