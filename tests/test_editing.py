"""The pipeline's start image, mask, guidance, sizes, given noise and interpolation."""

import math
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import DDIMScheduler, UNet2DModel

from ddim_scheduler import EtaDDIMPipeline, EtaDDIMScheduler, image_generators, slerp

import exact

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import invert_and_interpolate

MEAN, STD = 0.1, 0.4


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def images_of(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def pipeline_of(unet, **config):
    pipe = EtaDDIMPipeline(unet=unet, scheduler=EtaDDIMScheduler(**{"clip_sample": False, **config}))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def gaussian():
    """A pipeline whose data are pixels of N(MEAN, STD^2), each independent of the others."""
    unet = exact.ExactUNet(**exact.SMALL_UNET)
    unet.denoiser = exact.gaussian(MEAN, STD)
    return pipeline_of(unet, timestep_spacing="trailing")


@pytest.fixture
def model_calls(unet):
    """The shapes of the UNet's inputs."""
    calls = []
    hook = unet.register_forward_hook(lambda _, inputs, __: calls.append(tuple(inputs[0].shape)))
    yield calls
    hook.remove()


# --------------------------------------------------------------------------------------------------------- start image


@pytest.mark.parametrize(
    ("n", "strength", "steps"), [(100, 0.29, 29), (10, 0.01, 1), (10, 0.25, 2), (10, 0.8, 8), (10, 1.0, 10)]
)
def test_strength_is_rounded_to_at_least_one_step(pipeline, model_calls, n, strength, steps):
    pipeline(num_inference_steps=n, image=images_of(1, 1, 16, 16), strength=strength, output_type="pt")
    assert len(model_calls) == steps == max(1, round(strength * n))


@pytest.mark.parametrize("strength", [0.05, 0.5, 1.0])
def test_start_image_has_the_noise_of_the_first_step(gaussian, strength):
    image, noise = images_of(3, 1, 8, 8), randn(3, 1, 8, 8)
    edited = gaussian(num_inference_steps=20, image=image, strength=strength, latents=noise, output_type="latent")
    gaussian.scheduler.set_timesteps(20)
    grid = gaussian.scheduler.timesteps[-round(20 * strength) :]
    start = gaussian.scheduler.add_noise(2 * image - 1, noise, grid[:1])
    expected = gaussian(timesteps=grid.tolist(), latents=start, output_type="latent").images
    assert (edited.images - expected).abs().max() < 1e-6


def test_strength_is_0_8_without_a_mask_and_1_with_one(pipeline, model_calls):
    image = images_of(1, 1, 16, 16)
    pipeline(num_inference_steps=10, image=image, output_type="pt")
    assert len(model_calls) == 8
    pipeline(num_inference_steps=10, image=image, mask=image.round(), output_type="pt")
    assert len(model_calls) == 8 + 10


def test_images_of_every_kind(pipeline):
    array = (images_of(2, 16, 16, 1, seed=1) * 255).round().numpy() / 255
    pil = [PIL.Image.fromarray((a[..., 0] * 255).round().astype(np.uint8)) for a in array]
    settings = {"num_inference_steps": 4, "strength": 0.5, "seed": 0, "output_type": "pt"}
    expected = pipeline(image=torch.from_numpy(array).permute(0, 3, 1, 2), **settings).images
    assert len(expected) == 2
    for kind in (array, array.astype(np.float32), pil, [image.convert("RGB") for image in pil]):
        assert (pipeline(image=kind, **settings).images - expected).abs().max() < 1e-5
    settings |= {"seed": None, "generator": image_generators(0, [1])}
    assert (pipeline(image=pil[1], **settings).images - expected[1:]).abs().max() < 1e-5


def test_one_image_with_a_batch_of_seeds(pipeline):
    settings = {"num_inference_steps": 4, "eta": 1.0, "image": images_of(1, 1, 16, 16), "output_type": "pt"}
    together = pipeline(batch_size=5, seed=7, **settings).images
    chunk = pipeline(batch_size=2, generator=image_generators(7, [3, 4]), **settings).images
    assert (together[3:] - chunk).abs().max() < 1e-5
    assert (together[0] - together[1]).abs().max() > 0.05


# ---------------------------------------------------------------------------------------------------------------- mask


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("num_resamples", [1, 3])
def test_kept_region_is_the_image(pipeline, eta, num_resamples):
    image, mask = images_of(3, 1, 16, 16), torch.zeros(1, 1, 16, 16)
    mask[..., 4:10, 5:] = 1
    settings = {"image": image, "mask": mask, "num_resamples": num_resamples, "seed": 0, "eta": eta}
    result = pipeline(num_inference_steps=5, output_type="pt", **settings).images
    kept = (mask == 0).expand_as(image)
    assert (result - image)[kept].abs().max() < 1e-6
    assert (result - image)[~kept].abs().max() > 0.1


def test_painted_pixels_do_not_depend_on_the_kept_ones_if_the_data_are_independent(gaussian):
    image, noise = images_of(2, 1, 8, 8), randn(2, 1, 8, 8)
    mask = torch.zeros(2, 1, 8, 8)
    mask[0, :, :4], mask[1, :, 2:5] = 1, 1
    settings = {"num_inference_steps": 10, "image": image, "latents": noise, "output_type": "latent"}
    inside = gaussian(mask=mask, **settings).images
    without = gaussian(strength=1.0, **settings).images
    assert ((inside - without) * mask).abs().max() < 1e-6
    assert torch.equal(gaussian(mask=mask.bool(), **settings).images, inside)
    half = gaussian(mask=torch.full_like(mask, 0.5), **settings).images
    assert half.isfinite().all()


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_resampling_keeps_the_distribution(gaussian, eta):
    image, mask = images_of(1, 1, 64, 64), torch.ones(1, 1, 64, 64)
    settings = {"num_inference_steps": 500, "eta": eta, "seed": 0, "height": 64, "width": 64, "output_type": "latent"}
    pixels = gaussian(image=image, mask=mask, num_resamples=2, **settings).images
    assert abs(pixels.mean() - MEAN) < 0.03
    assert abs(pixels.std() - STD) < 0.03


def test_resampling_from_a_step_that_removes_nothing(gaussian):
    """From timestep 0 to its own noise level: there is nothing to take away and to put back."""
    gaussian.scheduler = EtaDDIMScheduler(beta_start=0.01, set_alpha_to_one=False, clip_sample=False)
    image, mask = images_of(1, 1, 8, 8), torch.ones(1, 1, 8, 8)
    settings = {"image": image, "mask": mask, "timesteps": [0], "seed": 0, "output_type": "latent"}
    once, twice = (gaussian(num_resamples=n, **settings).images for n in (1, 2))
    assert (once - twice).abs().max() < 1e-6


def test_resampling_calls(pipeline, model_calls):
    image = images_of(2, 1, 16, 16)
    pipeline(num_inference_steps=3, image=image, mask=image[:1].round(), num_resamples=4, output_type="pt")
    assert len(model_calls) == 12


# ----------------------------------------------------------------------------------------------- guidance, sizes, noise


@pytest.fixture(scope="module")
def conditional():
    torch.manual_seed(0)
    return pipeline_of(UNet2DModel(**exact.SMALL_UNET, num_class_embeds=4).eval())


def test_guidance_is_the_formula_in_one_call(conditional):
    calls = []
    hook = conditional.unet.register_forward_hook(lambda _, inputs, __: calls.append(inputs))
    x, settings = randn(2, 1, 8, 8), {"timesteps": [600], "output_type": "latent"}
    outputs = {}
    for name, labels, scale in (("with", [0, 2], 1.0), ("without", [3, 3], 1.0), ("guided", [0, 2], 2.5)):
        arguments = {"class_labels": labels, "guidance_scale": scale, "latents": x, **settings}
        outputs[name] = conditional(**arguments).images
    hook.remove()
    expected = outputs["without"] + 2.5 * (outputs["with"] - outputs["without"])  # a step is linear in the output
    assert (outputs["guided"] - expected).abs().max() < 1e-4
    assert [len(inputs[0]) for inputs in calls] == [2, 2, 4]
    assert calls[-1][2].tolist() == [0, 2, 3, 3]
    none = conditional(class_labels=[0, 2], guidance_scale=0.0, latents=x, **settings).images
    assert (none - outputs["without"]).abs().max() < 1e-5


def test_guidance_with_a_learned_variance():
    torch.manual_seed(0)
    unet = UNet2DModel(**exact.SMALL_UNET | {"out_channels": 2}, num_class_embeds=4).eval()
    pipe = pipeline_of(unet, variance_type="learned_range")
    settings = {"class_labels": [0, 2], "guidance_scale": 3.0, "num_inference_steps": 3, "seed": 0, "eta": 1.0}
    assert pipe(output_type="pt", **settings).images.isfinite().all()


def test_other_sizes(pipeline):
    image = images_of(2, 1, 24, 12)
    settings = {"num_inference_steps": 3, "height": 24, "width": 12, "output_type": "pt"}
    assert pipeline(batch_size=2, **settings).images.shape == image.shape
    assert pipeline(image=image, mask=image.round(), **settings).images.shape == image.shape
    assert pipeline(latents=randn(3, 1, 24, 12), **settings).images.shape == (3, 1, 24, 12)


def test_batch_size_is_that_of_what_is_given(pipeline, conditional):
    settings = {"num_inference_steps": 1, "output_type": "pt"}
    assert len(pipeline(**settings).images) == 1
    assert len(pipeline(latents=randn(3, 1, 16, 16), **settings).images) == 3
    assert len(pipeline(image=images_of(2, 1, 16, 16), **settings).images) == 2
    assert len(conditional(class_labels=[0, 1, 2], **settings).images) == 3


def test_variance_noise_is_the_noise_of_the_steps(pipeline):
    x, noise = randn(2, 1, 16, 16), randn(4, 2, 1, 16, 16, seed=1)
    settings = {"num_inference_steps": 4, "eta": 0.8, "latents": x, "output_type": "latent"}
    result = pipeline(variance_noise=noise, **settings).images
    for t, z in zip(pipeline.scheduler.timesteps, noise, strict=True):
        with torch.no_grad():
            x = pipeline.scheduler.step(pipeline.unet(x, t).sample, t, x, eta=0.8, variance_noise=z).prev_sample
    assert (result - x).abs().max() < 1e-5


# ------------------------------------------------------------------------------------------------------- interpolation


def test_slerp_is_the_formula():
    a, b = randn(2, 5, 3, 4, 4).double()
    fractions = torch.linspace(0, 1, 7)
    cosine = (a * b).sum((1, 2, 3)) / a.square().sum((1, 2, 3)).sqrt() / b.square().sum((1, 2, 3)).sqrt()
    angle = cosine.acos().view(-1, 1, 1, 1)
    result = slerp(a, b, fractions)
    assert result.shape == (7, 5, 3, 4, 4)
    for f, x in zip(fractions.double(), result, strict=True):
        expected = (((1 - f) * angle).sin() * a + (f * angle).sin() * b) / angle.sin()
        assert (x - expected).abs().max() < 1e-5
        assert torch.equal(slerp(a, b, f.item()), x)
    assert torch.equal(result[0], a)
    assert torch.equal(result[-1], b)


def test_slerp_of_unit_noise_keeps_its_norm_and_grids_are_slerps_of_slerps():
    corners = randn(4, 2, 3, 32, 32)
    fractions = torch.linspace(0, 1, 5)
    grid = slerp(slerp(*corners[:2], fractions), slerp(*corners[2:], fractions), fractions)
    assert grid.shape == (5, 5, 2, 3, 32, 32)
    assert (grid.square().mean((3, 4, 5)).sqrt() - 1).abs().max() < 0.05
    for place, corner in zip([(0, 0), (0, -1), (-1, 0), (-1, -1)], corners, strict=True):
        assert torch.equal(grid[place], corner)


@pytest.mark.parametrize("distance", [0.0, 1e-30, 1e-7, 1e-4, 1e-2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_slerp_of_near_parallel_tensors(distance, dtype):
    a = randn(1, 3, 8, 8).to(dtype)
    b = (a.double() + distance * randn(1, 3, 8, 8, seed=1)).to(dtype)
    middle = slerp(a, b, 0.5)
    assert middle.dtype == dtype
    line = (a.double() + b.double()) / 2
    assert (middle.double() - line).abs().max() <= (0.02 if dtype == torch.bfloat16 else 1e-6 + distance**2)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (randn(1, 2, 2), -randn(1, 2, 2)),
        (torch.zeros(1, 2, 2), randn(1, 2, 2)),
        (randn(1, 2, 2), torch.full((1, 2, 2), torch.nan)),
        (randn(1, 2, 2), randn(1, 2, 3)),
        (randn(4), randn(4)),
        (randn(1, 2, 2).long(), randn(1, 2, 2)),
        (3, randn(1, 2, 2)),
    ],
)
def test_slerp_refuses(a, b):
    with pytest.raises((ValueError, TypeError), match=r"`(a|b)`"):
        slerp(a, b, 0.5)


def test_slerp_is_as_exact_as_its_ends():
    a, b = randn(2, 1, 4, 4, seed=3).double()
    angle = torch.arccos((a * b).sum() / (a.norm() * b.norm()))
    expected = torch.sin(0.7 * angle) / torch.sin(angle) * a + torch.sin(0.3 * angle) / torch.sin(angle) * b
    assert (slerp(a, b, 0.3) - expected).abs().max() < 1e-14


@pytest.mark.parametrize(("seed", "indices", "name"), [(-1, [0], "seed"), (0, 3, "indices"), (0, [0.5], "indices")])
def test_image_generators_refuse(seed, indices, name):
    with pytest.raises((ValueError, TypeError), match=f"`{name}`"):
        image_generators(seed, indices)


def test_slerp_refuses_fractions_that_are_no_numbers():
    with pytest.raises(TypeError, match="`fractions`"):
        slerp(*randn(2, 1, 2, 2), "half")


def test_interpolation_of_seeds_and_latents(pipeline):
    settings = {"num_inference_steps": 3, "output_type": "pt"}
    row = pipeline.interpolate(3, 4, 5, **settings).images
    assert row.shape == (5, 1, 16, 16)
    for k, seed in ((0, 3), (-1, 4)):
        assert (row[k] - pipeline(seed=seed, eta=0.0, **settings).images[0]).abs().max() < 1e-5
    a, b = randn(2, 2, 1, 16, 16)
    rows = pipeline.interpolate(a, b, 3, **settings).images
    assert rows.shape == (6, 1, 16, 16)
    middle = pipeline(latents=slerp(a, b, 0.5), eta=0.0, **settings).images
    assert (rows[1] - middle[0]).abs().max() < 1e-5
    assert (rows[4] - middle[1]).abs().max() < 1e-5
    large = pipeline.interpolate(3, 4, 2, height=24, width=32, **settings).images
    again = pipeline(seed=3, eta=0.0, height=24, width=32, **settings).images
    assert (large[0] - again[0]).abs().max() < 1e-5
    seeds = pipeline.interpolate([3, 3], [4, 5], 5, **settings).images
    assert (seeds[:5] - row).abs().max() < 1e-5
    assert len(pipeline.interpolate(3, 3, 2, num_inference_steps=1).images) == 2


def test_interpolation_of_images_ends_at_them(gaussian):
    images = (0.5 + 0.2 * randn(2, 8, 8)).clamp(0, 1)
    a, b = (PIL.Image.fromarray((255 * image).round().byte().numpy()) for image in images)
    row = gaussian.interpolate(a, b, 4, num_inference_steps=20).images
    assert len(row) == 4
    for ours, theirs in ((row[0], a), (row[-1], b)):
        assert np.array_equal(np.asarray(ours), np.asarray(theirs))
    array = np.asarray(a, np.float32)[None, :, :, None] / 255
    again = gaussian.interpolate(array, b, 4, num_inference_steps=20).images
    assert np.array_equal(np.asarray(again[1]), np.asarray(row[1]))


def test_interpolation_within_a_class(conditional):
    settings = {"num_inference_steps": 2, "output_type": "pt", "guidance_scale": 2.0}
    rows = conditional.interpolate([0, 1], [2, 3], 3, class_labels=[1, 2], **settings).images
    alone = conditional(latents=randn(1, 1, 8, 8), class_labels=[1], **settings).images
    assert rows.shape == (6, 1, 8, 8)
    assert alone.shape == (1, 1, 8, 8)
    second = conditional.interpolate(1, 3, 3, class_labels=[2], **settings).images
    assert (rows[3:] - second).abs().max() < 1e-5


# -------------------------------------------------------------------------------------------------------- bad arguments

IMAGE = images_of(2, 1, 16, 16)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"image": IMAGE, "strength": 0.0}, "strength"),
        ({"image": IMAGE, "strength": 1.01}, "strength"),
        ({"image": IMAGE, "strength": math.nan}, "strength"),
        ({"image": IMAGE, "strength": "a lot"}, "strength"),
        ({"strength": 0.5}, "strength"),
        ({"image": IMAGE.expand(2, 3, 16, 16)}, "image"),
        ({"image": IMAGE[:, :, :8]}, "image"),
        ({"image": IMAGE - 1}, "image"),
        ({"image": images_of(3, 1, 16, 16)}, "image"),
        ({"image": [PIL.Image.new("L", (16, 16)), PIL.Image.new("L", (8, 8))]}, "image"),
        ({"image": PIL.Image.new("I", (16, 16), 70000)}, "image"),
        ({"image": "digit.png"}, "image"),
        ({"mask": IMAGE}, "mask"),
        ({"image": IMAGE, "mask": images_of(3, 1, 16, 16)}, "mask"),
        ({"image": IMAGE, "mask": images_of(2, 3, 16, 16)}, "mask"),
        ({"image": IMAGE, "mask": 2 * IMAGE + 1}, "mask"),
        ({"num_resamples": 2}, "num_resamples"),
        ({"image": IMAGE, "mask": IMAGE, "num_resamples": 0}, "num_resamples"),
        ({"height": 0}, "height"),
        ({"height": 17}, "height"),
        ({"width": 16.0}, "width"),
        ({"height": 32, "latents": randn(2, 1, 16, 16)}, "latents"),
        ({"guidance_scale": 2.0}, "guidance_scale"),
        ({"guidance_scale": math.inf}, "guidance_scale"),
        ({"guidance_scale": None}, "guidance_scale"),
        ({"variance_noise": randn(2, 1, 16, 16)}, "variance_noise"),
        ({"variance_noise": randn(2, 2, 1, 16, 16)}, "variance_noise"),  # eta is 0
        ({"variance_noise": randn(2, 2, 1, 16, 16).long(), "eta": 1.0}, "variance_noise"),
        ({"latents": randn(2, 1, 16, 16).long()}, "latents"),
        ({"latents": randn(2, 1, 16, 16) * 1j}, "latents"),
        ({"use_clipped_model_output": 1}, "use_clipped_model_output"),
        ({"timesteps": 5, "variance_noise": randn(2, 2, 1, 16, 16)}, "timesteps"),
        ({"image": np.array([None])}, "image"),
        ({"variance_noise": 1.0}, "variance_noise"),
        ({"image": np.zeros((2, 16, 16, 1), np.uint8)}, "image"),
        ({"method": "heun"}, "method"),
        ({"method": "o_belm", "eta": 0.5}, "method"),
        ({"method": "o_belm", "image": IMAGE}, "method"),
        ({"prev_latents": randn(2, 1, 16, 16)}, "prev_latents"),
        ({"method": "o_belm", "prev_latents": randn(2, 1, 16, 16)}, "prev_latents"),
        ({"method": "o_belm", "latents": randn(2, 1, 16, 16), "prev_latents": 1}, "prev_latents"),
    ],
)
def test_bad_argument_of_a_call(unet, model_calls, arguments, name):
    pipe = pipeline_of(unet)
    with pytest.raises((ValueError, TypeError), match=f"`{name}`"):
        pipe(**{"batch_size": 2, "num_inference_steps": 2, **arguments})
    assert not model_calls


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"class_labels": [0, 4]}, "class_labels"),
        ({"class_labels": [-1, 0]}, "class_labels"),
        ({"class_labels": [0.5, 1.0]}, "class_labels"),
        ({"class_labels": "01"}, "class_labels"),
        ({"class_labels": 1}, "class_labels"),
        ({"class_labels": None}, "class_labels"),
        ({"class_labels": torch.ones(2) * 1j}, "class_labels"),
        ({"class_labels": [0, 1], "guidance_scale": math.nan}, "guidance_scale"),
    ],
)
def test_bad_label_or_guidance(conditional, arguments, name):
    with pytest.raises((ValueError, TypeError), match=f"`{name}`"):
        conditional(batch_size=2, num_inference_steps=2, **arguments)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"n": 1}, "n"),
        ({"n": 2.0}, "n"),
        ({"a": -1}, "a"),
        ({"a": True}, "a"),
        ({"b": []}, "b"),
        ({"b": "digit.png"}, "b"),
        ({"b": randn(16, 16)}, "b"),
        ({"b": randn(1, 1, 8, 8)}, "b"),
        ({"b": randn(2, 1, 16, 16)}, "b"),
        ({"num_inference_steps": 0}, "num_inference_steps"),
        ({"output_type": "jpeg"}, "output_type"),
        ({"a": PIL.Image.new("L", (16, 16)), "b": randn(2, 1, 16, 16)}, "b"),
        ({"a": PIL.Image.new("L", (16, 16)), "b": -1}, "b"),
        ({"a": PIL.Image.new("L", (16, 8))}, "a"),
        ({"a": PIL.Image.new("L", (16, 16)), "b": 1, "output_type": "jpeg"}, "output_type"),
        ({"a": PIL.Image.new("L", (16, 16)), "b": 1, "class_labels": [0]}, "class_labels"),
        ({"a": PIL.Image.new("L", (16, 16)), "b": 1, "timesteps": [2, 3]}, "timesteps"),
        ({"b": randn(1, 1, 16, 16).long()}, "b"),
        ({"height": 15}, "height"),
    ],
)
def test_bad_argument_of_interpolate(unet, model_calls, arguments, name):
    with pytest.raises((ValueError, TypeError), match=f"`{name}`"):
        pipeline_of(unet).interpolate(**{"a": 0, "b": 1, "n": 3, "num_inference_steps": 2, **arguments})
    assert not model_calls


def test_scheduler_of_diffusers_lacks_what_ours_has(unet):
    pipe = pipeline_of(unet)
    pipe.scheduler = DDIMScheduler(clip_sample=False)
    with pytest.raises(ValueError, match="`method` is 'o_belm', but DDIMScheduler has no `midpoint_step`"):
        pipe(method="o_belm")
    settings = {"num_inference_steps": 2, "seed": 0, "output_type": "pt"}
    image = images_of(1, 1, 16, 16)
    edited = pipe(image=image, mask=image.round(), num_resamples=2, **settings).images
    assert ((edited - image) * (1 - image.round())).abs().max() < 1e-6


# ---------------------------------------------------------------------------------------------------------- the example


def folder_of_images(folder, number):
    (folder / "a").mkdir(parents=True)
    for k, image in enumerate(images_of(number, 20, 14)):
        PIL.Image.fromarray((255 * image).byte().numpy()).save(folder / "a" / f"{k}.png")
    return folder


def test_example_writes_the_pictures(pipeline, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(invert_and_interpolate, "PICTURE_STEPS", 3)
    pipeline.scheduler = EtaDDIMScheduler(num_train_timesteps=20)
    pipeline.save_pretrained(tmp_path / "model")
    folder, output = folder_of_images(tmp_path / "images", 6), tmp_path / "output"
    arguments = f"{tmp_path / 'model'} {folder} --output_dir {output} --num_inference_steps 2 3"
    arguments += " --num_images 4 --num_reconstructed 5 --batch_size 3 --device cpu"
    assert invert_and_interpolate.main(arguments.split()) == output
    sizes = {path.stem: PIL.Image.open(path).size for path in output.glob("*.png")}
    assert sizes == {
        "consistency": (4 * 32, 3 * 32),
        "editing": (4 * 32, 6 * 32),
        "interpolation": (8 * 32, 4 * 32),
        "interpolation_grid": (6 * 32, 6 * 32),
        "reconstruction": (4 * 32, 4 * 32),
    }
    printed = capsys.readouterr().out
    assert "S = 3: RMS distance" in printed
    errors = {line.split("|")[2].strip(): line.split("|")[3] for line in printed.splitlines() if "|    3 |" in line}
    assert float(errors["o_belm"]) < 1e-12
    assert [*errors] == ["plain", "fixed_point", "o_belm"]
    arguments += " --parts reconstruction --methods plain diffusers"
    invert_and_interpolate.main(arguments.split())
    printed = capsys.readouterr().out
    assert "Consistency" not in printed
    assert "fixed_point" not in printed
    rows = [line.split("|") for line in printed.splitlines() if "|    3 |" in line]
    assert [row[2].strip() for row in rows] == ["plain", "diffusers"]
    assert abs(float(rows[0][3]) / float(rows[1][3]) - 1) < 0.1  # the same on `leading` with epsilon, and both rounded
    with pytest.raises(SystemExit):
        invert_and_interpolate.main([*arguments.split(), "--timestep_spacing", "linspace"])
    assert "linspace" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    ["--num_images 3", "--num_reconstructed 2", "--batch_size 0", "--num_inference_steps 20 10", "--scale 0"],
)
def test_example_refuses(arguments, capsys):
    with pytest.raises(SystemExit):
        invert_and_interpolate.main(["nowhere", "nothing", *arguments.split()])
    assert arguments.split()[0] in capsys.readouterr().err


def test_example_refuses_a_folder_of_too_few_images(pipeline, tmp_path, capsys):
    pipeline.save_pretrained(tmp_path / "model")
    folder = folder_of_images(tmp_path / "images", 3)
    with pytest.raises(SystemExit):
        invert_and_interpolate.main([str(tmp_path / "model"), str(folder), "--device", "cpu"])
    assert "--num_images is 8, but" in capsys.readouterr().err
