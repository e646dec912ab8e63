import dataclasses

import numpy as np
import pandas as pd
import pytest

from copymit.report.evaluated_run import EvaluatedRun, list_generations
from copymit.report.gallery import choose_generations, make_cards
from copymit.report.pictures import DETAILS, Limit, encode_picture


def small_run(num_generations=30, num_references=10, seed=0):
    """Generation i is prompted by reference i (mod 10); a third come back."""
    rng = np.random.default_rng(seed)
    ids = [f"{i:06d}" for i in range(num_generations)]
    references = [f"r/{i}.png" for i in range(num_references)]
    nearest = np.where(np.arange(num_generations) % 3 == 0, 0, 5)
    nearest = (np.arange(num_generations) + nearest) % num_references
    top1 = rng.uniform(0.3, 0.9, num_generations)
    rows = [
        (ids[i], rank, references[(nearest[i] + rank) % num_references], top1[i] - rank)
        for i in range(num_generations)
        for rank in range(6)
    ]
    prompts = pd.DataFrame(
        {
            "id": ids,
            "prompt": [f"prompt {i}" for i in range(num_generations)],
            "seed": 0,
            "example_id": [
                references[i % num_references] for i in range(num_generations)
            ],
        }
    )

    def read(image_id):
        return np.full((8, 8, 3), sum(map(ord, image_id)) % 256, np.uint8)

    return EvaluatedRun(
        title="small",
        scores={},
        settings={},
        matches=pd.DataFrame(
            rows, columns=["generation", "rank", "reference", "similarity"]
        ),
        similarities={},
        read_generation=read,
        read_reference=read,
        captions={r: [f"Caption of {r}"] for r in references},
        prompts=prompts,
        duplication=None,
        metrics=None,
    )


def cards_of(run, size=6, num_neighbours=4):
    generations = list_generations(run)
    choices = choose_generations(generations, size)
    return make_cards(run, generations, choices, num_neighbours, DETAILS[0])


def test_the_most_copied_are_one_for_each_training_image():
    generations = list_generations(small_run())
    choices = choose_generations(generations, 6)
    most = [c.generation for c in choices if "most" in c.reasons]
    assert len({g.reference for g in most}) == len(most) == 6
    assert most[0] == generations[0]
    least = {c.generation.id for c in choices if "least" in c.reasons}
    assert least == {g.id for g in generations[-2:]}
    assert sum("typical" in c.reasons for c in choices) == 2


def test_no_generation_is_chosen_twice_and_any_beginning_has_every_kind():
    choices = choose_generations(list_generations(small_run()), 9)
    assert len({c.generation.id for c in choices}) == len(choices)
    assert {r for c in choices[:3] for r in c.reasons} == {"most", "typical", "least"}


def test_a_gallery_of_nothing_and_of_everything():
    generations = list_generations(small_run(num_generations=2))
    assert choose_generations(generations, 0) == []
    assert [c.reasons for c in choose_generations(generations, 9)] == [("most",)] * 2


def test_the_neighbours_of_a_card_come_in_order_of_similarity():
    for card in cards_of(small_run()):
        near = [s.similarity for s in card.neighbours[:4]]
        assert near == sorted(near, reverse=True)
        assert near[0] == card.generation.similarity


def test_the_image_that_prompted_is_marked_or_added_with_what_is_known_of_it():
    cards = cards_of(small_run(), size=10)
    assert {c.nearest.is_prompted for c in cards} == {True, False}
    for card in cards:
        marked = [s.id for s in card.neighbours if s.is_prompted]
        assert marked == [card.generation.prompted]
        # The prompting image is five places on, and six neighbours were kept.
        assert len(card.neighbours) == (4 if card.nearest.is_prompted else 5)
        assert all(s.similarity is not None for s in card.neighbours)


def test_an_image_that_the_search_did_not_keep_has_no_similarity():
    run = small_run()
    run = dataclasses.replace(run, matches=run.matches[run.matches["rank"] < 2])
    added = [c.neighbours[-1] for c in cards_of(run) if not c.nearest.is_prompted]
    assert added
    assert all(s.similarity is None and s.is_prompted for s in added)


def test_the_filter_searches_names_prompts_and_captions():
    card = cards_of(small_run())[0]
    for text in (card.generation.id, card.generation.prompt, "caption of r/"):
        assert text in card.search
    assert card.search == card.search.lower()


def test_small_images_are_kept_exactly_and_large_ones_shrink():
    small = encode_picture(np.zeros((32, 48, 3), np.uint8), "a")
    assert (small.width, small.height, small.pixelated) == (48, 32, True)
    large = encode_picture(np.zeros((512, 1024, 3), np.uint8), "a")
    assert (large.width, large.height, large.pixelated) == (256, 128, False)


def test_a_picture_stays_within_its_limit_even_of_noise():
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3)).astype(np.uint8)
    for limit in (*DETAILS[0], *DETAILS[1], *DETAILS[2], Limit(64, 2_000)):
        picture = encode_picture(noise, "noise", limit)
        assert max(picture.width, picture.height) <= limit.side_px
        # base64 makes four bytes of three.
        assert len(picture.address) <= 4 / 3 * limit.max_bytes + 40


@pytest.mark.parametrize(
    "image",
    [np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8)],
)
def test_an_image_that_is_none_is_named(image):
    with pytest.raises(ValueError, match=r"image .x\.png. is .* give uint8"):
        encode_picture(image, "x.png")
