"""`evaluation.json`: what a directory evaluates, how, and what is known of the images."""

import json
from typing import Any

from etils import epath

from copymit.evaluation.subject.subject import Subject
from copymit.storage import write_whole

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


def write_record(subject: Subject) -> None:
    """Writes `evaluation.json`, by which an evaluation is opened again."""
    text = json.dumps(_as_json(subject), indent=1)
    write_whole(subject.out / _FILE, f"{text}\n".encode())


def read_record(directory: epath.Path) -> dict[str, Any] | None:
    """Reads the record of a directory; None if it has none."""
    path = directory / _FILE
    return json.loads(path.read_text()) if path.exists() else None


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
