"""torch's other modes.

They are forward mode, vmap, double backward, compilation, decomposition and autocast.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from relucheck.gate.frameworks.exchange import Function, Result, Unsupported
from relucheck.gate.frameworks.of_torch.arrays import leaf_of, like, numbers, on_tensors, tensor
from relucheck.gate.frameworks.of_torch.decompositions import Decomposing
from relucheck.gate.isolation.guard import preserved_state
from relucheck.numerics.dtypes import as_dtype
from relucheck.numerics.floats import Floats

if TYPE_CHECKING:
    pass


from relucheck.gate.frameworks.of_torch.modules import TorchModules, described_by_name


class TorchModes(TorchModules):
    """The methods about these modes."""

    def forward(self, f: Function, x: Floats, tangent: Floats) -> Floats:
        primal, direction = tensor(x, f.dtype, f.device), tensor(tangent, f.dtype, f.device)
        try:
            return numbers(torch.func.jvp(on_tensors(f), (primal,), (direction,))[1])
        except (RuntimeError, TypeError, AttributeError) as error:
            raise Unsupported("forward-mode AD", error) from None

    def mapped_value(self, f: Function, x: Floats) -> Floats:
        call = on_tensors(f)
        return self._mapped(lambda t: call(t.reshape(1)).reshape(()), f, x)

    def mapped_gradient(self, f: Function, x: Floats) -> Floats:
        call = on_tensors(f)
        return self._mapped(torch.func.grad(lambda t: call(t.reshape(1)).sum()), f, x)

    def _mapped(self, call: Callable[[Tensor], Tensor], f: Function, x: Floats) -> Floats:
        try:
            return numbers(torch.func.vmap(call)(tensor(x, f.dtype, f.device)))
        except (RuntimeError, TypeError, ValueError, AttributeError) as error:
            raise Unsupported(self.modes["vmap"], error) from None

    def second(
        self,
        f: Function,
        x: Floats,
        by: str = "input",
        cotangent: Floats | None = None,
        weights: Floats | None = None,
    ) -> tuple[Floats, Floats | None]:
        leaf = leaf_of(f, x)
        try:
            gradient, upstream, total = _weighted_gradient(f, leaf, cotangent, weights)
            wanted = {"input": leaf, "cotangent": upstream}[by]
            second: Tensor | None = None
            if total.requires_grad:
                seconds: tuple[Tensor | None, ...] = torch.autograd.grad(
                    total, wanted, retain_graph=True, allow_unused=True
                )
                (second,) = seconds
                if second is None:
                    # backward() also visits nodes that grad() prunes, so once_differentiable raises here as for a user
                    total.backward()
        except RuntimeError as error:
            raise Unsupported("double backward", error) from None
        return numbers(gradient), None if second is None else numbers(second)

    def second_by_parameters(self, f: Function, x: Floats, cotangent: Floats, weights: Floats) -> dict[str, Result | None]:
        parameters = self._parameters(f.target)
        try:
            _, _, total = _weighted_gradient(f, leaf_of(f, x), cotangent, weights)
            if not total.requires_grad:
                return dict.fromkeys(parameters)
            found = torch.autograd.grad(total, list(parameters.values()), retain_graph=True, allow_unused=True)
            if all(each is None for each in found):
                total.backward()  # raises where the gradient refuses to be differentiated
        except RuntimeError as error:
            raise Unsupported("double backward", error) from None
        return described_by_name(parameters, found)

    def compiled(self, f: Function, x: Floats) -> Floats:
        torch._dynamo.reset()

        def gradient() -> Floats:
            leaf = leaf_of(f, x)
            y = compiled(leaf)
            return numbers(torch.autograd.grad(y, leaf, torch.ones_like(y))[0])

        try:
            compiled = torch.compile(on_tensors(f), dynamic=False, fullgraph=False)
            # torch 2.4's inductor links with -ffast-math: loading its kernels makes the process flush subnormal numbers to
            # 0, which would fail the laws that are checked later. So the first call compiles, and the second one counts.
            with preserved_state():
                gradient()
            return gradient()
        except Exception as error:
            raise Unsupported(self.modes["compile"], error) from None

    def decomposed(self, f: Function, x: Floats) -> tuple[Floats, Floats]:
        try:
            with Decomposing():
                y, back = self.pullback(f, x)
                return y, back(np.ones_like(y))
        except Exception as error:
            raise Unsupported("decomposition into core operations", error) from None

    def lower_precision(self, device: str) -> str:
        return "float16" if torch.device(device).type == "cuda" else "bfloat16"

    def autocast(self, f: Function, x: Floats) -> Floats:
        try:
            with torch.autocast(torch.device(f.device).type, dtype=as_dtype(self.lower_precision(f.device))):
                y, back = self.pullback(f, x)
                return back(np.ones_like(y))
        except RuntimeError as error:
            raise Unsupported("autocast", error) from None

    def autocast_parameters(self, f: Function, x: Floats, cotangent: Floats) -> dict[str, Result | None]:
        try:
            with torch.autocast(torch.device(f.device).type, dtype=as_dtype(self.lower_precision(f.device))):
                return self.parameter_gradients(f, x, cotangent)
        except RuntimeError as error:
            raise Unsupported("autocast", error) from None


def _weighted_gradient(
    f: Function, leaf: Tensor, cotangent: Floats | None, weights: Floats | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the gradient with a graph, the cotangent that it depends on, and the gradient's weighted sum."""
    y = on_tensors(f)(leaf)
    upstream = (torch.ones_like(y) if cotangent is None else like(y, cotangent)).requires_grad_()
    (gradient,) = torch.autograd.grad(y, leaf, upstream, create_graph=True)
    total = gradient.sum() if weights is None else (gradient * like(gradient, weights)).sum()
    return gradient, upstream, total
