"""``relucheck model``: does the subgradient at the kinks matter for a model?"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from relucheck.commands.terminal import show
from relucheck.errors import FAILED, OK, SettingsError, one_of, whole


def add(commands: Any) -> None:
    """Describe the command to the parser."""
    model = commands.add_parser(
        "model",
        help="audit a model: does the subgradient at the kinks matter for it?",
        description="Audit a model: check the wiring of its activations, count and predict exact hits of kinks, compare "
        "the gradients of s = 0 and s = 1 on mini-batches, and train s = 0, a control, s = 1 and five nudges of s = 0. The "
        "report begins with a conclusion of one sentence. With --out, the same command, given again, continues an "
        "interrupted training.",
        epilog="exit codes: 0 the audit ended, whatever it found about s; 1 the wiring is faulty, or a control differed; "
        "2 the command line, the model, the mini-batches or the loss cannot be used; 3 a target does not import, or data "
        "or a package is missing; 4 a file cannot be written; 130 interrupted",
    )
    model.set_defaults(run=run)
    model.add_argument(
        "target",
        metavar="MODULE:FACTORY",
        help="a function or class that builds the model, or a model; FILE.py:NAME works, too. A function that takes the "
        "argument subgradient is checked for how it hands it on",
    )
    model.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a keyword argument of the factory, such as num_classes=10 (repeatable)",
    )
    model.add_argument(
        "--data",
        default="digits",
        metavar="DATA",
        help="MODULE:NAME of pairs (inputs, targets) or of a function that returns them; or digits (in the package, "
        "default), mnist or fashionmnist",
    )
    model.add_argument(
        "--shape",
        default="grey",
        metavar="NAME",
        help="images of a data set as flat [784], grey [1, 28, 28] (default) or rgb",
    )
    model.add_argument(
        "--batch-size", type=int, default=64, metavar="N", help="samples of a mini-batch of a data set; default: 64"
    )
    model.add_argument(
        "--loss", metavar="MODULE:NAME", help="function of output and targets; default: mean cross-entropy of logits"
    )
    model.add_argument(
        "--optimiser",
        metavar="NAME",
        help="adam or sgd, with a learning rate as in sgd:0.1; or MODULE:NAME of a function from a list of parameters to "
        "an optimiser; default: adam:0.001",
    )
    model.add_argument(
        "--arithmetic",
        action="append",
        default=[],
        metavar="NAME",
        help="audit in this arithmetic, such as float32, bfloat16 or 'mixed bfloat16' (repeatable); default: that of the "
        "model",
    )
    model.add_argument("--steps", type=int, default=200, metavar="N", help="training steps, a multiple of 10; default: 200")
    model.add_argument("--compared", type=int, default=4, metavar="N", help="mini-batches to compare; default: 4")
    model.add_argument(
        "--samples", type=int, metavar="N", help="predict the hits of a training step of N samples; default: the mini-batch"
    )
    model.add_argument("--seed", type=int, default=0, metavar="N", help="seed of everything that is drawn; default: 0")
    model.add_argument("--device", metavar="NAME", help="cpu or cuda; default: that of the model")
    model.add_argument(
        "--out", metavar="FOLDER", help="write audit.md and audit.json to FOLDER, and keep the training there"
    )
    model.add_argument("--quiet", action="store_true", help="show no progress")


def run(arguments: argparse.Namespace) -> int:
    """Audit the model, print the report and write it."""
    from relucheck.auditing import targets
    from relucheck.auditing.api import audit
    from relucheck.auditing.report import shown
    from relucheck.results.store import Store, write_atomically

    one_of("--shape", arguments.shape, tuple(targets.SHAPES))
    whole("--batch-size", arguments.batch_size, 1)
    for option in ("steps", "seed"):
        whole(f"--{option}", getattr(arguments, option), 0)
    folder = None if arguments.out is None else Path(arguments.out)
    if arguments.out == "":
        raise SettingsError("--out '': name a folder")
    model = targets.model(arguments.target, targets.arguments(arguments.set))
    loss = None if arguments.loss is None else targets.named(arguments.loss, "--loss")
    optimiser = None if arguments.optimiser is None else targets.optimiser(arguments.optimiser)
    batches = targets.batches(arguments.data, arguments.shape, arguments.batch_size, arguments.steps, arguments.seed)
    if folder is not None:
        Store(folder)  # refuses a folder that cannot be written, before minutes of work
    found = audit(
        model,
        batches,
        loss=loss,
        optimiser=optimiser,
        arithmetics=arguments.arithmetic,
        steps=arguments.steps,
        seed=arguments.seed,
        compared=arguments.compared,
        samples=arguments.samples,
        device=arguments.device,
        folder=folder,
        progress=not arguments.quiet,
    )
    show(shown(found))
    if folder is not None:
        for name, text in (("audit.json", found.json()), ("audit.md", found.markdown())):
            write_atomically(folder / name, text)
            print(f"report: {folder / name}")
    return FAILED if found.failed else OK
