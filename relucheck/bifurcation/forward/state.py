"""Use deterministic algorithms, and restore buffers, random numbers and ``.grad``."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from relucheck.bifurcation.forward.calls import storage_of
from relucheck.errors import ModelError
from relucheck.numerics.determinism import deterministic


@contextlib.contextmanager
def reproducible(device: torch.device) -> Iterator[None]:
    """Use deterministic algorithms in a block, as far as torch has them.

    On a CPU, a function without one runs all the same, unless the user has demanded determinism: the control of a
    comparison proves that a backward repeats itself. On other devices atomics may add in another order in each run, so such
    a function is refused.

    Raises:
        ModelError: for a function without a deterministic algorithm on another device than a CPU.
    """
    demanded = torch.are_deterministic_algorithms_enabled() and not torch.is_deterministic_algorithms_warn_only_enabled()
    with deterministic(), warnings.catch_warnings():
        if device.type == "cpu" and not demanded:
            torch.use_deterministic_algorithms(True, warn_only=True)
            warnings.filterwarnings("ignore", message=".*does not have a deterministic implementation")
        try:
            yield
        except RuntimeError as error:
            if demanded or "does not have a deterministic implementation" not in str(error):
                raise
            name = str(error).split(" does not have", 1)[0]
            raise ModelError(
                f"{name} has no deterministic algorithm on {device.type}, so two backwards cannot be compared bit for bit; "
                "compare the model on a CPU (model.cpu()), or replace the function"
            ) from error


class Untouched:
    """The state of a model and of the random numbers, which can be restored.

    Args:
        model: the model. Its buffers, such as running statistics, are kept; parameters are when they are about to change.
        device: the device whose random numbers are kept, beside those of the CPU.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self._buffers = [
            (module._buffers, name, buffer, buffer.detach().clone())
            for module in model.modules()
            for name, buffer in module._buffers.items()
            if buffer is not None
        ]
        self._parameters = {storage_of(parameter): (name, parameter) for name, parameter in model.named_parameters()}
        self._versions = {storage: parameter._version for storage, (_, parameter) in self._parameters.items()}
        self._kept: dict[int, tuple[nn.Parameter, Tensor, Tensor]] = {}
        for module in model.modules():
            if getattr(module, "max_norm", None) is not None:  # an embedding that normalises its weight as it is called
                for parameter in module.parameters(recurse=False):
                    self.keep(parameter)
        self._cuda = [device] if device.type == "cuda" else []
        self._states = torch.get_rng_state(), [torch.cuda.get_rng_state(one) for one in self._cuda]

    def keep(self, tensor: Tensor) -> None:
        """Keep the parameter whose memory a tensor shows, if there is one; it is about to change."""
        storage = storage_of(tensor)
        if storage in self._parameters and storage not in self._kept:
            _, parameter = self._parameters[storage]
            self._kept[storage] = parameter, parameter.data, parameter.detach().clone()

    def restore(self) -> None:
        """Restore the state, inside of the block or at its end."""
        torch.set_rng_state(self._states[0])
        for one, state in zip(self._cuda, self._states[1], strict=True):
            torch.cuda.set_rng_state(state, one)
        with torch.no_grad():
            for parameter, data, values in self._kept.values():
                parameter.data = data
                data.copy_(values)
            for buffers, name, buffer, values in self._buffers:
                now = buffers.get(name)
                # a buffer with another shape is a cache that has grown: the old values would contradict the model
                if now is not None and (now.shape, now.dtype, now.device) == (buffer.shape, buffer.dtype, buffer.device):
                    buffers[name] = buffer.copy_(values)

    def refuse_changed(self) -> None:
        """Raise an error if a parameter has changed that is not kept.

        Raises:
            ModelError: if so.
        """
        for storage, (name, parameter) in self._parameters.items():
            if parameter._version != self._versions[storage] and storage not in self._kept:
                raise ModelError(
                    f"the forward changes the parameter {name!r} by a function whose name does not say so, and the change "
                    "cannot be taken back; let it call an in-place method of the tensor, such as copy_"
                )


@contextlib.contextmanager
def untouched(model: nn.Module, device: torch.device) -> Iterator[Untouched]:
    """Restore parameters, buffers, random states and ``.grad`` after a block.

    ``.grad`` of the parameters is None at the start of the block, so that an accumulation in a forward is visible.

    Yields:
        What restores the state inside of the block.

    Raises:
        ModelError: if a parameter has changed and cannot be restored.
    """
    state = Untouched(model, device)
    try:
        with set_aside(model.parameters()):
            yield state
        state.refuse_changed()
    finally:
        state.restore()


@contextlib.contextmanager
def set_aside(leaves: Iterable[Tensor]) -> Iterator[None]:
    """Set ``.grad`` to None in a block, so that accumulation is visible; restore it afterwards."""
    kept = [(leaf, leaf.grad) for leaf in leaves]
    try:
        for leaf, gradient in kept:
            if gradient is not None:
                leaf.grad = None
        yield
    finally:
        for leaf, gradient in kept:
            if leaf.grad is not gradient:
                leaf.grad = gradient
