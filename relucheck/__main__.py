"""The ``relucheck`` command.

``relucheck check TARGET`` and ``relucheck kinks TARGET`` run the gate without pytest (``relucheck.gate.run``).
``relucheck reproduce SCENARIO`` runs a published experiment (``relucheck.reproduction.run``).
``relucheck claims`` says what results decide about the published claims (``relucheck.reproduction.stored``).
``relucheck kernels`` reports how a device rounds the products of these experiments (``relucheck.reproduction.kernels``).

Exit codes:

* 0: nothing failed.
* 1: a law failed, an expected failure no longer fails, the kink table differs from the older one, or a comparison is void
  because its control differed.
* 2: the command line, the configuration, a kink table to compare with, or a results folder cannot be used.
* 3: a target does not import or holds no activations, data, a device, a package or a cluster is missing, or the device has
  too little memory.
* 4: a file cannot be written or read, or belongs to something else.
* 70: a bug in relucheck.
* 130: interrupted.

A closed output pipe (``relucheck check TARGET | head``) does not change the exit code.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from relucheck import __version__
from relucheck.errors import BROKEN, FAILED, INTERRUPTED, MISSING, OK, UNWRITABLE, USAGE, RelucheckError, SettingsError

if TYPE_CHECKING:
    from relucheck.gate.config import GateConfig
    from relucheck.gate.verdicts import Verdict


def _scenarios() -> str:
    from relucheck.reproduction import TITLES

    return "\n".join(["scenarios:", *(f"  {name}  {title}" for name, title in TITLES.items())])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="relucheck",
        description="Check what autodiff does at the kinks of activation functions, such as ReLU at 0.",
        epilog="exit codes: 0 nothing failed; 1 a law failed, kinks differ from an older table, or a control differed; "
        "2 invalid command line or configuration; 3 a target does not import, or data, a package, a device, a cluster or "
        "memory is missing; "
        "4 a file cannot be written or read, or belongs to something else; 70 a bug in relucheck; 130 interrupted",
    )
    parser.add_argument("--version", action="version", version=f"relucheck {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
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
    check.add_argument("--quiet", action="store_true", help="print failures and counts only")
    kinks.add_argument(
        "--against",
        metavar="OLD.json",
        help="list the differences from an older table; the exit code is 1 if there are any",
    )
    kinks.add_argument("--json", metavar="FILE", help="write the table to FILE, for a later --against")
    text = "run a published experiment and write its results and a report to a folder"
    reproduce = commands.add_parser("reproduce", help=text)
    reproduce.formatter_class = argparse.RawDescriptionHelpFormatter
    reproduce.description = (
        "Run a published experiment and write its results and a report to a folder.\n"
        "The same command, given again, continues an interrupted run; finished parts\n"
        "do not run again."
    )
    reproduce.epilog = _scenarios()
    reproduce.add_argument("scenario", metavar="SCENARIO", help="one of the scenarios listed below")
    reproduce.add_argument(
        "--scale",
        metavar="NAME",
        help="full (as published; meant for CUDA), cpu (fewer seeds; minutes to hours) or smoke (seconds); default: full "
        "on CUDA, else cpu",
    )
    reproduce.add_argument(
        "--data-root",
        metavar="ROOT",
        help="data folder, which holds MNIST/ and FashionMNIST/; default: $RELUCHECK_DATA",
    )
    reproduce.add_argument("--out", metavar="FOLDER", help="results folder; default: relucheck-results/SCENARIO-SCALE")
    reproduce.add_argument("--device", metavar="NAME", help="cpu or cuda; default: cuda if it is available, else cpu")
    reproduce.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="NAME",
        help="run only these parts of the scenario: the name of a part, a glob pattern of names, or an arithmetic such as "
        "bfloat16; published is the arithmetic that gives the published counts of hits (repeatable). Names and patterns "
        "that end in -nudges select the nudges of trainings, which run only then",
    )
    reproduce.add_argument(
        "--executor",
        metavar="NAME",
        help="how the networks of one seed are trained. forking: one network after the other, each with nn.Linear; they "
        "share the steps that are bitwise equal. stacked: all of them at once, in batched matrix products (on CUDA, 16-bit "
        "networks use one nn.Linear each). The two round differently, so the number of hits depends on the choice. "
        "Default: forking on the CPU, stacked on CUDA",
    )
    reproduce.add_argument(
        "--processes",
        type=int,
        metavar="N",
        help="run N units at once, with one thread each; default: one for each core, on Ray as many as there is room for",
    )
    reproduce.add_argument(
        "--on",
        default="local",
        metavar="BACKEND",
        help="local (processes of this machine; default) or ray (a cluster of machines that share the results folder; "
        'needs pip install "relucheck[ray]")',
    )
    reproduce.add_argument(
        "--address",
        metavar="HOST:PORT",
        help="address of the Ray cluster, or auto for the one that runs on this machine; default: $RAY_ADDRESS, else a "
        "Ray that starts on this machine and ends with the command",
    )
    reproduce.add_argument(
        "--gpus-per-unit",
        type=float,
        metavar="N",
        help="GPUs that Ray reserves for each unit on CUDA; with a fraction, units share a GPU; default: 1",
    )
    reproduce.add_argument(
        "--report-only",
        action="store_true",
        help="run nothing; write the report on what the folder of --out has finished, on any machine",
    )
    reproduce.add_argument("--quiet", action="store_true", help="show no progress")
    text = "list the published claims, and what finished results decide about them"
    claims = commands.add_parser("claims", help=text, description=f"{text[0].upper()}{text[1:]}. Nothing is run.")
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
    text = "report how a device rounds the matrix products and convolutions of the published experiments"
    kernels = commands.add_parser(
        "kernels",
        help=text,
        description=f"{text[0].upper()}{text[1:]}: the kernels by name, the emulation that each one equals bit for bit, "
        "and the outputs that are exactly 0. On CUDA, every state of the switches for TF32 and 16-bit reductions is tried.",
    )
    kernels.add_argument("--device", metavar="NAME", help="cpu or cuda; default: cuda if it is available, else cpu")
    kernels.add_argument("--dtypes", metavar="NAMES", help="dtypes, separated by commas; default: all four")
    kernels.add_argument("--out", metavar="FOLDER", help="write the report to FOLDER as Markdown and JSON")
    kernels.add_argument("--quiet", action="store_true", help="show no progress")
    return parser


def _config(arguments: argparse.Namespace) -> Any:
    from relucheck.gate import config as gate_config

    options = {name: getattr(arguments, name, None) for name in gate_config.OPTIONS}
    config = gate_config.merged(Path.cwd(), options, Path.cwd())
    if not config.targets:
        raise gate_config.ConfigError(
            "no target was given; name a module to check, or set targets under [tool.relucheck] in pyproject.toml"
        )
    return config


def _run(arguments: argparse.Namespace) -> int:
    from relucheck.gate import drift
    from relucheck.gate import report as gate_report
    from relucheck.gate.verdicts import IMPORT
    from relucheck.results import files

    config = _config(arguments)
    for name in getattr(arguments, "report", []):
        gate_report.check_file(Path(name), "--report")
    table: str | None = getattr(arguments, "json", None)
    if table is not None:
        gate_report.check_file(Path(table), "--json", (".json",))
    summary = os.environ.get("GITHUB_STEP_SUMMARY") if arguments.command == "check" else None
    if summary:
        files.check_writable(Path(summary))
    against: str = getattr(arguments, "against", None) or ""
    old = gate_report.read_json(Path(against)) if against else None
    baseline = gate_report.read_json(Path(config.root) / config.baseline) if config.baseline and not old else None

    if arguments.command == "kinks":
        from relucheck.gate.run import kink_laws

        # the command prints kinks and judges nothing, so neither expected failures nor a convention may play a part
        config = dataclasses.replace(config, laws=kink_laws(), expected=(), convention="clarke")
    results = [verdict.as_dict() for verdict in _verdicts(arguments, config)]
    imports = [result for result in results if result["law"] == IMPORT and result["outcome"] == "failed"]
    compared: list[str] = []
    changes: list[str] = []
    incomparable: gate_report.ReportError | None = None
    for body, name in ((old, against), (baseline, config.baseline)):
        if body is not None:
            try:
                changes = drift.differences(body, results, name)
            except gate_report.ReportError as error:
                incomparable = error
                continue
            was = ", ".join(f"{key} {value}" for key, value in body["versions"].items())
            compared = [f"{len(changes)} differences from {name} ({was})", *(f"  {line}" for line in changes)]
    # write files before printing: the reader of a pipe may close it at the first line
    if table is not None:
        files.write_atomically(Path(table), gate_report.as_json(results, config.targets))
    for name in getattr(arguments, "report", []):
        gate_report.write_report(Path(name), results, config.targets, changes)
    if summary:
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
    counts = gate_report.counts(results)
    print(", ".join(f"{number} {outcome}" for outcome, number in counts.items() if number))


def _reproduce(arguments: argparse.Namespace) -> int:
    from relucheck.reproduction.run import report, reproduce
    from relucheck.results.tables import render

    def say(line: str) -> None:
        if not arguments.quiet:
            print(line, file=sys.stderr, flush=True)

    progress = not arguments.quiet
    if arguments.report_only:
        reported = report(arguments.scenario, _folder_alone(arguments), root=arguments.data_root, progress=progress)
    else:
        reported = reproduce(
            arguments.scenario,
            arguments.scale,
            Path(arguments.out) if arguments.out else None,
            root=arguments.data_root,
            device=arguments.device,
            only=arguments.only,
            executor=arguments.executor,
            processes=arguments.processes,
            on=arguments.on,
            address=arguments.address,
            gpus_per_unit=arguments.gpus_per_unit,
            progress=progress,
            say=say,
        )
    width = _width()
    sys.stdout.write(render(*reported.shown(width), width=width, color=sys.stdout.isatty()))
    print(f"report: {reported.report}")
    if reported.missing:
        print(f"not run (yet): {', '.join(reported.missing)}")
    return FAILED if reported.void else OK


def _folder_alone(arguments: argparse.Namespace) -> Path:
    """The folder of --report-only, which takes no options about running.

    Raises:
        ReproductionError: without a folder, and with such an option.
    """
    from relucheck.reproduction.folder import ReproductionError

    unset = {"only": [], "on": "local"}
    options = ("scale", "device", "only", "executor", "processes", "on", "address", "gpus_per_unit")
    given = [f"--{name.replace('_', '-')}" for name in options if getattr(arguments, name) != unset.get(name)]
    if given or not arguments.out:
        wrong = (
            f"with {given[0]}, which is for runs; leave {given[0]} out" if given else "without a folder; name it with --out"
        )
        raise ReproductionError(f"--report-only {wrong}")
    return Path(arguments.out)


def _claims(arguments: argparse.Namespace) -> int:
    from relucheck.gate import report as gate_report
    from relucheck.reproduction.report.deciding.page import page, shown
    from relucheck.reproduction.stored import decide_stored, default_results, read_folders
    from relucheck.results.store import write_atomically
    from relucheck.results.tables import render

    if arguments.report is not None:
        gate_report.check_file(Path(arguments.report), "--report", (".md",))
    if arguments.results:
        found = read_folders(map(Path, arguments.results))
    else:
        found = default_results(lambda line: print(f"relucheck: {line}", file=sys.stderr))
    decisions = decide_stored(found)
    if arguments.report is not None:
        write_atomically(Path(arguments.report), page(decisions))
    print(f"results: {', '.join(str(one.folder) for one in found) or 'none; name folders with --results'}")
    sys.stdout.write(render(*shown(decisions), width=_width(), color=sys.stdout.isatty()))
    return OK


def _kernels(arguments: argparse.Namespace) -> int:
    from relucheck.reproduction.kernels import report
    from relucheck.reproduction.kernels.run import kernels
    from relucheck.results.tables import render

    dtypes = [] if arguments.dtypes is None else [name.strip() for name in arguments.dtypes.split(",")]
    if not all(dtypes):
        raise SettingsError(
            f"--dtypes {arguments.dtypes!r}: a name is missing; name dtypes with one comma between two, for example "
            "float32,bfloat16"
        )
    folder = Path(arguments.out) if arguments.out else None
    found, files = kernels(arguments.device, dtypes, folder, progress=not arguments.quiet)
    sys.stdout.write(render(*report.shown(found), width=_width(), color=sys.stdout.isatty()))
    for file in files:
        print(f"report: {file}")
    return OK


def _width() -> int:
    import shutil

    return max(80, shutil.get_terminal_size((120, 24)).columns)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the ``relucheck`` command.

    Args:
        argv: the arguments without the program's name; those of the process if None.

    Returns:
        The exit code, one of those in the module's docstring.
    """
    from relucheck.gate.isolation import interrupts
    from relucheck.results import broken_pipes

    try:
        with broken_pipes.tolerated():
            parser = _parser()
            arguments = parser.parse_args(argv)
            if arguments.command is None:
                parser.print_help(sys.stderr)
                return USAGE
            try:
                with interrupts.kept():
                    return _main(arguments)
            except KeyboardInterrupt as problem:
                more = (
                    "; run the same command again to continue from the last checkpoint"
                    if arguments.command == "reproduce"
                    else ""
                )
                print(f"relucheck: {str(problem) or f'interrupted{more}'}", file=sys.stderr)
                return INTERRUPTED
    except OSError as error:
        return _unwritable(error)


def _unwritable(error: OSError) -> int:
    print(f"relucheck: a file cannot be read or written: {error}; finished results are kept", file=sys.stderr)
    return UNWRITABLE


def _main(arguments: argparse.Namespace) -> int:
    try:
        commands = {"reproduce": _reproduce, "claims": _claims, "kernels": _kernels}
        code = commands.get(arguments.command, _run)(arguments)
        sys.stdout.flush()  # here, where an error has its exit code
        return code
    except RelucheckError as error:
        print(f"relucheck: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        return _unwritable(error)
    except Exception:
        traceback.print_exc()
        print("relucheck: a bug in relucheck, please report it; finished results are kept", file=sys.stderr)
        return BROKEN


if __name__ == "__main__":
    sys.exit(main())
