"""The foreseen image is turned away from its nearest reference, by a known angle."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from copymit.diffusion.noise_scheduler import (
    make_noise_scheduler,
    predicted_latents_and_noise,
)
from copymit.diffusion.sampler import Step, sample_with_state
from copymit.diffusion.trajectory import SAMPLERS
from copymit.mitigation.methods.repulsion import similarity_threshold, turn_away
from copymit.mitigation.references import make_references, similarities
from copymit.mitigation.registry import MITIGATIONS, strengths, values_of
from copymit.mitigation.scene import Scene, Text

SHAPE = (2, 2, 3)
ON = {"repulsion": 0.5}


def repel(settings, references, step, guided, scales, *, prediction_type):
    """Is one step of a sampling with these settings."""
    values = values_of(strengths(**settings))
    trajectory = SAMPLERS["ddim"](make_noise_scheduler("cosine", prediction_type), 5)
    text = Text(*[jnp.zeros((4, 1))] * 3)
    scene = Scene(lambda prompts: None, trajectory, text, 1000, references)
    if values["despecification"]:
        despecify = MITIGATIONS["despecification"].scales
        scales = despecify(values, scene, step, guided, scales)
    model_pred = guided(scales)
    if values["repulsion"]:
        turn = MITIGATIONS["repulsion"].prediction
        model_pred = turn(values, scene, step, model_pred)
    return model_pred


def turned(s, amount):
    """Is the similarity after a step of `amount`: u - amount (v - s u), normalised."""
    return (s - amount * (1 - s**2)) / np.sqrt(1 + amount**2 * (1 - s**2))


@pytest.fixture
def images(rng):
    return (3 + rng.normal(size=(6, *SHAPE))).astype(np.float32)


@pytest.fixture
def references(images):
    return make_references(images)


@pytest.fixture
def near(images, rng):
    """Noisy versions of the first four."""
    noise = rng.normal(size=(4, *SHAPE))
    return jnp.asarray(images[:4] + 0.5 * noise, jnp.float32)


def test_the_table_holds_unit_vectors_around_the_mean(references, images):
    np.testing.assert_allclose(np.linalg.norm(references.vectors, axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(references.center, images.mean(0).ravel(), rtol=1e-6)


def test_images_are_themselves_similar_to_1(references, images):
    np.testing.assert_allclose(similarities(references, images), 1, atol=1e-6)


def test_similarity_is_that_to_the_nearest_by_a_plain_search(references, near):
    features = np.asarray(near).reshape(4, -1) - references.center
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    expected = (features @ references.vectors.T).max(1)
    np.testing.assert_allclose(similarities(references, near), expected, atol=1e-6)


def test_without_centering_bright_images_are_all_alike(images, near):
    plain = make_references(images, centered=False)
    assert similarities(plain, jnp.asarray(images[::-1] * 0 + 3.0)).min() > 0.9


def test_no_images_or_one_without_direction_are_refused(images):
    with pytest.raises(ValueError, match="at least one"):
        make_references(images[:0])
    with pytest.raises(ValueError, match=r"image 2 is the mean .*centered=False"):
        make_references(np.stack([images[0], -images[0], 0 * images[0]]))


def test_a_turn_lowers_the_similarity_as_computed_by_hand(references, near):
    s = np.asarray(similarities(references, near))
    assert (s > 0.5).all()
    for amount in (0.1, 0.7):
        moved = near + turn_away(references, near, jnp.full(4, amount))
        after = np.asarray(moved).reshape(4, -1) - references.center
        nearest = np.argmax(
            (np.asarray(near).reshape(4, -1) - references.center)
            @ references.vectors.T,
            axis=1,
        )
        after = (after * references.vectors[nearest]).sum(1) / np.linalg.norm(
            after, axis=1
        )
        np.testing.assert_allclose(after, turned(s, amount), atol=1e-5)


def test_a_turn_by_nothing_and_one_from_a_perfect_copy_are_none(references, images):
    copies = jnp.asarray(images[:2])
    assert not np.asarray(turn_away(references, copies, jnp.ones(2))).any()
    assert not np.asarray(turn_away(references, copies + 1, jnp.zeros(2))).any()


def test_any_embedding_falls_as_much_to_first_order(images, near, rng):
    matrix = jnp.asarray(rng.normal(size=(12, 5)), jnp.float32)

    def embed(x0):
        return jnp.tanh(x0.reshape(len(x0), -1) @ matrix / 10)

    table = make_references(np.asarray(embed(jnp.asarray(images))), centered=False)
    amount = 1e-3
    s = similarities(table, near, embed)
    move = turn_away(table, near, jnp.full(4, amount), embed)
    fall = s - similarities(table, near + move, embed)
    # The second order of a step of 1e-3, and float32 of numbers near 1.
    np.testing.assert_allclose(fall, amount * (1 - s**2), rtol=0.05, atol=2e-6)


def test_the_threshold_is_a_parabola_between_its_ends():
    values = [
        float(similarity_threshold(0.3, 0.4, jnp.asarray(share)))
        for share in (0, 0.5, 1)
    ]
    np.testing.assert_allclose(values, [0.4, 0.325, 0.3], rtol=1e-6)


STEP = Step(jnp.array(0), jnp.array(500), jnp.array(0.6), jnp.array(0.8), None)


def prediction_for(x0, step, prediction_type):
    """Is what a network says in `step` that foresees x0."""
    noise = (step.noisy_latents - step.signal * x0) / step.sigma
    if prediction_type == "epsilon":
        return noise
    return step.signal * noise - step.sigma * x0


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_what_is_foreseen_is_turned_by_the_excess(
    references, near, rng, prediction_type
):
    step = STEP._replace(noisy_latents=jnp.asarray(rng.normal(size=near.shape)))
    model_pred = prediction_for(near, step, prediction_type)
    repelled = repel(
        ON,
        references,
        step,
        lambda scales: model_pred,
        jnp.full(4, 7.5),
        prediction_type=prediction_type,
    )
    x0, _ = predicted_latents_and_noise(
        prediction_type, repelled, step.noisy_latents, step.signal, step.sigma
    )
    excess = similarities(references, near) - 0.325
    expected = near + turn_away(references, near, 0.5 * excess)
    np.testing.assert_allclose(x0, expected, atol=1e-5)


def test_what_is_not_too_similar_is_left_alone(references, near):
    step = STEP._replace(noisy_latents=near)
    model_pred = prediction_for(near, step, "epsilon")
    for settings in (
        ON | {"clean_threshold": 1.0, "noisy_threshold": 1.0, "despecification": 13.0},
        {},
    ):
        repelled = repel(
            settings,
            references,
            step,
            lambda scales: model_pred * per_scale(scales),
            jnp.ones(4),
            prediction_type="epsilon",
        )
        np.testing.assert_array_equal(repelled, model_pred)


def per_scale(scales):
    return scales[:, None, None, None]


@pytest.mark.parametrize(("rate", "scale"), [(2.0, 7.5), (13.0, 7.5), (13.0, 0.5)])
def test_despecification_lowers_the_guidance_but_not_below_one(
    references, near, rate, scale
):
    step = STEP._replace(noisy_latents=near)
    asked = []

    def guided(scales):
        asked.append(np.asarray(scales))
        return prediction_for(near, step, "epsilon")

    repel(
        {"despecification": rate},
        references,
        step,
        guided,
        jnp.full(4, scale),
        prediction_type="epsilon",
    )
    s = np.asarray(similarities(references, near))
    taken = np.maximum(np.minimum(rate * s, scale - 1), 0)
    np.testing.assert_allclose(asked[-1], scale - taken, rtol=1e-5)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_model_that_remembers_ends_as_far_away_as_computed(
    sampler, references, near, rng
):
    """The network foresees the same near copies whatever it is given."""
    trajectory = SAMPLERS[sampler](make_noise_scheduler(), 5)
    noise = jnp.asarray(rng.normal(size=near.shape), jnp.float32)

    def denoise(state, step):
        model_pred = prediction_for(near, step, "epsilon")
        return state, repel(
            ON,
            references,
            step,
            lambda scales: model_pred,
            jnp.ones(4),
            prediction_type="epsilon",
        )

    latents = jax.jit(lambda noise: sample_with_state(denoise, (), trajectory, noise))(
        noise
    )
    # Every sampler ends at the estimate of its last step.
    last = similarity_threshold(0.3, 0.4, jnp.asarray(trajectory.timesteps[-1] / 1000))
    excess = similarities(references, near) - last
    expected = near + turn_away(references, near, 0.5 * excess)
    np.testing.assert_allclose(latents, expected, atol=1e-3)
    assert (similarities(references, latents) < similarities(references, near)).all()
