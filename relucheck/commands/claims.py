"""``relucheck claims``: what results decide about the published claims."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from relucheck.commands.terminal import show
from relucheck.errors import OK


def add(commands: Any) -> None:
    """Describe the command to the parser."""
    claims = commands.add_parser(
        "claims",
        help="list the published claims, and what finished results decide about them",
        description="List the published claims, and what finished results decide about them. Nothing is run.",
    )
    claims.set_defaults(run=run)
    claims.add_argument(
        "--results",
        action="append",
        default=[],
        metavar="FOLDER",
        help="a folder that relucheck reproduce wrote (repeatable). Of several folders of a scenario, one decides each "
        "comparison: first one that is not void, then one with valid nudges, then the one with most seeds. Default: the "
        "folders in relucheck-results/, without those of scale smoke and those that cannot be used; of several folders of "
        "E4, the one with most draws",
    )
    claims.add_argument("--report", metavar="FILE.md", help="write every case with its numbers to FILE.md, too")


def run(arguments: argparse.Namespace) -> int:
    """Read the results, decide the claims, write the report and print it."""
    from relucheck.gate.report import documents
    from relucheck.reproduction.report.deciding.page import page, shown
    from relucheck.reproduction.stored import decide_stored, default_results, read_folders
    from relucheck.results.store import write_atomically

    if arguments.report is not None:
        documents.check_file(Path(arguments.report), "--report", (".md",))
    if arguments.results:
        found = read_folders(map(Path, arguments.results))
    else:
        found = default_results(lambda line: print(f"relucheck: {line}", file=sys.stderr))
    decisions = decide_stored(found)
    if arguments.report is not None:
        write_atomically(Path(arguments.report), page(decisions))
    print(f"results: {', '.join(str(one.folder) for one in found) or 'none; name folders with --results'}")
    show(shown(decisions))
    return OK
