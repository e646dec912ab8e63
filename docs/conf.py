"""The manual, by Sphinx: `make docs` builds it into build/docs, offline.

Warnings are errors, so that no link leads nowhere. Pages are Markdown; those that repeat
what the programs know are written by reference.py before.
"""

import re
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

import reference  # noqa: E402

import copymit  # noqa: E402

reference.write(reference.all_pages())

project = "copymit"
author = "The copymit authors"
project_copyright = author
version = copymit.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["decisions_table.md"]

myst_heading_anchors = 3
default_role = "code"
napoleon_use_ivar = True  # fields are listed once, with their meanings
napoleon_custom_sections = [("Source", "returns_style")]
autodoc_typehints = "none"  # signatures have jaxtyping's, which say shapes
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_mock_imports = ["apache_beam"]  # lives in an environment of its own


def as_text(app, what, name, obj, options, lines: list[str]) -> None:
    """Lets docstrings be what they are: text, with `code` and indented commands.

    Stars and bars have no meaning of their own, and in the docstring of a module
    indented lines and tables are shown as they are.
    """
    marked = []
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


def open_with_readme(app, docname: str, source: list[str]) -> None:
    """Makes README the first page; its links start where it lies."""
    if docname == "index":
        readme = (Path(__file__).parents[1] / "README.md").read_text()
        links = re.compile(r"\]\((docs/)?(?!\w+:)")
        source[0] = links.sub(lambda m: "](" if m[1] else "](../", readme) + source[0]


def setup(app) -> None:
    """Sphinx calls this."""
    app.connect("source-read", open_with_readme)
    app.connect("autodoc-process-docstring", as_text, priority=100)  # before napoleon


html_theme = "furo"
html_title = f"copymit {version}"
html_static_path = ["static"]
html_css_files = ["manual.css"]
html_copy_source = False
html_show_sphinx = False
