"""``relucheck kinks TARGET`` and ``relucheck check TARGET``: the gate without pytest; ``relucheck reproduce SCENARIO``: the
published experiments. The work is :mod:`relucheck.gate.run`'s and :mod:`relucheck.reproduction.run`'s.

Exit codes: 0 nothing failed; 1 a law failed, an expected failure is stale, the kink table drifted, or a comparison is void,
as its control differed; 2 the command line, the configuration, a kink table to compare with or a results folder cannot be
used; 3 a target does not import or holds no activations; data or a device is missing, or has too little memory; 4 a file
cannot be written, or a checkpoint belongs to something else; 130 interrupted. A reader that stops reading changes none.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from relucheck.errors import FAILED, INTERRUPTED, MISSING, OK, UNWRITABLE, RelucheckError


class _Parser(argparse.ArgumentParser):
    """A parser whose epilog is made when help is asked for, as it takes an import of torch."""

    more: Callable[[], str] | None = None

    def format_help(self) -> str:
        if self.more is not None:
            self.epilog = self.more()
        return super().format_help()


def _scenarios() -> str:
    from relucheck.reproduction.cost import lines
    from relucheck.reproduction.experiments.mlp import EXTERNAL, SCENARIOS

    titles = {**{name: found.title for name, found in SCENARIOS.items()}, **{n: e.title for n, e in EXTERNAL.items()}}
    return "\n".join(
        [
            "scenarios:",
            *(f"  {name}  {title}" for name, title in sorted(titles.items())),
            "",
            "comparisons of scale cpu in the order in which they run, and what each takes on one CPU thread (from measured",
            "steps, good to a factor of two); two processes with other --only share the work on two cores:",
            *lines(),
        ]
    )


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="relucheck",
        description="What autodiff does at the kinks of activations.",
        epilog="exit codes: 0 nothing failed; 1 a law failed, kinks drifted or a control differed; 2 usage; 3 a target "
        "does not import, data, device or memory is missing; 4 a file cannot be written or does not fit; 130 interrupted",
    )
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
    reproduce.more = _scenarios
    reproduce.add_argument("scenario", metavar="SCENARIO", help="one of those listed below")
    reproduce.add_argument(
        "--scale",
        metavar="NAME",
        help="full (for CUDA), cpu (times below) or smoke (seconds); default: full on CUDA, else cpu",
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
        help="run these comparisons alone: a name, else a glob or an arithmetic (repeatable)",
    )
    reproduce.add_argument(
        "--executor",
        metavar="NAME",
        help="forking (each member by itself, nn.Linear's own kernels) or stacked (all members in one baddbmm, quick on "
        "CUDA; 16-bit ones there in one nn.Linear each); exact zeros depend on it; default: forking on the CPU, else "
        "stacked",
    )
    reproduce.add_argument("--quiet", action="store_true", help="no progress")
    return parser


def _config(arguments: argparse.Namespace) -> Any:
    from relucheck.gate import config as gate_config

    settings = dict(vars(gate_config.read(Path.cwd())))
    if arguments.targets:
        settings["targets"] = tuple(arguments.targets)
    for name in ("dtypes", "devices", "laws"):
        value = getattr(arguments, name, None)
        if value:
            settings[name] = tuple(part.strip() for part in value.split(","))
    for name in ("convention", "fail_on", "time_limit"):
        value = getattr(arguments, name, None)
        if value is not None:
            settings[name] = value
    if getattr(arguments, "compile", False):
        settings["compile"] = True
    if arguments.command == "kinks":
        # the table comes with the subgradient law; what is expected to fail is the gate's business
        settings.update(laws=("subgradient",), expected=(), convention="clarke")
    config = gate_config.GateConfig(**settings)
    if not config.targets:
        raise gate_config.ConfigError("no target: name one, or set targets under [tool.relucheck] in pyproject.toml")
    return config


def _run(arguments: argparse.Namespace) -> int:
    from relucheck.gate import report as gate_report
    from relucheck.results import files

    config = _config(arguments)
    for name in getattr(arguments, "report", []):
        if Path(name).suffix not in (".json", ".md"):
            raise gate_report.ReportError(f"--report {name}: a report is .json or .md; choose one of these suffixes")
    against: str = getattr(arguments, "against", None) or ""
    old = gate_report.read_json(Path(against)) if against else None
    baseline = gate_report.read_json(Path(config.root) / config.baseline) if config.baseline and not old else None

    from relucheck.gate.run import Gate

    gate = Gate(config)
    results = [gate.run(item).as_dict() for item in gate.items()]
    imports = [result for result in results if result["law"] == "import" and result["outcome"] == "failed"]
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
    from relucheck.reproduction.scenario import Scenario

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
        progress=not arguments.quiet,
        say=say,
    )
    if made.text is not None:
        print(made.text)
        return OK
    from relucheck.reproduction.report.tables import LEGEND, rich_outcomes, rich_tables
    from relucheck.results.tables import render

    assert isinstance(made.scenario, Scenario)
    width = _width()
    shown = [*rich_tables(made.scenario.name, made.cells, made.scenario.published.get(made.scale, {}), width), LEGEND]
    shown += rich_outcomes((*made.published, *made.checked), made.claims)
    sys.stdout.write(render(*shown, width=width, color=sys.stdout.isatty()))
    print(f"report: {made.folder / 'report.md'}")
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


if __name__ == "__main__":
    sys.exit(main())
