"""All mitigations, as `methods/` holds them, and what a config asks of them.

In: the `mitigation` section. Out: the section with names resolved and everything checked.
What the records say of their settings is said nowhere else.
"""

import importlib
import math
import pkgutil
from collections.abc import Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from copymit.config import flatten
from copymit.mitigation import methods
from copymit.mitigation.record import (
    Circumstances,
    Mitigation,
    Need,
    Setting,
    Value,
    Values,
)
from copymit.spelling import nearest


def _all_mitigations() -> dict[str, Mitigation]:
    """Reads every file of `methods/`: training first, then by order and name."""
    found: list[Mitigation] = []
    for file in pkgutil.iter_modules(methods.__path__):
        found += importlib.import_module(f"{methods.__name__}.{file.name}").MITIGATIONS
    found.sort(key=lambda m: (m.switch.section == "generate", m.order, m.name))
    return {m.name: m for m in found}


MITIGATIONS = _all_mitigations()
SETTINGS: dict[str, Setting] = {
    setting.path: setting for m in MITIGATIONS.values() for setting in m.settings
}

Strengths = tuple[tuple[str, Value], ...]
"""Settings of `mitigation.generate` that are not at their defaults; () is no mitigation."""


def mitigation_settings() -> ConfigDict:
    """Returns the `mitigation` section with its defaults: nothing is done.

    Names, or the papers' and their code's, in `apply`, each with its strength there or
    one given, ("GN", "RT=0.2", "PO=q0.9"), are resolved into the other settings.
    """
    section = ConfigDict({"apply": (), "train": {}, "generate": {}})
    for setting in SETTINGS.values():
        section[setting.section][setting.name] = setting.default
    return section.lock()


def defaults(section: str) -> dict[str, Value]:
    """Returns the defaults of `train` or `generate` by name."""
    return {s.name: s.default for s in SETTINGS.values() if s.section == section}


def strengths(**given: Value) -> Strengths:
    """Writes down what is asked of a generation.

    Args:
      given: settings of `mitigation.generate` by name; the others are at their defaults.
    Raises:
      ValueError: for one that there is not.
    """
    known = defaults("generate")
    if unknown := sorted(given.keys() - known.keys()):
        raise ValueError(
            f"mitigation.generate.{unknown[0]} is not known: use {', '.join(known)}"
        )
    return tuple(sorted((k, v) for k, v in given.items() if v != known[k]))


def values_of(asked: Strengths) -> Values:
    """Returns all settings of `mitigation.generate` by name."""
    return defaults("generate") | dict(asked)


def active(section: str, values: Values) -> list[Mitigation]:
    """Lists the mitigations of a section that are on, in the order in which they act."""
    return [
        m for m in MITIGATIONS.values() if m.switch.section == section and m.on(values)
    ]


def needed(section: str, values: Values, need: Need) -> list[Mitigation]:
    """Lists the mitigations that are on and have a need."""
    return [m for m in active(section, values) if need in m.needs]


def with_mitigations(config: ConfigDict) -> ConfigDict:
    """Resolves `mitigation.apply` into the settings that it stands for, and checks all.

    Returns:
      A config with `mitigation.apply` empty.
    Raises:
      ValueError: for an unknown name, a strength out of its range, or settings that
        contradict each other or would change nothing.
    """
    config = config.copy_and_resolve_references()
    resolved: dict[str, str] = {}
    for asked in map(str, config.mitigation.apply):
        setting, value = resolve(asked)
        if setting.path in resolved:
            raise ValueError(
                f"mitigation.apply: {resolved[setting.path]!r} and {asked!r} are the same "
                "mitigation: ask for it once"
            )
        resolved[setting.path] = asked
        config.mitigation[setting.section][setting.name] = value
    config.mitigation.apply = ()
    _check_section("train", config.mitigation.train)
    _check_training(config)
    check_generation(
        config.mitigation.generate,
        Circumstances(
            config.diffusion.num_train_timesteps,
            config.eval.guidance_scale,
            config.diffusion.prediction_type,
        ),
    )
    return config


def resolve(asked: str) -> tuple[Setting, Value]:
    """Reads `NAME`, `NAME=STRENGTH` or `NAME=qQUANTILE` as a setting and its value.

    Raises:
      ValueError: for an unknown name, or a strength that is not a number.
    """
    name, given, strength = asked.partition("=")
    mitigation = _find(name)
    if not given:
        return mitigation.switch, mitigation.strength
    if mitigation.calibration and strength.startswith("q"):
        return mitigation.calibration.quantile, _read_strength(
            asked, strength[1:], float
        )
    return mitigation.switch, _read_strength(
        asked, strength, type(mitigation.switch.default)
    )


def _read_strength(asked: str, text: str, kind: type) -> Any:
    text = {"True": "1", "False": "0"}.get(text, text)
    expected = {bool: "0 or 1", int: "a whole number"}.get(kind, "a number")
    try:
        number = float(text)
        value = kind(number)
    except (ValueError, OverflowError):
        number, value = math.nan, None
    if value != number:
        raise ValueError(f"mitigation.apply: {asked!r}: {text!r} is not {expected}")
    return value


def _find(name: str) -> Mitigation:
    for known, mitigation in MITIGATIONS.items():
        if name in (known, mitigation.switch.path, *mitigation.aliases):
            return mitigation
    names = "; ".join(
        f"{known} ({', '.join(m.aliases)})" for known, m in MITIGATIONS.items()
    )
    alike = nearest(name, MITIGATIONS)
    raise ValueError(
        f"mitigation.apply: {name!r} is not known{alike}. Known are {names}"
    )


def check_generation(values: Values, circumstances: Circumstances) -> None:
    """Refuses strengths out of range, and settings that contradict each other or would
    change nothing.

    Args:
      values: of the section `generate`.
    Raises:
      ValueError: names the setting and the way out.
    """
    _check_section("generate", values)
    for m in active("generate", values):
        if problem := _both(m, values, circumstances) or m.check(values, circumstances):
            raise setting_error(m.switch, values, problem)


def _both(m: Mitigation, values: Values, circumstances: Circumstances) -> str | None:
    # Once the sampler is known, the quantile has become a target.
    if m.calibration is None or circumstances.trajectory is not None:
        return None
    name = m.calibration.quantile.name
    if not (values[name] and values[m.calibration.target.name]):
        return None
    return f"and {name}={values[name]} both say when it is enough: use one of them"


def forget_idle(mitigation: ConfigDict) -> None:
    """Sets to its default whatever only says how a mitigation acts that is off.

    A run notes all its settings, and an older copymit had other defaults of some.
    """
    for section in ("train", "generate"):
        alive = _alive(section, mitigation[section])
        for setting in SETTINGS.values():
            if setting.section == section and setting.path not in alive:
                mitigation[section][setting.name] = setting.default


def _alive(section: str, values: Values) -> set[str]:
    """Lists the settings of the mitigations that are on."""
    return {setting.path for m in active(section, values) for setting in m.settings}


def _check_section(section: str, values: Values) -> None:
    on = active(section, values)
    alive = _alive(section, values)
    switches = {m.switch.path for m in MITIGATIONS.values()}
    for setting in SETTINGS.values():
        if setting.section != section:
            continue
        value = values[setting.name]
        if not setting.least <= value <= setting.most:  # not a number is not either
            off = ", 0 for none" if setting.path in switches else ""
            problem = f"must lie between {setting.least:g} and {setting.most:g}{off}"
            raise setting_error(setting, values, problem)
        if value != setting.default and setting.path not in alive:
            owners = [m for m in MITIGATIONS.values() if setting in m.settings]
            raise setting_error(setting, values, _alone(owners))
    for m in on:
        beside = [MITIGATIONS[name] for name in m.beside]
        if beside and not any(other in on for other in beside):
            raise setting_error(m.switch, values, _alone(beside))


def _alone(owners: list[Mitigation]) -> str:
    return f"changes nothing alone: add {' or '.join(m.switch.name for m in owners)}"


def setting_error(setting: Setting, values: Values, problem: str) -> ValueError:
    """Returns the error that a setting's value is refused with."""
    return ValueError(f"mitigation.{setting.path}={values[setting.name]} {problem}")


def _check_training(config: ConfigDict) -> None:
    values, style = config.mitigation.train, config.data.caption_style
    if style == "unconditional":
        for m in needed("train", values, "a caption beside the empty one"):
            problem = (
                "compares a caption with the empty one, and data.caption_style="
                "'unconditional' has no other: set it to 0"
            )
            raise setting_error(m.switch, values, problem)
    if style != "instance":
        for m in needed("train", values, "captions of images"):
            problem = (
                f"changes captions of images, but data.caption_style={style!r} does not "
                "use them: set data.caption_style='instance'"
            )
            raise setting_error(m.switch, values, problem)
    if config.data.cache_embeddings:
        for m in needed("train", values, "captions that are embedded while training"):
            problem = (
                "makes captions up while training, so they cannot be embedded before: "
                "set data.cache_embeddings=False"
            )
            raise setting_error(m.switch, values, problem)


def check_captions_vary(config: ConfigDict, caption_counts: np.ndarray) -> None:
    """Refuses what needs several captions for images of which none has a second one.

    Args:
      caption_counts: of the training images.
    Raises:
      ValueError: says how to get more captions.
    """
    for m in needed("train", config.mitigation.train, "several captions"):
        if caption_counts.max() < 2:
            raise ValueError(
                f"mitigation.{m.switch.path} needs images with several captions, and "
                f"each of the {len(caption_counts)} has one: make more with python -m "
                "copymit.data.caption, or give a captions file"
            )


def changed_mitigations(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Keeps, of flat settings, those of mitigations that are not at their defaults.

    So what is on, and of what says how strongly and how, what is not as usual.
    """
    usual = flatten({"mitigation": mitigation_settings().to_dict()})
    return {
        name: value
        for name, value in settings.items()
        if name.startswith("mitigation.") and value != usual.get(name, 0)
    }


def unused_in_evaluation(asked: ConfigDict, trained: ConfigDict) -> list[str]:
    """Says which mitigations in training are asked for after a training without them.

    Args:
      asked, trained: `mitigation` sections, of the evaluation and of the training.
    Returns:
      For each its setting, and the names of those that act at generation.
    """
    generate = ", ".join(
        f"{name} ({', '.join(m.aliases)})" if m.aliases else name
        for name, m in MITIGATIONS.items()
        if m.switch.section == "generate"
    )
    return [
        f"mitigation.{m.switch.path}={asked.train[m.switch.name]} acts in training, and "
        f"this model was not trained with it. At generation there are {generate}"
        for m in active("train", asked.train)
        if asked.train[m.switch.name] != trained.train[m.switch.name]
    ]
