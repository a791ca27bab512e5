"""Downloads against a local HTTP server and the real pip; nothing leaves the machine."""

import gzip
import hashlib
import os
import shutil
import socket
import sys
import threading
import time
import venv

import pytest

from trl_sdpo.recsys.interactions import download


BODY = os.urandom(50_000)

pytestmark = pytest.mark.usefixtures("sealed", "no_pause")


@pytest.fixture
def no_pause(monkeypatch):
    monkeypatch.setattr(download, "PAUSE_SECONDS", 0)


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def everything_in(folder):
    paths = sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) if folder.exists() else []
    return [path for path in paths if not path.endswith(".lock")]


class TestCacheDir:
    def test_environment_variable(self, tmp_path):
        assert download.cache_dir() == tmp_path / "cache"
        assert (tmp_path / "cache").is_dir()

    def test_default(self, monkeypatch, tmp_path):
        monkeypatch.setenv("TRL_SDPO_CACHE", "")
        monkeypatch.setattr(download.sys, "platform", "linux")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        assert download.cache_dir() == tmp_path / "trl_sdpo"

    def test_cannot_be_made(self, monkeypatch, tmp_path):
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("TRL_SDPO_CACHE", str(tmp_path / "file" / "cache"))
        with pytest.raises(OSError, match=r"file/cache cannot be made.*set TRL_SDPO_CACHE"):
            download.cache_dir()


class TestFetchUrl:
    def test_downloads_once(self, server, tmp_path, capfd, monkeypatch):
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
        url, path = server.add("/file.zip", BODY), tmp_path / "new" / "file.zip"
        assert download.fetch_url(url, sha256(BODY), path) == path
        assert path.read_bytes() == BODY
        assert "100%" in capfd.readouterr().err  # the bar that a terminal shows
        requests = len(server.seen)
        assert download.fetch_url(url, sha256(BODY), path) == path
        assert len(server.seen) == requests

    def test_replaces_a_file_with_another_checksum(self, server, tmp_path):
        (tmp_path / "file.zip").write_bytes(BODY[:100])
        download.fetch_url(server.add("/file.zip", BODY), sha256(BODY), tmp_path / "file.zip")
        assert (tmp_path / "file.zip").read_bytes() == BODY

    def test_wrong_checksum(self, server, tmp_path):
        url = server.add("/file.zip", b"<html>please log in</html>")
        with pytest.raises(ValueError, match=rf"{url} is not the expected file: its SHA256 is not {sha256(BODY)}"):
            download.fetch_url(url, sha256(BODY), tmp_path / "new" / "file.zip")
        assert everything_in(tmp_path / "new") == []

    def test_broken_off_is_kept_and_gone_on_with(self, server, tmp_path, capfd):
        """The server hangs up twice on the way; each time only the rest is asked for."""
        path = tmp_path / "new" / "file.zip"
        url = server.add("/file.zip", BODY, ranges=True, headers={"ETag": '"v1"'}, cut=[20_000, 25_000])
        assert download.fetch_url(url, sha256(BODY), path).read_bytes() == BODY
        assert server.ranges == [None, None, "bytes=20000-", "bytes=45000-"]
        assert everything_in(tmp_path / "new") == ["file.zip"]

    @pytest.mark.parametrize("checksum", [None, sha256(BODY)])
    def test_a_later_run_goes_on(self, server, tmp_path, monkeypatch, checksum):
        monkeypatch.setattr(download, "ATTEMPTS", 1)
        path = tmp_path / "new" / "file"
        url = server.add("/file", BODY, ranges=True, headers={"Last-Modified": "Mon"}, cut=[20_000])
        with pytest.raises(
            ConnectionError, match=rf"{url} broke off .*20000 bytes are kept in .*file\.part: try again"
        ):
            download.fetch_url(url, checksum, path)
        assert everything_in(tmp_path / "new") == ["file.part", "file.part.version"]
        assert (tmp_path / "new" / "file.part").read_bytes() == BODY[:20_000]
        assert download.fetch_url(url, checksum, path).read_bytes() == BODY
        assert server.ranges[-1] == "bytes=20000-"
        assert everything_in(tmp_path / "new") == ["file"]

    def test_a_file_that_changed_meanwhile_comes_from_its_beginning(self, server, tmp_path, monkeypatch):
        monkeypatch.setattr(download, "ATTEMPTS", 1)
        path = tmp_path / "file"
        server.add("/file", BODY, ranges=True, headers={"ETag": '"v1"'}, cut=[20_000])
        url = f"http://127.0.0.1:{server.server_port}/file"
        with pytest.raises(ConnectionError, match="20000 bytes are kept"):
            download.fetch_url(url, None, path)
        server.add("/file", BODY[::-1], ranges=True, headers={"ETag": '"v2"'})
        assert download.fetch_url(url, None, path).read_bytes() == BODY[::-1]

    @pytest.mark.parametrize("headers", [{}, {"ETag": 'W/"weak"'}])
    def test_without_version_and_checksum_nothing_is_put_together(self, server, tmp_path, headers):
        url = server.add("/file", BODY, ranges=True, headers=headers, cut=[20_000])
        assert download.fetch_url(url, None, tmp_path / "file").read_bytes() == BODY
        assert server.ranges == [None, None, None]

    def test_a_checksum_is_enough_to_go_on(self, server, tmp_path):
        url = server.add("/file", BODY, ranges=True, cut=[20_000])
        assert download.fetch_url(url, sha256(BODY), tmp_path / "file").read_bytes() == BODY
        assert server.ranges[-1] == "bytes=20000-"

    def test_a_part_that_does_not_fit_is_thrown_away(self, server, tmp_path, caplog):
        (tmp_path / "file.part").write_bytes(b"other" * 100)
        url = server.add("/file", BODY, ranges=True)
        assert download.fetch_url(url, sha256(BODY), tmp_path / "file").read_bytes() == BODY
        assert server.ranges[1:] == ["bytes=500-", None]
        assert "does not fit what came before" in caplog.text

    def test_a_part_that_is_whole(self, server, tmp_path):
        (tmp_path / "file.part").write_bytes(BODY)
        url = server.add("/file", BODY, ranges=True)
        assert download.fetch_url(url, sha256(BODY), tmp_path / "file").read_bytes() == BODY

    def test_a_part_that_is_too_long(self, server, tmp_path):
        (tmp_path / "file.part").write_bytes(BODY + b"more")
        url = server.add("/file", BODY, ranges=True)
        assert download.fetch_url(url, sha256(BODY), tmp_path / "file").read_bytes() == BODY

    def test_a_server_without_ranges_sends_all_again(self, server, tmp_path):
        url = server.add("/file", BODY, cut=[20_000])
        assert download.fetch_url(url, sha256(BODY), tmp_path / "file").read_bytes() == BODY
        assert server.ranges == [None, None, "bytes=20000-"]

    def test_a_server_that_never_sends_more_is_given_up(self, server, tmp_path):
        url = server.add("/file.zip", BODY[:20_000], declared=len(BODY))
        with pytest.raises(ConnectionError, match=rf"download of {url} broke off .*20000 bytes are kept.*try again"):
            download.fetch_url(url, sha256(BODY), tmp_path / "new" / "file.zip")
        assert len(server.seen) == 3
        assert not (tmp_path / "new" / "file.zip").exists()

    def test_stalls_on_the_way(self, server, tmp_path):
        url = server.add("/file.zip", BODY[:20_000], declared=len(BODY), pause="after")
        with pytest.raises(ConnectionError, match=r"broke off .*timed out"):
            download.fetch_url(url, sha256(BODY), tmp_path / "new" / "file.zip", timeout=0.3)
        assert not (tmp_path / "new" / "file.zip").exists()

    @pytest.mark.parametrize("name", ["file.zip", "file.json.gz"])
    def test_a_page_in_place_of_an_archive_without_checksum(self, server, tmp_path, name):
        url = server.add(f"/{name}", b"<html>please log in</html>")
        with pytest.raises(ValueError, match=r"not the expected file: it begins with b'<h' instead of"):
            download.fetch_url(url, None, tmp_path / "new" / name)
        assert everything_in(tmp_path / "new") == []

    def test_what_is_stored_zipped_stays_so(self, server, tmp_path):
        """Some servers declare a .gz as an encoding, and clients unzip it on the way."""
        data = gzip.compress(BODY)
        url = server.add("/file.gz", data, headers={"Content-Encoding": "gzip"})
        assert download.fetch_url(url, None, tmp_path / "file.gz").read_bytes() == data

    def test_md5(self, server, tmp_path):
        url, digits = server.add("/file", BODY), hashlib.md5(BODY).hexdigest()
        assert download.fetch_url(url, f"md5:{digits}", tmp_path / "file").read_bytes() == BODY
        with pytest.raises(ValueError, match="its MD5 is not 0123"):
            download.fetch_url(url, "md5:0123", tmp_path / "other")

    def test_no_room(self, server, tmp_path, monkeypatch):
        monkeypatch.setattr(download.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 40_000))
        with pytest.raises(OSError, match="has room for 40000 bytes, 50000 are needed: set TRL_SDPO_CACHE"):
            download.fetch_url(server.add("/file", BODY), None, tmp_path / "file")

    def test_two_at_a_time_wait_for_each_other(self, server, tmp_path):
        url, path = server.add("/file", BODY), tmp_path / "file"
        threads = [threading.Thread(target=download.fetch_url, args=(url, None, path)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert path.read_bytes() == BODY
        assert len(server.seen) == 2

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
        with pytest.raises(ConnectionError, match=rf"{url} cannot be reached \((HTTPError: 403|URLError: .*501)"):
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
        with pytest.raises(
            ConnectionError, match=r"cannot be reached \((no answer within 0.3 seconds|TimeoutError|URLError)"
        ):
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


class TestFetchWheel:
    def test_takes_members_without_dependencies(self, tmp_path, make_wheel):
        members = {"carrier/data/a.txt": "a", "carrier/data/b.txt": "b", "carrier/__init__.py": "raise SystemExit"}
        digest = make_wheel(tmp_path / "links", "carrier", "1.0", members)
        target = tmp_path / "new" / "carrier"
        for _ in range(2):  # the second time it is there
            where = download.fetch_wheel("carrier", "1.0", digest, members=["carrier/data/*"], destination=target)
            assert where == target
            assert everything_in(target) == ["carrier", "carrier/data", "carrier/data/a.txt", "carrier/data/b.txt"]
            (tmp_path / "links" / "carrier-1.0-py3-none-any.whl").unlink(missing_ok=True)
        assert everything_in(tmp_path / "new")[0] == "carrier"

    def test_wrong_checksum(self, tmp_path, make_wheel):
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
