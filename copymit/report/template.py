"""Pages from templates: every text from outside is escaped, nothing foreign can run.

A policy in the page names the hashes of its own style and script.
"""

import base64
import hashlib
import re
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from copymit.report.verdict import format_number

_FOLDER = Path(__file__).parent


def render_page(
    template: str, script_name: str = "", images: str = "data:", **facts: Any
) -> str:
    """Renders a page with `page.css` and perhaps a script inside.

    Args:
      template, script_name: files beside this one; "" = no script.
      images: sources of pictures that the policy allows.
      facts: what the template needs; `style`, `script` and `policy` are added.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": format_number, "breakable": _breakable}
    style, script = (
        # Ours, not from outside: escaped they would not work.
        Markup((_FOLDER / name).read_text("utf-8") if name else "")
        for name in ("page.css", script_name)
    )
    policy = (
        f"default-src 'none'; base-uri 'none'; form-action 'none'; img-src {images}; "
        f"style-src '{_hash(style)}'; script-src '{_hash(script)}'"
    )
    return environment.get_template(template).render(
        **facts, style=style, script=script, policy=Markup(policy)
    )


def encode(text: str) -> bytes:
    """Encodes; file names may hold bytes that are no text (lone surrogates)."""
    return text.encode("utf-8", "backslashreplace")


def _hash(source: str) -> str:
    """Is the name by which a content security policy allows an inline source."""
    digest = hashlib.sha256(source.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


def _breakable(name: str) -> Markup:
    """Is a dotted or underscored name that may continue on the next line."""
    return Markup("<wbr>").join(re.split(r"(?<=[._])", name))
