"""Pictures while a model trains: the same captions and noise at every visit."""

import io
import logging
from collections.abc import Callable

import jax
import numpy as np
from etils import epath
from jaxtyping import UInt8
from ml_collections import ConfigDict
from PIL import Image

from copymit.data.dataset import Dataset, make_captions
from copymit.data.schedule import draw_generator
from copymit.data.tokenizer import Tokenizer, make_tokenizer
from copymit.diffusion.noise_scheduler import NoiseScheduler
from copymit.generator import generate_on, make_generate, sampling_options
from copymit.models.assembly import DiffusionModel, ModelParams
from copymit.sharding import make_mesh
from copymit.storage import write_whole

logger = logging.getLogger(__name__)

_ROWS, _COLUMNS = 4, 8

Preview = Callable[[ModelParams, int], UInt8[np.ndarray, "H W 3"]]


def make_preview(
    config: ConfigDict,
    model: DiffusionModel,
    noise_scheduler: NoiseScheduler,
    dataset: Dataset,
    workdir: epath.Path,
) -> Preview | None:
    """Returns a function that writes and returns a grid of generations, or None.

    The grid shows `train.preview_prompts`, or the first captions of the training set,
    duplicated images first, and goes to `samples/STEP.png` in the working directory.
    """
    if not config.train.sample_every_steps:
        return None
    encoder = config.model.text_encoder
    tokenizer = make_tokenizer(encoder.max_length, encoder.pad_token_id)
    texts = list(config.train.preview_prompts) or _captions(config, dataset, tokenizer)
    for text in texts:
        if tokenizer.truncated(text):
            logger.warning("prompt is cut to %d tokens: %r", encoder.max_length, text)
    mesh = make_mesh(**config.mesh)
    input_ids = tokenizer.encode(texts)
    generate = make_generate(
        model, noise_scheduler, sampling_options(config.eval), tokenizer.encode([""])[0]
    )

    def preview(networks: ModelParams, step: int) -> UInt8[np.ndarray, "H W 3"]:
        numbers = np.arange(len(texts))
        images, _ = generate_on(mesh, generate, networks, input_ids, numbers)
        grid = tile(images, _COLUMNS)
        if jax.process_index() == 0:
            (workdir / "samples").mkdir(exist_ok=True)
            file = io.BytesIO()
            Image.fromarray(grid).save(file, "PNG")
            write_whole(workdir / "samples" / f"{step:08d}.png", file.getvalue())
        return grid

    return preview


def _captions(config: ConfigDict, dataset: Dataset, tokenizer: Tokenizer) -> list[str]:
    caption = make_captions(config.data, dataset.source, tokenizer, config.seed)
    order = np.argsort(~dataset.duplication.duplicated, kind="stable")
    return [
        caption(
            dataset.source[int(dataset.indices[i])],
            False,
            draw_generator(config.seed, int(i), "example"),
        )
        for i in order[: _ROWS * _COLUMNS]
    ]


def tile(images: UInt8[np.ndarray, "B H W 3"], columns: int) -> np.ndarray:
    """Lays images out in rows, filling the last one with white."""
    B, H, W, C = images.shape
    rows = -(-B // columns)
    padded = np.full((rows * columns, H, W, C), 255, np.uint8)
    padded[:B] = images
    grid = padded.reshape(rows, columns, H, W, C).transpose(0, 2, 1, 3, 4)
    return grid.reshape(rows * H, columns * W, C)
