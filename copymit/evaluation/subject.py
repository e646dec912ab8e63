"""What is evaluated: a trained run, or two folders that copymit did not make.

Either way a subject offers the same: sets of images, where generations come from, and a
directory for the results.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from etils import epath
from ml_collections import ConfigDict

from copymit.checkpoint import open_checkpoints
from copymit.config import flatten, read_record, trained_settings
from copymit.data.dataset import Dataset, load_dataset
from copymit.evaluation.images import ImageSet, examples_as_images, folder_as_images
from copymit.evaluation.scores import Provenance
from copymit.evaluation.stages import folder_digest
from copymit.metrics import read_metrics


@dataclasses.dataclass(frozen=True)
class Subject:
    """One evaluation.

    Attributes:
      title: for the report.
      out: directory of the results.
      settings: every setting, flat.
      identity: what the generations depend on besides the settings, for reuse.
      eval: the `eval` section.
      references: the training images.
      heldout: images of the same kind that were never trained on, if known.
      size: side of all images in pixels.
      captions: of each reference; may be empty.
      run: config, working directory, step and data of a trained run, or None.
      generations_folder: where the generations lie.
      duplication: the run's table, or None.
    """

    title: str
    out: epath.Path
    settings: Mapping[str, Any]
    identity: Any
    eval: ConfigDict
    references: ImageSet
    heldout: ImageSet | None
    size: int
    captions: Mapping[str, Sequence[str]]
    run: tuple[ConfigDict, epath.Path, int, Dataset] | None
    generations_folder: epath.Path
    duplication: pd.DataFrame | None

    def generations(self) -> ImageSet:
        """Lists the generations, which must exist by now."""
        if self.run is None:
            return folder_as_images("generations", self.generations_folder, self.size)
        prompts = self.prompts()
        assert prompts is not None
        ids = prompts["id"].tolist()
        if missing := self.missing_generations():
            raise ValueError(
                f"{len(missing)} of {len(ids)} generations are missing in "
                f"{self.generations_folder}: run the generate stage"
            )
        by_file = folder_as_images("generations", self.generations_folder, self.size)
        position = {Path(name).stem: i for i, name in enumerate(by_file.ids)}
        return ImageSet("generations", ids, lambda i: by_file.read(position[ids[i]]))

    def missing_generations(self) -> list[str]:
        """Lists the ids of `prompts.jsonl` that no picture exists of."""
        prompts = self.prompts()
        if prompts is None:
            return []
        folder = self.generations_folder
        there = {path.name for path in folder.iterdir()} if folder.exists() else set()
        return [i for i in prompts["id"] if f"{i}.png" not in there]

    def prompts(self) -> pd.DataFrame | None:
        """Reads `prompts.jsonl`, or nothing for folders."""
        if self.run is None:
            return None
        path = self.out / "prompts.jsonl"
        if not path.exists():
            raise ValueError(f"{path} is missing: run the generate stage first")
        return pd.DataFrame([json.loads(s) for s in path.read_text().splitlines()])

    def provenance(self) -> Provenance:
        """Says which reference prompted each generation and which were duplicated."""
        prompts = self.prompts()
        prompted = duplicated = None
        if prompts is not None:
            row = {name: i for i, name in enumerate(self.references.ids)}
            if prompts["example_id"].isin(row.keys()).all():
                prompted = prompts["example_id"].map(row).to_numpy(np.int64)
        if self.duplication is not None:
            table = self.duplication.set_index("example_id")["duplicated"]
            duplicated = table.loc[list(self.references.ids)].to_numpy(bool)
        return Provenance(prompted, duplicated)

    def metrics(self) -> pd.DataFrame | None:
        """Reads the metrics of the training, or nothing for folders."""
        return pd.DataFrame(read_metrics(self.run[1])) if self.run else None


def open_run(
    workdir: epath.PathLike, eval_config: ConfigDict | None, name: str | None
) -> Subject:
    """Opens a trained run at its newest checkpoint.

    Args:
      eval_config: the `eval` section to use; None takes the one the run started with.
      name: of the evaluation; None takes the step.
    Raises:
      FileNotFoundError, ValueError: if there is no run or no checkpoint.
    """
    workdir = epath.Path(workdir)
    config = _restore_types(read_record(workdir)["config"])
    if eval_config is not None:
        config.eval = eval_config
    step = None
    if (workdir / "checkpoints").exists():
        with open_checkpoints(workdir, read_only=True) as checkpoints:
            step = checkpoints.latest_step()
    if step is None:
        raise ValueError(f"{workdir} holds no checkpoint yet: train first (train.py)")
    dataset = load_dataset(config.data, config.seed)
    size = config.data.resolution
    out = workdir / "eval" / (name or str(step))
    source, indices = dataset.source, dataset.indices
    heldout = None
    if len(dataset.heldout):
        heldout = examples_as_images("heldout", source, dataset.heldout, size)
    return Subject(
        title=describe_run(config),
        out=out,
        settings=flatten(config.to_dict()) | {"step": step},
        identity=[trained_settings(flatten(config.to_dict())), step],
        eval=config.eval,
        references=examples_as_images("references", source, indices, size),
        heldout=heldout,
        size=size,
        captions={source.example_ids[i]: source[int(i)].captions for i in indices},
        run=(config, workdir, step, dataset),
        generations_folder=out / "generations",
        duplication=pd.read_parquet(workdir / "duplication.parquet"),
    )


def open_folders(
    generations: str,
    references: str,
    workdir: epath.PathLike,
    eval_config: ConfigDict,
    name: str | None,
) -> Subject:
    """Opens a folder of anyone's generations and a folder of training images.

    References are resized and cropped to the size of the generations.

    Raises:
      FileNotFoundError, ValueError: for a missing or empty folder, or generations of
        several sizes.
    """
    size = folder_as_images("generations", generations, None).read(0).shape[0]
    return Subject(
        title=Path(generations).name,
        out=epath.Path(workdir) / "eval" / (name or "folders"),
        settings=flatten({"eval": eval_config.to_dict()})
        | {"generations": str(generations), "references": str(references)},
        identity=[folder_digest(generations), folder_digest(references)],
        eval=eval_config,
        references=folder_as_images("references", references, size),
        heldout=None,
        size=size,
        captions={},
        run=None,
        generations_folder=epath.Path(generations),
        duplication=None,
    )


def describe_run(config: ConfigDict) -> str:
    """Names a run by what the study varies."""
    data = config.data
    if data.duplication == "none":
        title = "no duplication"
    else:
        title = f"{data.duplication} duplication x{data.duplication_factor}"
    active = [name for name, value in config.mitigation.train.items() if value]
    if active:
        title += " with " + ", ".join(name.replace("_", " ") for name in active)
    return title


def _restore_types(settings: dict[str, Any]) -> ConfigDict:
    """Undoes what JSON did to the settings: its lists were tuples."""
    tuples = {
        key: _restore_types(value)
        if isinstance(value, dict)
        else (tuple(value) if isinstance(value, list) else value)
        for key, value in settings.items()
    }
    return ConfigDict(tuples)
