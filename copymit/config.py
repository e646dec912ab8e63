"""Checks on a config as a whole, and the record of it that a working directory keeps."""

import hashlib
import importlib.metadata
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from copymit.storage import write_whole

# What may change between two starts in one working directory: nothing here alters the
# trained parameters.
_FREE_TO_CHANGE = (
    "eval.",
    "mitigation.generate.",
    "mesh.",
    "data.cache_",
    "data.num_threads",
    "data.num_workers",
    "train.accumulate_steps",
    "train.log_every_steps",
    "train.wandb_project",
    "train.checkpoint_every_steps",
    "train.keep_checkpoints",
    "train.hang_timeout_seconds",
    "train.sample_every_steps",
    "train.epochs",  # train.steps is what counts
    "train.evaluate_every_epochs",
    "train.evaluate_every_steps",
    "train.stop_above_copied_share",
    "train.evaluate_prompts",
    "train.preview_prompts",
    "train.profile_steps",
)

# Samplers alone read it, but the generations of a run depend on it.
_SAMPLING = ("diffusion.timestep_spacing",)

# Settings that name files on which the parameters depend as on the settings themselves.
# Of a prepared data set it is its description, which says how many bytes each shard has.
_FILES = {
    "data.captions": "",
    "data.manifest": "",
    "data.source": "dataset_info.json",
}

_RECORDED_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain")


def flatten(config: dict, prefix: str = "") -> dict[str, Any]:
    """Flattens nested settings to `{"train.steps": 100, ...}`; tuples become lists."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = list(value) if isinstance(value, tuple) else value
    return flat


def trained_settings(flat: dict[str, Any]) -> dict[str, Any]:
    """Keeps, of flat settings, those that the trained parameters depend on."""
    return {k: v for k, v in flat.items() if not k.startswith(_FREE_TO_CHANGE)}


def cache_folder(workdir: epath.Path, config: ConfigDict) -> epath.Path:
    """Returns where caches lie; `data.cache_dir` may begin with `../`."""
    folder = config.data.cache_dir
    while folder.startswith("../"):
        workdir, folder = workdir.parent, folder.removeprefix("../")
    return workdir / (folder or "cache")


def claim_workdir(
    workdir: epath.Path,
    config: ConfigDict,
    defaults: Mapping[str, Any] | None = None,
    *,
    writer: bool = True,
) -> None:
    """Writes `config.json`, or checks that the one there is of the same run.

    Args:
      defaults: flat settings, what a run of an older copymit did that knew fewer.
      writer: whether this process writes; of several hosts only the first does.
    Raises:
      ValueError: if the directory belongs to another config; names the settings.
    """
    path = workdir / "config.json"
    settings = json.loads(json.dumps(config.to_dict()))
    digests = _file_digests(flatten(settings))
    if path.exists():
        record = read_record(workdir)
        before = trained_settings({**(defaults or {}), **flatten(record["config"])})
        now = trained_settings(flatten(settings))
        if now["train.learning_rate_schedule"] == "constant":
            before["train.steps"] = now["train.steps"]
        differ = [
            f"{key} (there {before.get(key, 'unset')!r}, now {now.get(key, 'unset')!r})"
            for key in sorted((before.keys() | now.keys()) - set(_SAMPLING))
            if before.get(key) != now.get(key)
        ]
        differ += [
            f"{key} (the content of {now[key]} has changed)"
            for key, digest in record.get("files", digests).items()
            if before.get(key) == now.get(key) and digests.get(key) != digest
        ]
        if differ:
            raise ValueError(
                f"{workdir} holds a run of another config: {'; '.join(differ[:8])}. "
                "Choose another --workdir, or the settings of that run"
            )
    if writer:
        workdir.mkdir(parents=True, exist_ok=True)
        # A kill must not leave half a record: the run could not go on from it.
        text = json.dumps(_record(settings, digests), indent=1) + "\n"
        write_whole(path, text.encode())


def read_record(workdir: epath.Path) -> dict[str, Any]:
    """Reads `config.json` of a working directory.

    Raises:
      FileNotFoundError, ValueError: if there is none, or it cannot be read.
    """
    path = workdir / "config.json"
    if not path.exists():
        raise FileNotFoundError(
            f"{path} is missing: {workdir} holds no training run. Train into it first, "
            "or evaluate folders with --generations and --references"
        )
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error


def read_config(workdir: epath.Path) -> ConfigDict:
    """Reads the settings that a working directory was trained with; errors as above."""
    return restore_types(read_record(workdir)["config"])


def _file_digests(flat: dict[str, Any]) -> dict[str, str]:
    """Digests the small files that settings name, where they exist."""
    paths = {
        key: epath.Path(flat[key]) / inner for key, inner in _FILES.items() if flat[key]
    }
    return {
        key: hashlib.sha256(path.read_bytes()).hexdigest()
        for key, path in paths.items()
        if path.exists()
    }


def _record(settings: dict[str, Any], digests: dict[str, str]) -> dict[str, Any]:
    return {
        "config": settings,
        "files": digests,
        "command": sys.argv,
        "git_commit": _git_commit(),
        "python": sys.version.split()[0],
        "packages": {p: importlib.metadata.version(p) for p in _RECORDED_PACKAGES},
    }


def _git_commit() -> str | None:
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def restore_types(settings: dict[str, Any]) -> ConfigDict:
    """Undoes what JSON did to the settings: its lists were tuples."""
    tuples = {
        key: restore_types(value)
        if isinstance(value, dict)
        else (tuple(value) if isinstance(value, list) else value)
        for key, value in settings.items()
    }
    return ConfigDict(tuples)
