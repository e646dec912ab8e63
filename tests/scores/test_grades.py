import numpy as np
import pytest

from copymit.scores.conformal import fit_null
from copymit.scores.grades import (
    COPIES,
    EXACT_BELOW,
    Finding,
    PixelWitness,
    decide,
    may_be_copies,
    needed_similarity,
    summarise,
)
from copymit.scores.nearness import Nearness, log_distances
from copymit.scores.provenance import UNKNOWN_ROW, Provenance

RATE = 0.01
NOWHERE = Provenance(None, None)
FAR = {"equal": -1, "distance": 0.6, "to_nearest": 0.6, "ratio": 0.9, "blank": False}


@pytest.fixture
def null(rng):
    return fit_null(0.05 * rng.exponential(size=1000))


def decisions(null, generations):
    """Each generation: its nearness, by pixels, and what these say that is not `FAR`."""
    near = np.array([g.get("nearness", 0.02) for g in generations])
    rows = [FAR | {k: v for k, v in g.items() if k in FAR} for g in generations]
    columns = {key: np.array([row[key] for row in rows]) for key in FAR}
    agreeing = np.array([g.get("agrees", False) for g in generations])
    count = len(generations)
    scale = np.zeros(count)
    witness = PixelWitness(
        columns["equal"],
        100 + np.arange(count),
        columns["distance"],
        np.stack([columns["to_nearest"], np.where(agreeing, 0.1, 0.6)]),
        np.stack([columns["ratio"], np.where(agreeing, 0.2, 0.9)]),
        columns["blank"],
    )
    nearness = Nearness(
        np.arange(count), np.full(count, 0.4), scale, near, np.ones((count, 5), bool)
    )
    correlation = None
    if any("correlation" in g for g in generations):
        near = np.array([g.get("correlation", 0.02) for g in generations])
        correlation = nearness._replace(reference=200 + np.arange(count), nearness=near)
        correlation = Finding(correlation, null)
    found = decide(Finding(nearness, null), correlation, witness, RATE)
    return found, nearness


def test_each_grade_has_its_witnesses(null):
    generations = [
        {"equal": 7, "distance": 0.0, "to_nearest": 0.0},
        {"distance": EXACT_BELOW / 2, "to_nearest": EXACT_BELOW / 2, "ratio": 0.01},
        {"nearness": 1.5, "distance": 0.1, "to_nearest": 0.1, "ratio": 0.2},
        {"nearness": 1.5, "distance": 0.1, "to_nearest": 0.1, "ratio": 0.9},
        {"nearness": 1.5},
        {"distance": 0.1},
        {"distance": 0.0, "blank": True, "nearness": 9.0},
        {},
    ]
    found, _ = decisions(null, generations)
    assert found.grades.tolist() == [
        "exact",
        "exact",
        "near copy",
        "likely copy",  # any other picture is as near in pixels
        "likely copy",
        "pixels alone",
        "none",
        "none",
    ]
    assert found.copy_of.tolist() == [7, 101, 2, 3, 4, 105, -1, -1]
    tested = ~np.isnan(found.p)
    assert tested.tolist() == [False, False, True, True, True, True, False, True]


def test_what_the_descriptor_does_not_see_pixels_may_call(null):
    tiles = {"distance": 0.1, "to_nearest": 0.1, "ratio": 0.2}
    generations = [
        {"correlation": 1.5, "agrees": True},
        {"correlation": 1.5},  # one sky and another
        {"nearness": 1.5, "correlation": 1.5, "agrees": True},
        {"nearness": 1.5, "correlation": 1.5},
        {"nearness": 1.5, "agrees": True},
        {"nearness": 1.5, **tiles},
        {"distance": 0.1, "agrees": True},
        {"correlation": 9.0, "agrees": True, "blank": True},
        {"equal": 7, "distance": 0.0, "correlation": 9.0, "agrees": True},
        {},
    ]
    found, _ = decisions(null, generations)
    assert found.grades.tolist() == [
        "near copy",
        "none",
        "near copy",
        "likely copy",
        "likely copy",
        "near copy",
        "pixels alone",
        "none",
        "exact",
        "none",
    ]
    # Of whom the descriptor says nothing the image is that of the pixels.
    assert found.copy_of.tolist() == [200, -1, 2, 3, 4, 5, 106, -1, 7, -1]
    assert np.flatnonzero(found.unseen).tolist() == [0]
    assert summarise(found, np.arange(400), NOWHERE)["num_copies_by_pixels"] == 1


def test_noise_on_all_of_an_image_hides_no_agreement(null):
    """Copies whose tiles lay at 0.16 to 0.18 were none, while others lay at 0.45."""
    far = {"distance": 0.17, "to_nearest": 0.17}
    generations = [
        {"nearness": 1.5, **far, "ratio": 0.38},
        {"nearness": 1.5, **far, "ratio": 0.45},
        {"nearness": 1.5, **far, "ratio": np.nan},  # there are no others
        {**far, "ratio": 0.38},
    ]
    found, _ = decisions(null, generations)
    assert found.grades.tolist() == ["near copy", "likely copy", "likely copy", "none"]


def test_what_an_embedder_calls_is_among_what_it_may_call(null, rng):
    near = [{"nearness": value} for value in rng.exponential(0.2, size=400)]
    found, nearness = decisions(null, near)
    possible = may_be_copies(Finding(nearness, null), RATE)
    called = found.grades != "none"
    assert 0 < called.sum() < possible.sum() < 400
    assert possible[called].all()
    assert not may_be_copies(Finding(nearness, None), RATE).any()


def test_two_witnesses_call_as_few_that_are_no_copies_as_one(null, rng):
    """Of 50 generations that are no copies, hardly one set in a hundred has any called."""
    sets = []
    for _ in range(400):
        rows = [
            {"nearness": one, "correlation": other, "agrees": True}
            for one, other in 0.05 * rng.exponential(size=(50, 2))
        ]
        found, _ = decisions(null, rows)
        sets.append(np.isin(found.grades, COPIES).any())
    assert sum(sets) <= 12  # of 400 at 1 %; more come once in a thousand times


def test_exact_copies_lend_no_weight_to_others(null):
    """Sure ones would let pass more of those that are not."""
    borderline = [{"nearness": 0.38}] + [{}] * 100
    exact = [{"equal": 1, "distance": 0.0}] * 100
    alone, _ = decisions(null, borderline)
    among, _ = decisions(null, exact + borderline)
    np.testing.assert_allclose(among.q[100:], alone.q)


def test_without_a_null_pixels_alone_decide():
    found, _ = decisions(None, [{"equal": 0, "distance": 0.0}, {"nearness": 9.0}])
    assert found.grades.tolist() == ["exact", "none"]
    assert np.isnan(found.q).all()


def test_a_copy_of_the_needed_similarity_is_just_called(null):
    quiet = [{}] * 200
    found, nearness = decisions(null, quiet)
    needed = needed_similarity(nearness, null, found, RATE)
    for margin, grade in ((0.001, "likely copy"), (-0.001, "none")):
        value = -log_distances(np.array(needed + margin))
        again, _ = decisions(null, [*quiet[:-1], {"nearness": float(value)}])
        assert again.grades[-1] == grade
    few = fit_null(np.linspace(0, 0.1, 20))
    found, nearness = decisions(few, quiet)
    assert needed_similarity(nearness, few, found, RATE) is None


def test_copies_are_counted_with_their_images_and_an_exact_interval(null):
    generations = [{"equal": 3}, {"equal": 3}, {"nearness": 1.5}, {"distance": 0.1}]
    found, _ = decisions(null, generations + [{}] * 196)
    scores = summarise(found, np.arange(400), NOWHERE)
    assert scores["num_copies"] == 3
    assert scores["num_exact_copies"] == 2
    assert scores["num_likely_copies"] == 1
    assert scores["num_pixels_alone"] == 1
    assert scores["copied_images"] == 2
    assert scores["copied_share"] == 0.015
    # R: binom.test(3, 200)
    assert scores["copied_share_ci95"] == pytest.approx([0.00310, 0.04320], abs=2e-5)
    assert scores["missed_share_upper"] is None
    nothing, _ = decisions(null, [{}] * 210)
    assert summarise(nothing, np.arange(400), NOWHERE)["missed_share_upper"] == (
        pytest.approx(0.01416, abs=1e-5)
    )
    prompts = np.arange(210) // 10
    of_prompts = Provenance(None, None, prompts)
    assert summarise(nothing, np.arange(400), of_prompts)["missed_share_upper"] == (
        pytest.approx(1 - 0.05 ** (1 / 21))
    )


def test_copies_are_counted_by_whether_the_prompted_image_was_duplicated(null):
    """Of whichever image they are copies, as prompts that share captions find others."""
    copied, other = {"equal": 3}, {}
    generations = [copied, copied, copied, other, copied, other, other, copied]
    prompted = np.array([0, 0, 1, 1, 2, 2, 3, UNKNOWN_ROW])
    duplicated = np.arange(400) < 2
    found, _ = decisions(null, generations)
    provenance = Provenance(prompted, duplicated, np.array([0, 0, 1, 1, 2, 2, 3, 4]))
    scores = summarise(found, np.arange(400), provenance)
    assert scores["copied_share"] == 5 / 8
    assert scores["prompted_duplicated_copied_share"] == 3 / 4
    assert scores["prompted_unduplicated_copied_share"] == 1 / 3
    # R: binom.test(3, 4), of four that are independent
    alone = summarise(found, np.arange(400), provenance._replace(clusters=None))
    exact = pytest.approx([0.1941, 0.9937], abs=1e-4)
    assert alone["prompted_duplicated_copied_share_ci95"] == exact
    low, high = scores["prompted_duplicated_copied_share_ci95"]
    assert low < 0.1941  # two images tell less
    assert high > 0.9937


def test_prompts_of_unknown_duplication_are_not_divided(null):
    found, _ = decisions(null, [{}] * 4)
    nobody = np.zeros(400, bool)
    for provenance in (
        Provenance(np.arange(4), None),
        Provenance(np.arange(4), nobody),
    ):
        scores = summarise(found, np.arange(400), provenance)
        assert "prompted_duplicated_copied_share" not in scores
    elsewhere = Provenance(np.arange(4), np.arange(400) > 9)
    scores = summarise(found, np.arange(400), elsewhere)
    assert scores["prompted_duplicated_copied_share"] is None
    assert scores["prompted_unduplicated_copied_share"] == 0
