"""The life of a run: set up on every host, started, followed, lost, started again.

Enters: a `Slice`, a command, the code and a `Cloud`. Leaves: the exit code of the command,
and on the hosts nothing outside one directory. Every step may be repeated: it looks first
and does what is missing.
"""

import json
import shlex
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from launch import gcloud
from launch.archive import Archive
from launch.commands import run_id_of, workdir_of
from launch.gcloud import Answer, GcloudError
from launch.request import (
    WAITING,
    Cloud,
    SliceLost,
    delete,
    ensure_active,
    expected_hosts,
    lost_nodes,
    request_state,
)
from launch.slices import Slice


class NoSetupError(ValueError):
    """The hosts answer, but have none of our files."""


_HOPELESS = ("signed-out", "denied", "no-agent")

# --- its hosts -------------------------------------------------------------------------


def send(cloud: Cloud, wanted: Slice, *words: str, timeout: float = 0) -> Answer:
    """Sends a verb of host.py to every host and returns all that is printed.

    Raises:
        GcloudError: if no host answers, for a reason that does not pass.
        NoSetupError: if none has our files.
    """
    command = shlex.join(["python3", f"{wanted.folder}/host.py", *words])
    answer = cloud.gcloud.run(
        gcloud.ssh(wanted, command), timeout or cloud.pace.ssh_timeout_secs
    )
    if not read_answers(answer):
        kind = gcloud.kind_of(answer.err)
        if kind in _HOPELESS:
            raise GcloudError(kind, telling_line(answer.err))
        if "can't open file" in answer.err:
            raise NoSetupError(
                f"{wanted.name}: nothing is set up there: run setup first"
            )
    return answer


def ask(
    cloud: Cloud, wanted: Slice, *words: str, timeout: float = 0
) -> tuple[list[dict], str]:
    """Asks every host once.

    Returns:
        The answers that came, sorted by host, and the line that tells why others did not.

    Raises:
        ValueError: if a host refuses, with its reason.
        GcloudError: if gcloud does, for a reason that does not pass.
    """
    answer = send(cloud, wanted, *words, timeout=timeout)
    answers = read_answers(answer)
    refusals = [a for a in answers if a["state"] == "error"]
    if refusals:
        raise ValueError("\n".join(f"{a['host']}: {a['error']}" for a in refusals))
    return answers, telling_line(answer.err)


def read_answers(answer: Answer) -> list[dict]:
    """Reads the answers of hosts between everything else that ssh prints."""
    lines = [line for line in answer.out.splitlines() if line.startswith("@copymit ")]
    found = {}
    for line in lines:
        try:
            value = json.loads(line.removeprefix("@copymit "))
        except ValueError:
            continue  # Two hosts wrote at once; the next look is soon.
        found[value["host"]] = value
    return [found[host] for host in sorted(found)]


def ask_all(
    cloud: Cloud, wanted: Slice, expected: int, *words: str, timeout: float = 0
) -> list[dict]:
    """Asks until all `expected` hosts have answered; each host does a thing only once.

    Raises:
        SliceLost: if the slice was taken away meanwhile.
        TimeoutError: if some hosts do not answer although the slice is there.
    """
    return _until_all(
        cloud, wanted, expected, lambda: ask(cloud, wanted, *words, timeout=timeout)
    )


def _until_all(
    cloud: Cloud,
    wanted: Slice,
    expected: int,
    attempt: Callable[[], tuple[list[dict], str]],
) -> list[dict]:
    """Repeats an attempt until every host has answered."""
    since = None
    while True:
        answers, complaint = attempt()
        if len(answers) >= expected:
            return answers
        since = since or time.monotonic()
        expected = expected_hosts(cloud, wanted)  # raises if the slice is gone
        names = ", ".join(a["host"] for a in answers) or "none"
        cloud.say(
            f"{len(answers)} of {expected} hosts answered ({names}); again: {complaint}"
        )
        if time.monotonic() - since > cloud.pace.unreachable_secs:
            raise TimeoutError(
                f"{expected - len(answers)} of {expected} hosts of {wanted.name} do not "
                f"answer ({names} did): {complaint}. Is ssh allowed (firewall rule for "
                "port 22, or --internal-ips with IAP), and the key in the agent (ssh-add "
                "~/.ssh/google_compute_engine)? Repeat the command to go on."
            )
        cloud.gcloud.pause(cloud.pace.poll_secs)


def setup(cloud: Cloud, wanted: Slice, archive: Archive, env_file: str = "") -> int:
    """Puts code and environment onto every host and returns the number of hosts.

    The archive goes by scp: that works without a repository that hosts can reach, without
    keys on them, and for edits that are not committed.
    """
    run, pace = cloud.gcloud.run, cloud.pace
    expected = expected_hosts(cloud, wanted)
    cloud.say(f"{wanted.name}: sends the code; to install takes minutes at first")
    with tempfile.TemporaryDirectory() as temporary:
        files = [str(archive.save(Path(temporary)))]
        files += [str(Path(__file__).with_name("host.py"))]
        if env_file:
            # Its name on the hosts is "env".
            secret = Path(temporary) / "env"
            secret.touch(0o600)
            secret.write_bytes(Path(env_file).read_bytes())
            files += [str(secret)]

        def attempt() -> tuple[list[dict], str]:
            # gcloud ends well even if it has left a slice out: what counts is the answer.
            make = gcloud.ssh(wanted, f"mkdir -p -m 700 {wanted.folder}")
            copy = gcloud.scp(wanted, files, wanted.folder)
            run(make, pace.ssh_timeout_secs)
            copied = run(copy, pace.ssh_timeout_secs)
            try:
                return ask(
                    cloud,
                    wanted,
                    "setup",
                    archive.digest,
                    timeout=pace.setup_timeout_secs,
                )
            except NoSetupError:
                return [], telling_line(copied.err)

        answers = _until_all(cloud, wanted, expected, attempt)
    cloud.say(f"{wanted.name}: code {archive.digest} on {len(answers)} hosts")
    return len(answers)


def telling_line(text: str) -> str:
    """Picks the line that says why out of all that gcloud and ssh print."""
    lines = text.strip().splitlines() or ["no message"]
    signs = ("ERROR", "Permission denied", "ssh: ", "can't open", "HttpError")
    found = (line for sign in signs for line in lines if sign in line)
    return next(found, lines[-1])


# --- a run -----------------------------------------------------------------------------


def start(cloud: Cloud, wanted: Slice, hosts: int, command: Sequence[str]) -> str:
    """Starts the command on every host, or finds it running, and returns its id."""
    run = run_id_of(command)
    states = {a["state"] for a in ask_all(cloud, wanted, hosts, "poll", run)}
    if "running" in states and states != {"running"}:
        # Some hosts have died: the others wait for them in vain.
        ask_all(cloud, wanted, hosts, "stop", "60")
    if states != {"running"}:
        ask_all(cloud, wanted, hosts, "start", run, json.dumps(list(command)))
    return run


def hosts_running(cloud: Cloud, wanted: Slice, run: str) -> int:
    """Returns the number of hosts if a run is going on on all of them, else 0.

    It needs no setup then, whatever has become of the code here since it was started.
    """
    expected = expected_hosts(cloud, wanted)
    try:
        answers, _ = ask(cloud, wanted, "poll", run)
    except NoSetupError:
        return 0
    running = [a for a in answers if a["state"] == "running"]
    if len(running) < expected:
        return 0
    cloud.say(f"{wanted.name}: the run is going on, with the code that it began with")
    return expected


def follow(cloud: Cloud, wanted: Slice, hosts: int, run: str) -> int:
    """Waits for the end of a run and returns its exit code.

    Raises:
        SliceLost: if the slice was taken away, or a host was restarted, before the end.
        TimeoutError: if hosts stay silent although the slice is there.
    """
    told = ""
    while True:
        answers = ask_all(cloud, wanted, hosts, "poll", run)
        states = {a["state"] for a in answers}
        codes = [a["code"] for a in answers if a["state"] == "exited"]
        if states == {"exited"} and not any(codes):
            return 0
        stopped = any(a.get("stopped") for a in answers)
        if states - {"running", "exited"} and not stopped:
            _settle(cloud, wanted)
            raise SliceLost(f"{wanted.name}: a host was restarted")
        if any(codes):
            return _failed(cloud, wanted, answers)
        news = f"running on {len(answers)} hosts: {answers[0].get('last', '')}"
        if news != told:
            cloud.say(news)
            told = news
        cloud.gcloud.pause(cloud.pace.poll_secs)


def _failed(cloud: Cloud, wanted: Slice, answers: list[dict]) -> int:
    """Returns the exit code of a failed run, once it is sure that nothing was lost."""
    _settle(cloud, wanted)
    ask_all(cloud, wanted, len(answers), "stop", "60")
    failed = [a for a in answers if a.get("code")]
    for a in failed:
        cloud.say(f"{a['host']}: exit code {a['code']}: {a.get('last', '')}")
    return int(failed[0]["code"])


def _settle(cloud: Cloud, wanted: Slice) -> None:
    """Looks at the cloud for a while, which learns of a loss later than the hosts.

    Raises:
        SliceLost: as soon as it says so.
    """
    for _ in range(cloud.pace.settle_polls):
        expected_hosts(cloud, wanted)
        cloud.gcloud.pause(cloud.pace.poll_secs)


def run_on_slice(
    cloud: Cloud,
    wanted: Slice,
    command: Sequence[str],
    archive: Archive,
    *,
    env_file: str = "",
    restarts: int = 20,
) -> int:
    """Runs a command on every host of a slice to its end, however often that is lost.

    The slice is asked for if it is not there and stays when the run is over. A slice that
    was preempted is deleted and asked for again, and the same command started anew: with
    a workdir in a bucket, training goes on from its newest checkpoint. Called again, it
    follows the run that is going on.

    Args:
        command: what each host starts, as from `command_of_hosts`.
        restarts: how many losses to bear before giving up.

    Returns:
        The exit code, 0 if all hosts ended well.

    Raises:
        SliceLost: after too many losses, or if somebody deletes the slice.
    """
    check_bucket(cloud, wanted, command)
    for loss in range(restarts + 1):
        try:
            was_there = ensure_active(cloud, wanted)
            run = run_id_of(command)
            hosts = hosts_running(cloud, wanted, run) if was_there else 0
            if not hosts:
                hosts = setup(cloud, wanted, archive, env_file)
                start(cloud, wanted, hosts, command)
            return follow(cloud, wanted, hosts, run)
        except SliceLost as lost:
            if loss == restarts:
                raise
            state, found = request_state(cloud, wanted)
            if state in ("ABSENT", "DELETING"):
                # The service takes slices away, but never the request for one.
                raise SliceLost(f"{wanted.name}: somebody has deleted it") from lost
            cloud.say(f"{lost}; start {loss + 2} of at most {restarts + 1}")
            # What waits is on its way: of several slices, the service replaces a lost one.
            gone = state not in (*WAITING, "ACTIVE")
            if gone or (state == "ACTIVE" and lost_nodes(cloud, wanted, found)):
                delete(cloud, wanted)
            cloud.gcloud.pause(cloud.pace.poll_secs * min(2**loss, 32))
    raise AssertionError("unreachable")


def check_bucket(cloud: Cloud, wanted: Slice, command: Sequence[str]) -> None:
    """Makes sure that the bucket of the workdir answers before anything is paid for.

    Raises:
        GcloudError: if it does not.
    """
    workdir = workdir_of(command)
    if workdir.startswith("gs://"):
        bucket = workdir.removeprefix("gs://").split("/")[0]
        cloud.gcloud.call(gcloud.list_objects(wanted, bucket))
