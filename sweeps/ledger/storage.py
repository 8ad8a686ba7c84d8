"""A folder on any storage that Ray's ``storage_path`` takes: a local path, a shared mount, ``s3://`` or ``gs://``.

Five things are asked of a storage: put a whole object, put one that must not be there yet, get one, list a folder,
delete. There is no append, no rename and no lock, so an object store is as good as a disk. JSON objects carry a
checksum over their bytes.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import unquote, urlsplit

from sweeps.errors import BadInputError, DamagedError, StorageAwayError, StorageError
from sweeps.ledger.backends import TEMPORARY_PREFIX, Backend
from sweeps.ledger.checksum import ChecksumError, with_checksum, without_checksum
from sweeps.ledger.world import RealWorld, World

T = TypeVar("T")

_FIRST_WAIT_S: Final = 0.25
_LONGEST_WAIT_S: Final = 10.0


class Storage:
    """A folder at ``uri``; names inside it are relative, with ``/`` between them."""

    def __init__(
        self,
        uri: str,
        *,
        world: World | None = None,
        backend: Backend | None = None,
        patience_s: float = 0.0,
    ) -> None:
        """Take a path or a URI; a path, ``file://`` before it or not, is made absolute.

        Nothing is created before the first write. While the storage is away an operation is retried for about
        ``patience_s``. Raises BadInputError for a URI that names nothing behind its scheme, or holds a password or
        options.
        """
        if uri.endswith("://"):
            raise BadInputError(f"{uri} names no bucket or folder; give a path, s3://bucket/folder or gs://...")
        if uri.startswith("file://"):
            uri = _path_of(uri)
        self.uri = _plain_uri(uri).rstrip("/") if "://" in uri else str(Path(uri).expanduser().absolute())
        self.world: World = world or RealWorld()
        self._backend: Backend = backend or self.world.backend(self.uri)
        self._folder = ""
        self._patience_s = patience_s

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
        """The folder ``name`` inside this one, over the same connection."""
        return self._copy(uri=f"{self.uri}/{name}", folder=self._key(name))

    def patient(self, patience_s: float) -> Storage:
        """The same folder with operations that are retried for ``patience_s``; 0 for none."""
        return self._copy(patience_s=patience_s)

    def _copy(self, *, uri: str | None = None, folder: str | None = None, patience_s: float | None = None) -> Storage:
        copy = type(self).__new__(type(self))
        copy.__dict__.update(self.__dict__)
        copy.uri = self.uri if uri is None else uri
        copy._folder = self._folder if folder is None else folder
        copy._patience_s = self._patience_s if patience_s is None else patience_s
        return copy

    def read_bytes(self, name: str) -> bytes:
        """The whole object; raises FileNotFoundError where there is none, StorageError where it cannot be read."""
        return self._do("read", name, lambda: self._backend.read(self._key(name)))

    def write_bytes(self, name: str, data: bytes) -> None:
        """Put the whole object: a reader sees the old one or the new one, never a piece."""
        self._do("write", name, lambda: self._backend.write(self._key(name), data))

    def create_bytes(self, name: str, data: bytes) -> None:
        """Put an object that is not there yet; raises FileExistsError where another one is."""
        try:
            self._do("write", name, lambda: self._backend.create(self._key(name), data))
        except FileExistsError:
            try:
                is_ours = self.read_bytes(name) == data  # the answer to an earlier try was lost
            except FileNotFoundError:
                is_ours = False  # whose it was, it has been superseded meanwhile
            if not is_ours:
                raise

    def read_json(self, name: str) -> Any:
        """The object parsed as JSON; raises DamagedError, naming it, where it is not JSON or not what was written."""
        return self.parse_json(name, self.read_bytes(name))

    def parse_json(self, name: str, data: bytes) -> Any:
        """The same for bytes that were read before."""
        where = f"{self.uri}/{name}"
        try:
            return json.loads(without_checksum(data))
        except ChecksumError as error:
            raise DamagedError(f"{where} is damaged: {error}; restore it from a copy") from error
        except (ValueError, RecursionError) as error:
            raise DamagedError(f"{where} is damaged: it is not JSON ({error}); restore it from a copy") from error

    def write_json(self, name: str, value: Mapping[str, object]) -> None:
        """Put ``value`` as JSON with a checksum; floats keep every digit, and NaN is refused."""
        self.write_bytes(name, with_checksum(value))

    def create_json(self, name: str, value: Mapping[str, object]) -> None:
        """Put ``value`` as JSON where nothing is yet; raises FileExistsError where another object is."""
        self.create_bytes(name, with_checksum(value))

    def exists(self, name: str) -> bool:
        """Whether an object of this name is there."""
        return self._do("look up", name, lambda: self._backend.exists(self._key(name)))

    def names(self, folder: str = "") -> list[str]:
        """Sorted names of what stands directly in ``folder``; empty where the folder is not there.

        Raises BadInputError where a file stands in its place.
        """
        found = self._do("list", folder, lambda: self._backend.names(self._key(folder)))
        return sorted(name for name in found if not name.startswith(TEMPORARY_PREFIX))

    def delete(self, name: str) -> None:
        """Delete an object or a whole folder; one that is not there is no error."""
        with contextlib.suppress(FileNotFoundError):
            self._do("delete", name, lambda: self._backend.delete(self._key(name)))

    def _key(self, name: str) -> str:
        return f"{self._folder}/{name}".strip("/")

    def _do(self, verb: str, name: str, operation: Callable[[], T]) -> T:
        where = f"{self.uri}/{name}"
        if not self._patience_s:
            with self._errors(verb, where):
                return operation()
        from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential

        for attempt in Retrying(
            retry=retry_if_exception_type(StorageAwayError),
            wait=wait_exponential(multiplier=_FIRST_WAIT_S, max=_LONGEST_WAIT_S),
            stop=stop_after_attempt(_attempts(self._patience_s)),
            sleep=self.world.sleep,
            reraise=True,
        ):
            with attempt, self._errors(verb, where):
                return operation()
        raise AssertionError("the last attempt returns or raises")

    @contextlib.contextmanager
    def _errors(self, verb: str, where: str) -> Iterator[None]:
        """Turn what a storage raises into one error that says what could not be done; a missing object stays as is."""
        try:
            yield
        except (FileNotFoundError, FileExistsError):
            raise
        except OSError as error:
            reason = error.strerror or str(error)
            kind = StorageAwayError if self._backend.is_away(error) else StorageError
            raise kind(f"cannot {verb} {where}: {reason}") from error


def _attempts(patience_s: float) -> int:
    """How many attempts take about this long, waiting twice as long after each."""
    attempts, wait_s, waited_s = 1, _FIRST_WAIT_S, 0.0
    while waited_s < patience_s:
        waited_s += wait_s
        wait_s = min(2 * wait_s, _LONGEST_WAIT_S)
        attempts += 1
    return attempts


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
