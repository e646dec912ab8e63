"""Mitigations as a config asks for them: names, strengths, contradictions, and together."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import tiny
from copymit.data.captions import make_caption_function
from copymit.data.examples import Example
from copymit.mitigation.record import Words
from copymit.mitigation.registry import (
    MITIGATIONS,
    active,
    check_captions_vary,
    defaults,
    forget_idle,
    strengths,
    unused_in_evaluation,
    with_mitigations,
)
from copymit.mitigation.sampling import changed_text, generation_rewrite
from copymit.mitigation.training import own_key, training_caption, training_text

MANY = Example("many.png", b"", ("one", "two words", "three more words"), None)


@pytest.fixture
def config():
    return tiny.get_config()


def spell(ids):
    return "+".join(f"<{i}>" for i in ids)


@pytest.mark.parametrize("name", MITIGATIONS)
def test_every_name_and_alias_switches_its_own_setting_on(name, config):
    mitigation = MITIGATIONS[name]
    section, key = mitigation.switch.section, mitigation.switch.name
    # Opposite guidance alone would have no end.
    if name == "opposite_guidance":
        config.mitigation.generate.update(guidance_transition=650)
    for alias in (name, mitigation.switch.path, *mitigation.aliases):
        config.mitigation.apply = (alias,)
        resolved = with_mitigations(config)
        assert resolved.mitigation[section][key] == mitigation.strength
        assert resolved.mitigation.apply == ()
        resolved.mitigation[section][key] = config.mitigation[section][key]
        assert resolved.mitigation.train == config.mitigation.train
        assert resolved.mitigation.generate == config.mitigation.generate


def test_names_of_two_mitigations_never_meet():
    names = [a for n, m in MITIGATIONS.items() for a in (n, m.switch.path, *m.aliases)]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("flag", "setting"),
    [
        ("c1", "start_attention"),
        ("miti_mem", "start_attention"),  # without it, their c1 does nothing
        ("cross_attn_mask", "mask_padding"),
    ],
)
def test_flags_of_the_attention_paper_s_code_mean_what_they_meant(
    flag, setting, config
):
    config.mitigation.apply = (flag,)
    assert with_mitigations(config).mitigation.generate[setting]


def test_a_strength_may_be_a_quantile_of_the_model(config):
    config.mitigation.apply = ("PO=q0.9",)
    generate = with_mitigations(config).mitigation.generate
    assert (generate.prompt_quantile, generate.prompt_target) == (0.9, 0.0)


def test_the_same_mitigation_is_not_asked_for_twice(config):
    config.mitigation.apply = ("GN=0.1", "train.gaussian_noise=0.2")
    with pytest.raises(ValueError, match=r"'GN=0\.1' and 'train.*' are the same"):
        with_mitigations(config)


def test_a_strength_is_taken_as_given(config):
    config.mitigation.apply = ("GN=0.25", "RNA=4")
    resolved = with_mitigations(config).mitigation
    assert resolved.train.gaussian_noise == 0.25
    assert resolved.generate.random_numbers == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mitigation.apply": ("magic",)}, r"'magic' is not known.*GNI.*rand_numb_add"),
        ({"mitigation.apply": ("GN=much",)}, "'much' is not a number"),
        (
            {"mitigation.train.random_caption": 1.5},
            r"random_caption=1\.5 must lie between 0 and 1, 0 for",
        ),
        (
            {"mitigation.train.gaussian_noise": -0.1},
            "must lie between 0 and 100, 0 for none",
        ),
        ({"mitigation.train.gaussian_noise": math.nan}, "gaussian_noise=nan must lie"),
        ({"mitigation.train.skip_above": math.inf}, "skip_above=inf must lie"),
        ({"mitigation.generate.gaussian_noise": math.nan}, "noise=nan must lie"),
        ({"mitigation.apply": ("PO=q2",)}, "prompt_quantile=2.0 must lie between 0"),
        ({"mitigation.apply": ("GN=q0.5",)}, "'q0.5' is not a number"),
        ({"mitigation.apply": ("GN=",)}, "'GN=': '' is not a number"),
        ({"mitigation.apply": ("GN=nan",)}, "'nan' is not a number"),
        ({"mitigation.apply": ("RNA=2.7",)}, "'2.7' is not a whole number"),
        ({"mitigation.apply": ("RNA=inf",)}, "'inf' is not a whole number"),
        ({"mitigation.apply": ("RNA=1e9",)}, "random_numbers=1000000000 must lie"),
        ({"mitigation.apply": ("MC=0.5",)}, "'0.5' is not 0 or 1"),
        (
            {"mitigation.apply": ("OG",)},
            "guidance_before=-2.0 changes nothing alone",
        ),
        (
            {"mitigation.apply": ("despecification",), "eval.guidance_scale": 1.0},
            "despecification=13.0 takes guidance off down to",
        ),
        (
            {"mitigation.apply": ("Wen",), "data.caption_style": "unconditional"},
            "skip_above=2.0 compares a caption with the empty one",
        ),
        (
            {"mitigation.train.num_insertions": 4},
            "num_insertions=4 changes nothing alone: add random_tok",
        ),
        (
            {"mitigation.generate.random_numbers": -1},
            "random_numbers=-1 must lie",
        ),
        ({"mitigation.train.num_insertions": 0}, "num_insertions=0 must lie between 1"),
        (
            {"mitigation.apply": ("RC",), "data.caption_style": "fixed"},
            "random_caption=0.1 changes captions",
        ),
        (
            {"mitigation.apply": ("CWR",), "data.cache_embeddings": True},
            "word_repetition=0.1 makes captions up",
        ),
    ],
)
def test_what_cannot_be_is_refused(changes, message, config):
    config.update_from_flattened_dict(changes)
    with pytest.raises(ValueError, match=message):
        with_mitigations(config)


def test_a_switch_may_be_given_as_0_or_1(config):
    config.mitigation.apply = ("MC=1", "DTP=0")
    resolved = with_mitigations(config).mitigation
    assert resolved.train.multiple_captions is True
    assert resolved.generate.dynamic_transition is False


def test_what_acts_in_training_alone_is_told_where_there_was_another(config):
    trained = config.mitigation.copy_and_resolve_references()
    trained.train.gaussian_noise = 0.1
    assert unused_in_evaluation(config.mitigation, trained) == []
    assert unused_in_evaluation(trained, trained) == []
    (problem,) = unused_in_evaluation(trained, config.mitigation)
    assert "train.gaussian_noise=0.1 acts in training" in problem
    assert "generation_noise (GNI, " in problem


def test_multiple_captions_of_images_with_one_are_refused(config):
    check_captions_vary(config, np.array([1, 1]))
    config.mitigation.train.multiple_captions = True
    check_captions_vary(config, np.array([1, 2]))
    with pytest.raises(ValueError, match=r"each of the 2 has one: .*data\.caption"):
        check_captions_vary(config, np.array([1, 1]))


def plain():
    return make_caption_function("instance", "none", (), decode=spell, seed=0)


def test_without_mitigations_captions_prompts_and_embeddings_are_what_they_were(config):
    caption = plain()
    assert training_caption(caption, config.mitigation.train, Words(spell)) is caption
    rng = np.random.default_rng(0)
    assert (
        generation_rewrite(config.mitigation.generate, spell)("a red apple", rng)
        == "a red apple"
    )
    hidden = jnp.ones((2, 3, 4))
    perturb = training_text(config.mitigation.train)
    assert perturb(hidden, jax.random.key(0)) is hidden


def test_mitigations_of_captions_work_together(config):
    config.mitigation.apply = ("MC", "RT=1", "CWR=1")
    mitigation = with_mitigations(config).mitigation
    caption = training_caption(plain(), mitigation.train, Words(lambda ids: "#"))
    rng = np.random.default_rng(0)
    texts = [caption(MANY, False, rng).split(" ") for _ in range(300)]
    # Two tokens and two words on top of one, two or three.
    assert {len(words) for words in texts} == {5, 6, 7}
    assert all("#" in words for words in texts)


def test_equal_probabilities_do_not_hide_one_another(config):
    config.mitigation.apply = ("RC=1", "RT=1")
    caption = training_caption(
        plain(),
        with_mitigations(config).mitigation.train,
        Words(lambda ids: " ".join(["#"] * len(ids))),
    )
    assert caption(MANY, False, np.random.default_rng(0)) == " ".join(["#"] * 6)


def test_noise_is_added_before_embeddings_are_mixed_and_by_another_key(config):
    """In the original code: `h += lam * noise`, then `lam * h + (1 - lam) * h[index]`."""
    hidden = np.eye(6, dtype="f4").reshape(6, 2, 3)

    def changed(*names):
        config.mitigation.apply = names
        values = with_mitigations(config).mitigation.train
        found = training_text(values)(jnp.asarray(hidden), jax.random.key(0))
        return np.asarray(found).reshape(6, 6)

    noise = changed("GN=0.5") - np.eye(6)
    mix = changed("embedding_mixup=2")  # of one-hot rows: the shares themselves
    np.testing.assert_allclose(mix.sum(1), 1, rtol=1e-6)
    assert mix.max(initial=0, where=np.eye(6, dtype=bool)) > 0.01
    assert np.abs(mix @ noise - noise).max() > 0.1
    # In either order of asking, as there is only one order of acting.
    for names in (("GN=0.5", "embedding_mixup=2"), ("embedding_mixup=2", "GN=0.5")):
        np.testing.assert_allclose(
            changed(*names), mix @ (np.eye(6) + noise), atol=1e-5
        )


PAIRS = list(itertools.combinations(MITIGATIONS, 2))
# One of each of these pairs is a refusal of the other, or a part of it.
APART = {
    ("dynamic_transition", "static_transition"),
    ("dynamic_transition", "opposite_guidance"),
}


def asked(config, *names):
    """Resolves mitigations by their names; opposite guidance needs a transition."""
    beside = ("static_transition",) if "opposite_guidance" in names else ()
    config.mitigation.apply = tuple(dict.fromkeys((*names, *beside)))
    return with_mitigations(config).mitigation


@pytest.mark.parametrize("pair", PAIRS, ids="+".join)
def test_any_two_in_either_order_are_the_same_and_both_are_on(pair, config):
    if pair in APART:
        with pytest.raises(ValueError, match="both say when guidance begins"):
            asked(config, *pair)
        return
    first, second = asked(config, *pair), asked(config, *pair[::-1])
    assert first.to_dict() == second.to_dict()
    on = {m.name for part in ("train", "generate") for m in active(part, first[part])}
    assert set(pair) <= on <= {*pair, "static_transition"}
    words = Words(lambda ids: " ".join(map(str, ids)), ("thing",))
    texts, embeddings = [], []
    for section in (first, second):
        caption = training_caption(plain(), section.train, words)
        rewrite = generation_rewrite(section.generate, words.decode)
        rng = np.random.default_rng(1)
        texts.append([rewrite(caption(MANY, True, rng), rng) for _ in range(20)])
        hidden = training_text(section.train)(jnp.ones((2, 3, 4)), jax.random.key(1))
        generated = strengths(**section.generate.to_dict())
        keys = jax.random.split(jax.random.key(2))
        embeddings.append(np.asarray(changed_text(generated, hidden, keys)))
    assert texts[0] == texts[1]
    np.testing.assert_array_equal(*embeddings)


def test_no_two_mitigations_draw_the_same_numbers():
    drawn = [
        jax.random.normal(own_key(jax.random.key(0), name), (8,)).tolist()
        for name in MITIGATIONS
    ]
    assert len({tuple(numbers) for numbers in drawn}) == len(MITIGATIONS)


def test_a_mitigation_of_the_text_is_handed_a_key_of_its_own():
    handed = {}
    for name in ("gaussian_noise", "embedding_mixup"):
        real = MITIGATIONS[name]

        def spy(values, hidden, key, name=name):
            handed[name] = jax.random.key_data(key).tolist()
            return hidden

        MITIGATIONS[name] = real._replace(training_text=spy)
        try:
            values = defaults("train") | {"gaussian_noise": 1.0, "embedding_mixup": 1.0}
            training_text(values)(jnp.ones((2, 3, 4)), jax.random.key(0))
        finally:
            MITIGATIONS[name] = real
    assert handed["gaussian_noise"] != handed["embedding_mixup"]


def test_what_an_older_run_noted_of_mitigations_that_are_off_is_forgotten(config):
    section = config.mitigation.generate
    section.noise_norm_weight = 0.05  # which was the default once
    with pytest.raises(
        ValueError, match=r"noise_norm_weight=0\.05 changes nothing alone"
    ):
        with_mitigations(config)
    forget_idle(config.mitigation)
    assert section.noise_norm_weight == defaults("generate")["noise_norm_weight"]
    with_mitigations(config)
    section.update(noise_target=8.2, noise_norm_weight=0.05)
    forget_idle(config.mitigation)
    assert section.noise_norm_weight == 0.05  # of what is on, it is kept
