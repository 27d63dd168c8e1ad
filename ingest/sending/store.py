"""What lies under a URL of fsspec: listed, read, written and removed, with patience for a store that fails for a while.

A call that fails as networks and busy servers do is made again after a pause; one in which nothing moves is given up,
and made again. Endpoint, credentials and time-outs are those of fsspec's and the store's own configuration (for S3 the
environment's `AWS_*` and `FSSPEC_S3`).
"""

import asyncio
import contextlib
import hashlib
import inspect
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ingest.sending.faults import code_of, explained, for_good, of_a_store
from shards.errors import BandstreamError

PART = 8 << 20
"""Bytes that are sent or read in one request; S3 takes an object of up to twice that in one."""
PARTS = 2
"""Parts of one object that are under way at a time."""
PATIENCE_S = 60.0
"""Seconds without an answer, or without progress in a part, after which a call is given up."""
CONNECT_S = 10.0
FIRST_PAUSES_S = (1.0, 4.0)
PAUSES_S = (1.0, 4.0, 16.0, 60.0)
"""Before a call is made again that failed; at first contact a wrong address is likelier than a fault that passes."""
LOOKING = {"ls", "info", "cat_file", "rm_file"}
"""Calls that may well find nothing."""
LOCAL = {"file", "local"}
"""Protocols of folders of this machine."""


class Silent(OSError):
    """Nothing moved for longer than is waited for."""


class Stopped(BandstreamError):
    """Another part of the work failed."""


def is_url(text: str) -> bool:
    return "://" in text


class Store:
    """The objects under a URL, by names relative to it.

    Methods raise BandstreamError, with what is to be done, where the store refuses or has failed again and again;
    FileNotFoundError where an object is not there. Several threads may call them; `stop` ends those under way.
    """

    def __init__(self, url: str) -> None:
        protocol, _, place = url.partition("://")
        self.url = f"{protocol}://{place.rstrip('/')}"
        self.stop = threading.Event()
        self._met = False
        import fsspec

        options: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
        self.patience = PATIENCE_S
        if protocol in ("s3", "s3a"):
            own = fsspec.config.conf.get(protocol, {}).get("config_kwargs", {})
            own = {"connect_timeout": CONNECT_S, "read_timeout": PATIENCE_S, "retries": {"max_attempts": 0}, **own}
            options["config_kwargs"] = own
            self.patience = float(own["read_timeout"])
        if protocol in ("http", "https"):
            raise BandstreamError(f"{url}: {protocol}:// can be read and not written: name a store such as s3://")
        if not place.strip("/") or (protocol in ("s3", "s3a", "gs", "gcs") and place.startswith("/")):
            raise BandstreamError(f"{url} names no place: name one, such as {protocol}://BUCKET/NAME")
        try:
            self._fs, self._root = fsspec.core.url_to_fs(self.url, **options)
        except ImportError as error:
            extra = "bandstream[s3]" if protocol in ("s3", "s3a") else {"gs": "gcsfs", "gcs": "gcsfs"}.get(protocol, "")
            how = f"pip install '{extra}'" if extra else "install it"
            raise BandstreamError(f"{url}: a package for {protocol}:// is missing ({error}): {how}") from None
        except ValueError as error:
            raise BandstreamError(f"{url}: {error}: name a folder, or a URL such as s3://BUCKET/NAME") from None
        except Exception as error:
            raise self._failed(error) from error

    def _failed(self, error: BaseException) -> BandstreamError:
        return explained(error, self.url, self.url.partition("://")[2].partition("/")[0], self._met)

    def path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"

    def names(self) -> dict[str, tuple[Any, ...]]:
        """What lies directly under the URL: each name, folders without slash, with its stamp (`info`)."""
        try:
            found = self._call("ls", self._root, detail=True)
        except FileNotFoundError as error:
            if code_of(error) == "NoSuchBucket":
                raise self._failed(error) from error
            return {}
        result = {}
        for info in found:
            path = info["name"].rstrip("/")
            if path.strip("/") != self._root.strip("/"):
                result[path.rpartition("/")[2]] = _stamp(info)
            elif info["size"]:
                raise BandstreamError(f"{self.url} is an object: name a place for the shard set")
        return result

    def stamp(self, name: str) -> tuple[Any, ...] | None:
        """(size, what tells whether an object was written again); None where it is not there."""
        try:
            return _stamp(self._call("info", self.path(name)))
        except FileNotFoundError:
            return None

    def read(self, name: str) -> bytes:
        """A small object."""
        content: bytes = self._call("cat_file", self.path(name))
        return content

    def pieces(self, name: str, size: int) -> Iterator[bytes]:
        """An object of this size, in pieces."""
        for start in range(0, size, PART):
            end = min(start + PART, size)
            piece: bytes = self._call("cat_file", self.path(name), step=end - start, start=start, end=end)
            yield piece

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
        limits = {name: value for name, value in (("chunksize", PART), ("max_concurrency", PARTS)) if name in known}
        counters: list[Counter] = []

        def begin() -> dict[str, Any]:
            counters.append(Counter())
            progress(0)
            return {"callback": counters[-1], **limits}

        step = min(path.stat().st_size, 2 * PART)
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

    def _call(
        self,
        method: str,
        *args: Any,
        step: int = 0,
        fresh: Callable[[], dict[str, Any]] = dict,
        moved: Callable[[], int] = lambda: 0,
        **kwargs: Any,
    ) -> Any:
        """Call a method of the file system, again where that may help.

        `step`: bytes that move before `moved` tells a new number; `fresh`: further arguments of each try.
        """
        for pause in (*(PAUSES_S if self._met else FIRST_PAUSES_S), None):
            if self.stop.is_set():
                raise Stopped(f"{self.url}: the upload was stopped")
            try:
                patience = self.patience * (1 + step / PART)
                result = self._once(method, args, {**kwargs, **fresh()}, patience, moved)
                self._met = True
                return result
            except BandstreamError:
                raise
            except Exception as error:
                code = code_of(error)
                if isinstance(error, FileExistsError):
                    raise
                if isinstance(error, FileNotFoundError) and method in LOOKING and code != "NoSuchBucket":
                    raise
                if code == "PreconditionFailed":
                    raise FileExistsError(str(error)) from error
                if "mode" in kwargs and (
                    isinstance(error, NotImplementedError | TypeError) or code == "NotImplemented"
                ):
                    raise NotImplementedError(str(error)) from error
                if not of_a_store(error):
                    raise
                if pause is None or for_good(error):
                    raise self._failed(error) from error
                self.stop.wait(pause)

    def _once(
        self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any], patience: float, moved: Callable[[], int]
    ) -> Any:
        if not self._fs.async_impl:
            return getattr(self._fs, method)(*args, **kwargs)
        from fsspec.asyn import sync

        call = getattr(self._fs, f"_{method}")
        return sync(self._fs.loop, self._watched, call, args, kwargs, patience, moved)

    async def _watched(
        self, call: Any, args: tuple[Any, ...], kwargs: dict[str, Any], patience: float, moved: Callable[[], int]
    ) -> Any:
        """Give a call up in which nothing moves."""
        clock = asyncio.get_running_loop().time
        task = asyncio.ensure_future(call(*args, **kwargs))
        seen, since = moved(), clock()
        try:
            while True:
                await asyncio.wait({task}, timeout=min(1.0, patience / 4))
                if task.done():
                    return task.result()
                if moved() != seen:
                    seen, since = moved(), clock()
                elif clock() - since > patience:
                    raise Silent(f"nothing came for {clock() - since:.0f} s")
                if self.stop.is_set():
                    raise Stopped(f"{self.url}: the upload was stopped")
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait({task}, timeout=5)


def _stamp(info: dict[str, Any]) -> tuple[Any, ...]:
    for key in ("ETag", "etag", "md5Hash", "generation", "mtime", "created"):
        if info.get(key):
            return info.get("size"), str(info[key]).strip('"')
    return (info.get("size"),)
