"""``relucheck reproduce``: run a published experiment."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from relucheck.commands.terminal import show, width
from relucheck.errors import FAILED, OK


def add(commands: Any) -> None:
    """Describe the command to the parser."""
    reproduce = commands.add_parser(
        "reproduce",
        help="run a published experiment and write its results and a report to a folder",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=_scenarios(),
        description="Run a published experiment and write its results and a report to a folder.\n"
        "The same command, given again, continues an interrupted run; finished parts\n"
        "do not run again.",
    )
    reproduce.set_defaults(run=run)
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
        "share the steps that are bitwise equal. stacked: all of them at once, in batched matrix products; native "
        "16-bit products on CUDA, convolutional networks and seeds that hold out images are forked all the same. The two "
        "round differently, so the number of hits depends on the choice. Default: forking on the CPU, stacked on CUDA",
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


def run(arguments: argparse.Namespace) -> int:
    """Run the experiment, or only report on it, and print the report."""
    from relucheck.reproduction.run import report, reproduce

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
    show(reported.shown(width()))
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


def _scenarios() -> str:
    from relucheck.reproduction import TITLES

    return "\n".join(["scenarios:", *(f"  {name}  {title}" for name, title in TITLES.items())])
