"""A Hugging Face Hub in miniature, over HTTP: the few endpoints that pushing to and loading from it need."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Hub:
    """`repositories`: name → file → bytes; `token`: who may write."""

    def __init__(self, token: str) -> None:
        self.token = token
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.commit = "0" * 40
        self.endpoint = ""


@contextmanager
def serving(token: str = "hf_secret") -> Iterator[Hub]:
    """A hub on a free port, until the block ends."""
    hub = Hub(token)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: Any) -> None:
            pass

        def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def tell(self, value: Any, status: int = 200) -> None:
            self.answer(status, json.dumps(value).encode(), Content_Type="application/json")

        def do_GET(self) -> None:
            path = self.path.split("?")[0].strip("/")
            parts = path.split("/")
            if path.startswith("api/models/"):
                repo = "/".join(parts[2:4])
                if repo not in hub.repositories:
                    return self.answer(404, X_Error_Code="RepoNotFound")
                return self.tell({"id": repo, "sha": hub.commit, "siblings": [], "private": hub.private[repo]})
            if len(parts) >= 5 and parts[2] == "resolve":
                files = hub.repositories.get("/".join(parts[:2]))
                if files is None:
                    return self.answer(404, X_Error_Code="RepoNotFound", X_Error_Message="Repository not found")
                data = files.get("/".join(parts[4:]))
                if data is None:
                    return self.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=hub.commit)
                tag = hashlib.sha256(data).hexdigest()
                return self.answer(200, data, ETag=f'"{tag}"', X_Repo_Commit=hub.commit)
            return self.answer(404)

        do_HEAD = do_GET

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            parts = self.path.split("?")[0].strip("/").split("/")
            if parts == ["api", "validate-yaml"]:
                return self.tell({"errors": [], "warnings": []})
            if self.headers.get("Authorization") != f"Bearer {hub.token}":
                return self.tell({"error": "Invalid credentials"}, 401)
            if parts == ["api", "repos", "create"]:
                asked = json.loads(body)
                repo = (
                    f"{asked['organization']}/{asked['name']}" if asked.get("organization") else f"me/{asked['name']}"
                )
                hub.repositories.setdefault(repo, {})
                hub.private[repo] = bool(asked.get("private")) or asked.get("visibility") == "private"
                return self.tell({"url": f"{hub.endpoint}/{repo}", "name": repo})
            repo = "/".join(parts[2:4])
            if parts[4] == "preupload":
                files = [
                    {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                    for f in json.loads(body)["files"]
                ]
                return self.tell({"files": files})
            if parts[4] == "commit":
                for line in map(json.loads, body.splitlines()):
                    if line["key"] == "file":
                        hub.repositories[repo][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                hub.commit = hashlib.sha1(body).hexdigest()
                url = f"{hub.endpoint}/{repo}/commit/{hub.commit}"
                return self.tell({"commitUrl": url, "commitOid": hub.commit, "success": True})
            return self.answer(404)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
