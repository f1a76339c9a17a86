"""``relucheck kinks TARGET`` and ``relucheck check TARGET``: the gate without pytest; ``relucheck reproduce SCENARIO``: the
published experiments. The work is :mod:`relucheck.gate.run`'s and :mod:`relucheck.reproduction.run`'s.

Exit codes: 0 nothing failed; 1 a law failed, an expected failure is stale, the kink table drifted, or a comparison is void,
as its control differed; 2 the command line, the configuration, a kink table to compare with or a results folder cannot be
used; 3 a target does not import or holds no activations; data or a device is missing, or has too little memory; 4 a file
cannot be written or read, or belongs to something else; 70 an error of relucheck's own; 130 interrupted. A reader that
stops reading changes none.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from relucheck import __version__
from relucheck.errors import BROKEN, FAILED, INTERRUPTED, MISSING, OK, UNWRITABLE, RelucheckError


def _scenarios() -> str:
    from relucheck.reproduction import TITLES

    return "\n".join(["scenarios:", *(f"  {name}  {title}" for name, title in TITLES.items())])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="relucheck",
        description="What autodiff does at the kinks of activations.",
        epilog="exit codes: 0 nothing failed; 1 a law failed, kinks drifted or a control differed; 2 usage; 3 a target "
        "does not import, data, device or memory is missing; 4 a file cannot be written or does not fit; 70 an error of "
        "relucheck's own; 130 interrupted",
    )
    parser.add_argument("--version", action="version", version=f"relucheck {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in (
        ("check", "run the laws on the activations of TARGET"),
        ("kinks", "print the kink table of TARGET alone"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("targets", nargs="*", metavar="TARGET", help="module, module:attribute or .py file")
        command.add_argument("--dtypes", metavar="NAMES", help="separated by commas; default: all four")
        command.add_argument("--devices", metavar="NAMES", help="separated by commas; default: cpu")
        command.add_argument("--time-limit", type=float, metavar="SECONDS", help="per item; default 60")
    check, kinks = (commands.choices[name] for name in ("check", "kinks"))
    check.add_argument("--laws", metavar="NAMES", help="separated by commas; default: all")
    check.add_argument("--convention", help="clarke (default), minimum-norm, declared or reference")
    check.add_argument("--fail-on", help="error (default), or notice to fail on notices too")
    check.add_argument("--compile", action="store_true", help="check torch.compile of every activation (slow)")
    check.add_argument(
        "--report", action="append", default=[], metavar="FILE", help="write the verdicts to FILE.json or FILE.md"
    )
    check.add_argument("--quiet", action="store_true", help="print failures only")
    kinks.add_argument(
        "--against", metavar="OLD.json", help="list what differs from an older table; exit 1 where something does"
    )
    kinks.add_argument("--json", metavar="FILE", help="write the table to FILE.json, to compare against later")
    text = "run a published experiment into a folder and report on it; finished parts are not run again"
    reproduce = commands.add_parser("reproduce", help=text, description=text)
    reproduce.formatter_class = argparse.RawDescriptionHelpFormatter
    reproduce.epilog = _scenarios()
    reproduce.add_argument("scenario", metavar="SCENARIO", help="one of those listed below")
    reproduce.add_argument(
        "--scale",
        metavar="NAME",
        help="full (for CUDA), cpu (minutes to hours) or smoke (seconds); default: full on CUDA, else cpu",
    )
    reproduce.add_argument(
        "--data-root", metavar="ROOT", help="folder of MNIST/ and FashionMNIST/; default: $RELUCHECK_DATA"
    )
    reproduce.add_argument("--out", metavar="FOLDER", help="default: relucheck-results/SCENARIO-SCALE")
    reproduce.add_argument("--device", metavar="NAME", help="cpu or cuda; default: cuda where there is one")
    reproduce.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="NAME",
        help="run these parts alone: a name, else a glob or an arithmetic (repeatable)",
    )
    reproduce.add_argument(
        "--executor",
        metavar="NAME",
        help="how training members are computed. forking: each member by itself, with nn.Linear's own kernels. stacked: "
        "all members in one batched product, which is quick on CUDA (there 16-bit members take one nn.Linear each). How "
        "many pre-activations are exactly zero depends on it. Default: forking on the CPU, stacked elsewhere",
    )
    reproduce.add_argument(
        "--processes", type=int, metavar="N", help="work in N processes of one thread each; default: one for each core"
    )
    reproduce.add_argument("--quiet", action="store_true", help="no progress")
    return parser


def _config(arguments: argparse.Namespace) -> Any:
    from relucheck.gate import config as gate_config

    options = {name: getattr(arguments, name, None) for name in gate_config.OPTIONS}
    config = gate_config.merged(Path.cwd(), options, Path.cwd())
    if not config.targets:
        raise gate_config.ConfigError("no target: name one, or set targets under [tool.relucheck] in pyproject.toml")
    return config


def _run(arguments: argparse.Namespace) -> int:
    from relucheck.gate import report as gate_report
    from relucheck.gate.verdicts import IMPORT
    from relucheck.results import files

    config = _config(arguments)
    for name in getattr(arguments, "report", []):
        gate_report.check_name(Path(name), "--report")
    against: str = getattr(arguments, "against", None) or ""
    old = gate_report.read_json(Path(against)) if against else None
    baseline = gate_report.read_json(Path(config.root) / config.baseline) if config.baseline and not old else None

    from relucheck.gate.run import Gate, kink_laws

    if arguments.command == "kinks":
        # the table alone: what is expected to fail, and which subgradients are allowed, is the gate's business
        config = dataclasses.replace(config, laws=kink_laws(), expected=(), convention="clarke")
    gate = Gate(config)
    results = [gate.run(item).as_dict() for item in gate.items()]
    imports = [result for result in results if result["law"] == IMPORT and result["outcome"] == "failed"]
    compared: list[str] = []
    changes: list[str] = []
    incomparable: gate_report.ReportError | None = None
    for body, name in ((old, against), (baseline, config.baseline)):
        if body is not None:
            try:
                changes = gate_report.differences(body, results, name)
            except gate_report.ReportError as error:
                incomparable = error
                continue
            was = ", ".join(f"{key} {value}" for key, value in body["versions"].items())
            compared = [f"{len(changes)} differences from {name} ({was})", *(f"  {line}" for line in changes)]
    # files come before the first line of output: whoever reads it may stop reading
    if getattr(arguments, "json", None):
        files.write_atomically(Path(arguments.json), gate_report.as_json(results, config.targets))
    for name in getattr(arguments, "report", []):
        gate_report.write_report(Path(name), results, config.targets, changes)
    summary = os.environ.get("GITHUB_STEP_SUMMARY")
    if summary and arguments.command == "check":
        with open(summary, "a", encoding="utf-8") as file:
            file.write(gate_report.as_markdown(results, config.targets, changes))
    _show(arguments, results, imports)
    for line in compared:
        print(line)
    if imports:
        return MISSING
    if incomparable is not None:
        raise incomparable
    failed = arguments.command == "check" and any(result["outcome"] == "failed" for result in results)
    return FAILED if failed or changes else OK


def _show(arguments: argparse.Namespace, results: list[dict[str, Any]], imports: list[dict[str, Any]]) -> None:
    """Prints what a run of the gate gave: failures, the matrix and the kink table, or the kink table alone."""
    from relucheck.gate import report as gate_report

    rows = gate_report.kink_table(results)
    terminal = sys.stdout.isatty()
    width = _width()
    if arguments.command == "kinks":
        for result in imports:
            print(result["message"], file=sys.stderr)
        sys.stdout.write(gate_report.render_kinks(rows, width, terminal))
        return
    for result in results:
        if result["outcome"] == "failed":
            print(result["message"], end="\n\n")
    if not arguments.quiet:
        sys.stdout.write(gate_report.render_matrix(results, width, terminal))
        if rows:
            sys.stdout.write(gate_report.render_kinks(rows, width, terminal))
    found = gate_report.counts(results)
    print(", ".join(f"{number} {outcome}" for outcome, number in found.items() if number))


def _reproduce(arguments: argparse.Namespace) -> int:
    from relucheck.reproduction.run import reproduce
    from relucheck.results.tables import render

    def say(line: str) -> None:
        if not arguments.quiet:
            print(line, file=sys.stderr, flush=True)

    made = reproduce(
        arguments.scenario,
        arguments.scale,
        Path(arguments.out) if arguments.out else None,
        root=arguments.data_root,
        device=arguments.device,
        only=arguments.only,
        executor=arguments.executor,
        processes=arguments.processes,
        progress=not arguments.quiet,
        say=say,
    )
    width = _width()
    sys.stdout.write(render(*made.shown(width), width=width, color=sys.stdout.isatty()))
    print(f"report: {made.report}")
    if made.missing:
        print(f"not run (yet): {', '.join(made.missing)}")
    return FAILED if made.void else OK


def _width() -> int:
    import shutil

    return max(80, shutil.get_terminal_size((120, 24)).columns)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    from relucheck.gate.isolation import interrupts
    from relucheck.results import broken_pipes

    with broken_pipes.tolerated():
        arguments = _parser().parse_args(argv)
        try:
            with interrupts.kept():
                return _main(arguments)
        except KeyboardInterrupt as problem:
            more = "; the same command goes on from the last checkpoint" if arguments.command == "reproduce" else ""
            print(f"relucheck: {str(problem) or f'interrupted{more}'}", file=sys.stderr)
            return INTERRUPTED


def _main(arguments: argparse.Namespace) -> int:
    try:
        return _reproduce(arguments) if arguments.command == "reproduce" else _run(arguments)
    except RelucheckError as error:
        print(f"relucheck: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"relucheck: a file cannot be read or written: {error}; what is finished is kept", file=sys.stderr)
        return UNWRITABLE
    except Exception:
        traceback.print_exc()
        print("relucheck: an error that is relucheck's own; what is finished is kept; please report it", file=sys.stderr)
        return BROKEN


if __name__ == "__main__":
    sys.exit(main())
