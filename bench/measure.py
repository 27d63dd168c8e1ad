"""How the benches measure: interleaved runs of whole processes, medians with spread, the machine described."""

import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


def machine(packages: Sequence[str]) -> dict[str, Any]:
    """The machine and the versions that a result belongs to."""
    fields = {}
    for path, name in (("/proc/cpuinfo", "model name"), ("/proc/meminfo", "MemTotal")):
        try:
            lines = Path(path).read_text().splitlines()
            fields[name] = next(line.split(":", 1)[1].strip() for line in lines if line.startswith(name))
        except (OSError, StopIteration):
            fields[name] = "unknown"
    versions = {}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "cpu": fields["model name"],
        "cores": len(os.sched_getaffinity(0)),
        "memory": fields["MemTotal"],
        "gpu": _gpu(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": versions,
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _gpu() -> str:
    """Name, memory and driver of the GPUs, as the driver's own tool tells them."""
    told = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(told, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "none"


def process(command: Sequence[str], folder: Path, core: int | None = None) -> dict[str, float]:
    """Run a command to its end: wall and CPU seconds of the whole process, peak memory in MB.

    `core`: the one core it may use. Bytecode is compiled and kept, as in a user's installation. Raises RuntimeError
    with its last words where it fails. The system counts the memory of this process, as it is when the child begins,
    among the child's: keep it small.
    """

    def pin() -> None:
        if core is not None:
            os.sched_setaffinity(0, {core})

    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    begin = time.perf_counter()
    child = subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, preexec_fn=pin
    )
    assert child.stdout is not None
    output = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    wall = time.perf_counter() - begin
    child.returncode = os.waitstatus_to_exitcode(status)
    child.stdout.close()
    if child.returncode:
        raise RuntimeError(
            f"{' '.join(command)} exited with {child.returncode}: {output.decode(errors='replace')[-500:]}"
        )
    return {"wall_s": wall, "cpu_s": usage.ru_utime + usage.ru_stime, "peak_mb": usage.ru_maxrss / 1024}


def warm(folder: Path) -> int:
    """Read every file once, for a system may have taken cold pages back from its page cache; their bytes."""
    total = 0
    for path, _, names in os.walk(folder, followlinks=True):
        for name in names:
            total += len(Path(path, name).read_bytes())
    return total


def evict(paths: Iterable[Path]) -> float:
    """Put files out of the page cache; the share of them, by a few reads of each, that stayed there all the same."""
    asked = stayed = 0
    for path in paths:
        with path.open("rb") as file:
            descriptor, size = file.fileno(), os.fstat(file.fileno()).st_size
            os.fsync(descriptor)  # pages that are yet to be written stay
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            for number in range(16):
                asked += 1
                try:
                    os.preadv(descriptor, [bytearray(1)], size * number // 16, os.RWF_NOWAIT)
                    stayed += 1
                except BlockingIOError:
                    pass
                except OSError:  # a file system that cannot say
                    stayed += 1
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)  # the reads may have set off reading ahead
    return stayed / asked if asked else 0.0


def cpu_seconds() -> float:
    """CPU seconds of this process and of all that it started, whether they have ended (and were waited for) or run."""
    import psutil

    own = psutil.Process()
    total = sum(own.cpu_times()[:4])  # user, system, and both of children that have ended
    for child in own.children(recursive=True):
        with suppress(psutil.Error):  # it has ended since it was listed
            total += sum(child.cpu_times()[:4])
    return float(total)


def memory_mb(pid: int) -> float:
    """Memory of a process and of all that it started: their proportional set sizes, which count shared pages once."""
    import psutil

    total = 0
    with suppress(psutil.Error):
        root = psutil.Process(pid)
        for process in (root, *root.children(recursive=True)):
            with suppress(psutil.Error):
                total += process.memory_full_info().pss
    return total / 1e6


def interleave(
    runs: Mapping[str, Callable[[], dict[str, float]]], repeats: int, told: Callable[[str], None]
) -> dict[str, list[dict[str, float]]]:
    """Run each in turn, `repeats` times round (A B A B …), so that a slow minute of the machine meets them all."""
    results: dict[str, list[dict[str, float]]] = {name: [] for name in runs}
    for repeat in range(repeats):
        for name, run in runs.items():
            results[name].append(run())
            told(f"{repeat + 1}/{repeats} {name}: " + ", ".join(f"{k} {v:.2f}" for k, v in results[name][-1].items()))
    return results


def summary(values: Sequence[float]) -> dict[str, float | int]:
    """n, median and spread."""
    return {"n": len(values), "median": statistics.median(values), "min": min(values), "max": max(values)}
