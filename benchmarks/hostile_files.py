"""Damaged and hostile files: 300 mutations of every kind of file, and what the command that reads it makes of each.

    python benchmarks/hostile_files.py                            every kind, 300 mutations of each sort; exit status 1 if a promise broke
    python benchmarks/hostile_files.py container --trials 30      one kind, a quick look

A row of ``KINDS`` prepares a valid file, the command that reads it, and sorts of mutations. Every mutation replaces the file, and the command
runs in a forked process, judged by what a user would see:

    sentence    exit status 1 or 2, one line on stderr that cannot steer a terminal, and no output file
    same        the output of the undamaged file: the damage touched nothing that is used
    other       another output with exit status 0: damage used in silence
    traceback   anything else: a traceback, a panic of a library, several lines, a half-written output, a dead process, 60 seconds

``other`` and ``traceback`` must be 0. "MB" is the most memory that a mutation took above what the undamaged file takes (peak resident set).
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import os
import pickle
import random
import resource
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

SECONDS = 60
Mutations = Callable[[bytes, random.Random, int], Iterator[bytes]]
"""Bytes of a valid file, randomness, how many -> damaged ones."""


@dataclass
class Kind:
    """A valid file, the command that reads it and what it makes.

    Attributes:
        file: what is damaged.
        command: arguments of ``expost``.
        output: the file that the command writes.
        content: what of it must be the same.
        sorts: sorts of mutations by name.
        folder: a folder that the command changes, and that is as it was before every trial; it holds ``file``.
    """

    file: Path
    command: list[str]
    output: Path
    content: Callable[[Path], bytes]
    sorts: dict[str, Mutations] = field(default_factory=dict)
    folder: Path | None = None

    def restore(self) -> None:
        """Put the folder back, but for the damaged file."""
        if self.folder is None:
            return
        data, pristine = self.file.read_bytes(), self.folder.with_name(f"{self.folder.name}.pristine")
        if pristine.exists():
            shutil.rmtree(self.folder)
            shutil.copytree(pristine, self.folder)
        else:
            shutil.copytree(self.folder, pristine)
        self.file.write_bytes(data)


# -- mutations of any file ----------------------------------------------------------------------------------------------------------------


def damaged(data: bytes, rng: random.Random) -> bytes:
    """One accident: a bit, some bytes, a piece cut out, put in, zeroed or repeated, or the end lost."""
    at, length = rng.randrange(len(data)), rng.randint(1, 64)
    noise = bytes(rng.randrange(256) for _ in range(length))
    return rng.choice(
        [
            data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :],
            data[:at] + noise + data[at + length :],
            data[:at] + data[at + length :],
            data[:at] + noise + data[at:],
            data[:at] + bytes(min(length, len(data) - at)) + data[at + length :],
            data[: at + length] + data[at:],
            data[:at],
        ]
    )


def random_bytes(data: bytes, rng: random.Random, trials: int) -> Iterator[bytes]:
    return (damaged(data, rng) for _ in range(trials))


HOSTILE: list[Any] = [
    None, True, False, -1, 0, 1, 2, 0.5, -0.5, 1e-320, 1e300, 65535, 65536, 10**9, 3 * 10**9, 10**12, 2**63, 10**40, float("nan"), float("inf"),
    "", "x", "0", "object", "\x1b[2J\x1b]0;owned\x07", "a\nb\r", "\u202e\u200b", "../../etc/passwd", "A" * 5000,
    [], {}, [None], [[]], {"a": {}}, [0], [1] * 1000, "@deep list@", "@deep object@",
]  # fmt: skip


def as_json(value: Any) -> str:
    """JSON as Python writes it, NaN and Infinity included, and with nesting that Python cannot write."""
    text = json.dumps(value)
    return text.replace('"@deep list@"', "[" * 5000 + "]" * 5000).replace('"@deep object@"', '{"a":' * 5000 + "1" + "}" * 5000)


def places(value: Any, here: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The keys that lead to every value within a JSON value."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in inside:
        yield (*here, key)
        yield from places(part, (*here, key))


def replaced(value: Any, place: tuple[Any, ...], new: Any) -> Any:
    """A copy with another value at a place; ``...`` removes it."""
    value = copy.deepcopy(value)
    parent = value
    for key in place[:-1]:
        parent = parent[key]
    if new is ...:
        del parent[place[-1]]
    else:
        parent[place[-1]] = new
    return value


def edited(value: Any, rng: random.Random) -> Any:
    """A JSON value with one random change: something removed, replaced, renamed or added."""
    place = rng.choice(list(places(value)))
    change = rng.randrange(8)
    if change == 0:
        return replaced(value, place, ...)
    if change == 1:
        return replaced(value, (*place[:-1], "unknown") if isinstance(place[-1], str) else place, rng.choice(HOSTILE))
    return replaced(value, place, rng.choice(HOSTILE))


# -- compressed images --------------------------------------------------------------------------------------------------------------------


def sealed(body: bytes) -> bytes:
    """The body of a container with the checksum that it needs."""
    return body + hashlib.sha256(body).digest()[:16]


def with_header(data: bytes, text: str) -> bytes:
    """A container whose header is another text, lengths and checksum made right."""
    length = int.from_bytes(data[10:14], "little")
    encoded = text.encode(errors="surrogatepass")
    return sealed(data[:10] + len(encoded).to_bytes(4, "little") + encoded + data[14 + length : -16])


def header_of(data: bytes) -> dict[str, Any]:
    return json.loads(data[14 : 14 + int.from_bytes(data[10:14], "little")])


def resealed_bytes(data: bytes, rng: random.Random, trials: int) -> Iterator[bytes]:
    return (sealed(damaged(data[:-16], rng)) for _ in range(trials))


def resealed_values(data: bytes, rng: random.Random, trials: int) -> Iterator[bytes]:
    return (with_header(data, as_json(edited(header_of(data), rng))) for _ in range(trials))


def every_field(data: bytes, rng: random.Random, trials: int) -> Iterator[bytes]:
    """Every field of the header missing, and with every hostile value: not random, and not ``trials`` many."""
    header = header_of(data)
    for place in places(header):
        if place[0] != "machine" or len(place) == 1:
            for new in (..., *HOSTILE):
                yield with_header(data, as_json(replaced(header, place, new)))


def container(recipe: str) -> Callable[[Path], Kind]:
    def prepare(folder: Path) -> Kind:
        run, file, out = folder / "run", folder / "a.xpz", folder / "b.npz"
        expost("train", recipe, "--data", "digits", "--budget", "smoke", "--device", "cpu", "--out", str(run))
        expost("compress", str(run), "--n", "30", "--no-peers", "-o", str(file))
        command = ["decompress", str(file), "--run", str(run), "-o", str(out)]
        sorts = {
            "bytes": random_bytes,
            "bytes, checksum made right": resealed_bytes,
            "header values, checksum made right": resealed_values,
            "every field of the header": every_field,
        }
        return Kind(file, command, out, images, sorts)

    return prepare


def images(path: Path) -> bytes:
    with np.load(path) as arrays:
        x = arrays["images"]
    return repr((x.shape, x.dtype)).encode() + x.tobytes()


# -- run folders --------------------------------------------------------------------------------------------------------------------------


def json_values(data: bytes, rng: random.Random, trials: int) -> Iterator[bytes]:
    return (as_json(edited(json.loads(data), rng)).encode(errors="surrogatepass") for _ in range(trials))


def unsealed_values(data: bytes, rng: random.Random, trials: int) -> Iterator[bytes]:
    """As older versions wrote recipe.json: without a checksum."""
    old = {k: v for k, v in json.loads(data).items() if k != "checksum"}
    return json_values(json.dumps(old).encode(), rng, trials)


def every_value(data: bytes, rng: random.Random, trials: int) -> Iterator[bytes]:
    """Every field missing, and with every hostile value: not random, and not ``trials`` many."""
    value = json.loads(data)
    for place in places(value):
        if place[0] != "versions" or len(place) == 1:
            yield from (as_json(replaced(value, place, new)).encode(errors="surrogatepass") for new in (..., *HOSTILE))


def tensors_of(data: bytes) -> tuple[dict[str, Any], bytes]:
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def with_tensors(header: Any, content: bytes) -> bytes:
    encoded = as_json(header).encode(errors="surrogatepass")
    return len(encoded).to_bytes(8, "little") + encoded + content


def tensor_headers(data: bytes, rng: random.Random, trials: int) -> Iterator[bytes]:
    """One change of a safetensors header: of names, types, shapes and offsets, or of the metadata."""
    header, content = tensors_of(data)
    return (with_tensors(edited(header, rng), content) for _ in range(trials))


def tensor_lies(data: bytes, rng: random.Random, trials: int) -> Iterator[bytes]:
    """By hand, and without a checksum, as older versions wrote: lengths, overlaps, types, shapes, names, metadata."""
    header, content = tensors_of(data)
    meta = {"expost": header["__metadata__"]["expost"]}
    names = [name for name in header if name != "__metadata__"]
    plain = {**header, "__metadata__": meta}
    yield from (length.to_bytes(8, "little") + data[8:] for length in (0, 1, 2**31, 2**63, 2**64 - 1, len(data), len(data) - 8))
    for name in names[:6] + names[-2:]:
        entry = header[name]
        start, stop = entry["data_offsets"]
        for change in (
            *({"dtype": kind} for kind in ("F64", "F32", "F16", "BF16", "I64", "I32", "U8", "BOOL", "F4", "x", None, 5)),
            *(
                {"shape": shape}
                for shape in ([], [2**62, 4], [10**9] * 3, [-1], [0], [0.5], "x", None, [1, *entry["shape"]], entry["shape"][::-1])
            ),
            *(
                {"data_offsets": o}
                for o in ([0, 4], [stop, start], [start, 2**63], [-8, 8], [0, len(content)], [], None, [start + 1, stop + 1])
            ),
        ):
            yield with_tensors({**plain, name: {**entry, **change}}, content)
        yield with_tensors({k: v for k, v in plain.items() if k != name}, content)
        yield with_tensors({f"{k}x" if k == name else k: v for k, v in plain.items()}, content)
        yield with_tensors({**plain, "extra": entry}, content)
    for said in ("null", "[]", "5", '""', "", "{}", "{", "[" * 5000, '{"spec": 5, "model": []}', "\x1b[2J", '{"a": ' + "9" * 5000 + "}"):
        yield with_tensors({**plain, "__metadata__": {"expost": said}}, content)
    for wrong in (None, [], {}, {"expost": 5}, {"expost": None}, {"other": "{}"}, {"expost": "{}", "checksum": "x"}, "x"):
        yield with_tensors({**plain, "__metadata__": wrong}, content)


RUN: dict[str, tuple[list[str], str, Callable[[Path], bytes]]] = {}
"""Commands that read a run folder: their arguments after it, the file that they write, and what of that must be the same."""


def arrays_of(path: Path) -> bytes:
    """The tensors of a safetensors file."""
    header, content = tensors_of(path.read_bytes())
    return json.dumps({k: v for k, v in header.items() if k != "__metadata__"}, sort_keys=True).encode() + content


def figures(path: Path) -> bytes:
    """The scores in results.json."""
    return json.dumps({key: value for key, value in json.loads(path.read_text()).items() if "test images" in key or "FD" in key}).encode()


RUN["sample"] = (["--density", "gmm:3", "--n", "3", "--out", "{out}.npz"], "{out}.npz", images)
RUN["density"] = (["gaussian"], "{run}/densities/gaussian.safetensors", arrays_of)
RUN["evaluate"] = (["--extractor", "pixels", "--n", "40", "--density", "gmm:3", "--metrics", "fd"], "{run}/results.json", figures)


def of_run(file: str, command: str, sorts: dict[str, Mutations]) -> Callable[[Path], Kind]:
    def prepare(folder: Path) -> Kind:
        run, (arguments, output, content) = folder / "run", RUN[command]
        expost("train", "ghosh2020/rae", "--data", "digits", "--budget", "smoke", "--device", "cpu", "--out", str(run))
        expost("density", str(run), "gmm:3", "--device", "cpu")
        places = {"run": run, "out": folder / "out"}
        filled = [argument.format(**places) for argument in arguments]
        return Kind(run / file, [command, str(run), *filled, "--device", "cpu"], Path(output.format(**places)), content, sorts)

    return prepare


DESCRIPTION: dict[str, Mutations] = {
    "bytes": random_bytes, "JSON values": json_values, "JSON values, no checksum": unsealed_values, "every field": every_value
}  # fmt: skip
TENSORS: dict[str, Mutations] = {"bytes": random_bytes, "header": tensor_headers, "header by hand, no checksum": tensor_lies}

KINDS: dict[str, Callable[[Path], Kind]] = {
    "container": container("yu2020/bits-back"),
    "nested container": container("yu2020/bits-back-nested"),
    "recipe": of_run("recipe.json", "sample", DESCRIPTION),
    "recipe, density": of_run("recipe.json", "density", {name: DESCRIPTION[name] for name in ("JSON values", "JSON values, no checksum")}),
    "recipe, evaluate": of_run("recipe.json", "evaluate", {"JSON values": json_values}),
    "model": of_run("model.safetensors", "sample", TENSORS),
    "model, evaluate": of_run("model.safetensors", "evaluate", {"bytes": random_bytes}),
    "density": of_run("densities/gmm-3.safetensors", "sample", TENSORS),
}


# -- states, records and caches -----------------------------------------------------------------------------------------------------------


def goes_on(file: str, sorts: dict[str, Mutations]) -> Callable[[Path], Kind]:
    """A file of a run that was stopped, which ``train --resume`` brings to its end."""

    def prepare(folder: Path) -> Kind:
        run = folder / "stopped"
        command = ["train", "ghosh2020/rae", "--data", "digits", "--budget", "smoke", "--device", "cpu", "--out", str(run)]
        command += ["--set", "training.steps=3"]
        expost(*command, "--minutes", "1e-9")
        return Kind(run / file, [*command, "--resume"], run / "model.safetensors", arrays_of, sorts, run)

    return prepare


def in_cache(pattern: str, command: list[str], sorts: dict[str, Mutations], data: str = "digits") -> Callable[[Path], Kind]:
    """A file of the cache, which the command makes; or images that it reads."""

    def prepare(folder: Path) -> Kind:
        from expost.data import mapped

        rng = np.random.default_rng(0)
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        for name in "ab":
            np.savez(folder / f"{name}.npz", images=rng.integers(0, 256, (60, 1, 8, 8), dtype=np.uint8))
        mapped.LIMIT = 1000 if data != "digits" else None
        words = [word.format(here=folder) for word in command]
        run = folder / "run"
        if words[0] == "evaluate":
            small = ["--budget", "smoke", "--set", "network=mlp", "--device", "cpu"]
            expost("train", "ghosh2020/ae", "--data", data.format(here=folder), *small, "--out", str(run))
        expost(*words)
        file = min(folder.glob(pattern))
        output, content = (run / "results.json", figures) if words[0] == "evaluate" else (folder / "out.json", Path.read_bytes)
        return Kind(file, words, output, content, sorts, folder / "cache" if file.parent != folder else None)

    return prepare


COMPARE = [
    "compare",
    "{here}/a.npz",
    "{here}/b.npz",
    "--extractor",
    "random",
    "--no-controls",
    "--metrics",
    "fd",
    "neighbours",
    "--out",
    "{here}/out.json",
]
EVALUATE = ["evaluate", "{here}/run", "--n", "10", "--metrics", "fd", "--density", "gaussian", "--device", "cpu", "--extractor"]
BYTES: dict[str, Mutations] = {"bytes": random_bytes}
JSON: dict[str, Mutations] = {"bytes": random_bytes, "JSON values": json_values}

KINDS |= {
    "state": of_run("state.json", "sample", JSON),
    "results": of_run("results.json", "evaluate", JSON),
    "checkpoint": goes_on("checkpoint.safetensors", {"bytes": random_bytes, "header": tensor_headers}),
    "stopped state": goes_on("state.json", JSON),
    "stopped recipe": goes_on("recipe.json", JSON),
    "images": in_cache("a.npz", COMPARE, BYTES),
    "features": in_cache("cache/expost/features/*[0-9a-f].npy", COMPARE, BYTES),
    "classifier": in_cache("cache/expost/classifiers/*.safetensors", [*EVALUATE, "classifier"], BYTES),
    "decoded data": in_cache("cache/expost/data/*.map", [*EVALUATE, "pixels"], BYTES, "{here}/a.npz"),
    "index of data": in_cache("cache/expost/data/*.json", [*EVALUATE, "pixels"], JSON, "{here}/a.npz"),
}


# -- trials -------------------------------------------------------------------------------------------------------------------------------


def expost(*arguments: str) -> None:
    """A command that prepares something, and must work."""
    from expost.cli import main

    with Path(os.devnull).open("w") as nowhere:
        stdout, sys.stdout = sys.stdout, nowhere
        try:
            status = main(arguments)
        finally:
            sys.stdout = stdout
    if status != 0:
        raise SystemExit(f"cannot prepare: expost {' '.join(arguments)}")


def outcome(kind: Kind, said: Path, right: bytes | None) -> tuple[str, str]:
    """Run the command and judge: a word and what it printed."""
    from expost.cli import main

    kind.restore()
    if kind.output != kind.file:
        kind.output.unlink(missing_ok=True)
    descriptor = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    try:
        status = main(kind.command)
    except BaseException as error:
        return "traceback", f"{type(error).__name__}: {error}"
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    text = said.read_text(errors="replace")
    if status == 0:
        return ("same" if right is None or kind.content(kind.output) == right else "other"), text
    said = [line for line in text.splitlines() if line.startswith("expost: ")]
    alone = text.count("\n") == 1 or kind.command[0] == "train"  # which says first what it is about
    absent = kind.output == kind.file or not kind.output.exists()
    clean = len(said) == 1 and text.endswith(f"{said[0]}\n") and alone and text.replace("\n", "").isprintable() and absent
    return ("sentence" if clean else "traceback"), text


def trial(kind: Kind, right: bytes | None) -> tuple[str, str, float]:
    """The outcome in a forked process: word, text, peak memory in MB."""
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(SECONDS)
        try:
            word, text = outcome(kind, kind.file.with_name("said"), right)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            os.write(send, pickle.dumps((word, text[:2000], peak)))
        finally:
            os._exit(0)
    os.close(send)
    with os.fdopen(receive, "rb") as pipe:
        answer = pipe.read()
    _, status = os.waitpid(child, 0)
    return pickle.loads(answer) if answer else ("traceback", f"ended by signal {status & 127}", float("nan"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", default=[], help=f"of {', '.join(KINDS)}; default: all")
    parser.add_argument("--trials", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--verbose", action="store_true", help="every text that was printed, with its number")
    arguments = parser.parse_args()
    broken = 0
    os.environ["EXPOST_QUIET"] = "1"  # lines of progress on a slow machine are no part of the answer
    words = ("sentence", "same", "other", "traceback")
    print("".join([f"{'file':<18}{'mutations':<38}", *(f"{word:>10}" for word in words), f"{'MB':>8}"]), flush=True)
    for name in arguments.kinds or KINDS:
        with tempfile.TemporaryDirectory() as folder:
            kind = KINDS[name](Path(folder))
            valid = kind.file.read_bytes()
            word, text, usual = trial(kind, None)
            if word != "same":
                raise SystemExit(f"the undamaged {name} is not read: {text}")
            right = kind.content(kind.output)
            for sort, mutations in kind.sorts.items():
                counts: Counter[str] = Counter()
                said: Counter[str] = Counter()
                most = 0.0
                for data in mutations(valid, random.Random(f"{arguments.seed} {name} {sort}"), arguments.trials):
                    kind.file.write_bytes(data)
                    word, text, peak = trial(kind, right)
                    counts[word] += 1
                    said[text.replace(folder, "")] += 1
                    most = max(most, peak - usual)
                    if word in ("other", "traceback"):
                        kept = Path(tempfile.gettempdir()) / f"hostile-{name.replace(' ', '-')}-{hashlib.sha256(data).hexdigest()[:8]}"
                        kept.write_bytes(data)
                        print(f"  {word}, kept as {kept}: {text[-300:]}", flush=True)
                broken += counts["other"] + counts["traceback"]
                print("".join([f"{name:<18}{sort:<38}", *(f"{counts[word]:>10}" for word in words), f"{most:>8.1f}"]), flush=True)
                if arguments.verbose:
                    print("".join(f"{count:>8}  {text.strip()[:300]}\n" for text, count in said.most_common()), flush=True)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
