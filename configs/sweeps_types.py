"""What a sweep consists of: trials, and the figures that are drawn of them.

A sweep is a function `(preset, seeds) -> iterator of Trial`, decorated with `draws`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

PRESETS = ("small", "photos", "photos_cpu", "full")
_NOTHING: Mapping[str, Any] = {}


class Trial(NamedTuple):
    """One training, and one evaluation of it.

    Trials with equal `config` and `train` share the training, also those of other sweeps
    in the same directory.

    Attributes:
      name: of its own in the sweep.
      config: file[:argument] that both programs start from.
      train: settings of train.py that differ from it, such as {"train.steps": 9}.
      evaluate: settings of evaluate.py that differ from it.
      labels: what the table and the figures know the trial by, with "seed".
      model: a published model, evaluated as it is: nothing is trained.
      analysis: options of `python -m copymit.analysis` for the data; None: not needed.
      places: settings that only say where things lie, such as {"data.source": ...}: they
        are no part of the name of a run, so that another machine may have them elsewhere.
      detector: of memorised prompts, whose entry of detection.json are the scores: `auc`
        and `tpr_at_1_percent_fpr`, and with `unseen_` before them; "": scores.json.
    """

    name: str
    config: str
    train: Mapping[str, Any] = _NOTHING
    evaluate: Mapping[str, Any] = _NOTHING
    labels: Mapping[str, Any] = _NOTHING
    model: str = ""
    analysis: Mapping[str, Any] | None = None
    detector: str = ""
    places: Mapping[str, str] = _NOTHING


class Score(NamedTuple):
    """A number of scores.json, as an axis or a column.

    Attributes:
      label: for people.
      keys: in scores.json; the first that the trials have.
      percent: whether it is a share in [0, 1].
    """

    label: str
    keys: tuple[str, ...]
    percent: bool = False


class Curves(NamedTuple):
    """A score over a number that was varied, a line for each series.

    Attributes:
      x: label of the trials along the axis.
      baseline: score drawn as a dashed line, if any.
      log: whether the axis is logarithmic.
    """

    x: str
    y: Score
    x_label: str
    series: str = ""
    baseline: Score | None = None
    log: bool = False

    @property
    def scores(self) -> tuple[Score, ...]:
        """What is drawn of the trials."""
        return (self.y, self.baseline) if self.baseline else (self.y,)


class Bars(NamedTuple):
    """A score of each value of a label, a colour for each series.

    Attributes:
      chance: what guessing would score, drawn as a dotted line; None: no such thing.
    """

    x: str
    y: Score
    x_label: str
    series: str = ""
    baseline: Score | None = None
    chance: float | None = None

    @property
    def scores(self) -> tuple[Score, ...]:
        """What is drawn of the trials."""
        return (self.y, self.baseline) if self.baseline else (self.y,)


class Tradeoff(NamedTuple):
    """Two scores against each other, a point for each setting, its Pareto front marked.

    Lower is better in `y`; `x_low_is_good` says it of `x`.

    Attributes:
      point: label of the trials that names a point.
      reference: a point that is named wherever it lies.
      only: label and value of the trials that are drawn; None: all.
    """

    x: Score
    y: Score
    point: str
    series: str = ""
    x_low_is_good: bool = True
    only: tuple[str, str] | None = None
    reference: str = "none"

    @property
    def scores(self) -> tuple[Score, ...]:
        """What is drawn of the trials."""
        return (self.y, self.x)


class Clusters(NamedTuple):
    """Generations at the similarities of the cluster that their match belongs to.

    Attributes:
      series: label of the trials that divides the figure's points.
    """

    series: str = ""

    @property
    def columns(self) -> tuple[str, ...]:
        """What is drawn of generations.parquet."""
        return ("similarity", "nearest_reference")


class Scatter(NamedTuple):
    """Generations at two of their numbers, a line of least squares for each series.

    Attributes:
      x, y: columns of generations.parquet.
      correlation: score of both, for the legend.
    """

    x: str
    x_label: str
    correlation: Score
    series: str = ""
    y: str = "similarity"
    y_label: str = "similarity to the nearest training image"

    @property
    def scores(self) -> tuple[Score, ...]:
        """What is drawn of the trials."""
        return (self.correlation,)

    @property
    def columns(self) -> tuple[str, ...]:
        """What is drawn of generations.parquet."""
        return (self.x, self.y)


class Roc(NamedTuple):
    """Memorised prompts that a detector finds over captions never trained on it calls so.

    Attributes:
      series: label of the trials that names a detector.
      only: label and value of the trials that are drawn.
    """

    series: str
    only: tuple[str, str]


class Changes(NamedTuple):
    """Columns of how far scores of a setting lie from those of a baseline, seed by seed.

    Paired, because seeds differ more than settings do: each has images of its own.

    Attributes:
      label, baseline: the trials compared with have this value of this label.
      scores: that are compared.
      within: labels in which both must agree.
    """

    label: str
    baseline: str | int
    scores: tuple[Score, ...]
    within: tuple[str, ...] = ()


class Differences(NamedTuple):
    """How far a score of each setting lies from the baseline, seed by seed.

    Settings are in the order of their change of the first of the `changes`' scores.

    Attributes:
      series: label of the trials that divides each setting's.
    """

    y: Score
    changes: Changes
    series: str = ""

    @property
    def scores(self) -> tuple[Score, ...]:
        """What is drawn of the trials."""
        return (self.y,)


Panel = Curves | Bars | Tradeoff | Differences | Clusters | Scatter | Roc
SweepFunction = Callable[[str, Sequence[int]], Iterator[Trial]]


def draws(
    *panels: Panel, columns: Sequence[Score] = (), changes: Changes | None = None
) -> Callable[[SweepFunction], SweepFunction]:
    """Says what `--collect` makes of a sweep: panels side by side, columns of the table."""

    def decorate(function: SweepFunction) -> SweepFunction:
        function.panels = panels  # type: ignore[attr-defined]
        function.columns = columns  # type: ignore[attr-defined]
        function.changes = changes  # type: ignore[attr-defined]
        return function

    return decorate
