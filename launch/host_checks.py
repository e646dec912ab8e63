"""What one host shows without its devices: versions, memory, disk, and its bucket."""

import functools
import importlib.metadata
import os
import re
import shutil
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import tensorstore as ts
from etils import epath

PROJECT = Path(__file__).parents[1]
# Without these nothing runs; a config says what else it needs.
ESSENTIAL = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "tensorstore",
    "numpy",
    "pandas",
    "pillow",
)
INSTALL = {
    "TPU": "pip install -c constraints.txt -e '.[tpu]'",
    "GPU": "pip install -c constraints.txt -e '.[cuda]'",
}
_OLDEST_PYTHON = (3, 11)
_LEAST_MEMORY_GIB = 2.0
_LEAST_DISK_GIB = 2.0

State = Literal["ok", "note", "WRONG"]


class Finding(NamedTuple):
    """One line of the page.

    Attributes:
      advice: what to do, where something is not as it should be.
    """

    state: State
    subject: str
    text: str
    advice: str = ""


def compare_versions(
    pinned: Mapping[str, str], installed: Mapping[str, str]
) -> list[Finding]:
    """Compares installed packages with those that are tested together."""
    findings = []
    missing = [name for name in ESSENTIAL if name not in installed]
    if missing:
        findings.append(
            Finding(
                "WRONG",
                "packages",
                f"not installed: {', '.join(missing)}",
                f"{INSTALL['TPU']} (or .[cuda], or .)",
            )
        )
    differ = [
        f"{name} {installed[name]} (tested: {pinned[name]})"
        for name in sorted(pinned)
        if name in installed and installed[name].partition("+")[0] != pinned[name]
    ]
    if differ:
        findings.append(
            Finding(
                "note",
                "packages",
                "; ".join(differ),
                "if anything misbehaves: pip install -c constraints.txt -e .",
            )
        )
    if not findings:
        count = sum(name in installed for name in pinned)
        findings.append(
            Finding("ok", "packages", f"{count} as in constraints.txt: jax "
                    f"{installed['jax']}, flax {installed['flax']}")
        )  # fmt: skip
    return findings


def read_pins(path: Path) -> dict[str, str]:
    """Reads NAME==VERSION lines; names are normalised."""
    lines = path.read_text().splitlines()
    pairs = (line.split("==") for line in lines if "==" in line and line[0] != "#")
    return {_normalise(name): version.strip() for name, version in pairs}


def installed_versions() -> dict[str, str]:
    """Lists what is installed here, by normalised name."""
    return {
        _normalise(found.name): found.version
        for found in importlib.metadata.distributions()
        if found.name
    }


def check_host(workdir: str) -> list[Finding]:
    """Looks at Python, memory and disk."""
    version = sys.version.split()[0]
    findings = [Finding("ok", "python", version)]
    if sys.version_info < _OLDEST_PYTHON:
        way_out = "use a newer one: python -m launch.tpu setup makes an environment"
        findings = [Finding("WRONG", "python", f"{version} is too old", way_out)]
    findings.append(_check_memory())
    place = tempfile.gettempdir() if "://" in workdir else workdir
    existing = Path(place or ".").absolute()
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free / 2**30
    text = f"{free:.0f} GiB free at {existing}"
    findings.append(
        Finding("ok", "disk", text)
        if free >= _LEAST_DISK_GIB
        else Finding("WRONG", "disk", text, "make room, or use another --workdir")
    )
    return findings


def _check_memory() -> Finding:
    try:
        text = Path("/proc/meminfo").read_text()
    except OSError:
        return Finding("note", "memory", "unknown: this is not Linux")
    gib = {k: int(v) / 2**20 for k, v in re.findall(r"(\w+):\s+(\d+) kB", text)}
    free, total = gib["MemAvailable"], gib["MemTotal"]
    said = f"{free:.1f} of {total:.1f} GiB free, {os.cpu_count()} cores"
    if free < _LEAST_MEMORY_GIB:
        return Finding("WRONG", "memory", said, "end other programs on this host")
    return Finding("ok", "memory", said)


def check_place(place: str, patience_secs: float) -> list[Finding]:
    """Writes, reads and deletes a small file, on disk or in a bucket.

    In a bucket with both clients that runs use: gcsfs (files) and tensorstore (arrays).
    """
    clients = {"": _try_file}
    if place.startswith("gs://"):
        clients = {" by gcsfs": _try_file, " by tensorstore": _try_tensorstore}
    findings = []
    for name, attempt in clients.items():
        started = time.perf_counter()
        error = within(patience_secs, functools.partial(attempt, place))
        took = time.perf_counter() - started
        if error is None:
            text = f"{place}: written, read and deleted{name} in {took:.2f} s"
            findings.append(Finding("ok", "storage", text))
        else:
            text = f"{place} cannot be used{name}: {one_line(error)}"
            findings.append(Finding("WRONG", "storage", text, _storage_advice(place)))
    return findings


def _try_file(place: str) -> None:
    path = epath.Path(place) / f".doctor-{uuid.uuid4().hex}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("hello")
    found = path.read_text()
    path.unlink(missing_ok=True)  # the answer to a first attempt may have been lost
    if found != "hello":
        raise OSError(f"what was written came back as {found!r}")


def _try_tensorstore(place: str) -> None:
    store = ts.KvStore.open(place.rstrip("/") + "/").result()
    key = f".doctor-{uuid.uuid4().hex}"
    store.write(key, b"hello").result()
    found = store.read(key).result().value
    store.delete_range(ts.KvStore.KeyRange(key, key + "\0")).result()
    if found != b"hello":
        raise OSError(f"what was written came back as {found!r}")


def _storage_advice(place: str) -> str:
    if not place.startswith("gs://"):
        return "choose a --workdir that you may write to"
    bucket = "/".join(place.split("/")[:3])
    return (
        f"see whether it exists and this account may use it: gcloud storage ls {bucket}; "
        "log in with gcloud auth application-default login; a TPU VM needs the access "
        "scope cloud-platform; pip install 'etils[epath-gcs]' if gcsfs is missing"
    )


def within(patience_secs: float, action: Callable[[], Any]) -> BaseException | None:
    """Runs something that may hang; returns what it raised."""
    outcome: list[BaseException | None] = []

    def run() -> None:
        try:
            action()
            outcome.append(None)
        except Exception as error:  # of any library
            outcome.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(patience_secs)
    return outcome[0] if outcome else TimeoutError(f"no end in {patience_secs:g} s")


def one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:400]


def _normalise(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
