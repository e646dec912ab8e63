"""The card of a model on the hub: how it was trained, and how much it copies.

Settings and scores enter, text leaves. No path and no image of the training data does.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import EvalResult, ModelCardData

from copymit import __version__
from copymit.mitigation.registry import changed_mitigations
from copymit.pretrained.base_models import BaseModel
from copymit.report.summary import summary_rows
from copymit.report.verdict import answer, read_estimate, score_label

# The hub's identifiers of the base models' licences.
_LICENCES = {
    "CreativeML OpenRAIL-M": "creativeml-openrail-m",
    "CreativeML OpenRAIL++-M": "openrail++",
}
_MEASURED = ("copied_share", "copied_images", "dataset_similarity")
_TRAINING = (
    *("data.num_examples", "data.resolution", "data.caption_style", "data.duplication"),
    *("data.duplicated_fraction", "data.duplication_factor", "train.batch_size"),
    *("train.learning_rate", "train.lora_rank"),
)
_WHAT = (
    "How that is decided, and how often wrongly, is written in copymit's documentation "
    "(docs/decisions.md). Prompts, samplers and seeds other than these may copy more or "
    "less."
)
_UNMEASURED = (
    "Not measured for this checkpoint. `copymit evaluate --workdir=WORKDIR` measures it, "
    "and `copymit export` then says it here."
)


class Measured(NamedTuple):
    """What an evaluation found: its scores, and how they were made, as a paragraph."""

    scores: Mapping[str, Any]
    how: str


def write_card(
    name: str,
    settings: Mapping[str, Any],
    step: int,
    base: BaseModel | None,
    measured: Measured | None,
) -> str:
    """Writes README.md of a model's repository.

    Args:
      name: of the repository, `USER/NAME`, or of the folder.
      settings: of the training, flat.
      step: of the checkpoint.
      base: what the training started from, if it is a published model.
      measured: of this checkpoint; None says that nothing was.
    """
    data = ModelCardData(
        library_name="diffusers",
        pipeline_tag="text-to-image",
        base_model=base.hub_id if base else None,
        license=_LICENCES.get(base.licence) if base else None,
        tags=["copymit", "memorization"],
        model_name=_plain(name),
        eval_results=_results(settings, measured) or None,
    )
    lora = bool(settings.get("train.lora_rank"))
    sections = [
        f"# {_plain(name)}",
        _about(settings, step, base),
        "## How much it copies its training images",
        *(_copying(measured) if measured else [_UNMEASURED]),
        "## Training",
        _table([("setting", "value"), *_trained(settings)]),
        "## Use",
        _usage(name, base, lora),
        "## Licence",
        _licence(base),
    ]
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n"


def _results(
    settings: Mapping[str, Any], measured: Measured | None
) -> list[EvalResult]:
    """Is what was measured in the form that the hub reads."""
    source = _plain(Path(str(settings["data.source"])).name)
    return [
        EvalResult(
            task_type="text-to-image",
            dataset_type=source,
            dataset_name=f"{source} (its training images)",
            metric_type=key,
            metric_name=score_label(key),
            metric_value=estimate.value,
        )
        for key in (_MEASURED if measured else ())
        if measured and (estimate := read_estimate(measured.scores, key))
    ]


def _about(settings: Mapping[str, Any], step: int, base: BaseModel | None) -> str:
    start = f"`{base.hub_id}`, fine-tuned" if base else "A diffusion model, trained"
    source = _plain(Path(str(settings["data.source"])).name)
    return f"{start} for {step:,} steps on `{source}` with copymit {__version__}."


def _copying(measured: Measured) -> list[str]:
    rows = summary_rows(measured.scores)
    parts = [f"**{_plain(answer(measured.scores))}.**"]
    how = [_plain(measured.how)] if measured.how else []
    return [*parts, *([_table(rows)] if rows else []), *how, _WHAT]


def _trained(settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    shown = {key: settings[key] for key in _TRAINING if key in settings}
    asked = settings.get("mitigation.apply")
    shown |= {"mitigation.apply": asked} if asked else {}
    shown |= changed_mitigations(settings)
    return [(f"`{key}`", _plain(str(value))) for key, value in shown.items()]


def _usage(name: str, base: BaseModel | None, lora: bool) -> str:
    start = base.hub_id if base and lora else name
    lines = [
        "from diffusers import StableDiffusionPipeline",
        "",
        f'pipe = StableDiffusionPipeline.from_pretrained("{_plain(start)}")',
        *([f'pipe.load_lora_weights("{_plain(name)}")'] if lora else []),
        'image = pipe("a prompt").images[0]',
    ]
    return "\n".join(("```python", *lines, "```"))


def _licence(base: BaseModel | None) -> str:
    terms = f"The base model's: {base.licence}. " if base else ""
    return f"{terms}A model trained on other data carries the duties of those data."


def _table(rows: Sequence[Sequence[str]]) -> str:
    head, *others = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join((head, "|---" * len(rows[0]) + "|", *others))


def _plain(text: str) -> str:
    """Takes from a text what markdown, HTML or YAML would read as more than a text."""
    return re.sub(r"[`<>|\[\]\"\\\n\r]", " ", text).strip()
