"""A local HTTP server and a pip that knows one folder: nothing leaves the machine."""

import hashlib
import io
import os
import re
import socket
import threading
import zipfile
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest


@dataclass
class Answer:
    """What the server sends for a path. `cut` is the number of bytes after which it hangs up, once for each request."""

    body: bytes = b""
    status: int = 200
    declared: int | None = None
    pause: str | None = None
    headers: dict = field(default_factory=dict)
    ranges: bool = False
    cut: list[int] = field(default_factory=list)


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.seen.append(self.path)
        # The first request only asks whether the server is there. Counted before it is answered, since the next may come
        # as soon as it is.
        asked = self.server.seen.count(self.path) > 1
        self.server.ranges.append(self.headers.get("Range"))
        answer = self.server.routes.get(self.path, Answer(b"<html>not here</html>", 404))
        if answer.pause == "before":
            self.server.release.wait(20)
        status, body, headers = self.in_range(answer)
        self.send_response(status)
        for name, value in {"Content-Length": answer.declared or len(body), **answer.headers, **headers}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(body[: answer.cut.pop(0)] if answer.cut and asked else body)
        if answer.pause == "after":
            self.wfile.flush()
            self.server.release.wait(20)

    def in_range(self, answer):
        """Status, body and headers of the part that is asked for, as RFC 9110 has it."""
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        version = self.headers.get("If-Range")
        if not (answer.ranges and asked) or (version and version not in answer.headers.values()):
            return answer.status, answer.body, {}
        start, size = int(asked[1]), len(answer.body)
        if start >= size:
            return 416, b"", {"Content-Range": f"bytes */{size}"}
        return 206, answer.body[start:], {"Content-Range": f"bytes {start}-{size - 1}/{size}"}

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    """A server whose `add(path, body, **fields of Answer)` gives the URL of an answer."""
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.daemon_threads = True
    httpd.routes, httpd.seen, httpd.ranges, httpd.release = {}, [], [], threading.Event()

    def add(path, body=b"", status=200, **fields):
        httpd.routes[path] = Answer(body, status, **fields)
        return f"http://127.0.0.1:{httpd.server_port}{path}"

    httpd.add = add
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield httpd
    httpd.release.set()
    httpd.shutdown()
    thread.join()
    httpd.server_close()


@pytest.fixture
def refused():
    """A URL at which nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return f"http://127.0.0.1:{port}/file.zip"


@pytest.fixture
def sealed(monkeypatch, tmp_path):
    """A cache of one's own, no proxy, and a pip that knows the folder `links` only."""
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    (tmp_path / "links").mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "links"))
    monkeypatch.setenv("TRL_SDPO_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def zipped():
    return zip_bytes


@pytest.fixture
def make_wheel():
    return write_wheel


def zip_bytes(members, **options):
    """The bytes of a zip archive. `members` is a dict, or pairs where a name may be a `ZipInfo`."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, **options) as archive:
        for name, content in members.items() if isinstance(members, dict) else members:
            archive.writestr(name, content)
    return buffer.getvalue()


def write_wheel(folder, name, version, members):
    """A wheel that pip accepts, and its SHA-256."""
    info = f"{name}-{version}.dist-info"
    record = "".join(f"{member},,\n" for member in [*members, f"{info}/METADATA", f"{info}/WHEEL", f"{info}/RECORD"])
    meta = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nRequires-Dist: not-there\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": record,
    }
    data = zip_bytes({**members, **meta})
    folder.mkdir(exist_ok=True)
    (folder / f"{name}-{version}-py3-none-any.whl").write_bytes(data)
    return hashlib.sha256(data).hexdigest()
