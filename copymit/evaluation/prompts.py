"""What is generated: one prompt an image, from training captions, a file, or both."""

import json
from typing import NamedTuple

import numpy as np
from etils import epath
from jaxtyping import Int
from ml_collections import ConfigDict

from copymit.data.dataset import Dataset, make_captions
from copymit.data.schedule import draw_generator
from copymit.data.texts import decode_text, split_lines
from copymit.data.tokenizer import Tokenizer
from copymit.mitigation.sampling import generation_rewrite

CAPTIONS = ("each", "random", "heldout")
CHOICES = (*CAPTIONS, "file", *(f"file+{name}" for name in CAPTIONS))


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
    the held-out images in turn; `file` the prompts of a file in turn. With `file+each`
    (or another) the file's come first, once each, and the captions fill the rest.

    Raises:
      ValueError: for no generations, no held-out images, or an unknown choice.
      FileNotFoundError: if there is no such file.
    """
    settings = config.eval
    count = int(settings.num_generations)
    if count < 1:
        raise ValueError(
            f"eval.num_generations={count}: nothing to evaluate; ask for at least 1"
        )
    if settings.prompts not in CHOICES:
        raise ValueError(
            f"eval.prompts={settings.prompts!r} is not known: use one of "
            f"{', '.join(CHOICES)}"
        )
    texts: list[tuple[str, str | None]] = []
    if settings.prompts.startswith("file"):
        given = read_prompts(settings.prompts_file)
        repeats = 1 if "+" in settings.prompts else -(-count // len(given))
        texts = [(text, None) for text in (given * repeats)[:count]]
    if settings.prompts != "file":
        which = settings.prompts.removeprefix("file+")
        numbers = np.arange(len(texts), count)
        texts += _from_captions(config, dataset, tokenizer, which, numbers)
    rewrite = generation_rewrite(config.mitigation.generate, tokenizer.decode)
    return [
        Prompt(
            f"{number:06d}",
            text,
            rewrite(text, np.random.default_rng([settings.seed, number, 0x3A1F])),
            settings.seed,
            settings.guidance_scale,
            example_id,
        )
        for number, (text, example_id) in enumerate(texts)
    ]


def _from_captions(
    config: ConfigDict,
    dataset: Dataset,
    tokenizer: Tokenizer,
    which: str,
    numbers: Int[np.ndarray, " G"],
) -> list[tuple[str, str | None]]:
    """Returns (caption, id of the image that it names) for the generations `numbers`."""
    seed = config.eval.seed
    pool = dataset.heldout if which == "heldout" else dataset.indices
    if not len(pool):
        raise ValueError("eval.prompts='heldout' needs data.num_heldout above 0")
    if which == "random":
        rng = np.random.default_rng([seed, 0x9207])
        chosen = rng.choice(pool, size=int(numbers.max(initial=-1)) + 1)[numbers]
    else:
        chosen = pool[numbers % len(pool)]
    # What a user would type: the style's own caption, never a varied one.
    plain = config.data.copy_and_resolve_references()
    plain.duplication = "none"
    caption = make_captions(plain, dataset.source, tokenizer, config.seed)
    names_one_image = config.data.caption_style in ("instance", "random")
    texts: list[tuple[str, str | None]] = []
    for number, index in zip(numbers, chosen, strict=True):
        example = dataset.source[int(index)]
        text = caption(example, False, draw_generator(seed, int(number), "example"))
        texts.append((text, example.example_id if names_one_image else None))
    return texts


def read_prompts(path: epath.PathLike, setting: str = "eval.prompts_file") -> list[str]:
    """Reads prompts: one a line, or of JSON lines the value of `prompt` or `caption`.

    Empty lines are left out.

    Args:
      path: JSON lines if it ends in `.jsonl`.
      setting: that holds the path, for errors.
    Raises:
      FileNotFoundError, ValueError: for a missing or empty file, or a line that is not
        what it should be; names it.
    """
    if not path:
        raise ValueError("eval.prompts='file' needs a file: set eval.prompts_file")
    path = epath.Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{setting}={str(path)!r} does not exist")
    lines = split_lines(decode_text(path.read_bytes(), str(path)))
    rows = [(i, line.strip()) for i, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise ValueError(f"{path} holds no prompt: write one a line")
    if path.suffix != ".jsonl":
        return [line for _, line in rows]
    return [_read_json_prompt(path, i, line) for i, line in rows]


def _read_json_prompt(path: epath.Path, number: int, line: str) -> str:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {number} is not JSON: {error}") from error
    text = None
    if isinstance(record, dict):
        text = record.get("prompt", record.get("caption"))
    if not isinstance(text, str):
        raise ValueError(
            f'{path}, line {number} needs an object with the text "prompt" (or "caption")'
        )
    return text
