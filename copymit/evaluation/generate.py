"""The generate stage: a trained run and prompts in, one PNG per prompt out.

Writes `prompts.jsonl` first, then `reconstructions/NUMBER.png` of some training images and
`generations/ID.png`, and beside these folders a note of the settings,
`generations.digest`, and `timings.json`. An image depends only on the
checkpoint, its prompt, the seed and its own number, so a stage that was interrupted
makes what is missing, and any batch size gives the same pictures.
"""

import functools
import json
import logging
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict

from copymit.data.dataset import Dataset
from copymit.data.tokenizer import Tokenizer, make_tokenizer
from copymit.diffusion.noise_scheduler import make_noise_scheduler
from copymit.evaluation.batch_size import device_memory_limit, fit_batch_size
from copymit.evaluation.calibration import calibrate, calibration_prompts
from copymit.evaluation.notes import write_notes
from copymit.evaluation.pictures import local_rows, write_png
from copymit.evaluation.prompts import Prompt, make_prompts
from copymit.evaluation.reconstruct import (
    RECONSTRUCTIONS,
    missing_reconstructions,
    reconstruct,
)
from copymit.evaluation.references import encode_references
from copymit.generator import Generate, Generated, make_generate, sampling_options
from copymit.mitigation.references import References
from copymit.mitigation.registry import needed
from copymit.mitigation.sampling import asked_quantiles
from copymit.models.assembly import (
    DiffusionModel,
    ModelParams,
    for_inference,
    make_model,
)
from copymit.progress import Progress
from copymit.sharding import batch_sharding, make_mesh, wait_for_all
from copymit.storage import write_whole

logger = logging.getLogger(__name__)


def generate(
    config: ConfigDict,
    dataset: Dataset,
    load_params: Callable[[DiffusionModel, Mesh], ModelParams],
    out: epath.Path,
    digest: str,
) -> None:
    """Generates every image of the `eval` section that is not there yet.

    Args:
      load_params: called only if something is missing.
      digest: of everything that an image depends on; images of another are removed.
    Raises:
      ValueError: for settings that cannot be; nothing was removed then.
    """
    text = config.model.text_encoder
    tokenizer = make_tokenizer(text.max_length, text.pad_token_id)
    prompts = make_prompts(config, dataset, tokenizer)
    mesh = make_mesh()
    model = make_model(config.model, config.data.resolution, config.train.dtype)
    options = sampling_options(config.eval, config.mitigation.generate)
    noise_scheduler = make_noise_scheduler(**config.diffusion)
    (negative_ids,) = tokenizer.encode([config.eval.negative_prompt])
    make_images = make_generate(model, noise_scheduler, options, negative_ids)
    others = (
        calibration_prompts(config, dataset, tokenizer)
        if asked_quantiles(options.mitigations)
        else []
    )
    cut = {p.prompt_used: None for p in prompts if tokenizer.truncated(p.prompt_used)}
    if cut:
        more = f", and {len(cut) - 1} others" if len(cut) > 1 else ""
        logger.warning(
            "prompt is cut to %d tokens: %r%s", text.max_length, next(iter(cut)), more
        )
    folder = out / "generations"
    if jax.process_index() == 0:
        lines = [json.dumps(prompt._asdict(), ensure_ascii=False) for prompt in prompts]
        _keep_generations_of(folder, digest, "\n".join(lines) + "\n")
    wait_for_all("prompts are written")
    missing = [
        i for i, p in enumerate(prompts) if not (folder / f"{p.id}.png").exists()
    ]
    unmade = missing_reconstructions(config, dataset, out / RECONSTRUCTIONS)
    wait_for_all("missing images are counted")
    if not missing:
        return
    params = jax.jit(for_inference, static_argnums=1, donate_argnums=0)(
        load_params(model, mesh), config.train.dtype
    )
    # Before the generations: where all of these are, so are the reconstructions.
    reconstruct(config, dataset, unmade, model, params, mesh, out / RECONSTRUCTIONS)
    if others:
        common = model, noise_scheduler, tokenizer, negative_ids
        options = calibrate(options, others, *common, params, mesh)
        make_images = make_generate(model, noise_scheduler, options, negative_ids)
    if needed("generate", config.mitigation.generate, "training images"):
        references = encode_references(config, dataset, model, params, mesh)
    else:
        references = None
    size, make = _fit(make_images, params, references, mesh, config)
    seconds = _fill(folder, prompts, missing, make, tokenizer, mesh, size)
    if seconds is not None and jax.process_index() == 0:
        write_whole(
            out / "timings.json",
            json.dumps({"seconds_per_image": seconds}).encode(),
        )


def _fit(
    make_images: Generate,
    params: ModelParams,
    references: References | None,
    mesh: Mesh,
    config: ConfigDict,
) -> tuple[int, Callable[..., Generated]]:
    """Returns how many images fit at a time, and (input_ids, image_ids) -> images."""
    devices = mesh.devices.size
    size = -(-config.eval.batch_size // devices) * devices
    keywords = {"references": references} if references is not None else {}
    limit = device_memory_limit()
    if limit is None:
        return size, functools.partial(make_images, params, **keywords)

    def compile_for(size: int):
        inputs = [
            jax.ShapeDtypeStruct(shape, np.int32, sharding=batch_sharding(mesh))
            for shape in ((size, config.model.text_encoder.max_length), (size,))
        ]
        with jax.set_mesh(mesh):
            return make_images.lower(params, *inputs, **keywords).compile()  # type: ignore[attr-defined]

    size, compiled = fit_batch_size(compile_for, size, devices, limit)
    return size, functools.partial(compiled, params, **keywords)


def _fill(
    folder: epath.Path,
    prompts: Sequence[Prompt],
    missing: Sequence[int],
    make_images: Callable[..., Generated],
    tokenizer: Tokenizer,
    mesh: Mesh,
    size: int,
) -> float | None:
    """Writes the images that are missing.

    Args:
      size: of a batch.
    Returns:
      Seconds an image, without the first batch, which compiles; None if that was all.
    """
    # Every batch is full: one compilation, and no image depends on how many there are.
    sharding = batch_sharding(mesh)
    progress = Progress("generated", len(missing))
    batches: list[float] = []
    for first in range(0, len(missing), size):
        batch_started = time.perf_counter()
        numbers = np.resize(missing[first : first + size], size)
        input_ids = tokenizer.encode([prompts[i].prompt_used for i in numbers])
        inputs = [
            jax.make_array_from_callback(array.shape, sharding, array.__getitem__)
            for array in (input_ids, numbers.astype(np.int32))
        ]
        with jax.set_mesh(mesh):
            made = jax.block_until_ready(make_images(*inputs))
        batches.append(time.perf_counter() - batch_started)
        # The last batch was filled up with repetitions, which are dropped here.
        wanted = missing[first : first + size]
        steps, finite = multihost_utils.process_allgather(
            (made.steps, made.finite), tiled=True
        )
        for row, image in local_rows(made.images):
            if row < len(wanted):
                own = {name: int(x[row]) for name, x in steps.items()}
                notes = write_notes(own, bool(finite[row]))
                write_png(folder / f"{prompts[wanted[row]].id}.png", image, notes)
        if bad := [
            prompts[i].id for i, ok in zip(wanted, finite, strict=False) if not ok
        ]:
            logger.warning("latents or pixels are not finite: %s", ", ".join(bad))
        progress.add(len(wanted))
    return float(np.median(batches[1:])) / size if len(batches) > 1 else None


def _keep_generations_of(folder: epath.Path, digest: str, prompts: str) -> None:
    """Removes generations of other settings; those of an interrupted stage stay.

    Where the marker is, prompts and pictures are of its digest: it goes first and comes
    last.
    """
    out = folder.parent
    marker = out / "generations.digest"
    if not (marker.exists() and marker.read_text() == digest):
        marker.unlink(missing_ok=True)
        for name in ("timings.json", "scores.json"):
            (out / name).unlink(missing_ok=True)
        for made in (folder, out / RECONSTRUCTIONS):
            made.rmtree(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(out / "prompts.jsonl", prompts.encode())
    write_whole(marker, digest.encode())
