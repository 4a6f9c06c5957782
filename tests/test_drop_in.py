"""The swap `pipe.scheduler = EtaDDIMScheduler.from_config(pipe.scheduler.config)` in diffusers' own pipelines."""

import functools
import inspect
import sys
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers import CogVideoXDDIMScheduler, DDIMScheduler, DDPMScheduler, EDMEulerScheduler, SchedulerMixin
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers

from ddim_scheduler import EtaDDIMScheduler

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import pipeline_sweep
import tiny_pipelines
from tiny_pipelines import LATENT, arguments, randn

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # numpy's, in diffusers' solvers

STEPS = 5  # divides 1000: the built-in scheduler is right
# (pipeline, entries of the configs of its parts)
PIPELINES = {
    "sd": ("StableDiffusionPipeline", {}),
    "sd_img2img": ("StableDiffusionImg2ImgPipeline", {}),
    "sd_inpaint": ("StableDiffusionInpaintPipeline", {}),
    "sd_inpaint_unet": ("StableDiffusionInpaintPipeline", {"unet": {"in_channels": 9}}),
    "sd_pix2pix": ("StableDiffusionInstructPix2PixPipeline", {}),
    "sd_panorama": ("StableDiffusionPanoramaPipeline", {}),
    "controlnet": ("StableDiffusionControlNetPipeline", {}),
    "sdxl": ("StableDiffusionXLPipeline", {}),
    "sdxl_img2img": ("StableDiffusionXLImg2ImgPipeline", {}),
    "sdxl_inpaint": ("StableDiffusionXLInpaintPipeline", {}),
    "ldm": ("LDMPipeline", {}),
    "ldm_super_resolution": ("LDMSuperResolutionPipeline", {}),
    "ddpm": ("DDPMPipeline", {}),
    "dit": ("DiTPipeline", {}),
    "pixart_alpha": ("PixArtAlphaPipeline", {}),
    "pixart_sigma": ("PixArtSigmaPipeline", {}),
    "latte": ("LattePipeline", {}),
    "kandinsky": ("KandinskyV22Pipeline", {}),
    "animate_diff": ("AnimateDiffPipeline", {}),
    "cog_video_x": ("CogVideoXPipeline", {}),
    "deepfloyd_if": ("IFPipeline", {}),
    "marigold": ("MarigoldDepthPipeline", {}),
}
# where they are not those of Stable Diffusion
SCHEDULERS = {
    "ddpm": DDIMScheduler(),
    "dit": DDIMScheduler(clip_sample=False),
    "kandinsky": DDIMScheduler(beta_start=0.00085, beta_end=0.012, clip_sample=False),
    "animate_diff": DDIMScheduler(beta_schedule="linear", steps_offset=1, clip_sample=False),
    "cog_video_x": DDIMScheduler(**LATENT | {"prediction_type": "v_prediction"}),
    "deepfloyd_if": DDPMScheduler(
        variance_type="fixed_small", beta_schedule="squaredcos_cap_v2", thresholding=True, sample_max_value=1.5
    ),
    "marigold": DDIMScheduler(**LATENT | {"prediction_type": "v_prediction"}),
}

# what each pipeline's call and its call of `step` leave out
NO_ETA = ("ddpm", "dit", "kandinsky", "marigold")
NO_GENERATOR = ("dit", "ldm", "ldm_super_resolution")
TIMESTEPS = (
    *("sd", "sd_img2img", "sd_inpaint", "sd_inpaint_unet", "sd_panorama", "controlnet"),
    *("sdxl", "sdxl_img2img", "sdxl_inpaint", "pixart_alpha", "pixart_sigma", "latte", "cog_video_x", "deepfloyd_if"),
)


@functools.cache
def build(name):
    pipeline, parts = PIPELINES[name]
    pipe = tiny_pipelines.build(pipeline, SCHEDULERS.get(name, DDIMScheduler(**LATENT)), **parts)
    call = arguments(pipe) | ({"width": 24} if name == "sd_panorama" else {})
    return pipe, call, pipe.scheduler.config


@pytest.fixture
def steps(monkeypatch):
    """The arguments of each call of `step`, and the sample and x_0 that it returned."""
    calls = []

    def spy_on(step):
        @functools.wraps(step)
        def spy(*args, **kwargs):
            result = step(*args, **kwargs)
            samples = result if isinstance(result, tuple) else tuple(result.values())
            calls.append({**inspect.signature(step).bind(*args, **kwargs).arguments, "result": samples})
            return result

        return spy

    for scheduler_class in (DDIMScheduler, DDPMScheduler, EtaDDIMScheduler):
        monkeypatch.setattr(scheduler_class, "step", spy_on(scheduler_class.step))
    return calls


def run(pipe, scheduler, steps, **call):
    """The images of a call with that scheduler, and its steps."""
    steps.clear()
    pipe.scheduler = scheduler
    torch.manual_seed(0)  # some pipelines give no generator to `step`
    call = {"num_inference_steps": STEPS, "generator": torch.Generator().manual_seed(0)} | call
    images = torch.as_tensor(pipe(**call, return_dict=False)[0])
    assert images.isfinite().all()
    assert images.std() > 0.05
    return images, steps.copy()


def assert_same(ours, theirs):
    """Images and the samples of every step are equal to 1e-3."""
    assert (ours[0] - theirs[0]).abs().max() < 1e-3
    for our_step, their_step in zip(ours[1], theirs[1], strict=True):
        for our_sample, their_sample in zip(our_step["result"], their_step["result"], strict=True):
            assert (our_sample - their_sample).abs().max() < 1e-3 * max(1, their_sample.abs().max())


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("name", PIPELINES)
def test_same_images_as_the_built_in_scheduler(name, eta, steps):
    pipe, call, config = build(name)
    theirs = DDIMScheduler.from_config(config)
    if name in NO_ETA:
        ours = EtaDDIMScheduler.from_config(config, eta=eta)
        theirs.step = functools.partial(theirs.step, eta=eta)
    else:
        ours = EtaDDIMScheduler.from_config(config)
        call = call | {"eta": eta}
    assert_same(run(pipe, ours, steps, **call), run(pipe, theirs, steps, **call))
    assert len(steps) >= STEPS - 1


@pytest.mark.parametrize("name", PIPELINES)
def test_eta_and_generator_reach_step(name, steps):
    pipe, call, config = build(name)
    parameters = inspect.signature(pipe.__call__).parameters
    assert ("eta" in parameters, "timesteps" in parameters) == (name not in NO_ETA, name in TIMESTEPS)
    generator = torch.Generator().manual_seed(0)
    eta = {"eta": 0.3} if "eta" in parameters else {}
    run(pipe, EtaDDIMScheduler.from_config(config), steps, generator=generator, **call, **eta)
    assert [step.get("eta") for step in steps] == [eta.get("eta")] * len(steps)
    assert all(step.get("generator") is (None if name in NO_GENERATOR else generator) for step in steps)


@pytest.mark.parametrize("name", TIMESTEPS)
def test_timesteps_of_a_call(name, steps):
    pipe, call, config = build(name)
    scheduler = EtaDDIMScheduler.from_config(config)
    by_number = run(pipe, scheduler, steps, **call)
    by_list = run(pipe, scheduler, steps, timesteps=scheduler.timesteps.tolist(), **call)
    assert_same(by_list, by_number)
    uneven = [950, 600, 300, 120, 20]
    run(pipe, scheduler, steps, timesteps=uneven, **call)
    assert len(steps) >= STEPS - 1
    assert [int(step["timestep"]) for step in steps] == uneven[-len(steps) :]


@pytest.mark.parametrize("variance_type", ["fixed_small", "learned_range"])
@pytest.mark.parametrize("name", ["kandinsky", "deepfloyd_if"])
def test_learned_variance_as_in_ddpm(name, variance_type, steps):
    pipe, call, config = build(name)
    theirs = DDPMScheduler.from_config(config, variance_type=variance_type)
    ours = EtaDDIMScheduler.from_config(theirs.config, eta=1.0, use_clipped_model_output=True)
    call = call | ({} if name in NO_ETA else {"eta": 1.0})
    assert_same(run(pipe, ours, steps, **call), run(pipe, theirs, steps, **call))
    assert steps[0]["model_output"].shape[1] == steps[0]["sample"].shape[1] * (1 + (variance_type == "learned_range"))
    if variance_type == "learned_range":
        with pytest.raises(RuntimeError, match="size of tensor"):
            run(pipe, DDIMScheduler.from_config(theirs.config), steps, **call)


# ---------------------------------------------------------------------------------------------------------- the config


@pytest.mark.parametrize(
    "name",
    [
        "EulerDiscreteScheduler",
        "PNDMScheduler",
        "DPMSolverMultistepScheduler",
        "UniPCMultistepScheduler",
        "HeunDiscreteScheduler",
    ],
)
def test_latents_are_not_clamped(name, steps):
    settings = {key: value for key, value in LATENT.items() if key != "clip_sample" and key != "set_alpha_to_one"}
    pipe = tiny_pipelines.build("StableDiffusionPipeline", getattr(diffusers, name)(**settings))
    call, config = arguments(pipe), pipe.scheduler.config
    ours = run(pipe, EtaDDIMScheduler.from_config(config), steps, **call)
    assert steps[-1]["result"][0].abs().max() > 2
    assert_same(ours, run(pipe, DDIMScheduler.from_config(config, clip_sample=False), steps, **call))
    run(pipe, DDIMScheduler.from_config(config), steps, **call)
    assert steps[-1]["result"][0].abs().max() <= 1


SETTINGS = {
    "default": {},
    "schedule": {
        "num_train_timesteps": 500,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "timestep_spacing": "trailing",
        "steps_offset": 1,
        "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": True,
        "clip_sample": False,
        "variance_type": "fixed_large",
        "use_karras_sigmas": True,
        "skip_prk_steps": True,
        "set_alpha_to_one": True,
    },
    "solver": {
        "trained_betas": torch.linspace(0.001, 0.02, 1000).tolist(),
        "clip_sample": True,
        "clip_sample_range": 3.0,
        "thresholding": True,
        "sample_max_value": 1.5,
        "set_alpha_to_one": False,
        "variance_type": "learned_range",
        "use_exponential_sigmas": True,
        "solver_order": 3,
        "lower_order_final": False,
        "final_sigmas_type": "sigma_min",
        "disable_corrector": [0],
        "timestep_spacing": "linspace",
    },
}
KARRAS = [e.name for e in KarrasDiffusionSchedulers if e.name != "EDMEulerScheduler"]


def swap(scheduler, scheduler_class, path):
    scheduler.save_pretrained(path)
    return scheduler_class.from_pretrained(path)


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("name", KARRAS)
def test_swap_there_and_back_by_files_restores_the_config(name, settings, tmp_path):
    """test_compatibles.py has it for configs in memory."""
    scheduler_class = getattr(diffusers, name)
    if not issubclass(scheduler_class, SchedulerMixin):
        pytest.skip(f"{name} needs an optional package")
    keys = set(inspect.signature(scheduler_class).parameters)
    scheduler = scheduler_class(**{key: value for key, value in SETTINGS[settings].items() if key in keys})
    keys -= {"solver_order"}  # ours is another, and that of another solver is left out on purpose
    ours = swap(scheduler, EtaDDIMScheduler, tmp_path / "theirs")
    back = swap(ours, scheduler_class, tmp_path / "ours")
    assert {key: back.config[key] for key in keys} == {key: scheduler.config[key] for key in keys}


@pytest.mark.parametrize("name", ["HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "LCMScheduler"])
def test_noise_schedule_that_a_scheduler_has_by_default_is_kept(name):
    theirs = getattr(diffusers, name)()
    ours = EtaDDIMScheduler.from_config(theirs.config)
    assert torch.allclose(ours.betas, theirs.betas)
    assert ours.config.clip_sample is False


@pytest.mark.parametrize("rescale_betas_zero_snr", [False, True])
def test_noise_schedule_of_cog_video_x(rescale_betas_zero_snr):
    """Its own scheduler shifts the signal-to-noise ratio. Built-in DDIM ignores that with a warning."""
    settings = {"snr_shift_scale": 3.0, "prediction_type": "v_prediction", "timestep_spacing": "trailing"}
    theirs = CogVideoXDDIMScheduler(**settings, rescale_betas_zero_snr=rescale_betas_zero_snr, clip_sample=False)
    ours = EtaDDIMScheduler.from_config(theirs.config)
    ours.set_timesteps(10)
    theirs.set_timesteps(10)
    x = y = randn(1, 4, 8, 8)
    for t in theirs.timesteps:
        output = randn(1, 4, 8, 8, seed=int(t))
        x, y = ours.step(output, t, x).prev_sample, theirs.step(output, t, y).prev_sample
        assert (x - y).abs().max() < 1e-5
    assert (DDIMScheduler.from_config(theirs.config).alphas_cumprod - theirs.alphas_cumprod).abs().max() > 0.1


def test_config_of_a_scheduler_whose_package_is_missing():
    config = {"_class_name": "DPMSolverSDEScheduler", "beta_schedule": "scaled_linear", "noise_sampler_seed": 0}
    scheduler = EtaDDIMScheduler.from_config(config)
    assert (scheduler.config.beta_schedule, scheduler.config.clip_sample) == ("scaled_linear", False)


def test_edm_is_refused():
    with pytest.raises(ValueError, match="beta schedule"):
        EtaDDIMScheduler.from_config(EDMEulerScheduler().config)


# ----------------------------------------------------------------------------------------------------------- the sweep


def test_sweep(capsys):
    """`benchmarks/pipeline_sweep.py`: one that runs in every way, one without eta, one that takes no DDIM."""
    names = ["StableDiffusionPipeline", "DiTPipeline", "LatentConsistencyModelPipeline"]
    rows = pipeline_sweep.main(["--only", *names])
    assert [*rows] == names
    assert set(rows["StableDiffusionPipeline"]) == {""}
    assert (rows["DiTPipeline"].eta, rows["DiTPipeline"].generator) == ("not taken", "not given")
    assert "original_inference_steps" in rows["LatentConsistencyModelPipeline"].builtin
    assert "| ran with the built-in DDIMScheduler | 2 |" in capsys.readouterr().out


def test_kinds_of_pipelines():
    kinds = pipeline_sweep.pipelines()
    assert {kinds[name] for name in ("StableDiffusionPipeline", "DDIMPipeline", "CogVideoXPipeline")} == {"betas"}
    assert kinds["FluxPipeline"] == "flow"
    assert kinds["StableCascadeDecoderPipeline"] == "other"
