"""Write reports/audit/: the audits of four models, one of them with a planted fault in its wiring.

    python tools/audit_models.py [NAME ...]

Weights are random and data ship with packages, so nothing is downloaded. Runs are short, so that a model takes minutes on
one core. With names, only these models run, and their pages are written. Exit codes: 0 the planted fault was found and
nothing else failed; 1 otherwise.
"""

from __future__ import annotations

import argparse
import codecs
import contextlib
import functools
import importlib
import io
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import relucheck
from relucheck.auditing import targets
from relucheck.auditing.result import Audit
from relucheck.results.files import write_atomically
from relucheck.results.tables import Table

FOLDER: Final = Path(__file__).resolve().parents[1] / "reports" / "audit"
_CONTEXT: Final = 32  # characters that the transformer sees


def text() -> str:
    """The Zen of Python, which the module ``this`` of every Python holds and prints."""
    with contextlib.redirect_stdout(io.StringIO()):
        module = importlib.import_module("this")
    return codecs.decode(module.s, "rot13")


def characters(size: int, count: int) -> list[tuple[Tensor, Tensor]]:
    """Mini-batches of contexts, int64 [size, 32], and the characters that follow each of theirs, of the same shape."""
    known = text()
    alphabet = sorted(set(known))
    codes = torch.tensor([alphabet.index(one) for one in known])
    random = torch.Generator().manual_seed(0)
    starts = torch.randint(len(codes) - _CONTEXT, (count, size), generator=random)
    windows = codes[starts[..., None] + torch.arange(_CONTEXT + 1)]
    return [(one[:, :-1], one[:, 1:]) for one in windows]


def following(output: Tensor, targets: Tensor) -> Tensor:
    """The mean cross-entropy of logits [n, t, characters] with characters, int64 [n, t]."""
    return F.cross_entropy(output.flatten(0, 1), targets.flatten())


class Block(nn.Module):
    """A block of a decoder with masked attention, layer norm before each part, and ReLU in the feed-forward part."""

    def __init__(self, activation: nn.Module, width: int = 32) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)
        self.wide, self.act, self.narrow = nn.Linear(width, 4 * width), activation, nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1], dtype=x.dtype)
        y = self.norm1(x)
        x = x + self.attention(y, y, y, attn_mask=mask, need_weights=False)[0]
        result: Tensor = x + self.narrow(self.act(self.wide(self.norm2(x))))
        return result


class Transformer(nn.Module):
    """A decoder of characters with two blocks. The second block does not get the subgradient: the planted fault."""

    def __init__(self, subgradient: float = 0.0, width: int = 32) -> None:
        super().__init__()
        self.embed = nn.Embedding(len(set(text())), width)
        self.place = nn.Parameter(0.02 * torch.randn(_CONTEXT, width))
        self.blocks = nn.Sequential(Block(relucheck.ReLU(subgradient)), Block(nn.ReLU()))
        self.head = nn.Linear(width, self.embed.num_embeddings)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.blocks(self.embed(x) + self.place))
        return logits


class Case(NamedTuple):
    """A model to audit.

    Attributes:
        about: where it comes from, and what it sees.
        model: builds it.
        batches: its mini-batches.
        options: of ``relucheck.audit``.
    """

    about: str
    model: Callable[..., nn.Module]
    batches: Callable[[], list[tuple[Any, Any]]]
    options: dict[str, Any]


def _named(library: str, function: str, *arguments: Any) -> Callable[[], nn.Module]:
    """A function of a library with ten classes, under the name that reports show."""

    def build() -> nn.Module:
        model: nn.Module = getattr(importlib.import_module(library), function)(*arguments, num_classes=10)
        return model

    build.__qualname__ = arguments[0] if arguments else function
    return build


def _digits(size: int, count: int) -> list[tuple[Tensor, Tensor]]:
    batches: list[tuple[Tensor, Tensor]] = targets.batches("digits", "rgb", size, count, 0)
    return batches


_SHORT: Final = {"steps": 10, "compared": 2}
_ROUNDED: Final = "bfloat16 emulated (rounded)"
#: For batch norms that are none of torch's modules.
_ROUNDED_CONVOLUTIONS: Final = "bfloat16 emulated (rounded; batch norm native)"
CASES: Final[dict[str, Case]] = {
    "resnet18": Case(
        "torchvision; shipped digits, 3 x 28 x 28",
        _named("torchvision.models", "resnet18"),
        functools.partial(_digits, 8, 10),
        {**_SHORT, "arithmetics": ["float32", _ROUNDED], "samples": 256},
    ),
    "mobilenet_v3_small": Case(
        "torchvision; shipped digits, 3 x 28 x 28",
        _named("torchvision.models", "mobilenet_v3_small"),
        functools.partial(_digits, 8, 10),
        {**_SHORT, "arithmetics": ["float32", _ROUNDED], "samples": 256},
    ),
    "regnetx_002": Case(
        "timm; shipped digits, 3 x 28 x 28",
        _named("timm", "create_model", "regnetx_002"),
        functools.partial(_digits, 8, 10),
        {**_SHORT, "arithmetics": ["float32", _ROUNDED_CONVOLUTIONS], "samples": 256},
    ),
    "transformer": Case(
        "two blocks of width 32, with a planted fault: the second does not get the setting; the Zen of Python by character",
        Transformer,
        functools.partial(characters, 16, 50),
        {"steps": 200, "compared": 4, "arithmetics": ["float32", "bfloat16"], "loss": following, "samples": 256},
    ),
}


def page(audits: dict[str, dict[str, Any]]) -> str:
    """The page with the conclusion of each model, from the JSON files."""
    rows = [
        (f"[{name}]({name}.md)", CASES[name].about, str(one["steps"]), str(one["batch_samples"]), one["conclusion"])
        for name, one in audits.items()
    ]
    table = "\n".join(Table(("model", "from", "steps", "samples", "conclusion"), rows).markdown())
    return f"""# Audits of four models

Does the subgradient at the kinks matter for these models? `relucheck.audit` says so in one sentence; the pages behind the
names have the numbers. [Audit](../../docs/audit.md) explains them.

{table}

**These runs are reduced.** Weights are random, images small, mini-batches of 8 or 16 samples, and steps few, so that each
model takes minutes on one core. A conclusion holds for these steps and not for a full training. `{_ROUNDED}`
rounds each convolution, product and batch norm once, as one device may do it; timm's batch norm stays the processor's own.

The fault in the wiring of the transformer is planted: its second block gets no setting. The audit has to find it, and to
find none in the others.

`python tools/audit_models.py` writes these pages; another processor may round differently.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("names", nargs="*", choices=[*CASES, []], metavar="NAME", help="models to audit; all without one")
    names = parser.parse_args(arguments).names or list(CASES)
    failed = False
    for name in names:
        case = CASES[name]
        audit: Audit = relucheck.audit(case.model, case.batches(), **case.options)
        failed |= [wire.site for wire in audit.faults] != (["blocks.1.act"] if name == "transformer" else []) or audit.void
        write_atomically(FOLDER / f"{name}.json", audit.json())
        write_atomically(FOLDER / f"{name}.md", audit.markdown())
        print(f"{name}: {audit.conclusion}", flush=True)
    known = {name: FOLDER / f"{name}.json" for name in CASES}
    if all(path.exists() for path in known.values()):
        write_atomically(FOLDER / "README.md", page({name: json.loads(path.read_text()) for name, path in known.items()}))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
