"""diffusers' `scheduler_config.json` in, the `diffusion` section of a config out, and back.

The file names the sampler that a model was published with, but what training depends on
has the same names in every scheduler class. Which sampler runs is `eval.sampler` here,
whatever class the file names.
"""

import inspect
import math
from collections.abc import Mapping
from typing import Any

from copymit.diffusion.noise_scheduler import make_noise_scheduler

# Classes whose table of noise levels is ours, with those of diffusers' defaults that
# differ from class to class.
_KARRAS = {"beta_start": 0.00085, "beta_end": 0.012}
_CLASSES: dict[str, dict[str, Any]] = {
    "PNDMScheduler": {"set_alpha_to_one": False},
    "DDIMScheduler": {"clip_sample": True},
    "DDPMScheduler": {"clip_sample": True},
    "DPMSolverMultistepScheduler": {},
    "EulerDiscreteScheduler": {},
    "EulerAncestralDiscreteScheduler": {},
    "LMSDiscreteScheduler": {},
    "DDIMParallelScheduler": {"clip_sample": True},
    "DDPMParallelScheduler": {"clip_sample": True},
    "DEISMultistepScheduler": {},
    "UniPCMultistepScheduler": {},
    "DPMSolverSinglestepScheduler": {},
    "DPMSolverSDEScheduler": _KARRAS,
    "HeunDiscreteScheduler": _KARRAS,
    "KDPM2DiscreteScheduler": _KARRAS,
    "KDPM2AncestralDiscreteScheduler": _KARRAS,
    "LCMScheduler": {**_KARRAS, "beta_schedule": "scaled_linear"},
    "TCDScheduler": {**_KARRAS, "beta_schedule": "scaled_linear"},
}
_DISTILLED = ("LCMScheduler", "TCDScheduler")

# What is read, with diffusers' default where the file says nothing. Of the spacing that
# is each sampler's own: whoever changes the sampler of a file gets that of the new one.
_READ: dict[str, Any] = {
    "beta_schedule": "linear",
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "rescale_betas_zero_snr": False,
    "timestep_spacing": "",
    "steps_offset": 0,
    "set_alpha_to_one": True,
}

# Refused with any other value, the first being the one to set: it would mean another
# table or another network.
_FIXED: dict[str, tuple[Any, ...]] = {
    "trained_betas": (None,),
    "variance_type": (
        None,
        "fixed_small",
        "fixed_small_log",
        "fixed_large",
        "fixed_large_log",
    ),
    "timestep_type": ("discrete",),
    "use_flow_sigmas": (False, None),
    "use_dynamic_shifting": (False, None),
}

# About sampling alone, with what ours does; `describe_sampling` tells of other values.
_SAMPLING: dict[str, Any] = {
    "clip_sample": False,
    "thresholding": False,
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "use_lu_lambdas": False,
    "interpolation_type": "linear",
    "sigma_min": None,
    "sigma_max": None,
    "final_sigmas_type": "zero",
    "algorithm_type": "dpmsolver++",
    "solver_order": 2,
    "solver_type": "midpoint",
    "lower_order_final": True,
    "euler_at_final": False,
    "lambda_min_clipped": -math.inf,
    "noise_sampler_seed": None,
}
# Those with which we sample as their authors do, or nearly.
_SAMPLED_ALIKE = (
    *("PNDMScheduler", "DDIMScheduler", "DDIMParallelScheduler"),
    *("DPMSolverMultistepScheduler", "EulerDiscreteScheduler"),
    *("DDPMScheduler", "EulerAncestralDiscreteScheduler", "LMSDiscreteScheduler"),
)

_WAYS_OUT = {
    "trained_betas": "a config cannot hold a table: set it to null, and a beta_schedule",
    "variance_type": "a network that predicts variances too cannot be loaded",
}

# Means nothing once the keys above have their only value, or without the class itself.
_IGNORED = frozenset(
    {
        "_class_name",
        "_diffusers_version",
        "_use_default_values",
        "skip_prk_steps",
        "clip_sample_range",
        "sample_max_value",
        "dynamic_thresholding_ratio",
        "flow_shift",
        "time_shift_type",
        "original_inference_steps",
        "timestep_scaling",
        "predict_x0",
        "disable_corrector",
        "solver_p",
        "shift_terminal",
    }
)

_BETA_SCHEDULES = {
    "linear": "linear",
    "scaled_linear": "scaled_linear",
    "squaredcos_cap_v2": "cosine",
}

_WRITTEN_CLASSES: dict[str, tuple[str, tuple[str, ...]]] = {
    "ddim": ("DDIMScheduler", ("clip_sample", "thresholding")),
    "dpmsolver++": (
        "DPMSolverMultistepScheduler",
        ("algorithm_type", "solver_order", "solver_type", "final_sigmas_type"),
    ),
    "euler": ("EulerDiscreteScheduler", ("interpolation_type", "final_sigmas_type")),
}


def diffusion_settings(scheduler_json: Mapping[str, Any]) -> dict[str, Any]:
    """Reads diffusers' settings of a scheduler as our `diffusion` section.

    Args:
      scheduler_json: the parsed `scheduler_config.json` of a model; not trusted.
    Returns:
      Every key of `config.diffusion`; `make_noise_scheduler` takes them.
    Raises:
      ValueError: for a class, key or value with another meaning than ours can have.
    Source: diffusers 0.42 `schedulers/`, the constructors' arguments and defaults.
    """
    if not isinstance(scheduler_json, Mapping):
        raise ValueError(
            "scheduler_config.json must hold one object of settings, not a "
            f"{type(scheduler_json).__name__}"
        )
    class_name = scheduler_json.get("_class_name")
    if not isinstance(class_name, str) or class_name not in _CLASSES:
        raise _error(
            "_class_name", class_name, f"use one of {', '.join(sorted(_CLASSES))}"
        )
    given = {**_READ, **_CLASSES[class_name], **scheduler_json}
    for name, value in given.items():
        if name in _FIXED:
            known = _FIXED[name]
            # By type too: to Python, 0 is False and 1 is True.
            if not any(value == k and type(value) is type(k) for k in known):
                only = f"set it to {known[0]!r}, the only value that is known"
                raise _error(name, value, _WAYS_OUT.get(name, only))
        elif name in _READ:
            _check_type(name, value)
        elif name not in _IGNORED and name not in _SAMPLING:
            raise _error(
                name,
                value,
                "a setting of this name is not known: remove it if it cannot change "
                "the noise levels",
            )
    if given["beta_schedule"] not in _BETA_SCHEDULES:
        raise _error(
            "beta_schedule",
            given["beta_schedule"],
            f"use one of {', '.join(_BETA_SCHEDULES)}",
        )
    settings = {name: given[name] for name in _READ}
    settings["beta_schedule"] = _BETA_SCHEDULES[given["beta_schedule"]]
    try:  # Ranges, and values that exclude each other, are refused there.
        make_noise_scheduler(**settings)
    except ValueError as error:
        raise ValueError(f"scheduler_config.json: {error}") from None
    return settings


def describe_sampling(scheduler_json: Mapping[str, Any]) -> str:
    """Says what the author's sampler does that none of ours does; "" if nothing.

    Args:
      scheduler_json: as `diffusion_settings` has read it.
    """
    class_name = scheduler_json["_class_name"]
    given = {**_CLASSES[class_name], **scheduler_json}
    others = [
        f"{name}={given[name]!r}"
        for name, ours in _SAMPLING.items()
        if name in given and given[name] not in (ours, None)
    ]
    if class_name in _SAMPLED_ALIKE and not others:
        return ""
    note = (
        f"its author samples with {class_name}({', '.join(others)}), we from the same "
        "noise levels with eval.sampler"
    )
    if given.get("clip_sample"):
        bound = given.get("clip_sample_range", 1.0)
        note += f"; eval.clip_latents={bound} clips as it does"
    if class_name in _DISTILLED:
        note += "; a model distilled for few steps needs about as many as others here"
    return note


def scheduler_config(
    settings: Mapping[str, Any], sampler: str = "ddim"
) -> dict[str, Any]:
    """Writes a `diffusion` section as diffusers' settings of a scheduler.

    Args:
      settings: keys of `config.diffusion`; those left out are `make_noise_scheduler`'s
        defaults.
      sampler: name of `eval.sampler`; decides the class that diffusers will load.
    Returns:
      What `from_config` of that class takes, and `diffusion_settings` turns back.
    Raises:
      ValueError: for an unknown sampler, or settings that are no noise scheduler.
    """
    if sampler not in _WRITTEN_CLASSES:
        raise ValueError(
            f"eval.sampler={sampler!r} has no scheduler in diffusers: use one of "
            f"{', '.join(_WRITTEN_CLASSES)}"
        )
    make_noise_scheduler(**settings)
    parameters = inspect.signature(make_noise_scheduler).parameters
    settings = {name: settings.get(name, p.default) for name, p in parameters.items()}
    class_name, fixed = _WRITTEN_CLASSES[sampler]
    names = {ours: theirs for theirs, ours in _BETA_SCHEDULES.items()}
    if not settings["timestep_spacing"]:
        del settings["timestep_spacing"]  # the class's own, as it is ours
    return {
        "_class_name": class_name,
        **settings,
        "beta_schedule": names[settings["beta_schedule"]],
        "trained_betas": None,
        **{name: _SAMPLING[name] for name in fixed},
    }


def _check_type(name: str, value: Any) -> None:
    default = _READ[name]
    # A whole number is a fine float, but True is no number.
    allowed = (float, int) if isinstance(default, float) else (type(default),)
    if type(value) not in allowed:
        raise _error(name, value, f"it must be {type(default).__name__}")


def _error(name: str, value: Any, way_out: str) -> ValueError:
    shown = repr(value)
    shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
    return ValueError(f"scheduler_config.json: {name}={shown}: {way_out}")
