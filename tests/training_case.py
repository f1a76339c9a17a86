"""A small comparison with everything in it, and what of its result does not depend on how it was run."""

from __future__ import annotations

import json

from relucheck.training.result import Result
from relucheck.training.settings import Precision, Settings, members_of

SETTINGS = Settings(
    "digits",
    (16, 12),
    members_of([3, 4], [0.0, 1.0]),
    precision=Precision("bfloat16", emulation="product"),
    epochs=3,
    batch_size=32,
    train_samples=256,
    test_samples=100,
    dropout=0.1,
    shuffle=True,
)


def numbers(result: Result) -> str:
    """Everything that must not depend on how a run was interrupted."""
    content = {name: value for name, value in vars(result).items() if name not in ("settings", "members", "wall_s")}
    members = [member.to_json() for member in result.members]
    return json.dumps({**content, "settings": result.settings.to_json(), "members": members}, sort_keys=True)
