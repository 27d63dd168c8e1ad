"""A folder behind a real HTTP server, which knows of ranges or does not, writes down what it is asked, and may fail.

with web(folder, ranges=False) as site:
    site.faults["train-000000.tar"] = ["500", "cut"]      # of the next two answers
    ShardSet.open(site.url)
"""

import contextlib
import http.server
import re
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class Site:
    """`asked`: how often each file was; `ranged`: how often a range of one; `faults`: of coming answers, by file."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.asked: Counter[str] = Counter()
        self.ranged = 0
        self.faults: dict[str, list[str]] = {}


@contextlib.contextmanager
def web(folder: Path, ranges: bool) -> Iterator[Site]:
    """Serve the files of a folder."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            name = self.path.rpartition("/")[2]
            site.asked[name] += self.command == "GET"
            asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            site.ranged += asked is not None
            fault = site.faults[name].pop(0) if site.faults.get(name) else ""
            path = folder / name
            if fault.isdigit() or not path.is_file():
                self.send_response(int(fault or 404))
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            content = path.read_bytes()
            if asked and ranges:
                start, end = int(asked[1]), min(int(asked[2] or len(content) - 1), len(content) - 1)
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{end}/{len(content)}")
                content = content[start : end + 1]
            else:
                self.send_response(200)
            if ranges:
                self.send_header("Accept-Ranges", "bytes")
            if fault == "flip":
                content = content[:3000] + bytes([content[3000] ^ 1]) + content[3001:]
            if fault == "unsized":
                self.send_header("Connection", "close")
                self.close_connection = True
            else:
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command == "GET":
                with contextlib.suppress(OSError):
                    self.wfile.write(content[: len(content) // 2] if fault == "cut" else content)
                if fault == "cut":
                    self.close_connection = True

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    site = Site(server.server_address[1])
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
