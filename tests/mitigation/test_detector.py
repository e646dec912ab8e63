"""Every detector against an independent implementation in torch, on diffusers' UNet.

Only the initial noises and those on the text are taken from jax, by the rule that a
prompt's number and the seed fix them.
"""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from copymit.diffusion.noise_scheduler import make_noise_scheduler
from copymit.diffusion.sampler import sample, transitions, with_guidance
from copymit.diffusion.trajectory import SAMPLERS, ddim_trajectory
from copymit.mitigation import detector
from copymit.mitigation.detector import DETECTORS, DetectionOptions, make_detector
from copymit.mitigation.observation import EOS_TOKEN_ID, bright_ending
from copymit.models.assembly import DiffusionModel
from copymit.models.functional import describe_params, make_apply
from copymit.models.torch_layout import from_torch_order, to_torch_name
from copymit.models.unet import UNet2DConditionModel, UNetConfig

B, L, D, S, SEEDS = 3, 6, 12, 4, 2
CASES = [
    pytest.param((size, kind), marks=[pytest.mark.slow] * (size == 64))
    for size in (32, 64)
    for kind in ("epsilon", "v_prediction")
]
# Attention is at half of the latents' resolution, as the masks of the finest layers are.
CONFIG = UNetConfig(
    block_out_channels=(4, 8),
    cross_attention=(False, True),
    num_attention_heads=2,
    layers_per_block=1,
    cross_attention_dim=D,
    norm_num_groups=2,
)
OPTIONS = DetectionOptions(
    seed=5,
    guidance_scale=3.0,
    num_seeds=SEEDS,
    entropy_layer=1,
    entropy_steps=2,
    text_noise=0.2,
)
EOS = EOS_TOKEN_ID
INPUT_IDS = np.array(
    [[0, 3, 4, EOS, EOS, EOS], [0, 9, EOS, 1, 1, 1], [0, 5, 5, 6, 7, EOS]], np.int32
)
ENDS = (3, 2, 5)
NEGATIVE_IDS = np.array([0, EOS, EOS, EOS, EOS, EOS], np.int32)
PROMPT_IDS = np.array([4, 0, 1000], np.int32)


@pytest.fixture(scope="module")
def torch_model():
    """diffusers' model with weights large enough for every term to matter."""
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    model = diffusers.UNet2DConditionModel(
        block_out_channels=CONFIG.block_out_channels,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=D,
        attention_head_dim=2,
        norm_num_groups=2,
    )
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(float("norm" in name and "weight" in name), 0.25)
    return model.eval().requires_grad_(False)


def embed(table, ids):
    """Stands in for the text encoder."""
    return table[ids % len(table)]


@pytest.fixture(scope="module")
def table():
    return np.random.default_rng(3).normal(size=(50, D)).astype(np.float32)


@pytest.fixture(scope="module")
def params(torch_model, table):
    state = {k: v.numpy().copy() for k, v in torch_model.state_dict().items()}
    shapes = describe_params(make_unet)
    unet = {
        k: from_torch_order(k, state[to_torch_name(k)], shapes[k].shape) for k in shapes
    }
    return {"unet": unet, "text_encoder": table}


def make_unet(rngs: nnx.Rngs):
    return UNet2DConditionModel(CONFIG, rngs=rngs)


def make_model(size):
    apply = make_apply(make_unet)
    unused = None
    return DiffusionModel(
        (size, size, 4),
        unused,
        unused,
        unused,
        unused,
        lambda params, *inputs, **control: apply(params["unet"], *inputs, **control),
        lambda params, ids: embed(jnp.asarray(params["text_encoder"]), ids),
    )


class Recorder:
    """An attention processor of diffusers that keeps the probabilities."""

    def __init__(self, name, found):
        self.name, self.found = name, found

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, **unused):
        context = encoder_hidden_states
        context = hidden_states if context is None else context
        query, key, value = (
            attn.head_to_batch_dim(x)
            for x in (attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context))
        )
        scores = attn.get_attention_scores(query, key)
        if encoder_hidden_states is not None:
            self.found[self.name] = scores.detach().double()
        return attn.to_out[0](attn.batch_to_head_dim(scores @ value))


def jax_noise(prompt, seed, shape, draw=None) -> np.ndarray:
    key = jax.random.fold_in(jax.random.key(seed), int(PROMPT_IDS[prompt]))
    if draw is not None:
        key = jax.random.fold_in(key, draw)
    return np.array(jax.random.normal(key, shape))


def measure_in_torch(torch_model, table, size, prediction_type, prompt, seed) -> dict:
    """Computes every detector of one prompt and seed, with a loop and autograd.

    Detectors are of predicted noise, `sigma x + signal v`; norms are as of 64x64x4.
    """
    import torch
    from diffusers import DDIMScheduler

    found = {}
    torch_model.set_attn_processor(
        {name: Recorder(name, found) for name in torch_model.attn_processors}
    )

    def predict(x, t, c):
        return torch_model(x, t, c[None]).sample[0]

    def predict_noise(x, t, c):
        if prediction_type == "epsilon":
            return predict(x, t, c)
        a = scheduler.alphas_cumprod[t]
        return (1 - a) ** 0.5 * x[0] + a**0.5 * predict(x, t, c)

    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        set_alpha_to_one=True,
        timestep_spacing="trailing",
        prediction_type=prediction_type,
    )
    scheduler.set_timesteps(S)
    text = torch.from_numpy(embed(table, INPUT_IDS[prompt]))
    negative = torch.from_numpy(embed(table, NEGATIVE_IDS))
    noise = jax_noise(prompt, seed, (size, size, 4))
    latents = torch.from_numpy(noise).permute(2, 0, 1)[None]
    end = ENDS[prompt]
    differences, attention, result = [], [], {}
    for i, t in enumerate(scheduler.timesteps):
        unconditional = predict_noise(latents, t, negative)
        conditional = predict_noise(latents, t, text)
        taps = dict(found)
        d = conditional - unconditional
        differences.append(d)
        # Averages of (heads, positions, tokens), then of layers.
        layers = [probabilities.mean((0, 1)) for probabilities in taps.values()]
        attention.append(torch.stack(layers).mean(0))
        if i == 0:
            sigma = (1 - scheduler.alphas_cumprod[t]) ** 0.5
            _, curvature = torch.autograd.functional.jvp(
                lambda x, t=t: (
                    predict_noise(x, t, text) - predict_noise(x, t, negative)
                )[None],
                latents,
                d[None],
            )
            result["sharpness"] = (curvature / sigma**2).norm()
            leaf = text.clone().requires_grad_()
            length = (predict_noise(latents, t, leaf) - unconditional).norm()
            (gradient,) = torch.autograd.grad(length, leaf)
            result["token_attribution"] = gradient.norm(dim=-1)
            changes = []
            for draw in (3, 4):
                blur = torch.from_numpy(jax_noise(prompt, seed, (L, D), draw))
                blurred = predict_noise(latents, t, text + 0.2 * blur)
                changes.append((blurred - conditional).norm())
            result["text_stability"] = d.norm() / torch.stack(changes).mean()
            result["attention_entropy_e"] = -(layers[1] * layers[1].log()).sum()
        unguided, guided = predict(latents, t, negative), predict(latents, t, text)
        latents = scheduler.step(
            (unguided + 3.0 * (guided - unguided))[None], t, latents
        ).prev_sample
    unit = (64 * 64 * 4 / latents.numel()) ** 0.5
    norms = unit * torch.stack([d.norm() for d in differences])
    h = [-(a * a.log()) for a in attention]
    result |= {
        "noise_norm_first": norms[0],
        "noise_norm_mean": norms.mean(),
        "end_token_attention": attention[-1][end],
        "attention_entropy_d": (h[-1].sum() + h[-2].sum()) / 2
        + (h[-1][end:].sum() + h[-2][end:].sum()) / 2
        - h[0][end:].sum(),
    }
    mask = torch.stack([x[:, :, end].mean(0) for x in taps.values()]).mean(0)
    mask = mask.reshape(1, size // 2, size // 2)
    mask = mask.repeat_interleave(2, 1).repeat_interleave(2, 2)
    local = torch.stack([(mask * d).norm() for d in differences])
    result["bright_ending_norm"] = unit * local.mean() / mask.mean()
    return {name: np.asarray(value) for name, value in result.items()}


def trajectory_of(prediction_type):
    return ddim_trajectory(
        make_noise_scheduler(
            prediction_type=prediction_type, timestep_spacing="trailing"
        ),
        S,
    )


@pytest.fixture(scope="module", params=CASES)
def pair(request, params, torch_model, table):
    size, prediction_type = request.param
    trajectory = trajectory_of(prediction_type)
    detect = make_detector(make_model(size), trajectory, OPTIONS, NEGATIVE_IDS)
    compiled = detect.lower(params, INPUT_IDS, PROMPT_IDS).compile()
    singles = [
        [
            measure_in_torch(torch_model, table, *request.param, i, OPTIONS.seed + s)
            for s in range(SEEDS)
        ]
        for i in range(B)
    ]
    expected = {
        name: np.array(
            [np.mean([s[name] for s in single], axis=0) for single in singles]
        )
        for name in singles[0][0]
    }
    actual = compiled(params, INPUT_IDS, PROMPT_IDS)
    return SimpleNamespace(
        detect=compiled,
        expected=expected,
        actual={name: np.asarray(x) for name, x in actual.items()},
    )


def test_the_detectors_are_those_that_are_listed(pair):
    assert pair.actual.keys() == DETECTORS.keys() | {"token_attribution"}


@pytest.mark.parametrize("name", [*DETECTORS, "token_attribution"])
def test_a_detector_equals_its_formula_in_torch(name, pair):
    actual, expected = pair.actual[name], pair.expected[name]
    assert actual.shape == expected.shape
    # Prompts differ, so that agreement is not that of a constant.
    assert np.ptp(expected, axis=0).max() > 1e-3 * np.abs(expected).max()
    # float32 sums in another order, through some thirty layers and four steps.
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-6)


def test_a_prompt_does_not_depend_on_its_place_or_neighbours(pair, params):
    order = np.array([2, 0, 1])
    permuted = pair.detect(params, INPUT_IDS[order], PROMPT_IDS[order])
    for name, values in pair.actual.items():
        np.testing.assert_allclose(permuted[name], values[order], rtol=1e-4)


def test_another_number_is_another_noise(pair, params):
    other = pair.detect(params, INPUT_IDS, PROMPT_IDS + 1)
    for name in DETECTORS:
        assert (np.asarray(other[name]) != pair.actual[name]).all(), name


def test_the_mask_is_of_the_layers_of_finest_resolution():
    rng = np.random.default_rng(0)
    taps = {
        name: jnp.asarray(rng.random((2, 3, positions, L), np.float32))
        for name, positions in (("a", 4), ("b", 16), ("c", 16))
    }
    mask = bright_ending(taps, jnp.array([1, 4]), (8, 8))
    for row, end in enumerate((1, 4)):
        maps = np.stack([taps[n][row, :, :, end] for n in "bc"]).mean((0, 1))
        expected = np.kron(maps.reshape(4, 4), np.ones((2, 2)))
        np.testing.assert_allclose(mask[row], expected, rtol=1e-6)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_steps_are_those_of_the_sampler(sampler):
    """A network that only knows its text shows where the latents went."""
    noise_scheduler = make_noise_scheduler("cosine", "v_prediction")
    trajectory = SAMPLERS[sampler](noise_scheduler, 4)
    noise = jax.random.normal(jax.random.key(0), (2, 4, 4, 3))

    def predict(latents, timesteps, text):
        scale = text[:, 0, 0] + timesteps / 1000
        return jnp.tanh(latents * scale[:, None, None, None])

    text, negative = jnp.full((2, 1, 1), 0.7), jnp.full((2, 1, 1), -0.4)
    denoise = with_guidance(predict, text, negative, 2.5)
    expected = sample(denoise, trajectory, noise, clip_latents=0.8)
    options = OPTIONS._replace(guidance_scale=2.5, clip_latents=0.8)
    steps = transitions(trajectory)
    latents, x0 = trajectory.noise_scale * noise, jnp.zeros_like(noise)
    for i in range(4):
        now = jax.tree.map(lambda x, i=i: x[i], steps)
        t = jnp.full((2,), now.timestep)
        conditional = predict(latents, t, text)
        difference = conditional - predict(latents, t, negative)
        observed = detector._Observed(conditional, difference, {})
        latents, x0 = detector._advance(trajectory, options, now, observed, latents, x0)
    np.testing.assert_allclose(latents, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_seeds": 0}, r"num_seeds=0 must be at least 1"),
        ({"entropy_layer": -1}, r"entropy_layer=-1 must be at least 0"),
        ({"entropy_steps": 0}, r"entropy_steps=0 must be at least 1"),
        ({"text_noise": 0.0}, r"text_noise=0.0 must be above 0"),
    ],
)
def test_options_out_of_range_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        make_detector(
            make_model(32),
            trajectory_of("epsilon"),
            OPTIONS._replace(**changes),
            NEGATIVE_IDS,
        )
