"""Every score of `scores.json`: its name, meaning, format, direction and interval.

What scores, shows, compares or documents a number looks it up here.
"""

import functools
import re
from dataclasses import dataclass
from typing import Literal, NamedTuple

from copymit.scores.tiled import EXTRACTED_BELOW

Group = Literal["generations", "prompted", "quality", "complexity", "other"]
# Sets whose similarities carry a prefix, and what they are for a reader.
SETS = {
    "background": "training images to their nearest *other* training image",
    "heldout": "images of the same kind that were never trained on",
}
_LABELS_OF_SETS = {
    "background": "Training images to each other",
    "heldout": "Images never trained on",
}


@dataclass(frozen=True)
class Score:
    """A score, or several of one kind.

    Attributes:
      key: in `scores.json`; `{a,b}` stands for each of them, EMBEDDER for any name.
      meaning: for a reader; of all that the key stands for.
      label: a name for a reader, of what the report compares; else "".
      higher: whether higher is worse (more copied, less alike), better, or neither.
      is_share: whether it lies in [0, 1] and is written as a percentage.
      interval: how its 95 % interval comes about, "" where it has none.
    """

    group: Group
    key: str
    meaning: str
    label: str = ""
    higher: Literal["worse", "better", ""] = ""
    is_share: bool = False
    interval: Literal["bootstrap", "jackknife", "exact", ""] = ""

    @functools.cached_property
    def pattern(self) -> re.Pattern[str]:
        """Matches keys of this kind, after the name of an embedder and of a set."""
        key = re.escape(self.key).replace("EMBEDDER", r"\w+").replace(",", "|")
        key = key.replace(r"\{", "(?:").replace(r"\}", ")")
        sets = "|".join(f"{name}_" for name in SETS)
        return re.compile(rf"((?:\w+?_)??)((?:{sets})?){key}")


class Known(NamedTuple):
    """A score by its full key.

    Attributes:
      rank: of the score among all.
      embedder: whose name the key begins with, or "".
      images: set whose prefix follows, or "" for the generations.
    """

    score: Score
    rank: int
    embedder: str
    images: str

    @property
    def label(self) -> str:
        """The score's name for a reader, with what the prefixes say."""
        label = self.score.label
        if label and self.images:
            label = f"{_LABELS_OF_SETS[self.images]}: {label[0].lower()}{label[1:]}"
        return f"{label} ({self.embedder})" if label and self.embedder else label


@functools.cache
def look_up(key: str) -> Known | None:
    """Finds a score by its key in `scores.json`; None for what is no score."""
    if key.endswith("_ci95"):
        return None
    found = []
    for rank, score in enumerate(SCORES):
        match = score.pattern.fullmatch(key)
        if match:
            embedder, images = (part.removesuffix("_") for part in match.groups())
            found.append(Known(score, rank, embedder, images))
    return min(found, key=lambda k: (len(k.embedder), len(k.images)), default=None)


def _similar(key: str, meaning: str, label: str = "", is_share: bool = False) -> Score:
    group: Group = (
        "prompted" if "duplicated" in key or "prompted" in key else "generations"
    )
    return Score(group, key, meaning, label, "worse", is_share, "bootstrap")


SCORES = (
    Score(
        "generations",
        "num_copies",
        "generations that are copies of training images: exact, near and likely ones; "
        "docs/decisions.md says how that is decided, and how often wrongly",
        "Copies",
        "worse",
    ),
    Score(
        "generations",
        "num_{exact,near,likely}_copies",
        "copies of equal pixels or nearly so, others whose pixels agree, and copies that "
        "the descriptor alone sees",
        higher="worse",
    ),
    Score(
        "generations",
        "num_copies_by_pixels",
        "copies that the correlation of pixels calls and the descriptor does not",
        higher="worse",
    ),
    Score(
        "generations",
        "num_pixels_alone",
        f"generations with a tiled distance below {EXTRACTED_BELOW} that are no copies",
        higher="worse",
    ),
    Score(
        "generations",
        "copied_share",
        "share of generations that are copies",
        "Share of copies",
        "worse",
        True,
        "exact",
    ),
    Score(
        "generations",
        "copied_images",
        "training images that generations are copies of, equal pixels counted once",
        "Training images that were copied",
        "worse",
    ),
    Score(
        "generations",
        "missed_share_upper",
        "where no copy was found: a model with a larger share of such copies would have "
        "shown one among so many independent generations, with 95 % probability; copies "
        "less similar than `copy_threshold` are not among them",
        is_share=True,
    ),
    Score(
        "generations",
        "copy_threshold",
        "similarity from which half of the generations would have been called a copy; a "
        "dense neighbourhood asks for more; none where no similarity is enough",
    ),
    Score(
        "generations",
        "reconstruction_similarity_mean",
        "mean similarity of training images to themselves after the model's autoencoder "
        "and back: about what a perfect copy would measure",
        "Training images through the autoencoder, to themselves",
        interval="bootstrap",
    ),
    Score(
        "generations",
        "reconstructions_recognised",
        "share of these that would be called copies; if small, none found means little",
        "Perfect copies that would be recognised",
        "better",
        True,
        "bootstrap",
    ),
    Score(
        "generations",
        "false_discovery_rate",
        "the share of near and likely copies that are expected to be none, at most",
        is_share=True,
    ),
    Score(
        "generations",
        "copy_null{,_size,_duplicates,_tail,_tail_shape}",
        "images that tell how near comes what is no copy: which (`heldout`, or "
        "`training images` to their nearest others), how many, duplicates that were left "
        "out of them; how many lie in the fitted tail, and its shape (0 = exponential)",
    ),
    Score(
        "generations",
        "duplicate_threshold",
        "similarity from which two training images, or two generations, count as one "
        "picture; none where fewer than 100 training images tell it",
    ),
    Score(
        "generations",
        "{,num_above_}published_threshold",
        "the descriptor's published threshold: SSCD's 0.75, where its precision on DISC is "
        "90 %; and how many generations are as similar to a training image",
    ),
    Score(
        "generations",
        "num_repeated_generations",
        "generations that repeat the picture of another generation",
        "Generations that repeat another",
        "worse",
    ),
    Score(
        "generations",
        "num_{repeat_groups,repeated_across_prompts}",
        "groups of generations that are one picture, and generations in a group of "
        "several prompts",
        higher="worse",
    ),
    Score(
        "generations",
        "largest_repeat_group",
        "generations in the largest group that is one picture",
    ),
    _similar(
        "dataset_similarity",
        "95th percentile, over generations, of the similarity to the nearest training "
        "image: the paper's number",
        "Dataset similarity (95th percentile)",
    ),
    _similar(
        "similarity_mean",
        "mean similarity of a generation to its nearest training image",
        "Mean similarity",
    ),
    Score(
        "generations",
        "similarity_std",
        "standard deviation of the similarity to the nearest training image",
        interval="bootstrap",
    ),
    _similar(
        "similarity_p{75,90,95}",
        "percentiles of the similarity to the nearest training image",
    ),
    _similar(
        "similarity_above_0.5",
        "share of images whose similarity to the nearest training image is above 0.5",
        is_share=True,
    ),
    Score("generations", "similarity_count", "images that such similarities are of"),
    Score(
        "generations",
        "nearest_l2_ratio_{mean,p5}",
        "distance to the nearest training image over the mean of the next ten (Carlini "
        "et al. 2023), mean and 5th percentile; small = copied",
        higher="better",
        interval="bootstrap",
    ),
    _similar(
        "template_similarity_mean",
        "mean of the largest similarity of any tile (`eval.tiles=2` or 3) to the tile at "
        "its place in any training image: finds a copied background with a new foreground",
        "Mean similarity of the most alike tile",
    ),
    _similar(
        "template_similarity_p95",
        "95th percentile of the largest similarity of any tile",
    ),
    Score(
        "generations",
        "tile_l2_mean",
        "distance of the least similar of 16 tiles to the nearest of the candidates that "
        "the embedders found (Carlini et al. 2023); small = copied",
        "Mean tiled distance",
        "better",
        interval="bootstrap",
    ),
    Score(
        "generations",
        "tile_l2_p5",
        "5th percentile of the tiled distance; small = copied",
        higher="better",
        interval="bootstrap",
    ),
    _similar(
        f"tile_l2_below_{EXTRACTED_BELOW}",
        "share of generations with a tiled distance below "
        f"{EXTRACTED_BELOW}, which Carlini et al. count as extracted",
        f"Extracted: tiled distance below {EXTRACTED_BELOW}",
        is_share=True,
    ),
    _similar(
        "prompted_image_hits_duplicated",
        "share of generations prompted by a duplicated image whose nearest training "
        "image is that very image",
        "Duplicated images that come back",
        is_share=True,
    ),
    _similar(
        "prompted_image_hits_unduplicated",
        "share of generations prompted by an image that was not duplicated whose nearest "
        "training image is that very image",
        "Other images that come back",
        is_share=True,
    ),
    _similar(
        "prompted_image_hits",
        "share of generations whose nearest training image is the very image whose "
        "caption prompted them",
        "Prompted images that come back",
        is_share=True,
    ),
    Score(
        "prompted",
        "prompted_{duplicated,unduplicated}_copied_share",
        "share of generations that are copies, of whichever training image, by whether "
        "the prompted image was duplicated",
        higher="worse",
        is_share=True,
        interval="exact",
    ),
    _similar(
        "prompted_{duplicated,unduplicated}_similarity_mean",
        "mean similarity to the nearest training image, by whether the prompted image "
        "was duplicated",
    ),
    _similar(
        "similarity_to_{duplicated,unduplicated}",
        "mean similarity by whether the *nearest* image was duplicated (the original "
        "code's bars)",
    ),
    _similar(
        "similarity_to_prompted{,_duplicated,_unduplicated}",
        "mean similarity to the prompted image itself: of all, of duplicated, of others",
    ),
    Score(
        "prompted",
        "{prompted_image,prompted_duplicated,prompted_unduplicated,"
        "similarity_to_duplicated,similarity_to_unduplicated}_count",
        "generations that the numbers of this name are of",
    ),
    Score(
        "quality",
        "fid",
        "Fréchet Inception distance to the training images, with Inception's published "
        "weights, but for `inception_dcr`; copies lower it too",
        "FID",
        "worse",
        interval="jackknife",
    ),
    Score(
        "quality",
        "{fid,fd_EMBEDDER}_to_heldout",
        "Fréchet distance to images never trained on, which copies do not lower",
        higher="worse",
        interval="jackknife",
    ),
    Score(
        "quality",
        "fd_EMBEDDER",
        "Fréchet distance to the training images by any other network (FD-DINOv2 is "
        "`fd_dinov2_vitl14`); copies lower it too",
        "Fréchet distance (EMBEDDER)",
        "worse",
        interval="jackknife",
    ),
    Score(
        "quality",
        "{kid,kd_EMBEDDER}",
        "kernel distance (unbiased MMD²) to the training images",
        higher="worse",
        interval="jackknife",
    ),
    Score(
        "quality",
        "cmmd",
        "CMMD, a kernel distance of CLIP features, with `clip_vit_l14_336` among the "
        "quality embedders",
        "CMMD",
        "worse",
        interval="jackknife",
    ),
    Score(
        "quality",
        "{precision,recall}",
        "share of generations that look like training images, and of training images that "
        "look like generations; of at most 10,000 images a set",
        higher="better",
        is_share=True,
        interval="jackknife",
    ),
    Score(
        "quality",
        "density",
        "how crowded with training images the places of generations are, 1 where both are "
        "alike; of at most 10,000 images a set",
        higher="better",
        interval="jackknife",
    ),
    Score(
        "quality",
        "coverage",
        "share of training images with a generation close by; of at most 10,000 images a "
        "set",
        higher="better",
        is_share=True,
        interval="jackknife",
    ),
    Score(
        "quality",
        "clip_score",
        "how well generations fit their prompts: mean cosine of CLIP's features",
        "CLIP score",
        "better",
        interval="bootstrap",
    ),
    Score(
        "quality",
        "background_clip_score",
        "how well training images fit their captions: mean cosine of CLIP's features",
        interval="bootstrap",
    ),
    Score(
        "complexity",
        "complexity_{entropy,jpeg_bytes,total_variation,entropy_jpeg}_pearson",
        "correlation of similarity with the complexity of the matched image, at 224 px as "
        "in the original code; negative = simple images are copied more",
        interval="bootstrap",
    ),
    Score(
        "complexity",
        "complexity_{entropy,jpeg_bytes,total_variation,entropy_jpeg}_pvalue",
        "p-value of the correlation of similarity with the complexity of the matched "
        "image, of as many observations as there are clusters",
    ),
    Score(
        "other",
        "num_{prompts,noises}_{optimised,still_above_target}",
        "generations that were above `prompt_target` or `noise_target`, and those not "
        "seen to reach it",
    ),
    Score("other", "train_loss", "loss at the end of training", higher="worse"),
    Score("other", "search_{backend,settings}", "how neighbours were found"),
    Score(
        "other",
        "search_recall",
        "the measured share of the true neighbours that were found",
        higher="better",
        is_share=True,
    ),
    Score(
        "other",
        "num_{generations,references,heldout,reconstructions}",
        "images that could be read and were compared",
    ),
    Score(
        "other",
        "num_clusters",
        "prompted images, or prompts where no image is known: what intervals resample",
    ),
    Score(
        "other",
        "{num_,}skipped_{generations,references,heldout}",
        "images that could not be read and were left out",
    ),
    Score(
        "other",
        "{num_,}blank_{generations,references,heldout}",
        "images of one colour, as safety checkers and broken weights leave; they stay in "
        "every number",
    ),
    Score(
        "other",
        "{num_,}not_finite_generations",
        "generations whose latents or pixels were NaN or infinite before they became "
        "pictures, where copymit made them; they stay in every number",
    ),
    Score("other", "{,background_}clip_score_count", "images in the CLIP score"),
    Score(
        "other",
        "quality_pairs_of",
        "images, generated and real, in measures that compare all pairs",
    ),
    Score(
        "other",
        "frechet_bias_of_{fid,fd_EMBEDDER}",
        "why the Fréchet distance compares only with those of as many images",
    ),
    Score("other", "{embedder,title,settings,inputs}", "what was measured, and how"),
    Score(
        "other",
        "image_{size_px,preparation}",
        "short side of the generations, and what was done to images before any protocol "
        "began",
    ),
    Score(
        "other",
        "{protocol,protocols,quality_protocol,clip_score_protocol}",
        "how images are prepared for each network, and its weights",
    ),
    Score(
        "other",
        "{alarms,warnings}",
        "what to know before the numbers are believed; alarms stand at the top of the page",
    ),
)
