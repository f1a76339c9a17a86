"""Connect this process to Ray: to a cluster, or to a Ray that starts on this machine."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any, Final

from relucheck.errors import SettingsError, error_text
from relucheck.extras import require
from relucheck.work.here import cores
from relucheck.work.unit import WorkError

require("work on Ray", "ray")

import ray  # noqa: E402

#: The environment variable that names the address if no argument does.
ADDRESS_VARIABLE: Final = "RAY_ADDRESS"
#: The address that always starts a Ray on this machine.
LOCAL: Final = "local"
#: The address of a Ray that runs on this machine already.
AUTO: Final = "auto"
#: Seconds that a machine has to accept a connection.
_ACCEPT_SECONDS: Final = 2.0
#: Seconds that the cluster has to answer, with the import of Ray; and without it, where that took most of the time.
_ANSWER_SECONDS: Final = 8.0
_LEAST_SECONDS: Final = 3.0
#: Bytes of Ray's shared memory on this machine. Units exchange small messages only.
_OBJECT_STORE: Final = 100 * 2**20


@contextlib.contextmanager
def connected(address: str | None = None, *, cpus: int | None = None) -> Iterator[None]:
    """Connect this process to Ray in a block.

    A connection that exists already is used, and stays.

    Args:
        address: "HOST:PORT" of a cluster of which this machine is a node, "auto" for the Ray that runs on this machine, or
            "local", which starts a Ray on this machine for the time of the block. None means the environment variable
            RAY_ADDRESS, else "local".
        cpus: the number of CPUs of a Ray that is started here. None means the number of cores.

    Raises:
        SettingsError: for an address of another form.
        WorkError: nobody answers at the address, this machine is no node of the cluster, or Ray cannot start.
    """
    if ray.is_initialized():
        yield
        return
    address = address or os.environ.get(ADDRESS_VARIABLE) or LOCAL
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    if address == LOCAL:
        options |= {"num_cpus": cpus or cores(), "include_dashboard": False, "object_store_memory": _OBJECT_STORE}
    elif address != AUTO:
        _check_answer(address)
    with _quiet():
        try:
            ray.init(address, **options)
        except Exception as error:  # Ray raises RuntimeError, ConnectionError, ValueError and classes of its own
            raise WorkError(_refused(address, error_text(error.__cause__ or error, 500))) from error
        try:
            yield
        finally:
            ray.shutdown()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep Ray from printing to standard output that a worker died; backends say so themselves.

    Ray has no option for it.
    """
    worker: Any = ray._private.worker
    before = getattr(worker, "_worker_logs_enabled", True)
    try:
        worker._worker_logs_enabled = False
        yield
    finally:
        worker._worker_logs_enabled = before


def _check_answer(address: str) -> None:
    """Refuse an address where no cluster answers.

    Ray itself would wait for 40 seconds, in code that control-C does not interrupt.
    """
    host, _, port = address.rpartition(":")
    if not host or "/" in address or not port.isdecimal() or not 0 < int(port) < 65536:
        raise SettingsError(
            f"address {address!r}: must be {AUTO}, {LOCAL} or HOST:PORT as 'ray start --head' prints it (not that of Ray's "
            f"dashboard); it is --address, else ${ADDRESS_VARIABLE}"
        )
    nobody = f"no Ray cluster answers at {address}; start one with 'ray start --head', and give its HOST:PORT"
    try:
        socket.create_connection((host.strip("[]"), int(port)), _ACCEPT_SECONDS).close()
    except OSError as error:
        raise WorkError(f"{nobody} ({error_text(error)})") from error
    # a process of its own can be ended; its first line says that Ray is imported, which takes seconds on a busy machine
    last = time.monotonic() + _ANSWER_SECONDS
    script = "import sys, ray; print(flush=True); ray.init(sys.argv[1], log_to_driver=False)"
    with subprocess.Popen(
        [sys.executable, "-c", script, address], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as asking:
        assert asking.stdout is not None
        asking.stdout.readline()
        try:
            _, said = asking.communicate(timeout=max(_LEAST_SECONDS, last - time.monotonic()))
            answered = True
        except subprocess.TimeoutExpired:
            asking.kill()
            _, said = asking.communicate()
            answered = False
    if b"Unauthenticated" in said:
        raise WorkError(
            f"the Ray cluster at {address} wants a token that this process lacks: set RAY_AUTH_MODE=token, and copy "
            "~/.ray/auth_token from the machine that started the cluster"
        )
    if not answered:
        raise WorkError(f"{nobody} (something listens there, and does not answer)")
    if asking.returncode:
        raise WorkError(_refused(address, _last_line(said.decode(errors="replace"))))


def _refused(address: str, why: str) -> str:
    if address == LOCAL:
        return f"Ray cannot start on this machine: {why}"
    return (
        f"this process cannot join the Ray cluster at {address}: {why}; the machine has to be a node of the cluster "
        "('ray start --address=HOST:PORT'), with the same Python and Ray"
    )


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""
