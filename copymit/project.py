"""Where the configs and the programs lie that stand beside the package.

In a checkout that is its root. A wheel carries them inside the package (see setup.py), so
that it claims no name but `copymit`; there is the same layout below `shipped/`.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from copymit.spelling import nearest

_SHIPPED = Path(__file__).parent / "shipped"
IN_CHECKOUT = not _SHIPPED.exists()
PROJECT = Path(__file__).parents[1] if IN_CHECKOUT else _SHIPPED
"""The folder of configs/, launch/, train.py and evaluate.py."""


def use_project() -> None:
    """Makes `configs`, `launch`, `train` and `evaluate` importable.

    First in line: another package called `configs` would be taken for ours.
    """
    if str(PROJECT) not in sys.path:
        sys.path.insert(0, str(PROJECT))


def config_names() -> Iterator[str]:
    """Yields the names of the configs that come with copymit, as `demo`."""
    for path in sorted((PROJECT / "configs").glob("*.py")):
        if re.search(r"^def get_config\(", path.read_text(), re.MULTILINE):
            yield path.stem


def find_config(given: str) -> str:
    """Finds the file that a config's name or path means.

    Args:
      given: `demo`, `configs/demo.py` or any other path; each also with `:ARGUMENT`.
        Paths are of the current directory, else of the project.
    Returns:
      The path of an existing file, with `:ARGUMENT` as given.
    Raises:
      FileNotFoundError: there is none; names the likeliest.
    """
    file, colon, argument = given.partition(":")
    path = Path("configs", f"{file}.py") if re.fullmatch(r"\w+", file) else Path(file)
    for place in (Path(), PROJECT):
        if (place / path).is_file():
            return f"{place / path}{colon}{argument}"
    names = list(config_names())
    raise FileNotFoundError(
        f"--config={given}: there is no config {file}{nearest(path.stem, names)} "
        f"(give a path, or one of {', '.join(names)})"
    )
