"""Imports go one way: a room of the house may only use what lies below it."""

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAX_LINES = 500

_FOUNDATION = (
    "types",
    "chips",
    "console",
    "config",
    "settings",
    "checkpoint",
    "metrics",
    "progress",
    "sharding",
    "wandb_run",
)
# What needs nothing of copymit but each other, and everybody may use.
_EVERYBODY = {
    "copymit.interrupts",
    "copymit.project",
    "copymit.spelling",
    "copymit.storage",
}
_MIDDLE = {"copymit", "copymit.data", "copymit.models", "copymit.diffusion"}
_COMPOSED = _MIDDLE | {"copymit.mitigation", "copymit.pretrained", "copymit.generator"}
_MEASURES = {"copymit.embedding", "copymit.search", "copymit.scores", "copymit.report"}
_PROGRAM = _COMPOSED | _MEASURES | {"copymit.training", "copymit.evaluation", "configs"}
# What each room may import besides itself; "copymit" stands for the foundation.
ALLOWED: dict[str, set[str]] = {
    "copymit.interrupts": set(),
    "copymit.project": set(),
    "copymit.spelling": set(),
    "copymit.storage": set(),
    "copymit": set(),
    "copymit.data": {"copymit"},
    "copymit.models": {"copymit"},
    "copymit.diffusion": {"copymit"},
    "copymit.mitigation": _MIDDLE,
    "copymit.pretrained": _MIDDLE,
    "copymit.generator": _MIDDLE | {"copymit.mitigation"},
    "copymit.training": _COMPOSED,
    "copymit.plan": _COMPOSED | {"copymit.training", "copymit.cli"},
    "copymit.embedding": _MIDDLE | {"copymit.pretrained"},
    "copymit.search": {"copymit"},
    "copymit.scores": {"copymit", "copymit.embedding", "copymit.search"},
    "copymit.report": {"copymit", "copymit.mitigation", "copymit.scores"},
    "copymit.analysis": {"copymit", "copymit.data"} | _MEASURES,
    "copymit.evaluation": _COMPOSED | _MEASURES,
    # Other programs it reaches by name, when their verb is asked for.
    "copymit.cli": _PROGRAM,
    "copymit.__main__": {"copymit.cli"},
    "configs": {"copymit", "copymit.mitigation"},
    # Of the package only the data, since photos are counted before anything starts, and
    # how scores are called and pages made.
    "launch": {"configs", "copymit.data", "copymit.report", "copymit.scores"},
    "train": _PROGRAM | {"copymit.cli"},
    "evaluate": _PROGRAM | {"copymit.cli"},
}


def room_of(module: str) -> str | None:
    """Returns the room of a module, or None for a module of someone else."""
    parts = module.split(".")
    if parts[0] != "copymit":
        return parts[0] if parts[0] in ALLOWED else None
    if len(parts) == 1 or parts[1] in _FOUNDATION:
        return "copymit"
    return ".".join(parts[:2])


def imported_modules(module: str, is_package: bool, source: str) -> Iterator[str]:
    """Yields every module that the source may import, also inside functions."""
    package = module if is_package else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.rsplit(".", node.level - 1)[0]
                base = f"{above}.{node.module}" if node.module else above
            # The name may be a module itself: from copymit import sharding.
            yield from (f"{base}.{alias.name}" for alias in node.names)


def arrows_back(module: str, source: str, *, is_package: bool = False) -> list[str]:
    """Lists the imports of a module that its room does not allow."""
    room = room_of(module)
    if room not in ALLOWED:
        return [f"{module}: add its room to ALLOWED in tests/test_imports.py"]
    found = []
    for target in imported_modules(module, is_package, source):
        other = room_of(target)
        # `from copymit import __version__` is the root itself.
        if other is not None and other not in ALLOWED and target.count(".") == 1:
            other = "copymit"
        allowed = {None, room} | ALLOWED[room] | _EVERYBODY
        if other not in allowed:
            found.append(f"{module} -> {target}")
    return found


def project_files() -> list[Path]:
    folders = ("copymit", "configs", "launch", "benchmarks", "tests")
    return [
        ROOT / "train.py",
        ROOT / "evaluate.py",
        *(path for name in folders for path in sorted((ROOT / name).rglob("*.py"))),
    ]


def project_modules() -> dict[str, tuple[Path, bool]]:
    """Maps the name of each module of the product to its file; tests are left out."""
    modules = {}
    for path in project_files():
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[0] in ("tests", "benchmarks"):
            continue
        is_package = parts[-1] == "__init__"
        modules[".".join(parts[:-1] if is_package else parts)] = (path, is_package)
    return modules


def test_every_import_points_down():
    modules = project_modules()
    assert {"copymit.training.loop", "copymit.sharding", "train"} <= modules.keys()
    back = [
        arrow
        for module, (path, is_package) in modules.items()
        for arrow in arrows_back(module, path.read_text(), is_package=is_package)
    ]
    assert not back, "\n".join(back)


def test_no_modules_import_each_other_in_a_circle():
    modules = project_modules()
    graph: dict[str, set[str]] = {}
    for module, (path, is_package) in modules.items():
        targets = set()
        for name in imported_modules(module, is_package, path.read_text()):
            # An imported function belongs to the module before the last dot.
            for target in (name, name.rpartition(".")[0]):
                if target in modules and target != module:
                    targets.add(target)
                    break
        graph[module] = targets
    assert graph["copymit.training.step"] >= {"copymit.training.state"}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError with the circle


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("copymit.data.sources", "from copymit.models.unet import UNetConfig"),
        ("copymit.data.sources", "from copymit import diffusion"),
        ("copymit.models.unet", "import copymit.diffusion.sampler as sampler"),
        ("copymit.diffusion.sampler", "from ..data.images import decode_image"),
        ("copymit.mitigation.registry", "from copymit.generator import make_generate"),
        ("copymit.generator", "from copymit.training import step"),
        ("copymit.evaluation.run", "def f():\n    import copymit.training.loop"),
        ("copymit.training.loop", "from copymit.evaluation import run"),
        ("copymit.search.exact", "from copymit.embedding.embed import Embeddings"),
        ("copymit.report.page", "from copymit.evaluation.run import evaluate"),
        ("copymit.sharding", "from copymit.models.unet import UNetConfig"),
        ("copymit.metrics", "from . import generator"),
        ("copymit.training.loop", "import train"),
        ("copymit.training.loop", "from configs import common"),
        ("configs.demo", "from copymit.models.unet import UNetConfig"),
        ("launch.doctor", "from copymit.sharding import make_mesh"),
        ("train", "import evaluate"),
    ],
)
def test_an_arrow_that_points_back_is_found(module, source):
    (arrow,) = arrows_back(module, source)
    assert arrow.startswith(f"{module} -> ")


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("copymit.data.sources", "from copymit.data.images import decode_image"),
        ("copymit.data.sources", "from .images import decode_image"),
        ("copymit.data.sources", "import numpy as np\nfrom jax import config"),
        ("copymit.mitigation.rewriting", "from copymit.data import captions"),
        ("copymit.evaluation.run", "from copymit import __version__, generator"),
        ("copymit.training.loop", "from copymit.checkpoint import save_checkpoint"),
        ("configs.demo", "from configs import common"),
        ("configs.common", "from copymit.settings import evaluation_settings"),
        ("launch.sweep", "from configs import sweeps"),
        ("train", "from copymit.training.loop import train"),
    ],
)
def test_an_arrow_that_points_down_is_allowed(module, source):
    assert arrows_back(module, source) == []


def test_a_new_room_must_be_given_its_place():
    assert "add its room" in arrows_back("copymit.attic.trunk", "")[0]


_HEAVY = {"copymit.report", "matplotlib", "jinja2", "scann", "scipy"}
_FRAMEWORKS = {"tensorflow", "torch", "transformers"}


@pytest.mark.parametrize(
    ("program", "left_out"),
    [
        ("train", {"copymit.evaluation", "pandas"} | _HEAVY | _FRAMEWORKS),
        ("evaluate", {"copymit.training", "grain", "orbax"} | _HEAVY | _FRAMEWORKS),
        ("launch.sweep", {"copymit.console", "jax", "pandas"} | _HEAVY | _FRAMEWORKS),
        ("copymit.cli.verbs", {"jax", "numpy", "pandas"} | _HEAVY | _FRAMEWORKS),
    ],
)
def test_a_program_starts_without_what_it_may_not_need(program, left_out):
    command = f"import {program}, sys; print(*sys.modules)"
    output = subprocess.check_output([sys.executable, "-c", command], cwd=ROOT)
    loaded = set(output.decode().split())
    assert program in loaded
    assert loaded & left_out == set()


def test_no_file_is_longer_than_a_person_reads():
    lengths = {path: len(path.read_text().splitlines()) for path in project_files()}
    assert not [path for path, lines in lengths.items() if lines > MAX_LINES]


def test_no_file_is_a_drawer_of_odds_and_ends():
    assert not [path for path in project_files() if path.stem in ("utils", "helpers")]
