"""The generate stage: a trained run and prompts in, one PNG per prompt out.

Writes `prompts.jsonl` first and then `generations/ID.png`, and beside that folder a note
of the settings, `generations.digest`. An image depends only on the
checkpoint, its prompt, the seed and its own number, so a stage that was interrupted
makes what is missing, and any batch size gives the same pictures.
"""

import json
import logging
import os
import time
from typing import NamedTuple

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict
from PIL import Image

from copymit.checkpoint import open_checkpoints, restore_checkpoint
from copymit.data.dataset import Dataset, make_captions
from copymit.data.schedule import draw_generator
from copymit.data.tokenizer import Tokenizer, make_tokenizer
from copymit.diffusion.noise_scheduler import make_noise_scheduler
from copymit.generator import make_generate, sampling_options
from copymit.metrics import format_duration
from copymit.models.assembly import DiffusionModel, ModelParams, make_model
from copymit.sharding import batch_sharding, make_mesh, params_sharding

logger = logging.getLogger(__name__)


class Prompt(NamedTuple):
    """One image to generate.

    Attributes:
      id: number of the image, six digits; also the name of its file.
      prompt: as given.
      prompt_used: after mitigations.
      seed: fixes, with the number, the initial noise.
      guidance_scale: of classifier-free guidance.
      example_id: the training or held-out image whose own caption this is, or None if
        the caption is not about one image.
    """

    id: str
    prompt: str
    prompt_used: str
    seed: int
    guidance_scale: float
    example_id: str | None


def make_prompts(
    config: ConfigDict, dataset: Dataset, tokenizer: Tokenizer
) -> list[Prompt]:
    """Lists the prompts that the `eval` section asks for, in order.

    `each` prompts every training image equally often, in turn; `random` draws training
    images with replacement, as the original code did; `heldout` takes the captions of
    the held-out images in turn.

    Raises:
      ValueError: for no generations, no held-out images, or an unknown choice.
    """
    settings = config.eval
    if settings.num_generations < 1:
        raise ValueError(
            f"eval.num_generations={settings.num_generations}: nothing to evaluate; "
            "ask for at least 1"
        )
    pool = dataset.heldout if settings.prompts == "heldout" else dataset.indices
    if not len(pool):
        raise ValueError("eval.prompts='heldout' needs data.num_heldout above 0")
    numbers = np.arange(settings.num_generations)
    if settings.prompts in ("each", "heldout"):
        chosen = pool[numbers % len(pool)]
    elif settings.prompts == "random":
        rng = np.random.default_rng([settings.seed, 0x9207])
        chosen = rng.choice(pool, size=len(numbers))
    else:
        raise ValueError(
            f"eval.prompts={settings.prompts!r} is not known: use each, random or heldout"
        )
    # What a user would type: the style's own caption, never a varied one.
    plain = config.data.copy_and_resolve_references()
    plain.duplication = "none"
    caption = make_captions(plain, dataset.source, tokenizer, config.seed)
    names_one_image = config.data.caption_style in ("instance", "random")
    prompts = []
    for number, index in zip(numbers, chosen, strict=True):
        example = dataset.source[int(index)]
        rng = draw_generator(settings.seed, int(number), "example")
        text = caption(example, False, rng)
        prompts.append(
            Prompt(
                f"{number:06d}",
                text,
                text,
                settings.seed,
                settings.guidance_scale,
                example.example_id if names_one_image else None,
            )
        )
    return prompts


def generate(
    config: ConfigDict,
    workdir: epath.Path,
    step: int,
    dataset: Dataset,
    out: epath.Path,
    digest: str,
) -> None:
    """Generates every image of the `eval` section that is not there yet.

    Args:
      digest: of everything that an image depends on; images of another are removed.
    Raises:
      ValueError: for settings that cannot be; nothing was removed then.
    """
    text = config.model.text_encoder
    tokenizer = make_tokenizer(text.max_length, text.pad_token_id)
    prompts = make_prompts(config, dataset, tokenizer)
    mesh = make_mesh()
    model = make_model(config.model, config.data.resolution, config.train.dtype)
    make_images = make_generate(
        model,
        make_noise_scheduler(**config.diffusion),
        sampling_options(config.eval),
        tokenizer.encode([""])[0],
    )
    for prompt in prompts:
        if tokenizer.truncated(prompt.prompt_used):
            logger.warning("prompt is cut to %d tokens: %r", text.max_length, prompt[2])
    folder = out / "generations"
    _keep_generations_of(folder, digest)
    lines = [json.dumps(prompt._asdict(), ensure_ascii=False) for prompt in prompts]
    (out / "prompts.jsonl").write_text("\n".join(lines) + "\n")
    missing = [
        i for i, p in enumerate(prompts) if not (folder / f"{p.id}.png").exists()
    ]
    if not missing:
        return
    params = load_params(config, model, workdir, step, mesh)
    # Every batch is full: one compilation, and no image depends on how many there are.
    devices = mesh.devices.size
    size = -(-config.eval.batch_size // devices) * devices
    started = time.perf_counter()
    for first in range(0, len(missing), size):
        numbers = np.resize(missing[first : first + size], size)
        input_ids = tokenizer.encode([prompts[i].prompt_used for i in numbers])
        inputs = (input_ids, numbers.astype(np.int32))
        images = make_images(params, *jax.device_put(inputs, batch_sharding(mesh)))
        # The last batch was filled up with repetitions, which are dropped here.
        for i, image in zip(missing[first : first + size], np.asarray(images)):  # noqa: B905
            _write_png(folder / f"{prompts[i].id}.png", image)
        done = min(first + size, len(missing))
        rate = done / (time.perf_counter() - started)
        logger.info(
            "generated %d/%d  %.1f images/s  ETA %s",
            done,
            len(missing),
            rate,
            format_duration((len(missing) - done) / rate),
        )


def load_params(
    config: ConfigDict, model: DiffusionModel, workdir: epath.Path, step: int, mesh
) -> ModelParams:
    """Loads the moving average of a run if it keeps one, else its parameters."""
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    abstract = {
        name: {
            key: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding[key])
            for key, x in network.items()
        }
        for name, network in shapes.items()
        for sharding in [params_sharding(network, mesh)]
    }
    items = {"params": abstract}
    if config.eval.use_ema and config.train.ema_decay:
        trained = dict(abstract)
        if not config.model.text_encoder.train:
            del trained["text_encoder"]
        items["ema"] = trained
    with open_checkpoints(workdir, read_only=True) as checkpoints:
        restored = restore_checkpoint(checkpoints, step, items)
    return {**restored["params"], **restored.get("ema", {})}


def _keep_generations_of(folder: epath.Path, digest: str) -> None:
    """Removes generations of other settings; those of an interrupted stage stay."""
    marker = folder.parent / "generations.digest"
    if marker.exists() and marker.read_text() == digest:
        folder.mkdir(exist_ok=True)
        return
    if folder.exists():
        folder.rmtree()
    folder.mkdir(parents=True)
    marker.write_text(digest)


def _write_png(path: epath.Path, image: np.ndarray) -> None:
    # A kill must not leave half a picture under the final name.
    partial = path.with_suffix(f".{os.getpid()}.partial")
    with partial.open("wb") as file:
        Image.fromarray(image).save(file, "PNG")
    partial.replace(path)
