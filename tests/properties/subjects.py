"""What the properties are tried on: relucheck itself, and variants of it with one seeded fault each."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from relucheck.activations import rules as activations_rules
from relucheck.activations.rules import ModelSubgradient
from relucheck.bifurcation import compare
from relucheck.bifurcation.compare import Backprops
from relucheck.bifurcation.interception import Call
from relucheck.bifurcation.subgradient import set_subgradient
from relucheck.networks.examples import own_activation
from relucheck.networks.network import ActivationName
from relucheck.numerics.arithmetic import Arithmetic
from tests.oracles.composite import KINKS

Gradients = dict[str, Tensor]


class Subject:
    """relucheck as it is."""

    def __init__(self, name: str = "relucheck") -> None:
        self.name = name

    def activation(self, name: ActivationName, negative_slope: float) -> nn.Module:
        """The module that examples are built with."""
        return own_activation(name, negative_slope)

    def set(self, model: nn.Module, setting: ModelSubgradient) -> None:
        """Chooses the subgradient of all activations of a model."""
        set_subgradient(model, setting)

    def backprops(
        self, model: nn.Module, inputs: Tensor, settings: Sequence[ModelSubgradient], cotangent: Tensor
    ) -> Backprops:
        """One forward, one backward per setting."""
        return compare.backprop(model, inputs, subgradients=settings, cotangent=cotangent)

    def by_modules(
        self,
        run: nn.Module,
        inputs: Tensor,
        settings: Sequence[ModelSubgradient],
        cotangent: Tensor,
        model: nn.Module | None = None,
    ) -> list[Gradients]:
        """The same through the modules' own settings: one forward, set, backward, set, backward."""
        model = run if model is None else model
        self.set(model, settings[0])
        output = run(inputs)
        parameters = dict(model.named_parameters())
        found = []
        for setting in settings:
            self.set(model, setting)
            gradients = torch.autograd.grad(output, list(parameters.values()), cotangent, retain_graph=True)
            found.append(dict(zip(parameters, gradients, strict=True)))
        return found

    def members(self, models: Sequence[nn.Module], inputs: Tensor, cotangent: Tensor) -> Gradients:
        """Gradients of all models at once by vmap, each parameter with a leading dimension of members."""
        parameters, buffers = torch.func.stack_module_state(list(models))

        def scalar(parameters: Gradients, buffers: Gradients) -> Tensor:
            return (torch.func.functional_call(models[0], (parameters, buffers), (inputs,)) * cotangent).sum()

        return torch.func.vmap(torch.func.grad(scalar))(parameters, buffers)

    def compiled(
        self, model: nn.Module, inputs: Tensor, settings: Sequence[ModelSubgradient], cotangent: Tensor, backend: str
    ) -> list[Gradients]:
        """:meth:`by_modules` on the compiled model."""
        torch._dynamo.reset()
        return self.by_modules(torch.compile(model, backend=backend, fullgraph=True), inputs, settings, cotangent, model)


class _Backward(torch.autograd.Function):
    """torch's forward, and whatever backward a fault has."""

    @staticmethod
    def forward(ctx, x, module):  # type: ignore[no-untyped-def]
        y = module.value(x)
        ctx.save_for_backward(x, y)
        ctx.module = module
        ctx.at_construction = module.setting
        ctx.mask = module.remembered(x)
        return y

    @staticmethod
    def backward(ctx, cotangent):  # type: ignore[no-untyped-def]
        x, y = ctx.saved_tensors
        return ctx.module.gradient(x, y, cotangent, ctx), None


class Faulty(nn.Module):
    """A hand-written activation whose parts a fault overrides; as it stands it is right.

    The gradient is torch's own (through autograd) except at hits, where it is s times the cotangent.
    """

    def __init__(self, name: ActivationName, negative_slope: float) -> None:
        super().__init__()
        self.name, self.kinks = name, KINKS[name]
        self.negative_slope = negative_slope
        self.setting: tuple[float, float] = (0.0, 0.0)

    def value(self, x: Tensor) -> Tensor:
        if self.name == "leaky_relu":
            return nn.functional.leaky_relu(x, self.negative_slope)
        return nn.functional.relu(x) if self.name == "relu" else nn.functional.relu6(x)

    def native(self, x: Tensor, cotangent: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self.value(x), x, cotangent)
        return gradient

    def remembered(self, x: Tensor) -> list[Tensor]:
        return [x == at for at in self.kinks]

    def masks(self, x: Tensor, y: Tensor, ctx) -> list[Tensor]:  # type: ignore[no-untyped-def]
        return [x == at for at in self.kinks]

    def settings(self, ctx) -> tuple[float, float]:  # type: ignore[no-untyped-def]
        return self.setting

    def product(self, s: float, cotangent: Tensor) -> Tensor:
        return s * cotangent

    def gradient(self, x: Tensor, y: Tensor, cotangent: Tensor, ctx) -> Tensor:  # type: ignore[no-untyped-def]
        gradient = self.native(x, cotangent)
        own = self.negative_slope if self.name == "leaky_relu" else 0.0
        for mask, s in zip(self.masks(x, y, ctx), self.settings(ctx), strict=False):
            if s != own:  # else torch's own gradient stands, with its signs of zeros
                gradient = torch.where(mask, self.product(s, cotangent), gradient)
        return gradient

    def forward(self, x: Tensor) -> Tensor:
        return _Backward.apply(x, self)


class FaultySubject(Subject):
    """relucheck's interface on :class:`Faulty` activations, with hits recorded by hooks on them."""

    def __init__(self, name: str, module: type[Faulty] = Faulty) -> None:
        super().__init__(name)
        self._module = module

    def activation(self, name: ActivationName, negative_slope: float) -> nn.Module:
        return self._module(name, negative_slope)

    def set(self, model: nn.Module, setting: ModelSubgradient) -> None:
        lower, upper = setting if isinstance(setting, tuple) else (setting, setting)
        for module in model.modules():
            if isinstance(module, Faulty):
                own = module.negative_slope if module.name == "leaky_relu" else 0.0
                module.setting = (own if lower is None else lower, 0.0 if upper is None else upper)

    def recorded(self, z: Tensor, at: float) -> Tensor:
        """Positions of hits."""
        return (z == at).nonzero()

    def backprops(
        self, model: nn.Module, inputs: Tensor, settings: Sequence[ModelSubgradient], cotangent: Tensor
    ) -> Backprops:
        calls: list[Call] = []
        hooks = []
        for name, module in model.named_modules():
            if isinstance(module, Faulty):
                hooks.append(module.register_forward_pre_hook(self._recorder(name, calls)))
        gradients = self.by_modules(model, inputs, settings, cotangent)
        for hook in hooks:
            hook.remove()
        dtype = next(model.parameters()).dtype
        return Backprops(tuple(settings), tuple(gradients), None, tuple(calls), (), Arithmetic.current(dtype))

    def _recorder(self, name: str, calls: list[Call]) -> Callable[[nn.Module, tuple[Tensor]], None]:
        rules = {
            "relu": activations_rules.RELU,
            "relu6": activations_rules.RELU6,
            "leaky_relu": activations_rules.LEAKY_RELU,
        }

        def hook(module: nn.Module, args: tuple[Tensor]) -> None:
            assert isinstance(module, Faulty)
            z = args[0].detach()
            found = tuple(self.recorded(z, at) for at in module.kinks)
            calls.append(Call(name, name, rules[module.name], tuple(z.shape), found, True))

        return hook
