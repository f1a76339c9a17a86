"""A small comparison with everything in it, and what of its result does not depend on how it was run."""

from __future__ import annotations

import json

from relucheck.numerics.arithmetic import Arithmetic
from relucheck.training.result import Result
from relucheck.training.settings import Settings, members_of

SETTINGS = Settings(
    "digits",
    (16, 12),
    members_of([3, 4], [0.0, 1.0]),
    arithmetic=Arithmetic.parse("bfloat16 emulated (product)"),
    epochs=3,
    batch_size=32,
    train_samples=256,
    test_samples=100,
    dropout=0.1,
    shuffle=True,
)


def numbers(result: Result) -> str:
    """Everything that must not depend on how a run was interrupted."""
    content = result.to_json()
    del content["wall_s"]
    return json.dumps(content, sort_keys=True)
