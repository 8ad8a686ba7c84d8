"""A folder on any storage that Ray's ``storage_path`` takes: a local path, a shared mount, ``s3://`` or ``gs://``.

Only four things are asked of a storage: put a whole object, get a whole object, list a folder, delete. There is no
append, no rename and no lock, so an object store is as good as a disk. On a local disk a put is a temporary file in
the same folder, flushed to the disk and moved into place.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from sweeps.errors import BadInputError, DamagedError, StorageError

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

TEMPORARY_PREFIX = ".tmp-"


class Storage:
    """A folder at ``uri``; names inside it are relative, with ``/`` between their parts."""

    def __init__(self, uri: str) -> None:
        """Take a path or a URI; a path, ``file://`` before it or not, is made absolute.

        Nothing is created before the first write. Raises BadInputError for a URI that names nothing behind its scheme,
        or holds a password or options.
        """
        if uri.endswith("://"):
            raise BadInputError(f"{uri} names no bucket or folder; give a path, s3://bucket/folder or gs://...")
        if uri.startswith("file://"):
            uri = _path_of(uri)
        self.uri = _plain_uri(uri).rstrip("/") if "://" in uri else str(Path(uri).expanduser().absolute())

    def __repr__(self) -> str:
        return f"Storage({self.uri!r})"

    @property
    def is_local(self) -> bool:
        """Whether the folder is a path of this machine (a shared mount included)."""
        return "://" not in self.uri

    @property
    def path(self) -> Path:
        """The folder as a local path; only for a local storage."""
        assert self.is_local, f"{self.uri} is not a local path"
        return Path(self.uri)

    def child(self, name: str) -> Storage:
        """The folder ``name`` inside this one; it shares the connection where one is open."""
        inner = Storage(f"{self.uri}/{name}")
        if "_opened" in self.__dict__:
            inner.__dict__["_opened"] = (self._remote, self._key(name))
        return inner

    def read_bytes(self, name: str) -> bytes:
        """The whole object; raises FileNotFoundError where there is none, StorageError where it cannot be read."""
        with _as_storage_error("read", f"{self.uri}/{name}"):
            if self.is_local:
                return (self.path / name).read_bytes()
            with self._remote.open_input_stream(self._key(name)) as stream:
                return bytes(stream.read())

    def write_bytes(self, name: str, data: bytes) -> None:
        """Put the whole object: a reader sees the old one or the new one, never a part."""
        with _as_storage_error("write", f"{self.uri}/{name}"):
            if self.is_local:
                _write_local(self.path / name, data)
            else:
                with self._remote.open_output_stream(self._key(name)) as stream:
                    stream.write(data)

    def read_json(self, name: str) -> Any:
        """The object parsed as JSON; raises DamagedError, naming the object, where it is not JSON."""
        data = self.read_bytes(name)
        try:
            return json.loads(data)
        except ValueError as error:
            raise DamagedError(
                f"{self.uri}/{name} is damaged: it is not JSON ({error}); restore it from a copy"
            ) from error

    def write_json(self, name: str, value: object) -> None:
        """Put ``value`` as JSON; floats keep every digit, and NaN is refused."""
        self.write_bytes(name, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())

    def exists(self, name: str) -> bool:
        """Whether an object of this name is there."""
        from pyarrow.fs import FileType

        with _as_storage_error("look up", f"{self.uri}/{name}"):
            if self.is_local:
                return (self.path / name).exists()
            return bool(self._remote.get_file_info(self._key(name)).type != FileType.NotFound)

    def names(self, folder: str = "") -> list[str]:
        """Sorted names of what stands directly in ``folder``; empty where the folder is not there.

        Raises BadInputError where a file stands in its place.
        """
        with _as_storage_error("list", f"{self.uri}/{folder}"):
            if self.is_local:
                try:
                    found = [entry.name for entry in os.scandir(self.path / folder)]
                except FileNotFoundError:
                    return []
                except NotADirectoryError:
                    raise BadInputError(f"{self.path / folder} is a file, not a folder; name another") from None
            else:
                from pyarrow.fs import FileSelector

                selector = FileSelector(self._key(folder), allow_not_found=True)
                found = [PurePosixPath(info.path).name for info in self._remote.get_file_info(selector)]
        return sorted(name for name in found if not name.startswith(TEMPORARY_PREFIX))

    def delete(self, name: str) -> None:
        """Delete an object or a whole folder; one that is not there is no error."""
        from pyarrow.fs import FileType

        with _as_storage_error("delete", f"{self.uri}/{name}"), contextlib.suppress(FileNotFoundError):
            if self.is_local:
                _delete_local(self.path / name)
            elif self._remote.get_file_info(self._key(name)).type == FileType.Directory:
                self._remote.delete_dir(self._key(name))
            else:
                self._remote.delete_file(self._key(name))

    def _key(self, name: str) -> str:
        return f"{self._remote_root}/{name}".rstrip("/")

    @cached_property
    def _opened(self) -> tuple[FileSystem, str]:
        import pyarrow
        from pyarrow import fs

        try:
            filesystem, root = fs.FileSystem.from_uri(self.uri)
        except (pyarrow.ArrowInvalid, OSError) as error:
            raise BadInputError(
                f"{self.uri} is not a storage that can be opened ({error}); give a path, s3://bucket/folder or gs://..."
            ) from error
        return filesystem, root

    @property
    def _remote(self) -> FileSystem:
        return self._opened[0]

    @property
    def _remote_root(self) -> str:
        return self._opened[1]


def _plain_uri(uri: str) -> str:
    """``uri`` itself; raises BadInputError where it holds what must not stand in a sweep's files and messages."""
    scheme, _, rest = uri.partition("://")
    if ":" in rest.partition("/")[0].rpartition("@")[0]:
        raise BadInputError(
            f"the {scheme}:// address holds a password, which would stand in the sweep's files; give it by the "
            "environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY)"
        )
    if "?" in rest:
        plain = uri.partition("?")[0]
        raise BadInputError(f"{plain}?... has options; set them by the environment (AWS_ENDPOINT_URL, AWS_REGION)")
    return uri


def _path_of(uri: str) -> str:
    """The path of a ``file://`` URI; raises BadInputError where it names another machine."""
    parts = urlsplit(uri)
    if parts.netloc not in ("", "localhost"):
        raise BadInputError(f"{uri} names the machine {parts.netloc!r}; write file:///FOLDER, or the path alone")
    return unquote(parts.path)


def _write_local(path: Path, data: bytes) -> None:
    temporary = path.parent / f"{TEMPORARY_PREFIX}{path.name}-{os.getpid()}-{secrets.token_hex(4)}"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the name itself must survive a pulled plug, not only the bytes
    finally:
        os.close(folder)


def _delete_local(path: Path) -> None:
    import shutil

    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


@contextlib.contextmanager
def _as_storage_error(verb: str, where: str) -> Iterator[None]:
    """Turn what a storage raises into one error that says what could not be done; a missing object stays as it is."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise StorageError(f"cannot {verb} {where}: {reason}") from error
