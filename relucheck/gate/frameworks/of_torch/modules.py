"""What the gate needs of torch's modules: parameters, copies and global state."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from relucheck.gate.frameworks.exchange import Function, Result, Unsupported
from relucheck.gate.frameworks.of_torch.arrays import described, leaf_of, like, on_tensors, tensor
from relucheck.gate.frameworks.port import Framework
from relucheck.gate.isolation.guard import preserved_state
from relucheck.numerics.floats import Floats

if TYPE_CHECKING:
    pass


class TorchModules(Framework):
    """The methods about parameters, copies and global state."""

    def learnable(self, target: Any) -> list[str]:
        named = target.named_parameters() if isinstance(target, nn.Module) else ()
        return [name for name, parameter in named if parameter.requires_grad]

    def parameter(self, target: Any, name: str) -> Result:
        return described(target.get_parameter(name))

    def with_parameter(self, target: Any, name: str, values: Floats) -> Any:
        with torch.no_grad():
            target.get_parameter(name).copy_(torch.from_numpy(values))
        return target

    def _parameters(self, target: Any) -> dict[str, Tensor]:
        return {name: target.get_parameter(name) for name in self.learnable(target)}

    def parameter_gradients(self, f: Function, x: Floats, cotangent: Floats) -> dict[str, Result | None]:
        parameters = self._parameters(f.target)
        y = on_tensors(f)(tensor(x, f.dtype, f.device))
        if not y.requires_grad:
            return dict.fromkeys(parameters)
        return described_by_name(
            parameters, torch.autograd.grad(y, list(parameters.values()), like(y, cotangent), allow_unused=True)
        )

    def batch_gradients(self, f: Function, x: Floats, cotangent: Floats) -> tuple[Result, Result, dict[str, Result | None]]:
        leaf, parameters = leaf_of(f, x), self._parameters(f.target)
        try:
            y = f.target(leaf.clone())
            gradient, *more = torch.autograd.grad(
                y, [leaf, *parameters.values()], like(y, cotangent).reshape(y.shape), allow_unused=True
            )
        except (RuntimeError, IndexError, ValueError) as error:
            raise Unsupported(f"an input of shape {x.shape}", error) from None
        return described(y), described(gradient), described_by_name(parameters, more)

    def with_distinct_channels(self, target: Any, channels: int) -> Any:
        with torch.no_grad():
            for parameter in target.parameters():
                if parameter.numel() == channels:
                    parameter.add_(torch.linspace(0, 0.25, channels).to(parameter).reshape(parameter.shape))
        return target

    def with_changed_state(self, target: Any) -> Any:
        with torch.no_grad():
            # non-persistent buffers stay as they are, because a state_dict does not contain them
            for value in target.state_dict().values():
                if value.is_floating_point():
                    value.add_(0.125)
        return target

    def copies(self, target: Any, again: Callable[[], Any], dtype: str, device: str) -> Iterator[tuple[str, Any]]:
        def reloaded() -> nn.Module:
            fresh: nn.Module = self.moved(again(), dtype, device)
            fresh.load_state_dict(target.state_dict())
            return fresh

        ways: dict[str, Callable[[], Any]] = {
            "deepcopy": lambda: copy.deepcopy(target),
            "pickle": lambda: pickle.loads(pickle.dumps(target)),
            "state_dict": reloaded,
        }
        for name, way in ways.items():
            try:
                copied = way()
            except Exception as error:
                raise Unsupported(name, error) from None
            yield name, copied

    def state_changes(self, f: Function, x: Floats) -> list[str]:
        leaf = leaf_of(f, x)
        with preserved_state() as changes:
            # not under torch.enable_grad, which would restore the grad mode
            try:
                y = on_tensors(f)(leaf)
                torch.autograd.grad(y, leaf, torch.ones_like(y), allow_unused=True)
            except (TypeError, ValueError, RuntimeError):
                pass
        return changes


def described_by_name(parameters: Mapping[str, Tensor], gradients: Sequence[Tensor | None]) -> dict[str, Result | None]:
    return {
        name: None if gradient is None else described(gradient)
        for name, gradient in zip(parameters, gradients, strict=True)
    }
