"""Models with gradients inside: what ``.backward()`` leaves is what a comparison compares, or the model is refused."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.utils.checkpoint import checkpoint, checkpoint_sequential, create_selective_checkpoint_contexts

from relucheck.activations.modules import ReLU
from relucheck.bifurcation.compare import backprop, compare
from relucheck.bifurcation.decide import decide
from relucheck.bifurcation.explain import explain
from relucheck.bifurcation.subgradient import set_subgradient
from relucheck.errors import ControlError, ModelError

X = torch.tensor([[1.0, 1.0], [2.0, 2.0]])


def inputs() -> Tensor:
    """New inputs that require a gradient, without which some Functions get none."""
    return X.clone().requires_grad_()


class Net(nn.Module):
    """Its first hidden unit is exactly 0 for both samples."""

    def __init__(self, run: Callable[[Net, Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.inside, self.relu, self.head = nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 2)
        with torch.no_grad():
            self.inside.weight.copy_(torch.tensor([[1.0, -1.0], [1.0, 1.0]]))
            self.head.weight.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
            self.head.bias.zero_()
        self.run = run

    def body(self, x: Tensor) -> Tensor:
        return self.relu(self.inside(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x)) if self.run is None else self.run(self, x)


def loss_of(y: Tensor) -> Tensor:
    return (y * torch.tensor([1.0, 3.0])).square().sum()


def built(build: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return build()


def by_backward(build: Callable[[], nn.Module], subgradient: float) -> dict[str, Tensor | None]:
    """The gradients that ``.backward()`` accumulates, with relucheck's modules in place of torch's."""
    model = built(build)
    set_subgradient(model, subgradient)
    loss_of(model(inputs())).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def check_right(build: Callable[[], nn.Module]) -> str:
    """The gradients are those of ``.backward()``, for both subgradients, and so is the outcome."""
    expected = [by_backward(build, value) for value in (0.0, 1.0)]
    found = backprop(built(build), inputs(), loss=loss_of).gradients
    for wanted, got in zip(expected, found, strict=True):
        assert wanted.keys() == got.keys()
        for name, value in wanted.items():
            assert (got[name] is None) == (value is None), name
            torch.testing.assert_close(got[name], value, rtol=0, atol=0)
    same = all(a is b is None or torch.equal(a, b) for a, b in zip(*(run.values() for run in expected), strict=True))  # type: ignore[arg-type]
    outcome = compare(built(build), inputs(), loss=loss_of).outcome
    assert outcome == ("agree" if same else "bifurcate")
    return outcome


def double(module: nn.Module, *values: Any) -> tuple[Tensor | None, ...]:
    return tuple(None if value is None else 2 * value for value in values[0])


def hooked(register: Callable[[Net], Any]) -> Net:
    model = Net()
    register(model)
    return model


class Positive(nn.Module):
    """A parametrisation with an activation: weights are not negative."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU()

    def forward(self, weight: Tensor) -> Tensor:
        return self.relu(weight - 1) + 1  # three weights of four are exactly at the kink


def parametrised(register: Callable[[nn.Module], Any]) -> Net:
    model = Net()
    register(model.inside)
    return model


def tied(model: Net) -> Net:
    model.head.weight = model.inside.weight
    return model


class Transposed(nn.Module):
    """The head uses the weight of the layer inside, transposed, as language models tie their embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net()

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.net.body(x), self.net.inside.weight.T)


class Saving(torch.autograd.Function):
    """Recompute in backward, and return all gradients: what a careful reversible layer does."""

    @staticmethod
    def forward(ctx, run, x, *parameters):  # type: ignore[no-untyped-def]
        ctx.run = run
        ctx.save_for_backward(x, *parameters)
        return run(x)

    @staticmethod
    def backward(ctx, cotangent):  # type: ignore[no-untyped-def]
        x, *parameters = ctx.saved_tensors
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            y = ctx.run(x)
        return None, *torch.autograd.grad(y, [x, *parameters], cotangent)


class Flipped(torch.autograd.Function):
    """Gradient reversal, as domain-adversarial networks use it."""

    @staticmethod
    def forward(ctx, x):  # type: ignore[no-untyped-def]
        return x.view_as(x)

    @staticmethod
    def backward(ctx, cotangent):  # type: ignore[no-untyped-def]
        return -cotangent


def penalised(model: Net, x: Tensor) -> Tensor:
    """The output plus the gradient at the input, as in a gradient penalty or a force field."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        y = model.head(model.body(x))
        (slope,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    return y + slope


def transformed(model: Net, x: Tensor) -> Tensor:
    return model.head(model.body(x)) + torch.func.grad(lambda t: model.head(model.body(t)).sum())(x.detach())


def forward_mode(model: Net, x: Tensor) -> Tensor:
    y, tangent = torch.func.jvp(lambda t: model.head(model.body(t)), (x.detach(),), (torch.ones_like(x),))
    return y + tangent


def checkpointed_energy(model: Net, x: Tensor) -> Tensor:
    """The derivative of an energy whose layers are checkpointed, as force fields compute it."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        energy = checkpoint(lambda t: model.head(model.body(t)).square(), x, use_reentrant=False).sum()
    return torch.autograd.grad(energy, x, create_graph=True)[0]


def differentiated_inside(model: Net, x: Tensor) -> Tensor:
    def slope(t: Tensor) -> Tensor:
        t = t.detach().requires_grad_()
        return torch.autograd.grad(model.head(model.body(t)).square().sum(), t, create_graph=True)[0]

    return checkpoint(slope, x.detach().requires_grad_(), use_reentrant=False)


def backward_into_the_input(model: Net, x: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    checkpoint(model.body, x, use_reentrant=False).sum().backward(inputs=[x])
    slope, x.grad = x.grad, None
    return model.head(model.body(x)) + slope


def selectively(model: Net, x: Tensor) -> Tensor:
    """A checkpoint that keeps products, whose graph allows one backward only."""
    contexts = functools.partial(create_selective_checkpoint_contexts, [torch.ops.aten.addmm.default])
    return model.head(checkpoint(model.body, x, use_reentrant=False, context_fn=contexts))


class Decaying(Net):
    """The forward changes a parameter in place, after it has been used in the forward before."""

    def forward(self, x: Tensor) -> Tensor:
        y = penalised(self, x)
        with torch.no_grad():
            self.head.bias.add_(1)
        self.inside.weight.data *= 2
        return y


class Early(torch.autograd.Function):
    """Compute the gradient in the forward and keep it, as fused losses of language models do."""

    @staticmethod
    def forward(ctx, run, x, weight):  # type: ignore[no-untyped-def]
        with torch.enable_grad():
            y = run(x).sum()
        ctx.save_for_backward(*torch.autograd.grad(y, [x, weight]))
        return y.detach()

    @staticmethod
    def backward(ctx, cotangent):  # type: ignore[no-untyped-def]
        of_x, of_weight = ctx.saved_tensors
        return None, cotangent * of_x, cotangent * of_weight


RIGHT: dict[str, Callable[[], nn.Module]] = {
    "checkpoint": lambda: Net(lambda m, x: m.head(checkpoint(m.body, x, use_reentrant=False))),
    "checkpoint in a checkpoint": lambda: Net(
        lambda m, x: checkpoint(lambda t: m.head(checkpoint(m.body, t, use_reentrant=False)), x, use_reentrant=False)
    ),
    "sequential checkpoint": lambda: Net(
        lambda m, x: checkpoint_sequential([m.inside, m.relu, m.head], 2, x, use_reentrant=False)
    ),
    "a Function that returns all gradients": lambda: Net(lambda m, x: m.head(Saving.apply(m.body, x, m.inside.weight))),
    "gradient reversal": lambda: Net(lambda m, x: m.head(Flipped.apply(m.body(x)))),
    "a hook of a parameter": lambda: hooked(lambda m: m.inside.weight.register_hook(lambda g: 2 * g)),
    "a hook that masks a parameter": lambda: hooked(
        lambda m: m.inside.weight.register_hook(lambda g: g * torch.tensor([[0.0], [1.0]]))
    ),
    "a hook of an activation": lambda: Net(
        lambda m, x: m.head([h := m.body(x), h.register_hook(lambda g: g.clamp(max=1))][0])
    ),
    "a backward hook of a module": lambda: hooked(lambda m: m.relu.register_full_backward_hook(double)),
    "a backward pre-hook of a module": lambda: hooked(lambda m: m.relu.register_full_backward_pre_hook(double)),
    "a parametrised weight": lambda: parametrised(
        lambda layer: parametrize.register_parametrization(layer, "weight", Positive())
    ),
    "weight norm": lambda: parametrised(parametrizations.weight_norm),
    "spectral norm": lambda: parametrised(parametrizations.spectral_norm),
    "a pruned weight": lambda: parametrised(
        lambda layer: prune.custom_from_mask(layer, "weight", torch.tensor([[1, 1], [0, 1]]))
    ),
    "tied weights": lambda: tied(Net()),
    "a tied, transposed weight": Transposed,
    "a gradient in the forward": lambda: Net(penalised),
    "torch.func.grad in the forward": lambda: Net(transformed),
    "forward mode in the forward": lambda: Net(forward_mode),
    "a derivative of a checkpointed part": lambda: Net(checkpointed_energy),
    "a derivative in a checkpointed part": lambda: Net(differentiated_inside),
    "a backward into the input of a checkpointed part": lambda: Net(backward_into_the_input),
    "a selective checkpoint": lambda: Net(selectively),
    "a Hessian in the forward": lambda: Net(
        lambda m, x: m.head(m.body(x)) + torch.func.vmap(torch.func.hessian(lambda t: m.body(t).square().sum()))(x).sum(-1)
    ),
    "a Function that differentiates in its forward": lambda: Net(
        lambda m, x: Early.apply(lambda t: m.head(m.body(t)), x, m.inside.weight)[None]
    ),
}
#: Here the unit at the kink gets no gradient, or its weight does not count.
AGREE = ("a hook that masks a parameter",)


# pruned weights are tensors with a gradient function, which deepcopy refuses until the next forward; it is warned of
@pytest.mark.filterwarnings("ignore:.*is deprecated.*:FutureWarning")
@pytest.mark.parametrize("name", RIGHT)
def test_gradients_are_those_of_backward(name: str) -> None:
    assert check_right(RIGHT[name]) == ("agree" if name in AGREE else "bifurcate")


def test_parameters_that_a_forward_changes_are_restored() -> None:
    model = Decaying()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for measure in (lambda: compare(model, inputs()), lambda: decide(model, X, torch.tensor([0, 1]))):
        assert measure().outcome == "bifurcate"
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_state_that_is_not_restored_is_named() -> None:
    class Counting(Net):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return penalised(self, x) * self.calls

    with pytest.raises(ControlError, match="attributes other than parameters and buffers that a forward or a hook changes"):
        compare(Counting(), inputs())


def test_explain_refuses_a_selective_checkpoint() -> None:
    with pytest.raises(ModelError, match=r"another subgradient for each hit.*compare"):
        explain(Net(selectively), X)


def test_a_hook_after_the_accumulation_does_not_run() -> None:
    """Nothing is accumulated; docs/networks.md says so."""
    model, ran = Net(), []
    model.inside.weight.register_post_accumulate_grad_hook(ran.append)
    assert compare(model, X).outcome == "bifurcate"
    assert ran == []


def test_a_weight_that_a_parametrisation_caches() -> None:
    model = RIGHT["a parametrised weight"]()
    with parametrize.cached():
        assert compare(model, X).outcome == "bifurcate"


class Reversible(torch.autograd.Function):
    """A reversible residual layer of the usual kind: it recomputes its input and runs a second backward."""

    @staticmethod
    def forward(ctx, x, f, g):  # type: ignore[no-untyped-def]
        a, b = x.chunk(2, 1)
        with torch.no_grad():
            c = a + f(b)
            d = b + g(c)
        ctx.f, ctx.g = f, g
        ctx.save_for_backward(c, d)
        return torch.cat([c, d], 1)

    @staticmethod
    def backward(ctx, cotangent):  # type: ignore[no-untyped-def]
        c, d = (part.detach() for part in ctx.saved_tensors)
        of_c, of_d = cotangent.chunk(2, 1)
        with torch.enable_grad():
            c.requires_grad_()
            g = ctx.g(c)
            torch.autograd.backward(g, of_d)
            b = (d - g).detach().requires_grad_()
            of_c = of_c + c.grad
            f = ctx.f(b)
            torch.autograd.backward(f, of_c)
        return torch.cat([of_c, of_d + b.grad], 1), None, None


class MainGrad(torch.autograd.Function):
    """A layer that adds the gradient of its weight to a buffer of the optimiser, as fused accumulation does."""

    @staticmethod
    def forward(ctx, x, weight):  # type: ignore[no-untyped-def]
        ctx.weight = weight
        ctx.save_for_backward(x)
        return x @ weight.T

    @staticmethod
    def backward(ctx, cotangent):  # type: ignore[no-untyped-def]
        (x,) = ctx.saved_tensors
        ctx.weight.main_grad.add_(cotangent.T @ x)
        return cotangent @ ctx.weight, None


def with_main_grad() -> Net:
    model = Net(lambda m, x: m.head(m.relu(MainGrad.apply(x, m.inside.weight))))
    model.inside.weight.main_grad = torch.zeros(2, 2)  # type: ignore[attr-defined]
    return model


def beside(model: Net, x: Tensor) -> Tensor:
    """A hook of the output runs the backward of a loss of its own."""
    side = model.body(x).sum()
    y = model.head(model.inside(x))
    y.register_hook(lambda gradient: side.backward(retain_graph=True))
    return y


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "reentrant checkpoint": (
        lambda: Net(lambda m, x: m.head(checkpoint(m.body, x, use_reentrant=True))),
        "use_reentrant=False",
    ),
    "reentrant sequential checkpoint": (
        lambda: Net(lambda m, x: checkpoint_sequential([m.inside, m.relu, m.head], 2, x, use_reentrant=True)),
        "use_reentrant=False",
    ),
    "reversible layer": (
        lambda: Net(lambda m, x: Reversible.apply(torch.cat([x, x], 1), m.body, m.body)[:, :2]),
        r"ReversibleBackward accumulates the gradient of 'inside.weight' in \.grad",
    ),
    "a buffer of the optimiser": (
        with_main_grad,
        "MainGradBackward accumulates the gradient of 'inside.weight' in its attribute 'main_grad'",
    ),
    "a hook that runs a backward": (lambda: Net(beside), r"a hook accumulates the gradient of 'inside.weight' in \.grad"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_accumulated_elsewhere_is_refused(name: str) -> None:
    """Its gradients depend on the subgradient, and a comparison of what the graph shows would say otherwise."""
    build, message = REFUSED[name]
    model = build()
    x = inputs()
    held = getattr(model.inside.weight, "main_grad", None)
    with pytest.raises(ModelError, match=message):
        compare(model, x)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert x.grad is None
    if held is not None:
        assert torch.equal(held, torch.zeros(2, 2)), "it is as it was"


def adapted(model: Net, x: Tensor, inputs: bool) -> Tensor:
    """Training at test time: a step against the gradient of the input, by ``.backward()``."""
    with torch.enable_grad():
        z = torch.zeros(2, requires_grad=True)
        model.head(model.body(x + z)).square().mean().backward(inputs=[z] if inputs else None)
    return model.head(model.body(x - 0.001 * z.grad))


def test_a_backward_in_the_forward_is_refused() -> None:
    """The gradients that it accumulates depend on the subgradient; ``.grad`` stays as it was, in other measures, too."""
    model = Net(lambda m, x: adapted(m, x, inputs=False))
    x, before = inputs(), torch.ones(2, 2)
    model.inside.weight.grad, x.grad = before, before.clone()
    with pytest.raises(ModelError, match=r"the forward accumulates the gradient of 'inside.weight' in \.grad"):
        compare(model, x)
    with pytest.raises(ModelError, match="the forward accumulates"):
        decide(model, X, torch.tensor([0, 1]))
    assert model.inside.weight.grad is before
    assert torch.equal(before, torch.ones(2, 2))
    assert torch.equal(x.grad, torch.ones(2, 2))
    assert model.head.weight.grad is None
    assert compare(Net(lambda m, x: adapted(m, x, inputs=True)), inputs()).outcome == "bifurcate"


def test_a_buffer_that_backward_makes_is_refused() -> None:
    model = Net(lambda m, x: m.head(m.body(x)))
    weight = model.inside.weight

    def keep(gradient: Tensor) -> None:
        weight.main_grad = gradient.clone()  # type: ignore[attr-defined]

    weight.register_hook(keep)
    with pytest.raises(
        ModelError, match=r"a hook accumulates the gradient of 'inside.weight' in its attribute 'main_grad'"
    ):
        compare(model, X)


def test_a_hook_that_differs_between_backwards_fails_the_control() -> None:
    calls = []

    def count(gradient: Tensor) -> Tensor:
        calls.append(1)
        return gradient * len(calls)

    with pytest.raises(ControlError, match="control"):
        compare(hooked(lambda m: m.inside.weight.register_hook(count)), X)


def test_decide_serves_and_explain_refuses_a_gradient_in_the_forward() -> None:
    model = Net(penalised)
    assert decide(model, X, torch.tensor([0, 1])).outcome == "bifurcate"
    with pytest.raises(ModelError, match=r"differentiates in its forward.*compare"):
        explain(model, X)


def test_a_gradient_in_the_loss() -> None:
    """A gradient penalty outside of the model; dropout has the same mask in each forward."""
    model = nn.Sequential(nn.Linear(2, 2), ReLU(), nn.Dropout(), nn.Linear(2, 1))
    nn.init.zeros_(model[0].weight)
    nn.init.zeros_(model[0].bias)
    x = inputs()

    def loss(y: Tensor) -> Tensor:
        (slope,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        return y.sum() + slope.square().sum()

    expected = []
    for value in (0.0, 1.0):
        set_subgradient(model, value)
        torch.manual_seed(3)
        expected.append(torch.autograd.grad(loss(model(x)), list(model.parameters())))
    torch.manual_seed(3)
    run = backprop(model, x, loss=loss, subgradients=(0.0, 1.0, 0.0))
    for wanted, got in zip((*expected, expected[0]), run.gradients, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(wanted, got.values(), strict=True))  # type: ignore[arg-type]
