"""What lies under a URL of fsspec: listed and read, with patience for a store that fails for a while.

A call that fails as networks and busy servers do is made again after a pause; one in which nothing moves is given up,
and made again. Endpoint, credentials and time-outs are those of fsspec's and the store's own configuration (for S3 the
environment's `AWS_*` and `FSSPEC_S3`; over HTTP those of `~/.netrc`, proxies as the environment names them).
"""

import asyncio
import copy
import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol, Self

from shards.errors import BandstreamError
from shards.remote.faults import code_of, explained, for_good, of_a_store

PART = 8 << 20
"""Bytes that are sent or read in one request; S3 takes an object of up to twice that in one."""
LEAST = 1 << 16
"""And in one that is made again."""
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
S3, HTTP = {"s3", "s3a"}, {"http", "https"}


class Silent(OSError):
    """Nothing moved for longer than is waited for."""


class Stopped(BandstreamError):
    """Another part of the work failed, or ended."""


class Sink(Protocol):
    """What takes the bytes of an object. Its own errors are BandstreamErrors."""

    done: int

    def restart(self) -> None:
        """Forget what was taken: the object comes from its beginning."""

    def write(self, piece: bytes) -> None: ...


def is_url(text: str) -> bool:
    return "://" in text


class Store:
    """The objects under a URL, by names relative to it.

    Methods raise BandstreamError, with what is to be done, where the store refuses or has failed again and again;
    FileNotFoundError where an object is not there. Several threads may call them; `stop` ends those under way.
    """

    reading = True
    """Whether nothing is ever written there."""

    def __init__(self, url: str) -> None:
        protocol, _, place = url.partition("://")
        self.url = f"{protocol}://{re.sub('^[^/@]*@', '', place).rstrip('/')}"
        self.stop = threading.Event()
        self._met = False
        import fsspec

        options: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
        self.patience = PATIENCE_S
        if protocol in S3:
            own = fsspec.config.conf.get(protocol, {}).get("config_kwargs", {})
            own = {"connect_timeout": CONNECT_S, "read_timeout": PATIENCE_S, "retries": {"max_attempts": 0}, **own}
            options["config_kwargs"] = own
            self.patience = float(own["read_timeout"])
        self._whole = protocol in HTTP
        if not place.strip("/") or (protocol in {*S3, "gs", "gcs"} and place.startswith("/")):
            raise BandstreamError(f"{url} names no place: name one, such as {protocol}://BUCKET/NAME")
        try:
            if protocol in HTTP:
                own = fsspec.config.conf.get(protocol, {}).get("client_kwargs", {})
                options["client_kwargs"] = {"timeout": _time_limits(), "trust_env": True, **own}
            self._fs, self._root = fsspec.core.url_to_fs(f"{protocol}://{place.rstrip('/')}", **options)
        except ImportError as error:
            extra = "bandstream[s3]" if protocol in S3 else {"gs": "gcsfs", "gcs": "gcsfs"}.get(protocol, "")
            extra = "aiohttp" if protocol in HTTP else extra
            how = f"pip install '{extra}'" if extra else "install it"
            raise BandstreamError(f"{url}: a package for {protocol}:// is missing ({error}): {how}") from None
        except ValueError as error:
            raise BandstreamError(f"{url}: {error}: name a folder, or a URL such as s3://BUCKET/NAME") from None
        except Exception as error:
            raise self._failed(error) from error

    def until(self, stop: threading.Event) -> Self:
        """The same store for calls that `stop` ends."""
        other = copy.copy(self)
        other.stop = stop
        return other

    def _failed(self, error: BaseException) -> BandstreamError:
        bucket = self.url.partition("://")[2].partition("/")[0]
        return explained(error, self.url, bucket, self._met, self.reading)

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
        """An object of this size, in pieces; one that is shorter ends early.

        A piece that does not come is asked for again as a smaller one: little by little, a slow network brings all.
        """
        start, step, end = 0, PART, 0

        def narrower() -> dict[str, Any]:
            nonlocal step, end
            end = min(start + step, size)
            step = max(step // 4, LEAST)
            return {"start": start, "end": end}

        while start < size:
            begun = time.monotonic()
            piece: bytes = self._call("cat_file", self.path(name), step=PART, fresh=narrower)
            yield piece
            if len(piece) < end - start:
                return
            quick = time.monotonic() - begun < self.patience / 8
            start, step = end, min((8 if quick else 4) * step, PART)

    def fetch(self, name: str, size: int, into: Sink) -> None:
        """Hand an object of this size to `into`; of one that is longer no more than that.

        Over HTTP it comes in one request, for not every server knows of ranges, and from its beginning where that
        fails; otherwise in pieces, each asked for again until it is there.
        """
        if self._whole:
            self._again(lambda: self._stream(name, size, into), looking=True)
            return
        into.restart()
        for piece in self.pieces(name, size):
            into.write(piece)

    def _stream(self, name: str, size: int, into: Sink) -> None:
        into.restart()
        file = self._await(self._fs.open_async, self.path(name), size=size)
        try:
            while into.done < size:
                piece = self._await(_gather, file, min(PART, size - into.done), moved=lambda: int(file.loc))
                if not piece:
                    return
                into.write(piece)
        finally:
            self._await(file.close)

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

        def attempt() -> Any:
            arguments = {**kwargs, **fresh()}
            if not self._fs.async_impl:
                return getattr(self._fs, method)(*args, **arguments)
            return self._await(getattr(self._fs, f"_{method}"), *args, step=step, moved=moved, **arguments)

        return self._again(attempt, method in LOOKING, exclusive="mode" in kwargs)

    def _again(self, attempt: Callable[[], Any], looking: bool, exclusive: bool = False) -> Any:
        """Do it, and again where that may help. `looking`: it may well find nothing; `exclusive`: something may be
        there already, or the store may not know how to tell."""
        for pause in (*(PAUSES_S if self._met else FIRST_PAUSES_S), None):
            if self.stop.is_set():
                raise Stopped(f"{self.url}: stopped")
            try:
                result = attempt()
                self._met = True
                return result
            except BandstreamError:
                raise
            except Exception as error:
                code = code_of(error)
                if isinstance(error, FileExistsError):
                    raise
                if isinstance(error, FileNotFoundError) and looking and code != "NoSuchBucket":
                    raise
                if code == "InvalidRange":  # it ends before
                    return b""
                if code == "PreconditionFailed":
                    raise FileExistsError(str(error)) from error
                if exclusive and (isinstance(error, NotImplementedError | TypeError) or code == "NotImplemented"):
                    raise NotImplementedError(str(error)) from error
                if not of_a_store(error):
                    raise
                if pause is None or for_good(error):
                    raise self._failed(error) from error
                self.stop.wait(pause)

    def _await(self, call: Any, *args: Any, step: int = 0, moved: Callable[[], int] = lambda: 0, **kwargs: Any) -> Any:
        """What an asynchronous function returns; one in which nothing moves is given up."""
        from fsspec.asyn import sync

        return sync(self._fs.loop, self._watched, call, args, kwargs, self.patience * (1 + step / PART), moved)

    async def _watched(
        self, call: Any, args: tuple[Any, ...], kwargs: dict[str, Any], patience: float, moved: Callable[[], int]
    ) -> Any:
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
                    raise Stopped(f"{self.url}: stopped")
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait({task}, timeout=5)


async def _gather(file: Any, wanted: int) -> bytes:
    """So many bytes of a stream, or what there is before its end."""
    parts = []
    while wanted and (part := await file.read(wanted)):
        parts.append(part)
        wanted -= len(part)
    return b"".join(parts)


def _time_limits() -> Any:
    """Of aiohttp, whose own allows five minutes for a whole file, however large."""
    import aiohttp

    return aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=PATIENCE_S)


def _stamp(info: dict[str, Any]) -> tuple[Any, ...]:
    for key in ("ETag", "etag", "md5Hash", "generation", "mtime", "created"):
        if info.get(key):
            return info.get("size"), str(info[key]).strip('"')
    return (info.get("size"),)
