"""Parquet tables laid out like a repository on the Hugging Face hub: ``train-00000-of-00001.parquet``, one column of encoded pictures.

The files are streamed through pyarrow in small batches, so that memory holds the decoded tensor and little else. (``datasets`` would read
the same folder; for MNIST's 60 000 training pictures it took 8.2 s with its import, pyarrow and PIL 4.6 s, one after the other on a busy
two-core machine, and it copies the table to its own cache.)

Data sets by their name on the Hugging Face hub, through ``datasets``; a hub that cannot be reached is noticed in seconds.

Left alone, ``datasets`` retries for some 24 s before it gives up. Here one short request decides first: if the hub does not answer, the
library is asked in its offline mode, in which it serves what lies in its own cache. ``HF_HUB_OFFLINE`` and ``HF_ENDPOINT`` are respected; the
settings of the library are as they were when :func:`fetch` returns.
"""

from __future__ import annotations

import re
import threading
import urllib.error
import urllib.request
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from expost.data.decode import Decoder, Encoded, decode
from expost.data.source import SPLITS, Source, encode_labels, need, relative, split_of
from expost.system.schema import printable

__all__ = ["fetch", "hub_source", "label_column", "picture_column", "reachable", "table_source"]

_PICTURES = ("image", "img", "picture", "photo", "pixel_values")
_LABELS = ("label", "labels", "class", "target", "fine_label", "category", "y")


def table_source(root: Path, files: list[Path], *, labelled: bool = True) -> Source:
    """Parquet files below ``root``; which part each belongs to is read off its name, then its folders, and is train by default."""
    pq = need("pyarrow.parquet", "pyarrow", f"reading {root}")
    order = {part: [f for f in files if _part(f, root) == part] for part in SPLITS}
    files = [f for part in SPLITS for f in order[part]]
    sizes, columns, labels = [], [], []
    for path in files:
        what = relative(path, root)
        try:
            with pq.ParquetFile(path) as table:
                schema = table.schema_arrow
                sizes.append(table.metadata.num_rows)
                columns.append(picture_column(schema, what))
                name = label_column(schema) if labelled else None
                labels.append(None if name is None else _array(table.read(columns=[name]).column(0)))
        except ValueError as error:
            if not _foreign(error):
                raise
            raise _damaged(path) from None
        except OSError:
            raise _damaged(path) from None
    starts = np.cumsum([0, *sizes]).tolist()

    def blocks() -> Iterator[list[Encoded]]:
        for path, column in zip(files, columns, strict=True):
            try:
                with pq.ParquetFile(path) as table:
                    for batch in table.iter_batches(batch_size=512, columns=[column]):
                        yield _pictures(batch.column(0), path.parent)
            except ValueError as error:
                if not _foreign(error):
                    raise
                raise _damaged(path) from None
            except OSError:
                raise _damaged(path) from None

    def where(i: int) -> str:
        at = bisect_right(starts, i) - 1
        return f"{relative(files[at], root)}, row {i - starts[at]}"

    def fetch(rows: Tensor | None, decoder: Decoder) -> tuple[Tensor, list[str]]:
        return decode(blocks(), starts[-1], where, decoder, rows=rows, name=root.name), decoder.notes()

    counts: dict[str, int] = {}
    for path, size in zip(files, sizes, strict=True):
        part = _part(path, root)
        counts[part] = counts.get(part, 0) + size
    return Source(counts, encode_labels(labels, sizes, root.name), fetch, notes=_missing_shards(files, root))


def hub_source(tables: dict[str, Any], name: str, *, labelled: bool = True) -> Source:
    """The splits of a ``datasets.DatasetDict``, whose pictures lie encoded in memory-mapped Arrow tables."""
    order = [(part, key) for part in SPLITS for key in tables if split_of(key) == part]
    order += [("train", key) for key in tables if split_of(key) is None]
    chosen: dict[str, str] = {}
    for part, key in order:
        chosen.setdefault(part, key)
    notes = [f"split {key} of {name} is not used" for key in tables if key not in chosen.values()]
    parts = {part: tables[chosen[part]].with_format("arrow") for part in SPLITS if part in chosen}
    sizes = {part: len(table) for part, table in parts.items()}
    starts = np.cumsum([0, *sizes.values()]).tolist()
    columns = {part: picture_column(table.features.arrow_schema, f"{name}, {part}") for part, table in parts.items()}
    labels: list[np.ndarray | None] = []
    for table in parts.values():
        label = label_column(table.features.arrow_schema) if labelled else None
        labels.append(None if label is None else _array(table.select_columns([label])[:].column(0)))

    def blocks() -> Iterator[list[Encoded]]:
        for part, table in parts.items():
            for batch in table.select_columns([columns[part]]).iter(batch_size=512):
                yield _pictures(batch.column(0), None)

    def where(i: int) -> str:
        at = bisect_right(starts, i) - 1
        return f"{name}, {list(parts)[at]} row {i - starts[at]}"

    def fetch(rows: Tensor | None, decoder: Decoder) -> tuple[Tensor, list[str]]:
        return decode(blocks(), starts[-1], where, decoder, rows=rows, name=name), decoder.notes()

    return Source(sizes, encode_labels(labels, list(sizes.values()), name), fetch, notes=notes)


def picture_column(schema: Any, what: str) -> str:
    """The column of encoded pictures: bytes, or a struct with bytes; by preference one called image, img ..."""
    import pyarrow.types as types

    def encoded(kind: Any) -> bool:
        return types.is_binary(kind) or types.is_large_binary(kind)

    found = [
        f.name
        for f in schema
        if encoded(f.type)
        or (
            types.is_struct(f.type)
            and any(c.name == "bytes" and encoded(c.type) for c in (f.type.field(i) for i in range(f.type.num_fields)))
        )
    ]
    if not found:
        raise ValueError(
            f"{what} has no column of encoded images (its columns: {', '.join(schema.names)}): give a table with PNG or JPEG bytes"
        )
    return next((name for name in _PICTURES if name in found), found[0])


def label_column(schema: Any) -> str | None:
    """The column of classes, if there is one of a usual name that holds whole numbers or names."""
    import pyarrow.types as types

    def usable(kind: Any) -> bool:
        return types.is_integer(kind) or types.is_boolean(kind) or types.is_string(kind) or types.is_large_string(kind)

    return next((name for name in _LABELS if name in schema.names and usable(schema.field(name).type)), None)


def _pictures(column: Any, folder: Path | None) -> list[Encoded]:
    """A block of pictures; a row without bytes but with a path is a file below ``folder`` (None: where ``datasets`` has put it)."""
    import pyarrow as pa

    if not pa.types.is_struct(column.type):
        return column.to_pylist()
    chunk = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    chunk = chunk.chunk(0) if isinstance(chunk, pa.ChunkedArray) else chunk
    items: list[Encoded] = chunk.field("bytes").to_pylist()
    if None in items and chunk.type.get_field_index("path") >= 0:
        paths = chunk.field("path").to_pylist()
        items = [_beside(p, folder) if item is None and p else item for item, p in zip(items, paths, strict=True)]
    return items


def _beside(path: str, folder: Path | None) -> Path:
    if folder is None:
        return Path(path)
    if Path(path).is_absolute() or ".." in Path(path).parts:
        raise ValueError(f'{folder} names a picture outside of it ("{printable(path)}"), which is not followed: put it there')
    return folder / path


def _array(column: Any) -> np.ndarray:
    import pyarrow.types as types

    if column.null_count:
        raise ValueError("the label column has empty entries: fill them, or drop the column")
    values = column.to_numpy()
    return values if types.is_integer(column.type) or types.is_boolean(column.type) else values.astype(object)


def _part(path: Path, root: Path) -> str:
    names = [path.stem, *(p.name for p in path.parents if p != root and p.is_relative_to(root))]
    return next((part for part in map(split_of, names) if part), "train")


def _foreign(error: ValueError) -> bool:
    """Raised by pyarrow (ArrowInvalid), not by us."""
    return type(error) is not ValueError


def _damaged(path: Path) -> ValueError:
    return ValueError(f"{path} is truncated or not a parquet file: download or copy it again")


def _missing_shards(files: list[Path], root: Path) -> list[str]:
    groups: dict[tuple[str, int], int] = {}
    for path in files:
        if match := re.fullmatch(r"(.*)-\d+-of-(\d+)", path.stem):
            key = (relative(path.parent / match[1], root), int(match[2]))
            groups[key] = groups.get(key, 0) + 1
    return [f"only {here} of the {total} files of {stem} are there" for (stem, total), here in groups.items() if here < total]


_TIMEOUT = 4.0


def fetch(repository: str, *, folder_too: bool = False) -> tuple[dict[str, Any], list[str]]:
    """The splits of a data set on the hub (or in the library's cache), as memory-mapped tables; and notes.

    With ``folder_too`` the name may as well be a mistyped folder, and errors say so.
    """
    unreached = f'cannot reach the hub for "{repository}"{" (and there is no such folder here)" * folder_too}'
    library = need("datasets", "datasets", f'the hub data set "{repository}"')
    if int(library.__version__.partition(".")[0]) < 4:  # before, a data set could bring a script, and the library ran it
        raise ValueError(f'datasets {library.__version__} runs code that data sets bring: pip install -U "datasets>=4"')
    asked_offline = bool(library.config.HF_HUB_OFFLINE)
    offline = asked_offline or not reachable(library.config.HF_ENDPOINT)
    try:
        with _settings(library, offline):
            tables = library.load_dataset(repository)
    except Exception as error:  # the library raises its own, httpx's, OSError, ValueError ...
        if offline:
            why = "HF_HUB_OFFLINE is set: unset it" if asked_offline else "check the network"
            raise ValueError(f"{unreached}: {why}, or give a local folder with path=... / --data FOLDER") from None
        if type(error).__name__ in ("DatasetNotFoundError", "RepositoryNotFoundError", "DataFilesNotFoundError", "EmptyDatasetError"):
            raise ValueError(f'there is no folder "{repository}" here and no such data set on the hub: check the name') from None
        if isinstance(error, ConnectionError) or type(error).__module__.startswith(("httpx", "httpcore", "requests")):
            raise ValueError(f"{unreached}: check the network, or give a local folder with path=... / --data FOLDER") from None
        first = " ".join(str(error).split())[:200]
        raise ValueError(
            f'the hub data set "{repository}" cannot be loaded ({type(error).__name__}: {first}): give a local folder'
        ) from error
    return dict(tables), ["from the local Hugging Face cache, the hub was not asked"] if offline else []


def reachable(endpoint: str, timeout: float = _TIMEOUT) -> bool:
    """Whether a web server answers at ``endpoint`` within ``timeout`` seconds, name lookup included (any answer counts, proxies are used)."""
    answered: list[bool] = []

    def ask() -> None:
        try:
            with urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=timeout):
                answered.append(True)
        except urllib.error.HTTPError:
            answered.append(True)
        except (OSError, ValueError):
            pass

    thread = threading.Thread(target=ask, daemon=True)  # a name lookup cannot be interrupted, but it can be left behind
    thread.start()
    thread.join(timeout)
    return bool(answered)


@contextmanager
def _settings(library: Any, offline: bool) -> Iterator[None]:
    """Offline mode and a quiet library for the length of the block; everything is put back."""
    import sys

    before, level, bars = library.config.HF_HUB_OFFLINE, library.logging.get_verbosity(), library.is_progress_bar_enabled()
    try:
        library.config.HF_HUB_OFFLINE = offline
        library.logging.set_verbosity_error()
        if not sys.stderr.isatty():
            library.disable_progress_bars()
        yield
    finally:
        library.config.HF_HUB_OFFLINE = before
        library.logging.set_verbosity(level)
        if bars:
            library.enable_progress_bars()
