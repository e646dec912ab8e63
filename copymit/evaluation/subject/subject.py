"""What every kind of subject offers to the stages."""

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from copymit.config import cache_folder, flatten
from copymit.data.dataset import Dataset
from copymit.data.examples import ExampleSource
from copymit.data.texts import split_lines
from copymit.embedding.headline import Choice
from copymit.embedding.image_set import ImageSet, examples_as_images, open_images
from copymit.embedding.store import listing_digest
from copymit.evaluation.reconstruct import RECONSTRUCTIONS, reconstructed_rows
from copymit.evaluation.stages import data_digest
from copymit.metrics import read_metrics
from copymit.mitigation.registry import needed
from copymit.models.assembly import DiffusionModel, ModelParams
from copymit.scores.provenance import Provenance, trace_provenance


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


def captions_of(source: ExampleSource) -> Mapping[str, Sequence[str]]:
    """Returns the captions of a source, or none if some of its images have none."""
    return SourceCaptions(source) if source.caption_counts.all() else {}


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


class Given(NamedTuple):
    """Generations that are there; `table` has their prompts (id, prompt) if known."""

    pictures: ImageSet
    table: pd.DataFrame | None

    def images(self) -> ImageSet:
        """Lists the generations."""
        return self.pictures

    def prompts(self) -> pd.DataFrame | None:
        """Is the prompts, or nothing where none are known."""
        return self.table

    def missing(self) -> list[str]:
        """Lists the generations that are not there yet."""
        return []

    def reconstructions(self) -> None:
        """Is nothing: whose autoencoder made the generations, nobody knows."""


class Generated(NamedTuple):
    """Generations that the generate stage makes.

    Attributes:
      out: directory of the evaluation.
      size: of the images in pixels.
      reconstructed: training images that it takes through the autoencoder.
    """

    out: epath.Path
    size: int
    reconstructed: Sequence[str]

    def images(self) -> ImageSet:
        """Lists the generations, which must exist by now."""
        ids = self.prompts()["id"].tolist()
        folder = self.out / "generations"
        if missing := self.missing():
            raise ValueError(
                f"{len(missing)} of {len(ids)} generations are missing in {folder}: run "
                "the generate stage"
            )
        paths = [str(folder / f"{i}.png") for i in ids]
        return open_images("generations", paths, self.size)._replace(ids=ids)

    def prompts(self) -> pd.DataFrame:
        """Reads the prompts that the generate stage has written."""
        path = self.out / "prompts.jsonl"
        if not path.exists():
            raise ValueError(f"{path} is missing: run the generate stage first")
        return pd.DataFrame([json.loads(s) for s in split_lines(path.read_text())])

    def missing(self) -> list[str]:
        """Lists the ids of `prompts.jsonl` that no picture exists of."""
        folder = self.out / "generations"
        there = {path.name for path in folder.iterdir()} if folder.exists() else set()
        return [i for i in self.prompts()["id"] if f"{i}.png" not in there]

    def reconstructions(self) -> ImageSet | None:
        """Lists the training images as the autoencoder gives them back, under their ids.

        None where an older copymit generated, which made none.
        """
        folder, count = self.out / RECONSTRUCTIONS, len(self.reconstructed)
        paths = [str(folder / f"{i}.png") for i in range(count)]
        if not paths or not folder.exists():
            return None
        return open_images(RECONSTRUCTIONS, paths, self.size)._replace(
            ids=self.reconstructed
        )


@dataclasses.dataclass(frozen=True)
class Subject:
    """One evaluation.

    Attributes:
      title: for the report.
      out: directory of the results.
      settings: every setting, flat.
      identity: what `generations`, `references` and `prompts` depend on besides the
        `eval` section, as JSON.
      record: what opens the subject again, as JSON; `kind` says how, and `places` where
        its images lie: what is of other places is another subject.
      eval: the `eval` section.
      references: the training images.
      heldout: images of the same kind that were never trained on, if known.
      size: side of all images in pixels.
      captions: of each reference; may be empty.
      made: the generations.
      run: what makes the generations, or None if they were given.
      duplication: the run's table, or None.
      choice: of the headline embedder, where nobody named one.
      cache: folder that runs share (`data.cache_dir`), or None.
    """

    title: str
    out: epath.Path
    settings: Mapping[str, Any]
    identity: Mapping[str, Any]
    record: Mapping[str, Any]
    eval: ConfigDict
    references: ImageSet
    heldout: ImageSet | None
    size: int
    captions: Mapping[str, Sequence[str]]
    made: Given | Generated
    run: Run | None = None
    duplication: pd.DataFrame | None = None
    choice: Choice | None = None
    cache: epath.Path | None = None

    @property
    def generations_folder(self) -> epath.Path:
        """Where the generations of a run lie."""
        return self.out / "generations"

    def generations(self) -> ImageSet:
        """Lists the generations, which must exist by now."""
        return self.made.images()

    def prompts(self) -> pd.DataFrame | None:
        """Reads the prompts, or nothing where none are known."""
        return self.made.prompts()

    def reconstructions(self) -> ImageSet | None:
        """Lists training images as the autoencoder gives them back, if they are there."""
        return self.made.reconstructions()

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


def subject_of_run(run: Run, out: epath.Path, model: Any, **fields: Any) -> Subject:
    """Describes a model by its data; `fields` are the rest of a `Subject`.

    Args:
      model: what the generations depend on besides the data and the `eval` section.
    """
    dataset, config = run.dataset, run.config
    source = dataset.source
    size = config.eval.resolution or config.data.resolution
    # Pictures are not of the data, but of their names, captions and duplication; where
    # they are kept away from the training images they are of these, too.
    mitigation = config.mitigation.generate
    names = [listing_digest(dataset.example_ids), listing_digest(dataset.heldout_ids)]
    files = data_digest(config.data)
    repelled = files if needed("generate", mitigation, "training images") else None
    return Subject(
        out=out,
        settings=flatten(config.to_dict()) | fields.pop("more_settings", {}),
        identity={
            "generations": [model, mitigation.to_dict(), names, repelled],
            "references": [files, names],
            "prompts": None,
        },
        eval=config.eval,
        references=examples_as_images("references", source, dataset.indices, size),
        heldout=examples_as_images("heldout", source, dataset.heldout, size)
        if len(dataset.heldout)
        else None,
        size=size,
        captions=captions_of(source),
        made=Generated(
            out,
            size,
            [dataset.example_ids[i] for i in reconstructed_rows(config, dataset)],
        ),
        run=run,
        cache=cache_folder(out.parent.parent, config)
        if config.data.get("cache_dir")  # which no older copymit wrote
        else None,
        **fields,
    )
