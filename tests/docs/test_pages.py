"""Links of the front page and the manual, as they are followed in the repository."""

import re
from pathlib import Path

import pytest

from configs import sweeps
from tests.docs.pages import DOCS, PAGES, README, ROOT
from tests.extras import read_extras

_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def anchors(path: Path) -> set[str]:
    """Lists the anchors of a page's headings, as GitHub and MyST make them."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
    kept = (re.sub(r"[^\w\- ]", "", h.lower()) for h in headings)
    return {text.replace(" ", "-") for text in kept}


@pytest.mark.parametrize("page", [README, *PAGES], ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    dead = []
    for link in _LINK.findall(page.read_text()):
        place, _, anchor = link.partition("#")
        if "://" in link:
            continue
        target = (page.parent / place).resolve() if place else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            dead.append(link)
    assert not dead


def test_every_page_is_in_the_contents_of_the_manual():
    contents = (DOCS / "index.md").read_text()
    listed = {f"{line}.md" for line in contents.splitlines() if line}
    pages = {str(p.relative_to(DOCS)) for p in PAGES if p.parent == DOCS}
    assert pages - {"index.md"} <= listed


def test_readme_is_a_front_page():
    assert len(README.read_text().split()) < 900


def test_readme_names_only_sweeps_and_configs_that_there_are():
    text = README.read_text()
    _, _, table = text.partition("| paper | sweep |")
    named = {
        name
        for row in table.partition("\n\n")[0].splitlines()[2:]
        for name in re.findall(r"`(\w+)`", row.split("|")[2])
    }
    assert named
    assert named <= set(sweeps.__all__)
    configs = re.findall(r"--config=(\w+)", text)
    assert configs
    assert all((ROOT / "configs" / f"{name}.py").exists() for name in configs)


def test_the_page_on_the_code_has_every_package():
    listed = re.findall(r"^  (\w+)/", (DOCS / "code.md").read_text(), re.MULTILINE)
    packages = {p.parent.name for p in (ROOT / "copymit").glob("*/__init__.py")}
    assert set(listed) == packages


def test_the_page_on_installing_has_every_extra():
    text = (DOCS / "install.md").read_text()
    extras = read_extras().keys() - {""}
    assert not [extra for extra in extras if f"`{extra}`" not in text]


def test_nothing_that_is_not_shipped_is_cited():
    """`paper.md` was cited, and lay in no repository."""
    texts = [p for p in ROOT.rglob("*.py") if ".venv" not in str(p)] + [README, *PAGES]
    cited = re.compile(r"\bpaper\.md\b|\bdesign\.md\b|\banchors\.md\b|\bsscd\.md\b")
    found = [p for p in texts if p != Path(__file__) and cited.search(p.read_text())]
    assert not found
