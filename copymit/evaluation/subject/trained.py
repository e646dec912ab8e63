"""A run that copymit trained, at one of its checkpoints."""

import functools
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from copymit.config import flatten, read_config, restore_types, trained_settings
from copymit.data.dataset import load_dataset, read_duplication
from copymit.evaluation.settings import resolve_embedders
from copymit.evaluation.subject.subject import Run, Subject, subject_of_run
from copymit.mitigation.registry import (
    changed_mitigations,
    forget_idle,
    mitigation_settings,
    unused_in_evaluation,
    with_mitigations,
)
from copymit.settings import evaluation_settings


def open_run(
    workdir: epath.PathLike,
    settings: ConfigDict | None,
    name: str | None,
    changes: Mapping[str, Any] | None = None,
    step: int | None = None,
    mitigations: Sequence[str] = (),
) -> Subject:
    """Opens a trained run at one of its checkpoints.

    Args:
      settings: whose sections `eval` and `mitigation.generate` are used; None takes
        those that the run started with.
      name: of the evaluation; None takes the step.
      changes: of single settings of the `eval` section, by dotted names.
      step: of the checkpoint; None takes the newest.
      mitigations: at generation, as `mitigation.apply` names them, in place of others.
    Raises:
      FileNotFoundError, ValueError: if there is no run or no checkpoint, or the data are
        no longer those that it was trained on.
    """
    # Only what copymit trained has checkpoints, and needs orbax.
    from copymit.pretrained.trained import saved_step

    workdir = epath.Path(workdir)
    config = _completed(read_config(workdir))
    if settings is not None:
        config.eval = settings.eval
    if mitigations:
        settings = config.copy_and_resolve_references()
        settings.mitigation = mitigation_settings()
        settings.mitigation.apply = tuple(mitigations)
    if settings is not None:
        mitigation = with_mitigations(settings).mitigation
        for problem in unused_in_evaluation(mitigation, config.mitigation):
            raise ValueError(problem)
        config.mitigation.generate = mitigation.generate
    config.eval.update_from_flattened_dict(changes or {})
    step = saved_step(workdir, step)
    return _open(workdir, config, name, step, _checkpoint_digest(workdir, step))


def reopen_run(workdir: epath.Path, record: Mapping[str, Any], name: str) -> Subject:
    """Opens an evaluated run by its record, even if that checkpoint is gone since."""
    config = _completed(read_config(workdir))
    config.eval.update(restore_types(record["eval"]))
    config.mitigation.generate.update(restore_types(record["generate"]))
    forget_idle(config.mitigation)
    digest = _checkpoint_digest(workdir, record["step"]) or record["checkpoint"]
    return _open(workdir, config, name, record["step"], digest)


def _open(
    workdir: epath.Path, config: ConfigDict, name: str | None, step: int, digest: str
) -> Subject:
    from copymit.pretrained.trained import load_trained

    dataset = load_dataset(config.data, config.seed, workdir)
    size = config.eval.resolution or config.data.resolution
    config.eval, choice = resolve_embedders(config.eval, lambda: size)
    duplication = read_duplication(workdir, dataset)
    load = functools.partial(load_trained, config, workdir, step)
    return subject_of_run(
        Run(config, dataset, load, workdir),
        workdir / "eval" / (name or str(step)),
        [trained_settings(flatten(config.to_dict())), step, digest],
        title=describe_run(config),
        more_settings={"step": step},
        record={
            "kind": "trained",
            "places": None,
            "step": step,
            "checkpoint": digest,
            "eval": config.eval.to_dict(),
            "generate": config.mitigation.generate.to_dict(),
        },
        duplication=duplication.to_pandas(),
        choice=choice,
    )


def _checkpoint_digest(workdir: epath.Path, step: int) -> str:
    """Hashes what Orbax says of a checkpoint, as when it was made; "" if it is gone."""
    path = workdir / "checkpoints" / str(step) / "_CHECKPOINT_METADATA"
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else ""


def _completed(config: ConfigDict) -> ConfigDict:
    """Reads an older copymit's settings: those it did not know, and defaults it had."""
    for name, defaults in (
        ("eval", evaluation_settings()),
        ("mitigation", mitigation_settings()),
    ):
        with defaults.unlocked():
            defaults.update(config[name])
        config[name] = defaults
    forget_idle(config.mitigation)
    return config


def describe_run(config: ConfigDict) -> str:
    """Names a run by what the study varies."""
    data = config.data
    if data.manifest:
        title = f"duplication by {Path(data.manifest).name}"
    elif data.duplication == "none":
        title = "no duplication"
    else:
        title = f"{data.duplication} duplication x{data.duplication_factor}"
    changed = changed_mitigations(flatten({"mitigation": config.mitigation.to_dict()}))
    for section, when in (("train", "with"), ("generate", "generated with")):
        prefix = f"mitigation.{section}."
        active = [n.removeprefix(prefix) for n in changed if n.startswith(prefix)]
        if active:
            title += f" {when} " + ", ".join(n.replace("_", " ") for n in active)
    return title
