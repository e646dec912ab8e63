"""A gcloud that is not there: answers as the real one does, and keeps hosts as folders.

Started as `gcloud` by a wrapper on PATH; FAKE_GCLOUD is a folder with `state.json` (the
queued resources, and the faults still to come), `calls.jsonl` (every call) and `hosts/`
(the home directory of each host, in which commands sent over ssh are really run).

Read from, and checked against: the flags of each command in Google Cloud SDK 528
(test_tpu_real_gcloud.py compares), the exit codes and messages of its tpu-vm ssh module,
what is reported of deleting a queued resource (refused while it is in a passing state,
which ends one that is being provisioned), and the states of
https://cloud.google.com/python/docs/reference/tpu/latest/google.cloud.tpu_v2.types.QueuedResourceState.State
"""

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

HOME = Path(os.environ["FAKE_GCLOUD"])
STATE = HOME / "state.json"
COMMON = {"--zone", "--project", "--quiet", "--format"}
REACH = {"--node", "--worker", "--tunnel-through-iap", "--batch-size"}
REACH |= {"--ssh-flag", "--scp-flag"}
FLAGS = {
    "queued-resources describe": set(),
    "queued-resources delete": {"--force", "--async"},
    "queued-resources ssh": REACH | {"--command"},
    "queued-resources scp": REACH | {"--recurse", "--compress"},
    "queued-resources create": {
        "--accelerator-type",
        "--runtime-version",
        "--node-id",
        "--node-count",
        "--node-prefix",
        "--spot",
        "--reserved",
        "--guaranteed",
        "--labels",
        "--network",
        "--subnetwork",
        "--internal-ips",
        "--service-account",
        "--valid-until-duration",
    },
    "tpu-vm describe": set(),
    "objects list": {"--limit"},
}
# States that a new request goes through, one a look; a fault may give others.
QUEUE = ["PROVISIONING", "ACTIVE"]
LOST = ["SUSPENDING"] * 4 + ["SUSPENDED"]


def main(words):
    with open(HOME / "calls.jsonl", "a") as calls:
        calls.write(json.dumps(words) + "\n")
    alpha = words[:1] == ["alpha"]
    words = words[1:] if alpha else words
    service = ["compute", "tpus"] if words[0] == "compute" else ["storage"]
    if words[: len(service)] != service:
        fail(2, f"ERROR: (gcloud) Invalid choice: '{words[0]}'.")
    words = words[len(service) :]
    verb, rest = " ".join(words[:2]), words[2:]
    names = [w for w in rest if not w.startswith("--")]
    flags = dict(w.partition("=")[::2] for w in rest if w.startswith("--"))
    allowed = COMMON | FLAGS.get(verb, set()) | ({"--reservation"} if alpha else set())
    unknown = flags.keys() - allowed
    if verb not in FLAGS or unknown:
        fail(2, f"ERROR: (gcloud) unrecognized arguments: {verb} {sorted(unknown)}")
    if verb != "objects list" and not flags.get("--zone"):
        fail(
            1,
            "ERROR: Error parsing [queued_resource]. Failed to find attribute [zone].",
        )
    with open(HOME / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        state = json.loads(STATE.read_text())
        fault = next((f for f in state["faults"] if f["verb"] == verb), None)
        if fault and "once" in fault and not Path(fault["once"]).exists():
            fault = None
        elif fault and fault.get("after", 0) > 0:
            fault["after"] -= 1
            fault = None
        elif fault:
            state["faults"].remove(fault)
        try:
            if fault and fault.get("error"):
                fail(fault.get("code", 1), fault["error"])
            act = VERBS[verb]
            out = act(state, verb, names, flags, fault or {})
        finally:
            STATE.write_text(json.dumps(state))
    if callable(out):  # What takes long is done without the lock.
        out = out()
    print(out)


def fail(code, message):
    print(message, file=sys.stderr)
    sys.exit(code)


def not_found(kind, name):
    fail(
        1,
        f"ERROR: (gcloud.compute.tpus.{kind}.describe) NOT_FOUND: Resource "
        f"'projects/p/locations/us-west4-a/queuedResources/{name}' was not found.",
    )


def create(state, verb, names, flags, fault):
    (name,) = names
    if name in state["requests"]:
        fail(
            1,
            "ERROR: (gcloud.compute.tpus.queued-resources.create) ALREADY_EXISTS: "
            f"Resource 'projects/p/locations/us-west4-a/queuedResources/{name}' "
            "already exists",
        )
    for needed in ("--accelerator-type", "--runtime-version"):
        if needed not in flags:
            fail(2, f"ERROR: (gcloud) argument {needed}: Must be specified.")
    if ("--node-id" in flags) == ("--node-count" in flags):
        fail(
            2,
            "ERROR: (gcloud) Exactly one of (--node-id | --node-count) must be given.",
        )
    if "--node-id" in flags:
        nodes = [flags["--node-id"]]
    else:
        prefix = flags.get("--node-prefix", name)
        nodes = [f"{prefix}-{i}" for i in range(int(flags["--node-count"]))]
    state["requests"][name] = {
        "states": list(fault.get("states", QUEUE)),
        "message": fault.get("message", ""),
        "type": flags["--accelerator-type"],
        "nodes": dict.fromkeys(nodes, "READY"),
    }
    return ""


def describe_request(state, verb, names, flags, fault):
    request = state["requests"].get(names[0]) or not_found("queued-resources", names[0])
    now = request["states"][0]
    if len(request["states"]) > 1:
        request["states"].pop(0)
    if now == "ACTIVE":
        make_hosts(state, request)
    if now == "GONE":
        del state["requests"][names[0]]
        not_found("queued-resources", names[0])
    found = {"state": now}
    if now == "FAILED":
        found["failedData"] = {"error": {"code": 13, "message": request["message"]}}
    if now in ("SUSPENDING", "SUSPENDED"):
        found["stateInitiator"] = "SERVICE"
    spec = [
        {"nodeId": n, "node": {"acceleratorType": request["type"]}}
        for n in request["nodes"]
    ]
    return json.dumps({"name": names[0], "state": found, "tpu": {"nodeSpec": spec}})


def describe_node(state, verb, names, flags, fault):
    for request in state["requests"].values():
        if names[0] in request["nodes"]:
            ends = [{"ipAddress": f"10.0.0.{i}"} for i in range(state["hosts"])]
            now = request["nodes"][names[0]]
            return json.dumps(
                {"state": now, "health": "HEALTHY", "networkEndpoints": ends}
            )
    return not_found("tpu-vm", names[0])


def delete(state, verb, names, flags, fault):
    if names[0] not in state["requests"]:
        not_found("queued-resources", names[0])
    request = state["requests"][names[0]]
    now = request["states"][0]
    deletable = ["ACCEPTED", "WAITING_FOR_RESOURCES", "SUSPENDED", "FAILED"]
    if now not in [*deletable, *(["ACTIVE"] if "--force" in flags else [])]:
        if now == "PROVISIONING":  # the refused call ends it all the same
            request["states"] = ["SUSPENDING", "FAILED"]
        fail(
            1,
            "ERROR: (gcloud.compute.tpus.queued-resources.delete) {'code': 9, 'message': "
            f"'DeleteQueuedResource is not supported when state is {now} (must be one of "
            f"[{' '.join(deletable)}])'}}",
        )
    take_away(request)
    del state["requests"][names[0]]
    return ""


def home_of(node, worker):
    return HOME / "hosts" / f"{node}-w-{worker}"


def make_hosts(state, request):
    for node in request["nodes"]:
        for worker in range(state["hosts"]):
            home_of(node, worker).mkdir(parents=True, exist_ok=True)


def take_away(request):
    """Ends every process of the hosts and wipes their disks."""
    for node in request["nodes"]:
        signal_processes(node, signal.SIGKILL)
        for home in (HOME / "hosts").glob(f"{node}-w-*"):
            shutil.rmtree(home, ignore_errors=True)


def signal_processes(node, number):
    for note in (HOME / "hosts").glob(f"{node}-w-*/copymit-*/runs/*/process"):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(int(note.read_text().split()[0]), number)


def reach(state, verb, names, flags, fault):
    """Finds the hosts of an ssh or scp; a fault may take the slice, or some hosts, away."""
    name = (names[0] if verb.endswith("ssh") else names[-1]).split(":")[0]
    request = state["requests"].get(name) or not_found("queued-resources", name)
    if fault.get("preempt"):
        take_away(request)
        request["states"] = fault.get("then", LOST)
        request["nodes"] = dict.fromkeys(request["nodes"], "PREEMPTED")
    if "warn" in fault:  # hosts are shut down, and only later is it said that they are
        for node in request["nodes"]:
            signal_processes(node, signal.SIGTERM)
        lost = LOST if fault["warn"] else []
        request["states"] = ["ACTIVE"] * (fault["warn"] or 1) + lost
    if fault.get("replace"):
        take_away({"nodes": [fault["replace"]]})
        request["states"] = ["PROVISIONING", "ACTIVE"]
    nodes = dict(request["nodes"])
    # The real one looks at each node in a thread of its own, whose end by an exception
    # it only prints: it goes on with the other nodes, and ends with 0.
    for node, now in request["nodes"].items():
        if now == "PREEMPTED" or node in fault.get("skip", []):
            message = (
                f'This TPU has terminal state "{now}", so it cannot be used anymore.'
            )
            if now != "PREEMPTED":
                message = "HttpError accessing <https://tpu.googleapis.com/v2/...>"
            print(f"Exception in thread Thread-1:\n{message}", file=sys.stderr)
            print(
                f"WARNING: Could not prepare all {len(nodes)} nodes, attempting to ssh "
                "into the rest.",
                file=sys.stderr,
            )
            del nodes[node]
    if flags.get("--node") != "all" or flags.get("--worker") != "all":
        nodes = dict(list(nodes.items())[:1])  # The default is the first one.
    hosts = [(node, w) for node in nodes for w in range(state["hosts"])]
    # What has no disk is not there (yet).
    down = {i for i, host in enumerate(hosts) if not home_of(*host).exists()}
    down |= set(fault.get("down", []))
    return hosts, down


def finish(codes, hosts):
    """Prints what gcloud prints of failed hosts, and ends as it ends."""
    for (_, worker), code in zip(hosts, codes, strict=True):
        if code == 255:
            print(
                "ssh: connect to host 10.0.0.1 port 22: Connection refused",
                file=sys.stderr,
            )
            print(
                "Failed to execute command on multiple workers. This may have happened if "
                'you have not added your SSH key to your ssh-agent using "ssh-add '
                '~/.ssh/google_compute_engine".',
                file=sys.stderr,
            )
            print(
                "Retrying: SSH command error: [/usr/bin/ssh] exited with return code "
                "[255].",
                file=sys.stderr,
            )
        elif code:
            print(
                f"##### Command execution on worker {worker} failed with exit status "
                f"{code}. Continuing.",
                file=sys.stderr,
            )
    if any(codes):
        sys.exit(next(code for code in codes if code))


def ssh(state, verb, names, flags, fault):
    hosts, down = reach(state, verb, names, flags, fault)
    # As the real one does it: words parted by one space, joined by ssh.
    command = " ".join(flags["--command"].split(" "))

    def run():
        started = []
        for index, (node, worker) in enumerate(hosts):
            if index in down:
                started.append(None)
                continue
            home = home_of(node, worker)
            variables = {
                "PATH": f"{HOME / 'bin'}:{os.environ['PATH']}",
                "HOME": str(home),
                "HOSTNAME": home.name,
                **{k: v.format(index=index) for k, v in state["environment"].items()},
            }
            started.append(
                subprocess.Popen(["bash", "-c", command], cwd=home, env=variables)
            )
        print("SSH: Attempting to connect to worker 0...", file=sys.stderr)
        finish([255 if p is None else p.wait() for p in started], hosts)
        return ""

    return run


def scp(state, verb, names, flags, fault):
    hosts, down = reach(state, verb, names, flags, fault)
    *files, target = names
    folder = target.split(":")[1]

    def run():
        codes = []
        for index, (node, worker) in enumerate(hosts):
            if index in down:
                codes.append(255)
                continue
            place = home_of(node, worker) / folder
            if not place.is_dir():
                codes.append(1)
                continue
            for file in files:
                shutil.copy(file, place)
            codes.append(0)
        finish(codes, hosts)
        return ""

    return run


def objects(state, verb, names, flags, fault):
    bucket = names[0].removeprefix("gs://").split("/")[0]
    if bucket not in state["buckets"]:
        fail(1, f"ERROR: (gcloud.storage.objects.list) gs://{bucket} not found: 404.")
    return ""


VERBS = {
    "queued-resources create": create,
    "queued-resources describe": describe_request,
    "queued-resources delete": delete,
    "queued-resources ssh": ssh,
    "queued-resources scp": scp,
    "tpu-vm describe": describe_node,
    "objects list": objects,
}

if __name__ == "__main__":
    main(sys.argv[1:])
