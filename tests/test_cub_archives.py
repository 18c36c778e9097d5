"""An archive writes into its folder and nowhere else; what tries anything else is refused in one sentence."""

import io
import os
import tarfile

import pytest

from data_prep.cub_source import extract
from data_prep.cub_tables import CubError

CONTENT = b"written by the archive"


def pack(path, *members):
    """Writes an archive of (name, kind, link name) members; regular files hold CONTENT."""
    with tarfile.open(path, "w:gz") as tar:
        for name, kind, link in members:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, link
            member.size = len(CONTENT) if kind == tarfile.REGTYPE else 0
            tar.addfile(member, io.BytesIO(CONTENT))
    return path


def file(name):
    return name, tarfile.REGTYPE, ""


def tree(folder):
    """What lies where, links not followed."""
    return {
        os.path.join(path, name): os.lstat(os.path.join(path, name)).st_size
        for path, folders, files in os.walk(folder)
        for name in [*folders, *files]
    }


# OUTSIDE stands for a folder beside the one that is extracted into.
ESCAPES = {
    "absolute": [file("OUTSIDE/evil.txt")],
    "absolute with two slashes": [file("/OUTSIDE/evil.txt")],
    "absolute with three slashes": [file("//OUTSIDE/evil.txt")],
    "parent": [file("../outside/evil.txt")],
    "parent below a folder": [file("a/../../outside/evil.txt")],
    "parent that ends inside": [("a", tarfile.DIRTYPE, ""), file("a/../evil.txt")],
    "folder outside": [("../outside/evil", tarfile.DIRTYPE, "")],
    "absolute folder": [("//OUTSIDE/evil", tarfile.DIRTYPE, "")],
    "link to a folder outside, written through": [("a", tarfile.SYMTYPE, "OUTSIDE"), file("a/evil.txt")],
    "relative link, written through": [("a", tarfile.SYMTYPE, "../outside"), file("a/evil.txt")],
    "link to a file outside, written through": [("a", tarfile.SYMTYPE, "OUTSIDE/kept.txt"), file("a")],
    "hard link outside, written through": [("a", tarfile.LNKTYPE, "OUTSIDE/kept.txt"), file("a")],
    "relative hard link": [("a", tarfile.LNKTYPE, "../outside/kept.txt"), file("a")],
    "link to a link": [("a", tarfile.SYMTYPE, "."), ("a/b", tarfile.SYMTYPE, ".."), file("a/b/outside/evil.txt")],
    "character device": [("a", tarfile.CHRTYPE, "")],
    "block device": [("a", tarfile.BLKTYPE, "")],
    "pipe": [("a", tarfile.FIFOTYPE, "")],
    "the same file twice": [file("a"), file("a")],
    "the same file under two names": [file("a/b"), file("a/./b")],
    "backslashes": [file("..\\outside\\evil.txt")],
    "a file where a folder is": [file("a"), file("a/b")],
    "a folder where a file is": [file("a/b"), file("a")],
    "no name": [file("")],
    "a name too long": [file("x" * 300)],
    "a name that is not UTF-8": [file("\udcff.txt")],
}


@pytest.mark.parametrize("kind", ESCAPES)
def test_nothing_is_written_outside_and_the_refusal_is_a_sentence(tmp_path, kind):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept.txt").write_bytes(b"kept")
    members = [[str(part).replace("OUTSIDE", str(outside)) if isinstance(part, str) else part for part in member]
               for member in ESCAPES[kind]]  # fmt: skip
    archive = pack(tmp_path / "evil.tgz", *members)
    before = tree(tmp_path)
    with pytest.raises(CubError, match=r"evil\.tgz: member ") as error:
        extract(archive, tmp_path / "inside")
    assert "\n" not in str(error.value) and len(str(error.value)) < 300 + len(str(tmp_path))
    inside = tree(tmp_path / "inside")
    assert tree(tmp_path).keys() - before.keys() <= inside.keys() | {str(tmp_path / "inside")}
    assert (outside / "kept.txt").read_bytes() == b"kept" and not any(map(os.path.islink, inside))


def test_what_the_official_archive_holds_is_extracted(tmp_path):
    folder = ("CUB_200_2011", tarfile.DIRTYPE, "")
    members = [
        folder,
        file("CUB_200_2011/images.txt"),
        ("./CUB_200_2011", tarfile.DIRTYPE, ""),
        file("./attributes.txt"),
    ]
    extract(pack(tmp_path / "birds.tgz", *members), tmp_path / "inside")
    assert (tmp_path / "inside" / "CUB_200_2011" / "images.txt").read_bytes() == CONTENT
    assert (tmp_path / "inside" / "attributes.txt").read_bytes() == CONTENT
