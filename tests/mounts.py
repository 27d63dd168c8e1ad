"""File systems of a test's own, full, read-only or gone as needed: mounts in a namespace that nobody else sees."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path


class NoMounts(Exception):
    """This machine does not permit them."""


class Mounts:
    """A mount namespace. Commands run in it (`inside`), and this process sees what they see under `see`."""

    def __init__(self, holder: int) -> None:
        self._holder = holder

    def inside(self, command: list[str]) -> list[str]:
        """The command that runs `command` in the namespace, in the folder where it is started."""
        return ["nsenter", f"--target={self._holder}", "--mount", f"--wd={os.getcwd()}", "--", *command]

    def see(self, path: Path) -> Path:
        return Path(f"/proc/{self._holder}/root{path}")

    def tmpfs(self, folder: Path, kb: int) -> None:
        """Mount an empty file system of this size."""
        folder.mkdir(parents=True, exist_ok=True)
        self._mount("-t", "tmpfs", "-o", f"size={kb}k", "tmpfs", str(folder))

    def remount(self, folder: Path, options: str) -> None:
        """`size=…k`, `ro` or `rw`."""
        self._mount("-o", f"remount,{options}", str(folder))

    def bind(self, folder: Path, to: Path) -> None:
        """Have a folder lie at another place too."""
        to.mkdir(parents=True, exist_ok=True)
        self._mount("--bind", str(folder), str(to))

    def unmount(self, folder: Path) -> None:
        """As a network mount goes away: at once, whoever has files open."""
        subprocess.run(self.inside(["umount", "--lazy", str(folder)]), check=True, capture_output=True)

    def _mount(self, *arguments: str) -> None:
        subprocess.run(self.inside(["mount", *arguments]), check=True, capture_output=True)


@contextlib.contextmanager
def namespace() -> Iterator[Mounts]:
    """Mounts that go when the block ends. Raises NoMounts where they are not permitted."""
    try:
        holder = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", "echo ready; exec sleep infinity"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
    except OSError as error:
        raise NoMounts(str(error)) from None
    assert holder.stdout is not None and holder.stderr is not None
    try:
        if holder.stdout.readline() != b"ready\n":
            raise NoMounts(holder.stderr.read().decode(errors="replace").strip() or "unshare failed")
        mounts = Mounts(holder.pid)
        try:
            mounts.tmpfs(Path("/mnt"), 64)
            mounts.unmount(Path("/mnt"))
        except (OSError, subprocess.CalledProcessError) as error:
            raise NoMounts(str(getattr(error, "stderr", b"") or error)) from None
        yield mounts
    finally:
        holder.kill()
        holder.communicate()
