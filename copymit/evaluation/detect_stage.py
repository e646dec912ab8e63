"""The detect stage: a scored run in, how well each detector finds its memorised prompts.

Writes `detection.parquet`, a row a prompt: its kind, the similarity of its generations,
whether it is memorised, every detector; `detection.json`, AUC and TPR at 1 % FPR; and
what `detect_prompts` keeps. Prompts are taken as given, before any mitigation. Where two
lists say which prompts are memorised and which are not, no scored run is needed.
"""

from typing import Any

import jax
import numpy as np
import pandas as pd
from ml_collections import ConfigDict

from copymit.data.tokenizer import make_tokenizer
from copymit.evaluation.artefacts import Artefacts
from copymit.evaluation.detect import detect_prompts, summarise
from copymit.evaluation.prompts import Prompt, make_prompts, read_prompts
from copymit.evaluation.stages import compute_digest
from copymit.evaluation.subject import Run, Subject
from copymit.mitigation.detector import DETECTORS, DetectionOptions
from copymit.scores.detection import COMPARISONS

PROMPTED, UNSEEN = "prompted", "unseen"
_OPTIONS = (
    "num_seeds",
    "text_noise",
    "num_text_noises",
    "entropy_layer",
    "entropy_steps",
)


def run_detect(subject: Subject, artefacts: Artefacts) -> None:
    """Measures the prompts of the evaluation and captions of held-out images.

    Raises:
      ValueError: if there is no model to look at, or settings that cannot be.
    """
    if subject.run is None:
        raise ValueError(
            "the detect stage looks into a model, and there are only images: give "
            "--workdir of a training, or --model"
        )
    settings = subject.eval.detection
    prompts = given_prompts(settings, subject.eval) or list_prompts(subject)
    known = settings.memorised_prompts and set(read_prompts(settings.memorised_prompts))
    if known and known.isdisjoint(prompt.prompt_used for prompt in prompts):
        raise ValueError(
            f"eval.detection.memorised_prompts={settings.memorised_prompts!r} has none of "
            f"the {len(prompts)} prompts that are looked at: set eval.prompts='file' and "
            "eval.prompts_file, or eval.detection.other_prompts to look at both lists"
        )
    if jax.process_index() == 0:
        # What it says of tokens is about to be replaced.
        artefacts.detection_summary.unlink(missing_ok=True)
    measured = detect_prompts(
        subject.run.config,
        subject.run.load_params,
        list(prompts),
        subject.out,
        compute_digest([subject.identity["generations"], subject.eval.use_ema]),
        DetectionOptions(**{name: settings[name] for name in _OPTIONS}),
    )
    if jax.process_index() == 0:
        measured.insert(2, "kind", list(prompts.values()))
        table, truth = with_truth(measured, subject, artefacts)
        summary = {"truth": truth} | summarise_kinds(table, subject.eval.seed)
        artefacts.write_table("detect", artefacts.detection, table)
        artefacts.write_json("detect", artefacts.detection_summary, summary)


def given_prompts(detection: ConfigDict, evaluation: ConfigDict) -> dict[Prompt, str]:
    """Lists the prompts of `memorised_prompts` and `other_prompts`, if both are given.

    Raises:
      ValueError: if a prompt is in both files.
    """
    if not detection.other_prompts:
        return {}
    memorised = read_prompts(detection.memorised_prompts)
    others = read_prompts(detection.other_prompts)
    if twice := sorted(set(memorised) & set(others)):
        raise ValueError(
            f"eval.detection: {twice[0]!r} is in both {detection.memorised_prompts} and "
            f"{detection.other_prompts}: leave it in one"
        )
    texts = dict.fromkeys([*memorised, *others])
    seed, scale = evaluation.seed, evaluation.guidance_scale
    return {
        Prompt(f"{i:06d}", text, text, seed, scale, None): PROMPTED
        for i, text in enumerate(texts)
    }


def list_prompts(subject: Subject) -> dict[Prompt, str]:
    """Lists distinct prompts with their kinds: those generated from, then unseen ones."""
    assert subject.run is not None
    run, most = subject.run, subject.eval.detection.num_prompts
    generated = subject.prompts()
    assert generated is not None
    chosen: dict[str, Prompt] = {}
    for row in generated.to_dict("records"):
        if len(chosen) < most:
            text = row["prompt"]
            given = Prompt(**{k: row[k] for k in Prompt._fields})
            chosen.setdefault(text, given._replace(prompt_used=text))
    listed = dict.fromkeys(chosen.values(), PROMPTED)
    for prompt in _heldout_prompts(run, most):
        if prompt.prompt not in chosen:
            number = len(generated) + len(listed)
            unseen = prompt._replace(id=f"{number:06d}", prompt_used=prompt.prompt)
            chosen[prompt.prompt] = unseen
            listed[unseen] = UNSEEN
    return listed


def _heldout_prompts(run: Run, most: int) -> list[Prompt]:
    """Is a caption of each held-out image, where captions name single images."""
    if not len(run.dataset.heldout):
        return []
    config = run.config.copy_and_resolve_references()
    config.eval.prompts = "heldout"
    config.eval.num_generations = min(most, len(run.dataset.heldout))
    text = config.model.text_encoder
    tokenizer = make_tokenizer(text.max_length, text.pad_token_id)
    prompts = make_prompts(config, run.dataset, tokenizer)
    return [prompt for prompt in prompts if prompt.example_id is not None]


def with_truth(
    measured: pd.DataFrame, subject: Subject, artefacts: Artefacts
) -> tuple[pd.DataFrame, str]:
    """Adds `similarity`, of a prompt's generations, and `memorised`.

    The similarity is the mean of the similarities of all generations of the prompt to
    their nearest training images. Unseen prompts have no generations, nor have those of
    two lists.

    Returns:
      The table, and how it was decided what is memorised.
    """
    table = measured.copy()
    prompted = table["kind"] != UNSEEN
    similarity = np.nan
    if not subject.eval.detection.other_prompts:
        similarity = _similarities(table["prompt"], subject, artefacts).where(prompted)
    table.insert(3, "similarity", similarity)
    if path := subject.eval.detection.memorised_prompts:
        memorised = table["prompt"].isin(set(read_prompts(path)))
        truth = f"prompts listed in {path}"
    else:
        threshold = subject.eval.detection.memorised_similarity
        of = artefacts.headline
        truth = f"prompts whose mean similarity is above {threshold:.3f} by {of}"
        if not threshold:
            background = artefacts.read_matches(of, "background")
            values = background.loc[background["rank"] == 0, "similarity"]
            threshold = float(np.percentile(values, 95))
            truth = (
                f"prompts whose generations are on average more similar ({threshold:.3f} "
                f"by {of}) than 95 % of the training images are to each other"
            )
        memorised = table["similarity"] > threshold
    table.insert(4, "memorised", memorised & prompted)
    return table, truth


def _similarities(
    texts: pd.Series, subject: Subject, artefacts: Artefacts
) -> pd.Series:
    matches = artefacts.read_matches(artefacts.headline, "generations")
    nearest = matches[matches["rank"] == 0].set_index("generation")["similarity"]
    prompts = subject.prompts()
    assert prompts is not None
    return texts.map(prompts["id"].map(nearest).groupby(prompts["prompt"]).mean())


def summarise_kinds(table: pd.DataFrame, seed: int) -> dict[str, Any]:
    """Tells memorised prompts from others, and from unseen ones, by every detector.

    Returns:
      `num_*` of each kind, `titles` of the detectors, and of each comparison that has
      both kinds (`COMPARISONS`) the scores of `summarise`.
    """
    memorised = table["memorised"].to_numpy(bool)
    unseen = (table["kind"] == UNSEEN).to_numpy()
    kinds = zip(COMPARISONS, (~memorised & ~unseen, unseen), strict=True)
    summary: dict[str, Any] = {
        "titles": {name: detector.title for name, detector in DETECTORS.items()},
        "num_memorised": int(memorised.sum()),
    }
    for name, others in kinds:
        summary[f"num_{name}"] = int(others.sum())
        if memorised.any() and others.any():
            compared = memorised | others
            summary[name] = summarise(table[compared], memorised[compared], seed)
    return summary
