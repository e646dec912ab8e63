"""Writes the manual's tables from the registries that the programs read.

    python -m docs.reference     mitigations.md, scores.md, embedders.md: in the repository

A test compares those with the registries. `make docs` writes the others too, which are long
and belong to the built site alone: every setting, every program's flags, every function.
"""

import importlib
import os
import pkgutil
import re
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import copymit
from copymit.cli.meanings import meanings
from copymit.cli.outcome import TOO_MANY_COPIES
from copymit.cli.verbs import VERBS
from copymit.config import flatten
from copymit.console import MISUSED
from copymit.embedding.registry import describe_embedders
from copymit.mitigation.detector import DETECTORS
from copymit.mitigation.record import Mitigation, Setting
from copymit.mitigation.registry import MITIGATIONS, SETTINGS
from copymit.pretrained.base_models import BASE_MODELS
from copymit.scores.names import SCORES, SETS
from copymit.training.watch import TRY_AGAIN

DOCS = Path(__file__).parent
ROOT = DOCS.parent

_MITIGATIONS = """# Mitigations and detectors

Written by `python -m docs.reference` from the records in `copymit/mitigation/methods/` and
`detectors/`, one file each; a test compares. Names and aliases are for
`--config.mitigation.apply='("GN=0.1", "RNA")'`; any can be combined, in any order, and
what would change nothing is refused.

Norms and thresholds are in their papers' unit: of the noise that a network predicts, as of
64x64x4 latents (so 128 times the root of the mean of squares), whatever the size and
whether a network predicts noise or velocity. Papers found theirs for Stable Diffusion 1.4.
For any other model let it tell you: `PO=q0.9` and `SAIL=q0.9` are the 0.9 quantile of what
it does with prompts that are not memorised, those of `eval.detection.other_prompts` or else
captions of held-out images.
"""

_SCORES = """# Keys of scores.json

Written by `python -m docs.reference` from `copymit/scores/names.py`; a test compares.

The 95 % interval of a number lies beside it (`_ci95`), where the last column names how it
is made and there are enough groups to tell. It tells how the number would vary with other
prompts, against the same training images and of the same training: generations of one
prompted image, or of one prompt where no image is known, are not independent, so whole
groups of them are resampled (bootstrap) or left out in turn (jackknife). A share of 0 % or
100 % has the exact binomial interval of as many trials as there are groups. Of one group
alone no other number has an interval. The Fréchet distance's is around a number that few
images bias upwards, and need not hold the unbiased one.
"""

_EMBEDDERS = """# Embedders and base models

Written by `python -m docs.reference` from `copymit/embedding/registry.py` and
`copymit/pretrained/base_models.py`; a test compares.

`eval.embedders` compares generations with training images, its first name gives the
headline; `eval.quality_embedders` are those of FID and its kin, `eval.clip_score` is one of
the CLIPs. Weights are the published files. Of PyTorch's pickles a restricted reader takes
tensors; whatever else a pickle asks for is refused, and no file is run.
"""


def committed_pages() -> dict[str, str]:
    """Returns the pages that lie in the repository, by name."""
    return {
        "mitigations.md": _page(_mitigations()),
        "scores.md": _page(_scores()),
        "embedders.md": _page(_embedders()),
    }


def _page(lines: Iterator[str]) -> str:
    return "\n".join(lines) + "\n"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yields the lines of a Markdown table."""
    yield f"| {' | '.join(head)} |"
    yield "|---" * len(head) + "|"
    yield from (f"| {' | '.join(row)} |" for row in rows)


def _mitigations() -> Iterator[str]:
    yield _MITIGATIONS
    for section, when in (("train", "In training"), ("generate", "At generation")):
        yield f"## {when}\n"
        found = [m for m in MITIGATIONS.values() if m.switch.section == section]
        yield from table(
            ("name (aliases)", "what it does", "published", "here", "changed, and why"),
            [
                (_names(m), m.what, m.published, _here(m), m.changed or "nothing")
                for m in found
            ],
        )
        yield "\nSources:\n"
        yield from (f"- `{m.name}`: {m.source}." for m in found)
        yield ""
    yield "## Settings\n"
    yield from table(
        ("setting, under `mitigation.`", "default", "from", "to", "meaning"),
        [
            (f"`{s.path}`", _show(s.default), f"{s.least:g}", f"{s.most:g}", s.meaning)
            for s in SETTINGS.values()
        ],
    )
    yield "\n## Detectors\n"
    yield from table(
        ("name", "what it looks at", "source, and what is ours"),
        [(f"`{d.name}`", d.title, d.source) for d in DETECTORS.values()],
    )


def _names(m: Mitigation) -> str:
    aliases = ", ".join(m.aliases)
    return f"`{m.name}`" + (f" ({aliases})" if aliases else "")


def _here(m: Mitigation) -> str:
    """Says the strength, and the other settings where they are not off."""
    others: list[Setting] = [s for s in m.settings[1:] if s.default not in (0, -1)]
    shown = [f"`{m.switch.name}` {_show(m.strength)}"]
    return ", ".join(shown + [f"`{s.name}` {_show(s.default)}" for s in others])


def _show(value: bool | int | float) -> str:
    return str(value) if isinstance(value, bool) else f"{value:g}"


def _scores() -> Iterator[str]:
    yield _SCORES
    rows: list[tuple[str, ...]] = [
        (f"`{s.key}`", s.meaning, s.higher or "–", s.interval or "–") for s in SCORES
    ]
    rows += [
        (f"`{name}_...`", f"the similarities of {words}", "as above", "bootstrap")
        for name, words in SETS.items()
    ]
    words = "all of these by a further embedder; `pixels_...` is an independent view"
    rows.append(("`EMBEDDER_...`", words, "as above", "as above"))
    yield from table(("key", "meaning", "higher is", "95 % interval"), rows)


def _embedders() -> Iterator[str]:
    yield _EMBEDDERS
    yield from table(
        ("name", "network and preprocessing", "weights", "setting for others"),
        [
            (f"`{name}`", what, published, f"`{setting}`" if setting else "–")
            for name, what, published, setting in describe_embedders()
        ],
    )
    yield "\n## Base models\n"
    yield "Names for `model.pretrained` and `--model`; ids of the hub are tried in order.\n"
    yield from table(
        ("name", "published as", "predicts", "pixels", "licence of the weights"),
        [
            (
                f"`{name}`",
                ", ".join(model.hub_ids),
                {"epsilon": "noise", "v_prediction": "velocity"}[model.prediction_type],
                str(model.native_size_px),
                model.licence,
            )
            for name, model in BASE_MODELS.items()
        ],
    )


def all_pages() -> dict[str, str]:
    """Returns every page, with those of the built site alone; starts every program."""
    return committed_pages() | {
        "reference/settings.md": _page(_settings()),
        "reference/programs.md": _page(_programs()),
        "reference/api.md": _page(_api()),
        **{f"reference/{name}.md": _page(_package(name)) for name in PACKAGES},
    }


def _settings() -> Iterator[str]:
    yield "# Settings\n"
    yield (
        "Written from `configs/common.py`, `copymit/settings.py` and the records of "
        "mitigations. Change one with `--config.NAME=VALUE`, those of `eval` in `copymit "
        "evaluate` also with `--eval.NAME=VALUE`; `--list_settings=WORD` prints those "
        "that match.\n"
    )
    known = meanings()
    defaults = flatten(importlib.import_module("configs.common").get_config().to_dict())
    for section in dict.fromkeys(name.partition(".")[0] for name in defaults):
        yield f"## {section}\n"
        yield from table(
            ("setting", "default", "meaning"),
            [
                (f"`{name}`", f"`{value!r}`", _escape(known[name]))
                for name, value in defaults.items()
                if name.partition(".")[0] == section
            ],
        )
        yield ""


def _escape(text: str) -> str:
    return re.sub(r"([|*<_{])", r"\\\1", text)


def _programs() -> Iterator[str]:
    yield "# Programs\n"
    yield (
        "What `copymit VERB --help` says. From a checkout `python train.py` and `python "
        "evaluate.py` are `copymit train` and `copymit evaluate`.\n"
    )
    verbs = [(verb,) for verb in VERBS]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for words, text in zip(verbs, pool.map(_help, verbs), strict=True):
            parts = re.search(r"\{([\w,]+)\} \.\.\.", text)
            inner = [(*words, part) for part in parts[1].split(",")] if parts else []
            for title, said in (
                (words, text),
                *zip(inner, pool.map(_help, inner), strict=True),
            ):
                yield f"{'#' * (len(title) + 1)} copymit {' '.join(title)}\n"
                yield from ("```text", said, "```\n")
    yield "## Exit codes\n"
    yield from table(("code", "means"), [(str(c), w) for c, w in EXIT_CODES.items()])


def _help(words: Sequence[str]) -> str:
    """Runs a program for its help; `COLUMNS` is what parsers wrap lines by."""
    done = subprocess.run(
        [sys.executable, "-m", "copymit", *words, "--help"],
        cwd=ROOT,
        env=os.environ | {"COLUMNS": "92"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"copymit {' '.join(words)} --help: {done.stderr}")
    return done.stdout.strip()


EXIT_CODES = {
    0: "done",
    1: "bad input, or a mistake of ours: one line says which file, field or value",
    MISUSED: "a command line that cannot be run",
    TOO_MANY_COPIES: "a larger share of the generations than `--fail_above` are copies",
    TRY_AGAIN: "a training hung (`train.hang_timeout_seconds`): start it again",
    128 + signal.SIGINT: "Ctrl-C; a training has saved a checkpoint",
    128 + signal.SIGABRT: "another host was lost: start all of them again",
    128 + signal.SIGTERM: "told to stop; a training has saved a checkpoint",
}


def _api() -> Iterator[str]:
    yield "# Python API\n"
    yield "Every public name of every module, from its docstring.\n"
    yield from _toctree(PACKAGES)
    own = pkgutil.iter_modules(copymit.__path__, "copymit.")
    yield from _automodules(m.name for m in own if not m.ispkg)


def _package(name: str) -> Iterator[str]:
    package = importlib.import_module(name)
    yield f"# {name}\n"
    yield from _automodules([name, *_modules(package)])


PACKAGES = tuple(
    f"copymit.{p.name}" for p in pkgutil.iter_modules(copymit.__path__) if p.ispkg
)


def _modules(package: ModuleType) -> list[str]:
    """Lists the modules of a package, those of packages in it too."""
    found = pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    return [m.name for m in found if not m.name.endswith("__main__")]


def _toctree(pages: Iterable[str]) -> Iterator[str]:
    yield from ("```{toctree}", *pages, "```\n")


def _automodules(names: Iterable[str]) -> Iterator[str]:
    for name in names:
        yield f"## {name.removeprefix('copymit.')}\n"
        yield from ("```{eval-rst}", f".. automodule:: {name}", "   :members:", "```\n")


def write(pages: Mapping[str, str], folder: Path = DOCS) -> None:
    """Writes pages whose text has changed."""
    for name, text in pages.items():
        path = folder / name
        if not path.exists() or path.read_text() != text:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)


if __name__ == "__main__":
    write(committed_pages())
