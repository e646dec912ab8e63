"""One call from anyone's images to the scores and the page.

from copymit.evaluation import evaluate

result = evaluate("generated/", "train/*.tar", workdir="runs/audit")
print(result.scores["dataset_similarity"], result.report)
result.generations.sort_values("similarity", ascending=False).head()
"""

import dataclasses
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from etils import epath

from copymit.evaluation.run import run_stages
from copymit.evaluation.subject import open_pair
from copymit.settings import evaluation_settings
from copymit.storage import is_remote


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    Attributes:
      scores: the entries of `scores.json`.
      generations: one row for each generation, most similar first: its nearest training
        image, the similarity, and whatever else is known of it.
      directory: of all results.
    """

    scores: dict[str, Any]
    generations: pd.DataFrame
    directory: Path

    @property
    def report(self) -> Path:
        """The page with the pictures."""
        return self.directory / "report.html"


def evaluate(
    generations: Any,
    references: Any,
    *,
    workdir: epath.PathLike,
    prompts: Sequence[str] | None = None,
    heldout: Any = None,
    name: str | None = None,
    **settings: Any,
) -> Evaluation:
    """Measures how much generations of any model copy its training images.

    A folder, tar files or a list of paths that did not change are not embedded again,
    and images in memory only where their pixels are new.

    Args:
      generations, references: each a folder; tar files in webdataset's layout (a path or
        a pattern); an `.npz` or `.npy` file; an array (N, H, W, 3), uint8; a list of
        paths, PIL images or arrays; or a copymit data source. Networks see each as their
        protocols say; where pixels are compared, all are resized and cropped to the short
        side of the generations.
      workdir: receives the results, in `eval/NAME`.
      name: by default after where the images lie, so that other images have a directory
        of their own. A name that images elsewhere have is refused.
      prompts: of each generation, for the CLIP score and the page.
      heldout: images like the references that the model was never trained on, as any of
        these: how near they come says how near is no copy.
      settings: of the `eval` section, see copymit/settings.py, such as
        `embedders=("sscd_288",), weights={"sscd_disc_mixup": PATH}`.
    Raises:
      ValueError, FileNotFoundError: for an unknown setting, or images that are missing,
        empty, corrupt or of several short sides; names the culprit and the way out.
    """
    config = evaluation_settings()
    unknown = sorted(settings.keys() - config.keys())
    if unknown:
        raise ValueError(
            f"unknown settings {', '.join(unknown)}: use some of {', '.join(config)}"
        )
    for weights, path in settings.pop("weights", {}).items():
        if weights not in config.weights:
            raise ValueError(
                f"unknown weights {weights}: use some of {', '.join(config.weights)}"
            )
        config.weights[weights] = str(path)
    for setting, value in settings.items():
        one = isinstance(value, str) and isinstance(config[setting], tuple)
        try:
            config[setting] = (value,) if one else value
        except TypeError as error:
            raise ValueError(
                f"{setting}={value!r} is a {type(value).__name__}: give a "
                f"{type(config[setting]).__name__}, as {config[setting]!r}"
            ) from error
    subject = open_pair(
        generations, references, workdir, config, name, prompts, heldout
    )
    directory = run_stages(subject)
    return Evaluation(
        json.loads((directory / "scores.json").read_text()),
        pd.read_parquet(io.BytesIO((directory / "generations.parquet").read_bytes())),
        directory if is_remote(directory) else Path(directory),
    )
