"""A fake Hugging Face Hub on 127.0.0.1 with only the requests of a push and a download."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from warm import warm_command

Done = subprocess.CompletedProcess[str]

# The owner of each token, and whether it may write.
TOKENS = {"writes": ("me", True), "reads": ("me", False)}


class Hub:
    """A server of repositories in a folder: `owner/name/{refs/main, snapshots/COMMIT/FILE}`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.requests: list[str] = []
        self.gated: set[str] = set()
        self.private: set[str] = set()
        self.objects: dict[str, bytes] = {}
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def commit(self, name: str, files: dict[str, bytes]) -> str:
        """Add files to the repository, and return the new commit."""
        repo = self.root / name
        old = self.snapshot(name, "main")
        kept = {path.name: path.read_bytes() for path in old.iterdir()} if old else {}
        content = {**kept, **files}
        digest = hashlib.sha1(repr(sorted(content.items())).encode()).hexdigest()
        for path, data in content.items():
            file = repo / "snapshots" / digest / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
        (repo / "refs").mkdir(parents=True, exist_ok=True)
        (repo / "refs" / "main").write_text(digest)
        return digest

    def snapshot(self, name: str, revision: str) -> Path | None:
        """The folder of a commit or of a branch's head, or None."""
        ref = self.root / name / "refs" / revision
        folder = self.root / name / "snapshots" / (ref.read_text() if ref.is_file() else revision)
        return folder if folder.is_dir() else None


@contextmanager
def serving(root: Path) -> Iterator[Hub]:
    """Run a hub while the block runs."""
    hub = Hub(root)
    thread = threading.Thread(target=hub.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        hub.server.shutdown()
        hub.server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._handle()

    def do_GET(self) -> None:
        self._handle()

    def do_POST(self) -> None:
        self._handle()

    def do_PUT(self) -> None:
        self._handle()

    def _handle(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        body = self._body()
        for pattern, answer in _ROUTES:
            if match := re.fullmatch(pattern, f"{self.command} {path}"):
                answer(self, body, **match.groupdict())
                return
        self._send(404, {"error": "the stand-in knows no such request"})

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            data = b""
            while size := int(self.rfile.readline(), 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return data
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _send(self, status: int, content: Any = b"", **headers: str) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _who(self) -> tuple[str, bool]:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        return TOKENS.get(token, ("", False))

    def _may_write(self, owner: str) -> bool:
        user, writes = self._who()
        if not user:
            message = "Invalid credentials in Authorization header"
            self._send(401, {"error": message}, X_Error_Message=message)
        elif user != owner or not writes:
            message = "You don't have the rights"
            self._send(403, {"error": message}, X_Error_Message=message)
        return user == owner and writes

    def _may_read(self, name: str) -> bool:
        user, _ = self._who()
        if not (self.hub.root / name).is_dir() or (name in self.hub.private and not user):
            self._send(401 if not user else 404, X_Error_Code="RepoNotFound")
        elif name in self.hub.gated:
            self._send(403, X_Error_Code="GatedRepo")
        else:
            return True
        return False

    def create(self, body: bytes) -> None:
        wanted = json.loads(body)
        name = f"{wanted['organization']}/{wanted['name']}"
        if not self._may_write(wanted["organization"]):
            return
        there = (self.hub.root / name).is_dir()
        if not there:
            self.hub.commit(name, {".gitattributes": b"*.safetensors filter=lfs\n"})
            self.hub.private |= {name} if wanted.get("visibility") == "private" else set()
        self._send(409 if there else 200, {"url": f"{self.hub.url}/{name}", "name": name})

    def info(self, body: bytes, name: str, revision: str | None = None) -> None:
        if not self._may_read(name):
            return
        folder = self.hub.snapshot(name, revision or "main")
        if folder is None:
            self._send(404, X_Error_Code="RevisionNotFound")
            return
        files = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
        about = {
            "id": name,
            "_id": name,
            "sha": folder.name,
            "private": name in self.hub.private,
            "tags": [],
            "siblings": [{"rfilename": file.as_posix()} for file in files],
        }
        self._send(200, about)

    def validate(self, body: bytes) -> None:
        content = json.loads(body)["content"]
        errors = [] if content.startswith("---\n") else [{"message": "there is no front matter"}]
        self._send(400 if errors else 200, {"errors": errors, "warnings": []})

    def preupload(self, body: bytes, name: str) -> None:
        if self._may_write(name.partition("/")[0]):
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs"
                    if file["path"].endswith((".safetensors", ".png"))
                    else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
            self._send(200, {"files": files})

    def batch(self, body: bytes, name: str) -> None:
        if self._may_write(name.partition("/")[0]):
            objects = [
                {**item, "actions": {"upload": {"href": f"{self.hub.url}/objects/{item['oid']}"}}}
                for item in json.loads(body)["objects"]
            ]
            self._send(200, {"transfer": "basic", "objects": objects})

    def put(self, body: bytes, oid: str) -> None:
        assert hashlib.sha256(body).hexdigest() == oid
        self.hub.objects[oid] = body
        self._send(200)

    def take(self, body: bytes, name: str) -> None:
        if not self._may_write(name.partition("/")[0]):
            return
        files = {}
        for line in body.decode().splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
        commit = self.hub.commit(name, files)
        url = f"{self.hub.url}/{name}/commit/{commit}"
        self._send(200, {"success": True, "commitOid": commit, "commitUrl": url})

    def resolve(self, body: bytes, name: str, revision: str, file: str) -> None:
        if not self._may_read(name):
            return
        folder = self.hub.snapshot(name, revision)
        if folder is None:
            self._send(404, X_Error_Code="RevisionNotFound")
        elif not (folder / file).is_file():
            self._send(404, X_Error_Code="EntryNotFound", X_Repo_Commit=folder.name)
        else:
            data = (folder / file).read_bytes()
            etag = f'"{hashlib.sha256(data).hexdigest()}"'
            self._send(200, data, ETag=etag, X_Repo_Commit=folder.name)


_NAME = r"(?P<name>[\w.-]+/[\w.-]+)"
_ROUTES = [
    (r"POST /api/repos/create", _Handler.create),
    (r"POST /api/validate-yaml", _Handler.validate),
    (rf"GET /api/models/{_NAME}(?:/revision/(?P<revision>[^/]+))?", _Handler.info),
    (rf"POST /api/models/{_NAME}/preupload/main", _Handler.preupload),
    (rf"POST /{_NAME}\.git/info/lfs/objects/batch", _Handler.batch),
    (rf"POST /api/models/{_NAME}/commit/main", _Handler.take),
    (r"(?:GET|HEAD) /portal/.+", lambda handler, body: handler._send(200)),
    (r"PUT /objects/(?P<oid>\w+)", _Handler.put),
    (rf"(?:GET|HEAD) /{_NAME}/resolve/(?P<revision>[^/]+)/(?P<file>.+)", _Handler.resolve),
]


def at(url: str, tmp_path: Path, *args: str | Path, **env: str) -> Done:
    """`genkit ARGS` with the hub at `url` and its own cache."""
    environment = {
        **os.environ,
        "COLUMNS": "140",
        "HF_ENDPOINT": url,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_TOKEN": "",
        "NO_PROXY": "127.0.0.1",
        **env,
    }
    return warm_command([str(arg) for arg in args], tmp_path, environment)
