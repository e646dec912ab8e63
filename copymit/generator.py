"""Images from captions: text encoder, sampler and decoder as one compiled function."""

import functools
from collections.abc import Callable
from typing import NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, UInt8
from ml_collections import ConfigDict

from copymit.diffusion.noise_scheduler import NoiseScheduler, TimestepSpacing
from copymit.diffusion.trajectory import SAMPLERS, Trajectory
from copymit.mitigation.record import Circumstances
from copymit.mitigation.references import Embed, References, flatten
from copymit.mitigation.registry import (
    Strengths,
    check_generation,
    defaults,
    strengths,
    values_of,
)
from copymit.mitigation.sampling import (
    changed_text,
    measure_targets,
    sample_with_mitigations,
)
from copymit.mitigation.scene import Text
from copymit.models.assembly import DiffusionModel, ModelParams, for_inference
from copymit.models.functional import in_slices
from copymit.sharding import batch_sharding

# On each device: four images of 512 pixels, for which the published VAE takes 3 GiB.
_DECODED_PIXELS = 2**20


class Generated(NamedTuple):
    """Images, and what their pixels do not tell.

    Attributes:
      steps: that optimisations took for each image; see `Sampled`.
      finite: whether its latents and pixels were, before these became whole numbers.
    """

    images: UInt8[Array, "B H W 3"]
    steps: dict[str, Int[Array, " B"]]
    finite: Bool[Array, " B"]


Generate = Callable[..., Generated]
"""(params, input_ids "B L", image_ids "B"[, references]) -> `Generated`; host or device
arrays. The `References` are those that the mitigations repel from, if they do; best on
the devices already, replicated."""


class SamplingOptions(NamedTuple):
    """How images are sampled.

    Attributes:
      seed: together with an image's id it fixes the image's initial noise.
      sampler: a name from `SAMPLERS`.
      timestep_spacing: None means the noise scheduler's own.
      guidance_scale: of classifier-free guidance; 1 means none.
      clip_latents: bound on every estimate of the clean latents, or None.
      mitigations: what acts between the prompt and the decoder.
    """

    seed: int
    sampler: str
    num_inference_steps: int
    timestep_spacing: TimestepSpacing | None
    guidance_scale: float
    clip_latents: float | None
    mitigations: Strengths = ()


def sampling_options(
    config: ConfigDict, mitigation: ConfigDict | None = None
) -> SamplingOptions:
    """Reads the options from the `eval` section.

    Args:
      mitigation: the section `mitigation.generate`; what it does not mention is off, as
        all of it is for None.
    Raises:
      ValueError: for a sampler or a spacing that is not known.
    """
    for name, known in (
        ("sampler", tuple(SAMPLERS)),
        ("timestep_spacing", ("", *get_args(TimestepSpacing))),
    ):
        if config[name] not in known:
            raise ValueError(
                f"eval.{name}={config[name]!r} is not known: use one of "
                f"{', '.join(value or repr('') for value in known)}"
            )
    section = {} if mitigation is None else mitigation.to_dict()
    settings = defaults("generate")
    return SamplingOptions(
        config.seed,
        config.sampler,
        config.num_inference_steps,
        config.timestep_spacing or None,
        config.guidance_scale,
        config.clip_latents or None,
        strengths(**{k: v for k, v in section.items() if k in settings}),
    )


def make_trajectory(
    noise_scheduler: NoiseScheduler, options: SamplingOptions
) -> Trajectory:
    """Returns the way from noise to latents that the options ask for."""
    if options.timestep_spacing:
        noise_scheduler = noise_scheduler._replace(
            timestep_spacing=options.timestep_spacing
        )
    return SAMPLERS[options.sampler](noise_scheduler, options.num_inference_steps)


def make_generate(
    model: DiffusionModel,
    noise_scheduler: NoiseScheduler,
    options: SamplingOptions,
    negative_ids: Int[np.ndarray, " L"],
    embed: Embed = flatten,
) -> Generate:
    """Returns the compiled generator.

    An image depends on the parameters, its caption, the seed and its own id, and on
    nothing else: not on the batch it is made in, nor on the number of devices.

    Args:
      negative_ids: token ids of the caption that guidance leads away from, usually the
        empty one.
      embed: of clean latents, what the references were made from.
    Raises:
      ValueError: for a number of steps that the sampler cannot take, or mitigations that
        cannot be.
    """
    trajectory = make_trajectory(noise_scheduler, options)
    check_generation(
        values_of(options.mitigations),
        Circumstances(
            noise_scheduler.num_train_timesteps,
            options.guidance_scale,
            noise_scheduler.prediction_type,
            trajectory,
        ),
    )

    # The references are an argument: in the program they would be a constant.
    def generate(
        params: ModelParams, input_ids, image_ids, references: References | None = None
    ):
        params = for_inference(params, model.dtype)
        text, make_noise = _inputs(
            model, options, params, input_ids, negative_ids, image_ids
        )
        latents, steps = sample_with_mitigations(
            functools.partial(_predict, model, params),
            trajectory,
            text,
            make_noise,
            options.mitigations,
            guidance_scale=options.guidance_scale,
            num_train_timesteps=noise_scheduler.num_train_timesteps,
            clip_latents=options.clip_latents,
            references=references,
            embed=embed,
        )
        pixel_values = decode(model, params, latents)
        finite = _all_finite(latents) & _all_finite(pixel_values)
        return Generated(to_images(pixel_values), steps, finite)

    return jax.jit(generate)


def make_measure(
    model: DiffusionModel,
    noise_scheduler: NoiseScheduler,
    options: SamplingOptions,
    negative_ids: Int[np.ndarray, " L"],
) -> Callable[..., dict[str, Float[Array, " B"]]]:
    """Returns the compiled (params, input_ids, image_ids) -> see `measure_targets`."""
    trajectory = make_trajectory(noise_scheduler, options)

    def measure(params: ModelParams, input_ids, image_ids):
        params = for_inference(params, model.dtype)
        text, make_noise = _inputs(
            model, options, params, input_ids, negative_ids, image_ids
        )
        return measure_targets(
            functools.partial(_predict, model, params),
            trajectory,
            text,
            make_noise(0),
            options.mitigations,
            num_train_timesteps=noise_scheduler.num_train_timesteps,
        )

    return jax.jit(measure)


def _inputs(model, options, params, input_ids, negative_ids, image_ids):
    """Returns the texts of a batch, and how its initial noises are made."""
    key = jax.random.key(options.seed)
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(image_ids)

    def make_noise(number: int):
        # 1 and 2 are the keys of the texts' noise.
        own = keys if not number else _folded(keys, 2 + number)
        return jax.vmap(lambda k: jax.random.normal(k, model.latent_shape))(own)

    negative = jnp.broadcast_to(negative_ids, input_ids.shape)
    # The original code adds its noise to both halves of the guided batch.
    texts = [
        changed_text(
            options.mitigations, model.encode_text(params, ids), _folded(keys, half)
        )
        for half, ids in enumerate((input_ids, negative), 1)
    ]
    return Text(input_ids, *texts), make_noise


def generate_on(
    mesh: Mesh,
    generate: Generate,
    params: ModelParams,
    input_ids: Int[np.ndarray, "B L"],
    image_ids: Int[np.ndarray, " B"],
) -> tuple[UInt8[np.ndarray, "B H W 3"], Bool[np.ndarray, " B"]]:
    """Generates with every device its share, and gives all hosts all images.

    Returns:
      The images, and which of them were finite, see `Generated`.
    """
    count, sharding = len(image_ids), batch_sharding(mesh)
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    rows = np.resize(np.arange(count), -(-count // shards) * shards)
    inputs = [
        jax.make_array_from_callback(x.shape, sharding, x.__getitem__)
        for x in (input_ids[rows], np.asarray(image_ids, np.int32)[rows])
    ]
    with jax.set_mesh(mesh):
        made = generate(params, *inputs)
    images, finite = multihost_utils.process_allgather(
        (made.images, made.finite), tiled=True
    )
    return np.asarray(images)[:count], np.asarray(finite)[:count]


def decode(
    model: DiffusionModel, params: ModelParams, latents: Float[Array, "B h w c"]
) -> Float[Array, "B H W 3"]:
    """Decodes latents to pixel values around [-1, 1], some images at a time."""
    decode = functools.partial(model.decode_latents, params)
    _, H, W, _ = jax.eval_shape(decode, latents).shape
    return in_slices(decode, latents, _DECODED_PIXELS // (H * W))


def to_images(pixel_values: Float[Array, "B H W 3"]) -> UInt8[Array, "B H W 3"]:
    """Rounds pixel values to 8 bits; what lies outside of [-1, 1] is cut."""
    return jnp.round(jnp.clip(pixel_values + 1, 0, 2) * 127.5).astype(jnp.uint8)


def _predict(model: DiffusionModel, params, latents, timesteps, hidden_states, control):
    if control is None:
        return model.predict(params, latents, timesteps, hidden_states)
    model_pred, _ = model.predict(params, latents, timesteps, hidden_states, control)
    return model_pred


def _all_finite(values: Float[Array, "B h w c"]) -> Bool[Array, " B"]:
    return jnp.isfinite(values).all(axis=(1, 2, 3))


def _folded(keys, number: int):
    return jax.vmap(lambda k: jax.random.fold_in(k, number))(keys)
