"""A loader in a process of its own, told phase by phase, its memory watched from outside."""

import json
import os
import select
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench.measure import memory_mb
from shards.errors import BandstreamError

REPOSITORY = Path(__file__).parents[1]
INTERVAL_SECONDS = 1.0
"""Between two looks at the memory of a process and its workers."""


class Contestant:
    """`python -m bench.loaders NAME DATA`, pinned to `cores` (default: all that this process may use)."""

    def __init__(
        self,
        name: str,
        data: Path,
        batch_size: int,
        view_size: int,
        cores: tuple[int, ...] | None = None,
        device: str = "cpu",
    ) -> None:
        self.name = name
        self.said = tempfile.TemporaryFile()  # noqa: SIM115  (closed with the process)
        pinned = ",".join(map(str, cores or sorted(os.sched_getaffinity(0))))
        command = [sys.executable, "-m", "bench.loaders", name, str(data.resolve()), "--cores", pinned]
        command += ["--batch-size", str(batch_size), "--view-size", str(view_size), "--device", device]
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
        self.process = subprocess.Popen(
            command, cwd=REPOSITORY, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.said
        )
        self._answer()

    def run(self, phase: str, setting: dict[str, Any], seconds: float | None) -> dict[str, float]:
        """samples_per_s and cpus (cores in use) of a phase; peak_mb, the most memory of the process and its workers,
        looked at each second; on a GPU gpu_mb, what is taken of its memory in the end. `seconds` None: all batches of
        the phase. Raises BandstreamError with its last words."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"phase": phase, "setting": setting, "seconds": seconds}).encode() + b"\n")
        self.process.stdin.flush()
        told, peak = self._answer()
        return {
            "samples_per_s": told["samples"] / told["seconds"],
            "cpus": told["cpu_s"] / told["seconds"],
            "peak_mb": peak,
            **{name: told[name] for name in ("gpu_mb",) if name in told},
        }

    def _answer(self) -> tuple[dict[str, Any], float]:
        assert self.process.stdout is not None
        peak = 0.0
        waiting = select.poll()  # select() itself takes no descriptor above 1023
        waiting.register(self.process.stdout, select.POLLIN)
        while not waiting.poll(1000 * INTERVAL_SECONDS):
            peak = max(peak, memory_mb(self.process.pid))
        peak = max(peak, memory_mb(self.process.pid))
        line = self.process.stdout.readline()
        if not line:
            self.said.seek(0)
            words = self.said.read().decode(errors="replace").strip().splitlines()
            code = self.process.wait()
            raise BandstreamError(f"the loader {self.name} exited with {code}: {words[-1] if words else 'no word'}")
        return json.loads(line), peak

    def __enter__(self) -> "Contestant":
        return self

    def __exit__(self, *failure: object) -> None:
        if failure[0]:
            self.process.kill()
        self.process.communicate()
        self.said.close()
