import dataclasses
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from etils import epath

from copymit.report.comparison import (
    describe_difference,
    make_strip,
    measured_differently,
)
from copymit.report.evaluated_run import list_generations
from copymit.report.gallery import encode_picture, make_galleries
from copymit.report.page import EvaluatedRun, write_report

HOSTILE = "<img src=x onerror=alert(1)>"
VOID = {"meta", "link", "img", "br", "wbr", "hr", "input"}
SECTIONS = ["similarity", "duplication", "comparison", "training", "warnings"]


def make_run(title="full x10", num_generations=40, num_references=12, side=16, seed=0):
    """Generations with known neighbours; images are noise."""
    rng = np.random.default_rng(seed)
    ids = [f"{i:06d}" for i in range(num_generations)]
    references = [f"r/{i}.png" for i in range(num_references)]
    prompted = np.arange(num_generations) % num_references
    nearest = np.where(rng.random(num_generations) < 0.6, prompted, 0)
    top1 = np.round(rng.uniform(0.3, 0.95, num_generations), 6)
    duplicated = np.arange(num_references) < 4
    rows = [
        (ids[i], rank, references[(nearest[i] + rank) % num_references], top1[i] - rank)
        for i in range(num_generations)
        for rank in range(2)
    ]
    captions = {r: [f"picture {i}", "other"] for i, r in enumerate(references)}
    prompts = [captions[references[i]][0] for i in prompted]

    def read(image_id):
        number = sum(map(ord, image_id))
        pixels = np.random.default_rng(number).integers(0, 256, (side, side, 3))
        return pixels.astype(np.uint8)

    scores = {
        "embedder": "some_net",
        "protocol": "short side 224",
        "num_generations": num_generations,
        "num_references": num_references,
        "similarity_mean": 0.83,
        "similarity_mean_ci95": [0.81, 0.85],
        "background_similarity_mean": 0.62,
        "dataset_similarity": 0.95,
        "prompted_image_hits": 0.6,
        "prompted_image_hits_duplicated": 1.0,
        "prompted_image_hits_duplicated_ci95": [0.97, 1.0],
        "prompted_image_hits_unduplicated": 0.5,
        "prompted_image_hits_unduplicated_ci95": [0.4, 0.6],
        "prompted_duplicated_similarity_mean": 0.9,
        "fd_some_net": 18.25,
        "search_recall": 1.0,
        "warnings": ["few images"],
    }
    return EvaluatedRun(
        title=title,
        scores=scores,
        settings={"data.duplication": "full", "train.steps": 1000},
        matches=pd.DataFrame(
            rows, columns=["generation", "rank", "reference", "similarity"]
        ),
        similarities={"generations": top1, "background": rng.uniform(0.2, 0.8, 12)},
        read_generation=read,
        read_reference=read,
        captions=captions,
        prompts=pd.DataFrame(
            {
                "id": ids,
                "prompt": prompts,
                "prompt_used": prompts,
                "seed": 0,
                "example_id": [references[i] for i in prompted],
            }
        ),
        duplication=pd.DataFrame(
            {
                "example_id": references,
                "weight": np.where(duplicated, 10, 1),
                "duplicated": duplicated,
                "caption_count": 2,
            }
        ),
        metrics=pd.DataFrame({"step": [10, 20, 30], "loss": [1.0, 0.5, np.nan]}),
    )


def bare(run):
    """The run as a folder of unknown origin would give it."""
    return dataclasses.replace(
        run,
        scores={"similarity_mean": 0.83},
        settings={},
        captions={},
        similarities={},
        prompts=None,
        duplication=None,
        metrics=None,
    )


class Page(HTMLParser):
    """Tags, attributes and text of a page; refuses tags that do not close."""

    def __init__(self, html):
        super().__init__()
        self.html, self.tags, self.open, self.texts = html, [], [], []
        self.feed(html)
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> at {self.getpos()}"

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self):
        text = " ".join(" ".join(self.texts).split())
        return text.replace("\N{NO-BREAK SPACE}", " ")

    def ids(self):
        return [a["id"] for _, a in self.tags if "id" in a]


def report(tmp_path, run, compared=(), **options):
    path = write_report(epath.Path(tmp_path), run, compared, **options)
    return Page(path.read_text())


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """Folder and page of a report with every part."""
    folder = tmp_path_factory.mktemp("full")
    return folder, report(folder, make_run(), [make_run("mitigated", seed=1)])


def figure_names(tmp_path):
    return sorted(p.stem for p in tmp_path.glob("figures/*.png"))


def test_every_part_is_there_when_its_data_is(full):
    folder, page = full
    assert page.ids() == [
        "content",
        "gallery",
        *SECTIONS[:-1],
        "scores",
        "settings",
        "warnings",
    ]
    assert figure_names(folder) == [
        "comparison",
        "histogram",
        "hits",
        "loss",
        "split",
    ]
    for text in (
        "This model copies",
        "mean similarity 0.830 [0.810, 0.850]",
        "Most copied",
        "Typical",
        "Least copied",
        "duplicated ×10",
        "prompted by it",
        "The same prompts in every run",
        "few images",
        "train. steps",
        "All 2 settings",
    ):
        assert text in page.text


def test_parts_without_data_are_absent(tmp_path):
    stale = tmp_path / "figures" / "comparison.png"
    stale.parent.mkdir()
    stale.touch()
    page = report(tmp_path, bare(make_run()))
    assert page.ids() == ["content", "gallery", "scores", "settings"]
    assert figure_names(tmp_path) == []  # those of the last report are gone
    for text in ("Prompt", "Caption", "duplicated", "None", "nan", "Compared"):
        assert text not in page.text


def test_the_gallery_can_be_left_out(tmp_path):
    page = report(tmp_path, make_run(), gallery_size=0)
    assert "gallery" not in page.ids()
    assert "Most copied" not in page.text


def test_text_from_outside_stays_text(tmp_path):
    run = make_run(title=HOSTILE)
    run.captions["r/0.png"][0] = HOSTILE
    run.prompts.loc[:, "prompt"] = HOSTILE
    run.prompts.loc[:, "prompt_used"] = '"><script>alert(2)</script>'
    run = dataclasses.replace(
        run,
        settings={HOSTILE: HOSTILE},
        scores=run.scores
        | {"protocol": HOSTILE, HOSTILE: HOSTILE, "warnings": [HOSTILE]},
    )
    page = report(tmp_path, run, [run])
    assert HOSTILE not in page.html
    assert page.text.count(HOSTILE) > 10
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "iframe", "object"})
    assert not [a for _, attrs in page.tags for a in attrs if a.startswith("on")]
    assert [a["src"] for tag, a in page.tags if tag == "img" and a["src"] == "x"] == []


def test_the_page_loads_nothing_from_outside(full):
    _, page = full
    for tag, attrs in page.tags:
        assert attrs.get("src", "data:").startswith("data:"), tag
        assert attrs.get("href", "#").startswith(("#", "data:")), tag
        assert not attrs.keys() & {"srcset", "action", "style", "background"}, tag
    assert "url(" not in page.html
    assert "@import" not in page.html
    policies = [a["content"] for t, a in page.tags if t == "meta" and "http-equiv" in a]
    assert policies == [
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'",
    ]


def test_links_lead_to_parts_and_images_have_words(full):
    _, page = full
    targets = {a["href"][1:] for t, a in page.tags if t == "a"}
    assert targets == set(page.ids())
    images = [a for t, a in page.tags if t == "img"]
    assert len(images) > 40
    assert all(a["alt"] and int(a["width"]) > 0 for a in images)


def test_the_same_input_gives_the_same_bytes(full, tmp_path):
    folder, _ = full
    report(tmp_path, make_run(), [make_run("mitigated", seed=1)])
    files = [p.relative_to(folder) for p in folder.glob("**/*.*")]
    assert len(files) == 6
    for file in files:
        assert (folder / file).read_bytes() == (tmp_path / file).read_bytes(), file


def test_a_default_page_of_large_noisy_images_stays_under_8_mb(tmp_path):
    # Noise compresses worst, so real pictures stay below this.
    run = make_run(num_generations=80, num_references=40, side=300)
    report(tmp_path, run, [dataclasses.replace(run, title="again")])
    assert (tmp_path / "report.html").stat().st_size < 8e6


def test_runs_are_compared_in_words_and_numbers(tmp_path):
    ours, theirs = make_run(), make_run("mitigated", seed=1)
    theirs = dataclasses.replace(
        theirs,
        scores=theirs.scores
        | {"similarity_mean": 0.7, "similarity_mean_ci95": [0.68, 0.72]},
        settings=theirs.settings | {"data.duplication": "partial"},
    )
    page = report(tmp_path, ours, [theirs])
    assert "mean similarity is lower (0.700 [0.680, 0.720] against 0.830" in page.text
    assert "Settings that differ data. duplication full partial" in page.text
    assert "Not the same measure" not in page.text


def test_runs_measured_by_different_embedders_are_told_apart():
    ours, theirs = make_run(), make_run("mitigated", seed=1)
    assert not measured_differently([ours, theirs])
    other = dataclasses.replace(theirs, scores=theirs.scores | {"embedder": "other"})
    assert measured_differently([ours, other])


def test_a_difference_within_the_intervals_is_called_none():
    ours = {"similarity_mean": 0.7, "similarity_mean_ci95": [0.6, 0.8]}
    theirs = {"similarity_mean": 0.75, "similarity_mean_ci95": [0.65, 0.85]}
    assert "is about the same, the intervals overlap" in describe_difference(
        ours, theirs
    )
    assert describe_difference(ours, {}) == ""


def test_the_strip_shows_equal_prompts_only_half_of_them_duplicated():
    ours, theirs = make_run(), make_run("mitigated", seed=1)
    changed = theirs.prompts["id"] >= "000006"
    theirs.prompts.loc[changed, "prompt"] = "something else"
    generations = [list_generations(r) for r in (ours, theirs)]
    strip = make_strip([ours, theirs], generations, 4)
    assert [row.label for row in strip.rows] == [
        "Training image",
        "full x10",
        "mitigated",
    ]
    assert strip.rows[1].names == strip.rows[2].names
    assert all(name < "000006" for name in strip.rows[1].names)
    assert sorted(strip.weights) == ["", "", "10", "10"]
    theirs.prompts.loc[:, "prompt"] = "something else"
    generations[1] = list_generations(theirs)
    assert make_strip([ours, theirs], generations, 4) is None


def test_the_most_copied_are_one_for_each_training_image_and_in_order():
    run = make_run()
    most, typical, least = make_galleries(run, list_generations(run), 6)
    nearest = [card.nearest.id for card in most.cards]
    assert len(set(nearest)) == len(nearest) == 6
    similarities = [card.generation.similarity for card in most.cards]
    assert similarities == sorted(similarities, reverse=True)
    assert similarities[0] == run.similarities["generations"].max()
    assert len(typical.cards) == len(least.cards) == 2
    assert (
        least.cards[-1].generation.similarity == run.similarities["generations"].min()
    )


def test_a_card_shows_the_prompted_image_only_where_it_is_another():
    run = make_run()
    galleries = make_galleries(run, list_generations(run), 24)
    cards = [card for gallery in galleries for card in gallery.cards]
    hits = [c for c in cards if c.is_prompted]
    misses = [c for c in cards if not c.is_prompted]
    assert hits
    assert misses
    assert all(c.prompted is None for c in hits)
    assert all(c.prompted.id == c.generation.prompted for c in misses)


def test_a_prompted_image_that_was_never_trained_on_is_not_shown():
    run = make_run()
    run.prompts.loc[:, "example_id"] = "heldout.png"
    assert {g.prompted for g in list_generations(run)} == {None}


def test_a_changed_prompt_is_shown_as_used(full, tmp_path):
    run = make_run()
    run.prompts.loc[:, "prompt_used"] = run.prompts["prompt"] + " 4711"
    assert "As used picture 0 4711" in report(tmp_path, run).text
    assert "As used" not in full[1].text


def test_small_images_are_kept_exactly_and_large_ones_shrink():
    small = encode_picture(np.zeros((32, 48, 3), np.uint8), "a")
    assert (small.width, small.height, small.pixelated) == (48, 32, True)
    large = encode_picture(np.zeros((512, 1024, 3), np.uint8), "a")
    assert (large.width, large.height, large.pixelated) == (256, 128, False)


@pytest.mark.parametrize(
    "image",
    [np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8)],
)
def test_an_image_that_is_none_is_named(image):
    with pytest.raises(ValueError, match=r"image .x\.png. is .* give uint8"):
        encode_picture(image, "x.png")


def test_tables_that_do_not_fit_are_named(tmp_path):
    run = make_run()
    cases = {
        "`matches` lacks the column rank": {
            "matches": run.matches.drop(columns="rank")
        },
        "`matches` has no row of rank 0": {"matches": run.matches.iloc[:0]},
        "NaN or infinite": {"matches": run.matches.assign(similarity=np.nan)},
        "no `prompts.id`": {"prompts": run.prompts.assign(id="unknown")},
        "`metrics` lacks the column loss": {"metrics": pd.DataFrame({"step": [1]})},
    }
    for message, change in cases.items():
        with pytest.raises(ValueError, match=message):
            write_report(epath.Path(tmp_path), dataclasses.replace(run, **change))
    with pytest.raises(ValueError, match="gallery_size is -1"):
        write_report(epath.Path(tmp_path), run, gallery_size=-1)


def test_a_caption_that_is_no_proper_text_does_not_stop_the_report(tmp_path):
    run = make_run()
    run.captions["r/0.png"][0] = "lone \udcff"
    assert "lone \\udcff" in report(tmp_path, run).text
