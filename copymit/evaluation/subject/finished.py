"""An evaluation that was made before, as its own record describes it."""

import dataclasses
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from copymit.config import restore_types
from copymit.embedding.headline import Choice
from copymit.evaluation.subject.images import open_pair
from copymit.evaluation.subject.published import open_model
from copymit.evaluation.subject.record import read_record
from copymit.evaluation.subject.subject import Subject
from copymit.evaluation.subject.trained import open_run, reopen_run
from copymit.settings import evaluation_settings


def open_finished(directory: epath.PathLike) -> Subject:
    """Opens an evaluation that was made before.

    Args:
      directory: WORKDIR of a run, for its newest checkpoint, or WORKDIR/eval/NAME.
    Raises:
      FileNotFoundError, ValueError: if there is none, or its images are gone.
    """
    directory = epath.Path(directory)
    record = read_record(directory)
    if record is None:
        if (directory / "scores.json").exists():
            raise ValueError(
                f"{directory} was evaluated by an older copymit, which did not note "
                "of what: evaluate it again"
            )
        newest = open_run(directory, None, None)
        return open_finished(newest.out) if read_record(newest.out) else newest
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
        record["places"].get("heldout"),
    )


def _section(defaults: ConfigDict, values: dict[str, Any]) -> ConfigDict:
    defaults.update(restore_types(values))
    return defaults
