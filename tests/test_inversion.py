"""From images to latents and back: the inverse scheduler, the midpoint rule, and the pipeline's `invert`."""

import copy
import functools
import sys
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler

from ddim_scheduler import EtaDDIMInverseScheduler, EtaDDIMPipeline, EtaDDIMScheduler
from ddim_scheduler.scheduling_ddim import BETA_SCHEDULES, TIMESTEP_SPACINGS

import exact
import fresh

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from tiny_pipelines import LATENT, WIDTH, build

BARS = exact.alphas_cumprod()
UNCLIPPED = {"clip_sample": False}
STD = 0.1


def randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


IMAGE = randn(1, 3, 16, 16, seed=2).clamp(0, 1)
PROMPT = {"prompt_embeds": randn(1, 4, WIDTH), "negative_prompt_embeds": randn(1, 4, WIDTH, seed=1)}


def pair(**config):
    sampler = EtaDDIMScheduler(**config)
    return sampler, EtaDDIMInverseScheduler.from_config(sampler.config)


def largest_rms(difference):
    """Over the images of a batch."""
    return difference.double().flatten(1).square().mean(1).sqrt().max().item()


# --------------------------------------------------------------------------------------------------- inverse scheduler


@pytest.mark.parametrize("spacing", TIMESTEP_SPACINGS)
def test_inverse_has_the_timesteps_of_the_sampler(spacing):
    sampler, inverse = pair(timestep_spacing=spacing, steps_offset=1)
    assert inverse.timesteps.tolist() == [*range(1000)]
    for n in (1, 2, 7, 50, 999):
        sampler.set_timesteps(n)
        inverse.set_timesteps(n, device="cpu")
        assert inverse.timesteps.tolist() == sampler.timesteps.tolist()[::-1]
    inverse.set_timesteps(timesteps=[900, 301, 5])
    assert inverse.timesteps.tolist() == [5, 301, 900]


@pytest.mark.parametrize("spacing", TIMESTEP_SPACINGS)
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("beta_schedule", BETA_SCHEDULES)
def test_inverse_step_undoes_the_step(spacing, prediction_type, beta_schedule):
    config = {"timestep_spacing": spacing, "prediction_type": prediction_type, "beta_schedule": beta_schedule}
    sampler, inverse = pair(**config, **UNCLIPPED)
    x_t, output = randn(2, 2, 3, 4, 4, dtype=torch.float64)
    for n in (1, 7, 100):
        sampler.set_timesteps(n)
        inverse.set_timesteps(n)
        for t in inverse.timesteps:
            if prediction_type == "sample" and sampler.previous_timestep(t) < 0:
                with pytest.raises(ValueError, match="`prediction_type` 'sample' cannot be inverted"):
                    inverse.step(output, t, x_t)
                continue
            x_s, x_0 = sampler.step(output, t, x_t, return_dict=False)
            again, x_0_again = inverse.step(output, t, x_s, return_dict=False)
            assert (again - x_t).abs().max() < 1e-9
            assert (x_0_again - x_0).abs().max() < 1e-9 * max(1, x_0.abs().max())


def test_inverse_step_of_a_clipped_sample():
    for config in ({"clip_sample": True}, {"thresholding": True, "sample_max_value": 1.5}):
        sampler, inverse = pair(**config)
        sampler.set_timesteps(10)
        inverse.set_timesteps(10)
        x_t, output = 3 * randn(2, 2, 3, 8, 8, dtype=torch.float64)
        x_s, x_0 = sampler.step(output, 500, x_t, return_dict=False)
        again, x_0_again = inverse.step(output, 500, x_s, return_dict=False)
        assert (x_0_again - x_0).abs().max() < 1e-9
        assert (sampler.step(output, 500, again).prev_sample - x_s).abs().max() < 1e-9


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("clip_sample", [False, True])
@pytest.mark.parametrize("set_alpha_to_one", [False, True])
def test_inverse_loop_equals_diffusers(spacing, clip_sample, set_alpha_to_one):
    config = {"timestep_spacing": spacing, "clip_sample": clip_sample, "set_alpha_to_one": set_alpha_to_one}
    denoiser, x_0 = exact.gaussian(0.2, 0.3), randn(4, 1, 8, 8).clamp(-1, 1)
    results = []
    for scheduler in (DDIMInverseScheduler(**config), EtaDDIMInverseScheduler(**config)):
        scheduler.set_timesteps(20)
        results.append(exact.sample(scheduler, denoiser, x_0, BARS))
    assert (results[0] - results[1]).abs().max() < 2e-5


def test_inverse_step_keeps_the_dtype_and_refuses():
    inverse = EtaDDIMInverseScheduler(**UNCLIPPED)
    inverse.set_timesteps(10)
    x = randn(2, 1, 4, 4).to(torch.bfloat16)
    assert inverse.step(x, torch.tensor(500), x).prev_sample.dtype == torch.bfloat16
    with pytest.raises(ValueError, match="`timestep`"):
        inverse.step(x, 1000, x)
    with pytest.raises(ValueError, match="`set_timesteps` must be called"):
        EtaDDIMInverseScheduler(**UNCLIPPED).step(x, 500, x)
    with pytest.raises(ValueError, match="`set_timesteps` must be called"):
        EtaDDIMScheduler(**UNCLIPPED).midpoint_step(x, 500, x, x)
    with pytest.raises(ValueError, match="`model_output`"):
        inverse.step(x[:1], 500, x)
    with pytest.raises(TypeError, match="`sample`"):
        inverse.step(x, 500, None)


@functools.cache
def latent_pipeline(name, scheduler_class, *absent):
    inverse_scheduler = scheduler_class.from_config(DDIMScheduler(**LATENT).config)
    absent = dict.fromkeys(("text_encoder", "tokenizer", *absent))
    return build(name, DDIMScheduler(**LATENT), inverse_scheduler=inverse_scheduler, **absent)


def diff_edit(scheduler_class):
    return latent_pipeline("StableDiffusionDiffEditPipeline", scheduler_class)


def test_same_edit_as_with_the_built_in_inverse():
    results = []
    for scheduler_class in (DDIMInverseScheduler, EtaDDIMInverseScheduler):
        pipe, generator = diff_edit(scheduler_class), torch.Generator().manual_seed(0)
        settings = {"num_inference_steps": 10, "inpaint_strength": 0.8, "generator": generator} | PROMPT
        latents = pipe.invert(image=IMAGE, **settings).latents
        mask = (torch.arange(64).view(1, 8, 8) % 2).float()
        images = pipe(mask_image=mask, image_latents=latents, output_type="np", **settings).images
        results.append((latents, torch.as_tensor(images)))
    for ours, theirs in zip(*results, strict=True):
        assert (ours - theirs).abs().max() < 1e-4
    assert results[0][0].std() > 0.1


def test_same_inversion_in_pix2pix_zero_as_with_the_built_in_inverse():
    results = []
    for scheduler_class in (DDIMInverseScheduler, EtaDDIMInverseScheduler):
        absent = ("caption_generator", "caption_processor")
        pipe = latent_pipeline("StableDiffusionPix2PixZeroPipeline", scheduler_class, *absent)
        results.append(
            pipe.invert(
                image=IMAGE,
                latents=randn(1, 4, 8, 8),
                prompt_embeds=PROMPT["prompt_embeds"],
                num_inference_steps=5,
                generator=torch.Generator().manual_seed(0),
                output_type="np",
            ).latents
        )
    assert (results[0] - results[1]).abs().max() < 1e-4
    assert results[0].std() > 0.1


def test_saved_inverse_scheduler_loads_with_and_without_the_package(tmp_path):
    diff_edit(EtaDDIMInverseScheduler).save_pretrained(str(tmp_path / "edit"))
    absent = dict.fromkeys(["text_encoder", "tokenizer", "safety_checker", "feature_extractor"])
    pipe = diffusers.StableDiffusionDiffEditPipeline.from_pretrained(tmp_path / "edit", **absent)
    assert type(pipe.inverse_scheduler) is EtaDDIMInverseScheduler
    script = """
from diffusers import StableDiffusionDiffEditPipeline
folder, absent = arguments["folder"], arguments["absent"]
pipe = StableDiffusionDiffEditPipeline.from_pretrained(folder, **absent, trust_remote_code=True)
pipe.inverse_scheduler.set_timesteps(3)
found["loaded"] = [type(pipe.inverse_scheduler).__name__, pipe.inverse_scheduler.timesteps.tolist()]
"""
    found = fresh.run(script, tmp_path / "home", with_package=False, folder=tmp_path / "edit", absent=absent)
    assert found["loaded"] == ["EtaDDIMInverseScheduler", [1, 334, 667]]


# -------------------------------------------------------------------------------------------------------- the midpoint


@pytest.mark.parametrize("spacing", TIMESTEP_SPACINGS)
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_midpoint_step_is_o_belm_and_runs_backwards(spacing, prediction_type):
    scheduler = EtaDDIMScheduler(timestep_spacing=spacing, prediction_type=prediction_type, **UNCLIPPED)
    x_u, x_t, output = randn(3, 2, 1, 4, 4, dtype=torch.float64)
    scheduler.set_timesteps(9)
    grid = [*scheduler.timesteps.tolist(), -1]
    for u, t, s in zip(grid, grid[1:], grid[2:], strict=False):
        x_s = scheduler.midpoint_step(output, t, x_t, x_u)
        back = scheduler.midpoint_step(output, torch.tensor(t), x_t, x_s, inverse=True)
        assert (back - x_u).abs().max() < 1e-9

        bar_u, bar_t, bar_s = (BARS[k] if k >= 0 else torch.tensor(1.0) for k in (u, t, s))
        a = (1 / bar_u - 1).sqrt() - (1 / bar_t - 1).sqrt()
        b = (1 / bar_t - 1).sqrt() - (1 / bar_s - 1).sqrt()
        epsilon = {
            "epsilon": output,
            "v_prediction": bar_t.sqrt() * output + (1 - bar_t).sqrt() * x_t,
            "sample": (x_t - bar_t.sqrt() * output) / (1 - bar_t).sqrt(),
        }[prediction_type]
        ratio = (b / a) ** 2
        expected = ratio * x_u / bar_u.sqrt() + (1 - ratio) * x_t / bar_t.sqrt() - b * (a + b) / a * epsilon
        assert (x_s / bar_s.sqrt() - expected).abs().max() < 1e-9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"timestep": 900}, "`timestep` must be one of the grid below 900"),
        ({"timestep": 123}, "`timestep` must be one of the grid"),
        ({"other_sample": torch.zeros(1, 1, 4, 4)}, "`other_sample`"),
        ({"other_sample": 3}, "`other_sample`"),
        ({"model_output": torch.zeros(1, 1, 4, 4)}, "`model_output`"),
    ],
)
def test_midpoint_step_refuses(arguments, message):
    scheduler = EtaDDIMScheduler(**UNCLIPPED)
    scheduler.set_timesteps(10)
    x = randn(2, 1, 4, 4)
    with pytest.raises((ValueError, TypeError), match=message):
        scheduler.midpoint_step(**{"model_output": x, "timestep": 500, "sample": x, "other_sample": x, **arguments})


def test_midpoint_step_refuses_clipping_and_no_signal():
    x = randn(2, 1, 4, 4)
    for config, message in (
        ({}, "`clip_sample` is True"),
        ({"clip_sample": False, "thresholding": True}, "`thresholding` is True"),
        ({"clip_sample": False, "rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}, "no signal"),
    ):
        scheduler = EtaDDIMScheduler(timestep_spacing="trailing", **config)
        scheduler.set_timesteps(10)
        with pytest.raises(ValueError, match=message):
            scheduler.midpoint_step(x, 899, x, x)


# ---------------------------------------------------------------------------------------------------------- `invert`


@pytest.fixture
def mixture():
    """Eight modes in 64 dimensions."""
    unet = exact.ExactUNet(**exact.SMALL_UNET)
    means = randn(8, 1, 8, 8, dtype=torch.float64).sign() / 2
    unet.denoiser = exact.gaussian_mixture(means, STD)
    images = means.repeat(2, 1, 1, 1) + STD * randn(16, 1, 8, 8, seed=1, dtype=torch.float64)
    return unet, images.float() / 2 + 0.5


def pipeline_of(unet, spacing="leading", scheduler_class=EtaDDIMScheduler, **config):
    scheduler = scheduler_class(timestep_spacing=spacing, **UNCLIPPED, **config)
    pipe = EtaDDIMPipeline(unet=unet, scheduler=scheduler)
    pipe.scheduler = scheduler  # also one that the constructor would convert
    pipe.set_progress_bar_config(disable=True)
    return pipe


def round_trip(pipe, images, method, n, **settings):
    """Largest error of an image, images in [-1, 1], and what the inversion found."""
    found = pipe.invert(images, n, method, **settings)
    assert pipe.scheduler.num_inference_steps == n
    back = {"o_belm": {"method": "o_belm", "prev_latents": found.prev_latents}}.get(method, {"eta": 0.0})
    if method == "noise_record":
        back = {"variance_noise": found.variance_noise, "eta": settings["eta"]}
    result = pipe(latents=found.latents, num_inference_steps=n, output_type="latent", **back).images
    return largest_rms(result - (2 * images - 1)), found


@pytest.mark.parametrize("n", [10, 20, 50, 100])
@pytest.mark.parametrize("spacing", TIMESTEP_SPACINGS)
def test_round_trip_of_each_method(mixture, spacing, n, record_property):
    unet, images = mixture
    pipe = pipeline_of(unet, spacing)
    plain, found = round_trip(pipe, images, "plain", n)
    assert found.model_calls == n
    assert found.residuals is found.prev_latents is found.variance_noise is None
    fixed_point, found = round_trip(pipe, images, "fixed_point", n)
    o_belm, _ = round_trip(pipe, images, "o_belm", n)
    for name, value in (("plain", plain), ("fixed point", fixed_point), ("O-BELM", o_belm)):
        record_property(f"round trip, {name} each", value)
    record_property("model calls a step, fixed point each", found.model_calls / n)
    assert o_belm < 1e-6
    assert fixed_point < plain / 4
    if n >= 20:
        assert fixed_point < 1e-5
        assert found.residuals.max() < 1e-6
        assert found.model_calls < 8 * n


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("n", [10, 20, 50, 100])
def test_plain_inversion_is_no_worse_than_that_of_diffusers(mixture, spacing, n, prediction_type, record_property):
    unet, images = mixture
    unet.prediction_type = prediction_type
    pipe = pipeline_of(unet, spacing, prediction_type=prediction_type)
    plain, found = round_trip(pipe, images, "plain", n)
    latents = []
    for scheduler_class in (DDIMInverseScheduler, EtaDDIMInverseScheduler):
        inverse = scheduler_class.from_config(pipe.scheduler.config)
        inverse.set_timesteps(n)
        latents.append(exact.sample(inverse, unet.denoiser, 2 * images - 1, BARS, prediction_type))
    sampler = DDIMScheduler.from_config(pipe.scheduler.config)
    sampler.set_timesteps(n)
    theirs = exact.sample(sampler, unet.denoiser, latents[0], BARS, prediction_type)
    theirs = largest_rms(theirs - (2 * images - 1))
    record_property("round trip, plain each", plain)
    record_property("round trip, diffusers each", theirs)
    assert (found.latents - latents[1]).abs().max() < 1e-4
    if prediction_type == "epsilon":
        assert (found.latents - latents[0]).abs().max() < 1e-4
        assert plain < 1.01 * theirs
    else:
        assert plain < theirs


def test_no_step_is_solved_worse_than_by_plain_inversion(mixture):
    unet, images = mixture
    pipe = pipeline_of(unet)
    for t in (5, 30, 100, 300, 600, 999):
        plain = pipe.invert(images, timesteps=[t], method="plain")
        tested = pipe.invert(images, timesteps=[t], max_iterations=1)
        assert torch.equal(tested.latents, plain.latents)
        assert (plain.model_calls, tested.model_calls) == (1, 2)
        assert (pipe.invert(images, timesteps=[t]).residuals <= tested.residuals).all()


def test_what_could_not_be_solved_is_reported(mixture, caplog):
    unet, images = mixture
    pipe = pipeline_of(unet, "trailing")
    diffusers.utils.logging.enable_propagation()
    diffusers.utils.logging.set_verbosity_warning()
    try:
        found = pipe.invert(images, 3)
        assert found.residuals.shape == (3, 16)
        unsolved = int((found.residuals > 2e-7).sum())
        assert unsolved > 0
        assert f"{unsolved} of 3 x 16 steps are not solved" in caplog.text
        caplog.clear()
        pipe.invert(images, 50, tolerance=1e-6)
        assert not caplog.text
    finally:
        diffusers.utils.logging.disable_propagation()
        diffusers.utils.logging.set_verbosity_error()


def test_plain_inversion_of_x_0_predictions_is_that_of_the_inverse_scheduler(mixture):
    """With noise left at the end, for the step to x_0 itself forgets x_t then."""
    unet, images = mixture
    unet.prediction_type = "sample"
    pipe = pipeline_of(unet, prediction_type="sample", set_alpha_to_one=False)
    inverse = EtaDDIMInverseScheduler.from_config(pipe.scheduler.config)
    inverse.set_timesteps(20)
    expected = exact.sample(inverse, unet.denoiser, 2 * images - 1, BARS, "sample")
    found = pipe.invert(images, 20, "plain").latents
    assert (found - expected).abs().max() < 2e-4 * expected.abs().max()  # the pipeline reads float32 alphas_cumprod


@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample"])
def test_other_predictions_are_inverted(mixture, prediction_type):
    unet, images = mixture
    unet.prediction_type = prediction_type
    pipe = pipeline_of(unet, "trailing", prediction_type=prediction_type)
    assert round_trip(pipe, images, "fixed_point", 50)[0] < 1e-5
    assert round_trip(pipe, images, "o_belm", 20)[0] < 1e-6


def test_zero_terminal_snr_is_inverted(mixture):
    unet, images = mixture
    pipe = pipeline_of(unet, "trailing", prediction_type="v_prediction", rescale_betas_zero_snr=True)
    unet.prediction_type, unet.bars = "v_prediction", pipe.scheduler.alphas_cumprod.double()
    unet.denoiser = exact.gaussian(0.1, 0.4)
    assert round_trip(pipe, images, "fixed_point", 20)[0] < 1e-5
    with pytest.raises(ValueError, match="no signal"):
        pipe.invert(images, 20, "o_belm")
    with pytest.raises(ValueError, match="no signal"):
        pipe(num_inference_steps=20, method="o_belm")


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_noise_record_gives_the_images_back(mixture, eta, record_property):
    unet, images = mixture
    pipe = pipeline_of(unet)
    for n in (10, 50):
        error, found = round_trip(pipe, images, "noise_record", n, eta=eta, seed=3)
        assert found.variance_noise.shape == (n, *images.shape)
        record_property("round trip, noise record", error)
        assert error < 1e-6
    again = pipe.invert(images[:2], 50, "noise_record", eta=eta, seed=3)
    assert (again.latents - found.latents[:2]).abs().max() < 1e-5  # image k has noise of its own


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_o_belm_samples_no_worse_than_ddim(mixture, spacing, record_property):
    """Against the same start followed on the finest grid, at 20 steps and more."""
    pipe, x_T, truths = pipeline_of(mixture[0], spacing), randn(64, 1, 8, 8, seed=5), {}
    for n in (20, 50, 100):
        pipe.scheduler.set_timesteps(n)
        first = int(pipe.scheduler.timesteps[0])
        if first not in truths:  # the same one for every n, but for `leading`
            finest = [*range(first, -1, -1)]
            truths[first] = pipe(latents=x_T, timesteps=finest, output_type="latent").images
        truth, errors = truths[first], {}
        for method in ("ddim", "o_belm"):
            images = pipe(latents=x_T, num_inference_steps=n, method=method, output_type="latent").images
            errors[method] = (images - truth).square().mean().sqrt().item()
        record_property(f"error of O-BELM over that of DDIM, {n} steps each", errors["o_belm"] / errors["ddim"])
        assert errors["o_belm"] < errors["ddim"]


def test_labels_and_guidance_reach_the_inversion():
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(**exact.SMALL_UNET, num_class_embeds=4).eval()
    pipe, image = pipeline_of(unet), torch.rand(2, 1, 8, 8)
    settings = {"class_labels": [0, 2], "guidance_scale": 1.5, "num_inference_steps": 20}
    found = pipe.invert(image, method="o_belm", **settings)
    settings |= {"method": "o_belm", "latents": found.latents, "prev_latents": found.prev_latents, "output_type": "pt"}
    assert (pipe(**settings).images - image).abs().max() < 1e-6
    other = pipe(**settings | {"class_labels": [1, 2]}).images
    assert (other[1] - image[1]).abs().max() < 1e-6
    assert (other[0] - image[0]).abs().max() > 1e-2
    assert (pipe(**settings | {"guidance_scale": 1.0}).images - image).abs().max() > 1e-2


def test_a_half_precision_model_is_inverted_as_well_as_it_can_be(unet):
    half = diffusers.UNet2DModel.from_config(unet.config)
    half.load_state_dict(unet.state_dict())
    pipe, image = pipeline_of(half.to(torch.bfloat16)), torch.rand(2, 1, 16, 16)
    found = pipe.invert(image, 10)
    assert found.latents.dtype == torch.float32
    assert (found.residuals[-1] <= pipe.invert(image, 10, max_iterations=1).residuals[-1]).all()


IMAGE_16 = torch.rand(2, 1, 16, 16)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"method": "exact"}, "method"),
        ({"tolerance": 0.0}, "tolerance"),
        ({"tolerance": "small"}, "tolerance"),
        ({"max_iterations": 0}, "max_iterations"),
        ({"max_iterations": 2.5}, "max_iterations"),
        ({"num_inference_steps": 0}, "num_inference_steps"),
        ({"num_inference_steps": 1001}, "num_inference_steps"),
        ({"timesteps": [1, 2]}, "timesteps"),
        ({"tolerance": -1.0}, "tolerance"),
        ({"eta": 0.5}, "eta"),
        ({"eta": 2.0, "method": "noise_record"}, "eta"),
        ({"eta": 0.0, "method": "noise_record"}, "eta"),
        ({"seed": 0}, "seed"),
        ({"seed": -1, "method": "noise_record"}, "seed"),
        ({"generator": torch.Generator(), "method": "plain"}, "generator"),
        ({"generator": [torch.Generator()], "method": "noise_record"}, "generator"),
        ({"class_labels": [1, 2]}, "class_labels"),
        ({"guidance_scale": 2.0}, "guidance_scale"),
        ({"height": 15}, "height"),
        ({"width": 32}, "image"),
        ({"image": None}, "image"),
        ({"image": IMAGE_16[0]}, "image"),
        ({"image": 2 * IMAGE_16 - 1}, "image"),
        ({"image": IMAGE_16 * torch.nan}, "image"),
        ({"image": IMAGE_16[..., :14]}, "image"),
        ({"image": IMAGE_16.expand(2, 3, 16, 16)}, "image"),
        ({"image": (IMAGE_16 * 255).byte()}, "image"),
        ({"image": []}, "image"),
    ],
)
def test_bad_argument_of_invert(unet, arguments, name):
    pipe, calls = pipeline_of(unet), []
    hook = unet.register_forward_hook(lambda *_: calls.append(1))
    with pytest.raises((ValueError, TypeError), match=f"`{name}`"):
        pipe.invert(**{"image": IMAGE_16, "num_inference_steps": 2, **arguments})
    hook.remove()
    assert not calls


def test_invert_refuses_schedulers_that_cannot(pipeline, unet):
    with pytest.raises(ValueError, match="`clip_sample` is True"):
        pipeline.invert(IMAGE_16, 2)
    with pytest.raises(ValueError, match="DDIMScheduler has no `midpoint_step`"):
        pipeline_of(unet, scheduler_class=DDIMScheduler).invert(IMAGE_16, 2, "o_belm")


@pytest.mark.parametrize("name", ["clip_sample", "thresholding"])
def test_what_is_written_into_the_config_reaches_the_inversion(pipeline, name):
    for other in {"clip_sample", "thresholding"} - {name}:
        setattr(pipeline.scheduler.config, other, False)
    setattr(pipeline.scheduler.config, name, True)
    with pytest.raises(ValueError, match=f"`{name}` is True"):
        pipeline.invert(IMAGE_16, 2)
    setattr(pipeline.scheduler.config, name, False)
    assert pipeline.invert(IMAGE_16, 2).latents.isfinite().all()


@pytest.mark.parametrize("method", ["fixed_point", "plain", "o_belm", "noise_record"])
def test_inversion_with_weights_that_are_not_finite_is_an_error(unet, method):
    broken = copy.deepcopy(unet)
    broken.conv_out.bias.data[:] = float("nan")
    with pytest.raises(ValueError, match=r"2 of 2 [a-z ]+ are not finite: 1 of the UNet's weights .*'conv_out\.bias'"):
        pipeline_of(broken).invert(IMAGE_16, 2, method)


def test_invert_with_the_scheduler_of_diffusers(mixture):
    unet, images = mixture
    pipe = pipeline_of(unet, scheduler_class=DDIMScheduler)
    assert round_trip(pipe, images, "fixed_point", 50)[0] < 1e-5
