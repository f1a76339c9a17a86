"""Fewer examples for a property that is tried in every dtype, because all dtypes run the same code."""

from __future__ import annotations

from typing import Final

from hypothesis import settings

_MOST = settings().max_examples
#: Decorates a test below ``parametrize("dtype", ...)``: two fifths of the profile's examples for each dtype. The profile
#: "thorough" tries all of them.
fewer: Final = settings(max_examples=_MOST if _MOST >= 100 else max(1, 2 * _MOST // 5))
