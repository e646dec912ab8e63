"""What is evaluated: a trained run, or two folders that copymit did not make.

Either way a subject offers the same: sets of images, where generations come from, and a
directory for the results.
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from copymit.config import flatten, read_config, trained_settings
from copymit.data.dataset import Dataset, load_dataset
from copymit.embedding.image_set import ImageSet, examples_as_images, folder_as_images
from copymit.evaluation.stages import folder_digest
from copymit.metrics import read_metrics
from copymit.models.assembly import DiffusionModel, ModelParams
from copymit.pretrained.settings import load_networks, with_pretrained_settings
from copymit.pretrained.trained import latest_step, load_trained
from copymit.scores.compute import Provenance


class Run(NamedTuple):
    """A model whose generations copymit makes itself.

    Attributes:
      config: with the sizes of its networks.
      dataset: what it was trained on, or is compared with.
      load_params: (model, mesh) -> its parameters.
      workdir: of its training, if copymit trained it.
    """

    config: ConfigDict
    dataset: Dataset
    load_params: Callable[[DiffusionModel, Mesh], ModelParams]
    workdir: epath.Path | None


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
      run: what makes the generations, or None if they are there.
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
    run: Run | None
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
        if self.run is None or self.run.workdir is None:
            return None
        return pd.DataFrame(read_metrics(self.run.workdir))


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
    config = read_config(workdir)
    if eval_config is not None:
        config.eval = eval_config
    step = latest_step(workdir)
    load = functools.partial(load_trained, config, workdir, step)
    return _subject_of_run(
        Run(config, load_dataset(config.data, config.seed), load, workdir),
        title=describe_run(config),
        out=workdir / "eval" / (name or str(step)),
        settings=flatten(config.to_dict()) | {"step": step},
        identity=[trained_settings(flatten(config.to_dict())), step],
        duplication=pd.read_parquet(workdir / "duplication.parquet"),
    )


def open_model(
    source: str, workdir: epath.PathLike, config: ConfigDict, name: str | None
) -> Subject:
    """Opens a published model, or any folder in diffusers' layout, as it is.

    Args:
      source: a base model's name, a folder, or a hub id.
      config: its `data` section is what the generations are compared with and, unless
        they come from a file, prompted by.
    Raises:
      FileNotFoundError, ValueError: if the model or the data cannot be used.
    """
    config = config.copy_and_resolve_references()
    config.model.pretrained = source
    config = with_pretrained_settings(config)
    dataset = load_dataset(config.data, config.seed)
    return _subject_of_run(
        Run(config, dataset, functools.partial(load_networks, config.model), None),
        title=source,
        out=epath.Path(workdir) / "eval" / (name or "model"),
        settings=flatten(config.to_dict()),
        identity=[trained_settings(flatten(config.to_dict())), source],
        duplication=None,
    )


def _subject_of_run(run: Run, **fields) -> Subject:
    """Describes a model by its data; `fields` are the rest of a `Subject`."""
    source, size = run.dataset.source, run.config.data.resolution
    indices, heldout = run.dataset.indices, run.dataset.heldout
    return Subject(
        eval=run.config.eval,
        references=examples_as_images("references", source, indices, size),
        heldout=examples_as_images("heldout", source, heldout, size)
        if len(heldout)
        else None,
        size=size,
        captions={source.example_ids[i]: source[int(i)].captions for i in indices},
        run=run,
        generations_folder=fields["out"] / "generations",
        **fields,
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
