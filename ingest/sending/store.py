"""The place under a URL that a shard set is sent to: what is read there, and also written and removed."""

import contextlib
import hashlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shards.errors import BandstreamError
from shards.remote import store
from shards.remote.store import HTTP, Store

PARTS = 2
"""Parts of one object that are under way at a time."""


class Destination(Store):
    """Objects under a URL, written with the same patience that they are read with."""

    reading = False

    def __init__(self, url: str) -> None:
        protocol = url.partition("://")[0]
        if protocol in HTTP:
            raise BandstreamError(f"{url}: {protocol}:// can be read and not written: name a store such as s3://")
        super().__init__(url)

    def digest(self, name: str, size: int, progress: Callable[[int], None] = lambda done: None) -> str:
        """SHA-256 of an object as it is read back; "" where it is not there, or of another size."""
        stamp = self.stamp(name)
        if stamp is None or stamp[0] != size:
            return ""
        state, done = hashlib.sha256(), 0
        try:
            for piece in self.pieces(name, size):
                state.update(piece)
                done += len(piece)
                progress(done)
        except FileNotFoundError:
            return ""
        return state.hexdigest() if done == size else ""

    def write(self, name: str, content: bytes, new: bool = False) -> None:
        """Write a small object. With `new`, one that lies there stays, if the store knows how to see to that."""
        self._make_folder(name)
        if new:
            try:
                self._call("pipe_file", self.path(name), content, step=len(content), mode="create")
                return
            except FileExistsError:
                return
            except (NotImplementedError, TypeError):
                if self.stamp(name) is not None:
                    return
        self._call("pipe_file", self.path(name), content, step=len(content))

    def send(self, path: Path, name: str, progress: Callable[[int], None] = lambda done: None) -> None:
        """Copy a file to an object. `progress` is told the bytes sent so far, and 0 where it begins again."""
        from fsspec.callbacks import Callback

        class Counter(Callback):
            """Counts for one try."""

            def relative_update(self, inc: int = 1) -> None:
                self.value += inc
                progress(self.value)

        self._make_folder(name)
        method = getattr(self._fs, "_put_file" if self._fs.async_impl else "put_file")
        known = inspect.signature(method).parameters
        limits = {
            name: value for name, value in (("chunksize", store.PART), ("max_concurrency", PARTS)) if name in known
        }
        counters: list[Counter] = []

        def begin() -> dict[str, Any]:
            counters.append(Counter())
            progress(0)
            return {"callback": counters[-1], **limits}

        step = min(path.stat().st_size, 2 * store.PART)
        self._call("put_file", str(path), self.path(name), step=step, fresh=begin, moved=lambda: counters[-1].value)

    def remove(self, name: str) -> None:
        """Remove an object, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            self._call("rm_file", self.path(name))

    def remove_parts(self, names: set[str]) -> None:
        """Have S3 forget the parts of objects of these names that were never put together, where it may."""
        if not hasattr(self._fs, "call_s3"):
            return
        bucket, _, prefix = self._root.partition("/")
        try:
            found = self._call("call_s3", "list_multipart_uploads", Bucket=bucket, Prefix=f"{prefix}/")
            for each in found.get("Uploads") or []:
                if each["Key"].removeprefix(f"{prefix}/") in names:
                    key = {"Bucket": bucket, "Key": each["Key"], "UploadId": each["UploadId"]}
                    self._call("call_s3", "abort_multipart_upload", **key)
        except (BandstreamError, OSError):  # they cost room and nothing else
            pass

    def _make_folder(self, name: str) -> None:
        """Where folders have to be made: object stores know none, and would make a bucket."""
        if not self._fs.async_impl:
            self._call("makedirs", self.path(name).rpartition("/")[0], exist_ok=True)
