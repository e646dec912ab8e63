import base64
import dataclasses
import hashlib
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from etils import epath

from copymit.report.comparison import describe_difference, make_strip
from copymit.report.evaluated_run import EvaluatedRun, list_generations
from copymit.report.page import write_report
from copymit.scores.grades import GRADES

HOSTILE = "<img src=x onerror=alert(1)>"
VOID = {"meta", "link", "img", "br", "wbr", "hr", "input"}
PAIRS = "copies/page_001.html"  # which is linked, not loaded
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
        "num_copies": 2,
        "num_exact_copies": 1,
        "copied_images": 1,
        "copy_threshold": 0.9,
        "false_discovery_rate": 0.01,
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
        measured=pd.DataFrame(
            {
                "generation": ids,
                "grade": ["exact", "none", "likely copy"] + ["none"] * (len(ids) - 3),
                "copy_of": ["r/2.png", None, "r/2.png"] + [None] * (len(ids) - 3),
            }
        ),
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
        measured=None,
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
        if self.open[-1:] not in (["script"], ["style"]):
            self.texts.append(data)

    @property
    def text(self):
        text = " ".join(" ".join(self.texts).split())
        return text.replace("\N{NO-BREAK SPACE}", " ")

    def sections(self):
        return [a["id"] for t, a in self.tags if t in ("main", "section")]

    def cards(self):
        return [a for t, a in self.tags if "data-similarity" in a]


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
    assert page.sections() == [
        "content",
        "returned",
        "gallery",
        "similarity",
        "numbers",
        *SECTIONS[1:-1],
        "scores",
        "card",
        "settings",
        "warnings",
    ]
    assert figure_names(folder) == [
        "comparison",
        "histogram",
        "hits",
        "loss",
        "split",
        "tradeoff",
    ]
    for text in (
        "2 of 40 generations are copies of 1 training image (1 exact)",
        "called copies; where a picture has near others",
        "came back 2 times",
        "most similar",
        "drawn at random",
        "least similar",
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
    assert page.sections() == [
        *("content", "gallery", "numbers", "scores", "card", "settings")
    ]
    assert figure_names(tmp_path) == []  # those of the last report are gone
    for text in ("Prompt", "Caption:", "duplicated ×", "None", "Compared with"):
        assert text not in page.text


def test_the_gallery_can_be_left_out(tmp_path):
    page = report(tmp_path, make_run(), gallery_size=0)
    assert "gallery" not in page.sections()
    assert not page.cards()


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
    assert {tag for tag, _ in page.tags}.isdisjoint({"iframe", "object", "base"})
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert not [a for _, attrs in page.tags for a in attrs if a.startswith("on")]
    assert [a["src"] for tag, a in page.tags if tag == "img" and a["src"] == "x"] == []


def test_the_page_loads_nothing_from_outside(full):
    _, page = full
    for tag, attrs in page.tags:
        assert attrs.get("src", "data:").startswith("data:"), tag
        assert attrs.get("href", "#").startswith(("#", "data:", PAIRS)), tag
        assert not attrs.keys() & {"srcset", "action", "style", "background"}, tag
    assert "url(" not in page.html
    assert "@import" not in page.html


def test_the_policy_allows_the_own_style_and_script_alone(full):
    _, page = full
    (policy,) = (
        a["content"] for t, a in page.tags if t == "meta" and "http-equiv" in a
    )
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    expected = {name: f"'{inline_hash(page, name)}'" for name in ("style", "script")}
    assert rules == {
        "default-src": "'none'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "img-src": "data:",
        "style-src": expected["style"],
        "script-src": expected["script"],
    }


def inline_hash(page, tag):
    source = re.search(f"<{tag}>(.*?)</{tag}>", page.html, re.DOTALL)[1]
    digest = hashlib.sha256(source.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


def test_links_lead_to_parts_and_images_have_words(full):
    _, page = full
    targets = {a["href"][1:] for t, a in page.tags if t == "a"}
    assert targets - {PAIRS[1:]} == set(page.sections())
    images = [a for t, a in page.tags if t == "img"]
    assert len(images) > 40
    assert all(a["alt"] and int(a["width"]) > 0 for a in images)


def test_the_same_input_gives_the_same_bytes(full, tmp_path):
    folder, _ = full
    report(tmp_path, make_run(), [make_run("mitigated", seed=1)])
    files = [p.relative_to(folder) for p in folder.glob("**/*.*")]
    assert len(files) == 11 + 24
    for file in files:
        assert (folder / file).read_bytes() == (tmp_path / file).read_bytes(), file


def test_a_default_page_of_large_noisy_images_would_stay_under_8_mb(tmp_path):
    # Noise compresses worst, so real pictures stay below this. A default page has at
    # most 24 + 8 + 8 cards; a few of them are enough to know the bytes of one.
    run = bare(make_run(num_generations=12, num_references=6, side=300))
    page = report(tmp_path, run, gallery_size=3)
    size = (tmp_path / "report.html").stat().st_size
    assert size / len(page.cards()) * 40 < 8e6


def test_runs_are_compared_in_words_and_numbers(tmp_path):
    ours, theirs = make_run(), make_run("mitigated", seed=1)
    theirs = dataclasses.replace(
        theirs,
        scores=theirs.scores
        | {"similarity_mean": 0.7, "similarity_mean_ci95": [0.68, 0.72]},
        settings=theirs.settings | {"data.duplication": "partial"},
    )
    theirs.prompts.loc[:, "seed"] = 1  # so the numbers above are all that is known
    page = report(tmp_path, ours, [theirs])
    assert "mean similarity is lower (0.700 [0.680, 0.720] against 0.830" in page.text
    assert "Settings that differ data. duplication full partial" in page.text


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


def test_a_prompted_image_that_was_never_trained_on_is_not_shown():
    run = make_run()
    run.prompts.loc[:, "example_id"] = "heldout.png"
    assert {g.prompted for g in list_generations(run)} == {None}


def test_a_changed_prompt_is_shown_as_used(full, tmp_path):
    run = make_run()
    run.prompts.loc[:, "prompt_used"] = run.prompts["prompt"] + " 4711"
    assert "As used picture 0 4711" in report(tmp_path, run).text
    assert "As used" not in full[1].text


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


def test_runs_of_different_embedders_are_refused_before_anything_is_written(tmp_path):
    ours, theirs = make_run(), make_run("mitigated", seed=1)
    theirs = dataclasses.replace(theirs, scores=theirs.scores | {"embedder": "other"})
    with pytest.raises(ValueError, match="'full x10' was measured by some_net"):
        report(tmp_path / "new", ours, [theirs])
    assert not (tmp_path / "new").exists()


def test_a_smaller_page_has_smaller_pictures_then_fewer_and_says_so(tmp_path):
    run = bare(make_run(num_generations=12, num_references=6, side=160))
    report(tmp_path, run, gallery_size=6, num_neighbours=2)
    whole = (tmp_path / "report.html").stat().st_size
    for share, expected in ((0.5, "Pictures are at most"), (0.12, "were left out")):
        limit = int(share * whole)
        page = report(tmp_path, run, max_bytes=limit, gallery_size=6, num_neighbours=2)
        assert (tmp_path / "report.html").stat().st_size <= limit
        assert expected in page.text
    left_out = int(re.search(r"(\d+) of (\d+) chosen generations", page.text)[1])
    chosen = int(re.search(r"(\d+) of (\d+) chosen generations", page.text)[2])
    assert 0 < left_out < chosen
    assert len(page.cards()) == chosen - left_out
    with pytest.raises(ValueError, match="max_bytes=1000 is too small"):
        report(tmp_path, run, max_bytes=1000)


def test_pictures_start_blurred_where_that_is_asked_for(full, tmp_path):
    blurred = report(tmp_path, make_run(), blurred=True)
    for page, expected in ((full[1], False), (blurred, True)):
        (switch,) = (a for _, a in page.tags if a.get("id") == "blur")
        assert ("checked" in switch) == expected


def test_without_a_script_cards_are_sorted_and_the_controls_hidden(full):
    _, page = full
    places = [
        (GRADES.index(card["data-grade"]), -float(card["data-similarity"]))
        for card in page.cards()
    ]
    assert places == sorted(places)
    assert [grade for grade, _ in places[:2]] == [0, 4]  # one for each copied image
    for name in ("controls", "copy", "nothing"):
        (attributes,) = (a for _, a in page.tags if a.get("id") == name)
        assert "hidden" in attributes


def test_the_metrics_card_lies_beside_the_page_and_in_it(full):
    folder, page = full
    text = (folder / "metrics_card.txt").read_text().strip()
    assert text.startswith("Compared were 40 generations and 12 training images.")
    assert text in page.text


def test_alarms_stand_before_all_numbers_and_the_bias_beside_its_number(tmp_path):
    run = make_run()
    scores = {"alarms": ["3 of 40 generations are of one colour"]}
    scores |= {
        "frechet_bias_of_fd_some_net": "The distance is biased upwards.",
        "fd_some_net": 18.25,
    }
    run = dataclasses.replace(run, scores=run.scores | scores)
    html = write_report(epath.Path(tmp_path), run).read_text()
    assert html.index("3 of 40 generations") < html.index('<main id="content">')
    number, bias = (
        html.index("Fréchet distance (some_net)"),
        html.index("biased upwards"),
    )
    assert 0 < bias - number < 800
