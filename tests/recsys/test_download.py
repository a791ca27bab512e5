"""Downloads against a local HTTP server, real zip archives and the real pip; nothing leaves the machine."""

import hashlib
import io
import logging
import os
import shutil
import socket
import stat
import sys
import threading
import time
import venv
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from trl_sdpo.recsys import download


BODY = os.urandom(50_000)
EVIL_MODE = {"link": stat.S_IFLNK | 0o777, "pipe": stat.S_IFIFO | 0o644}


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def zipped(members, **options):
    """The bytes of a zip archive. `members` is a dict, or pairs where a name may be a `ZipInfo`."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, **options) as archive:
        for name, content in members.items() if isinstance(members, dict) else members:
            archive.writestr(name, content)
    return buffer.getvalue()


def special_member(name, mode):
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    return info


def make_wheel(folder, name, version, members):
    """A wheel that pip accepts, and its SHA-256."""
    info = f"{name}-{version}.dist-info"
    record = "".join(f"{member},,\n" for member in [*members, f"{info}/METADATA", f"{info}/WHEEL", f"{info}/RECORD"])
    meta = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nRequires-Dist: not-there\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": record,
    }
    data = zipped({**members, **meta})
    folder.mkdir(exist_ok=True)
    (folder / f"{name}-{version}-py3-none-any.whl").write_bytes(data)
    return sha256(data)


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.seen.append(self.path)
        status, body, declared, pause = self.server.routes.get(self.path, (404, b"<html>not here</html>", None, None))
        if pause == "before":
            self.server.release.wait(20)
        self.send_response(status)
        self.send_header("Content-Length", str(declared or len(body)))
        self.end_headers()
        self.wfile.write(body)
        if pause == "after":
            self.wfile.flush()
            self.server.release.wait(20)

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    """A server whose `add(path, body, status, declared, pause)` gives the URL of an answer."""
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.daemon_threads = True
    httpd.routes, httpd.seen, httpd.release = {}, [], threading.Event()

    def add(path, body=b"", status=200, declared=None, pause=None):
        httpd.routes[path] = (status, body, declared, pause)
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


@pytest.fixture(autouse=True)
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


def lines_of(caplog):
    return [record.getMessage() for record in caplog.records if record.name == download.logger.name]


def everything_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) if folder.exists() else []


class TestCacheDir:
    def test_environment_variable(self, tmp_path):
        assert download.cache_dir() == tmp_path / "cache"
        assert (tmp_path / "cache").is_dir()

    def test_default(self, monkeypatch, tmp_path):
        monkeypatch.setenv("TRL_SDPO_CACHE", "")
        monkeypatch.setattr(download.pooch, "os_cache", lambda project: tmp_path / project)
        assert download.cache_dir() == tmp_path / "trl_sdpo"

    def test_cannot_be_made(self, monkeypatch, tmp_path):
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("TRL_SDPO_CACHE", str(tmp_path / "file" / "cache"))
        with pytest.raises(OSError, match=r"file/cache cannot be made.*set TRL_SDPO_CACHE"):
            download.cache_dir()


class TestStagedDirectory:
    def test_appears_at_the_end(self, tmp_path):
        with download.staged_directory(tmp_path / "a" / "b") as stage:
            (stage / "file").write_text("x")
            assert not (tmp_path / "a" / "b").exists()
        assert everything_in(tmp_path / "a") == ["b", "b/file"]

    @pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
    def test_nothing_left_after_an_error(self, tmp_path, error):
        def write():
            with download.staged_directory(tmp_path / "a" / "b") as stage:
                (stage / "half").write_text("x")
                raise error

        with pytest.raises(type(error)):
            write()
        assert everything_in(tmp_path / "a") == []

    def test_the_faster_process_wins(self, tmp_path):
        with download.staged_directory(tmp_path / "a" / "b") as stage:
            (stage / "file").write_text("slow")
            with download.staged_directory(tmp_path / "a" / "b") as other:
                (other / "file").write_text("fast")
        assert everything_in(tmp_path / "a") == ["b", "b/file"]
        assert (tmp_path / "a" / "b" / "file").read_text() == "fast"


class TestFetchUrl:
    def test_downloads_once(self, server, tmp_path, capfd):
        url, path = server.add("/file.zip", BODY), tmp_path / "new" / "file.zip"
        assert download.fetch_url(url, sha256(BODY), path) == path
        assert path.read_bytes() == BODY
        assert "100%" in capfd.readouterr().err  # the progress bar
        requests = len(server.seen)
        assert download.fetch_url(url, sha256(BODY), path) == path
        assert len(server.seen) == requests

    def test_replaces_a_file_with_another_checksum(self, server, tmp_path):
        (tmp_path / "file.zip").write_bytes(BODY[:100])
        download.fetch_url(server.add("/file.zip", BODY), sha256(BODY), tmp_path / "file.zip")
        assert (tmp_path / "file.zip").read_bytes() == BODY

    def test_wrong_checksum(self, server, tmp_path):
        url = server.add("/file.zip", b"<html>please log in</html>")
        with pytest.raises(ValueError, match=rf"{url} is not the expected file: its SHA-256 is not {sha256(BODY)}"):
            download.fetch_url(url, sha256(BODY), tmp_path / "new" / "file.zip")
        assert everything_in(tmp_path / "new") == []

    def test_truncated(self, server, tmp_path):
        url = server.add("/file.zip", BODY[:20_000], declared=len(BODY))
        with pytest.raises(ConnectionError, match=rf"download of {url} broke off .*20000 bytes read.*try again"):
            download.fetch_url(url, sha256(BODY), tmp_path / "new" / "file.zip")
        assert everything_in(tmp_path / "new") == []

    def test_stalls_on_the_way(self, server, tmp_path):
        url = server.add("/file.zip", BODY[:20_000], declared=len(BODY), pause="after")
        with pytest.raises(ConnectionError, match=r"broke off .*timed out"):
            download.fetch_url(url, sha256(BODY), tmp_path / "new" / "file.zip", timeout=0.3)
        assert everything_in(tmp_path / "new") == []

    @pytest.mark.parametrize("status", [403, 404, 500, 503])
    def test_error_page(self, server, tmp_path, status):
        url = server.add("/file.zip", b"<html>sorry</html>", status=status)
        with pytest.raises(ConnectionError, match=rf"{url} cannot be reached \(HTTPError: {status} .*proxy settings"):
            download.fetch_url(url, sha256(BODY), tmp_path / "new" / "file.zip")
        assert len(server.seen) == 1
        assert everything_in(tmp_path / "new") == []

    @pytest.mark.parametrize("scheme", ["http", "https"])
    def test_error_page_of_a_proxy(self, server, tmp_path, monkeypatch, scheme):
        url = f"{scheme}://data.invalid/file.zip"
        server.add(url, b"<html>blocked</html>", status=403)
        monkeypatch.setenv(f"{scheme}_proxy", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("no_proxy", "")
        with pytest.raises(ConnectionError, match=rf"{url} cannot be reached \((HTTPError: 403|ProxyError: .*501)"):
            download.fetch_url(url, sha256(BODY), tmp_path / "file.zip")

    def test_refused(self, refused, tmp_path):
        start = time.monotonic()
        with pytest.raises(ConnectionError, match=rf"{refused} cannot be reached .*refused"):
            download.fetch_url(refused, sha256(BODY), tmp_path / "file.zip")
        assert time.monotonic() - start < 3

    def test_nothing_answers(self, server, tmp_path, monkeypatch):
        monkeypatch.setattr(download, "ANSWER_SECONDS", 0.3)
        url = server.add("/file.zip", BODY, pause="before")
        start = time.monotonic()
        with pytest.raises(ConnectionError, match=r"cannot be reached \((no answer within 0.3 seconds|ReadTimeout)"):
            download.fetch_url(url, sha256(BODY), tmp_path / "file.zip")
        assert time.monotonic() - start < 3

    def test_name_is_not_known(self, tmp_path, monkeypatch):
        def fail(*args, **kwargs):
            raise socket.gaierror(-2, "Name or service not known")

        monkeypatch.setattr(socket, "getaddrinfo", fail)
        with pytest.raises(ConnectionError, match=r"data.invalid/file.zip cannot be reached .*not known"):
            download.fetch_url("http://data.invalid/file.zip", sha256(BODY), tmp_path / "file.zip")

    def test_name_server_is_silent(self, tmp_path, monkeypatch):
        monkeypatch.setattr(download, "ANSWER_SECONDS", 0.3)
        released = threading.Event()

        def hang(*args, **kwargs):
            released.wait(20)
            raise socket.gaierror(-3, "Temporary failure in name resolution")

        monkeypatch.setattr(socket, "getaddrinfo", hang)
        with pytest.raises(ConnectionError, match=r"no answer within 0.3 seconds"):
            download.fetch_url("http://data.invalid/file.zip", sha256(BODY), tmp_path / "file.zip")
        released.set()


class TestUnpackZip:
    def unpack(self, tmp_path, data, **options):
        (tmp_path / "archive.zip").write_bytes(data)
        return download.unpack_zip(tmp_path / "archive.zip", tmp_path / "out" / "deep", **options)

    def test_everything(self, tmp_path):
        where = self.unpack(tmp_path, zipped({"ml/": "", "ml/u.data": "1\t2\n", "ml/sub/x": BODY}))
        assert where == tmp_path / "out" / "deep"
        assert everything_in(tmp_path / "out") == ["deep", "deep/ml", "deep/ml/sub", "deep/ml/sub/x", "deep/ml/u.data"]
        assert (where / "ml/sub/x").read_bytes() == BODY

    def test_wanted_members_only(self, tmp_path):
        where = self.unpack(tmp_path, zipped({"p/a.txt": "a", "p/b.bin": "b", "q/a.txt": "c"}), members=["p/*.txt"])
        assert everything_in(where) == ["p", "p/a.txt"]

    def test_whole_destination_is_left(self, tmp_path):
        (tmp_path / "out" / "deep").mkdir(parents=True)
        assert everything_in(self.unpack(tmp_path, b"not even read")) == []

    @pytest.mark.parametrize(
        ("members", "message"),
        [
            ([("/etc/x", "x")], "'/etc/x' points outside"),
            ([("ok", "x"), ("../x", "x")], "'../x' points outside"),
            ([("a/../../x", "x")], "points outside"),
            ([("a\\..\\x", "x")], "points outside"),
            ([("C:/x", "x")], "points outside"),
            ([("ok", "x"), (special_member("a", EVIL_MODE["link"]), "/etc")], "'a' is a link"),
            ([(special_member("a", EVIL_MODE["pipe"]), "")], "'a' is a link or a device"),
            ([("a", "x"), ("./a", "y")], "'./a' is there twice"),
            ([("zeros", bytes(2**26 + 1))], "would unpack to 67108865 bytes, more than the 67108864"),
            ([("other", "x")], "no member matches ok, zeros, a, x"),
        ],
    )
    def test_harmful_member(self, tmp_path, members, message):
        wanted = ["*"] if "no member" not in message else ["ok", "zeros", "a", "x"]
        with pytest.raises(ValueError, match=message.replace("\\", r"\\")) as caught:
            self.unpack(tmp_path, zipped(members), members=wanted)
        assert str(tmp_path / "archive.zip") in str(caught.value)
        assert everything_in(tmp_path / "out") == []

    def test_damaged(self, tmp_path):
        whole = zipped({"first": BODY, "second": BODY})
        flipped = bytearray(whole)
        flipped[30_000] ^= 0xFF
        encrypted = bytearray(zipped({"a": "secret"}))
        encrypted[encrypted.index(b"PK\x01\x02") + 8] |= 1
        encrypted[6] |= 1
        for data in (whole[: len(whole) // 2], bytes(flipped), bytes(encrypted), b"<html></html>", b""):
            with pytest.raises(ValueError, match=r"archive.zip is not a whole zip archive .*download it again"):
                self.unpack(tmp_path, data)
            assert everything_in(tmp_path / "out") == []


class TestFetchWheel:
    def test_takes_members_without_dependencies(self, tmp_path):
        members = {"carrier/data/a.txt": "a", "carrier/data/b.txt": "b", "carrier/__init__.py": "raise SystemExit"}
        digest = make_wheel(tmp_path / "links", "carrier", "1.0", members)
        target = tmp_path / "new" / "carrier"
        for _ in range(2):  # the second time it is there
            where = download.fetch_wheel("carrier", "1.0", digest, members=["carrier/data/*"], destination=target)
            assert where == target
            assert everything_in(target) == ["carrier", "carrier/data", "carrier/data/a.txt", "carrier/data/b.txt"]
            (tmp_path / "links" / "carrier-1.0-py3-none-any.whl").unlink(missing_ok=True)
        assert everything_in(tmp_path / "new")[0] == "carrier"

    def test_wrong_checksum(self, tmp_path):
        found = make_wheel(tmp_path / "links", "carrier", "1.0", {"carrier/a": "a"})
        with pytest.raises(ValueError, match=rf"carrier-1.0.*SHA-256 {found} and not {sha256(BODY)}.*pip config list"):
            download.fetch_wheel("carrier", "1.0", sha256(BODY), members=["*"], destination=tmp_path / "new" / "c")
        assert everything_in(tmp_path / "new") == []

    def test_no_such_version(self, tmp_path):
        with pytest.raises(ConnectionError, match=r"pip cannot download carrier==1.1 \(ERROR: .*pip config list"):
            download.fetch_wheel("carrier", "1.1", sha256(BODY), members=["*"], destination=tmp_path / "new" / "c")
        assert everything_in(tmp_path / "new") == []

    def test_no_pip(self, tmp_path, monkeypatch):
        venv.create(tmp_path / "bare", with_pip=False)
        python = tmp_path / "bare" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
        monkeypatch.setattr(sys, "executable", str(python))
        with pytest.raises(ConnectionError, match=rf"{python} has no pip. Install it .*ensurepip"):
            download.fetch_wheel("carrier", "1.0", sha256(BODY), members=["*"], destination=tmp_path / "new" / "c")
        assert everything_in(tmp_path / "new") == []


class TestMovielens100k:
    @pytest.fixture(autouse=True)
    def sources(self, monkeypatch, server, refused, tmp_path):
        """GroupLens is the local server, and the wheel one of our own; `cut` takes GroupLens away."""
        archive = zipped({"ml-100k/u.data": "1\t1\t5\t1\n", "ml-100k/u.item": "1|A (1990)\n"})
        monkeypatch.setattr(download, "MOVIELENS_100K_URL", server.add("/ml-100k.zip", archive))
        monkeypatch.setattr(download, "MOVIELENS_100K_SHA256", sha256(archive))
        folder = download.RECBOLE_MOVIELENS_100K
        members = {f"{folder}/ml-100k.inter": "user_id:token\n", f"{folder}/ml-100k.item": "", "recbole/other.py": ""}
        digest = make_wheel(tmp_path / "links", "recbole", download.RECBOLE_VERSION, members)
        monkeypatch.setattr(download, "RECBOLE_SHA256", digest)
        self.archive = archive
        self.cut = lambda: monkeypatch.setattr(download, "MOVIELENS_100K_URL", refused)

    def test_grouplens_then_cache(self, server, tmp_path, caplog):
        where = download.movielens_100k()
        assert everything_in(where) == ["u.data", "u.item"]
        assert lines_of(caplog) == [download.MOVIELENS_TERMS]
        assert everything_in(tmp_path / "cache")[0] == "grouplens-ml-100k"
        server.seen.clear()
        self.cut()
        assert download.movielens_100k() == where
        assert server.seen == []

    def test_terms_name_what_is_asked_for(self, caplog):
        download.movielens_100k()
        for part in ("research", "redistribution", "commercial", "permission", "Harper", "Konstan", "2015"):
            assert part in caplog.text
        assert caplog.records[0].levelno == logging.WARNING

    def test_wheel_then_cache(self, tmp_path, caplog, refused):
        self.cut()
        where = download.movielens_100k()
        assert everything_in(where) == ["ml-100k.inter", "ml-100k.item"]
        terms, line = lines_of(caplog)
        assert terms == download.MOVIELENS_TERMS
        assert f"GroupLens: {refused} cannot be reached" in line
        assert "the PyPI wheel recbole 1.2.1" in line
        assert "\n" not in line
        (tmp_path / "links" / "recbole-1.2.1-py3-none-any.whl").unlink()
        assert download.movielens_100k() == where
        assert everything_in(tmp_path / "cache")[0] == "recbole-1.2.1"

    def test_nothing_can_be_reached(self, tmp_path, refused):
        self.cut()
        (tmp_path / "links" / "recbole-1.2.1-py3-none-any.whl").unlink()
        with pytest.raises(ConnectionError) as caught:
            download.movielens_100k()
        for part in (f"{refused} cannot be reached", "pip cannot download recbole==1.2.1", "by hand", "--data"):
            assert part in str(caught.value)
        assert everything_in(tmp_path / "cache") == []

    def test_wrong_checksum_is_an_error_and_no_other_road(self, server, tmp_path):
        server.add("/ml-100k.zip", self.archive + b"\0")
        with pytest.raises(ValueError, match="is not the expected file"):
            download.movielens_100k()
        assert everything_in(tmp_path / "cache") == []

    def test_incomplete_cache_is_made_anew(self, caplog):
        where = download.movielens_100k()
        (where / "u.data").unlink()
        assert download.movielens_100k() == where
        assert (where / "u.data").is_file()
        assert f"{where} lacks u.data" in caplog.text

    @pytest.mark.parametrize("file", ["u.data", "ratings.dat", "ratings.csv", "my.inter"])
    @pytest.mark.parametrize("nested", ["", "ml"])
    def test_explicit_directory(self, tmp_path, server, caplog, file, nested):
        folder = tmp_path / "mine" / nested
        folder.mkdir(parents=True)
        (folder / file).write_text("")
        assert download.movielens_100k(str(tmp_path / "mine")) == folder
        assert server.seen == []
        assert caplog.text.count(download.MOVIELENS_TERMS) == 1

    def test_explicit_archive(self, tmp_path, server):
        (tmp_path / "by-hand.zip").write_bytes(self.archive)
        assert everything_in(download.movielens_100k(tmp_path / "by-hand.zip")) == ["u.data", "u.item"]
        assert server.seen == []

    def test_explicit_path_that_is_wrong(self, tmp_path, server):
        for name in ("empty", "two/a", "two/b"):
            (tmp_path / name).mkdir(parents=True)
        for name in ("file.txt", "two/a/u.data", "two/b/u.data"):
            (tmp_path / name).write_text("")
        for name, error, message in [
            ("missing", FileNotFoundError, "missing does not exist"),
            ("empty", FileNotFoundError, r"empty holds no MovieLens data: expected one of u\.data"),
            ("file.txt", ValueError, r"file\.txt is neither a directory nor a whole zip archive"),
            ("two", ValueError, r"two holds several data sets \(a, b\)"),
        ]:
            with pytest.raises(error, match=message):
                download.movielens_100k(tmp_path / name)
        assert server.seen == []

    def test_loaded(self, tmp_path):
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "u.data").write_text("1\t7\t5\t100\n2\t7\t3\t50\n")
        flags = "|".join("0" * 19)
        (tmp_path / "mine" / "u.item").write_text(f"7|Red River, The (1948)|01-Jan-1948||http://x|{flags}\n")
        interactions = download.load_movielens_100k(tmp_path / "mine")
        assert interactions.events.height == 2
        assert interactions.items["title"].to_list() == ["The Red River (1948)"]

    def test_loader_by_layout(self, monkeypatch):
        for name in ("movielens", "recbole"):
            monkeypatch.setattr(download, f"load_{name}", lambda path, name=name: (name, path))
        assert download.load_movielens_100k() == ("movielens", download.cache_dir() / "grouplens-ml-100k" / "ml-100k")
        shutil.rmtree(download.cache_dir())
        self.cut()
        name, path = download.load_movielens_100k()
        assert (name, path.name) == ("recbole", "ml-100k")
