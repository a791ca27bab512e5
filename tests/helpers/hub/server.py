"""
A small Hugging Face Hub over HTTP: what `huggingface_hub` asks of one to create, push to, list and download from
repositories, with faults on demand. Repositories live in memory, where tests read them.

The libraries read `HF_ENDPOINT` once, on import: what talks to this server runs in a process of its own, see [`environment`].
"""

import base64
import hashlib
import json
import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from urllib.parse import parse_qs, unquote, urlsplit


TOKEN = "hf_" + "aB3" * 11
USER = "me"
LFS_SUFFIXES = {".safetensors", ".bin", ".pt", ".pth", ".parquet", ".png"}
_REPO = r"(?P<kind>models|datasets)/(?P<repo>[\w.-]+/[\w.-]+)"


@dataclass
class Fault:
    """
    What goes wrong with the next `times` requests whose "METHOD /path" matches: an answer with a `status`, an answer
    that comes `seconds` later, or a connection that is closed after `cut` bytes of the body.
    """

    request: str
    status: int | None = None
    headers: dict = field(default_factory=dict)
    seconds: float = 0
    cut: int | None = None
    times: int = 1


@dataclass
class Commit:
    oid: str
    message: str
    files: dict[str, bytes]


@dataclass
class Repo:
    private: bool
    commits: list[Commit]

    @property
    def files(self) -> dict[str, bytes]:
        """The files of the last commit."""
        return self.commits[-1].files


class Hub(ThreadingHTTPServer):
    """`repos["models", "me/name"]` and `repos["datasets", "me/name"]` hold what was pushed, `seen` the requests."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos, self.objects, self.faults, self.seen = {}, {}, [], []
        self.lock = threading.Lock()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request, client_address):
        pass  # a client that was killed, or a fault of ours

    def fault(self, request: str, **what) -> Fault:
        self.faults.append(Fault(request, **what))
        return self.faults[-1]

    def next_fault(self, request: str) -> Fault | None:
        with self.lock:
            self.seen.append(request)
            for fault in self.faults:
                if fault.times and re.search(fault.request, request):
                    fault.times -= 1
                    return fault
        return None

    def environment(self, home: Path, **more: str) -> dict[str, str]:
        """The environment of a process that knows this Hub alone. Its cache and home folder are below `home`."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        return kept | {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home / "hf"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_OFFLINE": "0",
            "HF_TOKEN": TOKEN,
            "HOME": str(home),
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), str(Path(__file__).parents[3])]),
            **more,
        }

    def add_repo(self, kind: str, repo: str, folder: Path, private: bool = False) -> Repo:
        """A repository with the files of a folder."""
        files = {
            path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
        }
        oid = hashlib.sha1(repo.encode()).hexdigest()
        self.repos[kind, repo] = Repo(private, [Commit(oid, "initial commit", files)])
        return self.repos[kind, repo]

    def commit(self, kind: str, repo: str, files: dict[str, bytes | None], message: str) -> Commit:
        """Add a commit; a file that is `None` is deleted, with all below it."""
        history = self.repos[kind, repo].commits
        tree = dict(history[-1].files)
        for path, content in files.items():
            if content is None:
                tree = {name: data for name, data in tree.items() if name != path and not name.startswith(f"{path}/")}
            else:
                tree[path] = content
        oid = hashlib.sha1(f"{len(history)}{message}{sorted(tree)}{time.time_ns()}".encode()).hexdigest()
        history.append(Commit(oid, message, tree))
        return history[-1]


@contextmanager
def running_hub() -> Iterator[Hub]:
    """A Hub in a thread of this process."""
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_GET(self):
        self.route("GET")

    def do_HEAD(self):
        self.route("GET")

    def do_POST(self):
        self.route("POST")

    def do_PUT(self):
        self.route("PUT")

    def do_DELETE(self):
        self.route("DELETE")

    def route(self, method):
        url = urlsplit(self.path)
        path, self.query = unquote(url.path), parse_qs(url.query)
        fault = self.server.next_fault(f"{self.command} {path}")
        if fault is not None and fault.cut is not None:
            self.rfile.read(min(fault.cut, int(self.headers.get("Content-Length", 0))))
            self.close_connection = True
            return self.connection.close()
        body = self.read_body()
        if fault is not None:
            time.sleep(fault.seconds)
            if fault.status is not None:
                return self.answer(fault.status, {"error": f"fault {fault.status}"}, fault.headers)
        writes = method in ("POST", "PUT", "DELETE") and not path.startswith("/lfs/")
        if writes and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer(401, {"error": "Invalid credentials in Authorization header"})
        for verb, pattern, handler in _ROUTES:
            match = re.fullmatch(pattern, path)
            if verb == method and match:
                return handler(self, body=body, **match.groupdict())
        return self.answer(404, {"error": f"no such route: {path}"})

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def answer(self, status, content=b"", headers=None):
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        kind = "application/octet-stream" if isinstance(content, bytes) else "application/json"
        for name, value in {"Content-Type": kind, "Content-Length": len(data), **(headers or {})}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def find(self, kind, repo, revision="main"):
        """The repository and its commit, or `None` after an answer that says what there is not."""
        found = self.server.repos.get((kind, repo))
        allowed = found and not (found.private and self.headers.get("Authorization") != f"Bearer {TOKEN}")
        if not allowed:
            self.answer(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
            return None
        for commit in reversed(found.commits):
            if revision in ("main", "refs/heads/main", "HEAD") or commit.oid == revision:
                return found, commit
        self.answer(404, {"error": "Revision not found"}, {"X-Error-Code": "RevisionNotFound"})
        return None

    def whoami(self, body):
        self.answer(
            200, {"type": "user", "name": USER, "fullname": USER, "orgs": [], "auth": {"type": "access_token"}}
        )

    def create(self, body):
        asked = json.loads(body)
        kind = f"{asked.get('type') or 'model'}s"
        repo = f"{asked.get('organization') or USER}/{asked['name']}"
        url = f"{self.server.endpoint}/{'' if kind == 'models' else 'datasets/'}{repo}"
        with self.server.lock:
            exists = (kind, repo) in self.server.repos
            if not exists:
                first = Commit(
                    hashlib.sha1(repo.encode()).hexdigest(), "initial commit", {".gitattributes": b"* lfs\n"}
                )
                self.server.repos[kind, repo] = Repo(asked.get("visibility") == "private", [first])
        self.answer(409 if exists else 200, {"url": url, "name": repo, "error": "You already created this repo"})

    def validate_yaml(self, body):
        content = json.loads(body)["content"]
        errors = [] if content.startswith("---\n") else [{"message": "no metadata"}]
        self.answer(200 if not errors else 400, {"errors": errors, "warnings": []})

    def preupload(self, kind, repo, revision, body):
        if self.find(kind, repo, revision) is None:
            return
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if PurePosixPath(file["path"]).suffix in LFS_SUFFIXES else "regular",
                "shouldIgnore": False,
            }
            for file in json.loads(body)["files"]
        ]
        self.answer(200, {"files": files})

    def lfs_batch(self, body, **_):
        objects = []
        for one in json.loads(body)["objects"]:
            entry = {"oid": one["oid"], "size": one["size"]}
            if one["oid"] not in self.server.objects:
                entry["actions"] = {"upload": {"href": f"{self.server.endpoint}/lfs/{one['oid']}"}}
            objects.append(entry)
        self.answer(200, {"transfer": "basic", "objects": objects}, {"Content-Type": "application/vnd.git-lfs+json"})

    def lfs_put(self, oid, body):
        if hashlib.sha256(body).hexdigest() != oid:
            return self.answer(400, {"error": "the content has another hash"})
        self.server.objects[oid] = body
        return self.answer(200)

    def commit(self, kind, repo, revision, body):
        if self.find(kind, repo, revision) is None:
            return None
        files, message = {}, ""
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                message = value["summary"]
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.server.objects:
                    return self.answer(400, {"error": f"{value['path']} was not uploaded"})
                files[value["path"]] = self.server.objects[value["oid"]]
            elif line["key"] in ("deletedFile", "deletedFolder"):
                files[value["path"].rstrip("/")] = None
        with self.server.lock:
            commit = self.server.commit(kind, repo, files, message)
        url = f"{self.server.endpoint}/{'' if kind == 'models' else 'datasets/'}{repo}/commit/{commit.oid}"
        return self.answer(200, {"success": True, "commitOid": commit.oid, "commitUrl": url})

    def info(self, kind, repo, body, revision="main"):
        if (found := self.find(kind, repo, revision)) is None:
            return
        holder, commit = found
        siblings = [{"rfilename": path, "size": len(data)} for path, data in sorted(commit.files.items())]
        stamp = "2026-01-01T00:00:00.000Z"
        content = {"_id": "0", "id": repo, "sha": commit.oid, "private": holder.private, "siblings": siblings}
        content |= {"tags": [], "downloads": 0, "likes": 0, "lastModified": stamp, "createdAt": stamp, "gated": False}
        self.answer(
            200, content | {"disabled": False, "author": USER, **({"modelId": repo} if kind == "models" else {})}
        )

    def tree(self, kind, repo, revision, body, folder=None):
        if (found := self.find(kind, repo, revision)) is None:
            return None
        prefix = f"{folder}/" if folder else ""
        recursive = self.query.get("recursive", ["false"])[0].lower() in ("true", "1")
        entries = {}
        for path, data in sorted(found[1].files.items()):
            if not path.startswith(prefix):
                continue
            *parents, _ = path.removeprefix(prefix).split("/")
            folders = ["/".join(parents[: depth + 1]) for depth in range(len(parents))]
            for name in folders if recursive else folders[:1]:
                entries[prefix + name] = {"type": "directory", "path": prefix + name, "oid": "0" * 40, "size": 0}
            if recursive or not parents:
                entries[path] = _file_entry(path, data)
        if folder and not entries:
            return self.answer(404, {"error": f"{folder}: not found"}, {"X-Error-Code": "EntryNotFound"})
        return self.answer(200, list(entries.values()))

    def paths_info(self, kind, repo, revision, body):
        if (found := self.find(kind, repo, revision)) is None:
            return
        text = body.decode()
        paths = json.loads(text)["paths"] if text.startswith("{") else parse_qs(text).get("paths", [])
        entries = []
        for path in paths:
            if path in found[1].files:
                entries.append(_file_entry(path, found[1].files[path]))
            elif any(name.startswith(f"{path}/") for name in found[1].files):
                entries.append({"type": "directory", "path": path, "oid": "0" * 40, "size": 0})
        self.answer(200, entries)

    def resolve(self, repo, revision, file, body, kind=None):
        found = self.find("datasets" if kind else "models", repo, revision)
        if found is None:
            return None
        headers = {"X-Repo-Commit": found[1].oid, "Accept-Ranges": "bytes"}
        if file not in found[1].files:
            return self.answer(404, {"error": "Entry not found"}, {**headers, "X-Error-Code": "EntryNotFound"})
        data = found[1].files[file]
        headers["ETag"] = f'"{hashlib.sha256(data).hexdigest()}"'
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked is None:
            return self.answer(200, data, headers)
        start, stop = int(asked[1]), min(len(data), int(asked[2] or len(data)) + 1)
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
        return self.answer(206, data[start:stop], headers)


def _file_entry(path: str, data: bytes) -> dict:
    oid = hashlib.sha1(data).hexdigest()
    entry = {"type": "file", "path": path, "oid": oid, "size": len(data)}
    if PurePosixPath(path).suffix in LFS_SUFFIXES:
        entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
    return entry


_REVISION = r"(?P<revision>refs/[^/]+/[^/]+|[^/]+)"
_ROUTES = [
    ("GET", r"/api/whoami-v2", Handler.whoami),
    ("POST", r"/api/repos/create", Handler.create),
    ("POST", r"/api/validate-yaml", Handler.validate_yaml),
    ("POST", rf"/api/{_REPO}/preupload/{_REVISION}", Handler.preupload),
    ("POST", rf"/api/{_REPO}/commit/{_REVISION}", Handler.commit),
    ("POST", rf"/api/{_REPO}/paths-info/{_REVISION}", Handler.paths_info),
    ("POST", r"/(?:datasets/)?(?P<repo>[\w.-]+/[\w.-]+)\.git/info/lfs/objects/batch", Handler.lfs_batch),
    ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})", Handler.lfs_put),
    ("GET", rf"/api/{_REPO}", Handler.info),
    ("GET", rf"/api/{_REPO}/revision/{_REVISION}", Handler.info),
    ("GET", rf"/api/{_REPO}/tree/{_REVISION}(?:/(?P<folder>.+))?", Handler.tree),
    ("GET", rf"/(?P<kind>datasets/)?(?P<repo>[\w.-]+/[\w.-]+)/resolve/{_REVISION}/(?P<file>.+)", Handler.resolve),
]
