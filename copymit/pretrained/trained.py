"""A run that copymit trained: its parameters, and as a folder that diffusers loads."""

from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from copymit.checkpoint import open_checkpoints, restore_checkpoint
from copymit.config import read_config
from copymit.diffusion.scheduler_config import scheduler_config
from copymit.models.assembly import (
    DiffusionModel,
    ModelParams,
    abstract_networks,
    make_model,
    text_to_latents_configs,
    trained_and_frozen,
)
from copymit.models.autoencoder_kl import AutoencoderKLConfig
from copymit.models.autoencoder_tiny import AutoencoderTinyConfig
from copymit.models.lora import assemble
from copymit.pretrained.components import NetworkConfig
from copymit.pretrained.save import Network, save_lora, save_pipeline
from copymit.sharding import make_mesh


def saved_step(workdir: epath.PathLike, step: int | None = None) -> int:
    """Finds a checkpoint of a working directory, by default the newest.

    Raises:
      ValueError: if there is none, or not that one; names those that there are.
    """
    workdir = epath.Path(workdir)
    steps: list[int] = []
    if (workdir / "checkpoints").exists():
        with open_checkpoints(workdir, read_only=True) as checkpoints:
            steps = sorted(checkpoints.all_steps())
    if not steps:
        raise ValueError(f"{workdir} holds no checkpoint yet: train first (train.py)")
    if step is not None and step not in steps:
        raise ValueError(
            f"{workdir} holds no checkpoint of step {step}, only of "
            f"{', '.join(map(str, steps))} (train.keep_checkpoints says how many stay)"
        )
    return steps[-1] if step is None else step


def load_trained(
    config: ConfigDict,
    workdir: epath.PathLike,
    step: int,
    model: DiffusionModel,
    mesh: Mesh,
) -> ModelParams:
    """Loads the moving average of a run if it keeps one, else its parameters."""
    return assemble(*_load(config, workdir, step, model, mesh))


def _load(config, workdir, step, model, mesh) -> tuple[ModelParams, ModelParams]:
    """Loads what trained, and what did not."""
    trained, frozen = (
        abstract_networks(networks, mesh)
        for networks in trained_and_frozen(model, config)
    )
    items = {"params": trained, "frozen": frozen}
    if config.eval.use_ema and config.train.ema_decay:
        items["ema"] = trained
    with open_checkpoints(workdir, read_only=True) as checkpoints:
        restored = restore_checkpoint(checkpoints, step, items)
    return restored.get("ema", restored["params"]), restored["frozen"]


def export_lora(
    workdir: epath.PathLike,
    folder: epath.PathLike,
    *,
    step: int | None = None,
    dtype: str = "float32",
) -> None:
    """Writes what a run with LoRA trained for diffusers' `load_lora_weights`.

    Args:
      folder, step, dtype: as of `export_trained`.
    Raises:
      FileNotFoundError, ValueError: if there is no run, or it trained whole layers.
    """
    workdir = epath.Path(workdir)
    config = read_config(workdir)
    if not config.train.get("lora_rank", 0):
        raise ValueError(
            f"{workdir} was trained with train.lora_rank=0: it has no LoRA, export the "
            "whole model"
        )
    model = make_model(config.model, config.data.resolution, "float32")
    step = saved_step(workdir, step)
    factors, _ = _load(config, workdir, step, model, make_mesh())
    save_lora(folder, factors, dtype=dtype)


def export_trained(
    workdir: epath.PathLike,
    folder: epath.PathLike,
    *,
    step: int | None = None,
    dtype: str = "float32",
) -> None:
    """Writes a run as a folder for diffusers' `StableDiffusionPipeline.from_pretrained`.

    Args:
      folder: a new or empty one, on disk or in a bucket.
      step: of the checkpoint; None takes the newest.
      dtype: of the weights in the files.
    Raises:
      FileNotFoundError, ValueError: if there is no run, or its autoencoder is a fixed
        transform, which diffusers does not have.
    """
    workdir = epath.Path(workdir)
    config = read_config(workdir)
    resolution = config.data.resolution
    vae = config.model.autoencoder
    configs: dict[str, NetworkConfig] = {}
    if vae.name == "kl":
        configs["vae"] = AutoencoderKLConfig(**vae.kl)
    elif vae.name == "tiny":
        configs["vae"] = AutoencoderTinyConfig(**vae.tiny)
    else:
        raise ValueError(
            f"{workdir} was trained with model.autoencoder.name={vae.name!r}, which "
            "diffusers does not have: only runs with kl or tiny can be exported"
        )
    unet, text_encoder = text_to_latents_configs(config.model, resolution)
    configs |= {"unet": unet, "text_encoder": text_encoder}
    model = make_model(config.model, resolution, "float32")
    step = saved_step(workdir, step)
    params = load_trained(config, workdir, step, model, make_mesh())
    save_pipeline(
        folder,
        [Network(name, configs[name], params[name]) for name in configs],
        scheduler_config(config.diffusion.to_dict(), config.eval.sampler),
        pad_token_id=config.model.text_encoder.pad_token_id,
        max_length=config.model.text_encoder.max_length,
        dtype=dtype,
    )
