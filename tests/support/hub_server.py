"""The part of the Hugging Face Hub's HTTP API that pushing and pulling use, as a real server on the loopback.

Written after huggingface_hub's own calls: whoami, repos/create, validate-yaml, preupload, the git-LFS batch API with
basic uploads, commit as NDJSON, model info, resolve.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = "hf_" + "x" * 34
SHA = "a" * 40


@dataclass
class Repo:
    files: dict[str, bytes] = field(default_factory=dict)
    private: bool = False
    commits: list[dict] = field(default_factory=list)


@dataclass
class Hub:
    """What the server holds and has been asked.

    cut: paths whose connection is cut; listed: names it claims to have."""

    url: str = ""
    repos: dict[str, Repo] = field(default_factory=dict)
    asked: list[tuple[str, str, bytes]] = field(default_factory=list)
    lfs: dict[str, bytes] = field(default_factory=dict)
    cut: tuple[str, ...] = ()
    fail: dict[str, int] = field(default_factory=dict)  # path's part -> HTTP status
    listed: list[dict] | None = None
    answers: dict[str, str] = field(default_factory=dict)  # headers that it answers with instead of the right ones

    def sent(self) -> bytes:
        """Every byte that came in, headers of requests included."""
        return b"\n".join(b"\n".join((path.encode(), headers.encode(), body)) for path, headers, body in self.asked)


@contextmanager
def hub_server() -> Iterator[Hub]:
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        self._answer()

    do_POST = do_PUT = do_HEAD = do_GET

    def _answer(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append((f"{self.command} {self.path}", str(self.headers), body))
        if any(part in path for part in self.hub.cut):
            self.connection.close()
            self.close_connection = True
            return
        for part, status in self.hub.fail.items():
            if part in path:
                return self._send(status, {"error": "said the server"})
        for method, pattern, name in _ROUTES:
            if method == self.command and (match := re.fullmatch(pattern, path)):
                return getattr(self, name)(body, **match.groupdict())
        self._send(404, {"error": "no such address"})

    def _send(self, status: int, content: object = None, headers: dict | None = None, raw: bytes | None = None):
        data = raw if raw is not None else json.dumps(content).encode()
        self.send_response(status)
        for name, value in ({"Content-Type": "application/json"} | (headers or {})).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _known(self) -> bool:
        if self.headers.get("Authorization") == f"Bearer {TOKEN}":
            return True
        self._send(401, {"error": "Invalid credentials in Authorization header"})
        return False

    def whoami(self, _):
        if self._known():
            self._send(200, {"type": "user", "name": "someone", "orgs": [], "auth": {"accessToken": {"role": "write"}}})

    def create(self, body):
        if not self._known():
            return
        settings = json.loads(body)
        owner = settings.get("organization") or "someone"
        if owner != "someone":
            return self._send(403, {"error": "You don't have the rights"})
        private = settings.get("private") or settings.get("visibility") == "private"
        self.hub.repos[f"{owner}/{settings['name']}"] = Repo(private=bool(private))
        self._send(200, {"url": f"{self.hub.url}/{owner}/{settings['name']}"})

    def info(self, _, repo, revision="main"):
        if repo not in self.hub.repos:
            headers = {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}
            return self._send(404, {"error": "Repository not found"}, headers)
        here = self.hub.repos[repo]
        listed = self.hub.listed
        if listed is None:
            listed = [{"rfilename": name, "size": len(data)} for name, data in here.files.items()]
        card = here.files.get("README.md", b"").decode()
        tags = re.search(r"^tags: (.*)$", card, re.MULTILINE)
        answer = {"id": repo, "modelId": repo, "sha": SHA, "private": here.private, "siblings": listed}
        self._send(200, answer | {"tags": json.loads(tags[1]) if tags else [], "downloads": 0, "likes": 0})

    def validate(self, body):
        """The Hub checks a README's front matter: the same parser as there is for YAML, and what it must be."""
        import yaml

        front = yaml.safe_load(json.loads(body)["content"].split("---")[1])
        errors = [] if isinstance(front, dict) else [{"message": "front matter is no mapping"}]
        self._send(200 if not errors else 400, {"errors": errors, "warnings": []})

    def preupload(self, body, repo):
        if self._known():
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
            self._send(200, {"files": files})

    def batch(self, body, repo):
        objects = [
            {
                "oid": file["oid"],
                "size": file["size"],
                "actions": {"upload": {"href": f"{self.hub.url}/lfs/{file['oid']}", "header": {}}},
            }
            for file in json.loads(body)["objects"]
        ]
        self._send(200, {"transfer": "basic", "objects": objects})

    def store(self, body, oid):
        if hashlib.sha256(body).hexdigest() != oid:
            return self._send(400, {"error": "sha256 differs"})
        self.hub.lfs[oid] = body
        self._send(200, {})

    def commit(self, body, repo):
        if not self._known():
            return
        here = self.hub.repos[repo]
        lines = [json.loads(line) for line in body.splitlines() if line]
        new = dict(here.files)
        for line in lines:
            match line["key"], line["value"]:
                case "file", {"path": path, "content": content}:
                    new[path] = base64.b64decode(content)
                case "lfsFile", {"path": path, "oid": oid}:
                    new[path] = self.hub.lfs[oid]
                case "deletedFile", {"path": path}:
                    del new[path]
        here.files = new
        here.commits.append(lines[0]["value"])
        self._send(200, {"commitUrl": f"{self.hub.url}/{repo}/commit/{SHA}", "commitOid": SHA, "success": True})

    def tree(self, _, repo, revision):
        """What a repository holds, as `list_repo_tree` asks."""
        here = self.hub.repos.get(repo)
        if here is None:
            return self._send(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        entries = [{"type": "file", "path": n, "size": len(d), "oid": _oid(d)} for n, d in here.files.items()]
        self._send(200, entries)

    def resolve(self, _, repo, revision, name):
        data = self.hub.repos[repo].files.get(name) if repo in self.hub.repos else None
        if data is None:
            return self._send(404, {}, {"X-Error-Code": "EntryNotFound"})
        headers = {"X-Repo-Commit": SHA, "ETag": f'"{_oid(data)}"', "Content-Type": "application/octet-stream"}
        self._send(200, headers=headers | self.hub.answers, raw=data)


def _oid(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


_REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"
_ROUTES = [
    ("GET", r"/api/whoami-v2", "whoami"),
    ("POST", r"/api/repos/create", "create"),
    ("POST", r"/api/validate-yaml", "validate"),
    ("GET", rf"/api/models/{_REPO}", "info"),
    ("GET", rf"/api/models/{_REPO}/revision/(?P<revision>[^/]+)", "info"),
    ("GET", rf"/api/models/{_REPO}/tree/(?P<revision>[^/]+)/?", "tree"),
    ("POST", rf"/api/models/{_REPO}/preupload/[^/]+", "preupload"),
    ("POST", rf"/{_REPO}\.git/info/lfs/objects/batch", "batch"),
    ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})", "store"),
    ("POST", rf"/api/models/{_REPO}/commit/[^/]+", "commit"),
    ("HEAD", rf"/{_REPO}/resolve/(?P<revision>[^/]+)/(?P<name>.+)", "resolve"),
    ("GET", rf"/{_REPO}/resolve/(?P<revision>[^/]+)/(?P<name>.+)", "resolve"),
]
