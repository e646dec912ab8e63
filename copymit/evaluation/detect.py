"""Detection of memorised prompts: a model and prompts in, a table of detectors out.

Writes `tokens.jsonl`, what each token contributes. A prompt's numbers depend on the
parameters, its text, the settings and its own id alone, so what was interrupted goes on,
and more prompts cost only themselves: finished batches are kept in `detection.parts/`,
under a digest of all settings.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jaxtyping import Bool
from ml_collections import ConfigDict

from copymit.data.tokenizer import Tokenizer, make_tokenizer
from copymit.diffusion.noise_scheduler import make_noise_scheduler
from copymit.evaluation.prompts import Prompt
from copymit.generator import make_trajectory, sampling_options
from copymit.mitigation.detector import (
    DETECTORS,
    Detect,
    DetectionOptions,
    make_detector,
)
from copymit.mitigation.observation import end_positions
from copymit.models.assembly import DiffusionModel, ModelParams, make_model
from copymit.progress import Progress
from copymit.scores.detection import detection_summary
from copymit.scores.similarity import Scores
from copymit.sharding import batch_sharding, make_mesh, wait_for_all
from copymit.storage import write_whole


def detect_prompts(
    config: ConfigDict,
    load_params: Callable[[DiffusionModel, Mesh], ModelParams],
    prompts: Sequence[Prompt],
    out: epath.Path,
    digest: str,
    options: DetectionOptions | None = None,
) -> pd.DataFrame:
    """Measures every prompt that was not measured yet.

    Args:
      config: of the run; the sampler, its seed and the size of batches are those of
        `eval`, the texts `prompt_used` of the prompts.
      load_params: called only if something is missing.
      digest: of what the parameters depend on, as `generate` has it.
      options: how prompts are looked at; seed, guidance and clipping are taken from
        `eval`.
    Returns:
      Columns id, prompt, then `DETECTORS`; one row a prompt, in order.
    Raises:
      ValueError: for no prompts, two of the same id, or settings that cannot be.
    """
    _check_ids(prompts)
    config = config.copy_and_resolve_references()
    unet = config.model.unet
    on_cpu = jax.default_backend() == "cpu"
    if not on_cpu or unet.attention_implementation in ("flash", "cudnn"):
        # The backward pass of a kernel cannot be differentiated.
        unet.attention_implementation = "chunked"
    sampling = sampling_options(config.eval)
    options = (options or DetectionOptions())._replace(
        seed=sampling.seed,
        guidance_scale=sampling.guidance_scale,
        clip_latents=sampling.clip_latents,
    )
    text = config.model.text_encoder
    tokenizer = make_tokenizer(text.max_length, text.pad_token_id)
    parts = out / "detection.parts"
    settings = [digest, options, sampling, config.eval.negative_prompt, text.to_dict()]
    if jax.process_index() == 0:
        _keep_parts_of(parts, _digest(settings))
    wait_for_all("the folder of parts is made")
    parts /= _digest(settings)
    measured = _read_parts(parts)
    missing = [
        prompt
        for prompt in prompts
        if measured.get(prompt.id, {}).get("prompt") != prompt.prompt_used
    ]
    wait_for_all("missing prompts are counted")
    if missing:
        mesh = make_mesh()
        model = make_model(config.model, config.data.resolution, config.train.dtype)
        trajectory = make_trajectory(make_noise_scheduler(**config.diffusion), sampling)
        (negative_ids,) = tokenizer.encode([config.eval.negative_prompt])
        detect = make_detector(model, trajectory, options, negative_ids)
        params = load_params(model, mesh)
        for rows in _measure(
            detect, params, mesh, tokenizer, missing, config.eval.batch_size
        ):
            measured |= rows
            _write_part(parts, rows)
    table = _table_of(prompts, measured)
    if jax.process_index() == 0:
        _write_tokens(out, prompts, measured, tokenizer)
    wait_for_all("tokens are written")
    return table


def summarise(
    table: pd.DataFrame, memorised: Bool[np.ndarray, " Q"], seed: int = 0
) -> dict[str, Scores]:
    """Describes every detector of a table by AUC and TPR at 1 % FPR, with intervals.

    Args:
      table: of `detect_prompts`.
      memorised: the truth about each row.
    Raises:
      ValueError: if all prompts are of one kind, or a detector is not finite.
    """
    return {
        name: detection_summary(table[name].to_numpy(), memorised, seed=seed)
        for name in DETECTORS
        if name in table
    }


def _check_ids(prompts: Sequence[Prompt]) -> None:
    if not prompts:
        raise ValueError("detection: no prompts; set eval.num_generations or a file")
    ids = [prompt.id for prompt in prompts]
    if len(set(ids)) < len(ids):
        twice = next(i for i in ids if ids.count(i) > 1)
        raise ValueError(f"detection: two prompts have the id {twice!r}: number them")


def _digest(settings: Sequence) -> str:
    """Names a folder after everything that numbers depend on besides the prompt."""
    return hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]


def _keep_parts_of(parts: epath.Path, digest: str) -> None:
    """Removes what was measured under other settings."""
    (parts / digest).mkdir(parents=True, exist_ok=True)
    # A bucket knows no empty directories, such as that one may be.
    for other in parts.iterdir() if parts.exists() else ():
        if other.name != digest:
            other.rmtree(missing_ok=True)


def _measure(
    detect: Detect, params, mesh, tokenizer, prompts, batch_size
) -> Iterator[dict[str, dict]]:
    """Yields batches of results by the prompt's id."""
    # Every batch is full: one compilation, and no prompt depends on how many there are.
    devices = mesh.devices.size
    size = -(-batch_size // devices) * devices
    progress = Progress("looked at", len(prompts), unit="prompts")
    for first in range(0, len(prompts), size):
        wanted = prompts[first : first + size]
        batch = [wanted[i % len(wanted)] for i in range(size)]
        input_ids = tokenizer.encode([prompt.prompt_used for prompt in batch])
        prompt_ids = np.array([int(prompt.id) for prompt in batch], np.int32)
        sharding = batch_sharding(mesh)
        inputs = [
            jax.make_array_from_callback(array.shape, sharding, array.__getitem__)
            for array in (input_ids, prompt_ids)
        ]
        with jax.set_mesh(mesh):
            found = detect(params, *inputs)
        found = jax.tree.map(
            np.asarray, multihost_utils.process_allgather(found, tiled=True)
        )
        yield {
            prompt.id: {"prompt": prompt.prompt_used}
            | {name: values[row].tolist() for name, values in found.items()}
            for row, prompt in enumerate(wanted)
        }
        progress.add(len(wanted))


def _read_parts(parts: epath.Path) -> dict[str, dict]:
    measured: dict[str, dict] = {}
    for path in sorted(parts.glob("*.json")):
        measured |= json.loads(path.read_text())
    return measured


def _write_part(parts: epath.Path, rows: dict[str, dict]) -> None:
    if jax.process_index() == 0:
        write_whole(parts / f"{next(iter(rows))}.json", json.dumps(rows).encode())


def _table_of(prompts: Sequence[Prompt], measured: dict[str, dict]) -> pd.DataFrame:
    columns = {
        name: np.array([measured[p.id][name] for p in prompts]) for name in DETECTORS
    }
    about = {"id": [p.id for p in prompts], "prompt": [p.prompt_used for p in prompts]}
    return pd.DataFrame(about | columns)


def _write_tokens(
    out: epath.Path,
    prompts: Sequence[Prompt],
    measured: dict[str, dict],
    tokenizer: Tokenizer,
) -> None:
    lines = []
    for prompt in prompts:
        ids = tokenizer.encode([prompt.prompt_used])
        # From the first token after the start to the end token, without padding.
        inner = slice(1, int(end_positions(jnp.asarray(ids))[0]) + 1)
        tokens = [tokenizer.decode([token]) for token in ids[0][inner]]
        line = {
            "id": prompt.id,
            "prompt": prompt.prompt_used,
            "tokens": [*tokens[:-1], "<end>"],
            "attribution": measured[prompt.id]["token_attribution"][inner],
        }
        lines.append(json.dumps(line, ensure_ascii=False))
    write_whole(out / "tokens.jsonl", ("\n".join(lines) + "\n").encode())
