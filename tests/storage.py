"""A real S3 server (SeaweedFS), and a proxy before it that fails as networks do: at the level of sockets.

with served(folder) as server, proxied(server) as proxy:
    process = begin_upload(archive, "s3://sets/a", proxy.environment)      # may be killed
    proxy.trouble("stall", after=1_000_000, seconds=5)
"""

import contextlib
import ctypes
import hashlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[1]
BUCKET = "sets"
OWNER = ("owner", "owner-secret")
READER = ("reader", "reader-secret")
"""Key and secret of one who may do everything, and of one who may only read."""
SLOW_DOWN = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>"
BUSY = b"HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\nConnection: close\r\n"
BUSY += b"Content-Length: %d\r\n\r\n%b" % (len(SLOW_DOWN), SLOW_DOWN)
FLIPPED = 20_000
"""Where, in what comes at once, a bit is changed: behind the header."""


@dataclass
class Server:
    """Where an S3 server listens; how it was started, if it was by this process."""

    port: int
    command: tuple[str, ...] = ()
    process: subprocess.Popen[bytes] | None = None

    def kill(self) -> None:
        """As a machine that loses its power would."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def start_again(self, folder: Path) -> None:
        """And wait until it answers. One of its ports may have served as the near end of a connection meanwhile."""
        for _ in range(30):
            self.start(folder)
            if _ready(self):
                return
            time.sleep(1)
        raise AssertionError((folder / "log").read_text(errors="replace")[-2000:])

    def start(self, folder: Path) -> None:
        """Start it in the folder of its data, for the first time or after it was killed; it ends with this thread."""
        with (folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                self.command, cwd=folder, stdout=log, stderr=log, preexec_fn=_die_with_parent
            )

    def environment(self, identity: tuple[str, str] = OWNER) -> dict[str, str]:
        """What a process must have in its environment to use the server."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ACCESS_KEY_ID": identity[0],
            "AWS_SECRET_ACCESS_KEY": identity[1],
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": "/nonexistent",
            "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
        }

    def client(self) -> Any:
        """A client of its maker's, which shares nothing with fsspec."""
        import boto3
        from botocore.config import Config

        return boto3.client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{self.port}",
            aws_access_key_id=OWNER[0],
            aws_secret_access_key=OWNER[1],
            region_name="us-east-1",
            config=Config(connect_timeout=2, read_timeout=10, retries={"max_attempts": 3}),
        )

    def names(self, prefix: str) -> list[str]:
        """Names of all objects under a prefix of the bucket, without it."""
        pages = self.client().get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=f"{prefix}/")
        return sorted(each["Key"].removeprefix(f"{prefix}/") for page in pages for each in page.get("Contents", []))

    def contents(self, prefix: str) -> dict[str, bytes]:
        """Name → bytes of all objects under a prefix."""
        client = self.client()
        return {
            name: client.get_object(Bucket=BUCKET, Key=f"{prefix}/{name}")["Body"].read() for name in self.names(prefix)
        }

    def digests(self, prefix: str) -> dict[str, str]:
        """Name → SHA-256 of all objects under a prefix."""
        return {name: hashlib.sha256(content).hexdigest() for name, content in self.contents(prefix).items()}

    def put(self, prefix: str, name: str, content: bytes) -> None:
        self.client().put_object(Bucket=BUCKET, Key=f"{prefix}/{name}", Body=content)

    def put_all(self, prefix: str, folder: Path) -> None:
        """Every file of a folder."""
        for path in folder.iterdir():
            self.put(prefix, path.name, path.read_bytes())


@contextlib.contextmanager
def served(folder: Path) -> Iterator[Server]:
    """An S3 server that keeps its data in `folder`, with one empty bucket; it ends with the block, or this process."""
    folder.mkdir(parents=True, exist_ok=True)
    rights = {OWNER: ["Admin", "Read", "Write", "List", "Tagging"], READER: ["Read", "List"]}
    identities = [
        {"name": key, "credentials": [{"accessKey": key, "secretKey": secret}], "actions": actions}
        for (key, secret), actions in rights.items()
    ]
    (folder / "identities.json").write_text(json.dumps({"identities": identities}))
    for last in (False, False, True):  # a port may be taken between its choice and its use
        server = _start(folder)
        try:
            if _ready(server):
                break
            log = (folder / "log").read_text(errors="replace")
            assert not last, f"the S3 server did not start: {log[-2000:]}"
            server.kill()
        except BaseException:
            server.kill()
            raise
    try:
        yield server
    finally:
        server.kill()


def _start(folder: Path) -> Server:
    names = ["master.port", "volume.port", "filer.port", "s3.port"]
    names += [f"{name}.grpc" for name in names]
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    command = [str(Path(sys.executable).parent / "weed"), "server", f"-dir={folder}", "-ip=127.0.0.1"]
    command += ["-ip.bind=127.0.0.1", "-s3", f"-s3.config={folder / 'identities.json'}", "-s3.autoCreateBucket=false"]
    command += ["-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.iam=false", "-master.telemetry=false"]
    command += ["-master.volumeSizeLimitMB=64", "-volume.max=40", "-volume.minFreeSpace=0"]
    command += [f"-{name}={port}" for name, port in ports.items()]
    server = Server(ports["s3.port"], tuple(command))
    server.start(folder)
    return server


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def _ready(server: Server) -> bool:
    end = time.monotonic() + 60
    while time.monotonic() < end and server.process is not None and server.process.poll() is None:
        with contextlib.suppress(Exception), socket.create_connection(("127.0.0.1", server.port), 1):
            with contextlib.suppress(server.client().exceptions.ClientError):  # it is there
                server.client().create_bucket(Bucket=BUCKET)
            server.client().put_object(Bucket=BUCKET, Key="warm", Body=b"up")
            server.client().delete_object(Bucket=BUCKET, Key="warm")
            return True
        time.sleep(0.2)
    return False


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nobody listens at."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


class Proxy(Server):
    """Passes bytes to and from a server, but for the trouble that it is told to make:

    `stall` takes what comes and passes nothing on; `reset` breaks connections; `busy` answers 503 to all that is asked;
    `refuse` accepts no connection and breaks those that there are; `flip up` and `flip down` change one bit, once, of
    what goes to the server or comes from it.
    """

    def __init__(self, server: Server) -> None:
        self._behind = server.port
        self._lock = threading.Lock()
        self._kind, self._after, self._seconds, self._begun = "", 0, 0.0, 0.0
        self._ended = False
        self.sent = self.came = 0
        """Bytes that went to the server, and that came from it."""
        self.rate = self.rate_down = 0.0
        """Bytes a second that may go to the server, and come from it, over one connection; 0: all."""
        self.met = 0
        """How often there was trouble."""
        super().__init__(free_ports(1)[0])
        self._listening: socket.socket | None = None
        self._listen()
        threading.Thread(target=self._watch, daemon=True).start()

    def trouble(self, kind: str, after: int = 0, seconds: float = 1e9) -> None:
        """Make trouble once so many more bytes went to the server, for so long from then on; "" ends it."""
        with self._lock:
            self._kind, self._after, self._seconds, self._begun = kind, self.sent + after, seconds, 0.0

    def end(self) -> None:
        self._ended = True
        time.sleep(0.05)
        self._close()

    def _listen(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", self.port), backlog=128)
        threading.Thread(target=self._accept, args=(self._listening,), daemon=True).start()

    def _watch(self) -> None:
        """Listen, or not."""
        while not self._ended:
            refuse = self._now() == "refuse"
            if refuse and self._listening is not None:
                self.met += 1
                self._close()
            elif not refuse and self._listening is None:
                self._listen()
            time.sleep(0.02)

    def _close(self) -> None:
        listening, self._listening = self._listening, None
        if listening is not None:
            with contextlib.suppress(OSError):
                listening.shutdown(socket.SHUT_RDWR)
            listening.close()

    def _now(self, sent: int = 0) -> str:
        """The trouble that is due."""
        with self._lock:
            self.sent += sent
            if not self._kind or self.sent < self._after:
                return ""
            self._begun = self._begun or time.monotonic()
            if time.monotonic() - self._begun > self._seconds:
                self._kind = ""
            elif sent and not self._kind.startswith("flip"):
                self.met += 1
            return self._kind

    def _accept(self, listening: socket.socket) -> None:
        while True:
            try:
                client, _ = listening.accept()
            except OSError:
                return
            try:
                behind = socket.create_connection(("127.0.0.1", self._behind), 5)
            except OSError:
                client.close()
                continue
            for pair in ((client, behind, True), (behind, client, False)):
                threading.Thread(target=self._pump, args=pair, daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, up: bool) -> None:
        try:
            source.settimeout(0.1)
            while not self._ended:
                try:
                    data = source.recv(1 << 16)
                except TimeoutError:
                    if self._now() in ("reset", "refuse"):
                        break
                    continue
                if not data:
                    break
                with self._lock:
                    self.came += 0 if up else len(data)
                if rate := self.rate if up else self.rate_down:
                    time.sleep(len(data) / rate)
                kind = self._now(len(data) if up else 0)
                while kind == "stall" and not self._ended:
                    time.sleep(0.05)
                    kind = self._now()
                if kind in ("reset", "refuse"):
                    _break(source)
                    break
                if kind == "busy" and up:
                    source.sendall(BUSY.partition(b"<")[0] if data.startswith(b"HEAD ") else BUSY)
                    break
                if kind == ("flip up" if up else "flip down") and len(data) > FLIPPED:
                    data = data[:FLIPPED] + bytes([data[FLIPPED] ^ 1]) + data[FLIPPED + 1 :]
                    self.met += 1
                    self.trouble("")
                target.settimeout(None)
                target.sendall(data)
                target.settimeout(0.1)
        except OSError:
            pass
        finally:
            for each in (source, target):
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
                each.close()


def _break(connection: socket.socket) -> None:
    """Close with a reset."""
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


@contextlib.contextmanager
def proxied(server: Server) -> Iterator[Proxy]:
    """A proxy before a server, until the end of the block."""
    proxy = Proxy(server)
    try:
        yield proxy
    finally:
        proxy.end()


def command(archive: Path, url: str, *options: Any) -> list[str]:
    """The command that ingests a BigEarthNet archive to a folder or URL."""
    return [sys.executable, "-m", "cli", "ingest", "bigearthnet", str(archive), url, *map(str, options)]


def environment(server: Server, patience_s: float = 5.0) -> dict[str, str]:
    """The environment of a command that uses the server, and waits so long for a silent one."""
    limits = {"config_kwargs": {"read_timeout": patience_s, "connect_timeout": patience_s}}
    return {**os.environ, **server.environment(), "FSSPEC_S3": json.dumps(limits)}


def begin_upload(
    archive: Path, url: str, server: Server, staging: Path, *options: Any, patience_s: float = 5.0
) -> subprocess.Popen[str]:
    """Start the ingest of an archive to a URL of the server, in a process that may be killed."""
    return subprocess.Popen(
        command(archive, url, "--scratch", staging, *options),
        cwd=REPOSITORY,
        env=environment(server, patience_s),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
