"""``relucheck check`` and ``relucheck kinks``: the gate without pytest."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from relucheck.commands.terminal import width
from relucheck.errors import FAILED, MISSING, OK, SettingsError

if TYPE_CHECKING:
    from relucheck.gate.config import GateConfig
    from relucheck.gate.verdicts import Verdict


def add(commands: Any) -> None:
    """Describe both commands to the parser."""
    for name, text in (
        ("check", "check the activations in TARGET against laws that every correct gradient obeys"),
        ("kinks", "print the kinks of the activations in TARGET and their subgradients"),
    ):
        command = commands.add_parser(
            name,
            help=text,
            description=f"{text[0].upper()}{text[1:]}. Defaults come from [tool.relucheck] in pyproject.toml, else they "
            "are those below.",
        )
        command.set_defaults(run=run)
        command.add_argument("targets", nargs="*", metavar="TARGET", help="a module, module:attribute or a .py file")
        command.add_argument(
            "--dtypes",
            metavar="NAMES",
            help="dtypes to check, separated by commas; default: float32, float64, bfloat16 and float16",
        )
        command.add_argument("--devices", metavar="NAMES", help="devices to check on, separated by commas; default: cpu")
        command.add_argument("--time-limit", type=float, metavar="SECONDS", help="time limit of one check; default: 60")
        command.add_argument(
            "--processes",
            type=int,
            metavar="N",
            help="check in N processes at once; default: one for each core, on other devices than the CPU one",
        )
        command.add_argument(
            "--no-isolate",
            action="store_true",
            help="run the targets in the process of this command, which native code can then end or block",
        )
        command.add_argument(
            "--plot",
            metavar="FOLDER",
            help="draw a figure of each activation into FOLDER: value, derivative, kinks, and inputs at which a law fails",
        )
    check, kinks = (commands.choices[name] for name in ("check", "kinks"))
    check.add_argument("--laws", metavar="NAMES", help="laws to check, separated by commas; default: all laws")
    check.add_argument(
        "--convention",
        metavar="NAME",
        help="which subgradients are allowed at a kink: clarke (the Clarke interval; default), minimum-norm (its element "
        "nearest zero), declared (the declared ones) or reference (those of a declared reference)",
    )
    check.add_argument("--fail-on", metavar="LEVEL", help="lowest level that fails the command: error (default) or notice")
    check.add_argument("--compile", action="store_true", help="check every activation under torch.compile as well (slow)")
    check.add_argument(
        "--report",
        action="append",
        default=[],
        metavar="FILE",
        help="write the verdicts to FILE.json or FILE.md (repeatable)",
    )
    check.add_argument(
        "--update",
        action="store_true",
        help="write everything that fails now into pyproject.toml as expected failures, with reasons to be filled in",
    )
    check.add_argument(
        "--verbose",
        action="store_true",
        help="print every fault with its numbers and a script; by default only the first of each activation has them",
    )
    check.add_argument("--quiet", action="store_true", help="print failures and counts only")
    kinks.add_argument(
        "--against",
        metavar="OLD.json",
        help="list the differences from an older table; the exit code is 1 if there are any",
    )
    kinks.add_argument("--json", metavar="FILE", help="write the table to FILE, for a later --against")


def run(arguments: argparse.Namespace) -> int:
    """Check the targets, write the reports and print the results."""
    from relucheck.commands import cards
    from relucheck.extras import require
    from relucheck.gate.report import adoption, documents, drift
    from relucheck.gate.verdicts import IMPORT
    from relucheck.results import files

    config = _config(arguments)
    if arguments.plot is not None:
        require("--plot", "matplotlib")
        documents.check_file(Path(arguments.plot) / "card.png", "--plot", (".png",))
        config = dataclasses.replace(config, curves=True)
    reports: list[str] = getattr(arguments, "report", [])
    for name in reports:
        documents.check_file(Path(name), "--report")
    table: str | None = getattr(arguments, "json", None)
    if table is not None:
        documents.check_file(Path(table), "--json", (".json",))
    summary = os.environ.get("GITHUB_STEP_SUMMARY") if arguments.command == "check" else None
    if summary:
        files.check_writable(Path(summary))
    against: str = getattr(arguments, "against", None) or ""
    old = documents.read_json(Path(against)) if against else None
    baseline = documents.read_json(Path(config.root) / config.baseline) if config.baseline and not old else None

    if arguments.command == "kinks":
        from relucheck.gate.run import kink_laws

        # the command prints kinks and judges nothing, so neither expected failures nor a convention may play a part
        config = dataclasses.replace(config, laws=kink_laws(), expected=(), convention="clarke")
    results = [verdict.as_dict() for verdict in _verdicts(arguments, config)]
    imports = [result for result in results if result["law"] == IMPORT and result["outcome"] == "failed"]
    compared: list[str] = []
    changes: list[str] = []
    incomparable: documents.ReportError | None = None
    for body, name in ((old, against), (baseline, config.baseline)):
        if body is not None:
            try:
                changes = drift.differences(body, results, name)
            except documents.ReportError as error:
                incomparable = error
                continue
            was = ", ".join(f"{key} {value}" for key, value in body["versions"].items())
            compared = [f"{len(changes)} differences from {name} ({was})", *(f"  {line}" for line in changes)]
    figures = [] if arguments.plot is None else cards.draw_cards(results, Path(arguments.plot))
    # write files before printing: the reader of a pipe may close it at the first line
    writes = [
        functools.partial(documents.write_report, Path(name), results, config.targets, changes, figures) for name in reports
    ]
    if table is not None:
        writes.append(functools.partial(documents.write_report, Path(table), results, config.targets))
    if summary:
        writes.append(functools.partial(documents.append_summary, Path(summary), results, config.targets, changes))
    unwritten: list[documents.UnwritableReport] = []
    for write in writes:
        try:
            write()
        except documents.UnwritableReport as error:
            unwritten.append(error)
    updated = adoption.update(Path.cwd(), results) if config.update else ""
    _show(arguments, results, imports)
    if updated:
        print(updated)
    for line in compared:
        print(line)
    if unwritten:
        raise documents.UnwritableReport("; ".join(map(str, unwritten)))
    if imports:
        return MISSING
    if incomparable is not None:
        raise incomparable
    failed = arguments.command == "check" and any(result["outcome"] == "failed" for result in results)
    return FAILED if failed or changes else OK


def _config(arguments: argparse.Namespace) -> Any:
    from relucheck.gate import config as gate_config

    options = {name: getattr(arguments, name, None) for name in gate_config.OPTIONS}
    config = gate_config.merged(Path.cwd(), options, Path.cwd())
    if not config.targets:
        raise gate_config.ConfigError(
            "no target was given; name a module to check, or set targets under [tool.relucheck] in pyproject.toml"
        )
    return config


def _verdicts(arguments: argparse.Namespace, config: GateConfig) -> list[Verdict]:
    """Check all items, in processes of their own or, without isolation, in this one."""
    if config.isolate is False or arguments.no_isolate:
        from relucheck.gate.run import Gate

        if arguments.processes is not None:
            raise SettingsError(
                f"--processes={arguments.processes}: without isolation there are no such processes; leave out --processes, "
                "or remove --no-isolate and isolate = false"
            )

        gate = Gate(config)
        return [gate.run(item) for item in gate.items()]
    from relucheck.gate.workers import Workers

    with Workers(config, arguments.processes) as workers:
        return workers.verdicts(workers.items())


def _show(arguments: argparse.Namespace, results: list[dict[str, Any]], imports: list[dict[str, Any]]) -> None:
    """Print the results of a run of the gate.

    For ``check`` these are failures, matrix and kink table, for ``kinks`` the kink table.
    """
    from relucheck.gate.report import annotations, diagnoses, tables

    rows = tables.kink_table(results)
    terminal = sys.stdout.isatty()
    columns = width()
    if arguments.command == "kinks":
        for result in imports:
            print(result["message"], file=sys.stderr)
        sys.stdout.write(tables.render_kinks(rows, columns, terminal))
        return
    faults = diagnoses.diagnose(results)
    sys.stdout.write(diagnoses.shown(faults, columns, whole=arguments.verbose))
    if not arguments.quiet:
        sys.stdout.write(tables.render_matrix(results, columns, terminal))
        if rows:
            sys.stdout.write(tables.render_kinks(rows, columns, terminal))
    counts = tables.counts(results)
    print(", ".join(f"{number} {outcome}" for outcome, number in counts.items() if number))
    if annotations.on_github():
        sys.stdout.write(annotations.annotated(faults))
