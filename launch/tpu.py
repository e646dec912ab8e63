"""Trains on Cloud TPU: one command asks for a slice, installs, runs, follows, resumes.

    python -m launch.tpu run my-run --zone=us-west4-a --type=v5litepod-16 --spot -- \\
        train.py --config=configs/laion10k.py --workdir=gs://my-bucket/laion10k

The steps one by one: create, setup, run, status, logs, stop, delete. Each may be repeated;
--dry-run prints the gcloud calls instead of making them. docs/tpu.md has the rest.
"""

import argparse
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from launch import lifecycle, request
from launch.archive import Archive, pack
from launch.commands import check_workdir, command_of_hosts, workdir_of
from launch.gcloud import Gcloud, Rehearsal
from launch.lifecycle import run_on_slice
from launch.request import Cloud, Pace, SliceLost
from launch.slices import CAPACITIES, Slice, parse_labels

__all__ = ["main", "run_on_slice"]

_VERBS = {
    "create": "ask for the slice and wait until it is there",
    "setup": "copy the code onto every host and install it",
    "run": "create, setup, start the command behind --, follow it; again after preemption",
    "status": "the slice and its hosts in one table",
    "logs": "the last lines of the log of every host",
    "stop": "end the run (a checkpoint is saved); the slice stays, and costs",
    "delete": "give the slice back",
}
_LEFT = {
    "create": "not waited for any more; the request stays, and costs once it is granted "
    "(status, delete)",
    "run": "not followed any more; what runs, runs on (status, logs, stop, or run again "
    "to follow); the slice costs until delete",
}
_ROOT = Path(__file__).parents[1]


def main(arguments: Sequence[str] | None = None) -> int:
    """Parses the command line, does the verb and returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    command: list[str] = []
    if "--" in words:
        cut = words.index("--")
        words, command = words[:cut], words[cut + 1 :]
    options = _parser().parse_args(words)
    try:
        return _do(options, command)
    except (ValueError, OSError, SliceLost) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\n{_LEFT.get(options.verb, 'not waited for any more')}")
        return 130


def _do(options: argparse.Namespace, command: list[str]) -> int:
    if command and options.verb != "run":
        raise ValueError(f"{options.verb} takes no command behind --")
    wanted = _slice(options)
    if env_file := getattr(options, "env_file", ""):
        _check_env_file(Path(env_file))
    runner = Gcloud()
    if options.dry_run:
        fresh = options.verb in ("create", "run")
        rehearsal = Rehearsal(print, exists=not fresh, hosts=wanted.count)
        runner = Gcloud(rehearsal, pause=lambda _secs: None)
    cloud = Cloud(runner, Pace(poll_secs=options.poll_secs), _say_when)
    if options.verb == "run":
        return _run(cloud, wanted, command, options)
    if options.verb == "create":
        request.ensure_active(cloud, wanted)
    elif options.verb == "setup":
        lifecycle.setup(cloud, wanted, _archive(), options.env_file)
    elif options.verb == "delete":
        request.delete(cloud, wanted)
        cloud.say(f"{wanted.name}: gone")
    elif options.verb == "status":
        print(status(cloud, wanted))
    elif options.verb == "logs":
        print(logs(cloud, wanted, options.lines))
    elif options.verb == "stop":
        _stop(cloud, wanted)
    return 0


def _run(
    cloud: Cloud, wanted: Slice, words: list[str], options: argparse.Namespace
) -> int:
    command = command_of_hosts(words)
    if not options.local_workdir:
        check_workdir(command)
    if wanted.capacity == "spot" and not workdir_of(command).startswith("gs://"):
        cloud.say(
            "note: a spot slice without --workdir=gs://... starts from nothing again"
        )
    code = run_on_slice(
        cloud,
        wanted,
        command,
        _archive(),
        env_file=options.env_file,
        restarts=options.restarts,
    )
    cloud.say(f"{wanted.name}: the run ended with exit code {code}")
    if options.delete and code == 0:
        request.delete(cloud, wanted)
        cloud.say(f"{wanted.name}: gone")
    elif not options.dry_run:
        cloud.say(f"{wanted.name} stays and costs; delete it when it is not needed")
    return code


def status(cloud: Cloud, wanted: Slice) -> str:
    """Returns one table: the slice, and a row for each host."""
    state, found = request.request_state(cloud, wanted)
    specs = found.get("tpu", {}).get("nodeSpec", [])
    kind = specs[0].get("node", {}).get("acceleratorType", "") if specs else ""
    title = f"{wanted.name}  {wanted.zone}  {kind}  {state}"
    if state != "ACTIVE":
        return title
    lost = request.lost_nodes(cloud, wanted, found)
    if lost:
        return f"{title}\n{lost}: run or create asks again"
    expected = request.hosts_of(cloud, wanted, found)
    try:
        answers, complaint = lifecycle.ask(cloud, wanted, "poll")
    except lifecycle.NoSetupError as error:
        return f"{title}\n{error}"
    rows = [("host", "run", "state", "for", "last line of its log")]
    rows += [
        (
            a["host"],
            a.get("run", "") or "-",
            a["state"] + (f" {a['code']}" if a["state"] == "exited" else ""),
            f"{a['secs'] // 60} min" if "secs" in a else "",
            a.get("last", ""),
        )
        for a in answers
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = ["  ".join([*map(str.ljust, row[:4], widths), row[4]]) for row in rows]
    silent = expected - len(answers)
    note = f"{silent} of {expected} hosts do not answer: {complaint}" if silent else ""
    return "\n".join([title, *(line.rstrip() for line in lines), note]).rstrip()


def logs(cloud: Cloud, wanted: Slice, lines: int) -> str:
    """Returns the last lines of the log of each host, one host after another."""
    answer = lifecycle.send(cloud, wanted, "log", str(lines))
    if not lifecycle.read_answers(answer):
        raise ValueError(f"no host has answered: {lifecycle.telling_line(answer.err)}")
    by_host: dict[str, list[str]] = {}
    for line in answer.out.splitlines():
        if line.startswith("@log "):
            _, host, *text = line.split(" ", 2)
            by_host.setdefault(host, []).append("".join(text))
    if answer.code:
        _say_aside(
            f"some hosts have not answered: {lifecycle.telling_line(answer.err)}"
        )
    return "\n".join(f"== {h}\n" + "\n".join(by_host[h]) for h in sorted(by_host))


def _stop(cloud: Cloud, wanted: Slice) -> None:
    state, found = request.request_state(cloud, wanted)
    if state != "ACTIVE":
        cloud.say(f"{wanted.name}: nothing runs")
        return
    hosts = request.hosts_of(cloud, wanted, found)
    try:
        answers = lifecycle.ask_all(cloud, wanted, hosts, "stop", "120")
    except lifecycle.NoSetupError:
        cloud.say(f"{wanted.name}: nothing runs")
        return
    for answer in answers:
        cloud.say(
            f"{answer['host']}: {answer['state']} {answer.get('code', '')}".rstrip()
        )


def _check_env_file(path: Path) -> None:
    """Finds mistakes before anything is paid for, and shows no line of the file."""
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if line.strip() and not re.match(r"#|\s*[A-Za-z_]\w*\s*=", line):
            raise ValueError(f"{path}, line {number}: expected KEY=VALUE")


def _archive() -> Archive:
    archive = pack(_ROOT)
    if archive.untracked:
        some = ", ".join(archive.untracked[:3])
        _say_aside(
            f"note: {len(archive.untracked)} files stay behind ({some}): git add them"
        )
    return archive


def _say_when(text: str) -> None:
    _say_aside(f"{time.strftime('%H:%M:%S')} {text}")


def _say_aside(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _slice(options: argparse.Namespace) -> Slice:
    if options.verb in ("create", "run") and not options.type:
        raise ValueError("--type is missing, such as --type=v5litepod-16")
    capacity = "spot" if options.spot else options.capacity
    if options.reservation:
        capacity = "reserved"
    return Slice(
        name=options.name,
        zone=options.zone,
        type=options.type,
        count=options.slices,
        project=options.project,
        capacity=capacity,
        reservation=options.reservation,
        runtime=options.runtime,
        network=options.network,
        subnetwork=options.subnetwork,
        internal_ips=options.internal_ips,
        service_account=options.service_account,
        valid_until=options.valid_until,
        labels=parse_labels(options.label),
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m launch.tpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb, text in _VERBS.items():
        sub = verbs.add_parser(verb, help=text, description=text)
        add = sub.add_argument
        add("name", help="of the slice")
        add("--zone", required=True, help="such as us-west4-a")
        add("--project", default="", help="default: that of the gcloud configuration")
        add("--slices", type=int, default=1, help="create, run: more for multislice")
        add(
            "--internal-ips",
            action="store_true",
            help="no public addresses; ssh by IAP",
        )
        add("--dry-run", action="store_true", help="print the calls and make none")
        add("--poll-secs", type=float, default=30.0, help="between two looks")
        add("--type", default="", help="accelerator type, such as v5litepod-16")
        add(
            "--capacity",
            choices=CAPACITIES,
            default="on-demand",
            help="what to pay for",
        )
        add("--spot", action="store_true", help="short for --capacity=spot")
        add("--reservation", default="", help="a named reservation")
        add("--runtime", default="", help="software version; default: that of the type")
        add("--network", default="")
        add("--subnetwork", default="")
        add("--service-account", default="", help="that the hosts act as")
        add("--valid-until", default="", help="give the request up after, say, 6h")
        add("--label", action="append", default=[], help="KEY=VALUE, for the bill")
        if verb in ("setup", "run"):
            add("--env-file", default="", help="KEY=VALUE lines for the run, not shown")
        if verb == "run":
            add("--restarts", type=int, default=20, help="losses to bear")
            add(
                "--delete",
                action="store_true",
                help="give the slice back after success",
            )
            add(
                "--local-workdir",
                action="store_true",
                help="allow one outside a bucket",
            )
        if verb == "logs":
            add("--lines", type=int, default=20)
    return parser


if __name__ == "__main__":
    sys.exit(main())
