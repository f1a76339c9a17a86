"""The properties, each a function of an example and of what it is tried on; a violated one raises AssertionError.

Numbers in the names of tests refer to the list in docs/properties.md.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from hypothesis import assume, event, target
from hypothesis import strategies as st
from torch import Tensor, nn

from relucheck.bifurcation.compare import Comparison, judge
from relucheck.networks.aims import AIMS, RESIDUAL
from relucheck.networks.examples import Example, torch_activation
from relucheck.networks.strategies import examples
from relucheck.numerics.bits import differs, same_bits
from tests.helpers.ulps import ulp_distance
from tests.oracles import composite as oracle
from tests.properties.subjects import Subject

Pair = tuple[float, float]


def _same(a: dict, b: dict, what: str, *, signed_zero: bool = False) -> None:
    assert a.keys() == b.keys()
    for name in a:
        if not same_bits(a[name], b[name], signed_zero=signed_zero):
            at = tuple(differs(a[name], b[name], signed_zero=signed_zero).nonzero()[0].tolist())
            raise AssertionError(f"{what}: {name}{list(at)} is {a[name][at].item()!r}, must be {b[name][at].item()!r}")


def _compare(subject: Subject, example: Example, pair: Pair, cotangent: Tensor) -> tuple[Comparison, list[dict]]:
    model, inputs, _ = example.build(subject.activation)
    run = subject.backprops(model, inputs, (*pair, pair[0]), cotangent)
    _same(run.gradients[2], run.gradients[0], "control", signed_zero=True)
    return judge(run.gradients[0], run.gradients[1], run, pair), list(run.gradients)


def forward_is_torchs(example: Example, subject: Subject, pair: Pair) -> None:
    """1. The forward does not depend on s and equals torch's own, bit for bit."""
    plain, inputs, _ = example.build(torch_activation)
    expected = plain(inputs)
    for s in pair:
        model, inputs, _ = example.build(subject.activation)
        subject.set(model, s)
        for output in (model(inputs), model(inputs).detach()):
            assert same_bits(output, expected, signed_zero=True), f"forward with s = {s} is not torch's own"
        with torch.no_grad():
            assert same_bits(model(inputs), expected, signed_zero=True), (
                f"forward without grad, s = {s}, is not torch's own"
            )


def native_gradient_is_torchs(example: Example, subject: Subject) -> None:
    """2. At torch's own s the gradient equals torch's own, bit for bit, signs of zeros included."""
    plain, inputs, _ = example.build(torch_activation)
    cotangent = example.cotangent()
    parameters = dict(plain.named_parameters())
    expected = dict(zip(parameters, torch.autograd.grad(plain(inputs), list(parameters.values()), cotangent), strict=True))
    for own in (None, example.network.negative_slope if example.network.activation == "leaky_relu" else 0.0):
        model, inputs, _ = example.build(subject.activation)
        run = subject.backprops(model, inputs, (own,), cotangent)
        _same(run.gradients[0], expected, f"gradient with torch's own s ({own})", signed_zero=True)
        (gradients,) = subject.by_modules(model, inputs, (own,), cotangent)
        _same(gradients, expected, f"gradient of modules with torch's own s ({own})", signed_zero=True)


def no_hit_agrees(example: Example, subject: Subject, pair: Pair) -> Comparison:
    """3. Without a hit all backprop_s agree, bit for bit."""
    z = oracle.preactivations(example)
    hits = sum(len(oracle.hits(values, at)) for values in z.values() for at in oracle.KINKS[example.network.activation])
    if example.cannot_hit:
        assert hits == 0, "an example that cannot hit has a hit: the strategy's promise is broken"
    comparison, gradients = _compare(subject, example, pair, example.cotangent())
    _pull_towards_kinks(example, z)
    if hits == 0:
        _same(gradients[0], gradients[1], f"no hit, but s = {pair[0]} and s = {pair[1]} differ")
        assert comparison.outcome in ("agree", "non-finite")
    return comparison


def _pull_towards_kinks(example: Example, z: dict[str, Tensor]) -> None:
    """Guides Hypothesis towards pre-activations next to a kink."""
    nearest = math.inf
    for values in z.values():
        for at in oracle.KINKS[example.network.activation]:
            distance = ulp_distance(values, torch.tensor(at, dtype=values.dtype))
            nearest = min(nearest, float(distance.min()))
    if math.isfinite(nearest):
        target(-math.log2(1 + nearest), label="bits between a pre-activation and a kink")


def gradient_is_the_oracles(example: Example, subject: Subject, pair: Pair) -> Comparison:
    """4. The gradients are the oracle's: a live hit bifurcates, and exactly the predicted entries differ."""
    cotangent = example.cotangent()
    comparison, gradients = _compare(subject, example, pair, cotangent)
    if example.hits_for_certain:
        assert comparison.hit_count > 0, "an example aimed at a kink has no hit: the strategy's promise is broken"
    expected = [oracle.gradients(example, s, cotangent) for s in pair]
    model, inputs, _ = example.build(subject.activation)
    for s, got, module, wanted in zip(
        pair, gradients, subject.by_modules(model, inputs, pair, cotangent), expected, strict=False
    ):
        _same(got, wanted, f"backprop_{s}")
        _same(module, wanted, f"backprop_{s} through the modules' own settings")
    predicted = {name: differs(expected[0][name], expected[1][name]) for name in expected[0]}
    finite = all(bool(value.isfinite().all()) for side in expected for value in side.values())
    if finite:
        assert comparison.outcome == ("bifurcate" if any(bool(mask.any()) for mask in predicted.values()) else "agree")
    for difference in comparison.differences:
        assert difference.entries == int(predicted[difference.parameter].sum())
    event(f"{comparison.outcome} with {'hits' if comparison.hit_count else 'no hits'}")
    return comparison


def dead_unit_differs_in_its_row(example: Example, subject: Subject, pair: Pair) -> Comparison:
    """4. A dead unit of an MLP: the entries that differ are those of its own row whose sum over the batch is not zero.

    Nothing below can differ, because the unit passes its cotangent on through weights that are zero, and nothing above,
    because the forward is the same.
    """
    assert (example.network.kind, example.aim, example.network.batch_norm) == ("mlp", "dead unit", False)
    cotangent = example.cotangent()
    comparison, gradients = _compare(subject, example, pair, cotangent)
    model, inputs, _ = example.build(torch_activation)
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    layer = example.seed % len(example.network.widths)
    unit = example.seed % example.network.widths[0]
    expected = {(row, unit) for row in range(example.batch)}
    for index, values in enumerate(oracle.preactivations(example).values()):
        found = set().union(*(oracle.hits(values, at) for at in oracle.KINKS[example.network.activation]))
        assume(found == (expected if index == layer else set()))  # else another unit's hits come in
    fed: list[Tensor] = []
    linear[layer].register_forward_pre_hook(lambda module, args: fed.append(args[0].detach()))
    z: list[Tensor] = []

    def keep(module: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
        output.requires_grad_()
        z.append(output)

    activation = [module for module in model.modules() if isinstance(module, nn.ReLU | nn.ReLU6 | nn.LeakyReLU)][layer]
    activation.register_forward_hook(keep)
    (upstream,) = torch.autograd.grad(model(inputs), z, cotangent)
    sides = [upstream[:, unit] * s for s in pair]
    weight, bias = (f"layers.{_index(model, linear[layer])}.{part}" for part in ("weight", "bias"))
    others = [name for name in gradients[0] if name not in (weight, bias)]
    for name in others:
        assert same_bits(gradients[0][name], gradients[1][name]), f"{name} differs, and only the dead unit's row may"
    changed = differs(gradients[0][weight], gradients[1][weight])
    assert not bool(torch.cat([changed[:unit], changed[unit + 1 :]]).any()), "another unit's row differs"
    rows = [side.double() @ fed[0].double() for side in sides]
    magnitude = upstream[:, unit].double().abs() @ fed[0].double().abs() * max(abs(pair[0]), abs(pair[1]))
    # an exact difference well above the rounding of its sum must show, one of exactly nothing must not
    error = 8 * example.batch * torch.finfo(example.torch_dtype).eps * magnitude + torch.finfo(example.torch_dtype).tiny
    sure = (rows[0] - rows[1]).abs() > error
    assert bool(changed[unit][sure].all()), "an entry of the dead unit's row should differ and does not"
    assert not bool(changed[unit][magnitude == 0].any()), "an entry without any contribution differs"
    if bool(sure.any()):
        assert comparison.outcome == "bifurcate"
    return comparison


def _index(model: nn.Module, layer: nn.Module) -> str:
    return next(name.rsplit(".", 1)[-1] for name, module in model.named_modules() if module is layer)


def linear_in_the_cotangent(example: Example, subject: Subject, s: float) -> None:
    """5. G(g + 2h) = G(g) + 2 G(h), exactly, where every number involved is a small integer or a small multiple of 1/4."""
    g = example.cotangent(exact=True)
    h = g.flip(1).roll(1, 0)
    parts = []
    for upstream in (g, h, g + 2 * h):
        model, inputs, _ = example.build(subject.activation)
        parts.append(subject.backprops(model, inputs, (s,), upstream).gradients[0])
        assume(_is_exact(example, s, upstream))
    for name in parts[0]:
        combined = parts[0][name] + 2 * parts[1][name]
        _same({name: parts[2][name]}, {name: combined}, "the gradient is not linear in the cotangent")


def _is_exact(example: Example, s: float, cotangent: Tensor, *, below: float = 64) -> bool:
    """Whether the example's arithmetic rounds nothing (float64 gives the same numbers) and stays below a limit."""
    assert example.weights == "integer"
    assert example.inputs in ("integer", "ink"), "float64 itself rounds, so it could not tell"
    if not (4 * s).is_integer():
        return False
    wide = dataclasses.replace(example, dtype="float64")
    narrow = oracle.gradients(example, s, cotangent)
    exact = oracle.gradients(wide, s, cotangent.double())
    return all(
        bool((narrow[name].double() == exact[name]).all()) and float(exact[name].abs().max()) < below for name in narrow
    )


def exact_networks() -> st.SearchStrategy[Example]:
    """Integer networks so small that float64 holds every number of them exactly, for any s in {0, ..., 4}.

    Bits, at most, of conv or MLP with ReLU, depth 3: 17 of an activation (2 times 36 a layer), 23 of a cotangent (2 times
    36 s a layer), 6 of a sum over 16 pixels and 4 samples, 4 below the point (the mean over 16 pixels), 3 of the
    differences: 53. A leaky slope of 1/4 costs two more below the point each way and layer, a residual block has three
    activations, or two and a convolution on its skip: these get less depth.
    """
    sizes = {
        "weights": ("integer",),
        "inputs": ("integer",),
        "aims": AIMS,
        "batch_norm": False,
        "max_width": 4,
        "max_batch": 4,
    }
    plain = examples("float64", kinds=("mlp", "convnet"), activations=("relu", "relu6"), max_depth=3, **sizes)
    leaky = examples("float64", kinds=("mlp", "convnet"), activations=("leaky_relu",), max_depth=2, **sizes)
    residual = examples("float64", kinds=RESIDUAL, activations=("relu", "relu6"), max_depth=1, **sizes)
    return plain | leaky | residual


def polynomial_in_the_subgradient(example: Example, subject: Subject) -> None:
    """6. With hits in d layers the gradient is a polynomial in s of degree at most d: its difference of order d + 1 is 0.

    Float64 and :func:`exact_networks`: nothing is rounded.
    """
    assert (example.dtype, example.weights) == ("float64", "integer")
    model, inputs, _ = example.build(subject.activation)
    cotangent = example.cotangent(exact=True)
    layers = len(oracle.preactivations(example))
    run = subject.backprops(model, inputs, [float(s) for s in range(layers + 2)], cotangent)
    degree = sum(call.hit_count > 0 for call in run.calls)
    event(f"hits in {degree} layers")
    for name in run.gradients[0]:
        values = torch.stack([gradients[name] for gradients in run.gradients])
        for _ in range(degree + 1):
            values = values.diff(dim=0)
        assert not bool(values.any()), f"hits in {degree} layers, but {name} is no polynomial of that degree in s"


def affine_in_the_subgradient(example: Example, subject: Subject, s: float) -> None:
    """6. With hits in one layer the gradient is affine in s: |G(s) - (G(0) + s (G(1) - G(0)))| <= 4 (1 + |s|) gamma_n A.

    Float64 and torch's own initialisation. A is the same chain rule on absolute values, and n counts the roundings on the
    longest path through it (Higham 2002, "Accuracy and Stability of Numerical Algorithms", section 3.1 and eq. 3.4).
    """
    assert (example.dtype, example.network.kind, example.network.batch_norm) == ("float64", "mlp", False)
    model, inputs, _ = example.build(subject.activation)
    cotangent = example.cotangent()
    run = subject.backprops(model, inputs, (0.0, 1.0, s), cotangent)
    if sum(call.hit_count > 0 for call in run.calls) != 1:
        return
    plain, inputs, _ = example.build(torch_activation)
    fed: list[Tensor] = []
    linear = [module for module in plain.modules() if isinstance(module, nn.Linear)]
    for layer in linear:
        layer.register_forward_pre_hook(lambda module, args: fed.append(args[0].detach()))
    with torch.no_grad():
        plain(inputs)
    steps = sum(layer.in_features + layer.out_features + example.batch + 4 for layer in linear)
    unit_roundoff = 2.0**-53
    gamma = steps * unit_roundoff / (1 - steps * unit_roundoff)
    upstream = cotangent.abs()
    for layer, x in zip(reversed(linear), reversed(fed), strict=True):
        name = f"layers.{_index(plain, layer)}"
        bounds = {f"{name}.weight": upstream.T @ x.abs(), f"{name}.bias": upstream.sum(0)}
        for parameter, magnitude in bounds.items():
            zero, one, at_s = (gradients[parameter] for gradients in run.gradients)
            error = (at_s - (zero + s * (one - zero))).abs()
            allowed = 4 * (1 + abs(s)) * gamma * magnitude
            assert bool((error <= allowed).all()), (
                f"{parameter} is not affine in s: off by {error.max()}, allowed {allowed.max()}"
            )
        upstream = max(1.0, abs(s)) * (upstream @ layer.weight.abs())


def scaling_keeps_hits(example: Example, subject: Subject, power: int) -> None:
    """7. A bias-free ReLU or LeakyReLU network has the same hits for x and for 2**k x while nothing over- or underflows."""
    assert example.network.activation != "relu6"
    assert not example.network.batch_norm
    found = []
    for factor in (1.0, 2.0**power):
        plain, inputs, _ = example.build(torch_activation)
        model, _, _ = example.build(subject.activation)
        for module in (*plain.modules(), *model.modules()):
            if isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
                nn.init.zeros_(module.bias)
        z = oracle.preactivations(example, model=plain, inputs=inputs * factor)
        limits = torch.finfo(example.torch_dtype)
        for values in z.values():
            alive = values[values != 0].abs().double()
            assume(not len(alive) or (float(alive.min()) > 2**8 * limits.tiny and float(alive.max()) < limits.max / 2**8))
        run = subject.backprops(model, inputs * factor, (0.0, 1.0), example.cotangent())
        found.append([[positions.tolist() for positions in call.hits] for call in run.calls])
        found.append([bool(differs(run.gradients[0][name], run.gradients[1][name]).any()) for name in run.gradients[0]])
    assert found[0] == found[2], f"hits change when the input is scaled by 2**{power}"
    if example.weights == "integer":  # exact, so that no rounding or underflow in backward can hide a difference
        assert found[1] == found[3], f"other parameters bifurcate when the input is scaled by 2**{power}"


def blocks_cover_the_batch(example: Example, subject: Subject, pair: Pair) -> None:
    """8. The hits of a batch are those of its row blocks, and it bifurcates only if a block of it does.

    Where nothing is rounded (integers, float32 and float64) its gradient is also the sum of theirs.
    """
    assert example.batch % 16 == 0
    assert not example.network.batch_norm
    integers = example.weights == "integer" and example.inputs in ("integer", "ink")
    plain, inputs, _ = example.build(torch_activation)
    whole = oracle.preactivations(example, model=plain, inputs=inputs)
    plain, _, _ = example.build(torch_activation)
    blocks = [slice(start, start + 16) for start in range(0, example.batch, 16)]
    parts = []
    for rows in blocks:
        plain, _, _ = example.build(torch_activation)
        parts.append(oracle.preactivations(example, model=plain, inputs=inputs[rows]))
    joined = {name: torch.cat([part[name] for part in parts]) for name in whole}
    equal = all(same_bits(joined[name], whole[name]) for name in whole)
    event(f"row blocks bitwise equal to the whole: {equal}")
    if integers and example.dtype in ("float32", "float64"):
        assert equal, "exact arithmetic depends on the row block"
    assume(equal)
    cotangent = example.cotangent(exact=integers)
    model, inputs, _ = example.build(subject.activation)
    run = subject.backprops(model, inputs, pair, cotangent)
    total = [{name: torch.zeros_like(gradient) for name, gradient in side.items()} for side in run.gradients]
    union: list[set[tuple[int, ...]]] = [set() for call in run.calls for _ in call.hits]
    some_block = False
    for rows in blocks:
        model, inputs, _ = example.build(subject.activation)
        block = subject.backprops(model, inputs[rows], pair, cotangent[rows])
        for side, part in zip(total, block.gradients, strict=True):
            for name in side:
                side[name] += part[name]
        for index, positions in enumerate(positions for call in block.calls for positions in call.hits):
            union[index] |= {(row + rows.start, *rest) for row, *rest in positions.tolist()}
        some_block |= judge(block.gradients[0], block.gradients[1], block, pair).outcome != "agree"
    of_batch = [set(map(tuple, positions.tolist())) for call in run.calls for positions in call.hits]
    assert union == of_batch, "the hits of the row blocks are not the hits of the batch"
    if judge(run.gradients[0], run.gradients[1], run, pair).outcome == "bifurcate":
        assert some_block, "the batch bifurcates and none of its blocks does"
    # in 16 bits a block's sum may need more bits than the batch's
    if (
        integers
        and example.dtype in ("float32", "float64")
        and all(_is_exact(example, s, cotangent, below=math.inf) for s in pair)
    ):
        event("gradient compared with the sum over blocks")
        for s, side, gradients in zip(pair, total, run.gradients, strict=True):
            _same(gradients, side, f"backprop_{s} of the batch is not the sum over its row blocks")


def control_is_identical(example: Example, subject: Subject, s: float) -> None:
    """9. The same s twice, from a new forward and from the same one, gives the same bits."""
    runs = []
    for _ in range(2):
        model, inputs, _ = example.build(subject.activation)
        runs.append(subject.backprops(model, inputs, (s, 1.0 - s, s), example.cotangent()))
    for run in runs:
        _same(run.gradients[0], runs[0].gradients[0], "control: another forward", signed_zero=True)
        _same(run.gradients[2], runs[0].gradients[0], "control: the same forward", signed_zero=True)
    model, inputs, _ = example.build(subject.activation)
    again = [subject.backprops(model, inputs, (s,), example.cotangent()) for _ in range(2)]
    _same(again[1].gradients[0], again[0].gradients[0], "control: the same model again", signed_zero=True)
    other, more, _ = example.build(subject.activation)
    subject.backprops(other, more * 0, (s,), example.cotangent())
    after = subject.backprops(other, more, (s,), example.cotangent())
    _same(after.gradients[0], runs[0].gradients[0], "control: the model has seen another batch before", signed_zero=True)


def hits_are_where_kinks_are(example: Example, subject: Subject) -> None:
    """10. The reported positions are those at which the pre-activation equals the kink, recomputed from bit patterns."""
    z = oracle.preactivations(example)
    model, inputs, _ = example.build(subject.activation)
    run = subject.backprops(model, inputs, (0.0, 1.0), example.cotangent())
    assert [call.site for call in run.calls] == list(z)
    for call in run.calls:
        assert call.shape == tuple(z[call.site].shape)
        for at, positions in zip(oracle.KINKS[example.network.activation], call.hits, strict=True):
            assert set(map(tuple, positions.tolist())) == oracle.hits(z[call.site], at), f"hits of {call.site} at {at}"


def members_agree(example: Example, subject: Subject, settings: tuple[float, ...]) -> None:
    """11. vmap over members that differ in s gives each member what a backprop of its own gives it.

    Integer networks: a batched matrix product need not round as a single one does, so nothing may be rounded.
    """
    cotangent = example.cotangent(exact=True)
    members = []
    for s in settings:
        model, inputs, _ = example.build(subject.activation)
        subject.set(model, s)
        members.append(model)
        assume(_is_exact(example, s, cotangent))
    run = subject.backprops(members[0], inputs, settings, cotangent)
    stacked = subject.members(members, inputs, cotangent)
    for index, expected in enumerate(run.gradients):
        _same({name: stacked[name][index] for name in stacked}, expected, f"member {index} under vmap")


def compiled_agrees(example: Example, subject: Subject, pair: Pair, *, backend: str) -> None:
    """11. torch.compile gives the gradients of eager, for each s set between two backwards of one compiled forward."""
    cotangent = example.cotangent(exact=True)
    for s in pair:
        assume(_is_exact(example, s, cotangent))
    model, inputs, _ = example.build(subject.activation)
    run = subject.backprops(model, inputs, pair, cotangent)
    found = subject.compiled(model, inputs, pair, cotangent, backend)
    for s, got, expected in zip(pair, found, run.gradients, strict=True):
        _same(got, expected, f"compiled backprop_{s}")
