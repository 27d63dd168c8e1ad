"""A real Dask cluster on this machine: a scheduler and workers, each a process of its own."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

DASK = str(Path(sys.executable).with_name("dask"))
REPOSITORY = Path(__file__).parents[2]


class Running:
    """The cluster at `address`, whose workers can be killed; those of `nannies` are started anew by them."""

    def __init__(self, folder: Path, workers: int = 1, nannies: bool = False) -> None:
        self._folder, self._nannies = folder, nannies
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "DASK_DISTRIBUTED__LOGGING__DISTRIBUTED": "error"}
        environment |= {"DASK_DISTRIBUTED__WORKER__DAEMON": "false"}
        self._environment = environment
        self.scheduler = self._start("scheduler", "--host", "tcp://127.0.0.1", "--port", "0", "--no-dashboard")
        self.address = self._address()
        self.workers = [self.add_worker() for _ in range(workers)]

    def _start(self, *arguments: str) -> subprocess.Popen[bytes]:
        log = (self._folder / f"{arguments[0]}-{time.monotonic_ns()}.log").open("wb")
        with log:
            return subprocess.Popen(
                [DASK, *arguments, "--scheduler-file", str(self._folder / "scheduler.json")],
                cwd=self._folder,
                env=self._environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _address(self) -> str:
        import json

        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with suppress(OSError, ValueError):
                return str(json.loads((self._folder / "scheduler.json").read_bytes())["address"])
            time.sleep(0.05)
        raise TimeoutError("the Dask scheduler did not start")

    def add_worker(self) -> subprocess.Popen[bytes]:
        nanny = "--nanny" if self._nannies else "--no-nanny"
        return self._start("worker", nanny, "--nthreads", "1", "--no-dashboard", "--local-directory", str(self._folder))

    def kill_worker(self, number: int = 0) -> None:
        """SIGKILL to a worker (with a nanny: to the process that works, not to the nanny)."""
        process = self.workers[number]
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        victims = [int(child) for child in children if self._works(int(child))] if self._nannies else [process.pid]
        for victim in victims:
            with suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)

    @staticmethod
    def _works(pid: int) -> bool:
        with suppress(OSError):
            return b"resource_tracker" not in Path(f"/proc/{pid}/cmdline").read_bytes()
        return False

    def stop(self) -> None:
        for process in (*self.workers, self.scheduler):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextmanager
def running(folder: Path, workers: int = 1, nannies: bool = False) -> Iterator[Running]:
    """A cluster for the time of a block."""
    folder.mkdir(parents=True, exist_ok=True)
    cluster = Running(folder, workers, nannies)
    try:
        yield cluster
    finally:
        cluster.stop()
