"""Copying while a model trains: a curve over steps, and the signal to stop early.

The same prompts and noise are generated from at every visit, embedded by the headline
embedder and compared with the training images, whose features are computed once and
found again by later evaluations of the run.
"""

import logging
from collections.abc import Callable, Sequence

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from copymit.data.captions import CaptionFunction
from copymit.data.dataset import Dataset, make_captions
from copymit.data.schedule import draw_generator
from copymit.data.tokenizer import make_tokenizer
from copymit.diffusion.noise_scheduler import NoiseScheduler
from copymit.embedding.embed import Job, embed_all, embed_arrays
from copymit.embedding.embedder import Embedder
from copymit.embedding.headline import deciding
from copymit.embedding.image_set import ImageSet, examples_as_images
from copymit.embedding.registry import make_embedder, weights_name
from copymit.embedding.store import EmbeddingStore, load_embeddings, unit_rows
from copymit.evaluation.online_copies import Embedded, make_copied_share
from copymit.evaluation.search_stage import unit_vectors
from copymit.evaluation.settings import resolve_embedders
from copymit.evaluation.stages import compute_digest, content_digest, data_digest
from copymit.generator import generate_on, make_generate, sampling_options
from copymit.models.assembly import DiffusionModel, ModelParams
from copymit.scores.similarity import TIE_TOLERANCE
from copymit.scores.tiled import GRID
from copymit.search.exact import search_exact
from copymit.sharding import make_mesh, wait_for_all

logger = logging.getLogger(__name__)

# (networks, step) -> scalars for the metrics.
Monitor = Callable[[ModelParams, int], dict[str, float]]


def make_copy_monitor(
    config: ConfigDict,
    model: DiffusionModel,
    noise_scheduler: NoiseScheduler,
    dataset: Dataset,
    workdir: epath.Path,
) -> Monitor:
    """Returns what measures copying.

    Half of the prompts are captions of duplicated images, as far as there are any. The
    scalars are `online_dataset_similarity` (95th percentile), `online_similarity_mean`,
    `online_prompted_image_hits` and, with duplication, the hits of both kinds;
    `online_copied_share` where there are enough training images to tell. Images of
    latents or pixels that are not finite show nothing of the model: they are left out and
    counted, as `online_num_not_finite`.
    """
    chosen = choose_prompted(
        dataset.duplication.duplicated, config.train.evaluate_prompts
    )
    duplicated = dataset.duplication.duplicated[chosen]
    text = config.model.text_encoder
    tokenizer = make_tokenizer(text.max_length, text.pad_token_id)
    caption = make_captions(config.data, dataset.source, tokenizer, config.seed)
    input_ids = tokenizer.encode(_captions(caption, dataset, chosen, config.seed))
    generate = make_generate(
        model, noise_scheduler, sampling_options(config.eval), tokenizer.encode([""])[0]
    )
    mesh = make_mesh(**config.mesh)
    size = config.data.resolution
    evaluation, choice = resolve_embedders(config.eval, lambda: size)
    if choice:
        logger.info(choice.reason)
    names = deciding(evaluation.embedders)
    if not evaluation.tile_l2_candidates or size < GRID:
        names = names[:1]  # pixels call nothing that was not compared tile by tile
    embedders = [make_embedder(name, config.eval.weights) for name in names]
    images = examples_as_images("references", dataset.source, dataset.indices, size)
    seen = _embed_references(config, embedders, images, workdir)
    references, vectors = seen[0].references, seen[0].vectors
    own = unit_rows(references.rows(chosen))
    copied_share = make_copied_share(seen, images, evaluation)

    def monitor(networks: ModelParams, step: int) -> dict[str, float]:
        made, finite = generate_on(
            mesh, generate, networks, input_ids, np.arange(len(chosen))
        )
        values: dict[str, float] = {}
        if bad := int((~finite).sum()):
            values["online_num_not_finite"] = float(bad)
            if jax.process_index() == 0:
                logger.warning(
                    "step %d: %d of %d images had latents or pixels that are not finite, "
                    "and are in no number of copying",
                    *(step, bad, len(made)),
                )
        if bad == len(made):
            return values
        by_each = [
            unit_rows(embed_arrays(embedder, made[finite], config.eval.batch_size))
            for embedder in embedders
        ]
        features = by_each[0]
        nearest = search_exact(features, vectors, 1).similarities[:, 0]
        hits = np.einsum("qd,qd->q", features, own[finite]) >= nearest - TIE_TOLERANCE
        values |= {
            "online_dataset_similarity": float(np.percentile(nearest, 95)),
            "online_similarity_mean": float(nearest.mean()),
            "online_prompted_image_hits": float(hits.mean()),
        }
        if copied_share:
            values["online_copied_share"] = copied_share(by_each, made[finite])
        for name, of_kind in {
            "duplicated": duplicated,
            "unduplicated": ~duplicated,
        }.items():
            rows = of_kind[finite]
            if duplicated.any() and rows.any():
                values[f"online_prompted_image_hits_{name}"] = float(hits[rows].mean())
        if jax.process_index() == 0:
            logger.info(
                "step %d: dataset similarity %.3f, prompted images hit %.0f %%%s",
                step,
                values["online_dataset_similarity"],
                100 * values["online_prompted_image_hits"],
                f", copies {values['online_copied_share']:.0%}" if copied_share else "",
            )
        return values

    return monitor


def _embed_references(
    config: ConfigDict,
    embedders: Sequence[Embedder],
    images: ImageSet,
    workdir: epath.Path,
) -> list[Embedded]:
    jobs = []
    for embedder in embedders:
        weights = config.eval.weights.get(weights_name(embedder.name), "")
        of = [
            data_digest(config.data),
            images.ids,
            config.data.resolution,
            weights and content_digest(weights),
        ]
        folder = workdir / "eval" / "online" / "embeddings" / embedder.name
        store = EmbeddingStore(folder / "references", compute_digest(of))
        jobs.append(Job(embedder, store))
    embed_all(jobs, images, batch_size=config.eval.batch_size)
    wait_for_all("references of the monitor are embedded")
    seen = []
    for job in jobs:
        references = load_embeddings(job.store)
        vectors = unit_vectors(references, "references")
        seen.append(Embedded(job.embedder.name, job.store, references, vectors))
    return seen


def choose_prompted(duplicated: np.ndarray, count: int) -> np.ndarray:
    """Chooses the first training images, half of them duplicated where there are enough.

    Returns:
      At most `count` rows, in order.
    """
    inside, outside = np.flatnonzero(duplicated), np.flatnonzero(~duplicated)
    half = min(len(inside), max(count // 2, count - len(outside)))
    return np.sort(np.concatenate([inside[:half], outside[: count - half]]))


def _captions(
    caption: CaptionFunction, dataset: Dataset, rows: np.ndarray, seed: int
) -> list[str]:
    return [
        caption(
            dataset.source[int(dataset.indices[i])],
            False,
            draw_generator(seed, int(i), "example"),
        )
        for i in rows
    ]
