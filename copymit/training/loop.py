"""The training run: config and working directory in, checkpoints and metrics out."""

import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable, Sequence
from typing import Any, cast

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from copymit.checkpoint import closing_checkpoints, open_checkpoints
from copymit.config import cache_folder, claim_workdir, flatten
from copymit.data.dataset import (
    Dataset,
    claim_examples,
    describe_truncated,
    load_dataset,
    make_captions,
)
from copymit.data.pipeline import Batch, Draws, iterate_batches, load_images
from copymit.data.schedule import make_schedule
from copymit.data.tokenizer import make_tokenizer
from copymit.diffusion.noise_scheduler import make_noise_scheduler
from copymit.interrupts import SIGNALS, Stop, deferred
from copymit.metrics import MetricWriter, Progress, device_memory_gib, read_metrics
from copymit.mitigation.record import Words
from copymit.mitigation.registry import (
    check_captions_vary,
    mitigation_settings,
    with_mitigations,
)
from copymit.mitigation.training import training_caption
from copymit.models.assembly import DiffusionModel, make_model
from copymit.pretrained.settings import load_networks, with_pretrained_settings
from copymit.settings import training_settings
from copymit.sharding import batch_sharding, make_mesh
from copymit.training.cache import (
    cache_embeddings,
    cache_moments,
    embeddings_pay,
    every_caption,
)
from copymit.training.checks import check_settings, warn_of_whole_heads
from copymit.training.compilation import (
    abstract_batch,
    compile_step,
    seconds_at_peak,
)
from copymit.training.copy_bound import CopyBound
from copymit.training.fitting import fit_to_data
from copymit.training.preview import make_preview
from copymit.training.profile import Profile
from copymit.training.saved import (
    keep_frozen,
    make_networks,
    restore_state,
    save_state,
)
from copymit.training.state import (
    TrainState,
    abstract_state,
    init_state,
    make_optimizer,
)
from copymit.training.step import make_train_step, seed_key, without_unused
from copymit.training.watch import HangWatch

logger = logging.getLogger(__name__)


class NonFiniteLossError(FloatingPointError):
    """The loss, the gradient or the parameters became NaN or infinite."""


class Preempted(SystemExit):
    """The run was told to stop and has saved a checkpoint; exit code 128 + signal."""


# (config, model, noise scheduler, dataset, workdir) -> what measures the networks every
# `train.evaluate_every_steps`, if that is not 0.
MakeMonitor = Callable[..., Callable[[dict, int], dict[str, float]] | None]


def train(
    config: ConfigDict,
    workdir: epath.PathLike,
    make_monitor: MakeMonitor = lambda *_: None,
) -> TrainState:
    """Trains to the last step, going on from the newest checkpoint if there is one.

    Args:
      make_monitor: see `MakeMonitor`; its scalars join the metrics.
    Raises:
      ValueError, FileNotFoundError: for bad settings or data, before any training.
      NonFiniteLossError: names the step and the last good checkpoint.
      Preempted: after Ctrl-C or SIGTERM; the same command goes on from there.
    """
    workdir = epath.Path(workdir)
    config = with_mitigations(with_pretrained_settings(config))

    # 1. Mesh, model and optimizer: nothing is allocated yet.
    mesh = make_mesh(**config.mesh)
    check_settings(config.train, mesh)
    warn_of_whole_heads(config.model.unet, mesh)
    model = make_model(config.model, config.data.resolution, config.train.dtype)
    noise_scheduler = make_noise_scheduler(**config.diffusion)

    # 2. Data, and what depends on how many there are.
    dataset = load_dataset(config.data, config.seed, workdir)
    caption_counts = dataset.source.caption_counts[dataset.indices]
    config = fit_to_data(config, caption_counts)
    check_captions_vary(config, caption_counts)
    optimizer = make_optimizer(config.train)
    draws = _make_draws(config, dataset)
    preview = make_preview(config, model, noise_scheduler, dataset, workdir)

    # 3. The working directory belongs to this config from here on.
    first = jax.process_index() == 0
    claim_workdir(workdir, config, defaults_of_older_runs(), writer=first)
    claim_examples(workdir, dataset, writer=first)

    # 4. State: the newest checkpoint, or a new one.
    abstract = abstract_state(model, optimizer, config, mesh)
    copies = CopyBound(config.train.stop_above_copied_share, read_metrics(workdir))
    checkpoints = open_checkpoints(
        workdir, keep=config.train.keep_checkpoints, also=copies.good
    )
    first_step = checkpoints.latest_step() or 0
    copies.go_on_from(first_step)
    if copies.ended:
        copies.remove_later(checkpoints)  # unless it was done before
        first_step = copies.good[0]
    if first_step:
        state = restore_state(checkpoints, first_step, abstract)
        logger.info("going on from step %d of %s", first_step, workdir)
    else:
        pretrained = load_networks(config.model, model, mesh)
        state = init_state(model, optimizer, config, mesh, pretrained)
        del pretrained
    logger.info("training on %s", _describe(state, dataset, mesh))
    if copies.ended:
        logger.warning("%s", copies.ended)
    if copies.ended or first_step >= config.train.steps:
        return state
    keep_frozen(workdir, state.frozen, new=not first_step)
    _add_caches(draws, workdir, config, model, state, dataset, mesh)
    monitor = make_monitor(config, model, noise_scheduler, dataset, workdir)
    networks = make_networks(workdir, abstract.frozen)
    has_caches = (draws.moments is not None, draws.embeddings is not None)
    abstract, state = (
        without_unused(x, config, *has_caches) for x in (abstract, state)
    )

    # 5. The compiled step, made ahead of the loop so that its time is not training's.
    shardings = jax.tree.map(lambda x: x.sharding, abstract)
    train_step = make_train_step(
        model,
        noise_scheduler,
        optimizer,
        config,
        shardings,
        mesh,
        draws.encode([""])[0],
    )
    seed = seed_key(config.seed)
    train_step = compile_step(train_step, abstract, draws, seed, mesh)

    at_peak = seconds_at_peak(model, abstract_batch(draws, mesh), config)

    # 6. The loop.
    writer = MetricWriter(
        workdir, first_step, config.train.wandb_project, flatten(config.to_dict())
    )
    progress = Progress(config.train.steps, first_step, config.train.batch_size)
    recent: list[
        dict[str, jax.Array]
    ] = []  # scalars of the steps since the last report
    batches = iterate_batches(
        draws,
        first_step,
        num_threads=config.data.num_threads,
        num_workers=config.data.num_workers,
    )
    profile = Profile(workdir, config.train.profile_steps, first_step)
    with (
        contextlib.closing(profile),
        contextlib.closing(writer),
        closing_checkpoints(checkpoints),
        HangWatch(config.train.hang_timeout_seconds) as watch,
        deferred("a checkpoint is saved after this step", _signals()) as stop,
    ):
        for step in range(first_step + 1, config.train.steps + 1):
            watch.expect(f"the batch of step {step}")
            started = time.perf_counter()
            batch = next(batches)
            progress.waited(time.perf_counter() - started)
            profile.before(step)
            state, scalars = train_step(state, _to_devices(batch, mesh), seed)
            profile.after(step, scalars)
            recent.append(scalars)

            last = step == config.train.steps
            stopping = _is_wished(stop, checkpoints, step)
            saving = last or stopping or step % config.train.checkpoint_every_steps == 0
            measured = {}
            if monitor and (step % config.train.evaluate_every_steps == 0 or last):
                watch.expect(f"what is measured at step {step}")
                measured = monitor(networks(state), step)
                saving = copies.judge(step, measured) or saving
            if step % config.train.log_every_steps == 0 or saving or measured:
                fetched = _fetch(recent, step, watch)
                _report(step, fetched, at_peak, progress, writer, checkpoints, measured)
                recent.clear()
            if copies.ended:
                watch.expect("the last checkpoint")
                copies.remove_later(checkpoints)
                logger.warning("%s", copies.ended)
                break
            if saving:
                watch.expect(f"the checkpoint of step {step}")
                writer.flush()  # a checkpoint never knows of steps that the metrics lack
                save_state(checkpoints, step, state)
            if preview and (step % config.train.sample_every_steps == 0 or last):
                watch.expect(f"the preview of step {step}")
                writer.write_image(step, "generations", preview(networks(state), step))
            if stopping and not last:
                watch.expect(f"the checkpoint of step {step}")
                checkpoints.wait_until_finished()
                logger.info("stopped at step %d; run again to go on", step)
                raise Preempted(stop.code or 128 + signal.SIGTERM)
        watch.expect("the last checkpoint")
        checkpoints.wait_until_finished()
    return state


def defaults_of_older_runs() -> dict[str, Any]:
    """Returns, flat, what runs of an older copymit did, which knew fewer settings."""
    sections = {
        "train": training_settings(),
        "mitigation": {"train": mitigation_settings().train},
        "data": {
            "random_crop": False,
            "num_captions": 0,
            "caption_clusters": 0,
            "heldout_share": 0.0,
            "use_all_captions": False,
        },
        "model": {
            "autoencoder": {
                "pretrained": "",
                "tiny": {"act_fn": "relu", "upsampling_scaling_factor": 2},
            }
        },
    }
    return flatten(ConfigDict(sections).to_dict())


def _make_draws(config: ConfigDict, dataset: Dataset) -> Draws:
    tokenizer = make_tokenizer(
        config.model.text_encoder.max_length, config.model.text_encoder.pad_token_id
    )
    if cut := describe_truncated(config.data, dataset, tokenizer):
        logger.warning("%s", cut)
    caption = make_captions(config.data, dataset.source, tokenizer, config.seed)
    words = Words(tokenizer.decode, dataset.source.class_names)
    caption = training_caption(caption, config.mitigation.train, words)
    return Draws(
        load_images(dataset.source, dataset.indices, config.data.resolution),
        dataset.duplication.duplicated,
        make_schedule(dataset.duplication.weights, config.data.sampling, config.seed),
        caption,
        tokenizer.encode,
        num_steps=config.train.steps,
        batch_size=config.train.batch_size,
        caption_dropout=config.data.caption_dropout,
        random_flip=config.data.random_flip,
        random_crop=config.data.random_crop,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def _add_caches(
    draws: Draws,
    workdir: epath.Path,
    config: ConfigDict,
    model: DiffusionModel,
    state: TrainState,
    dataset: Dataset,
    mesh: Mesh,
) -> None:
    """Computes once, if asked to, what every visit of an image would compute again."""
    if config.data.cache_latents and config.data.random_crop:
        raise ValueError(
            "data.random_crop shows another part of an image at every visit, so latents "
            "cannot be kept: set data.cache_latents=False, or data.random_crop=False"
        )
    if config.data.cache_latents:
        draws.moments = cache_moments(
            workdir, config, model, state, dataset, draws.images, mesh
        )
    if config.data.cache_embeddings:
        tokenizer = make_tokenizer(
            config.model.text_encoder.max_length, config.model.text_encoder.pad_token_id
        )
        caption = make_captions(config.data, dataset.source, tokenizer, config.seed)
        texts = every_caption(config, dataset, caption)
        if not embeddings_pay(config, len(texts), cache_folder(workdir, config)):
            return
        draws.embeddings = cache_embeddings(
            workdir, config, model, state, tokenizer.encode(texts), mesh
        )


def _describe(state: TrainState, dataset: Dataset, mesh: Mesh) -> str:
    count = sum(x.size for x in jax.tree.leaves(state.params))
    duplicated = int(dataset.duplication.duplicated.sum())
    return (
        f"{len(dataset.indices)} images ({duplicated} duplicated), {count / 1e6:.1f} M "
        f"trained parameters, {mesh.devices.size} {jax.default_backend()} device(s)"
    )


def _to_devices(batch: Batch, mesh: Mesh) -> dict[str, jax.Array]:
    sharding = batch_sharding(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, value)
        for name, value in cast(dict[str, np.ndarray], batch).items()
    }


def _fetch(
    recent: list[dict[str, jax.Array]], step: int, watch: HangWatch
) -> list[dict[str, np.ndarray]]:
    """Waits for the scalars of the steps up to `step`; only here the host does."""
    fetched = []
    for finished, scalars in enumerate(recent, step - len(recent) + 1):
        watch.expect(f"the devices to finish step {finished}")
        fetched.append(jax.device_get(scalars))
    return fetched


def _report(
    step: int,
    fetched: list[dict[str, np.ndarray]],
    at_peak: float | None,
    progress: Progress,
    writer: MetricWriter,
    checkpoints: ocp.CheckpointManager,
    measured: dict[str, float],
) -> None:
    """Writes the mean loss since the last report.

    Args:
      fetched: the scalars of the steps since then.
      at_peak: seconds that a step takes at the devices' peak.
      measured: by the monitor.
    """
    values = {name: float(value) for name, value in fetched[-1].items()}
    for name in {"loss", "skipped_share"} & values.keys():
        values[name] = float(np.mean([scalars[name] for scalars in fetched]))
    # Also the norm of the new parameters: a checkpoint of them must be a good one.
    finite = np.isfinite([list(scalars.values()) for scalars in fetched]).all(axis=1)
    if not finite.all():
        bad = int(np.argmin(finite))
        good = checkpoints.latest_step()
        way_out = (
            f"the last good checkpoint is step {good}" if good else "none is saved"
        )
        raise NonFiniteLossError(
            f"loss {fetched[bad]['loss']}, norm of the gradient "
            f"{fetched[bad]['grad_norm']} and of the new parameters "
            f"{fetched[bad]['param_norm']} at step {step - len(fetched) + bad + 1}; "
            f"{way_out}. Lower train.learning_rate, raise train.warmup_steps, or look at "
            "the data of that step"
        )
    values |= progress.report(step) | measured
    if (memory := device_memory_gib()) is not None:
        values["device_memory_gib"] = memory
    if at_peak is not None:
        values["model_flop_utilisation"] = at_peak * values["steps_per_second"]
    writer.write(step, values)
    logger.info("%s", progress.line(step, values))


def _signals() -> Sequence[signal.Signals]:
    """Leaves SIGTERM to jax.distributed, which agrees on a step among several hosts."""
    return SIGNALS if jax.process_count() == 1 else [signal.SIGINT]


def _is_wished(stop: Stop, checkpoints: ocp.CheckpointManager, step: int) -> bool:
    """Says whether a signal has asked the run to stop; all hosts at the same step."""
    wished = stop.wished.is_set()
    if jax.process_count() == 1:
        return wished
    if wished:
        os.kill(os.getpid(), signal.SIGTERM)  # Ctrl-C here, for the other hosts as well
    return checkpoints.reached_preemption(step)
