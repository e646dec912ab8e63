"""What a training refuses before it begins."""

import logging

from jax.sharding import Mesh
from ml_collections import ConfigDict

from copymit.wandb_run import check_wandb

logger = logging.getLogger(__name__)


def check_settings(config: ConfigDict, mesh: Mesh) -> None:
    """Refuses values of the `train` section that would fail only after a while."""
    for name in (
        "steps",
        "batch_size",
        "accumulate_steps",
        "log_every_steps",
        "checkpoint_every_steps",
        "keep_checkpoints",
    ):
        if config[name] < 1:
            raise ValueError(f"train.{name}={config[name]} must be at least 1")
    for name in ("sample_every_steps", "evaluate_every_steps", "profile_steps"):
        if config[name] < 0:
            raise ValueError(
                f"train.{name}={config[name]} must be at least 1, or 0 for never"
            )
    for name in ("epochs", "evaluate_every_epochs"):
        if config[name] < 0:
            raise ValueError(
                f"train.{name}={config[name]} must be above 0, or 0 for steps to say it"
            )
    bound = config.stop_above_copied_share
    if not 0 <= bound <= 1:
        raise ValueError(
            f"train.stop_above_copied_share={bound} must be in [0, 1]; 1 is for never"
        )
    if bound < 1 and not (config.evaluate_every_steps or config.evaluate_every_epochs):
        raise ValueError(
            f"train.stop_above_copied_share={bound} is of what is measured while training:"
            " set train.evaluate_every_steps or evaluate_every_epochs"
        )
    for name in ("noise_offset", "input_perturbation", "lora_rank"):
        if config[name] < 0:
            raise ValueError(
                f"train.{name}={config[name]} must be above 0, or 0 for none"
            )
    check_wandb(config.wandb_project)
    if config.learning_rate_power <= 0:
        raise ValueError(
            f"train.learning_rate_power={config.learning_rate_power} must be above 0"
        )
    if config.evaluate_prompts < 1:
        raise ValueError(
            f"train.evaluate_prompts={config.evaluate_prompts} must be at least 1"
        )
    if config.hang_timeout_seconds < 0:
        raise ValueError(
            f"train.hang_timeout_seconds={config.hang_timeout_seconds} must be above 0, "
            "or 0 to wait for ever"
        )
    if config.min_snr_gamma < 0:
        raise ValueError(
            f"train.min_snr_gamma={config.min_snr_gamma} must be above 0, usually 5, or 0 "
            "for no weights"
        )
    if config.dtype not in ("float32", "bfloat16"):
        raise ValueError(
            f"train.dtype={config.dtype!r} is not known: use float32 or bfloat16"
        )
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    if config.batch_size % shards:
        raise ValueError(
            f"train.batch_size={config.batch_size} does not divide among the {shards} "
            "devices of mesh.data and mesh.fsdp: make it a multiple"
        )
    parts = config.accumulate_steps
    if config.batch_size % (shards * parts):
        raise ValueError(
            f"train.batch_size={config.batch_size} in train.accumulate_steps={parts} "
            f"parts does not divide among the {shards} devices of mesh.data and "
            f"mesh.fsdp: make it a multiple of {shards * parts}"
        )


def warn_of_whole_heads(unet: ConfigDict, mesh: Mesh) -> None:
    """Warns if attention's heads do not divide among the devices of `mesh.tensor`.

    Their kernels do, in the middle of a head, and are put together again at every layer.
    """
    tensor, heads = mesh.shape["tensor"], unet.num_attention_heads
    if isinstance(heads, int):
        heads = (heads,) * len(unet.cross_attention)
    crossed = [n for n, used in zip(heads, unet.cross_attention, strict=False) if used]
    if whole := [n for n in crossed if n % tensor]:
        logger.warning(
            "mesh.tensor=%d does not divide %s attention heads: these levels send their "
            "queries, keys and values among devices. Use mesh.fsdp, or a divisor",
            tensor,
            ", ".join(map(str, whole)),
        )
