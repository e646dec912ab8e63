"""Looks at this host, or at all hosts of a slice, and says what is wrong and what to do.

    python -m launch.doctor
    python -m launch.doctor --workdir=gs://bucket/runs --distributed

Several hosts start the same command with train.py's flags: --distributed on Cloud TPU and
Slurm, elsewhere --coordinator, --num_processes and --process_id. Process 0 says all that
it finds, the others what is wrong with them. Exit code 1 if something is.
"""

import argparse
import configparser
import glob
import importlib.metadata
import os
import re
import sys
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

_INSTALL = "pip install -c constraints.txt -e '.[{}]'"
try:
    import jax
    import numpy as np
    import tensorstore as ts
    from etils import epath
    from jax.sharding import Mesh, NamedSharding, PartitionSpec
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name
except ImportError as error:
    install = _INSTALL.format("tpu")
    sys.exit(f"WRONG packages: {error} in {sys.executable}\n  -> {install} (or cuda)")

_ROOT = Path(__file__).parents[1]
# Other versions of these may give other results; and those of the accelerator in use.
_TELLING = r"flax|grain|jax|jaxlib|numpy|optax|orbax-checkpoint|tensorstore"
_OWN = {"tpu": r"|libtpu", "gpu": r"|jax-cuda\d+-\w+", "cpu": ""}
_JOIN = (
    "start the same command on every host; see that all reach process 0 (host name, "
    "port, firewall); where jax does not know the cluster, name "
    "--coordinator=HOST:PORT, --num_processes and --process_id"
)
_DEVICES = (
    f"{_INSTALL.format('tpu')} (or cuda); see that no other program holds them (one "
    "process a host), and what JAX_PLATFORMS says"
)
_BUCKET = (
    "see whether it exists and this account may use it: gcloud storage ls {}; log in "
    "with gcloud auth application-default login; a TPU VM needs the access scope "
    "cloud-platform"
)
_SIDE = 512  # of the matrices of the step


def look_at_devices() -> str:
    """Says what jax sees; a `RuntimeError` if the host has more than that."""
    backend, present = jax.default_backend(), accelerator()
    if present and backend == "cpu":
        raise RuntimeError(f"this host has a {present}, but jax uses the CPU")
    kinds = ", ".join(sorted({device.device_kind for device in jax.devices()}))
    here, hosts = jax.local_device_count(), jax.process_count()
    return (
        f"{backend}: {jax.device_count()} ({kinds}), {here} here, {hosts} process(es)"
    )


def accelerator() -> str:
    """Returns what the host has by its device files: TPU, GPU or nothing."""
    tpu = glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*")
    if tpu and "TPU_SKIP_MDS_QUERY" not in os.environ:
        return "TPU"
    return "GPU" if glob.glob("/dev/nvidia[0-9]*") else ""


def look_at_packages(
    needed: Iterable[str], pins: Iterable[str], found: Mapping[str, str], backend: str
) -> str:
    """Compares versions with copymit's requirements and the lines of constraints.txt.

    What belongs to other platforms, backends or the tests is passed over.

    Raises:
      ModuleNotFoundError: if something is missing.
    """
    missing = [name for name, _ in _here(needed) if name not in found]
    if missing:
        raise ModuleNotFoundError(f"not installed: {', '.join(missing)}")
    differ = [
        f"{name} {found[name]} ({tested})"
        for name, tested in _here(pins)
        if re.fullmatch(_TELLING + _OWN[backend], name)
        and found.get(name, tested).partition("+")[0] != tested
    ]
    if differ:
        return f"others than the tested ones, in brackets: {', '.join(differ)}"
    return f"as tested, jax {found['jax']}"


def _here(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yields name and version of the requirements that are meant for this Python."""
    for line in lines:
        if line.strip() and not line.startswith("#"):
            wanted = Requirement(line)
            if wanted.marker is None or wanted.marker.evaluate():
                yield canonicalize_name(wanted.name), str(wanted.specifier)[2:]


def use(place: str) -> str:
    """Writes, reads and deletes with the clients of files and, in a bucket, of arrays."""
    started = time.perf_counter()
    path = epath.Path(place) / f".doctor-{uuid.uuid4().hex}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("hello")
    path.read_text()
    path.unlink(missing_ok=True)  # the answer to a first attempt may have been lost
    if place.startswith("gs://"):
        store = ts.KvStore.open(place.rstrip("/") + "/").result()
        store.write(path.name, b"hello").result()
        store.read(path.name).result()
        store.delete_range(ts.KvStore.KeyRange(path.name, path.name + "\0")).result()
    took = time.perf_counter() - started
    return f"{place}: written, read and deleted in {took:.2f} s"


def run_step() -> str:
    """Multiplies sharded matrices and sums over all devices of all hosts."""
    count = jax.device_count()
    mesh = Mesh(np.array(jax.devices()), ("data",))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    whole = NamedSharding(mesh, PartitionSpec())
    shape = (count, _SIDE, _SIDE)
    x = jax.jit(lambda: jax.numpy.full(shape, 1 / _SIDE), out_shardings=rows)()
    step = jax.jit(lambda x: ((x @ x.mT).mean((1, 2)) + 1).sum(), out_shardings=whole)
    started = time.perf_counter()
    found, expected = float(step(x)), count * (1 + 1 / _SIDE)
    took = time.perf_counter() - started
    if not np.isclose(found, expected, rtol=1e-2):  # a TPU multiplies in bfloat16
        raise ArithmeticError(f"it gave {found}, not {expected}")
    return f"compiled and run on {count} devices in {took:.2f} s"


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    called = sys.argv[0].startswith("copymit ")  # by the console
    parser = argparse.ArgumentParser(
        prog=sys.argv[0] if called else "python -m launch.doctor"
    )
    add = parser.add_argument
    add("--workdir", action="append", default=[], help="or gs://; may be repeated")
    add("--distributed", action="store_true", help="join the other hosts")
    add("--coordinator", help="host:port of process 0; implies --distributed")
    add("--num_processes", type=int, help="with --coordinator")
    add("--process_id", type=int, help="with --coordinator")
    add("--patience", type=int, default=90, help="seconds for each check")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Looks, prints a line for each check and returns the exit code."""
    options = _parse(argv)
    wrong: list[str] = []
    quiet = False

    def look(subject, action, advice):
        try:
            # In a thread of its own: what never answers is left behind.
            said = ThreadPoolExecutor(1).submit(action).result(options.patience)
        except Exception as error:  # of any library
            said = " ".join(str(error).split()) or f"no answer in {options.patience} s"
            print(f"WRONG {subject:10}{type(error).__name__}: {said}"[:400])
            print(f"{'':16}-> {advice}", flush=True)
            wrong.append(subject)
        else:
            if said and not quiet:
                print(f"ok    {subject:10}{said}", flush=True)

    if options.distributed or options.coordinator:
        print(f"joining; jax aborts after {options.patience} s if one does not come:")
        print(f"{'':16}-> {_JOIN}", flush=True)
        hosts = (options.coordinator, options.num_processes, options.process_id)
        limit = {"initialization_timeout": options.patience}
        look("hosts", partial(jax.distributed.initialize, *hosts, **limit), _JOIN)
    if not wrong:
        look("devices", look_at_devices, _DEVICES)
    if wrong:
        return 1  # the rest would be told of other devices
    quiet = jax.process_index() > 0
    setup = configparser.ConfigParser()
    setup.read(_ROOT / "setup.cfg")
    needed = setup["options"]["install_requires"].splitlines()
    pins = (_ROOT / "constraints.txt").read_text().splitlines()
    installed = importlib.metadata.distributions()
    found = {str(canonicalize_name(d.name)): d.version for d in installed}
    packages = partial(look_at_packages, needed, pins, found, jax.default_backend())
    look("packages", packages, _INSTALL.format("tpu") + " (or cuda)")
    for place in options.workdir:
        bucket = _BUCKET.format("/".join(place.split("/")[:3]))
        advice = bucket if "://" in place else "name one that you may write to"
        look("storage", partial(use, place), advice)
    look("step", run_step, "see that all hosts have the same packages and no firewall")
    if wrong or not quiet:
        print(f"wrong: {', '.join(wrong)}" if wrong else "nothing is wrong", flush=True)
    return int(bool(wrong))


def run() -> None:
    """Is the program, for the console as well."""
    if code := main():
        os._exit(code)  # neither what hangs nor other hosts are waited for


if __name__ == "__main__":
    run()
