"""The page of a sweep: the pairs of its trials, by prompt, and nothing from outside."""

import html
import re
import shutil

import pandas as pd
import pytest

from configs.sweeps_types import Bars, Curves, Score, draws
from launch.collect import collect
from launch.pictures import read_pairs
from launch.trials import plan, unique_tasks
from tests.launch.fake_sweep import SIMILARITY, make_plans, make_trials, run_fake
from tests.launch.pictured import write_pairs

HOSTILE = "\"><script>alert('1')</script><img src=x onerror=alert(1)>"
PANELS = (Curves("factor", SIMILARITY, "factor"),)
sweep = draws(*PANELS)(lambda preset, seeds: iter(make_trials(4, 2)))
IMAGE = re.compile(r'<img src="([^"]*)"')


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """The directory of a finished sweep of two settings, not to be changed."""
    root = tmp_path_factory.mktemp("swept")
    plans = make_plans(4, 2)
    run_fake(unique_tasks(plans), root)
    for made in plans:
        write_pairs(root / made.scores, HOSTILE)
    return root


@pytest.fixture
def finished(swept, tmp_path):
    """A copy of it."""
    shutil.copytree(swept, tmp_path, dirs_exist_ok=True)
    return tmp_path


def page_of(root, plans=None, sweep=sweep):
    collect(sweep, plans or make_plans(4, 2), str(root), "fake")
    return (root / "fake.html").read_text()


def test_each_setting_has_its_scores_and_the_pairs_of_each_seed(finished):
    page = page_of(finished)
    sections = page.split("<section")[1:]
    assert [re.search("<bdi>(.*?)</bdi>", part)[1] for part in sections] == [
        "factor 1",
        "factor 2",
    ]
    for part in sections:
        assert "<dt>similarity</dt>" in part
        trials = part.split("<details")[1:]
        assert [re.search("Seed ([0-9]+)", t)[1] for t in trials] == ["0", "1"]
        assert [len(IMAGE.findall(t)) for t in trials] == [24, 24]
        assert " open>" in trials[0]
        assert " open>" not in trials[1]
    figure, *pictures = IMAGE.findall(page)
    assert figure == "fake.png"
    assert all((finished / address).is_file() for address in pictures)
    assert len(set(pictures)) == 4 * 24


def test_prompts_of_duplicated_images_come_first_and_a_copy_is_marked(finished):
    trial = page_of(finished).split("<details")[1]
    first, second = trial.split("<h3")[1:]
    assert "Prompts of duplicated training images" in first
    assert "Prompts of training images that are there once" in second
    for part in (first, second):
        found = [float(x) for x in re.findall(r"<b>([0-9.]+)</b>", part)]
        assert len(found) > 5
        assert found == sorted(found, reverse=True)
    assert trial.count('<span class="badge warm">exact</span>') == 1
    assert trial.count("prompted by it") > 0


def test_text_from_outside_stays_text(finished):
    page = page_of(finished)
    assert "<script" not in page
    assert html.escape(HOSTILE, quote=False)[2:20] in page.replace("&#34;", '"')
    assert "<img src=x" not in page


def test_a_table_from_elsewhere_can_show_no_other_file(finished):
    made = make_plans(4, 2)[0]
    path = finished / made.scores / "generations.parquet"
    table = pd.read_parquet(path)
    rows = table.index[table["pair"].notna()]
    foreign = ["../scores.json", "/etc/passwd", "https://example.com/a.jpg", HOSTILE]
    table.loc[rows[: len(foreign)], "pair"] = foreign
    table.to_parquet(path)
    found = read_pairs(str(finished), made.scores)
    assert len(found) == 24 - len(foreign)
    folder = f"{made.scores}/pairs/"
    assert all(record["picture"].startswith(folder) for record in found)


def test_the_same_results_give_the_same_bytes_wherever_they_lie(finished, tmp_path):
    other = tmp_path / "elsewhere"
    shutil.copytree(finished / "runs", other / "runs")
    assert page_of(finished) == page_of(other)


def test_what_has_no_pictures_or_no_scores_says_so(finished):
    plans = make_plans(4, 2)
    shutil.rmtree(finished / plans[0].scores / "pairs")
    (finished / plans[1].scores / "generations.parquet").unlink()
    plans.append(plan(make_trials(6, 2)[-1]))
    page = page_of(finished, plans)
    notes = re.findall(r'<p class="inside soft">(.*?)</p>', page)
    assert notes == ["no pictures are kept", "no pictures are kept", "not run yet"]
    assert "INCOMPLETE: 1 of 5 trials lack scores" in page
    assert len(IMAGE.findall(page)) == 1 + 2 * 24


def test_trials_of_one_evaluation_show_its_pictures_once(finished):
    trials = [
        trial._replace(name=f"{name}-seed{trial.labels['seed']}", labels=labels)
        for trial in make_trials(4, 2)[:2]
        for name in ("a", "b")
        for labels in [{"name": name, "seed": trial.labels["seed"]}]
    ]
    named = draws(Bars("name", Score("s", ("dataset_similarity",)), "name"))
    page = page_of(finished, [plan(t) for t in trials], named(lambda *_: iter(trials)))
    assert page.count(" beside training image ") == 2 * 24
    for seed in (0, 1):
        assert f'The same evaluation as <a href="#a-seed{seed}">' in page
        assert page.count(f'id="a-seed{seed}"') == 1


def test_pictures_start_blurred_where_the_evaluations_do(finished):
    plans = make_plans(4, 2)
    assert " checked>" not in page_of(finished, plans)
    blurred = plans[0].trial._replace(evaluate={"eval.blur": True})
    plans[0] = plans[0]._replace(trial=blurred)
    assert " checked>" in page_of(finished, plans)
