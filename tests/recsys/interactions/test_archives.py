"""Real zip archives, whole, damaged and harmful."""

import os
import stat
import zipfile

import pytest

from trl_sdpo.recsys.interactions import archives


BODY = os.urandom(50_000)
EVIL_MODE = {"link": stat.S_IFLNK | 0o777, "pipe": stat.S_IFIFO | 0o644}


def special_member(name, mode):
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    return info


def everything_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) if folder.exists() else []


class TestUnpackZip:
    def unpack(self, tmp_path, data, **options):
        (tmp_path / "archive.zip").write_bytes(data)
        return archives.unpack_zip(tmp_path / "archive.zip", tmp_path / "out" / "deep", **options)

    def test_everything(self, tmp_path, zipped):
        where = self.unpack(tmp_path, zipped({"ml/": "", "ml/u.data": "1\t2\n", "ml/sub/x": BODY}))
        assert where == tmp_path / "out" / "deep"
        assert everything_in(tmp_path / "out") == ["deep", "deep/ml", "deep/ml/sub", "deep/ml/sub/x", "deep/ml/u.data"]
        assert (where / "ml/sub/x").read_bytes() == BODY

    def test_wanted_members_only(self, tmp_path, zipped):
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
    def test_harmful_member(self, tmp_path, zipped, members, message):
        wanted = ["*"] if "no member" not in message else ["ok", "zeros", "a", "x"]
        with pytest.raises(ValueError, match=message.replace("\\", r"\\")) as caught:
            self.unpack(tmp_path, zipped(members), members=wanted)
        assert str(tmp_path / "archive.zip") in str(caught.value)
        assert everything_in(tmp_path / "out") == []

    def test_damaged(self, tmp_path, zipped):
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
