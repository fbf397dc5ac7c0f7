"""The build folder: what a step wrote, whether it is still valid, and nothing half written.

A folder belongs to a build if it holds :data:`MARKER`; any other folder that is not empty is
refused and never touched. A step writes into a staging folder inside the build folder. When it
ends, its files are renamed into place and a record of them is written; an interrupted step leaves
only a staging folder, which the next build removes.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from mxhw import __version__
from mxhw.errors import UserError

try:
    import fcntl
except ImportError:  # Not on this operating system: two builds at once are then not noticed.
    fcntl = None

__all__ = ["MARKER", "BuildFolder", "StepRecord", "digest_of", "file_digest", "source_digest"]

MARKER = ".mxhw-build"
_RECORDS = ".mxhw-steps.json"
_STAGING = ".mxhw-staging"


def digest_of(value: Any) -> str:
    """SHA-256 of a JSON value, independent of the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@functools.cache
def source_digest(parts: tuple[str, ...] = ("",)) -> str:
    """SHA-256 of the package's version and files, so that a changed package reuses nothing.

    Parameters
    ----------
    parts : tuple of str
        Files and folders of the package to look at; by default all.
    """
    root = Path(__file__).parents[1]
    files: set[Path] = set()
    for part in parts:
        path = root / part
        files.update([path] if path.is_file() else path.rglob("*"))
    digests = [
        (str(path.relative_to(root)), file_digest(path))
        for path in sorted(files)
        if path.is_file() and "__pycache__" not in path.parts
    ]
    return digest_of([__version__, digests])


@dataclasses.dataclass(frozen=True)
class StepRecord:
    """What a finished step left.

    Members
    -------
    key : str
        Digest of everything that the step's result depends on.
    seconds : float
        Wall time that it took.
    memory_mb : float
        Largest memory until its end.
    files : dict of str to str
        SHA-256 by path inside the build folder.
    """

    key: str
    seconds: float
    memory_mb: float
    files: dict[str, str]


class BuildFolder:
    """A folder that one build writes to at a time; use it as a context manager.

    Parameters
    ----------
    path : Path
        Made, with its parents, if it does not exist.

    Raises
    ------
    UserError
        If it holds something else, is not a folder, cannot be written or is in use.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._claim()
        self._lock = self._take_lock()
        self._records = self._read_records()
        shutil.rmtree(path / _STAGING, ignore_errors=True)

    def __enter__(self) -> "BuildFolder":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Let another build use the folder."""
        self._lock.close()

    def _claim(self) -> None:
        try:
            if self.path.exists() and not self.path.is_dir():
                raise UserError(f"Build folder {self.path} is a file; choose another with --out")
            self.path.mkdir(parents=True, exist_ok=True)
            if (self.path / MARKER).is_file():
                return
            if any(self.path.iterdir()):
                raise UserError(
                    f"Folder {self.path} holds something that is not a build of mxhw and was left "
                    f"as it is; choose another with --out"
                )
            (self.path / MARKER).write_text("This folder is written by mxhw.\n", "utf-8")
        except OSError as error:
            raise UserError(
                f"Build folder {self.path} cannot be written: {error.strerror}; "
                f"choose another with --out"
            ) from error

    def _take_lock(self) -> IO[bytes]:
        try:
            lock = (self.path / MARKER).open("ab")
        except OSError as error:
            raise UserError(
                f"Build folder {self.path} cannot be written: {error.strerror}; "
                f"choose another with --out"
            ) from error
        if fcntl is not None:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                lock.close()
                raise UserError(
                    f"Build folder {self.path} is in use by another build; wait for it, or choose "
                    f"another folder with --out"
                ) from error
        return lock

    def _read_records(self) -> dict[str, StepRecord]:
        # A record that cannot be read costs a rebuild and nothing else.
        try:
            content = json.loads((self.path / _RECORDS).read_text("utf-8"))
            return {name: StepRecord(**record) for name, record in content.items()}
        except (OSError, ValueError, TypeError, AttributeError):
            return {}

    def _write_records(self) -> None:
        content = {name: dataclasses.asdict(record) for name, record in self._records.items()}
        self._write(self.path / _RECORDS, json.dumps(content, indent=1))

    @staticmethod
    def _write(path: Path, text: str) -> None:
        partial = path.with_name(f"{path.name}.partial")
        partial.write_text(text, "utf-8")
        os.replace(partial, path)

    def write_json(self, name: str, value: Mapping[str, Any]) -> Path:
        """Write a JSON file in one go, outside any step."""
        return self.write_text(name, json.dumps(value, indent=2) + "\n")

    def write_text(self, name: str, text: str) -> Path:
        """Write a file in one go, outside any step."""
        path = self.path / name
        self._write(path, text)
        return path

    def read_json(self, name: str) -> dict[str, Any]:
        """Read a JSON file of the folder."""
        return json.loads((self.path / name).read_text("utf-8"))

    def valid(self, step: str, key: str) -> StepRecord | None:
        """The record of a step that has this key and whose files are unchanged, else None."""
        record = self._records.get(step)
        if record is None or record.key != key:
            return None
        for name, digest in record.files.items():
            path = self.path / name
            if not path.is_file() or file_digest(path) != digest:
                return None
        return record

    def file_digests(self) -> dict[str, str]:
        """SHA-256 of every file that a finished step left, by name."""
        return {
            name: digest
            for record in self._records.values()
            for name, digest in record.files.items()
        }

    def files(self, steps: Iterable[str]) -> list[Path]:
        """Files that these steps left, as paths inside the folder."""
        records = [self._records[step] for step in steps if step in self._records]
        return sorted(Path(name) for record in records for name in record.files)

    def forget(self, step: str) -> None:
        """Remove a step's record and the files that it names."""
        record = self._records.pop(step, None)
        if record is None:
            return
        # First the record: a folder without it is only incomplete, never wrong.
        self._write_records()
        for name in record.files:
            path = self.path / name
            path.unlink(missing_ok=True)
            for parent in path.relative_to(self.path).parents[:-1]:
                with contextlib.suppress(OSError):
                    (self.path / parent).rmdir()

    @contextlib.contextmanager
    def staging(self) -> Iterator[Path]:
        """An empty folder for one step; removed at the end with all that was not committed."""
        path = self.path / _STAGING
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir()
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)

    def keep_logs(self, staging: Path) -> list[Path]:
        """Move the log files of a step that failed into the build folder; return where they are."""
        kept = []
        for source in sorted(staging.rglob("*.log")):
            target = self.path / f"failed-{source.name}"
            os.replace(source, target)
            kept.append(target)
        return kept

    def commit(self, step: str, record: StepRecord, staging: Path) -> StepRecord:
        """Move a step's files from the staging folder into place; return the record with them."""
        self.forget(step)
        digests = {}
        for source in sorted(staging.rglob("*")):
            if source.is_file():
                name = source.relative_to(staging).as_posix()
                digests[name] = file_digest(source)
                target = self.path / name
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(source, target)
        record = dataclasses.replace(record, files=digests)
        self._records[step] = record
        self._write_records()
        return record
