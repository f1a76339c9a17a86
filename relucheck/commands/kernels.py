"""``relucheck kernels``: how a device rounds the products of these experiments."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from relucheck.commands.terminal import show
from relucheck.errors import OK, SettingsError


def add(commands: Any) -> None:
    """Describe the command to the parser."""
    kernels = commands.add_parser(
        "kernels",
        help="report how a device rounds the matrix products and convolutions of the published experiments",
        description="Report how a device rounds the matrix products and convolutions of the published experiments: the "
        "kernels by name, the emulation that each one equals bit for bit, and the outputs that are exactly 0. On CUDA, "
        "every state of the switches for TF32 and 16-bit reductions is tried.",
    )
    kernels.set_defaults(run=run)
    kernels.add_argument("--device", metavar="NAME", help="cpu or cuda; default: cuda if it is available, else cpu")
    kernels.add_argument("--dtypes", metavar="NAMES", help="dtypes, separated by commas; default: all four")
    kernels.add_argument("--out", metavar="FOLDER", help="write the report to FOLDER as Markdown and JSON")
    kernels.add_argument("--quiet", action="store_true", help="show no progress")


def run(arguments: argparse.Namespace) -> int:
    """Examine the device, print the report and write it."""
    from relucheck.reproduction.kernels import report
    from relucheck.reproduction.kernels.run import kernels

    dtypes = [] if arguments.dtypes is None else [name.strip() for name in arguments.dtypes.split(",")]
    if not all(dtypes):
        raise SettingsError(
            f"--dtypes {arguments.dtypes!r}: a name is missing; name dtypes with one comma between two, for example "
            "float32,bfloat16"
        )
    folder = Path(arguments.out) if arguments.out else None
    found, files = kernels(arguments.device, dtypes, folder, progress=not arguments.quiet)
    show(report.shown(found))
    for file in files:
        print(f"report: {file}")
    return OK
