"""A sweep's trials, and the tasks that they come down to.

A function of configs/sweeps.py enters, commands of train.py and evaluate.py leave, each
with the directory that it works in. Trials that share a training share its task.
"""

import hashlib
import importlib.util
import inspect
import itertools
import json
import re
import shlex
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags
from ml_collections import config_flags

from configs.sweeps_types import PRESETS, SweepFunction, Trial
from copymit.project import IN_CHECKOUT, PROJECT
from copymit.spelling import nearest

ROOT = "{root}"
# What evaluate.py reads of a config; everything else is the training's.
_EVALUATION = ("eval.", "mitigation.generate.")
# A place that changes what is trained, too: its last name is in that of a run.
AUTOENCODER = "model.autoencoder.pretrained"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
_NOT_PLAIN = re.compile(r"[^A-Za-z0-9._+-]+")
_MAX_NAME = 80
# What people look for in a name; the digest stands for everything else.
_TELLING = (
    "seed",
    "data.duplication",
    "data.caption_style",
    "data.num_examples",
    "train.steps",
    "model.text_encoder.train",
    "mitigation.",
    "eval.prompts",
    "eval.guidance_scale",
    "eval.seed",
    "source",
)


class Task(NamedTuple):
    """One command.

    Attributes:
      key: of its record, below the sweep's directory.
      program: train.py, evaluate.py, or a module such as copymit.analysis.
      arguments: of the program; ROOT in them is the sweep's directory.
      after: keys of tasks that must be done before.
      product: what a command leaves last, below the sweep's directory; "" = nothing by
        which it is known to have finished.
      workdir: of the run, below the sweep's directory.
    """

    key: str
    program: str
    arguments: tuple[str, ...]
    after: tuple[str, ...]
    product: str
    workdir: str

    @property
    def label(self) -> str:
        """What people call it."""
        return self.key.removeprefix("runs/").replace("/launch/", " ")


class Plan(NamedTuple):
    """A trial with its tasks.

    Attributes:
      tasks: in order; the last makes the scores.
      scores: the directory WORKDIR/eval/NAME, below the sweep's directory.
      clusters: directory of the analysis of its data, or "".
    """

    trial: Trial
    tasks: tuple[Task, ...]
    scores: str
    clusters: str = ""


def load_sweep(reference: str) -> SweepFunction:
    """Finds the function that FILE:FUNCTION names.

    Raises:
      FileNotFoundError, ValueError: if there is none; lists those that there are.
    """
    file, _, name = reference.rpartition(":")
    if not file:
        file, name = reference, ""
    path = Path(file) if Path(file).exists() else PROJECT / file
    if not path.exists():
        raise FileNotFoundError(f"--sweep={reference}: {file} does not exist")
    module = _import_file(path)
    known = {
        key: value
        for key, value in vars(module).items()
        if inspect.isfunction(value) and hasattr(value, "panels")
    }
    if name not in known:
        raise ValueError(
            f"--sweep={reference}: {file} has no sweep {name!r}; it has "
            f"{', '.join(sorted(known)) or 'none: decorate one with draws()'}"
            f"{nearest(name, known)}"
        )
    return known[name]


def list_trials(
    sweep: SweepFunction,
    preset: str,
    num_seeds: int,
    overrides: Mapping[str, str] | None = None,
    places: Mapping[str, str] | None = None,
) -> list[Trial]:
    """Lists the trials of a sweep, checked, without the settings that change nothing.

    Args:
      overrides: settings of every trial, such as {"data.source": "gs://..."}.
      places: settings of every trial that name no run; see `Trial.places`.
    Raises:
      ValueError: for an unknown preset, two trials of one name, or a setting that does
        not exist or cannot have its value; names the trial.
    """
    if preset not in PRESETS:
        raise ValueError(f"--preset={preset}: use one of {', '.join(PRESETS)}")
    if num_seeds < 1:
        raise ValueError(f"--num_seeds={num_seeds} must be at least 1")
    trials = [
        _with_overrides(trial, overrides or {})._replace(places=places or {})
        for trial in sweep(preset, range(num_seeds))
    ]
    if not trials:
        raise ValueError(f"the sweep has no trial with --preset={preset}")
    names = [trial.name for trial in trials]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"several trials are called {twice[0]!r}: names must differ")
    own = {config: read_settings(config, {}) for config in {t.config for t in trials}}
    return [_resolved(trial, own[trial.config]) for trial in trials]


def choose_trials(
    sweeps: Mapping[str, Sequence[Trial]], only: Sequence[str]
) -> dict[str, list[Trial]]:
    """Keeps the trials whose labels have the values that LABEL=VALUE,... list.

    Args:
      sweeps: trials by the name of their sweep.
    Returns:
      The same without the sweeps of which no trial is left.
    Raises:
      ValueError: if an item is no such list, or no trial of any sweep has a value.
    """
    chosen = {title: list(trials) for title, trials in sweeps.items()}
    for wanted in only:
        label, equals, values = wanted.partition("=")
        labels = [trial.labels for trials in chosen.values() for trial in trials]
        known = dict.fromkeys(str(of[label]) for of in labels if label in of)
        if unknown := sorted(set(values.split(",")) - set(known)):
            raise ValueError(
                f"--only={wanted}: no trial has {label}{equals}{unknown[0]}; there are "
                f"{', '.join(known) or 'no such labels'}"
            )
        chosen = {
            title: [t for t in trials if str(t.labels.get(label)) in values.split(",")]
            for title, trials in chosen.items()
        }
    return {title: trials for title, trials in chosen.items() if trials}


def plan(trial: Trial) -> Plan:
    """Turns a trial into commands."""
    run = f"runs/{_name_run(trial)}"
    tasks = [] if trial.model else [_training(trial, run)]
    # The analysis of the data is for the figure: no evaluation waits for it, or that of
    # another sweep, which knows no analysis, would be another task.
    before = tuple(task.key for task in tasks)
    clusters = ""
    if trial.analysis is not None:
        clusters = f"analyses/{_name(trial.analysis) or 'data'}"
        tasks.append(_analysis(trial.analysis, trial.places, clusters))
    name = _name(trial.evaluate) or "as-configured"
    scores = f"{run}/eval/{name}"
    tasks.append(_evaluation(trial, run, name, before))
    if trial.detector:
        evaluated = tasks[-1]
        tasks.append(
            evaluated._replace(
                key=f"{run}/launch/detect-{name}",
                arguments=(*evaluated.arguments, "--stages=detect"),
                after=(*before, evaluated.key),
                product=f"{scores}/detection.json",
            )
        )
    return Plan(trial, tuple(tasks), scores, clusters)


def _training(trial: Trial, run: str) -> Task:
    settings = {**trial.train, **trial.places}
    arguments = (*_common(trial, run), *_as_flags(settings))
    return Task(f"{run}/launch/train", "train.py", arguments, (), "", run)


def _analysis(
    options: Mapping[str, Any], places: Mapping[str, str], clusters: str
) -> Task:
    found = {k: places.get(f"data.{k}", v) for k, v in options.items()}
    arguments = tuple(f"--{k}={_as_text(v)}" for k, v in found.items() if v != "")
    arguments += (f"--out={ROOT}/{clusters}",)
    key, product = f"{clusters}/launch/analysis", f"{clusters}/clusters.parquet"
    return Task(key, "copymit.analysis", arguments, (), product, clusters)


def _evaluation(trial: Trial, run: str, name: str, after: tuple[str, ...]) -> Task:
    settings = dict(trial.evaluate)
    if trial.model:
        settings = {**trial.train, **trial.places, **settings}
    arguments = (*_common(trial, run), f"--name={name}", *_as_flags(settings))
    if trial.model:
        arguments += (f"--model={trial.model}",)
    key, product = f"{run}/launch/eval-{name}", f"{run}/eval/{name}/report.html"
    return Task(key, "evaluate.py", arguments, after, product, run)


def _common(trial: Trial, run: str) -> tuple[str, ...]:
    return f"--config={trial.config}", f"--workdir={ROOT}/{run}"


def unique_tasks(plans: Iterable[Plan]) -> list[Task]:
    """Lists every task once, trial by trial: its training before its evaluation."""
    return list({task.key: task for made in plans for task in made.tasks}.values())


def command_of(task: Task, root: str, python: str = sys.executable) -> list[str]:
    """Returns the words that run a task of a sweep in `root`, started in the checkout."""
    program = [task.program] if task.program.endswith(".py") else ["-m", task.program]
    return [
        python,
        *program,
        *(a.replace(ROOT, root.rstrip("/")) for a in task.arguments),
    ]


def command_lines(plans: Sequence[Plan], root: str, flags: str = "") -> list[list[str]]:
    """Writes a sweep as shell commands, each of which may be started again.

    Args:
      flags: of every training and evaluation, such as "--distributed".
    Returns:
      Groups, each to be finished before the next is begun: what several trials share, and
      last one line for each trial, in which that is there again and finds itself done.
    """

    def line(task: Task) -> str:
        words = command_of(task, root, "python")
        if not task.program.endswith(".py"):
            return shlex.join(words)
        if not IN_CHECKOUT:  # a wheel's programs lie where nobody starts them from
            words[:2] = ["copymit", task.program.removesuffix(".py")]
        return shlex.join([*words, *shlex.split(flags)])

    uses = Counter(task.key for made in plans for task in made.tasks)
    shared = [task for task in unique_tasks(plans) if uses[task.key] > 1]
    shared.sort(key=lambda task: len(task.after))
    by_depth = itertools.groupby(shared, lambda task: len(task.after))
    trials = dict.fromkeys(" && ".join(map(line, made.tasks)) for made in plans)
    return [*([line(t) for t in group] for _, group in by_depth), list(trials)]


def _with_overrides(trial: Trial, overrides: Mapping[str, str]) -> Trial:
    evaluate = {k: v for k, v in overrides.items() if k.startswith(_EVALUATION)}
    train = {k: v for k, v in overrides.items() if k not in evaluate}
    return trial._replace(
        train={**trial.train, **train}, evaluate={**trial.evaluate, **evaluate}
    )


def _resolved(trial: Trial, own: Mapping[str, Any]) -> Trial:
    """Checks a trial, and drops what its config says already: equal runs get one name.

    Args:
      own: settings of the config.
    """
    if not _NAME.fullmatch(trial.name):
        raise ValueError(
            f"trial {trial.name!r}: use letters, digits, and . _ + - for names"
        )
    unknown = sorted({*trial.train, *trial.evaluate} - own.keys())
    if unknown:
        raise ValueError(
            f"trial {trial.name}: {trial.config} has no setting {unknown[0]!r}"
            f"{nearest(unknown[0], own)} (copymit train --list_settings shows all)"
        )
    try:
        train = _changes(own, read_settings(trial.config, trial.train), trial.train)
        # Of a run, evaluate.py starts from the file's settings, not from the training's.
        before = train if trial.model else {}
        now = read_settings(trial.config, {**before, **trial.evaluate})
        evaluate = _changes({**own, **before}, now, trial.evaluate)
    except flags.Error as error:
        raise ValueError(f"trial {trial.name}: {error}") from error
    return trial._replace(train=train, evaluate=evaluate)


def _changes(
    before: Mapping[str, Any], now: Mapping[str, Any], names: Iterable[str]
) -> dict[str, Any]:
    """Keeps the settings of these names that changed, and the seed.

    A name without it would not say which of several it is.
    """
    return {k: now[k] for k in names if now[k] != before[k] or k == "seed"}


def _name_run(trial: Trial) -> str:
    """Names a training by its settings, so that equal ones are one in every sweep."""
    config = Path(trial.config.partition(":")[0]).stem
    argument = trial.config.partition(":")[2].replace(",", "+")
    autoencoder = Path(trial.places.get(AUTOENCODER, "")).stem
    parts = [config, argument, trial.model, autoencoder, _name(trial.train)]
    return _NOT_PLAIN.sub("-", "_".join(part for part in parts if part))


def _name(settings: Mapping[str, Any]) -> str:
    """Makes a readable name of settings, with a digest so that no two are the same."""
    if not settings:
        return ""
    ordered = {key: _as_text(value) for key, value in sorted(settings.items())}
    digest = hashlib.sha256(json.dumps(ordered).encode()).hexdigest()[:8]
    told = [k for start in _TELLING for k in ordered if k.startswith(start)]
    text = "_".join(f"{key.rpartition('.')[2]}-{ordered[key]}" for key in told)
    readable = _NOT_PLAIN.sub("-", text)[:_MAX_NAME].strip("-_")
    return f"{readable}_{digest}" if readable else digest


def _as_flags(settings: Mapping[str, Any]) -> list[str]:
    return [f"--config.{key}={_as_text(value)}" for key, value in settings.items()]


def _as_text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return value if isinstance(value, str) else repr(value)


def read_settings(config: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Reads the settings of a config file, dotted, with changes, as the programs do.

    Raises:
      FileNotFoundError, flags.Error: if it cannot be loaded, or a value is none.
    """
    file, colon, argument = config.partition(":")
    path = Path(file) if Path(file).exists() else PROJECT / file
    if not path.exists():
        raise FileNotFoundError(f"{file} does not exist")
    command = ["", f"--config={path}{colon}{argument}", *_as_flags(settings)]
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=command)
    values(command)
    return dict(_leaves(values.config.to_dict()))


def _leaves(settings: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _import_file(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read_overrides(pairs: Sequence[str]) -> dict[str, str]:
    """Reads SETTING=VALUE pairs of the command line.

    Raises:
      ValueError: for one that is no such pair.
    """
    odd = [pair for pair in pairs if not pair.partition("=")[0] or "=" not in pair]
    if odd:
        raise ValueError(f"--override={odd[0]} is not SETTING=VALUE")
    return dict(pair.split("=", 1) for pair in pairs)
