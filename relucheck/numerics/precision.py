"""The process-wide switches for the precision of float32 products.

PyTorch has an older set of switches and a newer tree of them. ``torch.backends.fp32_precision`` is the top of the tree.
Below it are cuDNN and oneDNN ("mkldnn"), and below each of these are the kinds of layers. A switch that is "none" follows
the one above it. The switches of cuDNN's layers start with another default, TF32. Once one of them was assigned to, no
assignment restores that default.

The tree came with torch 2.9. Earlier versions have two switches only: ``torch.set_float32_matmul_precision`` for products,
of which ``torch.backends.cuda.matmul.allow_tf32`` is another spelling, and ``torch.backends.cudnn.allow_tf32`` for
convolutions and recurrences on CUDA.

Source: https://docs.pytorch.org/docs/stable/notes/cuda.html#tensorfloat-32-tf32-on-ampere-and-later-devices
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any, Final

import torch

_BACKENDS: Final[Any] = torch.backends  # whose stubs lack these switches
_TREE: Final = hasattr(_BACKENDS, "fp32_precision")


@dataclasses.dataclass(frozen=True)
class _Switch:
    """One switch: its backend and its kind of layers below ``torch.backends``; "" means all."""

    backend: str = ""
    layers: str = ""

    @property
    def _owner(self) -> Any:
        owner = _BACKENDS
        for name in filter(None, (*self.backend.split("."), self.layers)):
            owner = getattr(owner, name)
        return owner

    @property
    def value(self) -> str:
        """The precision in force, set by this switch or by one above it."""
        return str(self._owner.fp32_precision)

    def set(self, value: str) -> None:
        if self == _ONEDNN:  # torch 2.14: an assignment to it goes to the top of the tree
            self._owner.set_flags(_fp32_precision=value)
        else:
            self._owner.fp32_precision = value


_ONEDNN: Final = _Switch("mkldnn")
_ABOVE: Final = (_Switch(), _Switch("cudnn"), _ONEDNN)  # from the top
_CUDA: Final = {
    "products": _Switch("cuda", "matmul"),
    "convolutions": _Switch("cudnn", "conv"),
    "recurrences": _Switch("cudnn", "rnn"),
}
_OTHER: Final = {
    "products": _Switch("mkldnn", "matmul"),
    "convolutions": _Switch("mkldnn", "conv"),
    "recurrences": _Switch("mkldnn", "rnn"),
}
#: The words of ``torch.set_float32_matmul_precision``.
_WORDS: Final = {"ieee": "highest", "tf32": "high", "bf16": "medium"}


def precisions(kind: str) -> dict[str, str]:
    """The precision in force for products, convolutions and recurrences.

    Each is "ieee", "tf32", "bf16" or "none".

    Args:
        kind: the type of a device, "cuda" or any other.
    """
    if not _TREE:
        return _precisions_by_two_switches(kind)
    return {name: switch.value for name, switch in (_CUDA if kind == "cuda" else _OTHER).items()}


@contextlib.contextmanager
def precision(wanted: str) -> Iterator[None]:
    """Set "ieee" or "tf32" for all layers and devices in a block; restore all switches then.

    A switch that followed another one follows it again. If ``torch.get_float32_matmul_precision`` can be read before the
    block, it can be read inside, too. Reading ``torch.backends.cudnn.allow_tf32`` inside may raise, because torch raises
    where it contradicts the newer switches. It is not set here, because that would end the default of cuDNN's switches for
    the rest of the process.
    """
    with _tree(wanted) if _TREE else _two_switches(wanted):
        yield


@contextlib.contextmanager
def _tree(wanted: str) -> Iterator[None]:
    older = _older()
    kept: list[tuple[_Switch, str]] = []
    try:
        for switch in _ABOVE:  # with "none" above it, a switch reads its own value
            kept.append((switch, switch.value))
            switch.set("none")
        if older is not None:  # assigns to both switches of products, "highest" on a CPU as well
            kept += [(parts["products"], parts["products"].value) for parts in (_CUDA, _OTHER)]
            torch.set_float32_matmul_precision(_WORDS[wanted])
        for switch in _ABOVE:
            switch.set(wanted)
        for switch in (*_CUDA.values(), *_OTHER.values()):
            if switch.value != wanted:  # it does not follow, so what it reads is its own value
                if all(switch != other for other, _ in kept):
                    kept.append((switch, switch.value))
                switch.set(wanted)
        yield
    finally:
        if older is not None:
            torch.set_float32_matmul_precision(older)
        for switch, before in kept:
            switch.set(before)


def _older() -> str | None:
    """The older switch for products; None if a newer switch contradicts it, where torch raises."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return None


def _precisions_by_two_switches(kind: str) -> dict[str, str]:
    word = torch.get_float32_matmul_precision()
    if kind == "cuda":  # where "medium" is TF32 as well
        layers = "tf32" if _BACKENDS.cudnn.allow_tf32 else "ieee"
        return {"products": "ieee" if word == "highest" else "tf32", "convolutions": layers, "recurrences": layers}
    (products,) = (value for value, name in _WORDS.items() if name == word)
    return {"products": products, "convolutions": "none", "recurrences": "none"}


@contextlib.contextmanager
def _two_switches(wanted: str) -> Iterator[None]:
    word, layers = torch.get_float32_matmul_precision(), _BACKENDS.cudnn.allow_tf32
    try:
        torch.set_float32_matmul_precision(_WORDS[wanted])
        _BACKENDS.cudnn.allow_tf32 = wanted == "tf32"
        yield
    finally:
        torch.set_float32_matmul_precision(word)
        _BACKENDS.cudnn.allow_tf32 = layers
