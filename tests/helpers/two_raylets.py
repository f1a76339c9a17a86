"""A Ray cluster of two nodes on this machine, one CPU each, that the workers of pytest-xdist share.

The process of this module has the cluster. It starts with the first worker that asks, and ends when no process is left that
asked, also if they were killed. Ray's sockets need a short path, so they lie in /tmp and not below pytest's folder.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

#: Seconds for two raylets to start on a busy machine.
_START_SECONDS = 90.0


@contextlib.contextmanager
def connected(shared: Path) -> Iterator[None]:
    """Connect this process to the cluster of a folder, which is started if there is none.

    A connection that exists already is used, and stays.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    users = shared / "users"
    users.mkdir(parents=True, exist_ok=True)
    mine = users / str(os.getpid())
    mine.touch()
    with contextlib.suppress(FileExistsError), open(shared / "started", "x"):
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        server = [sys.executable, __file__, str(shared)]
        # a shell's child, because this process may end before the others that use the cluster
        subprocess.run(["sh", "-c", f'"$@" > "{shared}/log" 2>&1 &', "sh", *server], env=environment, check=True)
    try:
        ray.init(_address(shared), log_to_driver=False, logging_level="ERROR")
        yield
    finally:
        ray.shutdown()
        mine.unlink()


def _address(shared: Path) -> str:
    last = time.monotonic() + _START_SECONDS
    while not (shared / "address").exists():
        assert time.monotonic() < last, (shared / "log").read_text()
        time.sleep(0.1)
    return (shared / "address").read_text()


def _serve(shared: Path) -> None:
    folder = tempfile.mkdtemp(prefix="rr-", dir="/tmp")
    os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_TMPDIR": folder, "OMP_NUM_THREADS": "1"}
    os.environ |= {"RAY_worker_niceness": "0"}  # Ray's 15 would let other tests take the time of its workers
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    try:
        cluster.add_node(**node)
        temporary = shared / "address.tmp"
        temporary.write_text(cluster.address)
        temporary.rename(shared / "address")
        while any(Path(f"/proc/{user.name}").exists() for user in (shared / "users").iterdir()):
            time.sleep(0.2)
    finally:
        cluster.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    _serve(Path(sys.argv[1]))
