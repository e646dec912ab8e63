"""An evaluation that was made before, as its own record describes it."""

import dataclasses
import json
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from copymit.config import restore_types
from copymit.embedding.headline import Choice
from copymit.evaluation.subject.images import open_pair
from copymit.evaluation.subject.published import open_model
from copymit.evaluation.subject.subject import Subject
from copymit.evaluation.subject.trained import open_run, reopen_run
from copymit.settings import evaluation_settings
from copymit.storage import write_whole


def check_record(subject: Subject) -> None:
    """Refuses a directory that holds results of another subject.

    Raises:
      ValueError: names both.
    """
    path = _record_path(subject.out)
    if not path.exists():
        return
    before, record = json.loads(path.read_text()), _as_json(subject)
    if [before[key] for key in _SAME] != [record[key] for key in _SAME]:
        raise ValueError(
            f"{subject.out} holds the evaluation of {_describe(before)}, and this one "
            f"is of {_describe(record)}: choose another name (--name), or --workdir"
        )


def write_record(subject: Subject) -> None:
    """Writes `evaluation.json`, by which an evaluation is opened again."""
    text = json.dumps(_as_json(subject), indent=1)
    write_whole(_record_path(subject.out), f"{text}\n".encode())


def open_finished(directory: epath.PathLike) -> Subject:
    """Opens an evaluation that was made before.

    Args:
      directory: WORKDIR of a run, for its newest checkpoint, or WORKDIR/eval/NAME.
    Raises:
      FileNotFoundError, ValueError: if there is none, or its images are gone.
    """
    directory = epath.Path(directory)
    path = _record_path(directory)
    if not path.exists():
        if (directory / "scores.json").exists():
            raise ValueError(
                f"{directory} was evaluated by an older copymit, which did not note "
                "of what: evaluate it again"
            )
        newest = open_run(directory, None, None)
        return (
            open_finished(newest.out) if _record_path(newest.out).exists() else newest
        )
    record = json.loads(path.read_text())
    subject = _reopen(directory, record)
    choice = record.get("choice")  # which no older copymit wrote
    return dataclasses.replace(subject, choice=choice and Choice(*choice))


def _reopen(directory: epath.Path, record: dict[str, Any]) -> Subject:
    workdir, name = directory.parent.parent, directory.name
    if record["kind"] == "trained":
        return reopen_run(workdir, record, name)
    if record["kind"] == "published":
        return open_model(
            record["model"], workdir, restore_types(record["config"]), name
        )
    for which, place in record["places"].items():
        if isinstance(place, dict):
            raise ValueError(
                f"the {which} of {directory} were in memory, so they cannot be shown "
                "again: evaluate folders, files or lists of paths to compare them"
            )
    return open_pair(
        record["places"]["generations"],
        record["places"]["references"],
        workdir,
        _section(evaluation_settings(), record["eval"]),
        name,
        record["prompts"],
    )


_SAME = ("kind", "places")


def _record_path(directory: epath.Path) -> epath.Path:
    return directory / "evaluation.json"


def _as_json(subject: Subject) -> dict[str, Any]:
    record = {**subject.record, "choice": subject.choice}
    return json.loads(json.dumps(record))


def _section(defaults: ConfigDict, values: dict[str, Any]) -> ConfigDict:
    defaults.update(restore_types(values))
    return defaults


def _describe(record: dict[str, Any]) -> str:
    places = record["places"]
    if isinstance(places, dict):
        return " against ".join(map(_where, places.values()))
    return " against ".join(places) if places else "a trained run"


def _where(place: Any) -> str:
    if isinstance(place, dict):
        return "images in memory"
    return place if isinstance(place, str) else f"{len(place)} files ({place[0]}, ...)"
