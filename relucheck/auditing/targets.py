"""What ``relucheck model`` is given by name: a model, mini-batches, a loss, an optimiser."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from relucheck import data
from relucheck.auditing.asked import AuditError
from relucheck.errors import SettingsError, error_text, number
from relucheck.gate.discovery import TargetImportError, attribute_of, load
from relucheck.numerics.determinism import generator
from relucheck.training.model import stream
from relucheck.training.settings import OPTIMISERS, Optimiser

#: The channels of an image, by the name of its shape on the command line; "flat" is a row of pixels.
SHAPES: Final = {"flat": 0, "grey": 1, "rgb": 3}


def named(target: str, option: str) -> Any:
    """Import what MODULE:NAME or FILE.py:NAME names.

    Args:
        target: as it is written.
        option: what it is for, for the message.

    Raises:
        TargetImportError: it does not exist, or the import raises an error.
    """
    place, colon, attribute = target.rpartition(":")
    if not (place and colon and attribute):
        raise TargetImportError(
            f"{option} {target!r}: must be MODULE:NAME or FILE.py:NAME, for example torchvision.models:resnet18"
        )
    try:
        if place.endswith(".py"):
            return attribute_of(load(place, Path.cwd())[0], attribute, target)
        return attribute_of(load(target, Path.cwd())[0], attribute, target)
    except TargetImportError:
        raise
    except Exception as error:
        raise TargetImportError(f"{option} {target!r}: the import raised {error_text(error)}") from error


def model(target: str, arguments: dict[str, Any]) -> Any:
    """A model, or the function that builds one with these keyword arguments."""
    found = named(target, "model")
    if isinstance(found, nn.Module):
        if arguments:
            raise AuditError(f"model {target!r} is a module, which takes no arguments; leave out --set")
        return found
    if not callable(found):
        raise AuditError(f"model {target!r} is of class {type(found).__name__}: must be an nn.Module or build one")
    return functools.partial(found, **arguments) if arguments else found


def arguments(pairs: Iterable[str]) -> dict[str, Any]:
    """Keyword arguments from texts such as "num_classes=10".

    Numbers, True, False and None are read as such.

    Raises:
        SettingsError: a text has no "=".
    """
    found: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not (equals and name.isidentifier()):
            raise SettingsError(f"--set {pair!r}: must be NAME=VALUE, for example num_classes=10")
        found[name] = _value(text)
    return found


def _value(text: str) -> Any:
    words = {"True": True, "False": False, "None": None}
    if text in words:
        return words[text]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def batches(target: str, shape: str, batch_size: int, steps: int, seed: int) -> Any:
    """Mini-batches of a data set of the package, or what MODULE:NAME holds or returns.

    Args:
        target: "digits", "mnist" or "fashionmnist", or MODULE:NAME.
        shape: of the images of a data set, a key of ``SHAPES``.
        batch_size: of a data set.
        steps: the largest number of mini-batches of a data set.
        seed: which images are drawn.

    Raises:
        TargetImportError: the target does not exist, or raises an error.
        relucheck.data.DataError: the data set is not there.
    """
    if ":" in target:
        found = named(target, "--data")
        if not callable(found) or isinstance(found, Iterable):
            return found
        with torch.random.fork_rng():
            torch.manual_seed(stream(seed, "data"))
            try:
                return found()
            except Exception as error:
                raise TargetImportError(f"--data {target!r} raised {error_text(error)}") from error
    images = data.load(target)
    count = min(len(images), batch_size * max(steps, 1))
    chosen = torch.randperm(len(images), generator=generator(stream(seed, "images")))[:count]
    scaled = data.scale(images.images[chosen], torch.float32, "flat" if shape == "flat" else "image")
    if SHAPES[shape] > 1:
        scaled = scaled.expand(-1, SHAPES[shape], -1, -1).contiguous()
    return list(zip(scaled.split(batch_size), images.labels[chosen].split(batch_size), strict=True))


def optimiser(text: str) -> Any:
    """An optimiser: "adam", "sgd", or what MODULE:NAME names.

    A learning rate is given as in "sgd:0.1".

    Raises:
        SettingsError: the learning rate is no positive number.
        TargetImportError: the target does not exist.
    """
    name, _, rate = text.partition(":")
    if name.lower() not in OPTIMISERS:
        return named(text, "--optimiser")
    if not rate:
        return Optimiser(name.lower())
    value = _value(rate)
    number(f"--optimiser {name}: learning rate", value, above=0)
    return Optimiser(name.lower(), lr=float(value))
