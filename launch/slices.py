"""What is asked of the cloud: a slice, checked before anything is paid for.

Enters: names, zone, accelerator type and capacity as given on a command line. Leaves: a
`Slice` whose every field is valid and safe to put into a command, and the shapes that
accelerator types stand for.
"""

import dataclasses
import re

CAPACITIES = ("on-demand", "spot", "reserved")
_NAME = re.compile(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?")
_ZONE = re.compile(r"[a-z]+-[a-z]+[0-9]{1,2}-[a-z]")
_PROJECT = re.compile(r"([a-z0-9.-]+:)?[a-z][-a-z0-9]{4,28}[a-z0-9]")
_RESERVATION = re.compile(r"(projects/[a-z0-9:.-]+/(reservations/)?)?[-a-z0-9_]+")
_ACCOUNT = re.compile(r"[-a-z0-9.]+@[-a-z0-9.]+")
_LABEL_KEY = re.compile(r"[a-z][-a-z0-9_]{0,62}")
_LABEL_VALUE = re.compile(r"[-a-z0-9_]{0,63}")
_WORD = re.compile(r"[-A-Za-z0-9_./]*")
_DURATION = re.compile(r"([0-9]+[smhd])+")
_TYPE = re.compile(r"(v2|v3|v4|v5litepod|v5p|v6e)-([0-9]{1,5})")

# https://cloud.google.com/tpu/docs/runtimes
RUNTIMES = {
    "v2": "tpu-ubuntu2204-base",
    "v3": "tpu-ubuntu2204-base",
    "v4": "tpu-ubuntu2204-base",
    "v5litepod": "v2-alpha-tpuv5-lite",
    "v5p": "v2-alpha-tpuv5",
    "v6e": "v2-alpha-tpuv6e",
}


@dataclasses.dataclass(frozen=True)
class Slice:
    """One queued resource: `count` slices of one accelerator type in one zone.

    `type` may be empty where a slice is only looked at, stopped or deleted.

    Raises:
        ValueError: if a field is not what the cloud accepts; the message says what is.
    """

    name: str
    zone: str
    type: str = ""
    count: int = 1
    project: str = ""  # empty: the project of the gcloud configuration
    capacity: str = "on-demand"
    reservation: str = ""  # a named reservation; implies reserved
    runtime: str = ""  # empty: the one that belongs to the type
    network: str = ""
    subnetwork: str = ""
    internal_ips: bool = False
    service_account: str = ""
    valid_until: str = ""  # give the request up after 6h, 2d, ...
    labels: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        _check(
            _NAME, "name", self.name, "letters, digits and - (2 to 40), such as run-1"
        )
        _check(_ZONE, "zone", self.zone, "a zone such as us-west4-a")
        if self.type:
            split_type(self.type)
        if self.project:
            _check(_PROJECT, "project", self.project, "a project id such as my-project")
        if self.reservation:
            _check(
                _RESERVATION, "reservation", self.reservation, "a reservation's name"
            )
        if self.service_account:
            _check(
                _ACCOUNT, "service account", self.service_account, "its e-mail address"
            )
        if self.valid_until:
            _check(_DURATION, "duration", self.valid_until, "a duration such as 6h")
        for field in ("runtime", "network", "subnetwork"):
            _check(_WORD, field, getattr(self, field), "a resource name")
        if self.capacity not in CAPACITIES:
            known = ", ".join(CAPACITIES)
            raise ValueError(f"capacity {self.capacity!r} is none of {known}")
        if not 1 <= self.count <= 256:
            raise ValueError(f"{self.count} slices: ask for 1 to 256")
        if self.reservation and self.capacity != "reserved":
            raise ValueError(
                f"reservation {self.reservation!r} goes with capacity reserved, "
                f"not {self.capacity}"
            )
        for key, value in self.labels:
            allowed = "lower-case letters, digits, _ and -"
            _check(_LABEL_KEY, "label", key, f"{allowed}, starting with a letter")
            _check(_LABEL_VALUE, f"value of label {key}", value, allowed)

    @property
    def nodes(self) -> tuple[str, ...]:
        """Names of the TPU VMs of the request, as the cloud makes them."""
        if self.count == 1:
            return (self.name,)
        return tuple(f"{self.name}-{i}" for i in range(self.count))

    @property
    def folder(self) -> str:
        """The only directory that is touched on a host, below the home directory."""
        return f"copymit-{self.name}"


def split_type(accelerator_type: str) -> tuple[str, int]:
    """Splits v5litepod-16 into the family v5litepod and the size 16.

    Raises:
        ValueError: if it is no type that queued resources offer.
    """
    match = _TYPE.fullmatch(accelerator_type)
    if match is None:
        raise ValueError(
            f"accelerator type {accelerator_type!r}: expected one such as "
            "v5litepod-16, v5p-8 or v6e-4 (v5e is called v5litepod; TPU7x is "
            "not offered this way, see docs/tpu.md)"
        )
    return match[1], int(match[2])


def runtime_of(wanted: Slice) -> str:
    """Returns the software version of the TPU VM."""
    return wanted.runtime or RUNTIMES[split_type(wanted.type)[0]]


def parse_labels(texts: list[str]) -> tuple[tuple[str, str], ...]:
    """Parses ["team=vision", ...].

    Raises:
        ValueError: if a text has no equals sign.
    """
    for text in texts:
        if "=" not in text:
            raise ValueError(f"label {text!r}: expected KEY=VALUE")
    return tuple(tuple(text.split("=", 1)) for text in texts)  # type: ignore[misc]


def _check(pattern: re.Pattern, what: str, value: str, expected: str) -> None:
    if pattern.fullmatch(value) is None:
        raise ValueError(f"{what} {value!r}: expected {expected}")
