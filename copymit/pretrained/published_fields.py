"""Reads the fields of a published `config.json` as those of a dataclass of ours.

The file is not trusted: types and sizes are checked before a network is made of it, and
a setting that ours does not have is refused by name.
"""

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

Json = Mapping[str, Any]

_MAX_INTEGER = 10**6
_MAX_LEVELS = 16
# How often a layer is repeated: the network is made before its weights are seen.
_MAX_LAYERS = 100
_LAYER_COUNTS = frozenset(
    {
        "layers_per_block",
        "num_decoder_blocks",
        "num_encoder_blocks",
        "num_hidden_layers",
        "transformer_layers",
    }
)
_MAY_BE_ZERO = frozenset({"eos_token_id"})

# Sizes of images, library versions, precision, and what only matters once a field that
# is refused is set.
_WITHOUT_EFFECT = frozenset(
    {
        "_class_name",
        "_diffusers_version",
        "_name_or_path",
        "_use_default_values",
        "addition_embed_type_num_heads",
        "dropout",
        "force_upcast",
        "sample_size",
        "upcast_attention",
    }
)


def read_fields(
    config_class: type, published: Json, defaults: Mapping[str, Any]
) -> dict[str, Any]:
    """Reads every field of a dataclass that the file or `defaults` names.

    Types are those of the default values; a sequence is one of whole numbers.

    Args:
      defaults: what the publishing library assumes where the file says nothing, if
        that differs from our default.
    Raises:
      ValueError: a value is of another type, or beyond reason; names the field.
    """
    read = {}
    for field in dataclasses.fields(config_class):
        name = field.name
        default = defaults.get(name, field.default)
        if name in published and published[name] != default:
            read[name] = _check(name, published[name], default)
        elif name in published or name in defaults:
            read[name] = default
    return read


def same_for_all_levels(published: Json, name: str, default: int) -> Any:
    """Returns a value that may be given once or once a level, if levels agree."""
    value = published.get(name, default)
    if isinstance(value, list) and value and all(v == value[0] for v in value):
        return value[0]
    if isinstance(value, list):
        raise refusal(name, value, "it must be the same for all levels")
    return value


def refuse_others(
    published: Json, read: Collection[str], fixed: Mapping[str, Any]
) -> None:
    """Refuses settings that were not read and would change the network.

    A setting that is null, false or zero switches nothing on.

    Args:
      read: names of fields that were read.
      fixed: names of fields with the only value that is implemented.
    """
    for name, value in published.items():
        if name in read or name in _WITHOUT_EFFECT:
            continue
        if name in fixed:
            if value != fixed[name]:
                raise refusal(name, value, f"only {fixed[name]!r} is implemented")
        elif any(value) if isinstance(value, list) else value:
            raise refusal(name, value, "this is not implemented")


def refusal(name: str, value: Any, reason: str) -> ValueError:
    """Makes the error for a field, with its value cut to a readable length."""
    shown = repr(value)
    shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
    return ValueError(f"{name}={shown}: {reason}")


def _check(name: str, value: Any, default: Any) -> Any:
    if isinstance(default, str | bool):
        if type(value) is not type(default):
            raise refusal(name, value, f"must be {type(default).__name__}")
        return value
    if isinstance(default, float):
        if type(value) not in (int, float) or not math.isfinite(value):
            raise refusal(name, value, "must be a finite number")
        return float(value)
    if isinstance(value, list) and isinstance(default, Sequence):
        if not 1 <= len(value) <= _MAX_LEVELS:
            raise refusal(name, value, f"must have 1 to {_MAX_LEVELS} values")
        return tuple(_check_integer(name, item) for item in value)
    if isinstance(default, Sequence):
        raise refusal(name, value, "must be a list of whole numbers")
    return _check_integer(name, value)


def _check_integer(name: str, value: Any) -> int:
    least = 0 if name in _MAY_BE_ZERO else 1
    most = _MAX_LAYERS if name in _LAYER_COUNTS else _MAX_INTEGER
    if type(value) is not int or not least <= value <= most:
        raise refusal(name, value, f"must be a whole number from {least} to {most}")
    return value
