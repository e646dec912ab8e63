"""The page in a real browser: Debian's Chromium, headless, driven by playwright."""

import shutil

import numpy as np
import pandas as pd
import pytest
from etils import epath
from PIL import Image

from configs.sweeps_types import draws
from copymit.report.evaluated_run import EvaluatedRun
from copymit.report.page import write_report
from copymit.report.pairs import write_pair_pages
from launch.collect import collect
from tests.launch.fake_sweep import make_plans, run_fake
from tests.launch.pictured import write_pairs

playwright = pytest.importorskip(
    "playwright.sync_api", reason="needs playwright (pip install copymit[test])"
)
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="needs chromium (apt-get install chromium)"
)

HOSTILE = "<img src=x onerror=\"document.title='owned'\">"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def browsed_run():
    """Twelve generations; captions of animals, one of them hostile; four duplicated."""
    words = ["newt", "yak", "ape", "bat", "cat", "dog", "eel", "fox", "gnu", "hen"]
    words += ["ibis", HOSTILE]
    count = len(words)
    ids = [f"{i:06d}" for i in range(count)]
    references = [f"folder/image{i}.png" for i in range(count)]
    similarities = np.round(np.linspace(0.35, 0.95, count), 3)
    rows = [
        (ids[i], rank, references[(i + rank) % count], similarities[i] - 0.05 * rank)
        for i in range(count)
        for rank in range(5)
    ]

    def read(image_id):
        number = sum(map(ord, image_id))
        pixels = np.random.default_rng(number).integers(0, 256, (24, 24, 3))
        return pixels.astype(np.uint8)

    return EvaluatedRun(
        title="a run with a rather long title, as experiments tend to have",
        scores={
            "embedder": "some_net",
            "protocol": "short side 224, a protocol that is described at some length",
            "similarity_mean": 0.65,
            "similarity_mean_ci95": [0.6, 0.7],
            "background_similarity_mean": 0.5,
            "fd_some_net_of_a_very_long_name_that_cannot_be_broken": 1.0,
        },
        settings={"data.source": "folder/" + "x" * 80},
        matches=pd.DataFrame(
            rows, columns=["generation", "rank", "reference", "similarity"]
        ),
        similarities={"generations": similarities},
        read_generation=read,
        read_reference=read,
        captions={r: [w] for r, w in zip(references, words, strict=True)},
        prompts=pd.DataFrame(
            {"id": ids, "prompt": words, "seed": 0, "example_id": references}
        ),
        duplication=pd.DataFrame(
            {
                "example_id": references,
                "weight": 10,
                "duplicated": np.arange(count) % 3 == 0,
            }
        ),
        metrics=None,
    )


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = epath.Path(tmp_path_factory.mktemp("page"))
    return write_report(folder, browsed_run(), [browsed_run()]).as_uri()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    # Its own home, so that no profile of the user is touched.
    home = str(tmp_path_factory.mktemp("home"))
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=CHROMIUM, args=FLAGS, env={"HOME": home}
        )
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser, address):
    """Opens the page; what it asks for and complains about is recorded on it."""
    contexts = []

    def open_page(where=address, **options):
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.requested, page.complaints, page.failures = [], [], {}
        page.on("request", lambda request: page.requested.append(request.url))
        page.on("requestfailed", lambda r: page.failures.update({r.url: r.failure}))
        page.on("console", lambda message: page.complaints.append(message.text))
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.goto(where)
        return page

    yield open_page
    for context in contexts:
        context.close()


def shown(page, attribute):
    cards = page.locator("#cards > li:visible")
    return cards.evaluate_all(
        "(cards, name) => cards.map(c => c.dataset[name])", attribute
    )


def test_no_request_leaves_the_page_and_nothing_is_complained_about(open_page, address):
    page = open_page()
    page.locator("#metrics-card").scroll_into_view_if_needed()
    page.locator("#text").fill("cat")
    page.locator("#sort").select_option("name")
    outside = [url for url in page.requested if not url.startswith("data:")]
    assert outside == [address]
    assert page.complaints == []
    loaded = page.locator("img").evaluate_all(
        "images => images.filter(i => i.complete && i.naturalWidth > 0).length"
    )
    assert loaded > 10


def test_the_policy_stops_whatever_is_not_the_pages_own(open_page):
    page = open_page()
    stopped = page.evaluate(
        """() => new Promise(resolve => {
            const directives = new Set();
            document.addEventListener("securitypolicyviolation", event => {
                directives.add(event.effectiveDirective);
                if (directives.size == 3) resolve([...directives].sort());
            });
            const script = document.createElement("script");
            script.textContent = "document.title = 'owned'";
            const image = document.createElement("img");
            image.src = "https://example.invalid/x.png";
            document.body.append(script, image);
            fetch("https://example.invalid/").catch(() => {});
        })"""
    )
    assert stopped == ["connect-src", "img-src", "script-src-elem"]
    assert page.title() != "owned"
    # What the policy stops is announced as a request that failed, and never sent.
    asked = {url for url in page.requested if url.startswith("https:")}
    assert {page.failures.get(url) for url in asked} <= {"csp"}


def test_a_hostile_caption_stays_text(open_page):
    page = open_page()
    assert page.title() != "owned"
    assert page.locator('img[src="x"]').count() == 0
    page.locator("#text").fill("onerror")
    assert page.get_by_text(HOSTILE).locator("visible=true").count() > 0
    assert HOSTILE in shown(page, "prompt")
    assert page.title() != "owned"


def test_sorting(open_page):
    page = open_page()
    expected = {
        "least-similar": ("similarity", sorted, float),
        "name": ("name", sorted, str),
        "prompt": ("prompt", sorted, str),
    }
    for order, (attribute, sort, kind) in expected.items():
        page.locator("#sort").select_option(order)
        values = [kind(value) for value in shown(page, attribute)]
        assert values == sort(values)
        assert len(values) == 12
    page.locator("#sort").select_option("most-similar")
    values = [float(value) for value in shown(page, "similarity")]
    assert values == sorted(values, reverse=True)


def test_filters_combine_and_the_count_is_announced(open_page):
    page = open_page()
    status = page.locator("#shown")
    assert status.get_attribute("aria-live") == "polite"
    assert status.inner_text() == "12 of 12 shown"
    page.locator("#duplicated").select_option("yes")
    assert set(shown(page, "duplicated")) == {"yes"}
    assert status.inner_text() == "4 of 12 shown"
    page.locator("#least").fill("0.6")
    assert all(float(s) >= 0.6 for s in shown(page, "similarity"))
    assert status.inner_text() == "2 of 12 shown"
    page.locator("#text").fill("IMAGE6 eel")
    assert shown(page, "prompt") == ["eel"]
    page.locator("#text").fill("no such words")
    assert status.inner_text() == "0 of 12 shown"
    assert page.locator("#nothing").is_visible()
    page.get_by_role("button", name="Reset").click()
    # Not wait_for_function: it evaluates text in the page, which its policy forbids.
    playwright.expect(status).to_have_text("12 of 12 shown")
    assert page.locator("#nothing").is_hidden()


def test_the_switch_blurs_every_picture_of_an_image(open_page):
    page = open_page(reduced_motion="reduce")
    switch = page.get_by_role("switch", name="Blur pictures")
    filters = "images => [...new Set(images.map(i => getComputedStyle(i).filter))]"
    pictures = page.locator("#cards img, .strip img")
    assert pictures.evaluate_all(filters) == ["none"]
    assert "off" in page.locator("label.switch").inner_text()
    switch.press("Space")
    assert all(f.startswith("blur(") for f in pictures.evaluate_all(filters))
    assert "on" in page.locator("label.switch").inner_text()
    assert page.locator("#similarity .plot img").evaluate_all(filters) == ["none"]


def test_pages_of_pairs_show_blurred_pictures_and_nothing_is_complained_about(
    open_page, tmp_path
):
    """They did not blur, and their policy forbade their own icon."""
    Image.new("RGB", (48, 20), "red").save(tmp_path / "1.png")
    pair = {"generation": "g", "copy_of": "r", "grade": "exact", "similarity": 0.9}
    table = pd.DataFrame([pair | {"picture": "1.png"}])
    write_pair_pages(epath.Path(tmp_path), table, blurred=True)
    page = open_page((tmp_path / "page_001.html").as_uri(), reduced_motion="reduce")
    picture = page.locator(".cards img")
    filters = (
        "image => [image.naturalWidth, getComputedStyle(image).filter.slice(0, 5)]"
    )
    assert picture.evaluate(filters) == [48, "blur("]
    page.get_by_role("switch", name="Blur pictures").press("Space")
    assert picture.evaluate(filters) == [48, "none"]
    assert page.complaints == []


@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_of_a_sweep_shows_its_pairs_at_any_width(open_page, tmp_path, width):
    (made,) = make_plans(1, 1)
    run_fake(made.tasks, tmp_path)
    write_pairs(tmp_path / made.scores, HOSTILE)
    collect(draws()(lambda *_: iter([made.trial])), [made], str(tmp_path), "small")
    viewport = {"width": width, "height": 900}
    page = open_page((tmp_path / "small.html").as_uri(), viewport=viewport)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    pictures = page.locator(".cards img")
    assert pictures.count() == 24
    last = pictures.last
    last.scroll_into_view_if_needed()
    playwright.expect(last).to_have_js_property("complete", value=True)
    assert last.evaluate("image => image.naturalWidth") == 2 * 8 + 8
    assert last.bounding_box()["width"] > 150
    assert page.title() == "small – pictures of a sweep"
    assert page.complaints == []
    assert all(url.startswith(tmp_path.as_uri()) for url in page.requested)


def test_without_script_everything_but_the_controls_is_there(open_page):
    page = open_page(java_script_enabled=False)
    assert page.locator("#controls").is_hidden()
    assert page.locator("#copy").is_hidden()
    assert page.locator("#cards > li").count() == 12
    assert page.locator("#cards > li").last.is_visible()
    page.get_by_role("switch", name="Blur pictures").check()


def test_the_keyboard_reaches_every_control_with_a_visible_focus(open_page):
    page = open_page()
    reached = []
    for _ in range(80):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate(
                """() => {
                    const active = document.activeElement;
                    const style = getComputedStyle(active);
                    return [active.id || active.type, style.outlineStyle];
                }"""
            )
        )
    names = [name for name, _ in reached]
    for name in ("blur", "text", "sort", "reason", "duplicated", "least", "reset"):
        assert name in names, name
    assert {"metrics-card", "copy"} <= set(names)
    styles = {style for name, style in reached if name}
    assert "none" not in styles


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_reaches_beyond_the_width_and_colours_follow_the_scheme(
    open_page, width, scheme
):
    page = open_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page.locator("summary").evaluate_all("all => all.forEach(s => s.click())")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    brightness = sum(map(int, background[4:-1].split(","))) / 3
    assert (brightness > 128) == (scheme == "light")


def test_the_metrics_card_can_be_copied(open_page):
    page = open_page()
    page.locator("#copy").click()
    playwright.expect(page.locator("#copied")).not_to_be_empty()
    selected = page.evaluate(
        "(c => c.value.slice(c.selectionStart, c.selectionEnd))"
        "(document.querySelector('#metrics-card'))"
    )
    assert selected == page.locator("#metrics-card").input_value()
    assert "some_net (short side 224" in selected
