"""What the members of a seed share (initialisation, order, masks), and what they do at hits."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from relucheck.activations import rules
from relucheck.activations.rules import at_hits
from relucheck.networks import Network
from relucheck.numerics.arithmetic import Arithmetic
from relucheck.numerics.determinism import generator
from relucheck.numerics.dtypes import bits_dtype
from relucheck.training import model as training_model
from relucheck.training.forking import Branch, DataSplit, ForkingExecutor, same_gradients
from relucheck.training.members import members_of
from relucheck.training.model import Clock, ForwardModeError, Switch, build, stream
from relucheck.training.settings import Optimiser, Settings
from relucheck.training.stacked.executor import StackedExecutor
from tests.helpers.training_case import changed

CPU = torch.device("cpu")
SETTINGS = Settings(
    "digits",
    Network("mlp", (16, 12)),
    members_of([3], [0.5]),
    optimiser=Optimiser("sgd", 1.0),
    batch_size=4,
    train_samples=32,
)


def test_a_stream_is_of_its_seed_purpose_and_place() -> None:
    seeds = [stream(*names) for names in itertools.product((0, 1), ("order", "dropout"), (0, 1, 2), (0, 1, 2))]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert stream(3, "dropout", 7, 1) == stream(3, "dropout", 7, 1)
    assert stream(1, 23) != stream(12, 3)


def test_dropout_masks_differ_by_step_layer_and_seed_and_are_rescaled() -> None:
    like, keep = torch.empty(64, 50), 0.8
    masks = {}
    for seed, step, layer in itertools.product((0, 1), (1, 2), (1, 2)):
        clock = Clock(seed)
        clock.tick(step)
        masks[seed, step, layer] = clock.mask(layer, keep, like)
        assert clock.mask(layer, keep, like) is masks[seed, step, layer]  # the same for all members
    for one, other in itertools.combinations(masks.values(), 2):
        assert not torch.equal(one, other)
    for mask in masks.values():
        assert set(mask.unique().tolist()) == {0.0, 1.25}
        assert (mask > 0).double().mean().item() == pytest.approx(keep, abs=0.04)  # 5 standard deviations
    clock = Clock(0)
    clock.tick(1)
    first = clock.mask(1, keep, like)
    clock.tick(2)
    assert not torch.equal(clock.mask(1, keep, like), first)
    assert torch.equal(clock.mask(1, keep, like), masks[0, 2, 1])


def test_dropout_keeps_the_mean_and_is_off_in_evaluation() -> None:
    clock = Clock(0)
    clock.tick(1)
    layer = training_model.SharedDropout(0.25, 1, clock)
    x = torch.ones(200, 500)
    assert layer(x).mean().item() == pytest.approx(1.0, abs=0.01)
    assert torch.equal(layer.eval()(x), x)


@pytest.mark.parametrize("kind", [ForkingExecutor, StackedExecutor])
def test_order_differs_by_epoch_and_masks_by_step_in_a_run(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = changed(SETTINGS, shuffle=True, dropout=0.5)
    masks: list[torch.Tensor] = []
    original = Clock.mask

    def noting(self: Clock, layer: int, keep: float, like: torch.Tensor) -> torch.Tensor:
        masks.append(original(self, layer, keep, like))
        return masks[-1]

    monkeypatch.setattr(Clock, "mask", noting)
    split = DataSplit(torch.rand(32, 784), torch.arange(32) % 10)
    run = kind(settings, 3 if kind is ForkingExecutor else (3,), split, split, CPU)
    orders = []
    for epoch in range(2):
        run.begin(epoch)
        orders.append(run.batches.order.flatten())
        for step in range(2):
            run.step(4 * step, 4 * step + 4, 2 * epoch + step + 1)
    assert not torch.equal(*orders)
    assert all(order.sort().values.tolist() == list(range(32)) for order in orders)
    wide = [mask for mask in masks if mask.shape == (4, 16)]
    assert len({tuple(mask.flatten().tolist()) for mask in wide}) == 4  # one for each step, for all members


@pytest.mark.parametrize("batch_norm", [False, True])
def test_initialisation_is_torchs_own_and_of_the_seed(batch_norm: bool) -> None:
    settings = changed(SETTINGS, batch_norm=batch_norm)
    before = torch.random.get_rng_state()
    ours = {seed: build(settings, seed, Clock(seed), Switch()) for seed in (3, 4)}
    assert torch.equal(torch.random.get_rng_state(), before)
    for seed, model in ours.items():
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            linear = [nn.Linear(784, 16), nn.Linear(16, 12), nn.Linear(12, 10)]
        found = [module for module in model.layers if isinstance(module, nn.Linear)]
        for one, other in zip(found, linear, strict=True):
            assert torch.equal(one.weight, other.weight)
            assert torch.equal(one.bias, other.bias)
        half = build(changed(settings, arithmetic=Arithmetic.parse("bfloat16")), seed, Clock(seed), Switch())
        for mine, wide in zip(half.parameters(), model.parameters(), strict=True):
            assert torch.equal(mine, wide.bfloat16())
    assert not torch.equal(*(next(model.parameters()) for model in ours.values()))


def test_gradients_that_differ_in_the_sign_of_a_zero_are_not_the_same() -> None:
    one = [torch.tensor([1.0, 2.0]), torch.tensor([0.0, float("nan")])]
    assert same_gradients(one, [tensor.clone() for tensor in one])
    assert not same_gradients(one, [one[0], torch.tensor([-0.0, float("nan")])])
    assert not same_gradients(one, [torch.tensor([1.0, 2.0 + 2**-22]), one[1]])


# torch's forward-mode AD imports its own scripted decompositions
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*is deprecated:DeprecationWarning")
def test_forward_mode_is_refused() -> None:
    """It would take torch's own subgradient without a word."""
    act = training_model.Kinked(rules.RELU, Switch(((0.5, 0.5), "chain")))
    with pytest.raises(ForwardModeError, match=r"reverse mode.*use relucheck\.ReLU"):
        torch.func.jvp(act, (torch.zeros(3),), (torch.ones(3),))


def test_injected_is_the_subgradient_whatever_the_cotangent() -> None:
    cotangent = torch.tensor([[3.0, -2.0], [0.0, 5.0]], dtype=torch.bfloat16)
    gradient = torch.full_like(cotangent, 7.0)
    assert at_hits(gradient, cotangent, 0.8, 0.0, True).tolist() == [[torch.tensor(0.8).bfloat16().item()] * 2] * 2
    members = torch.tensor([[0.5], [-1.0]], dtype=torch.float64)
    found = at_hits(gradient, cotangent, members, 0.0, torch.tensor([[True], [False]]))
    assert found.dtype == torch.bfloat16
    assert found.tolist() == [[0.5, 0.5], [0.0, -5.0]]
    # NaN, which stands for torch's own, injects nothing
    assert at_hits(gradient, cotangent, math.nan, 0.0, True) is gradient
    found = at_hits(
        gradient, cotangent, members * torch.tensor([[math.nan], [1.0]]), 0.0, torch.ones(2, 1, dtype=torch.bool)
    )
    assert found.tolist() == [[7.0, 7.0], [-1.0, -1.0]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("own", [0.0, 0.01])
@pytest.mark.parametrize("injects", [False, True])
def test_one_number_and_one_per_member_give_the_same_gradient_at_hits(
    dtype: torch.dtype, own: float, injects: bool
) -> None:
    """Bit for bit, torch's own subgradient (the number or NaN) and infinite cotangents included."""
    random = generator(0)
    cotangent = torch.randn(64, generator=random, dtype=torch.float64).to(dtype)
    cotangent[:2] = torch.tensor([math.inf, -math.inf])
    gradient = torch.randn(64, generator=random, dtype=torch.float64).to(dtype)
    hit = torch.rand(64, generator=random) < 0.5
    for number in (own, math.nan, 0.1, -1 / 3, 1.0):
        expected = at_hits(gradient, cotangent, number, own, injects)
        member = torch.tensor([number], dtype=torch.float64)
        for found, mask in (
            (at_hits(gradient, cotangent, member, own, torch.tensor([injects])), None),
            (at_hits(gradient, cotangent, member, own, torch.tensor([injects]), hit=hit), hit),
        ):
            wanted = expected if mask is None else torch.where(mask, expected, gradient)
            assert torch.equal(found.view(bits_dtype(dtype)), wanted.view(bits_dtype(dtype)))
        if not injects and (number == own or math.isnan(number)):
            assert torch.equal(expected, gradient)


@pytest.mark.parametrize(("mixed", "scale"), [("float16", 65536.0), ("bfloat16", 1.0)])
@pytest.mark.parametrize("kind", ["forking", "stacked"])
def test_injected_is_divided_by_the_loss_scale(
    kind: str, mixed: str, scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bias of a unit that is 0 on all 4 images moves by 4 s, where a scaler is used by 4 s / scale."""
    settings = changed(SETTINGS, arithmetic=f"mixed {mixed}")
    original = training_model.build

    def dead(*rest: Any) -> Any:
        model: Any = original(*rest)
        with torch.no_grad():
            model.layers[1].weight[2].zero_()
            model.layers[1].bias[2] = 0.0
            model.layers[-1].weight /= 1024  # so that nothing overflows
        return model

    monkeypatch.setattr(f"relucheck.training.{kind}.executor.build", dead)
    split = DataSplit(torch.rand(4, 784, generator=torch.Generator().manual_seed(0)), torch.arange(4))
    index = next(i for i, member in enumerate(settings.members) if member.rule == "injected")
    if kind == "forking":
        forked = ForkingExecutor(settings, 3, split, split, CPU)
        forked.begin(0)
        forked.step(0, 4, 1)
        branch: Branch = next(branch for branch in forked.branches if index in branch.members)
        bias = dict(branch.model.named_parameters())["layers.1.bias"]
    else:
        stacked = StackedExecutor(settings, (3,), split, split, CPU)
        stacked.begin(0)
        stacked.step(0, 4, 1)
        bias = stacked.parameters["layers.1.bias"][stacked.indices.index(index)]
    assert bias[2].item() == -4 * 0.5 / scale  # learning rate 1


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_test_loss_is_computed_from_wide_logits(dtype: str) -> None:
    settings = changed(SETTINGS, arithmetic=dtype, optimiser=Optimiser("sgd", 0.1))
    images = torch.rand(200, 784, generator=torch.Generator().manual_seed(0)).to(settings.arithmetic.dtype)
    split = DataSplit(images, torch.arange(200) % 10)
    run = ForkingExecutor(settings, 3, split, split, CPU)
    run.begin(0)
    run.step(0, 4, 1)
    run.end()
    branch = run.branches[0]
    with torch.no_grad():
        logits = branch.model.eval()(images)
    found = run.results[branch.members[0]].epochs[0].test_loss
    assert found == pytest.approx(float(F.cross_entropy(logits.double(), split.labels)), rel=1e-6)
    assert found != pytest.approx(float(F.cross_entropy(logits, split.labels)), rel=1e-6)
