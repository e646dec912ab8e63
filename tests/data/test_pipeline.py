"""Batches: reproducible, the same for any number of processes, resumable at any step."""

import io
from collections.abc import Sequence

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from copymit.data import pipeline
from copymit.data.captions import make_caption_function
from copymit.data.examples import Example, Provenance
from copymit.data.pipeline import Draws, iterate_batches, load_images
from copymit.data.schedule import make_schedule

N, RESOLUTION = 100, 4
CAPTIONS = tuple("abcd")


class Source:
    """Pictures whose first pixel is their number and whose columns all differ."""

    def __init__(self):
        # Two images that the run does not use come before the others.
        self.example_ids = [f"{i}.png" for i in range(N + 2)]
        self.labels = np.full(N + 2, -1, np.int32)
        self.caption_counts = np.full(N + 2, len(CAPTIONS), np.int32)
        self.class_names = ()
        self.provenance = Provenance()

    def __len__(self) -> int:
        return N + 2

    def __getitem__(self, index: int) -> Example:
        file = io.BytesIO()
        Image.fromarray(picture(index - 2)).save(file, "PNG")
        return Example(self.example_ids[index], file.getvalue(), CAPTIONS, None)


def picture(number: int) -> np.ndarray:
    pixels = np.full((RESOLUTION, RESOLUTION, 3), number % 256, np.uint8)
    pixels[..., 1] = np.arange(RESOLUTION)
    return pixels


def encode(texts: Sequence[str]) -> np.ndarray:
    """The empty caption is [0, 0], the others 1, 2, ... in alphabetical order."""
    return np.array([[ord(t) - 96 if t else 0, 0] for t in texts], np.int32)


@pytest.fixture(scope="module")
def images():
    return load_images(Source(), np.arange(2, N + 2), RESOLUTION)


@pytest.fixture
def make_draws(images):
    duplicated = np.arange(N) < 10

    def make(*, duplication="partial", sampling="epochs", seed=0, **changes) -> Draws:
        settings = {
            "num_steps": 12,
            "batch_size": 8,
            "caption_dropout": 0.1,
            "random_flip": True,
            "process_index": 0,
            "process_count": 1,
        }
        return Draws(
            images,
            duplicated,
            make_schedule(np.where(duplicated, 5, 1), sampling, seed),
            make_caption_function("instance", duplication, (), decode=str, seed=0),
            encode,
            **settings | changes,
        )

    return make


def _stack(records) -> dict[str, np.ndarray]:
    return {name: np.stack([r[name] for r in records]) for name in records[0]}


def _assert_equal(actual, expected) -> None:
    assert actual.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(actual[name], expected[name], err_msg=name)


def test_a_record_is_the_picture_and_the_caption_of_its_example(make_draws):
    draws = make_draws(random_flip=False, caption_dropout=0.0, duplication="full")
    for record in (draws[i] for i in range(20)):
        pixels, index = record["pixel_values"], record["example_index"]
        np.testing.assert_array_equal(pixels, picture(int(index)))
        assert pixels.dtype == np.uint8
        assert record["input_ids"].tolist() == [1, 0]


@pytest.mark.parametrize("sampling", ["epochs", "replacement"])
@pytest.mark.parametrize("count", [2, 4])
def test_processes_together_see_what_one_process_sees(make_draws, count, sampling):
    together = [
        list(
            iterate_batches(
                make_draws(sampling=sampling, process_index=i, process_count=count),
                first_step=0,
                num_threads=1,
            )
        )
        for i in range(count)
    ]
    alone = list(iterate_batches(make_draws(sampling=sampling), 0, num_threads=1))
    assert len(alone) == 12
    for step, expected in enumerate(alone):
        parts = [batches[step] for batches in together]
        assert all(len(part["example_index"]) == 8 // count for part in parts)
        joined = {k: np.concatenate([p[k] for p in parts]) for k in expected}
        _assert_equal(joined, expected)


@pytest.mark.parametrize("num_threads", [1, 3])
def test_a_resumed_run_sees_the_rest_of_the_batches(make_draws, num_threads):
    whole = list(iterate_batches(make_draws(), 0, num_threads=num_threads))
    for first_step in (1, 5, 11):
        tail = list(iterate_batches(make_draws(), first_step, num_threads=num_threads))
        assert len(tail) == 12 - first_step
        for actual, expected in zip(tail, whole[first_step:], strict=True):
            _assert_equal(actual, expected)


def test_a_longer_run_begins_like_a_shorter_one(make_draws):
    short = list(iterate_batches(make_draws(num_steps=3), 0))
    longer = iterate_batches(make_draws(num_steps=40), 0)
    for batch in short:
        _assert_equal(next(longer), batch)


def test_another_seed_gives_other_batches(make_draws):
    one, other = (_stack([make_draws(seed=s)[i] for i in range(64)]) for s in (0, 1))
    assert (one["example_index"] != other["example_index"]).any()


def test_random_crops_move_at_every_visit_and_change_nothing_else(make_draws):
    draws, centred = make_draws(random_crop=True), make_draws()
    places = []

    class Recording:
        example = staticmethod(draws.images.example)

        def pixels(self, index, example, place):
            places.append(place)
            return np.zeros((RESOLUTION, RESOLUTION, 3), np.uint8)

    draws.images = Recording()
    for i in range(64):
        cropped, plain = draws[i], centred[i]
        assert cropped["example_index"] == plain["example_index"]
        np.testing.assert_array_equal(cropped["input_ids"], plain["input_ids"])
    assert len(set(places)) == 64
    assert stats.kstest(places, "uniform").pvalue > 1e-3
    again = list(places)
    places.clear()
    for i in range(64):
        draws[i]
    assert places == again


@pytest.fixture(scope="module")
def many(images):
    """3,000 records in which everything random is switched on."""
    draws = Draws(
        images,
        np.arange(N) < 50,
        make_schedule(np.ones(N, np.int64), "replacement", 0),
        make_caption_function("instance", "partial", (), decode=str, seed=0),
        encode,
        num_steps=1,
        batch_size=3000,
        caption_dropout=0.25,
        random_flip=True,
        process_index=0,
        process_count=1,
    )
    return _stack([draws[i] for i in range(len(draws))])


def _flipped(batch) -> np.ndarray:
    return batch["pixel_values"][:, 0, 0, 1] == RESOLUTION - 1


def test_half_of_the_images_are_flipped(many):
    assert stats.binomtest(int(_flipped(many).sum()), 3000, 0.5).pvalue > 1e-3
    for i in range(10):
        pixels = picture(int(many["example_index"][i]))
        expected = pixels[:, ::-1] if _flipped(many)[i] else pixels
        np.testing.assert_array_equal(many["pixel_values"][i], expected)


def test_the_share_of_dropped_captions_is_the_one_asked_for(many):
    dropped = many["input_ids"][:, 0] == 0
    assert stats.binomtest(int(dropped.sum()), 3000, 0.25).pvalue > 1e-3
    # Whether a caption is dropped says nothing about the flip.
    table = [
        [np.sum(dropped & flip) for flip in (_flipped(many), ~_flipped(many))],
        [np.sum(~dropped & flip) for flip in (_flipped(many), ~_flipped(many))],
    ]
    assert stats.chi2_contingency(table).pvalue > 1e-3


def test_only_duplicated_images_get_varied_captions(many):
    captions = many["input_ids"][:, 0]
    duplicated = many["example_index"] < 50
    assert set(captions[~duplicated]) == {0, 1}
    varied = captions[duplicated & (captions > 0)]
    assert stats.chisquare(np.bincount(varied, minlength=5)[1:]).pvalue > 1e-3


@pytest.mark.parametrize("dropout", [0.0, 1.0])
def test_captions_are_dropped_never_or_always_at_the_ends_of_the_range(
    make_draws, dropout
):
    draws = make_draws(caption_dropout=dropout)
    ids = _stack([draws[i] for i in range(96)])["input_ids"][:, 0]
    assert set(ids == 0) == {dropout == 1.0}


def test_a_setting_changes_nothing_else_that_is_random(make_draws):
    base = make_draws()
    for changes in (
        {"random_flip": False},
        {"caption_dropout": 0.0},
        {"duplication": "full"},
    ):
        other = make_draws(**changes)
        one = _stack([base[i] for i in range(96)])
        two = _stack([other[i] for i in range(96)])
        np.testing.assert_array_equal(one["example_index"], two["example_index"])
        if "random_flip" not in changes:
            np.testing.assert_array_equal(one["pixel_values"], two["pixel_values"])
        if "caption_dropout" in changes:
            kept = one["input_ids"][:, 0] > 0
            assert not kept.all()
            np.testing.assert_array_equal(
                one["input_ids"][kept], two["input_ids"][kept]
            )
        if "duplication" in changes:
            np.testing.assert_array_equal(one["input_ids"] == 0, two["input_ids"] == 0)


def test_a_batch_that_does_not_divide_among_the_processes_is_refused(make_draws):
    with pytest.raises(ValueError, match=r"train.batch_size=8 .* 3 processes"):
        make_draws(process_count=3)


def test_images_too_large_for_the_cache_are_decoded_at_each_visit(images, monkeypatch):
    monkeypatch.setattr(pipeline, "CACHE_BYTES", 10)
    uncached = load_images(Source(), np.arange(2, N + 2), RESOLUTION)
    assert uncached.cache is None
    assert images.cache is not None
    for i in (0, 7, N - 1):
        np.testing.assert_array_equal(uncached[i], images[i])
        np.testing.assert_array_equal(images[i], picture(i))
