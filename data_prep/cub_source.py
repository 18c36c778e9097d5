"""Opens a CUB source (folder or archive) and tells one source from another by its content."""

import gzip
import hashlib
import lzma
import os
import stat
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from data_prep.cub_files import locate, metadata_files
from data_prep.cub_tables import CubError, is_utf8


def fingerprint(source: Path, options: str) -> str:
    """A short name for "this source prepared with these options".

    A folder is known by the content of its text files and the relative path and size of each image; an archive by its
    bytes.

    Raises:
        CubError: where there is nothing at `source`, or no CUB folder.
    """
    digest = hashlib.sha256(options.encode())
    if source.is_file():
        with source.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    elif source.is_dir():
        layout = locate(source)
        for path in metadata_files(layout):
            digest.update(f"{path.name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
        for folder in filter(None, (layout.photos, layout.crops)):
            for name, size in list_files(folder).items():
                digest.update(f"{folder.name}/{name}\0{size}\n".encode())
    else:
        raise CubError(f"{source}: not found; expected CUB_200_2011.tgz, its extracted folder or a folder like it")
    return digest.hexdigest()[:16]


def list_files(folder: Path) -> dict[str, int]:
    """Size in bytes of every "class folder/file" below `folder`, in sorted order; empty where there is no folder.

    Symbolic links count as what they lead to.

    Raises:
        CubError: where a link leads nowhere or back to a folder it lies in, or a name is not UTF-8.
    """
    return dict(sorted(_walk(folder, "", ()))) if folder.is_dir() else {}


def _walk(folder: Path, prefix: str, above: tuple[os.stat_result, ...]) -> Iterator[tuple[str, int]]:
    """(name, size) of the files below folder/prefix; `above` are the folders that led here."""
    path = folder / prefix
    try:
        here = path.stat()
        if any(os.path.samestat(here, other) for other in above):
            raise CubError(f"{path}: a symbolic link back to a folder it lies in; remove it")
        for name in os.listdir(path):
            path = folder / prefix / name
            if not is_utf8(name):
                raise CubError(f"{folder / prefix}: the name {os.fsencode(name)!r} is not UTF-8; rename that file")
            status = path.stat()
            if stat.S_ISDIR(status.st_mode):
                yield from _walk(folder, f"{prefix}{name}/", (*above, here))
            elif stat.S_ISREG(status.st_mode):
                yield prefix + name, status.st_size
    except OSError as error:
        raise CubError(
            f"{path}: cannot be read ({error.strerror}); if it is a symbolic link that leads nowhere, remove it"
        ) from error


def extract(archive: Path, folder: Path) -> None:
    """Extracts a .tgz or .tar into `folder`.

    Raises:
        CubError: naming the member that points outside or cannot be written, or the archive that is truncated or none.
    """
    member, seen = None, set[str]()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with tarfile.open(archive) as tar:
            # Python 3.11.0 to 3.11.3 have no data filter; `_check_member` does not lean on it.
            tar.extraction_filter = getattr(tarfile, "data_filter", lambda member, path: member)
            for member in tar:
                _check_member(archive, member, folder, seen)
                tar.extract(member, folder, set_attrs=False)
            # tarfile takes a file that stops between two members for a whole one: look for the block that ends it, then
            # read on to the end, which is where gzip checks its sum.
            if tar.fileobj is None or tar.fileobj.tell() - tar.offset < tarfile.BLOCKSIZE:
                raise CubError(f"{archive}: truncated after {member.name if member else 'nothing'}; get it again")
            while tar.fileobj.read(1 << 20):
                pass
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        where, reason = f"after member {member.name!r}" if member else "at its start", "; ".join(str(error).split("\n"))
        raise CubError(f"{archive}: damaged or truncated {where} ({reason}); expected a whole .tgz archive") from error
    except OSError as error:  # a name too long for the disk, a file where a folder must be, no space left
        where = f"member {member.name[:80]!r} " if member else ""
        raise CubError(f"{archive}: {where}cannot be extracted ({error.strerror or error})") from error


def _check_member(archive: Path, member: tarfile.TarInfo, folder: Path, seen: set[str]) -> None:
    """Refuses what no archive of CUB holds. Where no link is ever made, a resolved name stays where it is."""
    shown = f"{archive}: member {member.name[:80]!r}"
    if not (member.isfile() or member.isdir()):
        raise CubError(f"{shown} is a link or special; expected folders and files only, so extract it yourself")
    if "\\" in member.name or "\0" in member.name or not is_utf8(member.name):
        raise CubError(f"{shown} has a name that is not plain UTF-8 with '/' between folders; pack it anew")
    inside, target = folder.resolve(), (folder / member.name).resolve()
    if member.name.startswith("/") or ".." in member.name.split("/") or not target.is_relative_to(inside):
        raise CubError(f"{shown} points outside the folder; refusing it")
    if member.isfile():
        if str(target) in seen:
            raise CubError(f"{shown} is there twice; expected each file once")
        seen.add(str(target))
