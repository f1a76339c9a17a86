"""The ``relucheck`` command, with the commands of ``relucheck.commands``.

Exit codes:

* 0: nothing failed.
* 1: a law failed, an expected failure no longer fails, the kink table differs from the older one, the wiring of a model is
  faulty, or a comparison is void because its control differed.
* 2: the command line, the configuration, a model, a kink table to compare with, or a results folder cannot be used.
* 3: a target does not import or holds no activations, data, a device, a package or a cluster is missing, or the device has
  too little memory.
* 4: a file cannot be written or read, or belongs to something else.
* 70: a bug in relucheck.
* 130: interrupted.

A closed output pipe (``relucheck check TARGET | head``) does not change the exit code.
"""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Sequence

from relucheck import __version__
from relucheck.commands import claims, gate, kernels, model, reproduce
from relucheck.errors import BROKEN, INTERRUPTED, UNWRITABLE, USAGE, RelucheckError


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="relucheck",
        description="Check what autodiff does at the kinks of activation functions, such as ReLU at 0.",
        epilog="exit codes: 0 nothing failed; 1 a law failed, kinks differ from an older table, the wiring of a model is "
        "faulty, or a control differed; 2 invalid command line, configuration or model; 3 a target does not import, or "
        "data, a package, a device, a cluster or memory is missing; 4 a file cannot be written or read, or belongs to "
        "something else; 70 a bug in relucheck; 130 interrupted",
    )
    parser.add_argument("--version", action="version", version=f"relucheck {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for module in (gate, model, reproduce, claims, kernels):
        module.add(commands)
    return parser


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
        code: int = arguments.run(arguments)
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
