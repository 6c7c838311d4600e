"""A stand-in of the hub's HTTP interface: what ``huggingface_hub`` asks to upload and to download a model."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

Files = dict[str, bytes]
LARGE = (".safetensors", ".onnx", ".npz", ".png")
WRITER, READER = "hf_writer", "hf_reader"
"""Tokens that are known; the second may not write."""


@dataclass
class Repo:
    """Commits of a repository by id, and its branches."""

    private: bool
    commits: dict[str, Files] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, files: Files) -> str:
        parent = self.branches.get(branch, "")
        named = json.dumps([parent, {k: hashlib.sha1(v).hexdigest() for k, v in sorted(files.items())}])
        digest = hashlib.sha1(named.encode()).hexdigest()
        self.commits[digest], self.branches[branch] = files, digest
        return digest

    def find(self, revision: str) -> str | None:
        found = self.branches.get(revision, revision)
        return found if found in self.commits else None


@dataclass
class Hub:
    """What the server holds, and what it was asked."""

    url: str = ""
    repos: dict[str, Repo] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)

    def files(self, repo: str, revision: str = "main") -> Files:
        found = self.repos[repo].find(revision)
        assert found is not None
        return self.repos[repo].commits[found]

    def downloaded(self) -> set[str]:
        """Paths of the files whose bytes were asked for."""
        asked = [line.partition(" ")[2] for line in self.requests if line.startswith("GET ")]
        return {path.split("/resolve/")[1].partition("/")[2] for path in asked if "/resolve/" in path}


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def _answer(self, status: int, body: Any = b"", **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _refuse(self, status: int, code: str, message: str) -> None:
        self._answer(status, {"error": message}, X_Error_Code=code, X_Error_Message=message)

    @property
    def _token(self) -> str | None:
        return self.headers.get("Authorization", "").removeprefix("Bearer ") or None

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            data = b""
            while size := int(self.rfile.readline(), 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return data
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _serve(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        body = self._body()
        if self._token not in (None, WRITER, READER):
            return self._answer(401, {"error": "Invalid credentials in Authorization header"})
        parts = path.strip("/").split("/")
        if self.command == "PUT":
            return self._store(parts[-1], body)
        writes = self.command == "POST" and not path.endswith(("validate-yaml", "paths-info/main"))
        if writes and self._token != WRITER:
            return self._refuse(403, "", "You don't have the rights to create a model under this namespace")
        if path == "/api/validate-yaml":
            return self._validate(json.loads(body))
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        name = "/".join(parts[2:4] if parts[0] == "api" else parts[:2]).removesuffix(".git")
        repo = self.hub.repos.get(name)
        if repo is None or (repo.private and self._token is None):
            return self._refuse(401 if self._token is None else 404, "RepoNotFound", "Repository not found")
        if parts[0] != "api":
            if path.endswith("/info/lfs/objects/batch"):
                return self._batch(json.loads(body))
            return self._resolve(repo, parts[3], "/".join(parts[4:]))
        return self._repository(name, repo, parts[4:], body)

    do_GET = do_HEAD = do_POST = do_PUT = _serve  # noqa: N815

    def _store(self, oid: str, body: bytes) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            return self._answer(400, {"error": "another hash"})
        self.hub.objects[oid] = body
        return self._answer(200)

    def _validate(self, asked: dict[str, Any]) -> None:
        if "license: not-a-license" in asked["content"]:
            return self._answer(
                400, {"errors": [{"message": '"license" must be one of [...]'}], "warnings": []}
            )
        return self._answer(200, {"errors": [], "warnings": []})

    def _create(self, asked: dict[str, Any]) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        private = asked.get("private", asked.get("visibility") == "private")
        if name in self.hub.repos:
            return self._answer(409, {"error": "exists", "url": f"{self.hub.url}/{name}"})
        self.hub.repos[name] = repo = Repo(bool(private))
        repo.commit("main", {".gitattributes": b""})
        return self._answer(200, {"url": f"{self.hub.url}/{name}", "name": name})

    def _batch(self, asked: dict[str, Any]) -> None:
        objects = []
        for item in asked["objects"]:
            href = {"href": f"{self.hub.url}/store/{item['oid']}"}
            known = item["oid"] in self.hub.objects
            objects.append({**item} if known else {**item, "actions": {"upload": href}})
        self._answer(200, {"transfer": "basic", "objects": objects})

    def _resolve(self, repo: Repo, revision: str, path: str) -> None:
        commit = repo.find(revision)
        if commit is None:
            return self._refuse(404, "RevisionNotFound", "Invalid rev id")
        data = repo.commits[commit].get(path)
        if data is None:
            return self._refuse(404, "EntryNotFound", "Entry not found")
        etag = f'"{hashlib.sha256(data).hexdigest()}"'
        return self._answer(200, data, ETag=etag, X_Repo_Commit=commit, X_Linked_Size=str(len(data)))

    def _repository(self, name: str, repo: Repo, parts: list[str], body: bytes) -> None:
        action, revision = (parts[0], parts[1]) if len(parts) > 1 else ("", "main")
        if action == "branch":
            known = revision in repo.branches
            if not known:
                repo.branches[revision] = repo.branches["main"]
            return self._answer(409 if known else 201, {"error": "exists"} if known else {})
        commit = repo.find(revision)
        if commit is None:
            return self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if action == "tree":
            return self._answer(200, [_entry(path, data) for path, data in repo.commits[commit].items()])
        if action == "preupload":
            files = json.loads(body)["files"]
            modes = [{"path": f["path"], "uploadMode": "lfs" if f["path"].endswith(LARGE) else "regular",
                      "shouldIgnore": False} for f in files]  # fmt: skip
            return self._answer(200, {"files": modes})
        if action == "commit":
            return self._commit(name, repo, revision, body)
        siblings = [{"rfilename": path} for path in repo.commits[commit]]
        return self._answer(200, {"id": name, "sha": commit, "private": repo.private, "siblings": siblings})

    def _commit(self, name: str, repo: Repo, branch: str, body: bytes) -> None:
        files = dict(self.hub.files(name, branch))
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif item["key"] == "deletedFile":
                del files[value["path"]]
        digest = repo.commit(branch, files)
        self._answer(200, {"commitUrl": f"{self.hub.url}/{name}/commit/{digest}", "commitOid": digest})


def _entry(path: str, data: bytes) -> dict[str, Any]:
    entry = {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
    if path.endswith(LARGE):
        entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
    return entry


@contextmanager
def running_hub() -> Iterator[Hub]:
    """The server on a free port of this machine."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
