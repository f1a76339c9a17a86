"""Hits behind batch norm and residual sums: predictions against counts, and wrong predictions that must be noticed."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import Tensor, nn

from relucheck.hits import normed
from relucheck.hits.normed import Expected, Forecast, batch_norm, forecast, fuses, repeated, residual_sum
from relucheck.hits.rates import RateError
from relucheck.hits.widths import FORMATS, Format
from relucheck.networks import Network
from relucheck.networks.sites import chosen
from relucheck.numerics.arithmetic import Arithmetic
from relucheck.numerics.bits import same_bits
from relucheck.numerics.determinism import generator
from relucheck.numerics.emulation.norm import EmulatedBatchNorm2d

ROUNDED = Arithmetic.parse("bfloat16 emulated (rounded)")


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=generator(seed))


def zeros(z: Tensor) -> int:
    return int((z == 0).sum())


# ----------------------------------------------------------------------------------------------------- residual sums


def summands(kind: str, dtype: torch.dtype = torch.bfloat16) -> tuple[Tensor, Tensor]:
    """Pairs [n, channels, 16, 16]: independent, with a rectified skip, or with a skip that depends on the branch."""
    a, b = drawn(64, 64, 16, 16), drawn(64, 64, 16, 16, seed=1)
    if kind == "rectified":
        b = 1.4 * b.relu()
    if kind == "dependent":
        b = 0.2 * b - a
    return a.to(dtype), b.to(dtype)


KINDS = ("independent", "rectified", "dependent")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_residual_sums_meet_their_counts(kind: str, dtype: torch.dtype) -> None:
    a, b = summands(kind, dtype)
    found, hits = residual_sum(a, b), zeros(a + b)
    assert hits > (400 if dtype == torch.bfloat16 else 40)
    assert abs(found.hits - hits) < 0.03 * hits + 3 * hits**0.5
    assert found.repeated == 0
    assert found.independent is not None
    if kind == "dependent":  # more sums are near 0 than the summands' distributions say
        assert found.independent < 0.5 * hits
    elif dtype == torch.bfloat16:
        assert abs(found.independent - hits) < 0.1 * hits + 3 * hits**0.5


def test_a_rectified_skip_adds_no_hit_where_it_is_0() -> None:
    """There the sum is the branch alone, whose numbers are as near to 0 as they are, and not 0."""
    a, b = summands("rectified")
    none = residual_sum(a, torch.zeros_like(b))
    assert (none.hits, none.near, none.independent) == (0, 0, 0)


def test_float32_has_fewer_hits_by_the_ratio_of_the_spacings() -> None:
    half, single = (residual_sum(*summands("independent", dtype)) for dtype in (torch.bfloat16, torch.float32))
    assert single.hits * 2**16 == pytest.approx(half.hits, rel=0.1)
    assert single.independent is not None
    assert half.independent is not None
    assert single.independent * 2**16 == pytest.approx(half.independent, rel=0.1)


@pytest.mark.parametrize("bits", [7, 9])
def test_a_spacing_off_by_two_is_noticed(monkeypatch: pytest.MonkeyPatch, bits: int) -> None:
    a, b = summands("independent")
    monkeypatch.setitem(normed.FORMATS, "bfloat16", Format("bfloat16", bits, -126))
    hits = zeros(a + b)
    assert abs(residual_sum(a, b).hits - hits) > 0.1 * hits + 3 * hits**0.5


def test_repeated_pairs_are_told_apart() -> None:
    """A blank border: its elements are hits together or not at all, and the prediction says which part is due to it."""
    a, b = summands("independent")
    a[:, 3, :4], b[:, 3, :4] = 1.0, -1.0078125  # near 0, and no hit
    a[:, 5, :4], b[:, 5, :4] = 1.0, -1.0
    same = repeated(a, b)
    border = torch.zeros_like(same)
    border[:, 3, :4] = border[:, 5, :4] = True
    assert torch.equal(same, border)
    found = residual_sum(a, b)
    whole = dataclasses.replace(residual_sum(*summands("independent")), repeated=found.repeated)
    elements = 64 * 4 * 16
    assert found.repeated == elements / (2 * normed.REACH * 2**7)
    assert found.hits - found.repeated == pytest.approx(whole.hits, rel=0.05)
    assert zeros((a + b)[same]) == elements


# ----------------------------------------------------------------------------------------------------- batch norm


def norm_of(channels: int, kind: type[nn.BatchNorm2d] = EmulatedBatchNorm2d) -> nn.BatchNorm2d:
    norm = kind(channels, dtype=torch.bfloat16 if kind is EmulatedBatchNorm2d else torch.float32)
    with torch.no_grad():
        norm.weight.copy_(1 + 0.1 * drawn(channels, seed=2))
        norm.bias.copy_(0.1 * drawn(channels, seed=3))
    return norm.train()


@pytest.mark.parametrize("kink", [2.5, -1.5, 2.0])
def test_hits_at_a_kink_are_spaced_as_the_dtype(kink: float) -> None:
    """2 lies where the spacing changes, so half of its width is half as wide."""
    x, norm = (0.7 + 3 * drawn(64, 16, 16, 16)).bfloat16(), norm_of(16)
    hits = int((norm(x) == kink).sum())
    found = batch_norm(x, norm, kink)
    assert hits > 50
    assert abs(found.hits - hits) < 0.1 * hits + 3 * hits**0.5
    assert found.independent is None


def test_the_width_at_6_is_a_thirty_second() -> None:
    x, norm = drawn(8, 4, 16, 16).bfloat16(), norm_of(4)
    found = batch_norm(x, norm, 1.5)
    far = batch_norm(4 * x, nn.BatchNorm2d(4), 0.0, fused=False)
    assert found.hits == pytest.approx(found.near / (2 * normed.WINDOW) * 2.0**-7)
    with torch.no_grad():
        norm.weight.fill_(4.0)
    six = batch_norm(x, norm, 6.0)
    assert six.hits == pytest.approx(six.near / (2 * normed.WINDOW) / 32)
    assert far.hits < 1e-3


def test_there_is_none_at_0_in_16_bits() -> None:
    x, norm = (0.7 + drawn(64, 16, 16, 16)).bfloat16(), norm_of(16)
    assert zeros(norm(x)) == 0
    assert 0 < batch_norm(x, norm, fused=True).hits < batch_norm(x, norm, fused=False).hits < 0.01
    assert batch_norm(x, norm, 0.0).hits == batch_norm(x, norm, 0.0, fused=fuses()).hits


@pytest.mark.parametrize("fused", [False, True])
def test_the_width_at_0_is_that_of_the_last_addition(monkeypatch: pytest.MonkeyPatch, fused: bool) -> None:
    """In a wide format of 7 bits hits are common. The rule is the same, so they are counted there.

    The spacing of the inputs is 5 bits, so that the grid of exact products is that of 5 times 7 bits.
    """
    wide, narrow = Format("float32", 7, -126), Format("bfloat16", 5, -126)
    monkeypatch.setitem(normed.FORMATS, "float32", wide)
    monkeypatch.setitem(normed.FORMATS, "bfloat16", narrow)
    x = narrow.round((0.7 + drawn(1024, 3000)) * (0.5 + drawn(3000, seed=1).abs())).bfloat16()
    norm = nn.BatchNorm1d(3000)
    scale = wide.round(1 / (x.double().var(0, unbiased=False) + norm.eps).sqrt())
    offset = wide.round(-x.double().mean(0) * scale)
    product = x.double() * scale
    hits = zeros((product if fused else wide.round(product)) + offset)
    # for given means the grid either meets the offset or not, so the count is that of some thousand channels
    assert hits > 200
    assert 0.7 < batch_norm(x, norm, fused=fused).hits / hits < 1.4
    assert not 0.7 < batch_norm(x, norm, fused=not fused).hits / hits < 1.4, "the other rule is noticed"


def test_the_probe_says_whether_products_are_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    uncached = fuses.__wrapped__
    assert uncached() == fuses()

    def rounding(x: Tensor, mean: Tensor, var: Tensor, *rest: object) -> Tensor:
        scale = 1 / (var + 1e-5).sqrt()
        return x * scale - mean * scale

    def fusing(x: Tensor, mean: Tensor, var: Tensor, *rest: object) -> Tensor:
        scale = 1 / (var + 1e-5).sqrt()
        return x.double() * scale.double() - (mean * scale).double()

    monkeypatch.setattr(normed.F, "batch_norm", rounding)
    assert not uncached()
    monkeypatch.setattr(normed.F, "batch_norm", fusing)
    assert uncached()


def test_a_constant_channel_is_all_hits_only_where_products_are_rounded() -> None:
    x = drawn(1, 512, 1, 1).bfloat16().expand(64, -1, 2, 2)
    norm = EmulatedBatchNorm2d(512, dtype=torch.bfloat16)
    share = zeros(norm(x)) / x.numel()
    assert share < 0.2 if fuses() else share > 0.9


# ----------------------------------------------------------------------------------------------------- whole networks


def model_and_images() -> tuple[Network, nn.Module, Tensor]:
    network = Network("resnet", (8, 16), activation="relu6", batch_norm=True, input_shape=(1, 12, 12))
    images = drawn(64, 1, 12, 12)
    return network, network.draw(0, ROUNDED), (images + images.roll(1, 3)).bfloat16()


def test_a_network_is_predicted_layer_by_layer() -> None:
    network, model, x = model_and_images()
    before = copy.deepcopy(model.state_dict())
    found = forecast(model, x)
    assert all(same_bits(before[name], value) for name, value in model.state_dict().items())
    assert [(one.site, one.kink) for one in found] == [(site, kink) for site in chosen(network) for kink in (0.0, 6.0)]
    seen: dict[str, Tensor] = {}
    for site in chosen(network):
        model.get_submodule(site.module).register_forward_pre_hook(
            lambda _, args, name=site.module: seen.update({name: args[0].detach()})
        )
    model.train()(x)
    for one in found:
        z = seen[one.site.module]
        assert (one.activations, one.hits) == (z.numel(), int((z == one.kink).sum()))
        if one.kink == 0:
            assert one.expected is not None
            if one.site.before == "residual sum":
                assert one.hits > 20
                assert one.hits / 2 < one.expected.hits < 2 * one.hits
            else:
                assert (one.hits, one.expected.independent) == (0, None)
                assert one.expected.hits < 0.01
        else:  # the density of a sum at another kink is not predicted
            assert (one.expected is None) == (one.site.before == "residual sum")


class _Sum(nn.Module):
    """ReLU behind the sum of a convolution and its input, which may be written over the convolution."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.conv, self.relu, self.in_place = nn.Conv2d(4, 4, 1), nn.ReLU(), in_place

    def forward(self, x: Tensor) -> Tensor:
        branch = self.conv(x)
        return self.relu(branch.add_(x) if self.in_place else branch + x)


def test_a_sum_in_place_is_predicted_from_its_summands() -> None:
    models = [_Sum(in_place).bfloat16() for in_place in (False, True)]
    models[1].load_state_dict(models[0].state_dict())
    one, other = (forecast(model, drawn(16, 4, 16, 16).bfloat16()) for model in models)
    assert one == other
    assert one[0].expected is not None
    assert one[0].expected.hits > 5


def test_what_no_rule_covers_has_no_prediction() -> None:
    """Convolutions, and a batch norm of a CPU's own 16-bit kernels, which rounds several times."""
    plain = Network("resnet", (4,), input_shape=(1, 6, 6))
    found = forecast(plain.draw(0, ROUNDED), drawn(4, 1, 6, 6).bfloat16())
    assert [one.expected is None for one in found] == [True, True, False]
    native = dataclasses.replace(plain, batch_norm=True).draw(0, Arithmetic.parse("bfloat16"))
    assert [one.expected is None for one in forecast(native, drawn(4, 1, 6, 6).bfloat16())] == [True, True, False]
    with pytest.raises(RateError, match="inputs are float32, the model bfloat16; convert one of them"):
        forecast(native, torch.zeros(1, 1, 6, 6))


def test_forecasts_are_pooled() -> None:
    site = chosen(Network("mlp", (3,)))[0]
    one = Forecast(site, 0.0, 10, 3, 1, Expected(2.5, 7, 1.0, 0.5))
    other = Forecast(site, 0.0, 20, 4, 2, Expected(5.0, 8, 2.0, 0.25))
    assert one + other == Forecast(site, 0.0, 30, 7, 3, Expected(7.5, 15, 3.0, 0.75))
    assert (one + dataclasses.replace(other, expected=None)).expected is None
    plain = dataclasses.replace(one, expected=Expected(1.0, 1))
    assert (plain + plain).expected == Expected(2.0, 2)


def test_formats_are_those_of_the_widths() -> None:
    assert normed.FORMATS is FORMATS
