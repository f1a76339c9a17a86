"""Processes that start in a moment, forked from a server that has imported torch and the gate, which takes 5 seconds.

The server is that of multiprocessing, which the gate's workers use, too. No thread of torch runs in it.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Collection, Mapping, Sequence
from multiprocessing.context import ForkServerContext
from pathlib import Path
from types import SimpleNamespace

import pytest

from relucheck.gate import workers
from relucheck.work import local


def context() -> ForkServerContext:
    """The context of multiprocessing whose processes are forked from the server."""
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(list(workers.PRELOADED))
    return found


def fork_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have relucheck.work.Local fork its processes from the server in this test, where it spawns them otherwise."""
    monkeypatch.setattr(local, "multiprocessing", SimpleNamespace(get_context=lambda method: context()))


def python(
    *arguments: str,
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
    unread: Collection[str] = (),
    timeout: float = 180,
) -> subprocess.CompletedProcess[str]:
    """``python -m MODULE ARGUMENTS`` or ``python -c TEXT``, with torch imported before.

    What depends on how an interpreter starts or ends needs a process of its own: which modules are imported, and what the
    last flush of the standard streams does. A command of the gate forks its workers from this process, because a fork
    server of its own would import torch anew.

    Args:
        arguments: ``-m`` or ``-c``, and what follows.
        cwd: where it runs; None means the current folder.
        environment: all of its environment variables; None means those of this process.
        unread: which of "stdout" and "stderr" nobody reads: pipes that are closed at the other end. They are "" then.
        timeout: in seconds.

    Raises:
        subprocess.TimeoutExpired: it takes longer; it is killed then.
    """
    with tempfile.TemporaryDirectory() as folder:
        said = [Path(folder, name) for name in ("stdout", "stderr")]
        for path in said:
            path.touch()
        place = str(cwd or Path.cwd())
        variables = dict(os.environ if environment is None else environment)
        files = [None if path.name in unread else str(path) for path in said]
        process = context().Process(target=_main, args=(arguments, place, variables, _paths(), *files))
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(arguments, timeout)
        stdout, stderr = (path.read_text(encoding="utf-8") for path in said)
    return subprocess.CompletedProcess(arguments, process.exitcode or 0, stdout, stderr)


@functools.cache
def _paths() -> tuple[str, ...]:
    """Where a new interpreter looks for modules; this process may look elsewhere, too."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", "import sys; print(*sys.path[1:], sep='\\n')"]
    return tuple(
        subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()
    )


def _main(
    arguments: tuple[str, ...],
    cwd: str,
    environment: Mapping[str, str],
    paths: Sequence[str],
    stdout: str | None,
    stderr: str | None,
) -> None:
    # a server that was started in the background of a shell ignores control-C
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    for name, number, path in (("stdout", 1, stdout), ("stderr", 2, stderr)):
        if path is None:
            reading, writing = os.pipe()
            os.close(reading)
            os.dup2(writing, number)
            os.close(writing)
        else:
            with open(path, "wb") as file:
                os.dup2(file.fileno(), number)
        stream = open(number, "w", encoding="utf-8", closefd=False)  # noqa: SIM115  it is open as long as the process runs
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    sys.path[:] = [cwd, *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep)), *paths]
    workers._context = functools.partial(multiprocessing.get_context, "fork")
    kind, what, *rest = arguments
    sys.argv[:] = ["-c" if kind == "-c" else what, *rest]
    if kind == "-c":
        exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})
    else:
        runpy.run_module(what, run_name="__main__", alter_sys=True)
