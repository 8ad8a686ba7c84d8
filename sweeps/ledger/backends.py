"""What a storage is made of: a disk or mount of this machine, or an object store behind pyarrow.

Both put whole objects, get them, list a folder, and delete. ``create`` is a put that fails where the name is taken. A
disk decides between two creators by a hard link. pyarrow 25 passes no ``If-None-Match``: on an object store the name is
looked up before the put and read back after it, so that of two creators within a moment the last one holds the name.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import time
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final, Protocol

from sweeps.errors import BadInputError

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

TEMPORARY_PREFIX: Final = ".tmp-"
_SETTLE_S: Final = 0.3  # between a put and its reading back; a put from before the look-up has landed by then
_NO_HARD_LINKS: Final = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
_AWAY_NAMES: Final = (
    *("EIO", "EAGAIN", "EINTR", "EBUSY", "ESTALE", "EREMOTEIO", "ENOLCK", "EPIPE", "ETIMEDOUT", "ENOTCONN"),
    *(
        "ECONNRESET",
        "ECONNABORTED",
        "ECONNREFUSED",
        "EHOSTDOWN",
        "EHOSTUNREACH",
        "ENETDOWN",
        "ENETUNREACH",
        "ENETRESET",
    ),
)
_AWAY: Final = {getattr(errno, name) for name in _AWAY_NAMES if hasattr(errno, name)}
_NO_BUCKET: Final = "NO_SUCH_BUCKET"
_REFUSALS: Final = (
    *("ACCESS_DENIED", _NO_BUCKET, "INVALID_ACCESS_KEY", "SIGNATURE", "HTTP status 401", "HTTP status 403"),
    *("UNAUTHENTICATED", "PERMISSION_DENIED"),  # of Google's storage
)


class Backend(Protocol):
    """Objects by key; a key is a relative path, and the empty one is the backend's own folder.

    ``read`` and ``delete`` raise FileNotFoundError, ``create`` FileExistsError; anything else is another OSError.
    """

    def read(self, key: str) -> bytes:
        """Get the whole object."""
        ...

    def write(self, key: str, data: bytes) -> None:
        """Put the whole object: a reader sees the old one or the new one, never a piece."""
        ...

    def create(self, key: str, data: bytes) -> None:
        """Put an object that is not there yet."""
        ...

    def exists(self, key: str) -> bool:
        """Whether an object or a folder is there."""
        ...

    def names(self, key: str) -> list[str]:
        """List what stands directly in a folder; nothing where it is not there."""
        ...

    def delete(self, key: str) -> None:
        """Delete an object, or a folder with all that it holds."""
        ...

    def is_away(self, error: OSError) -> bool:
        """Whether the operation may succeed a moment later, as far as its error says."""
        ...


class LocalDisk:
    """A folder of this machine, a shared mount included."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def read(self, key: str) -> bytes:
        """Read the file."""
        return (self._root / key).read_bytes()

    def write(self, key: str, data: bytes) -> None:
        """Write a temporary file in the same folder, flush it to the disk, move it into place."""
        path = self._root / key
        temporary = _written_temporary(path, data)
        try:
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _flush_folder(path.parent)

    def create(self, key: str, data: bytes) -> None:
        """Write a temporary file and link it under its name, which the kernel grants once."""
        path = self._root / key
        temporary = _written_temporary(path, data)
        try:
            os.link(temporary, path)
        except OSError as error:
            if error.errno not in _NO_HARD_LINKS:
                raise
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        _flush_folder(path.parent)

    def exists(self, key: str) -> bool:
        """Look the path up; ``Path.exists`` would answer False for a disk that fails, from Python 3.14 on."""
        try:
            os.stat(self._root / key)  # noqa: PTH116
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def names(self, key: str) -> list[str]:
        """List the folder without temporary files; raises BadInputError where a file stands in its place."""
        try:
            return [entry.name for entry in os.scandir(self._root / key)]
        except FileNotFoundError:
            return []
        except NotADirectoryError:
            raise BadInputError(f"{self._root / key} is a file, not a folder; name another") from None

    def delete(self, key: str) -> None:
        """Delete the file or the folder."""
        path = self._root / key
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()

    def is_away(self, error: OSError) -> bool:
        """A mount that does not answer; a full or read-only disk is not away."""
        return error.errno in _AWAY


class ObjectStore:
    """A bucket, or a folder in one."""

    def __init__(self, uri: str, opened: tuple[FileSystem, str] | None = None) -> None:
        """Take the URI, opened with the first operation, or the file system and the folder in it."""
        self._uri = uri
        if opened is not None:
            self.__dict__["_opened"] = opened

    def read(self, key: str) -> bytes:
        """Get the object."""
        with self._filesystem.open_input_stream(self._path(key)) as stream:
            return bytes(stream.read())

    def write(self, key: str, data: bytes) -> None:
        """Put the object."""
        try:
            with self._filesystem.open_output_stream(self._path(key)) as stream:
                stream.write(data)
        except FileNotFoundError as error:  # as Google's storage says it
            raise OSError(f"{_NO_BUCKET}: {error}") from error

    def create(self, key: str, data: bytes) -> None:
        """Put the object where none is, and look whether it stayed."""
        if self.exists(key):
            raise FileExistsError(errno.EEXIST, "there is an object of this name", key)
        self.write(key, data)
        time.sleep(_SETTLE_S)
        with contextlib.suppress(FileNotFoundError):  # superseded within this moment: taken, as far as we know
            if self.read(key) == data:
                return
        raise FileExistsError(errno.EEXIST, "another writer took this name at the same moment", key)

    def exists(self, key: str) -> bool:
        """Look the object or the folder up."""
        from pyarrow.fs import FileType

        return bool(self._filesystem.get_file_info(self._path(key)).type != FileType.NotFound)

    def names(self, key: str) -> list[str]:
        """List the folder.

        Of Google's storage pyarrow lists the folders that have an object of their own, and ours have none: there all
        that is below the folder is listed.
        """
        from pyarrow.fs import FileSelector

        folder, is_deep = self._path(key), self._filesystem.type_name == "gcs"
        selector = FileSelector(folder, allow_not_found=True, recursive=is_deep)
        found = [PurePosixPath(info.path).relative_to(folder) for info in self._filesystem.get_file_info(selector)]
        return list(dict.fromkeys(path.parts[0] for path in found))

    def delete(self, key: str) -> None:
        """Delete the object or the folder."""
        from pyarrow.fs import FileType

        if self._filesystem.get_file_info(self._path(key)).type == FileType.Directory:
            self._filesystem.delete_dir(self._path(key))
        else:
            self._filesystem.delete_file(self._path(key))

    def is_away(self, error: OSError) -> bool:
        """Anything but a refusal: pyarrow has one kind of error for all that a network can do."""
        return not any(refusal in str(error) for refusal in _REFUSALS)

    def _path(self, key: str) -> str:
        return f"{self._opened[1]}/{key}".rstrip("/")

    @property
    def _filesystem(self) -> FileSystem:
        return self._opened[0]

    @cached_property
    def _opened(self) -> tuple[FileSystem, str]:
        import pyarrow
        from pyarrow import fs

        try:
            filesystem, root = fs.FileSystem.from_uri(self._uri)
        except (pyarrow.ArrowInvalid, OSError) as error:
            raise BadInputError(
                f"{self._uri} is not a storage that can be opened ({error}); give a path, s3://bucket/folder or gs://..."
            ) from error
        return filesystem, root


def _written_temporary(path: Path, data: bytes) -> Path:
    """A flushed temporary file beside ``path``, whose folder is made where it is missing."""
    temporary = path.parent / f"{TEMPORARY_PREFIX}{path.name}-{os.getpid()}-{secrets.token_hex(4)}"
    _make_folder(path.parent)
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def _make_folder(folder: Path) -> None:
    """Make a folder and all above it, each name flushed to the disk: a file is lost with any of its ancestors."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    with contextlib.suppress(FileExistsError):
        folder.mkdir()
    _flush_folder(folder.parent)


def _flush_folder(folder: Path) -> None:
    """Make names in a folder survive a power cut, not only the bytes of its files."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
