"""Strengths are checked, and the generator does with them what each promises."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from scipy import stats

from configs import common
from copymit import generator
from copymit.diffusion.noise_scheduler import make_noise_scheduler
from copymit.diffusion.sampler import (
    Step,
    first_step,
    sample,
    sample_with_state,
    with_guidance,
)
from copymit.diffusion.trajectory import SAMPLERS, Trajectory
from copymit.generator import (
    SamplingOptions,
    make_generate,
    make_measure,
    sampling_options,
)
from copymit.mitigation.record import Circumstances
from copymit.mitigation.references import make_references, similarities
from copymit.mitigation.registry import (
    MITIGATIONS,
    check_generation,
    strengths,
    values_of,
)
from copymit.mitigation.sampling import (
    calibrated,
    changed_text,
    sample_with_mitigations,
)
from copymit.mitigation.scene import Text
from copymit.models.assembly import DiffusionModel

B, L, SHAPE = 3, 5, (4, 4, 3)
D = 48
IDS = np.array([[49_406, 7, 8, 49_407, 0], [49_406, 9, 49_407, 0, 0], [1, 2, 3, 4, 5]])
NUMBERS = np.array([5, 0, 11], np.int32)
EACH = {
    "static": {"guidance_transition": 500},
    "dynamic": {"dynamic_transition": True, "dynamic_before": -2.0},
    "prompt": {"prompt_target": 0.5},
    "start token": {"start_attention": 1.25},
    "padding": {"mask_padding": True},
    "candidates": {"noise_candidates": 3},
    "noise": {"noise_target": 2.0},
    "repulsion": {"repulsion": 1.0, "clean_threshold": 0.0, "noisy_threshold": 0.0},
    "despecification": {
        "despecification": 5.0,
        "clean_threshold": 0.0,
        "noisy_threshold": 0.0,
    },
}
WEIGHTS = np.random.default_rng(0).normal(size=(D, D)).astype(np.float32) / 7


def toy_predict(params, latents, timesteps, hidden, control=None):
    """Smooth, nonlinear, and attends to the tokens by how well they fit the latents."""
    del params
    flat = latents.reshape(len(latents), -1)
    logits = jnp.einsum("bd,bld->bl", flat, hidden)[:, None, None] / 7
    if control is not None:
        logits = control("layer", logits)
    text = jnp.einsum("bl,bld->bd", jax.nn.softmax(logits)[:, 0, 0], hidden)
    wave = jnp.cos(timesteps / 300)[:, None]
    pred = 0.3 * flat + jnp.tanh((flat + 2 * text) @ WEIGHTS) * wave
    pred = pred.reshape(latents.shape)
    return pred if control is None else (pred, {})


def toy_controlled(latents, timesteps, hidden, control):
    pred = toy_predict({}, latents, timesteps, hidden, control)
    return pred if control is None else pred[0]


def toy_text(params, input_ids):
    key = jax.random.key(3)
    table = jax.random.normal(key, (64, D))
    return table[input_ids % 64] + jnp.linspace(0, 0.1, input_ids.shape[1])[:, None]


MODEL = DiffusionModel(
    SHAPE,
    {},
    lambda params, x: x,
    lambda moments, key: moments,
    lambda params, latents: jnp.tanh(latents / 3),
    toy_predict,
    toy_text,
)
NEGATIVE = np.array([49_406, 49_407, 0, 0, 0])
REFERENCES = make_references(np.random.default_rng(1).normal(size=(20, *SHAPE)))


SCHEDULER = make_noise_scheduler(
    prediction_type="v_prediction", timestep_spacing="trailing"
)


@functools.cache
def compiled(scale, mitigations):
    """One program for the trajectories of all samplers."""

    def run(numbers, input_ids, keys, references):
        def make_noise(number):
            own = jax.vmap(lambda k: jax.random.fold_in(k, number))(keys)
            return jax.vmap(lambda k: jax.random.normal(k, SHAPE))(own)

        texts = (
            toy_text({}, ids) for ids in (input_ids, NEGATIVE[None] + 0 * input_ids)
        )
        return sample_with_mitigations(
            toy_controlled,
            Trajectory(*numbers, "v_prediction"),
            Text(input_ids, *texts),
            make_noise,
            mitigations,
            guidance_scale=scale,
            num_train_timesteps=1000,
            references=references,
        )

    return jax.jit(run)


def sample_all(
    ids=IDS, numbers=NUMBERS, sampler="ddim", scale=3.0, scheduler=SCHEDULER, **asked
):
    *table, _ = SAMPLERS[sampler](scheduler, 6)
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(numbers)
    run = compiled(scale, strengths(**asked))
    return run(table, ids, keys, REFERENCES)


def make_latents(*inputs, **options):
    return np.asarray(sample_all(*inputs, **options).latents)


# Programs with float32 sums in another order, through 6 steps.
ALMOST = {"rtol": 1e-3, "atol": 1e-3}


def test_everything_off_is_the_plain_sampling_bit_for_bit():
    trajectory = SAMPLERS["ddim"](make_noise_scheduler(), 4)
    hidden, negative = toy_text({}, IDS), toy_text({}, IDS[::-1])
    noise = jax.random.normal(jax.random.key(0), (B, *SHAPE))

    def mitigated(noise):
        return sample_with_mitigations(
            toy_controlled,
            trajectory,
            Text(IDS, hidden, negative),
            lambda number: noise,
            (),
            guidance_scale=7.5,
            num_train_timesteps=1000,
        ).latents

    def plain(noise):
        denoise = with_guidance(
            lambda *inputs: toy_predict({}, *inputs), hidden, negative, 7.5
        )
        return sample(denoise, trajectory, noise)

    np.testing.assert_array_equal(jax.jit(mitigated)(noise), jax.jit(plain)(noise))


@pytest.mark.parametrize("name", EACH)
def test_each_changes_the_latents_of_every_sampler(name):
    for sampler in SAMPLERS:
        plain = make_latents(sampler=sampler)
        changed = make_latents(sampler=sampler, **EACH[name])
        # The third text has no padding, and the first candidate may be the best.
        assert (np.abs(changed - plain).max(axis=(1, 2, 3)) > 0.01).sum() >= 1
        assert np.isfinite(changed).all()


@pytest.mark.parametrize("name", EACH)
def test_latents_are_the_same_again_whatever_else_is_in_the_batch(name):
    latents = make_latents(**EACH[name])
    np.testing.assert_array_equal(make_latents(**EACH[name]), latents)
    ids, numbers = IDS.copy(), NUMBERS.copy()
    ids[1:, 1:3], numbers[1:] = 30, numbers[1:] + 1
    neighbours = make_latents(ids[::-1], numbers[::-1], **EACH[name])[::-1]
    np.testing.assert_allclose(neighbours[0], latents[0], **ALMOST)
    assert np.abs(neighbours[1:] - latents[1:]).max() > 0.1


@pytest.mark.parametrize(
    "asked",
    [
        {"start_attention": 1.0, "noise_candidates": 1},
        {"guidance_transition": 999},
        {"repulsion": 1.0, "clean_threshold": 1.0, "noisy_threshold": 1.0},
        {"prompt_target": 1e6, "noise_target": 1e6},
    ],
)
def test_strengths_that_ask_for_nothing_change_nothing(asked):
    np.testing.assert_allclose(make_latents(**asked), make_latents(), **ALMOST)


def test_a_scale_of_one_can_be_repelled_too():
    cosine = make_noise_scheduler("cosine", "v_prediction", timestep_spacing="trailing")
    without = make_latents(scale=1.0, scheduler=cosine)
    repelled = make_latents(scale=1.0, scheduler=cosine, **EACH["repulsion"])
    before, after = (similarities(REFERENCES, x) for x in (without, repelled))
    assert (after < before).all()


@pytest.mark.parametrize(
    "transition",
    [
        {"guidance_transition": 500, "guidance_before": -2.0},
        {"dynamic_transition": True, "dynamic_before": -2.0},
    ],
)
def test_with_the_same_guidance_before_there_is_no_transition(transition):
    both = make_latents(scale=-2.0, **transition)
    np.testing.assert_allclose(both, make_latents(scale=-2.0), **ALMOST)


def test_a_dynamic_transition_without_a_minimum_is_the_prediction_with_the_prompt():
    dynamic = MITIGATIONS["dynamic_transition"]
    schedule = dynamic.guidance(values_of(strengths(dynamic_transition=True)), 3.0, 6)
    state, scales = schedule.init(1), []
    for number in range(6):
        step = Step(jnp.array(number), None, None, None, None)
        state, scale = schedule.scale(state, step, jnp.array([-1.0 * number]))
        scales.append(float(scale[0]))
    assert scales == [1] * 6


def test_the_negative_half_keeps_its_attention_to_the_start_token():
    rescaled = make_latents(scale=0.0, start_attention=4.0)
    np.testing.assert_allclose(rescaled, make_latents(scale=0.0), **ALMOST)


@pytest.mark.parametrize("name", ["prompt_target", "noise_target"])
def test_a_prompt_that_is_the_negative_one_is_below_every_target(name):
    ids = np.broadcast_to(NEGATIVE, IDS.shape)
    found = sample_all(ids, **{name: 1e-6}, noise_norm_weight=0.0)
    assert found.steps[name].tolist() == [0] * B


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("prompt", {"prompt_learning_rate": 0.5}),
        ("prompt", {"prompt_iterations": 1}),
        ("noise", {"noise_learning_rate": 0.5}),
        ("noise", {"noise_iterations": 1}),
        ("noise", {"noise_norm_weight": 5.0}),
        ("repulsion", {"clean_threshold": 0.9}),
        ("repulsion", {"noisy_threshold": 0.9}),
    ],
)
def test_every_setting_of_a_mitigation_has_an_effect(name, changes):
    changed = make_latents(**{**EACH[name], **changes})
    assert np.abs(changed - make_latents(**EACH[name])).max() > 0.01


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_what_is_optimised_is_what_the_sampler_sees_first(sampler):
    # Its first level is not quite 1, by which Euler's first noise is scaled.
    trajectory = SAMPLERS[sampler](make_noise_scheduler(timestep_spacing="linspace"), 3)
    noise = jax.random.normal(jax.random.key(0), (B, *SHAPE))
    seen = []

    def look(state, step):
        jax.debug.callback(lambda *values: seen.append(values), *step[1:])
        return state, step.noisy_latents

    sample_with_state(look, (), trajectory, noise)
    jax.effects_barrier()
    assert len(seen) == 3
    for value, expected in zip(first_step(trajectory, noise)[1:], seen[0], strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-6)


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_noise_on_the_text_reaches_both_halves(scale):
    images = []
    for strength in (0.0, 2.0):
        noise = strengths(gaussian_noise=strength)
        options = SamplingOptions(0, "ddim", 2, None, scale, None, noise)
        generate = make_generate(MODEL, SCHEDULER, options, NEGATIVE)
        images.append(np.asarray(generate({}, IDS, NUMBERS).images).astype(int))
    assert np.abs(images[1] - images[0]).max() > 10


def test_noise_on_the_text_is_normal_and_each_image_s_and_half_s_own():
    keys = jax.random.split(jax.random.key(0), 8)
    hidden = jnp.ones((8, 16, 32))
    noisy = strengths(gaussian_noise=0.3)
    halves = [
        np.asarray(changed_text(noisy, hidden, generator._folded(keys, half))) - 1
        for half in (1, 2)
    ]
    for noise in halves:
        assert stats.kstest(noise.ravel() / 0.3, "norm").pvalue > 1e-3
    rows = np.concatenate(halves).reshape(16, -1)
    # Of 512 independent numbers: four deviations are 0.18.
    assert np.abs(np.corrcoef(rows) - np.eye(16)).max() < 0.2
    alone = changed_text(noisy, hidden[5:6], generator._folded(keys[5:6], 1)) - 1
    np.testing.assert_array_equal(alone[0], halves[0][5])


def test_before_its_transition_a_sampling_has_no_prompt():
    late = make_latents(guidance_transition=1)
    np.testing.assert_allclose(late, make_latents(scale=0.0), **ALMOST)


# Both say when guidance begins.
@pytest.mark.slow
@pytest.mark.parametrize(
    "pair",
    [pair for pair in itertools.combinations(EACH, 2) if pair != ("static", "dynamic")],
    ids="+".join,
)
def test_any_two_sample_together_and_neither_hides_the_other(pair):
    first, second = (EACH[name] for name in pair)
    together = make_latents(**first | second)
    assert np.isfinite(together).all()
    for alone in (first, second):
        assert np.abs(together - make_latents(**alone)).max() > 1e-3
    # The order of the list reaches no program.
    assert strengths(**first | second) == strengths(**second | first)


def test_the_generator_composes_all_of_them():
    everything = {
        k: v for name in EACH if name != "static" for k, v in EACH[name].items()
    }
    images = []
    for mitigations in ((), strengths(**everything, gaussian_noise=0.1)):
        options = SamplingOptions(0, "dpmsolver++", 4, None, 3.0, None, mitigations)
        generate = make_generate(MODEL, SCHEDULER, options, NEGATIVE)
        made = generate({}, IDS, NUMBERS, REFERENCES)
        assert made.steps.keys() <= {"prompt_target", "noise_target"}
        images.append(np.asarray(made.images).astype(int))
    assert images[1].std(axis=(1, 2, 3)).min() > 10
    assert np.abs(images[1] - images[0]).max(axis=(1, 2, 3)).min() > 10


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"repulsion": -1.0}, r"repulsion=-1.0 must lie between 0 and 100, 0 for none"),
        ({"prompt_target": float("nan")}, "prompt_target=nan must lie"),
        ({"prompt_iterations": 0}, "prompt_iterations=0 must lie between 1"),
        ({"clean_threshold": 1.5}, "clean_threshold=1.5 must lie between -1 and 1"),
        ({"guidance_transition": 1000}, "1000 is above every timestep .* below 1000"),
        (
            {"guidance_transition": 500, "dynamic_transition": True},
            "guidance_transition=500 and dynamic_transition=True both",
        ),
        ({"guidance_before": -2.0}, "guidance_before=-2.0 .* add guidance_transition"),
        ({"dynamic_before": -2.0}, "dynamic_before=-2.0 .* add dynamic_transition"),
        ({"noise_target": 6.4}, r"noise_target=6.4 is not above 6.4, which 0.05 times"),
        (
            {"prompt_target": 1.5, "prompt_quantile": 0.9},
            "prompt_target=1.5 and prompt_quantile=0.9 both say",
        ),
        ({"prompt_iterations": 20}, "20 changes nothing alone: add prompt_target"),
        ({"noise_norm_weight": 0.01}, "0.01 changes nothing alone: add noise_target"),
        ({"clean_threshold": 0.8}, "alone: add repulsion or despecification"),
    ],
)
def test_a_strength_that_cannot_be_is_named_with_the_way_out(asked, message):
    with pytest.raises(
        ValueError, match=rf"mitigation\.generate\..*{message}|{message}"
    ):
        check_generation(
            values_of(strengths(**asked)), Circumstances(1000, 7.5, "epsilon")
        )


def test_despecification_without_guidance_to_take_is_refused():
    values = values_of(strengths(despecification=13.0))
    check_generation(values, Circumstances(1000, 1.5, "epsilon"))
    with pytest.raises(ValueError, match=r"despecification=13.0 .*guidance_scale=1"):
        check_generation(values, Circumstances(1000, 1.0, "epsilon"))


@pytest.mark.parametrize(("transition", "begins"), [(990, "at once"), (10, "never")])
def test_a_transition_outside_of_the_sampling_is_refused(transition, begins):
    mitigations = strengths(guidance_transition=transition)
    options = SamplingOptions(0, "ddim", 40, "leading", 3, None, mitigations)
    # Timesteps 976 to 1.
    message = rf"transition={transition} is not .* 976 to 1, .* begin {begins}"
    if transition == 10:
        options = options._replace(timestep_spacing="trailing")
        message = rf"transition={transition} is not .* 999 to 24, .* begin {begins}"
    with pytest.raises(ValueError, match=message):
        make_generate(MODEL, SCHEDULER, options, NEGATIVE)


@pytest.mark.parametrize("name", ["prompt", "noise"])
def test_the_steps_of_an_optimisation_tell_what_came_of_it(name):
    (setting,) = EACH[name]
    assert sample_all(**{setting: 1e6}).steps[setting].tolist() == [0] * B
    assert sample_all(**{setting: 1e-6}).steps[setting].tolist() == [10] * B


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_a_target_that_noise_alone_is_above_is_refused_in_any_size(prediction_type):
    # 128 is the norm of 64x64x4 normal numbers; of 32x32x4 it is 64, and so is the unit.
    weight = {"epsilon": 0.05, "v_prediction": 0.01}[prediction_type]
    around = Circumstances(1000, 7.5, prediction_type)
    check_generation(values_of(strengths(noise_target=weight * 128 + 0.1)), around)
    with pytest.raises(ValueError, match="no noise would be near a normal one"):
        check_generation(values_of(strengths(noise_target=weight * 128 - 0.1)), around)


@pytest.mark.parametrize("asked", [{"prompt_target": 1.5}, {"noise_target": 8.2}])
def test_a_norm_of_noise_is_refused_where_nothing_is_left_to_see(asked):
    cosine = make_noise_scheduler("cosine", "v_prediction", timestep_spacing="trailing")
    options = SamplingOptions(0, "ddim", 4, None, 3.0, None, strengths(**asked))
    with pytest.raises(ValueError, match=r"image is 5e-05 of .*_spacing='leading'"):
        make_generate(MODEL, cosine, options, NEGATIVE)
    make_generate(MODEL, cosine._replace(timestep_spacing="leading"), options, NEGATIVE)


def test_a_quantile_becomes_the_target_that_it_is_of_the_measured_prompts():
    asked = strengths(prompt_quantile=0.75, noise_quantile=0.6)
    options = SamplingOptions(0, "ddim", 4, None, 3.0, None, asked)
    measure = make_measure(MODEL, SCHEDULER, options, NEGATIVE)
    measured = {name: np.asarray(x) for name, x in measure({}, IDS, NUMBERS).items()}
    assert measured.keys() == {"prompt_target", "noise_target"}
    found = calibrated(asked, measured)
    values = values_of(found)
    generate = make_generate(
        MODEL, SCHEDULER, options._replace(mitigations=found), NEGATIVE
    )
    made = generate({}, IDS, NUMBERS)
    for name, quantile in (("prompt_target", 0.75), ("noise_target", 0.6)):
        assert values[name] == pytest.approx(np.quantile(measured[name], quantile))
        # Prompts at or below it are left alone, the others are not.
        if name == "noise_target":  # the prompts are moved for the noise after that
            moved = np.asarray(made.steps[name]) > 0
            assert moved.tolist() == (measured[name] > values[name]).tolist()


def test_a_quantile_alone_is_not_sampled_with():
    options = SamplingOptions(
        0, "ddim", 4, None, 3, None, strengths(noise_quantile=0.5)
    )
    generate = make_generate(MODEL, SCHEDULER, options, NEGATIVE)
    with pytest.raises(
        ValueError, match=r"noise_quantile=0.5 is a quantile of a model"
    ):
        generate({}, IDS, NUMBERS)


@pytest.mark.parametrize("name", ["repulsion", "despecification"])
def test_repulsion_without_training_images_is_refused(name):
    mitigations = strengths(**{name: 1.0})
    options = SamplingOptions(0, "ddim", 4, None, 3.0, None, mitigations)
    generate = make_generate(MODEL, SCHEDULER, options, NEGATIVE)
    with pytest.raises(ValueError, match=rf"{name}=1.0 keeps away .*`references`"):
        generate({}, IDS, NUMBERS)


def test_what_the_config_does_not_mention_is_off():
    config = common.get_config()
    assert sampling_options(config.eval).mitigations == ()
    generate = config.mitigation.generate
    assert sampling_options(config.eval, generate).mitigations == ()


def test_what_the_config_mentions_arrives():
    config = common.get_config()
    section = ConfigDict({"dynamic_transition": True, "gaussian_noise": 0.1})
    options = sampling_options(config.eval, section)
    assert options.mitigations == strengths(dynamic_transition=True, gaussian_noise=0.1)


def test_a_strength_that_there_is_not_is_named():
    with pytest.raises(
        ValueError, match=r"generate\.repell is not known: use .*repulsi"
    ):
        strengths(repell=1.0)
