"""Every figure and table of the paper as a family of trials.

    python -m launch.sweep --sweep=configs/sweeps.py:fig3 --workdir=runs/sweeps
    python -m launch.sweep --sweep=configs/sweeps.py:fig3 --workdir=gs://BUCKET/sweeps \\
        --preset=full --commands

A sweep is a function `(preset, seeds) -> iterator of Trial`; write your own beside these or
in a file of your own. Preset `full` is the paper's recipe (configs/imagenette.py and
laion10k.py; about a day of an A6000 for each training); `small` is the demo, shrunk to 36
emoji: five to nine minutes of a slow CPU core for each training; `photos` and `photos_cpu`
are between them: configs/photos.py, on a GPU and on a CPU. Sweeps in one directory share
the trainings that they have in common. docs/sweeps.md has the list and what was seen.
The sweeps of mitigations are in sweeps_mitigations.py.
"""

from collections.abc import Iterator, Sequence

from configs.sweeps_base import (
    BACKGROUND,
    CLIP,
    COPIES,
    COPIES_OF_DUPLICATED,
    HITS,
    MEMORISED,
    OF_DUPLICATED,
    QUALITY,
    QUALITY_HELDOUT,
    SIMILARITY,
    Setting,
    datasets,
    expand,
    first_dataset,
)
from configs.sweeps_mitigations import (
    detectors,
    known_prompts,
    mitigations,
    mitigations_at_inference,
    mitigations_once,
    table_inference_mitigations,
    table_train_mitigations,
)
from configs.sweeps_types import (
    Bars,
    Changes,
    Clusters,
    Curves,
    Scatter,
    Score,
    Trial,
    draws,
)

__all__ = [
    "caption_count",
    "caption_specificity",
    "complexity",
    "dataset_size",
    "detectors",
    "fig2",
    "fig3",
    "fig4",
    "fig5",
    "known_prompts",
    "mitigations",
    "mitigations_at_inference",
    "mitigations_once",
    "table_inference_mitigations",
    "table_train_mitigations",
    "text_encoder",
    "training_length",
    "unconditional",
]

_FACTORS = {
    "small": (1, 5, 10, 20),
    "photos": (1, 2, 5, 10, 20, 50),
    "photos_cpu": (1, 2, 5, 10, 20, 50),
    "full": (1, 5, 10, 20),
}
_SIZES = {
    "small": (9, 18, 36, 72),
    "photos": (250, 500, 1_000, 1_800),
    "photos_cpu": (60, 125, 250, 500),
    "full": (1_000, 10_000, 100_000),
}
_LENGTHS = {
    "small": (625, 1_250, 2_500, 5_000),
    "photos": (1_000, 2_000, 3_000, 5_000, 10_000),
    "photos_cpu": (1_000, 2_000, 4_000, 8_000),
    "full": (25_000, 50_000, 100_000, 200_000),
}
# After which photos are copied though each is there once; those of training_length.
_LONGER = {"photos": 5_000, "photos_cpu": 8_000}
_CAPTIONS = {
    "small": (1, 2, 3, 5),
    "photos": (1, 2, 3, 5),
    "photos_cpu": (1, 2, 3, 5),
    "full": (1, 5, 10, 20),
}
# Photos have no classes: captions about the same are one.
_CLUSTERS = {"photos": 10, "photos_cpu": 10}
_STYLES = {
    "fixed": "fixed",
    "class": "class",
    "captions": "instance",
    "random": "random",
}
_CORRELATIONS = {
    name: Score(f"correlation with {label}", (f"complexity_{name}_pearson",))
    for name, label in {
        "entropy": "entropy",
        "jpeg_bytes": "JPEG size",
        "total_variation": "total variation",
        "entropy_jpeg": "entropy x root of JPEG size",
    }.items()
}
_COMPLEXITY = {
    "entropy": "entropy of the nearest image (bits)",
    "jpeg_bytes": "JPEG size of the nearest image (bytes)",
    "total_variation": "total variation of the nearest image (levels)",
}

_COMPARED = (SIMILARITY, COPIES, QUALITY, QUALITY_HELDOUT)


def _curves(
    x: str, x_label: str, series: str, scores: Sequence[Score] = _COMPARED
) -> tuple[Curves, ...]:
    """Draws what is copied and what it does to quality, over a number that was varied."""
    return tuple(
        Curves(x, y, x_label, series, BACKGROUND if y == SIMILARITY else None, log=True)
        for y in scores
    )


@draws(Clusters(series="model"))
def fig2(preset: str, seeds: Sequence[int]) -> Iterator[Trial]:
    """Figure 2: are matches of generations duplicated in image, caption, or both?"""
    if preset == "full":
        for model in ("stable-diffusion-v1-4", "stable-diffusion-2-1"):
            yield from expand(
                preset,
                seeds,
                "configs/laion100k.py",
                Setting(
                    {"model": model},
                    evaluate={"eval.sampler": "dpmsolver++"},
                    model=model,
                ),
                analysis={
                    "source": "data/laion100k",
                    "captions": "data/laion100k_captions.json",
                    "embedder": "sscd_dcr",
                    "weights": "sscd_disc_large=weights/sscd_disc_large.torchscript.pt",
                },
            )
        return
    if preset != "small":
        yield from expand(
            preset,
            seeds,
            first_dataset(preset),
            Setting({"model": "photos"}, {"data.duplication": "none"}),
            analysis={"source": "data/photos", "captions": "data/photos.json"},
        )
        return
    # Hands and people come in six skin tones with nearly one caption: duplicates of the
    # data set's own.
    yield from expand(
        preset,
        seeds,
        "configs/demo.py",
        Setting(
            {"model": "people & body"},
            {
                "data.classes": ("people & body",),
                "data.num_examples": 48,
                "data.duplication": "none",
            },
        ),
        analysis={"source": "fluent_emoji", "resolution": 64},
    )


@draws(
    *_curves("factor", "duplication factor", "data"),
    *_curves("factor", "duplication factor", "data", OF_DUPLICATED),
    changes=Changes("factor", 1, _COMPARED, within=("data",)),
)
def fig3(preset: str, seeds: Sequence[int]) -> Iterator[Trial]:
    """Figure 3: similarity and quality over how often images are duplicated."""
    for data, config in datasets(preset).items():
        for factor in _FACTORS[preset]:
            labels = {"data": data, "factor": factor}
            yield from expand(
                preset, seeds, config, Setting(labels, duplicated(factor, "full"))
            )


@draws(
    Bars(
        "captions", SIMILARITY, "captions", series="text encoder", baseline=BACKGROUND
    ),
    Bars("captions", COPIES, "captions", series="text encoder"),
    Bars("captions", QUALITY, "captions", series="text encoder"),
)
def fig4(preset: str, seeds: Sequence[int]) -> Iterator[Trial]:
    """Figure 4: styles of captions (left), and training the text encoder (right)."""
    yield from _text_encoders(preset, seeds, _STYLES)


@draws(
    *_curves("factor", "duplication factor", "duplication"),
    *_curves("factor", "duplication factor", "duplication", OF_DUPLICATED),
    changes=Changes("factor", 1, _COMPARED, within=("duplication",)),
)
def fig5(preset: str, seeds: Sequence[int]) -> Iterator[Trial]:
    """Figure 5: images duplicated with their captions (full) or with others (partial)."""
    config = datasets(preset).get("LAION-10k", first_dataset(preset))
    for duplication in ("full", "partial"):
        for factor in _FACTORS[preset]:
            labels = {"duplication": duplication, "factor": factor}
            yield from expand(
                preset, seeds, config, Setting(labels, duplicated(factor, duplication))
            )


@draws(
    Bars("captions", SIMILARITY, "captions", series="text encoder"),
    Bars("captions", CLIP, "captions", series="text encoder"),
    Bars("captions", HITS, "captions", series="text encoder"),
)
def text_encoder(preset: str, seeds: Sequence[int]) -> Iterator[Trial]:
    """Whether the text encoder is trained, too, on captions of the images."""
    yield from _text_encoders(preset, seeds, {"captions": "instance"})


@draws(
    *_curves("images", "training images", "duplication"),
)
def dataset_size(preset: str, seeds: Sequence[int]) -> Iterator[Trial]:
    """The same number of steps on more and more images."""
    config = "configs/laion100k.py" if preset == "full" else first_dataset(preset)
    for duplication in ("none", "full"):
        for images in _SIZES[preset]:
            changes = {
                "data.num_examples": images,
                "data.duplication": duplication,
            }
            if preset == "photos":  # of 2,000 that Flickr8k's smallest copies have
                changes["data.num_heldout"] = 200
            labels = {"duplication": duplication, "images": images}
            yield from expand(preset, seeds, config, Setting(labels, changes))


@draws(
    *_curves("steps", "training steps", "duplication"),
    *_curves("steps", "training steps", "duplication", OF_DUPLICATED),
)
def training_length(preset: str, seeds: Sequence[int]) -> Iterator[Trial]:
    """The same images for more and more steps, without duplicates and with them."""
    for factor in (1, 10):
        for steps in _LENGTHS[preset]:
            changes = {"train.steps": steps, **duplicated(factor, "full")}
            labels = {"duplication": f"x{factor}", "steps": steps}
            yield from expand(
                preset, seeds, first_dataset(preset), Setting(labels, changes)
            )


@draws(
    Curves("captions", SIMILARITY, "captions of an image", baseline=BACKGROUND),
    Curves("captions", MEMORISED, "captions of an image"),
    Curves("captions", COPIES, "captions of an image"),
    Curves("captions", COPIES_OF_DUPLICATED, "captions of an image"),
    Curves("captions", QUALITY_HELDOUT, "captions of an image"),
    changes=Changes("captions", 1, (SIMILARITY, MEMORISED, COPIES, QUALITY_HELDOUT)),
)
def caption_count(preset: str, seeds: Sequence[int]) -> Iterator[Trial]:
    """Each visit of an image with another of its captions, of which there are more."""
    for count in _CAPTIONS[preset]:
        changes = {"data.num_captions": count}
        if count > 1:
            changes["mitigation.train.multiple_captions"] = True
        setting = Setting({"captions": count}, changes)
        yield from expand(preset, seeds, first_dataset(preset), setting)


@draws(
    Bars("captions", SIMILARITY, "captions, ever more specific", baseline=BACKGROUND),
    Bars("captions", HITS, "captions, ever more specific"),
    Bars("captions", QUALITY, "captions, ever more specific"),
)
def caption_specificity(preset: str, seeds: Sequence[int]) -> Iterator[Trial]:
    """From one caption for all images to one for each."""
    styles = {name: _STYLES[name] for name in ("fixed", "class", "captions", "random")}
    for name, style in styles.items():
        yield from expand(
            preset,
            seeds,
            first_dataset(preset),
            Setting({"captions": name}, _captioned(preset, style)),
        )


@draws(
    *(
        Scatter(f"nearest_{name}", label, _CORRELATIONS[name], series="data")
        for name, label in _COMPLEXITY.items()
    ),
    columns=(SIMILARITY, *_CORRELATIONS.values()),
)
def complexity(preset: str, seeds: Sequence[int]) -> Iterator[Trial]:
    """Are simple training images copied more? Generations over their nearest image."""
    for data, config in datasets(preset).items():
        changes: dict[str, object] = {"data.duplication": "none"}
        if preset in _LONGER:
            changes["train.steps"] = _LONGER[preset]
        yield from expand(preset, seeds, config, Setting({"data": data}, changes))


@draws(
    Bars("duplication", SIMILARITY, "duplication", series="text", baseline=BACKGROUND),
    Bars("duplication", COPIES, "duplication", series="text"),
    Bars("duplication", QUALITY, "duplication", series="text"),
)
def unconditional(preset: str, seeds: Sequence[int]) -> Iterator[Trial]:
    """Models that know captions against models that know none."""
    for text, style in (("none", "unconditional"), ("captions", "instance")):
        for factor in (1, 10):
            labels = {"text": text, "duplication": f"x{factor}"}
            changes = {**duplicated(factor, "full"), "data.caption_style": style}
            yield from expand(
                preset,
                seeds,
                first_dataset(preset),
                # A model without captions has nothing to be guided by.
                Setting(labels, changes, {"eval.guidance_scale": 1.0}),
            )


def duplicated(factor: int, duplication: str) -> dict[str, object]:
    """Returns the settings of a duplication; 1 is none of either kind."""
    if factor == 1:
        return {"data.duplication": "none"}
    return {"data.duplication": duplication, "data.duplication_factor": factor}


def _captioned(preset: str, style: str) -> dict[str, object]:
    """Returns the settings of a style of captions."""
    classes = {"data.caption_clusters": _CLUSTERS.get(preset, 0)}
    return {"data.caption_style": style, **(classes if style == "class" else {})}


def _text_encoders(
    preset: str, seeds: Sequence[int], styles: dict[str, str]
) -> Iterator[Trial]:
    config = first_dataset(preset)
    for trained in (False, True):
        for name, style in styles.items():
            changes = {
                **_captioned(preset, style),
                "model.text_encoder.train": trained,
            }
            if preset == "full":
                changes["data.cache_embeddings"] = not trained
            labels = {
                "text encoder": "trained" if trained else "frozen",
                "captions": name,
            }
            yield from expand(preset, seeds, config, Setting(labels, changes))
