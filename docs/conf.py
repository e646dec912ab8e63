"""The manual, by Sphinx: `make docs` builds it into build/docs, offline.

Warnings are errors, so that no link leads nowhere. Pages are Markdown; those that repeat
what the programs know are written by reference.py before.
"""

import re
import sys
from pathlib import Path

from sphinx.errors import ExtensionError

sys.path.insert(0, str(Path(__file__).parents[1]))

import copymit
from docs import reference

reference.write(reference.all_pages())

project = "copymit"
author = "The copymit authors"
project_copyright = author
version = copymit.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["decisions_table.md"]
suppress_warnings = ["toc.not_included"]  # tables of sweeps: linked from results/

myst_heading_anchors = 3
default_role = "code"
napoleon_attr_annotations = False
napoleon_use_ivar = True  # fields are listed once, with their meanings
napoleon_custom_sections = [("Source", "returns_style")]
autodoc_typehints = "none"  # signatures have jaxtyping's, which say shapes
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
# Of extras that the manual is built without.
autodoc_mock_imports = ["apache_beam", "torch", "transformers"]


def as_text(app, what, name, obj, options, lines: list[str]) -> None:
    """Lets docstrings be what they are: text, with `code` and indented commands.

    Stars and bars have no meaning of their own, and in the docstring of a module
    indented lines and tables are shown as they are.
    """
    marked: list[str] = []
    for line in lines:
        shown = what == "module" and line.startswith(("    ", "|"))
        if shown and not (marked and marked[-1].startswith("    ")):
            marked += ["::", ""]
        parts = [line] if shown else line.split("`")
        parts[::2] = [
            p if shown else re.sub(r"[*|]", r"\\\g<0>", p) for p in parts[::2]
        ]
        marked.append("    " * (shown and line.startswith("|")) + "`".join(parts))
    lines[:] = marked


def skip_fields(app, what, name, obj, skip, options) -> bool:
    """Leaves fields to the docstrings of their classes."""
    return skip or (what == "class" and not callable(obj))


def open_with_readme(app, docname: str, source: list[str]) -> None:
    """Makes README the first page; its links start where it lies."""
    if docname == "index":
        readme = (Path(__file__).parents[1] / "README.md").read_text()
        links = re.compile(r"\]\((docs/)?(?!\w+:)")
        source[0] = links.sub(lambda m: "](" if m[1] else "](../", readme) + source[0]


def check_offline(app, error: Exception | None) -> None:
    """Refuses a site whose pages or styles load anything from elsewhere."""
    loads = re.compile(
        r"<(?:script|link|img|iframe)\b[^>]*?(?:src|href)=[\"']?(?:https?:)?//[^>]*"
        r"|(?:@import|url\()\s*[\"']?(?:https?:)?//[^)\s]*"
    )
    for path in Path(app.outdir).rglob("*"):
        if path.suffix in (".html", ".css") and (
            found := loads.search(path.read_text())
        ):
            raise ExtensionError(f"{path.name} loads {found[0]}")


def setup(app) -> None:
    """Sphinx calls this."""
    app.connect("source-read", open_with_readme)
    app.connect("build-finished", check_offline)
    app.connect("autodoc-skip-member", skip_fields)
    app.connect("autodoc-process-docstring", as_text, priority=100)  # before napoleon


html_theme = "furo"
html_title = f"copymit {version}"
html_static_path = ["static"]
html_css_files = ["manual.css"]
html_copy_source = False
html_show_sphinx = False
