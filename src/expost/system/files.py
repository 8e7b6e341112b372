"""Files that are either whole or absent: written to a temporary name in the same folder, then renamed. Nothing is ever unpickled.

What is written reaches the disk before it gets its name, so that a power cut leaves the old file or the new one. Tensors carry a checksum
over everything in their file, which loading verifies. A failed write is an ``OSError`` that names the file, whoever wrote it; what is only
kept for later (:func:`keep`, :func:`cached`) costs a :class:`NotKept` warning instead.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
import time
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Self, TypeVar, cast, overload

import torch
from torch import Tensor

from expost.system.hashes import as_bytes, checksum
from expost.system.schema import convert
from expost.system.state import Note

__all__ = [
    "NotKept", "Room", "atomic", "cache_folder", "cached", "check_output", "is_sealed", "keep", "load_tensors", "read_json", "read_meta",
    "read_signed", "save_tensors", "seal", "write_json", "write_signed", "write_text",
]  # fmt: skip

T = TypeVar("T")

STALE = 3600.0
"""Seconds after which a temporary file that nobody has written to was left by a process that was killed."""


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What a full disk answers, or one of which the user may not use more."""


class NotKept(Note):
    """Something was computed, and could not be kept for later."""


class Kept:
    """Whether what a :func:`keep` block wrote is there."""

    done = False

    def __bool__(self) -> bool:
        return self.done


@contextmanager
def keep(where: str | Path) -> Iterator[Kept]:
    """What the block writes is kept if that is possible; if not, a :class:`NotKept` warning says so and work goes on.

    For what has been shown already, and for caches: a full or read-only disk must not take away what was computed.
    """
    kept = Kept()
    try:
        yield kept
        kept.done = True
    except OSError as error:
        _not_kept(f"{where} cannot be written ({(error.strerror or str(error)).lower()})")
    except ValueError as error:  # locked, damaged, no folder
        _not_kept(str(error))


def _not_kept(why: str) -> None:
    warnings.warn(f"not kept: {why}", NotKept, stacklevel=4)


def cached(
    path: Path,
    read: Callable[[Path], T | None],
    make: Callable[[], T],
    write: Callable[[Path, T], None],
    *,
    agreed: Callable[[bool], bool] = bool,
    main: bool = True,
) -> T:
    """What a cache's file holds, or what is made now and kept there.

    A file that is damaged or foreign counts as absent, whatever is wrong with it; one that cannot be written costs a warning.

    Args:
        read: of a file that exists; any exception means that it cannot be used.
        agreed: in several processes: whether all of them could read it, so that all make it or none does.
        main: whether this process is the one that writes.
    """
    found: T | None = None
    with suppress(Exception):
        found = read(path) if path.is_file() else None
    if agreed(found is not None) and found is not None:
        return found
    made = make()
    if main:
        with keep(path.parent):
            write(path, made)
    return made


def cache_folder(*parts: str, root: str | Path | None = None) -> Path:
    """``root`` (default: $XDG_CACHE_HOME/expost or ~/.cache/expost) / parts, created if it can be."""
    base = Path(root) if root is not None else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "expost"
    folder = base.joinpath(*parts)
    with suppress(OSError):  # whoever writes there says it
        folder.mkdir(parents=True, exist_ok=True)
    return folder


class Room:
    """Disk space in a folder, held for what will be written there later: by a file without a name, which ends with the process.

    Raises:
        OSError: there is not enough.
    """

    def __init__(self, folder: str | Path, size: int) -> None:
        self.folder, self.size = Path(folder), 0
        self._file: IO[bytes] | None = None
        try:
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - open for as long as the space is held
            self.resize(size)
        except OSError as error:
            self.release()
            raise OSError(error.errno, os.strerror(error.errno or 0), str(folder)) from error

    def resize(self, size: int) -> None:
        """Hold more, if there is more, or less."""
        assert self._file is not None
        if size > self.size:
            if shutil.disk_usage(self.folder).free < size - self.size:  # asked for more, a file system may first give all that it has
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.folder))
            try:
                os.posix_fallocate(self._file.fileno(), 0, size)
            except (AttributeError, OSError) as error:  # macOS has no such call, some file systems do not answer it
                if isinstance(error, OSError) and error.errno in FULL:
                    raise
        else:
            self._file.truncate(size)
        self.size = size

    def release(self) -> None:
        """Give everything back."""
        if self._file is not None:
            self._file.close()
        self._file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


@contextmanager
def atomic(path: str | Path, *, durable: bool = True, replace: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it to ``path`` if the block succeeds, remove it if not.

    Args:
        durable: wait until the content is on the disk. Without that a power cut may leave an empty file: for what is written often and
            can be made again.
        replace: an existing file. Without it ``FileExistsError``, also if another process wrote the file meanwhile: what was first stays.

    Raises:
        OSError: named after ``path``, whatever part of the writing failed.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder: give the name of a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise ValueError(f"{path} cannot be written, because a part of its path is a file: choose another folder") from None
    prefix, suffix = f".{path.name}.", f".tmp{path.suffix}"
    temporary: Path | None = None
    try:
        _sweep(path.parent, prefix, suffix)
        handle, name = tempfile.mkstemp(prefix=prefix, suffix=suffix, dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        os.chmod(temporary, 0o666 & ~_umask())
        if durable:
            _sync(temporary)
        (os.replace if replace else _rename_first)(temporary, path)
        if durable:
            with suppress(OSError):  # not every system can
                _sync(path.parent)
    except OSError as error:
        ours = error.filename is None or Path(os.fsdecode(error.filename)).name.startswith(prefix)
        if not ours or error.errno is None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
    finally:
        if temporary is not None:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


def _rename_first(temporary: Path, path: Path) -> None:
    """Rename, or ``FileExistsError`` if there is a file of that name: one step, so that of two processes one succeeds."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        os.replace(temporary, path)


def check_output(path: str | Path, size: int = 1) -> None:
    """``ValueError`` now for what writing ``path`` after hours of work would end in: a folder, a read-only place, less room than ``size`` bytes."""
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder: give the name of a file")
    if os.path.exists(path) and not path.is_file():
        raise ValueError(f"{path} is a device or a pipe, which cannot be written whole or not at all: give the name of a file")
    folder = next(p for p in path.absolute().parents if os.path.exists(p))
    if not folder.is_dir():
        raise ValueError(f"{path} cannot be written, because {folder} is a file: choose another folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ValueError(f"{path} cannot be written, because {folder} is read-only: choose another folder")
    free = shutil.disk_usage(folder).free
    if free < size:
        raise ValueError(
            f"{path} cannot be written, because {folder} has room for {free} bytes: free space there, or choose another folder"
        )


def _sync(path: Path) -> None:
    """Wait until a file or a folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sweep(folder: Path, prefix: str, suffix: str) -> None:
    """Remove what killed processes left of earlier attempts to write the same file."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(prefix) and entry.name.endswith(suffix) and len(entry.name) == len(prefix) + 8 + len(suffix):
                with suppress(OSError):
                    if time.time() - entry.stat(follow_symlinks=False).st_mtime > STALE:
                        os.unlink(entry.path)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def write_text(path: str | Path, text: str, *, durable: bool = True) -> None:
    with atomic(path, durable=durable) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, sort_keys=False) + "\n")


def read_json(path: str | Path, what: str) -> Any:
    """The JSON of a file; ``ValueError`` in one sentence naming ``what`` if it is missing, truncated or foreign."""
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist: {what} is missing, check the folder") from None
    except (ValueError, RecursionError):  # no JSON, no text, numbers of thousands of digits, nested thousands deep
        raise ValueError(f"{path} is damaged or is not {what}: restore it from a copy, or make it again") from None


def write_signed(path: str | Path, value: dict[str, Any]) -> None:
    """A JSON object with a checksum of its other fields as its last one, for :func:`read_signed`."""
    write_json(path, {**value, "checksum": checksum(json.dumps(value), {})})


def read_signed(path: str | Path, what: str, remedy: str, kind: type[T], *, always: bool = False) -> T:
    """The JSON object of a file, without its checksum; ``ValueError`` if it is not what was written.

    Args:
        remedy: what to do about a damaged one, for the sentence.
        kind: declared type, e.g. a TypedDict; what it does not name is left in.
        always: such files had a checksum from the beginning; of others, older versions wrote none.
    """
    try:
        found = read_json(path, what)
        whole = isinstance(found, dict)
        if whole and "checksum" in found:
            said = found.pop("checksum")
            whole = said == checksum(json.dumps(found), {})
        elif always:
            whole = False
    except ValueError:
        whole = False
    if not whole:
        raise ValueError(f"{path} is damaged or is not {what}: {remedy}")
    try:
        convert(found, kind, f"{path} is not {what}")
    except ValueError as error:
        raise ValueError(f"{error}: {remedy}") from None
    return cast(T, found)


def seal(path: str | Path) -> None:
    """Append a CRC-32 of its content to a file whose format ends before its end, as numpy's does."""
    with Path(path).open("r+b") as file:
        crc = _crc(file, os.fstat(file.fileno()).st_size)
        file.write(crc)
        file.flush()
        os.fsync(file.fileno())


def is_sealed(path: str | Path) -> bool:
    """Whether the content of a file is what :func:`seal` found."""
    with Path(path).open("rb") as file:
        return _crc(file, os.fstat(file.fileno()).st_size - 8) == file.read()


def _crc(file: IO[bytes], size: int) -> bytes:
    """CRC-32 of the next ``size`` bytes of a file, as text."""
    crc = 0
    while size > 0 and (block := file.read(min(size, 2**20))):
        crc, size = zlib.crc32(block, crc), size - len(block)
    return f"{crc:08x}".encode()


#: The types of safetensors files that tensors here have.
_NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.complex64: "C64", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint16: "U16", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


def save_tensors(path: str | Path, tensors: dict[str, Tensor], meta: dict[str, Any] | None = None) -> None:
    """Tensors and JSON metadata in one safetensors file, with a checksum over both.

    The bytes are written here and not by the library, which copies all of them first, writes to a temporary file that a killed process
    leaves under a name nobody knows, and reports a full disk as an error of its own.
    """
    owned = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    order = sorted(owned, key=lambda name: (-owned[name].element_size(), name))  # every tensor is aligned to its type
    text = json.dumps(meta or {})
    header: dict[str, Any] = {"__metadata__": {"expost": text, "checksum": checksum(text, owned)}}
    end = 0
    for name in order:
        value = owned[name]
        start, end = end, end + value.numel() * value.element_size()
        header[name] = {"dtype": _NAMES[value.dtype], "shape": list(value.shape), "data_offsets": [start, end]}
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    with atomic(path) as temporary, temporary.open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for name in order:
            if owned[name].numel():
                file.write(as_bytes(owned[name]))


@overload
def load_tensors(path: str | Path, what: str, device: str | torch.device = "cpu") -> tuple[dict[str, Tensor], dict[str, Any]]: ...
@overload
def load_tensors(path: str | Path, what: str, device: str | torch.device = "cpu", *, meta: type[T]) -> tuple[dict[str, Tensor], T]: ...
def load_tensors(
    path: str | Path, what: str, device: str | torch.device = "cpu", *, meta: Any = dict[str, Any]
) -> tuple[dict[str, Tensor], Any]:
    """What :func:`save_tensors` wrote; ``ValueError`` in one sentence naming ``what`` if the file is missing, damaged or foreign.

    Args:
        meta: declares the metadata: a ``TypedDict``. Files of versions that wrote no checksum are read without.
    """
    with _opened(path, what) as file:
        header = file.metadata() or {}
        found = _meta(path, what, header, meta)
        tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118 - not a mapping
        if "checksum" in header and header["checksum"] != checksum(header["expost"], tensors):
            raise ValueError(f"{path} is damaged (its content does not fit its checksum): restore {what} from a copy, or make it again")
    return {k: v.to(device) for k, v in tensors.items()}, found


@overload
def read_meta(path: str | Path, what: str) -> dict[str, Any]: ...
@overload
def read_meta(path: str | Path, what: str, meta: type[T]) -> T: ...
def read_meta(path: str | Path, what: str, meta: Any = dict[str, Any]) -> Any:
    """The metadata of a file of tensors alone, as :func:`load_tensors` gives it; the tensors are neither read nor checked."""
    with _opened(path, what) as file:
        return _meta(path, what, file.metadata() or {}, meta)


@contextmanager
def _opened(path: str | Path, what: str) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} does not exist: {what} is missing, check the folder")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            yield file
    except (SafetensorError, OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path} is truncated or is not {what} ({type(error).__name__}): restore it from a copy, or make it again"
        ) from None


def _meta(path: str | Path, what: str, header: dict[str, str], kind: Any) -> Any:
    if "expost" not in header:
        raise ValueError(f"{path} was not written by expost (no expost header): it is not {what}")
    text = header["expost"]
    if "checksum" in header and header["checksum"][:8] != checksum(text, {})[:8]:
        raise ValueError(f"{path} is damaged (its content does not fit its checksum): restore {what} from a copy, or make it again")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError(f"{path} is damaged or is not {what}: restore it from a copy, or make it again") from None
    return convert(value, kind, f"{path} is not {what}")
