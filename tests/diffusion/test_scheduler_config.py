"""diffusers' scheduler files: read with its defaults, written so that it loads them."""

import json
import logging

import numpy as np
import pytest

from configs import common
from copymit.diffusion.noise_scheduler import make_noise_scheduler
from copymit.diffusion.scheduler_config import (
    describe_sampling,
    diffusion_settings,
    scheduler_config,
)
from copymit.diffusion.trajectory import SAMPLERS

# As published, with every key.
STABLE_DIFFUSION_1 = {
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.7.0.dev0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
    "clip_sample": False,
}
STABLE_DIFFUSION_2 = {
    **STABLE_DIFFUSION_1,
    "_class_name": "DDIMScheduler",
    "prediction_type": "v_prediction",
}
STABLE_DIFFUSION_XL = {
    **STABLE_DIFFUSION_1,
    "_class_name": "EulerDiscreteScheduler",
    "interpolation_type": "linear",
    "prediction_type": "epsilon",
    "sample_max_value": 1.0,
    "timestep_spacing": "leading",
    "use_karras_sigmas": False,
}
CLASSES = [
    "PNDMScheduler",
    "DDIMScheduler",
    "DDPMScheduler",
    "DPMSolverMultistepScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "LMSDiscreteScheduler",
    "DDIMParallelScheduler",
    "DDPMParallelScheduler",
    "DEISMultistepScheduler",
    "UniPCMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "LCMScheduler",
    "TCDScheduler",
]
SETTINGS = {
    "stable diffusion 1": {
        "set_alpha_to_one": False,
    },
    "linear": {
        "beta_schedule": "linear",
        "beta_start": 0.0001,
        "beta_end": 0.02,
        "num_train_timesteps": 500,
        "timestep_spacing": "linspace",
        "steps_offset": 0,
    },
    "pure noise": {
        "beta_schedule": "cosine",
        "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": True,
        "timestep_spacing": "trailing",
    },
}


def full_settings(changes):
    return {**common.get_config().diffusion.to_dict(), **changes}


def test_stable_diffusion_is_read_as_published():
    first = diffusion_settings(STABLE_DIFFUSION_1)
    assert first == full_settings({"set_alpha_to_one": False})
    second = diffusion_settings(STABLE_DIFFUSION_2)
    assert second == {**first, "prediction_type": "v_prediction"}
    assert diffusion_settings(STABLE_DIFFUSION_XL) == {
        **first,
        "timestep_spacing": "leading",
    }


@pytest.mark.parametrize("class_name", CLASSES)
def test_what_a_file_leaves_out_has_the_default_of_its_class(class_name):
    diffusers = pytest.importorskip("diffusers")
    reference = getattr(diffusers, class_name)().config
    settings = diffusion_settings({"_class_name": class_name, "clip_sample": False})
    assert settings.keys() == full_settings({}).keys()
    assert settings.pop("timestep_spacing") == ""  # each sampler's own
    for name in settings.keys() & reference.keys():
        assert settings[name] == reference[name], name


@pytest.mark.parametrize("class_name", CLASSES)
@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_files_that_diffusers_writes_give_the_same_table(
    schedule, class_name, tmp_path
):
    diffusers = pytest.importorskip("diffusers")
    options = {"clip_sample": False} if class_name.startswith("DD") else {}
    reference = getattr(diffusers, class_name)(beta_schedule=schedule, **options)
    reference.save_config(tmp_path)
    written = json.loads((tmp_path / "scheduler_config.json").read_text())
    scheduler = make_noise_scheduler(**diffusion_settings(written))
    # diffusers multiplies 1,000 factors in float32, we do in float64.
    np.testing.assert_allclose(
        scheduler.alphas_cumprod, reference.alphas_cumprod.numpy(), atol=1e-6
    )


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("name", SETTINGS)
def test_diffusers_loads_what_is_written(name, sampler, tmp_path, caplog):
    diffusers = pytest.importorskip("diffusers")
    settings = full_settings(SETTINGS[name])
    config = scheduler_config(settings, sampler)
    (tmp_path / "scheduler_config.json").write_text(json.dumps(config))
    diffusers_logger = logging.getLogger("diffusers")
    diffusers_logger.addHandler(caplog.handler)
    loaded = getattr(diffusers, config["_class_name"]).from_pretrained(tmp_path)
    diffusers_logger.removeHandler(caplog.handler)
    assert not caplog.records  # no key that it does not know
    scheduler = make_noise_scheduler(**settings)
    # As above; and at pure noise two of the classes put 6e-8 in place of 0.
    np.testing.assert_allclose(
        scheduler.alphas_cumprod, loaded.alphas_cumprod.numpy(), atol=1e-6
    )
    loaded.set_timesteps(10)
    trajectory = SAMPLERS[sampler](scheduler, 10)
    # diffusers rounds fractions to float32.
    np.testing.assert_allclose(trajectory.timesteps, loaded.timesteps, rtol=1e-6)
    assert loaded.config.prediction_type == settings["prediction_type"]
    if sampler == "ddim":
        assert loaded.config.set_alpha_to_one == settings["set_alpha_to_one"]
        assert not loaded.config.clip_sample


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("name", SETTINGS)
def test_what_is_written_is_read_back(name, sampler):
    settings = full_settings(SETTINGS[name])
    written = json.loads(json.dumps(scheduler_config(settings, sampler)))
    assert diffusion_settings(written) == settings


def test_what_was_left_out_is_written_with_our_default():
    assert scheduler_config({}) == scheduler_config(full_settings({}))


def test_diffusers_other_samplers_load_it_too():
    diffusers = pytest.importorskip("diffusers")
    config = scheduler_config(full_settings({"set_alpha_to_one": False}), "dpmsolver++")
    for class_name in CLASSES:
        loaded = getattr(diffusers, class_name).from_config(config)
        assert loaded.config.beta_schedule == "scaled_linear", class_name
        assert loaded.config.steps_offset == 1, class_name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"_class_name": "FlowMatchEuler"},
            r"_class_name='FlowMatchEuler': use .*PNDM",
        ),
        ({"_class_name": None}, r"_class_name=None: use one of .*DDIMScheduler"),
        ({"_class_name": ["DDIM"]}, r"_class_name=\['DDIM'\]: use one of"),
        ({"trained_betas": [0.1, 0.2]}, r"trained_betas=\[0.1, 0.2\]: .*beta_schedule"),
        (
            {"trained_betas": [0.1] * 999},
            r"trained_betas=\[[0.1, ]{56}\.\.\.: a config",
        ),
        (
            {"prediction_type": "sample"},
            r"prediction_type='sample'.*use one of epsilon",
        ),
        ({"use_flow_sigmas": True}, r"use_flow_sigmas=True: set it to False"),
        ({"timestep_type": "continuous"}, r"timestep_type='continuous': .*'discrete'"),
        ({"variance_type": "learned_range"}, r"variance_type='learned_range'.*network"),
        ({"beta_schedule": "sigmoid"}, r"beta_schedule='sigmoid': use .*squaredcos"),
        ({"beta_schedule": "cosine"}, r"beta_schedule='cosine': use .*squaredcos"),
        ({"beta_schedule": []}, r"beta_schedule=\[\]: it must be str"),
        (
            {"timestep_spacing": "odd"},
            r"timestep_spacing='odd'.*use one of '', leading",
        ),
        ({"beta_end": "0.012"}, r"beta_end='0.012': it must be float"),
        ({"beta_end": float("nan")}, r"beta_end=nan must rise within 0 and 1"),
        ({"beta_end": 7}, r"beta_end=7 must rise within 0 and 1"),
        ({"num_train_timesteps": 1e3}, r"num_train_timesteps=1000.0: it must be int"),
        ({"num_train_timesteps": True}, r"num_train_timesteps=True: it must be int"),
        (
            {"num_train_timesteps": 10**12},
            r"num_train_timesteps=1000000000000 must lie",
        ),
        ({"set_alpha_to_one": 1}, r"set_alpha_to_one=1: it must be bool"),
        ({"steps_offset": None}, r"steps_offset=None: it must be int"),
        ({"rescale_betas_zero_snr": True}, r"zero_snr=True needs .*v_prediction"),
        ({"shift": 3.0}, r"shift=3.0: .* not known: remove it"),
    ],
)
def test_what_is_not_understood_is_named_with_the_way_out(changes, message):
    with pytest.raises(ValueError, match=message) as failure:
        diffusion_settings({**STABLE_DIFFUSION_1, **changes})
    assert str(failure.value).startswith("scheduler_config.json: ")
    assert len(str(failure.value)) < 600


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({}, ""),
        ({"_class_name": "DDIMScheduler"}, ""),
        (
            {"_class_name": "DDIMScheduler", "clip_sample": True},
            "eval.clip_latents=1.0",
        ),
        ({"_class_name": "UniPCMultistepScheduler"}, "UniPCMultistepScheduler(), we"),
        (
            {"_class_name": "DPMSolverMultistepScheduler", "use_karras_sigmas": True},
            "Scheduler(use_karras_sigmas=True), we",
        ),
        (
            {
                "_class_name": "DPMSolverMultistepScheduler",
                "algorithm_type": "sde-dpmsolver++",
                "solver_order": 3,
            },
            "algorithm_type='sde-dpmsolver++', solver_order=3",
        ),
        ({"_class_name": "LCMScheduler"}, "distilled for few steps"),
    ],
)
def test_another_sampler_is_noted_and_does_not_change_the_noise_levels(changes, note):
    published = STABLE_DIFFUSION_1 | changes
    assert diffusion_settings(published) == diffusion_settings(STABLE_DIFFUSION_1)
    told = describe_sampling(published)
    assert note in told
    assert bool(told) == bool(note)


def test_a_class_that_clips_by_default_is_told_to():
    assert "clip_sample=True" in describe_sampling({"_class_name": "DDPMScheduler"})


def test_a_file_that_holds_no_settings_is_named():
    with pytest.raises(ValueError, match=r"must hold one object of settings, not a li"):
        diffusion_settings([1, 2])


def test_a_sampler_without_a_class_is_named():
    with pytest.raises(ValueError, match=r"eval.sampler='plms' .*ddim, dpmsolver"):
        scheduler_config(full_settings({}), "plms")


def test_every_sampler_can_be_written():
    for sampler in SAMPLERS:
        assert scheduler_config({}, sampler)["_class_name"] in CLASSES


@pytest.mark.parametrize(
    ("sampler", "class_name", "first"),
    [
        ("ddim", "DDIMScheduler", [981, 961]),
        ("dpmsolver++", "DPMSolverMultistepScheduler", [999, 979]),
        ("euler", "EulerDiscreteScheduler", [999, 978.6]),
    ],
)
def test_a_file_without_a_spacing_leaves_it_to_each_sampler(sampler, class_name, first):
    diffusers = pytest.importorskip("diffusers")
    # As a pipeline does when the scheduler of a checkpoint is replaced.
    published = diffusers.DDIMScheduler.from_config(STABLE_DIFFUSION_2).config
    reference = getattr(diffusers, class_name).from_config(published)
    reference.set_timesteps(50)
    noise_scheduler = make_noise_scheduler(**diffusion_settings(STABLE_DIFFUSION_2))
    ours = SAMPLERS[sampler](noise_scheduler, 50).timesteps
    np.testing.assert_allclose(ours, reference.timesteps.numpy(), atol=1e-4)
    np.testing.assert_allclose(ours[:2], first, atol=0.02)


def test_a_spacing_of_the_file_holds_for_every_sampler():
    given = {**STABLE_DIFFUSION_2, "timestep_spacing": "trailing"}
    noise_scheduler = make_noise_scheduler(**diffusion_settings(given))
    for make_trajectory in SAMPLERS.values():
        assert make_trajectory(noise_scheduler, 50).timesteps[:2].tolist() == [999, 979]
