"""`copymit VERB ...`: one door to every program.

Most verbs have a program of their own (`python train.py`, `python -m copymit.plan`), which
gets the words after the verb as they are. Nothing of them is imported before, so that help
and completion come at once.
"""

import importlib
import sys
from typing import NamedTuple

import click

from copymit import __version__
from copymit.cli.audit import audit
from copymit.cli.export import export
from copymit.interrupts import heeded
from copymit.project import use_project


class Program(NamedTuple):
    """A program that is reached by a verb.

    Attributes:
      entry: MODULE:FUNCTION, which reads `sys.argv` and may return an exit code.
      purpose: for `copymit --help`.
    """

    entry: str
    purpose: str


VERBS: dict[str, Program | click.Command] = {
    "train": Program("train:run", "Train a model on some config's data."),
    "evaluate": Program("evaluate:run", "Generate, and measure what was copied."),
    "audit": audit,
    "prepare": Program(
        "copymit.data.prepare.__main__:main",
        "Make one data set of images and captions.",
    ),
    "caption": Program(
        "copymit.data.caption.__main__:main", "Write captions for images."
    ),
    "analyze": Program(
        "copymit.analysis.__main__:main", "Find what a data set holds twice."
    ),
    "sweep": Program("launch.sweep:main", "Run the trials of a figure of a paper."),
    "plan": Program(
        "copymit.plan.__main__:run", "Say what a training costs before it is paid for."
    ),
    "export": export,
    "doctor": Program("launch.doctor:run", "Look for what is wrong with this machine."),
}


class _InOrder(click.Group):
    def list_commands(self, _: click.Context) -> list[str]:
        return list(self.commands)


@click.group(
    cls=_InOrder,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 92},
    epilog="`copymit VERB --help` has the flags of each; train and evaluate print every "
    "setting with --list_settings. Completion: add "
    'eval "$(_COPYMIT_COMPLETE=bash_source copymit)" to ~/.bashrc (or zsh_source, '
    "fish_source).",
)
@click.version_option(__version__, prog_name="copymit")
def copymit() -> None:
    """Train text-to-image diffusion models, measure how much they copy, and stop them."""


def _pass_on(verb: str, program: Program) -> click.Command:
    """Makes a command of a program that parses its own words, --help included."""

    def run(words: tuple[str, ...]) -> None:
        use_project()
        sys.argv = [f"copymit {verb}", *words]
        module, _, function = program.entry.partition(":")
        with heeded():  # which programs do themselves, but not while they are imported
            start = getattr(importlib.import_module(module), function)
        sys.exit(start())

    return click.Command(
        verb,
        callback=run,
        params=[click.Argument(["words"], nargs=-1, type=click.UNPROCESSED)],
        help=program.purpose,
        add_help_option=False,
        context_settings={
            "ignore_unknown_options": True,
            "allow_interspersed_args": False,
        },
    )


for _verb, _what in VERBS.items():
    copymit.add_command(
        _what if isinstance(_what, click.Command) else _pass_on(_verb, _what)
    )


def main() -> None:
    """Runs the verb of the command line."""
    copymit(prog_name="copymit")
