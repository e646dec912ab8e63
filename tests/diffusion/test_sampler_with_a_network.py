"""50 steps with a UNet of the same random weights, here and in diffusers' own loop."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from copymit.diffusion.noise_scheduler import make_noise_scheduler
from copymit.diffusion.sampler import sample, with_guidance
from copymit.diffusion.trajectory import SAMPLERS, Trajectory
from copymit.models.functional import trace_module
from copymit.models.torch_layout import load_torch_state
from copymit.models.unet import UNet2DConditionModel, UNetConfig

KINDS = {
    "ddim": "DDIMScheduler",
    "dpmsolver++": "DPMSolverMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
}
CONFIG = UNetConfig(
    sample_size=8,
    block_out_channels=(8, 16),
    cross_attention=(True, False),
    num_attention_heads=2,
    layers_per_block=1,
    cross_attention_dim=12,
    norm_num_groups=4,
)
STEPS = 50


@dataclasses.dataclass
class Networks:
    """One network twice, and what it is given."""

    torch_model: object
    model: UNet2DConditionModel
    noise: np.ndarray
    text: np.ndarray
    negative: np.ndarray


@pytest.fixture(scope="module")
def networks() -> Networks:
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    torch_model = diffusers.UNet2DConditionModel(
        sample_size=CONFIG.sample_size,
        block_out_channels=CONFIG.block_out_channels,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=CONFIG.layers_per_block,
        cross_attention_dim=CONFIG.cross_attention_dim,
        attention_head_dim=CONFIG.num_attention_heads,
        norm_num_groups=CONFIG.norm_num_groups,
    )
    with torch.no_grad():
        for name, parameter in torch_model.named_parameters():
            # Large enough for text and timestep to matter.
            parameter.normal_(float("norm" in name and "weight" in name), 0.1)
    state = {k: v.numpy().copy() for k, v in torch_model.state_dict().items()}
    model = trace_module(lambda rngs: UNet2DConditionModel(CONFIG, rngs=rngs))
    load_torch_state(model, state)
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(2, 8, 8, 4)).astype(np.float32)
    text, negative = rng.normal(size=(2, 2, 5, 12)).astype(np.float32)
    return Networks(torch_model, model, noise, text, negative)


def _diffusers_latents(networks, reference, guidance_scale) -> np.ndarray:
    """The loop of diffusers' `StableDiffusionPipeline`."""
    import torch

    reference.set_timesteps(STEPS)
    noise = torch.from_numpy(networks.noise).permute(0, 3, 1, 2)
    latents = noise * reference.init_noise_sigma
    guided = guidance_scale != 1
    texts = [networks.negative, networks.text] if guided else [networks.text]
    text = torch.from_numpy(np.concatenate(texts))
    with torch.no_grad():
        for t in reference.timesteps:
            inputs = torch.cat([latents] * len(texts))
            inputs = reference.scale_model_input(inputs, t)
            model_pred = networks.torch_model(inputs, t, text).sample
            if guided:
                without, conditional = model_pred.chunk(2)
                model_pred = without + guidance_scale * (conditional - without)
            latents = reference.step(model_pred, t, latents).prev_sample
    return latents.permute(0, 2, 3, 1).numpy()


@pytest.fixture(scope="module")
def our_latents(networks):
    """Compiles the loop once for the trajectories of all samplers."""
    graphdef, params = nnx.split(networks.model)
    compiled = {}

    def run(trajectory, guidance_scale) -> np.ndarray:
        *numbers, prediction_type = trajectory

        def loop(numbers, params, noise, text, negative):
            model = nnx.merge(graphdef, params)
            denoise = with_guidance(model, text, negative, guidance_scale)
            return sample(denoise, Trajectory(*numbers, prediction_type), noise)

        key = (prediction_type, guidance_scale)
        if key not in compiled:
            compiled[key] = jax.jit(loop)
        inputs = (networks.noise, networks.text, networks.negative)
        return np.asarray(compiled[key](numbers, params, *inputs))

    return run


@pytest.mark.parametrize(
    ("prediction_type", "guidance_scale"),
    [("epsilon", 1.0), ("v_prediction", 1.0), ("epsilon", 7.5)],
)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_latents_after_50_steps_equal_those_of_diffusers(
    sampler, prediction_type, guidance_scale, networks, our_latents
):
    diffusers = pytest.importorskip("diffusers")
    options = {"clip_sample": False} if sampler == "ddim" else {}
    reference = getattr(diffusers, KINDS[sampler])(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type=prediction_type,
        steps_offset=1,
        **options,
    )
    expected = _diffusers_latents(networks, reference, guidance_scale)
    scheduler = make_noise_scheduler("scaled_linear", prediction_type)
    actual = our_latents(SAMPLERS[sampler](scheduler, STEPS), guidance_scale)
    assert np.abs(expected).max() > 1
    # 50 times the network's own 1e-6 or so, and float32 tables.
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-3)


def test_guidance_and_the_negative_text_matter(networks, our_latents):
    trajectory = SAMPLERS["ddim"](make_noise_scheduler("scaled_linear"), STEPS)
    guided, plain = our_latents(trajectory, 7.5), our_latents(trajectory, 1.0)
    assert np.abs(guided - plain).max() > 0.1
