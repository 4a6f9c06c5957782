"""Code that asks `isinstance(scheduler, DDIMScheduler)`, or uses what diffusers' classes have, gets their figures."""

import functools
import importlib
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMInverseScheduler, DDIMParallelScheduler, DDIMScheduler, UNet2DModel

from ddim_scheduler import EtaDDIMInverseScheduler, EtaDDIMScheduler

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from tiny_pipelines import IMAGE, LATENT, MODELS, arguments, build, randn, seeded

PRIVATE = ("_get_variance", "_is_ode_scheduler", "_threshold_sample")  # what other code uses all the same
LEADING = {**LATENT, "set_alpha_to_one": True}  # where the built-in classes are right, with a step count that divides T


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def step_calls(monkeypatch):
    """The arguments by name of each call of our `step`."""
    calls = []
    step = EtaDDIMScheduler.step

    @functools.wraps(step)
    def spy(self, *args, **kwargs):
        calls.append(kwargs)
        return step(self, *args, **kwargs)

    monkeypatch.setattr(EtaDDIMScheduler, "step", spy)
    return calls


# --------------------------------------------------------------------------------------------------------- the classes


def test_subclasses():
    assert issubclass(EtaDDIMScheduler, DDIMScheduler)
    assert issubclass(EtaDDIMInverseScheduler, DDIMInverseScheduler)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (EtaDDIMScheduler, DDIMScheduler),
        (EtaDDIMScheduler, DDIMParallelScheduler),
        (EtaDDIMInverseScheduler, DDIMInverseScheduler),
    ],
)
def test_attributes_of_the_built_in(ours, theirs):
    """Each that the built-in has before and after its grid is set, and tensors of the same values."""
    ours, theirs = ours.from_config(LEADING), theirs.from_config(LEADING)
    for _ in range(2):
        for name, value in vars(theirs).items():
            if name.startswith("_"):
                continue
            assert hasattr(ours, name), name
            if isinstance(value, torch.Tensor):
                assert getattr(ours, name).dtype == value.dtype
                torch.testing.assert_close(getattr(ours, name), value, atol=1e-5, rtol=0)
            else:
                assert getattr(ours, name) == value
        names = {name for name in dir(theirs) if not name.startswith("_")} | {*PRIVATE} & {*dir(theirs)}
        assert names <= {*dir(ours)}
        ours.set_timesteps(10)
        theirs.set_timesteps(10)


# ------------------------------------------------------------------------------- pipelines of diffusers that ask for it


def leditspp(name, scheduler, swap):
    pipe = build(name, DDIMScheduler(**LATENT) if swap else scheduler)
    if swap:
        pipe.scheduler = scheduler
    image = IMAGE.resize((32, 32))
    pipe.invert(image=image, num_inversion_steps=10, skip=0.2, source_prompt="a cat", generator=generator())
    torch.manual_seed(0)
    call = {"editing_prompt": ["a dog"], "edit_guidance_scale": 5.0, "edit_threshold": 0.8, "use_intersect_mask": False}
    edited = pipe(**call, output_type="np", generator=generator()).images
    assert pipe.scheduler is scheduler
    return pipe, [torch.as_tensor(edited), pipe.init_latents, pipe.zs]


class LongTimesteps:
    """The Stable Diffusion version gives `add_noise` its timesteps as floats, which no DDIM scheduler takes."""

    def add_noise(self, original_samples, noise, timesteps):
        return super().add_noise(original_samples, noise, timesteps.long())


class BuiltInWithLongTimesteps(LongTimesteps, DDIMScheduler):
    pass


class OursWithLongTimesteps(LongTimesteps, EtaDDIMScheduler):
    pass


@pytest.mark.parametrize("swap", [False, True], ids=["constructor", "swap"])
@pytest.mark.parametrize(
    ("name", "ours", "theirs"),
    [
        ("LEditsPPPipelineStableDiffusionXL", EtaDDIMScheduler, DDIMScheduler),
        ("LEditsPPPipelineStableDiffusion", OursWithLongTimesteps, BuiltInWithLongTimesteps),
    ],
    ids=["sdxl", "sd"],
)
def test_leditspp(name, ours, theirs, swap):
    _, result = leditspp(name, ours.from_config(LATENT), swap)
    pipe, expected = leditspp(name, theirs.from_config(LATENT), swap)
    assert len(pipe.zs) == 10
    assert pipe.zs.std() > 0.1
    for tensor, reference in zip(result, expected, strict=True):
        assert (tensor - reference).abs().max() < 1e-3 * max(1, reference.abs().max())


def test_bria_takes_its_own_timesteps():
    """It gives sigmas to every scheduler that is no DDIMScheduler."""
    results = []
    for scheduler in (EtaDDIMScheduler.from_config(LATENT), DDIMScheduler.from_config(LATENT)):
        pipe = build("BriaPipeline", scheduler)
        results.append(pipe(**arguments(pipe), num_inference_steps=5, generator=generator()).images)
        assert scheduler.timesteps.tolist() == [801, 601, 401, 201, 1]
    assert (results[0] - results[1]).abs().max() < 1e-3


@pytest.mark.parametrize("steps", [10, 20])
def test_diffedit_with_both_schedulers(steps):
    """Mask, inversion and edit."""
    results = []
    for scheduler, inverse in ((EtaDDIMScheduler, EtaDDIMInverseScheduler), (DDIMScheduler, DDIMInverseScheduler)):
        parts = {"inverse_scheduler": inverse.from_config(LEADING)}
        pipe = build("StableDiffusionDiffEditPipeline", scheduler.from_config(LEADING), **parts)
        settings = {"num_inference_steps": steps, "generator": generator()}
        mask = pipe.generate_mask(image=IMAGE, source_prompt="a cat", target_prompt="a dog", **settings)
        latents = pipe.invert(prompt="a cat", image=IMAGE, num_inference_steps=steps, generator=generator()).latents
        call = {"prompt": "a dog", "mask_image": mask, "image_latents": latents, "output_type": "np"}
        image = pipe(**call, **settings, eta=0.5).images
        results.append([torch.as_tensor(x) for x in (mask, latents, image)])
    for tensor, reference in zip(*results, strict=True):
        assert (tensor - reference).abs().max() < 1e-3 * max(1, reference.abs().max())


def test_pix2pix_zero_with_both_schedulers():
    results = []
    for scheduler, inverse in ((EtaDDIMScheduler, EtaDDIMInverseScheduler), (DDIMScheduler, DDIMInverseScheduler)):
        parts = {"inverse_scheduler": inverse.from_config(LEADING)}
        pipe = build("StableDiffusionPix2PixZeroPipeline", scheduler.from_config(LEADING), **parts)
        call = {"num_inference_steps": 5, "generator": generator()}
        torch.manual_seed(0)  # its regularisation draws without a generator
        latents = pipe.invert(prompt="a cat", image=IMAGE, num_auto_corr_rolls=1, **call).latents
        image = pipe(**arguments(pipe), latents=latents, **call).images
        results.append([latents, torch.as_tensor(image)])
    for tensor, reference in zip(*results, strict=True):
        assert (tensor - reference).abs().max() < 1e-3 * max(1, reference.abs().max())


# ------------------------------------------------------------------------------------------------------ audio diffusion


class Mel:
    """A stand-in for the pipeline's spectrograms, which need a package: an audio is the pixels of its image."""

    x_res = y_res = hop_length = 8

    def get_sample_rate(self):
        return 8

    def image_to_audio(self, image):
        return np.asarray(image, dtype=np.float32).reshape(-1)


@pytest.fixture
def audio_diffusion():
    for name in ("diffusers.pipelines.deprecated.audio_diffusion", "diffusers.pipelines.audio_diffusion"):
        try:
            pipeline_class = importlib.import_module(f"{name}.pipeline_audio_diffusion").AudioDiffusionPipeline
            break
        except ImportError:
            continue
    else:
        pytest.skip("this version of diffusers has no AudioDiffusionPipeline")

    def make(scheduler):
        unet = seeded(
            UNet2DModel, **MODELS["UNet2DModel"] | {"sample_size": (8, 8), "in_channels": 1, "out_channels": 1}
        )
        pipe = pipeline_class(vqvae=None, unet=unet, mel=Mel(), scheduler=scheduler)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return make


def test_audio_diffusion_takes_50_steps(audio_diffusion, step_calls):
    pipe = audio_diffusion(EtaDDIMScheduler())
    assert pipe.get_default_steps() == 50
    pipe(generator=generator())
    assert len(step_calls) == 50


@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_audio_diffusion_keeps_eta(audio_diffusion, step_calls, eta):
    results = []
    for scheduler in (EtaDDIMScheduler(), DDIMScheduler()):
        pipe = audio_diffusion(scheduler)
        call = {"steps": 10, "eta": eta, "generator": generator(), "step_generator": generator(1)}
        results.append(np.array(pipe(**call, return_dict=False)[0], dtype=float))
    assert [call["eta"] for call in step_calls] == [eta] * 10
    assert np.abs(results[0] - results[1]).max() <= 1  # of 255


def test_audio_diffusion_encodes(audio_diffusion):
    image = IMAGE.convert("L").resize((8, 8))
    ours, theirs = (audio_diffusion(s).encode([image], steps=20) for s in (EtaDDIMScheduler(), DDIMScheduler()))
    assert ours.std() > 0.1
    assert (ours - theirs).abs().max() < 1e-4 * theirs.abs().max()


# ------------------------------------------------------------------------------------------------- policy gradients


def step_with_log_prob(self, model_output, timestep, sample, eta, prev_sample=None, generator=None):
    """Eqs. (12) and (16), as DDPO's code takes them from a scheduler: by its attributes and arithmetic on timesteps."""
    assert isinstance(self, DDIMScheduler)
    t = timestep.view(-1, 1, 1, 1)
    s = t - self.config.num_train_timesteps // self.num_inference_steps
    bar_t = self.alphas_cumprod[t]
    bar_s = torch.where(s >= 0, self.alphas_cumprod[s.clamp(min=0)], self.final_alpha_cumprod)
    x_0 = {
        "epsilon": (sample - (1 - bar_t).sqrt() * model_output) / bar_t.sqrt(),
        "sample": model_output,
        "v_prediction": bar_t.sqrt() * sample - (1 - bar_t).sqrt() * model_output,
    }[self.config.prediction_type]
    epsilon = (sample - bar_t.sqrt() * x_0) / (1 - bar_t).sqrt()
    if self.config.thresholding:
        x_0 = self._threshold_sample(x_0)
    elif self.config.clip_sample:
        x_0 = x_0.clamp(-self.config.clip_sample_range, self.config.clip_sample_range)
    pairs = zip(t.flatten().tolist(), s.flatten().tolist(), strict=True)
    variance = torch.stack([torch.as_tensor(self._get_variance(*pair)) for pair in pairs]).view_as(bar_t)
    std = eta * variance.sqrt()
    mean = bar_s.sqrt() * x_0 + (1 - bar_s - std**2).clamp(min=0).sqrt() * epsilon
    if prev_sample is None:
        prev_sample = mean + std * torch.randn(sample.shape, generator=generator)
    log_prob = -((prev_sample - mean) ** 2) / (2 * std**2) - std.log() - math.log(2 * math.pi) / 2
    return prev_sample, log_prob.mean(dim=(1, 2, 3)), mean, std


CONFIGS = {
    "epsilon": {},
    "sample": {"prediction_type": "sample", "clip_sample": False},
    "v_prediction": {"prediction_type": "v_prediction", **LATENT},
    "thresholding": {"thresholding": True, "sample_max_value": 2.0, "clip_sample": False},
}


@pytest.mark.parametrize("eta", [0.3, 1.0])
@pytest.mark.parametrize("config", CONFIGS)
def test_step_of_ddpo(config, eta):
    ours, theirs = EtaDDIMScheduler(**CONFIGS[config]), DDIMScheduler(**CONFIGS[config])
    x = randn(3, 4, 8, 8)
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(20)
    for timesteps in (ours.timesteps[[0, 5, 18]], ours.timesteps[[18, 18, 18]]):
        output = randn(3, 4, 8, 8, seed=int(timesteps[0]))
        result = step_with_log_prob(ours, output, timesteps, x, eta, generator=generator())
        expected = step_with_log_prob(theirs, output, timesteps, x, eta, generator=generator())
        for tensor, reference in zip(result, expected, strict=True):
            # the function's 1 - bar_s - std^2 loses digits at eta = 1
            torch.testing.assert_close(tensor, reference, rtol=1e-3, atol=1e-3)

        # and it is our own `transition` and `log_prob`
        mean, std, _ = ours.transition(output, timesteps, x, eta=eta)
        torch.testing.assert_close(result[2], mean, rtol=1e-3, atol=1e-3)
        log_prob = ours.log_prob(result[0], mean, std, reduction="mean")
        torch.testing.assert_close(result[1], log_prob, rtol=1e-2, atol=1e-3)

        again = step_with_log_prob(ours, output, timesteps, x, eta, prev_sample=result[0])
        assert torch.equal(again[1], result[1])


# ---------------------------------------------------------------------------------------------------- parallel sampling


@pytest.mark.parametrize("use_clipped_model_output", [False, True])
@pytest.mark.parametrize("config", CONFIGS)
def test_batch_step_is_that_of_the_built_in(config, use_clipped_model_output):
    config = CONFIGS[config] | {"set_alpha_to_one": True}  # what the built-in's batch step always takes
    ours, theirs = EtaDDIMScheduler(**config), DDIMParallelScheduler(**config)
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(10)
    x, output = randn(10, 4, 8, 8), randn(10, 4, 8, 8, seed=1)
    arguments = (output, theirs.timesteps, x, 0.0, use_clipped_model_output)
    result, expected = ours.batch_step_no_noise(*arguments), theirs.batch_step_no_noise(*arguments)
    assert result.dtype == expected.dtype
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace", "quadratic"])
@pytest.mark.parametrize("steps", [7, 10])
def test_batch_step_is_step_by_step(spacing, steps):
    """On every grid, also where the built-in goes astray."""
    scheduler = EtaDDIMScheduler(timestep_spacing=spacing, **LATENT)
    scheduler.set_timesteps(steps)
    x, output = randn(steps, 4, 8, 8), randn(steps, 4, 8, 8, seed=1)
    result = scheduler.batch_step_no_noise(output, scheduler.timesteps, x)
    for i, t in enumerate(scheduler.timesteps):
        one = scheduler.step(output[i : i + 1], t, x[i : i + 1]).prev_sample
        torch.testing.assert_close(result[i : i + 1], one, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(6,), (6, 1), (3, 2)])
def test_batch_step_takes_timesteps_of_any_shape(shape):
    scheduler = EtaDDIMScheduler()
    scheduler.set_timesteps(6)
    x, output = randn(6, 3, 4, 4), randn(6, 3, 4, 4, seed=1)
    result = scheduler.batch_step_no_noise(output, timesteps=scheduler.timesteps.view(shape), sample=x)
    assert torch.equal(result, scheduler.batch_step_no_noise(output, scheduler.timesteps, x))


def test_batch_step_refuses_eta():
    """The caller has drawn no noise for it: an ODE step is what `_is_ode_scheduler` promises."""
    scheduler = EtaDDIMScheduler()
    assert scheduler._is_ode_scheduler
    scheduler.set_timesteps(5)
    with pytest.raises(ValueError, match="eta"):
        scheduler.batch_step_no_noise(randn(5, 3, 4, 4), scheduler.timesteps, randn(5, 3, 4, 4), eta=0.5)


def test_batch_step_needs_a_grid():
    with pytest.raises(ValueError, match="set_timesteps"):
        EtaDDIMScheduler().batch_step_no_noise(randn(1, 3, 4, 4), torch.tensor([0]), randn(1, 3, 4, 4))


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_variance_to_the_next_timestep(spacing):
    """`_get_variance(t)` goes to the next timestep of the grid, `_get_variance(t, s)` to any."""
    ours, theirs = (c(timestep_spacing=spacing) for c in (EtaDDIMScheduler, DDIMParallelScheduler))
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(10)
    for t, s in zip(ours.timesteps, [*ours.timesteps[1:], torch.tensor(-1)], strict=True):
        assert ours._get_variance(t) == ours._get_variance(t, s)
        torch.testing.assert_close(ours._get_variance(t), theirs._get_variance(t), rtol=1e-3, atol=1e-6)
        assert not ours._get_variance(t).signbit()  # ParaDiGMS divides by it: -0 takes every error as small


def picard(scheduler, model, x, tolerance=0.0):
    """ParaDiGMS: all steps at once from a guess of the trajectory, until it stays."""
    timesteps = scheduler.timesteps
    trajectory = x.repeat(len(timesteps) + 1, 1, 1, 1)
    for _ in timesteps:
        moved = scheduler.batch_step_no_noise(model(trajectory[:-1], timesteps), timesteps, trajectory[:-1])
        new = torch.cat([x, x + (moved - trajectory[:-1]).cumsum(0)])
        if (new - trajectory).abs().max() <= tolerance:
            break
        trajectory = new
    return trajectory[-1:]


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_parallel_sampling_ends_where_sequential_sampling_does(spacing):
    def model(x, timesteps):
        return torch.tanh(x) * (1 + timesteps.view(-1, 1, 1, 1) / 1000)

    scheduler = EtaDDIMScheduler(timestep_spacing=spacing, clip_sample=False)
    scheduler.set_timesteps(9)
    start = randn(1, 3, 8, 8)
    x = start
    for t in scheduler.timesteps:
        x = scheduler.step(model(x, t), t, x).prev_sample
    torch.testing.assert_close(picard(scheduler, model, start), x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("parallel", [3, 10])
def test_paradigms_pipeline(parallel):
    images = []
    for scheduler_class in (EtaDDIMScheduler, DDIMParallelScheduler):
        pipe = build("StableDiffusionParadigmsPipeline", scheduler_class.from_config(LEADING))
        call = {"num_inference_steps": 10, "parallel": parallel, "tolerance": 0.01, "generator": generator()}
        images.append(torch.as_tensor(pipe(**arguments(pipe) | call).images))
    assert (images[0] - images[1]).abs().max() < 1e-3
