"""MovieLens-100k from GroupLens (a local server here), from a wheel (made here) and from a path."""

import hashlib
import logging
import shutil
from dataclasses import replace

import pytest

from trl_sdpo.recsys.interactions import download, movielens_100k, published


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def lines_of(caplog):
    return [
        record.getMessage()
        for record in caplog.records
        if record.name in (published.logger.name, movielens_100k.logger.name)
    ]


def everything_in(folder):
    paths = sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) if folder.exists() else []
    return [path for path in paths if not path.endswith(".lock")]


class TestMovielens100k:
    @pytest.fixture(autouse=True)
    def sources(self, sealed, monkeypatch, server, refused, tmp_path, zipped, make_wheel):
        """GroupLens is the local server, and the wheel one of our own; `cut` takes GroupLens away."""
        published.show_terms.cache_clear()
        self.archive = zipped({"ml-100k/u.data": "1\t1\t5\t1\n", "ml-100k/u.item": "1|A (1990)\n"})

        def publish(url):
            source = replace(published.SOURCES["movielens-100k"], files={url: sha256(self.archive)})
            monkeypatch.setitem(published.SOURCES, "movielens-100k", source)

        publish(server.add("/ml-100k.zip", self.archive))
        self.cut = lambda: publish(refused)
        folder = movielens_100k.RECBOLE_MOVIELENS_100K
        members = {f"{folder}/ml-100k.inter": "user_id:token\n", f"{folder}/ml-100k.item": "", "recbole/other.py": ""}
        digest = make_wheel(tmp_path / "links", "recbole", movielens_100k.RECBOLE_VERSION, members)
        monkeypatch.setattr(movielens_100k, "RECBOLE_SHA256", digest)

    def test_grouplens_then_cache(self, server, tmp_path, caplog):
        where = movielens_100k.movielens_100k()
        assert everything_in(where) == ["u.data", "u.item"]
        assert lines_of(caplog) == [published.MOVIELENS_TERMS]
        assert everything_in(tmp_path / "cache")[0] == "movielens-100k"
        server.seen.clear()
        self.cut()
        assert movielens_100k.movielens_100k() == where
        assert server.seen == []

    def test_terms_name_what_is_asked_for(self, caplog):
        movielens_100k.movielens_100k()
        for part in ("research", "redistribution", "commercial", "permission", "Harper", "Konstan", "2015"):
            assert part in caplog.text
        assert caplog.records[0].levelno == logging.WARNING

    def test_wheel_then_cache(self, tmp_path, caplog, refused):
        self.cut()
        where = movielens_100k.movielens_100k()
        assert everything_in(where) == ["ml-100k.inter", "ml-100k.item"]
        terms, line = lines_of(caplog)
        assert terms == published.MOVIELENS_TERMS
        assert f"GroupLens: {refused} cannot be reached" in line
        assert "the PyPI wheel recbole 1.2.1" in line
        assert "\n" not in line
        (tmp_path / "links" / "recbole-1.2.1-py3-none-any.whl").unlink()
        assert movielens_100k.movielens_100k() == where
        assert everything_in(tmp_path / "cache")[0] == "recbole-1.2.1"

    def test_nothing_can_be_reached(self, tmp_path, refused):
        self.cut()
        (tmp_path / "links" / "recbole-1.2.1-py3-none-any.whl").unlink()
        with pytest.raises(ConnectionError) as caught:
            movielens_100k.movielens_100k()
        for part in (f"{refused} cannot be reached", "pip cannot download recbole==1.2.1", "by hand", "--data"):
            assert part in str(caught.value)
        assert everything_in(tmp_path / "cache") == []

    def test_wrong_checksum_is_an_error_and_no_other_road(self, server, tmp_path):
        server.add("/ml-100k.zip", self.archive + b"\0")
        with pytest.raises(ValueError, match="is not the expected file"):
            movielens_100k.movielens_100k()
        assert everything_in(tmp_path / "cache") == []

    def test_incomplete_cache_is_made_anew(self, caplog):
        where = movielens_100k.movielens_100k()
        (where / "u.data").unlink()
        assert movielens_100k.movielens_100k() == where
        assert (where / "u.data").is_file()
        assert f"{where.parent} lacks u.data" in caplog.text

    @pytest.mark.parametrize("file", ["u.data", "ratings.dat", "ratings.csv", "my.inter"])
    @pytest.mark.parametrize("nested", ["", "ml"])
    def test_explicit_directory(self, tmp_path, server, caplog, file, nested):
        folder = tmp_path / "mine" / nested
        folder.mkdir(parents=True)
        (folder / file).write_text("")
        assert movielens_100k.movielens_100k(str(tmp_path / "mine")) == folder
        assert server.seen == []
        assert caplog.text.count(published.MOVIELENS_TERMS) == 1

    def test_explicit_archive(self, tmp_path, server):
        (tmp_path / "by-hand.zip").write_bytes(self.archive)
        assert everything_in(movielens_100k.movielens_100k(tmp_path / "by-hand.zip")) == ["u.data", "u.item"]
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
                movielens_100k.movielens_100k(tmp_path / name)
        assert server.seen == []

    def test_loaded(self, tmp_path):
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "u.data").write_text("1\t7\t5\t100\n2\t7\t3\t50\n")
        flags = "|".join("0" * 19)
        (tmp_path / "mine" / "u.item").write_text(f"7|Red River, The (1948)|01-Jan-1948||http://x|{flags}\n")
        interactions = movielens_100k.load_movielens_100k(tmp_path / "mine")
        assert interactions.events.height == 2
        assert interactions.items["title"].to_list() == ["The Red River (1948)"]

    def test_loader_by_layout(self, monkeypatch):
        for name in ("movielens", "recbole"):
            monkeypatch.setattr(
                movielens_100k, f"load_{name}", lambda path, name=name, **options: (name, path, options)
            )
        folder = download.cache_dir() / "movielens-100k" / "ml-100k"
        assert movielens_100k.load_movielens_100k(merge_titles=False) == ("movielens", folder, {"merge_titles": False})
        shutil.rmtree(download.cache_dir())
        self.cut()
        name, path, _ = movielens_100k.load_movielens_100k()
        assert (name, path.name) == ("recbole", "ml-100k")
