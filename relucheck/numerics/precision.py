"""The process's switches for the products of float32, of which PyTorch has a tree and an older set.

``torch.backends.fp32_precision`` stands at the top; below it are cuDNN and oneDNN ("mkldnn"), below these the kinds of
layers. A switch that is "none" follows the one above it, and the switches of cuDNN's layers have a default of their own,
TF32, which no assignment brings back once they were assigned to
(https://docs.pytorch.org/docs/stable/notes/cuda.html#tensorfloat-32-tf32-on-ampere-and-later-devices).

The tree came with torch 2.9. Before, there are two switches: ``torch.set_float32_matmul_precision`` for products, of which
``torch.backends.cuda.matmul.allow_tf32`` is another spelling, and ``torch.backends.cudnn.allow_tf32`` for convolutions and
recurrences on CUDA.
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
    """One switch: its backend and its kind of layers below ``torch.backends``, each "" where it stands for all."""

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
        """What holds, by the switch itself or by one above it."""
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
    """What holds for products, convolutions and recurrences on a type of device: "ieee", "tf32", "bf16" or "none"."""
    if not _TREE:
        return _precisions_by_two_switches(kind)
    return {name: switch.value for name, switch in (_CUDA if kind == "cuda" else _OTHER).items()}


@contextlib.contextmanager
def precision(wanted: str) -> Iterator[None]:
    """Sets "ieee" or "tf32" for all layers on all devices; afterwards each switch is as it was, or follows as it did.

    Where ``torch.get_float32_matmul_precision`` can be read it can be read within, too. ``torch.backends.cudnn.allow_tf32``
    may raise within, as torch does where it contradicts the newer switches: an assignment to it would end the default of
    cuDNN's switches for good.
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
    """The older switch for products, or None where torch refuses to read it, as a newer one says otherwise."""
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
