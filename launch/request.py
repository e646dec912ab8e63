"""One request for a slice: asked for, waited for, looked at, deleted.

Enters: a `Slice` and a `Gcloud`. Leaves: the slice, or the reason why there is none.
Every step may be repeated: it looks first and does what is missing.
"""

import dataclasses
import json
import time
from collections.abc import Callable

from launch import gcloud
from launch.gcloud import Gcloud, GcloudError
from launch.slices import Slice

# https://cloud.google.com/python/docs/reference/tpu/latest/google.cloud.tpu_v2.types.QueuedResourceState.State
WAITING = (
    "STATE_UNSPECIFIED",
    "CREATING",
    "ACCEPTED",
    "WAITING_FOR_RESOURCES",
    "PROVISIONING",
)
_ENDING = ("SUSPENDING", "DELETING")
_ENDED = ("SUSPENDED", "FAILED")
# https://cloud.google.com/python/docs/reference/tpu/latest/google.cloud.tpu_v2.types.Node.State
_LOST_NODES = ("PREEMPTED", "TERMINATED", "DELETING", "STOPPED", "HIDDEN", "UNKNOWN")


class SliceLost(Exception):
    """The slice was taken away, or never given; asking again may help."""


@dataclasses.dataclass(frozen=True)
class Pace:
    """How often to look and how long to hope. Tests are in a hurry.

    Args:
        poll_secs: between two looks at the cloud and the hosts.
        news_secs: between two lines about something that stays as it is.
        unreachable_secs: for how long hosts may not answer while the cloud calls the
            slice healthy; the run goes on there meanwhile.
        settle_polls: looks at the cloud before a failed host counts as a failed run: the
            other hosts of a preempted slice fail before the cloud says why.
    """

    poll_secs: float = 30.0
    news_secs: float = 600.0
    unreachable_secs: float = 1800.0
    settle_polls: int = 4
    setup_timeout_secs: float = 3600.0
    ssh_timeout_secs: float = 600.0


@dataclasses.dataclass(frozen=True)
class Cloud:
    """Where calls go, how fast, and where news is told."""

    gcloud: Gcloud
    pace: Pace = Pace()
    say: Callable[[str], object] = print


# --- the request -----------------------------------------------------------------------


def request_state(cloud: Cloud, wanted: Slice) -> tuple[str, dict]:
    """Returns the state of the queued resource, ABSENT if there is none, and all of it."""
    try:
        found = json.loads(cloud.gcloud.call(gcloud.describe_request(wanted)))
    except GcloudError as error:
        if error.kind == "missing":
            return "ABSENT", {}
        raise
    return found.get("state", {}).get("state", "STATE_UNSPECIFIED"), found


def ensure_active(cloud: Cloud, wanted: Slice) -> bool:
    """Asks for the slice unless it is there, and waits until it may be used.

    Returns:
        Whether it was there already.

    Raises:
        ValueError: if a slice of this name is there that was asked for differently.
        SliceLost: if the request fails, or the slice is taken away again.
        GcloudError: if the request is refused (quota, permission, ...).
    """
    state, found = _wait_while(cloud, wanted, _ENDING)
    was_there = state == "ACTIVE"
    if state in _ENDED or (state == "ACTIVE" and lost_nodes(cloud, wanted, found)):
        cloud.say(
            f"{wanted.name}: {state}{_reason(found)}; deleted, to be asked for again"
        )
        delete(cloud, wanted)
        state, was_there = "ABSENT", False
    if state == "ABSENT":
        try:
            cloud.gcloud.call(gcloud.create_request(wanted))
        except GcloudError as error:
            if error.kind != "exists":
                raise
    # A request that fails is suspended first; the reason comes last.
    state, found = _wait_while(cloud, wanted, WAITING + _ENDING)
    if state != "ACTIVE":
        raise SliceLost(f"{wanted.name}: {state}{_reason(found)}")
    _check_same(wanted, found)
    cloud.say(f"{wanted.name}: ACTIVE")
    return was_there


def _wait_while(
    cloud: Cloud, wanted: Slice, passing: tuple[str, ...]
) -> tuple[str, dict]:
    """Waits until the request is in another state; tells each, and how long it lasts."""
    told = ""
    since = news = time.monotonic()
    while True:
        state, found = request_state(cloud, wanted)
        if state not in passing:
            return state, found
        now = time.monotonic()
        if state != told:
            cloud.say(f"{wanted.name}: {state}")
            told, since, news = state, now, now
        elif now - news >= cloud.pace.news_secs:
            cloud.say(f"{wanted.name}: {state} for {(now - since) / 60:.0f} min")
            news = now
        cloud.gcloud.pause(cloud.pace.poll_secs)


def delete(cloud: Cloud, wanted: Slice) -> None:
    """Deletes the request and its TPU VMs, and waits until both are gone.

    A request that is being provisioned or suspended may not be deleted: the service
    refuses until that is over.

    Raises:
        GcloudError: if it refuses for another reason, or for too long.
    """
    since = time.monotonic()
    while True:
        state, _ = request_state(cloud, wanted)
        if state == "ABSENT":
            return
        if state != "DELETING":
            try:
                cloud.gcloud.call(gcloud.delete_request(wanted), timeout=1800)
            except GcloudError as error:
                late = time.monotonic() - since > cloud.pace.unreachable_secs
                if error.kind == "passing-state" and not late:
                    cloud.say(f"{wanted.name}: {state}, cannot be deleted yet; again")
                elif error.kind != "missing":
                    raise
        if request_state(cloud, wanted)[0] == "ABSENT":
            return
        cloud.gcloud.pause(cloud.pace.poll_secs)


def hosts_of(cloud: Cloud, wanted: Slice, found: dict) -> int:
    """Returns the number of hosts of all slices of a request, as the cloud counts them.

    Args:
        found: the request, as from `request_state`.

    Raises:
        SliceLost: if a TPU VM was taken away.
    """
    specs = found.get("tpu", {}).get("nodeSpec", [])
    named = tuple(spec["nodeId"] for spec in specs if spec.get("nodeId"))
    count = 0
    for node in named or wanted.nodes:
        try:
            vm = json.loads(cloud.gcloud.call(gcloud.describe_node(wanted, node)))
        except GcloudError as error:
            if error.kind == "missing":
                raise SliceLost(f"{node}: the TPU VM is gone") from error
            raise
        if vm.get("state") in _LOST_NODES:
            raise SliceLost(f"{node}: {vm['state']}")
        count += len(vm.get("networkEndpoints", []))
    return count


def lost_nodes(cloud: Cloud, wanted: Slice, found: dict) -> str:
    """Says which TPU VM was taken away; nothing if all are there."""
    try:
        hosts_of(cloud, wanted, found)
    except SliceLost as lost:
        return str(lost)
    return ""


def expected_hosts(cloud: Cloud, wanted: Slice) -> int:
    """Returns the number of hosts that should answer.

    Raises:
        SliceLost: if the request is not active any more.
    """
    state, found = request_state(cloud, wanted)
    if state == "ABSENT":
        raise SliceLost(f"{wanted.name}: there is no such slice; create asks for one")
    if state != "ACTIVE":
        raise SliceLost(f"{wanted.name}: {state}{_reason(found)}")
    return hosts_of(cloud, wanted, found)


def _reason(found: dict) -> str:
    """Returns what the cloud says about the end of a request."""
    state = found.get("state", {})
    error = state.get("failedData", {}).get("error", {}).get("message", "")
    if error:
        return f" ({error})"
    return " (by the service)" if state.get("stateInitiator") == "SERVICE" else ""


def _check_same(wanted: Slice, found: dict) -> None:
    specs = found.get("tpu", {}).get("nodeSpec", [])
    types = {spec.get("node", {}).get("acceleratorType", wanted.type) for spec in specs}
    if types and types != {wanted.type}:
        raise ValueError(
            f"{wanted.name} is there already, as {', '.join(types)} and not "
            f"{wanted.type}: delete it, or take another name"
        )
