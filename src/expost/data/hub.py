"""Data sets by their name on the Hugging Face hub, through ``datasets``; a hub that cannot be reached is noticed in seconds.

Left alone, ``datasets`` retries for some 24 s before it gives up. Here one short request decides first: if the hub does not answer, the
library is asked in its offline mode, in which it serves what lies in its own cache. ``HF_HUB_OFFLINE`` and ``HF_ENDPOINT`` are respected; the
settings of the library are as they were when :func:`fetch` returns.
"""

from __future__ import annotations

import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from expost.data.source import need

__all__ = ["fetch", "reachable"]

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
