"""The default random generators of Python, NumPy and torch: read, compared and restored.

That is done around every item of a run.
"""

from __future__ import annotations

import ctypes
import random
from typing import Any, Final

import numpy as np

try:
    from relucheck.gate.isolation import torch_state
except ImportError:  # torch is not installed: activations of other frameworks run without it
    torch_state = None  # type: ignore[assignment]

#: NumPy's stubs leave out the functions that read and set the default generator.
_NUMPY: Final[Any] = np.random
#: Bytes of the state of NumPy's Mersenne Twister in memory: 624 words and the position in them.
_BYTES: Final = 4 * 624 + 4


class Generators:
    """The states of the default random generators of Python, NumPy and torch before a block."""

    def __init__(self) -> None:
        self._torch = torch_state.generator() if torch_state else None
        self._python = random.getstate()
        self._numpy = _NumpyState()

    def restore(self) -> list[str]:
        """Restore the generators that the block changed, and name them."""
        changed = []
        if self._torch is not None and not torch_state.same_generator(self._torch):
            torch_state.set_generator(self._torch)
            changed.append("torch's random number generator")
        if self._python != random.getstate():
            random.setstate(self._python)
            changed.append("Python's random number generator")
        if self._numpy.restore():
            changed.append("NumPy's random number generator")
        return changed


class _NumpyState:
    """The state of NumPy's default generator, and which generator that is."""

    def __init__(self) -> None:
        self._generator = _NUMPY.get_bit_generator()
        self._state = _state(self._generator)

    def restore(self) -> bool:
        """Restore the generator and its state; whether either had changed."""
        now = _NUMPY.get_bit_generator()
        if now is self._generator and _same(_state(now), self._state):
            return False
        _NUMPY.set_bit_generator(self._generator)
        _NUMPY.set_state(self._state)
        return True


_known: tuple[Any, bytes, dict[str, Any]] | None = None


def _state(generator: Any) -> dict[str, Any]:
    """The state of NumPy's default generator.

    NumPy takes a quarter of a millisecond to read it. So the state that was read last is returned if the generator's memory
    has not changed since. NumPy also keeps the second of two normal numbers, outside of that memory. A state with such a
    number is always read anew. Drawing a new one changes the memory; only ``set_state`` can set one alone.
    """
    global _known
    memory = b""
    if isinstance(generator, np.random.MT19937):
        memory = ctypes.string_at(generator.ctypes.state_address, _BYTES)
        if _known is not None and _known[0] is generator and _known[1] == memory and not _known[2]["has_gauss"]:
            return _known[2]
    state: dict[str, Any] = _NUMPY.get_state(legacy=False)
    _known = generator, memory, state
    return state


def _same(one: Any, other: Any) -> bool:
    if one is other:
        return True
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[name], other[name]) for name in one)
    return np.array_equal(one, other)
