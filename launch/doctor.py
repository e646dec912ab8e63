"""Looks at this host, or at all hosts of a slice, and says what is wrong and what to do.

    python -m launch.doctor
    python -m launch.doctor --workdir=gs://bucket/runs --distributed

Several hosts start the same command with train.py's flags: --distributed on Cloud TPU,
elsewhere --coordinator, --num_processes and --process_id. Process 0 prints one page about
all of them. Exit code 1 if something is wrong.
"""

import argparse
import contextlib
import dataclasses
import glob
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any

try:
    import jax
    import numpy as np
    from jax.experimental import multihost_utils
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    from launch.host_checks import (
        ESSENTIAL,
        INSTALL,
        PROJECT,
        Finding,
        check_host,
        check_place,
        compare_versions,
        installed_versions,
        one_line,
        read_pins,
        within,
    )
except ImportError as error:
    sys.exit(
        f"WRONG packages: {sys.executable} cannot import them: {error}\n"
        "  -> pip install -c constraints.txt -e '.[tpu]' (or .[cuda], or .), and start "
        "the doctor with the python of that environment"
    )

_SIDE = 512  # of the matrices of the step
_REPORT_BYTES = 2**16  # of one host; longer ones are cut
_EXAMINE = "import sys; from launch import doctor; sys.exit(doctor.main(sys.argv[1:]))"
_HOW_TO_JOIN = (
    "start the same command on every host, process 0 first; see that they reach {} "
    "(firewall, host name, port)"
)


@dataclasses.dataclass(frozen=True)
class Report:
    """What one process found; `versions` must be the same everywhere."""

    host: str
    process: int
    versions: str
    findings: tuple[Finding, ...]

    def encode(self) -> bytes:
        """Returns JSON."""
        return json.dumps(dataclasses.asdict(self)).encode()

    @staticmethod
    def decode(data: bytes) -> "Report":
        """Undoes `encode`."""
        fields = json.loads(data)
        findings = tuple(Finding(*row) for row in fields["findings"])
        return Report(**(fields | {"findings": findings}))


def check_devices() -> list[Finding]:
    """Says what jax sees, and whether that is all that the host has."""
    devices, local = jax.devices(), jax.local_devices()
    kinds = ", ".join(sorted({device.device_kind for device in devices}))
    text = (
        f"{jax.default_backend()}: {len(devices)} devices ({kinds}), {len(local)} here, "
        f"{jax.process_count()} process(es)"
    )
    findings = [Finding("ok", "devices", text)]
    if (topology := _topology(local)) is not None:
        findings.append(Finding("ok", "topology", topology))
    present = _accelerators()
    if present and jax.default_backend() == "cpu":
        findings.append(
            Finding(
                "WRONG",
                "devices",
                f"this host has {present}, but jax uses the CPU",
                f"{INSTALL[present]}, unset JAX_PLATFORMS, and see that no other "
                "program holds it",
            )
        )
    held = [device.memory_stats() for device in local]
    for device, stats in zip(local, held, strict=True):
        if stats and stats["bytes_in_use"] > stats.get("bytes_limit", np.inf) / 2:
            used = f"{device}: {stats['bytes_in_use'] / 2**30:.1f} GiB are in use"
            findings.append(
                Finding("note", "devices", used, "end what else runs there")
            )
    return findings


def _topology(devices: Sequence[Any]) -> str | None:
    coords = [getattr(device, "coords", None) for device in devices]
    if None in coords or not coords:
        return None
    everyone = np.array([device.coords for device in jax.devices()])
    shape = "x".join(map(str, everyone.max(0) - everyone.min(0) + 1))
    slices = {getattr(device, "slice_index", 0) for device in jax.devices()}
    here = sorted(tuple(c or ()) for c in coords)
    return f"{shape} chips, {len(slices)} slice(s); here {here}"


def _accelerators() -> str:
    if glob.glob("/dev/accel*") or (
        glob.glob("/dev/vfio/[0-9]*") and "TPU_SKIP_MDS_QUERY" not in os.environ
    ):
        return "TPU"
    return "GPU" if glob.glob("/dev/nvidia[0-9]*") else ""


def check_step(patience_secs: float) -> Finding:
    """Multiplies sharded matrices and sums over all devices of all hosts."""
    times: list[float] = []
    error = within(patience_secs, lambda: times.extend(_run_step()))
    count = jax.device_count()
    if error is not None:
        return Finding(
            "WRONG",
            "step",
            f"a sharded step over {count} devices failed: {one_line(error)}",
            "with several hosts: see that all started the same command and versions, "
            "and that no firewall is between them",
        )
    compiled, ran = times
    text = f"{count} devices: compiled in {compiled:.2f} s, ran in {ran * 1000:.1f} ms"
    return Finding("ok", "step", text)


def _run_step() -> tuple[float, float]:
    """Returns the seconds that compilation and one step take."""
    mesh = Mesh(np.array(jax.devices()), ("data",))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    whole = NamedSharding(mesh, PartitionSpec())
    count = jax.device_count()

    def step(x):
        return ((x @ x.mT).mean((1, 2)) + 1).sum()

    make = jax.jit(
        lambda: jax.numpy.ones((count, _SIDE, _SIDE)) / _SIDE, out_shardings=rows
    )
    x = make()
    started = time.perf_counter()
    compiled = jax.jit(step, out_shardings=whole).lower(x).compile()
    compile_secs = time.perf_counter() - started
    compiled(x).block_until_ready()
    started = time.perf_counter()
    found = float(compiled(x))
    took = time.perf_counter() - started
    expected = count * (1 + 1 / _SIDE)
    if not np.isclose(found, expected, rtol=1e-2):  # a TPU multiplies in bfloat16
        raise ArithmeticError(f"it gave {found}, not {expected}")
    return compile_secs, took


def gather(report: Report) -> list[Report]:
    """Collects the reports of all processes."""
    if jax.process_count() == 1:
        return [report]
    data = report.encode()
    if len(data) > _REPORT_BYTES:
        text = "the report of this host is too long: run the doctor there alone"
        cut = Finding("WRONG", "report", text)
        data = dataclasses.replace(report, findings=(cut,)).encode()
    padded = np.frombuffer(data.ljust(_REPORT_BYTES), np.uint8)
    everything = np.asarray(multihost_utils.process_allgather(padded))
    return [Report.decode(row.tobytes()) for row in everything]


def compare_hosts(reports: Sequence[Report]) -> list[Finding]:
    """Checks that all hosts run the same."""
    versions = {f"{report.host}: {report.versions}" for report in reports}
    if len({report.versions for report in reports}) < 2:
        return []
    return [
        Finding(
            "WRONG",
            "hosts",
            f"they have different packages: {' | '.join(sorted(versions))}",
            "install the same on all of them: python -m launch.tpu setup",
        )
    ]


def render(reports: Sequence[Report], common: Iterable[Finding] = ()) -> str:
    """Writes the page; what all hosts say alike is written once."""
    lines = []
    alike = [f for f in reports[0].findings if all(f in r.findings for r in reports)]
    groups: list[tuple[str, Sequence[Finding]]] = []
    everyone = [*common, *(alike if len(reports) > 1 else ())]
    if everyone:
        groups.append((f"all {len(reports)} processes", everyone))
    for report in reports:
        own = [f for f in report.findings if len(reports) == 1 or f not in alike]
        if own:
            groups.append((f"{report.host}, process {report.process}", own))
    for title, findings in groups:
        lines.append(title)
        for finding in findings:
            lines.append(f"  {finding.state:6}{finding.subject:10}{finding.text}")
            if finding.advice:
                lines.append(f"  {'':16}-> {finding.advice}")
    wrong = sum(f.state == "WRONG" for _, found in groups for f in found)
    lines.append(f"{wrong} thing(s) wrong" if wrong else "nothing is wrong")
    return "\n".join(lines)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m launch.doctor", description=(__doc__ or "").splitlines()[0]
    )
    add = parser.add_argument
    add("--workdir", default="", help="directory of runs, on disk or gs://")
    add("--bucket", default="", help="another place to try, such as gs://bucket")
    add("--distributed", action="store_true", help="join the other hosts of the slice")
    add("--coordinator", help="host:port of process 0; implies --distributed")
    add("--num_processes", type=int, help="with --coordinator")
    add("--process_id", type=int, help="with --coordinator")
    add("--patience", type=float, default=90.0, help="seconds for each check")
    found = parser.parse_args(argv)
    if found.coordinator:
        if not re.fullmatch(r".+:\d+", found.coordinator):
            parser.error(f"--coordinator={found.coordinator}: expected HOST:PORT")
        if None in (found.num_processes, found.process_id):
            parser.error("--coordinator goes with --num_processes and --process_id")
    return found


def _join(arguments: argparse.Namespace) -> Finding | None:
    """Joins the other hosts as train.py does."""
    if not (arguments.distributed or arguments.coordinator):
        return None
    where = arguments.coordinator or "the other hosts"
    print(f"joining {where}", file=sys.stderr, flush=True)
    try:
        if arguments.coordinator and arguments.process_id:
            _knock(arguments.coordinator, arguments.patience)
        jax.distributed.initialize(
            arguments.coordinator,
            arguments.num_processes,
            arguments.process_id,
            initialization_timeout=int(arguments.patience),
        )
    except (OSError, RuntimeError, ValueError) as error:
        way_out = _HOW_TO_JOIN.format(where)
        if not arguments.coordinator:
            way_out = (
                "only on Cloud TPU and a few clusters are they found without being named; "
                "elsewhere give --coordinator=HOST:PORT, --num_processes and --process_id"
            )
        text = f"the others cannot be joined: {one_line(error)}"
        return Finding("WRONG", "hosts", text, way_out)
    return None


def _knock(address: str, patience_secs: float) -> None:
    """Waits until somebody listens there; raises an `OSError` if nobody does."""
    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + patience_secs
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=patience_secs).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def watch(argv: Sequence[str]) -> int:
    """Examines in a process of its own: jax kills one that waits for others in vain."""
    arguments = _parse(argv)
    if not (arguments.distributed or arguments.coordinator):
        return main(argv)
    words = [sys.executable, "-c", _EXAMINE, *argv]
    code = subprocess.run(words, env={**os.environ, "PYTHONPATH": _path()}).returncode
    if code >= 0:
        return code
    finding = Finding(
        "WRONG",
        "hosts",
        f"jax has given up (signal {-code}): not all hosts have come within "
        f"{arguments.patience:g} s, or one has ended",
        _HOW_TO_JOIN.format(arguments.coordinator or "one another"),
    )
    host = Report(socket.gethostname(), arguments.process_id or 0, "", (finding,))
    print(render([host]), flush=True)
    return 1


def _path() -> str:
    return os.pathsep.join([str(PROJECT), os.environ.get("PYTHONPATH", "")])


def main(argv: Sequence[str]) -> int:
    """Examines, prints the page and returns the exit code."""
    arguments = _parse(argv)
    alone = _join(arguments)
    installed = installed_versions()
    findings = compare_versions(read_pins(PROJECT / "constraints.txt"), installed)
    findings += check_host(arguments.workdir)
    for place in dict.fromkeys((arguments.workdir, arguments.bucket)):
        findings += check_place(place, arguments.patience) if place else []
    findings += [alone] if alone else _look_at_devices(arguments.patience)
    fatal = ("hosts", "devices", "step")
    lonely = any(f.subject in fatal and f.state == "WRONG" for f in findings)
    report = Report(
        socket.gethostname(),
        (arguments.process_id or 0) if lonely else jax.process_index(),
        ", ".join(f"{name} {installed.get(name)}" for name in ESSENTIAL),
        tuple(findings),
    )
    if lonely:
        # The others may never answer, nor the end of jax.distributed ever come.
        print(render([report]), flush=True)
        os._exit(1)
    reports = gather(report)
    common = compare_hosts(reports)
    if jax.process_index() == 0:
        print(render(reports, common), flush=True)
    everything = [*common, *(f for report in reports for f in report.findings)]
    return int(any(finding.state == "WRONG" for finding in everything))


def _look_at_devices(patience_secs: float) -> list[Finding]:
    found: list[Finding] = []
    error = within(patience_secs, lambda: found.extend(check_devices()))
    if error is not None:
        way_out = (
            f"see that no other program holds it (one process a host); {INSTALL['TPU']} "
            "if libtpu is missing; JAX_PLATFORMS=cpu does without"
        )
        return [Finding("WRONG", "devices", one_line(error), way_out)]
    return [*found, check_step(patience_secs)]


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(watch(sys.argv[1:]))
