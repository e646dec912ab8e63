"""What is evaluated: a trained run, a published model, or images of anyone.

Whichever it is, a subject offers the same: sets of images, where generations come from,
and a directory for the results.
"""

import dataclasses
import functools
import json
import logging
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from copymit.config import flatten, read_config, trained_settings
from copymit.data.dataset import Dataset, load_dataset
from copymit.data.examples import ExampleSource
from copymit.embedding.image_set import (
    ImageSet,
    common_size,
    examples_as_images,
    open_images,
    open_source,
)
from copymit.evaluation.prompts import read_prompts
from copymit.evaluation.stages import content_digest
from copymit.metrics import read_metrics
from copymit.mitigation.compose import unused_in_evaluation, with_mitigations
from copymit.models.assembly import DiffusionModel, ModelParams
from copymit.pretrained.settings import load_networks, with_pretrained_settings
from copymit.scores.provenance import Provenance, trace_provenance
from copymit.settings import (
    changed_mitigations,
    evaluation_settings,
    mitigation_settings,
)

logger = logging.getLogger(__name__)


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


class SourceCaptions(Mapping[str, Sequence[str]]):
    """The captions of a source by example id, read when they are asked for."""

    def __init__(self, source: ExampleSource):
        self._source = source
        self._rows = {name: i for i, name in enumerate(source.example_ids)}

    def __getitem__(self, example_id: str) -> Sequence[str]:
        return self._source[self._rows[example_id]].captions

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)


@dataclasses.dataclass(frozen=True)
class Subject:
    """One evaluation.

    Attributes:
      title: for the report.
      out: directory of the results.
      settings: every setting, flat.
      identity: what the images depend on besides the settings, for reuse.
      eval: the `eval` section.
      references: the training images.
      heldout: images of the same kind that were never trained on, if known.
      size: side of all images in pixels.
      captions: of each reference; may be empty.
      run: what makes the generations, or None if they are there.
      given: the generations that are there, if no run makes them.
      prompts_given: of these; columns id and prompt, or None.
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
    run: Run | None = None
    given: ImageSet | None = None
    prompts_given: pd.DataFrame | None = None
    duplication: pd.DataFrame | None = None

    @property
    def generations_folder(self) -> epath.Path:
        """Where the generations of a run lie."""
        return self.out / "generations"

    def generations(self) -> ImageSet:
        """Lists the generations, which must exist by now."""
        if self.given is not None:
            return self.given
        prompts = self.prompts()
        assert prompts is not None
        ids = prompts["id"].tolist()
        if missing := self.missing_generations():
            raise ValueError(
                f"{len(missing)} of {len(ids)} generations are missing in "
                f"{self.generations_folder}: run the generate stage"
            )
        paths = [str(self.generations_folder / f"{i}.png") for i in ids]
        return open_images("generations", paths, self.size)._replace(ids=ids)

    def missing_generations(self) -> list[str]:
        """Lists the ids of `prompts.jsonl` that no picture exists of."""
        prompts = self.prompts()
        if self.run is None or prompts is None:
            return []
        folder = self.generations_folder
        there = {path.name for path in folder.iterdir()} if folder.exists() else set()
        return [i for i in prompts["id"] if f"{i}.png" not in there]

    def prompts(self) -> pd.DataFrame | None:
        """Reads the prompts, or nothing where none are known."""
        if self.run is None:
            return self.prompts_given
        path = self.out / "prompts.jsonl"
        if not path.exists():
            raise ValueError(f"{path} is missing: run the generate stage first")
        return pd.DataFrame([json.loads(s) for s in path.read_text().splitlines()])

    def provenance(
        self, generations: Sequence[str], references: Sequence[str]
    ) -> Provenance:
        """Says which reference prompted each generation and which were duplicated.

        Args:
          generations, references: the ids that could be read, in order.
        """
        duplicated = None
        if self.duplication is not None:
            table = self.duplication.set_index("example_id")["duplicated"]
            duplicated = table.loc[list(references)].to_numpy(bool)
        return trace_provenance(self.prompts(), generations, references, duplicated)

    def metrics(self) -> pd.DataFrame | None:
        """Reads the metrics of the training, or nothing for folders."""
        if self.run is None or self.run.workdir is None:
            return None
        return pd.DataFrame(read_metrics(self.run.workdir))


def open_run(
    workdir: epath.PathLike, settings: ConfigDict | None, name: str | None
) -> Subject:
    """Opens a trained run at its newest checkpoint.

    Args:
      settings: whose sections `eval` and `mitigation.generate` are used; None takes
        those that the run started with.
      name: of the evaluation; None takes the step.
    Raises:
      FileNotFoundError, ValueError: if there is no run or no checkpoint.
    """
    # Only what copymit trained has checkpoints, and needs orbax.
    from copymit.pretrained.trained import latest_step, load_trained

    workdir = epath.Path(workdir)
    config = _completed(read_config(workdir))
    if settings is not None:
        config.eval = settings.eval
        mitigation = with_mitigations(settings).mitigation
        for problem in unused_in_evaluation(mitigation, config.mitigation):
            raise ValueError(problem)
        config.mitigation.generate = mitigation.generate
    step = latest_step(workdir)
    load = functools.partial(load_trained, config, workdir, step)
    return _subject_of_run(
        Run(config, load_dataset(config.data, config.seed), load, workdir),
        title=describe_run(config),
        out=workdir / "eval" / (name or str(step)),
        settings=flatten(config.to_dict()) | {"step": step},
        identity=[
            trained_settings(flatten(config.to_dict())),
            config.mitigation.generate.to_dict(),
            step,
        ],
        duplication=_read_table(workdir / "duplication.parquet"),
    )


def _read_table(path: epath.Path) -> pd.DataFrame:
    with path.open("rb") as file:
        return pd.read_parquet(file)


def _completed(config: ConfigDict) -> ConfigDict:
    """Adds settings that an older copymit did not know, at their defaults."""
    for name, defaults in (
        ("eval", evaluation_settings()),
        ("mitigation", mitigation_settings()),
    ):
        with defaults.unlocked():
            defaults.update(config[name])
        config[name] = defaults
    return config


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
    config = with_mitigations(with_pretrained_settings(config))
    for problem in unused_in_evaluation(config.mitigation, mitigation_settings()):
        logger.warning(problem)
    dataset = load_dataset(config.data, config.seed)
    return _subject_of_run(
        Run(config, dataset, functools.partial(load_networks, config.model), None),
        title=source,
        out=epath.Path(workdir) / "eval" / (name or "model"),
        settings=flatten(config.to_dict()),
        identity=[
            trained_settings(flatten(config.to_dict())),
            config.mitigation.generate.to_dict(),
            source,
        ],
        duplication=None,
    )


def _subject_of_run(run: Run, **fields) -> Subject:
    """Describes a model by its data; `fields` are the rest of a `Subject`."""
    source = run.dataset.source
    size = run.config.eval.resolution or run.config.data.resolution
    indices, heldout = run.dataset.indices, run.dataset.heldout
    return Subject(
        eval=run.config.eval,
        references=examples_as_images("references", source, indices, size),
        heldout=examples_as_images("heldout", source, heldout, size)
        if len(heldout)
        else None,
        size=size,
        captions=SourceCaptions(source),
        run=run,
        **fields,
    )


def open_pair(
    generations: Any,
    references: Any,
    workdir: epath.PathLike,
    eval_config: ConfigDict,
    name: str | None,
    prompts: Sequence[str] | None = None,
) -> Subject:
    """Opens images that copymit did not make, and the training images of their model.

    Args:
      generations, references: whatever `open_images` knows. Networks see each image as
        its protocol says; what compares pixels sees the references resized and cropped to
        the size of the generations. With `eval.resolution` all see all at that size.
      prompts: of each generation, in order; by default the texts beside the images of
        tar files, else none.
    Raises:
      FileNotFoundError, ValueError: for images that are missing, empty, corrupt or of
        several sizes.
    """
    skip = eval_config.on_corrupt == "skip"
    given, trained = (
        open_source(images) or images for images in (generations, references)
    )
    made = open_images(
        "generations", given, eval_config.resolution or None, skip_corrupt=skip
    )
    size = eval_config.resolution or common_size(made, skip)
    texts = prompts if prompts is not None else _texts_of(given, generations)
    if texts is not None and len(texts) != len(made.ids):
        raise ValueError(
            f"{len(texts)} prompts for {len(made.ids)} generations: give one each"
        )
    about = {"generations": _describe(generations), "references": _describe(references)}
    return Subject(
        title=_title(generations),
        out=epath.Path(workdir) / "eval" / (name or "folders"),
        settings=flatten({"eval": eval_config.to_dict()}) | about,
        identity=[_identity(generations), _identity(references), texts],
        eval=eval_config,
        references=open_images(
            "references", trained, size, keep_original=not eval_config.resolution
        ),
        heldout=None,
        size=size,
        captions=SourceCaptions(trained) if isinstance(trained, ExampleSource) else {},
        given=made,
        prompts_given=None
        if texts is None
        else pd.DataFrame({"id": list(made.ids), "prompt": texts}),
    )


def open_finished(directory: epath.PathLike) -> Subject:
    """Opens an evaluation that was made before.

    Args:
      directory: WORKDIR of a run, for its newest checkpoint, or WORKDIR/eval/NAME.
    Raises:
      FileNotFoundError, ValueError: if there is none, or its images are gone.
    """
    directory = epath.Path(directory)
    if not (directory / "scores.json").exists():
        return open_run(directory, None, None)
    workdir = directory.parent.parent
    if (workdir / "config.json").exists():
        return open_run(workdir, None, directory.name)
    settings = json.loads((directory / "scores.json").read_text())["settings"]
    config = evaluation_settings()
    for key, value in settings.items():
        if key.startswith("eval."):
            value = tuple(value) if isinstance(value, list) else value
            config.update_from_flattened_dict({key.removeprefix("eval."): value})
    path = directory / "prompts.jsonl"
    prompts = read_prompts(path) if path.exists() else None
    images = (settings["generations"], settings["references"])
    return open_pair(*images, workdir, config, directory.name, prompts)


def _texts_of(source: Any, images: Any) -> list[str] | None:
    """Reads the texts of tar files; a folder's are made up, and so no prompts."""
    if not (isinstance(source, ExampleSource) and str(images).endswith(".tar")):
        return None
    return [source[i].captions[0] for i in range(len(source))]


def _identity(images: Any) -> Any:
    """Is equal for images of equal content, and of no other, as far as is cheap."""
    if isinstance(images, str | Path):
        return content_digest(images)
    if isinstance(images, list | tuple) and all(
        isinstance(image, str | Path) for image in images
    ):
        return [content_digest(image) for image in images]
    # What lies in memory is hashed image by image while it is embedded.
    return uuid.uuid4().hex


def _describe(images: Any) -> str:
    return str(images) if isinstance(images, str | Path) else f"{type(images).__name__}"


def _title(images: Any) -> str:
    return Path(images).name if isinstance(images, str | Path) else "generations"


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
