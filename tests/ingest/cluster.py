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
        self.file = folder / "scheduler.json"
        self.file.unlink(missing_ok=True)
        self.scheduler = self._start("scheduler", "--host", "tcp://127.0.0.1", "--port", "0", "--no-dashboard")
        self.address = self._address()
        self.workers = [self.add_worker() for _ in range(workers)]

    def _start(self, *arguments: str) -> subprocess.Popen[bytes]:
        log = (self._folder / f"{arguments[0]}-{time.monotonic_ns()}.log").open("wb")
        with log:
            return subprocess.Popen(
                [DASK, *arguments, "--scheduler-file", str(self.file)],
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
                return str(json.loads(self.file.read_bytes())["address"])
            time.sleep(0.05)
        raise TimeoutError("the Dask scheduler did not start")

    def add_worker(self) -> subprocess.Popen[bytes]:
        nanny = "--nanny" if self._nannies else "--no-nanny"
        return self._start("worker", nanny, "--nthreads", "1", "--no-dashboard", "--local-directory", str(self._folder))

    def worker(self, number: int) -> int | None:
        """The process that works (with a nanny: not the nanny itself); None while it is being started anew."""
        nanny = self.workers[number].pid
        return next(iter(workers_of(nanny)), None) if self._nannies else nanny

    def stop(self) -> None:
        for process in (*self.workers, self.scheduler):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def workers_of(process: int) -> list[int]:
    """Processes that `multiprocessing` started from one, from whichever of its threads."""
    found, listed = [], []
    for path in Path(f"/proc/{process}/task").glob("*/children"):
        with suppress(OSError):  # a thread that has ended since
            listed += path.read_text().split()
    for child in listed:
        with suppress(OSError):
            if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                found.append(int(child))
    return found


@contextmanager
def running(folder: Path, workers: int = 1, nannies: bool = False) -> Iterator[Running]:
    """A cluster for the time of a block."""
    folder.mkdir(parents=True, exist_ok=True)
    cluster = Running(folder, workers, nannies)
    try:
        yield cluster
    finally:
        cluster.stop()
