"""An image depends on its caption, seed and id, and on nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from copymit.diffusion.noise_scheduler import make_noise_scheduler
from copymit.diffusion.trajectory import SAMPLERS
from copymit.generator import (
    SamplingOptions,
    generate_on,
    make_generate,
    make_trajectory,
    sampling_options,
)
from copymit.mitigation.registry import strengths
from copymit.models.assembly import for_inference, make_model
from copymit.sharding import make_mesh

RESOLUTION, LENGTH = 8, 5
OPTIONS = SamplingOptions(
    seed=0,
    sampler="ddim",
    num_inference_steps=3,
    timestep_spacing="trailing",
    guidance_scale=2.0,
    clip_latents=None,
)


def small_config():
    config = common.get_config().model
    config.unet.block_out_channels = (8,)
    config.unet.cross_attention = (True,)
    config.unet.norm_num_groups = 4
    config.unet.num_attention_heads = 2
    config.text_encoder.hidden_size = 8
    config.text_encoder.intermediate_size = 8
    config.text_encoder.num_hidden_layers = 1
    config.text_encoder.num_attention_heads = 2
    return config


@pytest.fixture(scope="module")
def model():
    return make_model(small_config(), RESOLUTION, "float32")


@pytest.fixture(scope="module")
def params(model):
    """Weights at which noise and text both matter; fresh ones predict zero."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), model.parameters
    )


@pytest.fixture(scope="module")
def make_images(model, params):
    """Compiles the generator of some options once."""
    noise_scheduler = make_noise_scheduler("cosine", "v_prediction")
    compiled = {}

    def make(input_ids, image_ids, **changes) -> np.ndarray:
        options = OPTIONS._replace(**changes)
        if options not in compiled:
            compiled[options] = make_generate(
                model, noise_scheduler, options, np.zeros(LENGTH, np.int32)
            )
        ids = np.asarray(image_ids, np.int32)
        return np.asarray(compiled[options](params, input_ids, ids).images).astype(int)

    return make


CAPTIONS = np.random.default_rng(1).integers(1, 49_000, (4, LENGTH)).astype(np.int32)
IDS = np.array([3, 0, 7, 1000])


@pytest.fixture(scope="module")
def batch(make_images):
    return make_images(CAPTIONS, IDS)


def test_images_are_bytes_of_the_configured_size_and_not_flat(batch):
    assert batch.shape == (4, RESOLUTION, RESOLUTION, 3)
    assert batch.min() >= 0
    assert batch.max() <= 255
    assert batch.std(axis=(1, 2, 3)).min() > 10


def test_the_same_seed_gives_the_same_images(make_images, batch):
    np.testing.assert_array_equal(make_images(CAPTIONS, IDS), batch)


def test_an_image_does_not_depend_on_its_place_in_the_batch(make_images, batch):
    order = np.array([2, 0, 3, 1])
    permuted = make_images(CAPTIONS[order], IDS[order])
    # Rows of one compiled function differ at most in the order of float32 sums,
    # which a pixel value halfway between two bytes can show.
    assert np.abs(permuted - batch[order]).max() <= 1


def test_an_image_does_not_depend_on_the_size_of_the_batch(make_images, batch):
    for i in range(4):
        (alone,) = make_images(CAPTIONS[i : i + 1], IDS[i : i + 1])
        # Another batch size is another program, with float32 sums in another order.
        assert np.abs(alone - batch[i]).max() <= 1


def test_an_image_does_not_depend_on_its_neighbours(make_images, batch):
    captions, ids = CAPTIONS.copy(), IDS.copy()
    captions[1:], ids[1:] = captions[1:] + 1, ids[1:] + 1
    changed = make_images(captions, ids)
    assert np.abs(changed[0] - batch[0]).max() <= 1
    assert (np.abs(changed[1:] - batch[1:]).max(axis=(1, 2, 3)) > 10).all()


def test_another_id_seed_or_caption_gives_another_image(make_images, batch):
    one = (CAPTIONS[:1], IDS[:1])
    for other in (
        make_images(CAPTIONS[:1], IDS[:1] + 1),
        make_images(*one, seed=1),
        make_images(CAPTIONS[1:2], IDS[:1]),
    ):
        assert np.abs(other[0] - batch[0]).max() > 10


@pytest.mark.parametrize(
    "asked",
    [
        {"start_attention": 1.25, "mask_padding": True},
        {"prompt_target": 1e-3, "prompt_iterations": 2},
    ],
)
def test_a_real_network_can_be_controlled_and_differentiated(asked, make_images):
    captions = CAPTIONS.copy()
    captions[:, 2:] = 49_407
    # Not from pure noise on, in which nothing of an image could be seen.
    spacing = {"timestep_spacing": "leading"}
    plain = make_images(captions, IDS, **spacing)
    mitigated = make_images(captions, IDS, **spacing, mitigations=strengths(**asked))
    # Rounding moves a pixel by 1 at most; of attention this network makes little.
    assert np.abs(mitigated - plain).max() > 1
    assert mitigated.std(axis=(1, 2, 3)).min() > 10


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_sampler_and_its_steps_are_those_of_the_options(sampler):
    noise_scheduler = make_noise_scheduler(timestep_spacing="trailing")
    options = OPTIONS._replace(sampler=sampler, num_inference_steps=5)
    expected = SAMPLERS[sampler](noise_scheduler, 5)
    for ours, theirs in zip(
        make_trajectory(noise_scheduler, options), expected, strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


def test_options_come_from_the_eval_section():
    config = common.get_config().eval
    config.clip_latents = 1.5
    config.guidance_scale = 3.0
    config.sampler = "euler"
    assert sampling_options(config) == SamplingOptions(0, "euler", 50, None, 3.0, 1.5)
    config.clip_latents = 0.0
    config.timestep_spacing = "linspace"
    options = sampling_options(config)
    assert options.clip_latents is None
    assert options.timestep_spacing == "linspace"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sampler", r"eval.sampler='plms' is not known: use .*ddim, dpmsolver\+\+, eu"),
        ("timestep_spacing", r"eval.timestep_spacing='plms' is not .*'', leading, lin"),
    ],
)
def test_an_unknown_choice_is_named_with_the_known_ones(name, message):
    config = common.get_config().eval
    config[name] = "plms"
    with pytest.raises(ValueError, match=message):
        sampling_options(config)


def test_the_spacing_of_the_noise_scheduler_holds_unless_there_is_another():
    noise_scheduler = make_noise_scheduler(timestep_spacing="linspace")
    own = OPTIONS._replace(timestep_spacing=None)
    for options, first in (
        (own, 999),
        (OPTIONS._replace(timestep_spacing="leading"), 667),
    ):
        assert make_trajectory(noise_scheduler, options).timesteps[0] == first


def test_too_many_steps_are_refused_before_anything_is_compiled(model):
    with pytest.raises(ValueError, match=r"num_inference_steps=1001"):
        make_generate(
            model,
            make_noise_scheduler(),
            OPTIONS._replace(num_inference_steps=1001),
            np.zeros(LENGTH, np.int32),
        )


def test_images_whose_pixels_are_not_finite_are_told_from_others(model, params):
    def decode_latents(_, latents):
        return latents.at[1, 0, 0, 0].set(np.nan).at[3, 2].set(np.inf)

    generate = make_generate(
        model._replace(decode_latents=decode_latents),
        make_noise_scheduler("cosine", "v_prediction"),
        OPTIONS._replace(num_inference_steps=1),
        np.zeros(LENGTH, np.int32),
    )
    made = generate(params, CAPTIONS, IDS.astype(np.int32))
    assert made.finite.tolist() == [True, False, True, False]
    # Latents that the decoder hides are told, too.
    broken = jax.tree.map(lambda x: np.full_like(x, np.nan), params)
    made = generate(broken, CAPTIONS, IDS.astype(np.int32))
    assert not made.finite.any()


def test_kernels_cast_beforehand_give_the_same_bits(params):
    config = small_config()
    model = make_model(config, RESOLUTION, "bfloat16")
    noise_scheduler = make_noise_scheduler("cosine", "v_prediction")
    generate = make_generate(
        model, noise_scheduler, OPTIONS, np.zeros(LENGTH, np.int32)
    )
    params = jax.tree.map(jnp.asarray, params)
    cast = for_inference(params, "bfloat16")
    kernels = {x.dtype for k, x in cast["unet"].items() if k.endswith("kernel")}
    others = {x.dtype for k, x in cast["unet"].items() if not k.endswith("kernel")}
    assert (kernels, others) == ({jnp.dtype("bfloat16")}, {jnp.dtype("float32")})

    def predicted(params):
        """Without the cast inside the generator."""
        rng = np.random.default_rng(0)
        latents = rng.standard_normal((2, *model.latent_shape)).astype(np.float32)
        text = jax.jit(model.encode_text)(params, CAPTIONS[:2])
        return jax.jit(model.predict)(params, latents, np.array([3, 700]), text)

    np.testing.assert_array_equal(predicted(params), predicted(cast))
    ids = IDS.astype(np.int32)
    np.testing.assert_array_equal(
        generate(params, CAPTIONS, ids).images, generate(cast, CAPTIONS, ids).images
    )


def test_images_of_all_devices_are_those_of_one(model, params):
    noise_scheduler = make_noise_scheduler("cosine", "v_prediction")
    generate = make_generate(
        model, noise_scheduler, OPTIONS, np.zeros(LENGTH, np.int32)
    )
    batches = []

    def counting(params, input_ids, image_ids):
        batches.append(len(image_ids))
        return generate(params, input_ids, image_ids)

    found, finite = generate_on(make_mesh(), counting, params, CAPTIONS[:3], IDS[:3])
    expected = generate(params, CAPTIONS[:3], IDS[:3].astype(np.int32)).images
    assert batches == [3]
    assert finite.tolist() == [True] * 3
    np.testing.assert_array_equal(found, expected)
