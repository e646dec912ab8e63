"""Pictures while a model trains: the same captions and noise at every visit."""

from collections.abc import Callable

import jax
import numpy as np
from etils import epath
from jaxtyping import UInt8
from ml_collections import ConfigDict
from PIL import Image

from copymit.data.dataset import Dataset, make_captions
from copymit.data.schedule import draw_generator
from copymit.data.tokenizer import make_tokenizer
from copymit.diffusion.noise_scheduler import NoiseScheduler
from copymit.generator import make_generate, sampling_options
from copymit.models.assembly import DiffusionModel, ModelParams

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

    The grid shows the first captions of the training set, duplicated images first, and
    goes to `samples/STEP.png` in the working directory.
    """
    if not config.train.sample_every_steps:
        return None
    text = config.model.text_encoder
    tokenizer = make_tokenizer(text.max_length, text.pad_token_id)
    caption = make_captions(config.data, dataset.source, tokenizer, config.seed)
    order = np.argsort(~dataset.duplication.duplicated, kind="stable")
    shown = order[: _ROWS * _COLUMNS]
    texts = [
        caption(
            dataset.source[int(dataset.indices[i])],
            False,
            draw_generator(config.seed, int(i), "example"),
        )
        for i in shown
    ]
    input_ids = tokenizer.encode(texts)
    generate = make_generate(
        model, noise_scheduler, sampling_options(config.eval), tokenizer.encode([""])[0]
    )

    def preview(networks: ModelParams, step: int) -> UInt8[np.ndarray, "H W 3"]:
        images = np.asarray(generate(networks, input_ids, np.arange(len(shown))).images)
        grid = tile(images, _COLUMNS)
        if jax.process_index() == 0:
            (workdir / "samples").mkdir(exist_ok=True)
            with (workdir / "samples" / f"{step:08d}.png").open("wb") as file:
                Image.fromarray(grid).save(file, "PNG")
        return grid

    return preview


def tile(images: UInt8[np.ndarray, "B H W 3"], columns: int) -> np.ndarray:
    """Lays images out in rows, filling the last one with white."""
    B, H, W, C = images.shape
    rows = -(-B // columns)
    padded = np.full((rows * columns, H, W, C), 255, np.uint8)
    padded[:B] = images
    grid = padded.reshape(rows, columns, H, W, C).transpose(0, 2, 1, 3, 4)
    return grid.reshape(rows * H, columns * W, C)
