"""A small comparison with everything in it, how to vary one, and what of its result does not depend on how it was run."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from relucheck.networks import Network
from relucheck.numerics.arithmetic import Arithmetic
from relucheck.training.members import members_of
from relucheck.training.results.result import Result
from relucheck.training.settings import Settings

SETTINGS = Settings(
    "digits",
    Network("mlp", (16, 12), dropout=0.1),
    members_of([3, 4], [0.0, 1.0]),
    arithmetic=Arithmetic.parse("bfloat16 emulated (product)"),
    epochs=3,
    batch_size=32,
    train_samples=256,
    test_samples=100,
    shuffle=True,
)


_OF_NETWORKS = {field.name for field in dataclasses.fields(Network)}


def changed(settings: Settings, **changes: Any) -> Settings:
    """Settings with other fields, of their network too."""
    network = dataclasses.replace(settings.network, **{k: v for k, v in changes.items() if k in _OF_NETWORKS})
    return dataclasses.replace(settings, network=network, **{k: v for k, v in changes.items() if k not in _OF_NETWORKS})


def numbers(result: Result) -> str:
    """Everything that must not depend on how a run was interrupted."""
    content = {name: value for name, value in vars(result).items() if name not in ("settings", "members", "wall_s")}
    members = [member.to_json() for member in result.members]
    return json.dumps({**content, "settings": result.settings.to_json(), "members": members}, sort_keys=True)
