"""Opens a CUB source (folder or archive) and tells one source from another by its content."""

import gzip
import hashlib
import os
import tarfile
import zlib
from pathlib import Path, PurePosixPath

from data_prep.cub_files import locate, metadata_files
from data_prep.cub_tables import CubError


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
    """Size in bytes of every "class folder/file" below `folder`, in sorted order; empty where there is no folder."""
    sizes: dict[str, int] = {}
    for path, _, names in os.walk(folder):
        relative = Path(path).relative_to(folder).as_posix()
        sizes.update({f"{relative}/{name}": os.stat(os.path.join(path, name)).st_size for name in names})
    return dict(sorted(sizes.items()))


def extract(archive: Path, folder: Path) -> None:
    """Extracts a .tgz or .tar into `folder`.

    Raises:
        CubError: naming the member that points outside, or the archive that is truncated or none.
    """
    member = None
    try:
        with tarfile.open(archive) as tar:
            # Not the filter="data" of tarfile, which Python 3.11.0 to 3.11.3 lack. CUB holds folders and files only,
            # and where no link is ever made, a clean name cannot lead outside.
            tar.extraction_filter = lambda member, path: member
            for member in tar:
                parts = PurePosixPath(member.name).parts
                if not (member.isfile() or member.isdir()) or "/" in parts or ".." in parts:
                    raise CubError(
                        f"{archive}: member {member.name!r} points outside the folder or is special; refusing it"
                    )
                tar.extract(member, folder, set_attrs=False)
            # tarfile takes a file that stops between two members for a whole one: look for the block that ends it, then
            # read on to the end, which is where gzip checks its sum.
            if tar.fileobj is None or tar.fileobj.tell() - tar.offset < tarfile.BLOCKSIZE:
                raise CubError(f"{archive}: truncated after {member.name if member else 'nothing'}; get it again")
            while tar.fileobj.read(1 << 20):
                pass
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        where = f"after member {member.name!r}" if member else "at its start"
        raise CubError(f"{archive}: damaged or truncated {where} ({error}); expected a whole .tgz archive") from error
