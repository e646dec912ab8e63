"""Prints docs/mitigations.md, from the records of mitigations and detectors.

python -m copymit.mitigation > docs/mitigations.md
"""

from collections.abc import Iterator, Sequence

from copymit.mitigation.detector import DETECTORS
from copymit.mitigation.record import Mitigation, Setting
from copymit.mitigation.registry import MITIGATIONS, SETTINGS

_HEAD = """# Mitigations and detectors

Written by `python -m copymit.mitigation` from the records in `copymit/mitigation/methods/`
and `detectors/`, one file each; a test compares. Names and aliases are for
`--config.mitigation.apply='("GN=0.1", "RNA")'`; any can be combined, in any order, and
what would change nothing is refused.

Norms and thresholds are in their papers' unit: of the noise that a network predicts, as of
64x64x4 latents (so 128 times the root of the mean of squares), whatever the size and
whether a network predicts noise or velocity. Papers found theirs for Stable Diffusion 1.4.
For any other model let it tell you: `PO=q0.9` and `SAIL=q0.9` are the 0.9 quantile of what
it does with prompts that are not memorised, those of `eval.detection.other_prompts` or else
captions of held-out images.
"""


def page() -> str:
    """Returns the page."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    yield _HEAD
    for section, when in (("train", "In training"), ("generate", "At generation")):
        yield f"## {when}\n"
        found = [m for m in MITIGATIONS.values() if m.switch.section == section]
        yield from _table(
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
    yield from _table(
        ("setting, under `mitigation.`", "default", "from", "to", "meaning"),
        [
            (f"`{s.path}`", _show(s.default), f"{s.least:g}", f"{s.most:g}", s.meaning)
            for s in SETTINGS.values()
        ],
    )
    yield "\n## Detectors\n"
    yield from _table(
        ("name", "what it looks at", "source, and what is ours"),
        [(f"`{d.name}`", d.title, d.source) for d in DETECTORS.values()],
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield "|---" * len(head) + "|"
    yield from (f"| {' | '.join(row)} |" for row in rows)


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


if __name__ == "__main__":
    print(page(), end="")
