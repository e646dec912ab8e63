"""`evaluation.json`: what a directory evaluates, how, and what is known of the images."""

import json
from typing import Any

from etils import epath

from copymit.evaluation.subject.subject import Subject
from copymit.storage import create_whole, write_whole

_FILE = "evaluation.json"
_SAME = ("kind", "places")


def check_record(subject: Subject) -> None:
    """Refuses a directory that holds results of another subject.

    Raises:
      ValueError: names both.
    """
    before, record = read_record(subject.out), _as_json(subject)
    if before and [before[key] for key in _SAME] != [record[key] for key in _SAME]:
        raise ValueError(
            f"{subject.out} holds the evaluation of {_describe(before)}, and this one "
            f"is of {_describe(record)}: choose another name (--name), or --workdir"
        )


def claim_record(subject: Subject, embedded: str) -> None:
    """Writes the record for all shares of an evaluation; a later share only compares.

    Raises:
      ValueError: for another subject, or one that is embedded from other inputs.
    """
    check_record(subject)
    create_whole(subject.out / _FILE, _as_bytes(subject, embedded))
    if (read_record(subject.out) or {}).get("embedded") != embedded:
        raise ValueError(
            f"{subject.out} holds an evaluation of other settings, images or weights than "
            "those of this share: give every share the same, or this evaluation another "
            f"name (--name); if {_FILE} there is of no use any more, remove it"
        )


def write_record(subject: Subject, embedded: str) -> None:
    """Writes `evaluation.json`, by which an evaluation is opened again.

    Args:
      embedded: digest of what its features depend on.
    """
    write_whole(subject.out / _FILE, _as_bytes(subject, embedded))


def read_record(directory: epath.Path) -> dict[str, Any] | None:
    """Reads the record of a directory; None if it has none."""
    path = directory / _FILE
    return json.loads(path.read_text()) if path.exists() else None


def _as_bytes(subject: Subject, embedded: str) -> bytes:
    record = {**subject.record, "choice": subject.choice, "embedded": embedded}
    return f"{json.dumps(record, indent=1)}\n".encode()


def _as_json(subject: Subject) -> dict[str, Any]:
    return json.loads(json.dumps(subject.record))


def _describe(record: dict[str, Any]) -> str:
    places = record["places"]
    if isinstance(places, dict):
        return " against ".join(map(_where, places.values()))
    return " against ".join(places) if places else "a trained run"


def _where(place: Any) -> str:
    if isinstance(place, dict):
        return "images in memory"
    return place if isinstance(place, str) else f"{len(place)} files ({place[0]}, ...)"
