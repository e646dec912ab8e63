"""Every call of gcloud that is made, as a list of words, and the one place that runs it.

The functions in the first half are pure: what a verb will do can be printed before it is
done. Documentation: https://cloud.google.com/tpu/docs/queued-resources and the pages of
https://cloud.google.com/sdk/gcloud/reference/compute/tpus/queued-resources.
"""

import contextlib
import dataclasses
import json
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Sequence

from launch.slices import Slice, runtime_of

# A host that is gone is given up after 20 s, and a connection that died after 90.
_PATIENCE = ("ConnectTimeout=20", "ServerAliveInterval=30", "ServerAliveCountMax=3")
_REQUESTS = ("compute", "tpus", "queued-resources")


def describe_request(wanted: Slice) -> list[str]:
    """Asks for the state of the queued resource."""
    return _gcloud(wanted, *_REQUESTS, "describe", wanted.name, "--format=json")


def describe_node(wanted: Slice, node: str) -> list[str]:
    """Asks for the state of one TPU VM, with the addresses of its hosts."""
    return _gcloud(
        wanted, "compute", "tpus", "tpu-vm", "describe", node, "--format=json"
    )


def create_request(wanted: Slice) -> list[str]:
    """Puts a request into the queue. A named reservation needs the alpha command:
    https://cloud.google.com/tpu/docs/consume-reservation."""
    labels = {"copymit": wanted.name, **dict(wanted.labels)}
    flags = [
        f"--accelerator-type={wanted.type}",
        f"--runtime-version={runtime_of(wanted)}",
    ]
    if wanted.count == 1:
        flags += [f"--node-id={wanted.name}"]
    else:
        flags += [f"--node-count={wanted.count}", f"--node-prefix={wanted.name}"]
    if wanted.capacity == "spot":
        flags += ["--spot"]
    elif wanted.reservation:
        flags += [f"--reservation={wanted.reservation}"]
    elif wanted.capacity == "reserved":
        flags += ["--reserved"]
    for flag in ("network", "subnetwork", "service_account"):
        if value := getattr(wanted, flag):
            flags += [f"--{flag.replace('_', '-')}={value}"]
    if wanted.internal_ips:
        flags += ["--internal-ips"]
    if wanted.valid_until:
        flags += [f"--valid-until-duration={wanted.valid_until}"]
    flags += ["--labels=" + ",".join(f"{k}={v}" for k, v in labels.items())]
    track = ["alpha"] if wanted.reservation else []
    return _gcloud(wanted, *track, *_REQUESTS, "create", wanted.name, *flags, "--quiet")


def delete_request(wanted: Slice) -> list[str]:
    """Deletes the request and, first, the TPU VMs that it has given."""
    return _gcloud(wanted, *_REQUESTS, "delete", wanted.name, "--force", "--quiet")


def ssh(wanted: Slice, command: str) -> list[str]:
    """Runs one shell command on every host of every slice."""
    place = ["--node=all", "--worker=all", *_inside(wanted)]
    place += [f"--ssh-flag=-o{option}" for option in _PATIENCE]
    return _gcloud(
        wanted,
        *_REQUESTS,
        "ssh",
        wanted.name,
        *place,
        f"--command={command}",
        "--quiet",
    )


def scp(wanted: Slice, files: Sequence[str], folder: str) -> list[str]:
    """Copies files into a folder, below the home directory, of every host."""
    place = ["--node=all", "--worker=all", *_inside(wanted)]
    place += [f"--scp-flag=-o{option}" for option in _PATIENCE]
    target = f"{wanted.name}:{folder}/"
    return _gcloud(wanted, *_REQUESTS, "scp", *files, target, *place, "--quiet")


def list_objects(wanted: Slice, bucket: str) -> list[str]:
    """Reads one name from a bucket: shows that it exists and may be read."""
    words = ["gcloud", "storage", "objects", "list", f"gs://{bucket}/**", "--limit=1"]
    return [*words, "--format=value(name)", *_project(wanted)]


def _gcloud(wanted: Slice, *words: str) -> list[str]:
    return ["gcloud", *words, f"--zone={wanted.zone}", *_project(wanted)]


def _project(wanted: Slice) -> list[str]:
    return [f"--project={wanted.project}"] if wanted.project else []


def _inside(wanted: Slice) -> list[str]:
    return ["--tunnel-through-iap"] if wanted.internal_ips else []


# --- running them ----------------------------------------------------------------------


class GcloudError(OSError):
    """A call that failed. `kind` says whether waiting, asking or fixing helps."""

    def __init__(self, kind: str, message: str) -> None:
        advice = f"\n({_ADVICE[kind]})" if kind in _ADVICE else ""
        super().__init__(message + advice)
        self.kind = kind


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a call has printed, and how it ended."""

    out: str
    err: str
    code: int


# Looked for in this order in what gcloud prints; tests/launch/fake_gcloud.py keeps the
# messages that these were read from.
_KINDS = (
    ("signed-out", ("do not currently have an active account", "gcloud auth login")),
    (
        "transient",
        ("per minute", "RATE_LIMIT_EXCEEDED", "UNAVAILABLE", "HTTPError 503"),
    ),
    ("elsewhere", ("not found in zone", "zonal accelerator configurations")),
    ("elsewhere", ("is not found or access is unauthorized",)),
    ("passing-state", ("not supported when state is",)),
    ("missing", ("NOT_FOUND", "was not found")),
    ("exists", ("ALREADY_EXISTS", "already exists")),
    ("denied", ("PERMISSION_DENIED", "SERVICE_DISABLED")),
    ("quota", ("RESOURCE_EXHAUSTED", "Quota limit", "quota")),
    ("no-agent", ("not present in the SSH agent",)),
    ("transient", ("INTERNAL", "DEADLINE_EXCEEDED", "timed out", "Connection reset")),
    ("transient", ("Max retries exceeded", "name resolution", "HTTPError 5")),
)
_ADVICE = {
    "signed-out": "run: gcloud auth login",
    "quota": (
        "ask for more at https://console.cloud.google.com/iam-admin/quotas, take another "
        "zone or a smaller type, and delete failed and suspended requests, which still "
        "count: gcloud compute tpus queued-resources list --zone=..."
    ),
    "elsewhere": (
        "see what a zone has: gcloud compute tpus accelerator-types list --zone=..., and "
        "which zones there are: https://cloud.google.com/tpu/docs/regions-zones"
    ),
    "denied": "the account needs the roles of docs/tpu.md, and the TPU API enabled",
    "no-agent": "run: ssh-add ~/.ssh/google_compute_engine",
}


def kind_of(err: str) -> str:
    """Sorts the message of a failed call."""
    for kind, signs in _KINDS:
        if any(sign in err for sign in signs):
            return kind
    return "other"


def execute(words: Sequence[str], timeout: float) -> Answer:
    """Runs one call to its end, without anybody at the keyboard.

    Raises:
        FileNotFoundError: if there is no gcloud.
    """
    try:
        # A session of its own: ssh, below gcloud, has no terminal to ask questions on,
        # and is ended with it.
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            env={**os.environ, "CLOUDSDK_CORE_DISABLE_PROMPTS": "1"},
        )
    except FileNotFoundError as error:
        raise FileNotFoundError(
            "gcloud is not on PATH: see https://cloud.google.com/sdk/docs/install"
        ) from error
    late = False
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        late = True
        _end(process)
        out, err = process.communicate()
    except BaseException:
        _end(process)
        raise
    note = f"\ntimed out after {timeout:.0f} s" if late else ""
    return Answer(_text(out), _text(err) + note, 124 if late else process.returncode)


def _end(process: subprocess.Popen) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has just ended
        os.killpg(process.pid, signal.SIGKILL)


def _text(printed: bytes) -> str:
    return printed.decode(errors="replace")


@dataclasses.dataclass
class Rehearsal:
    """Prints calls and imagines that each goes well, with one host a slice."""

    say: Callable[[str], object]
    exists: bool
    hosts: int
    started: bool = False

    def __call__(self, words: Sequence[str], timeout: float) -> Answer:
        """Prints one call and returns the answer to it."""
        self.say(shlex.join(words))
        if "describe" in words and not self.exists:
            return Answer("", "NOT_FOUND", 1)
        if "create" in words or "delete" in words:
            self.exists = "create" in words
        out = self._hosts(words) if "ssh" in words else ""
        if "describe" in words:
            node = {"state": "READY", "networkEndpoints": [{}]}
            request = {"state": {"state": "ACTIVE"}}
            out = json.dumps(node if "tpu-vm" in words else request)
        return Answer(out, "", 0)

    def _hosts(self, words: Sequence[str]) -> str:
        (command,) = (w for w in words if w.startswith("--command="))
        state = "ready" if " setup " in command else "exited"
        if " start " in command:
            state, self.started = "running", True
        elif " poll" in command and not self.started:
            state = "absent"
        answers = [
            {"host": f"w-{i}", "state": state, "code": 0} for i in range(self.hosts)
        ]
        return "\n".join("@copymit " + json.dumps(answer) for answer in answers)


@dataclasses.dataclass(frozen=True)
class Gcloud:
    """Runs calls of gcloud, by `run`; `pause` is what waiting means."""

    run: Callable[[Sequence[str], float], Answer] = execute
    pause: Callable[[float], object] = time.sleep
    attempts: int = 8

    def call(self, words: Sequence[str], timeout: float = 300) -> str:
        """Runs one call of the API and returns what it prints; passing faults are retried.

        Raises:
            GcloudError: with the last lines of gcloud and what to do.
        """
        for attempt in range(self.attempts):
            answer = self.run(words, timeout)
            if answer.code == 0:
                return answer.out
            kind = kind_of(answer.err)
            if kind != "transient" or attempt == self.attempts - 1:
                break
            self.pause(min(2**attempt * 2, 60))
        said = "\n".join(answer.err.strip().splitlines()[-6:])
        raise GcloudError(kind, f"{shlex.join(words[:6])} ...: {said}")
