"""The pipeline: what it keeps, what it returns, what it refuses."""

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMScheduler, DiffusionPipeline, UNet2DModel

from ddim_scheduler import EtaDDIMPipeline, EtaDDIMScheduler, image_generators

import exact


def test_scheduler_with_eta_is_kept(unet):
    scheduler = EtaDDIMScheduler(timestep_spacing="trailing", eta=0.5)
    assert EtaDDIMPipeline(unet=unet, scheduler=scheduler).scheduler is scheduler
    theirs = DDIMScheduler()
    assert EtaDDIMPipeline(unet=unet, scheduler=theirs).scheduler is theirs


def test_other_scheduler_is_converted(unet):
    other = DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
    scheduler = EtaDDIMPipeline(unet=unet, scheduler=other).scheduler
    assert isinstance(scheduler, EtaDDIMScheduler)
    assert scheduler.config.beta_schedule == "squaredcos_cap_v2"
    assert scheduler.config.prediction_type == "v_prediction"


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_same_image_for_any_batch_size(pipeline, eta):
    together = pipeline(batch_size=5, num_inference_steps=4, eta=eta, seed=7, output_type="pt").images
    alone = pipeline(batch_size=1, num_inference_steps=4, eta=eta, seed=7, output_type="pt").images
    chunk = pipeline(
        batch_size=2, num_inference_steps=4, eta=eta, generator=image_generators(7, [3, 4]), output_type="pt"
    ).images
    assert (together[:1] - alone).abs().max() < 1e-5
    assert (together[3:] - chunk).abs().max() < 1e-5
    assert (together[0] - together[1]).abs().max() > 0.1


def test_equals_diffusers_pipeline_with_its_scheduler(unet):
    theirs = DDIMPipeline(unet=unet, scheduler=DDIMScheduler())
    ours = EtaDDIMPipeline(unet=unet, scheduler=EtaDDIMScheduler())
    for pipe in (theirs, ours):
        pipe.set_progress_bar_config(disable=True)
    for eta in (0.0, 1.0):
        settings = {"batch_size": 2, "num_inference_steps": 10, "eta": eta, "output_type": "np"}
        a = theirs(generator=torch.Generator().manual_seed(0), **settings).images
        b = ours(generator=torch.Generator().manual_seed(0), **settings).images
        assert np.abs(a - b).max() < 1e-4


def test_output_types(pipeline):
    settings = {"batch_size": 3, "num_inference_steps": 2, "seed": 0}
    latent = pipeline(output_type="latent", **settings).images
    pt = pipeline(output_type="pt", **settings).images
    array = pipeline(output_type="np", **settings).images
    pil = pipeline(**settings).images
    assert latent.shape == pt.shape == (3, 1, 16, 16)
    assert array.shape == (3, 16, 16, 1)
    assert torch.equal(pt, (latent / 2 + 0.5).clamp(0, 1))
    assert np.array_equal(array, pt.permute(0, 2, 3, 1).numpy())
    assert isinstance(pil[0], PIL.Image.Image)
    assert np.array_equal(np.asarray(pil[0]), (array[0, :, :, 0] * 255).round())
    assert torch.equal(pipeline(output_type="pt", return_dict=False, **settings)[0], pt)


def test_latents_timesteps_and_callback(pipeline):
    latents = torch.randn(2, 1, 16, 16)
    seen = []

    def callback(pipe, step, timestep, tensors):
        assert pipe is pipeline
        seen.append((step, int(timestep), tensors["latents"].shape))

    settings = {"batch_size": 2, "timesteps": [900, 300, 50], "latents": latents, "output_type": "pt"}
    first = pipeline(callback_on_step_end=callback, **settings).images
    assert seen == [(0, 900, latents.shape), (1, 300, latents.shape), (2, 50, latents.shape)]
    assert torch.equal(first, pipeline(**settings).images)
    replaced = pipeline(callback_on_step_end=lambda *_: {"latents": torch.zeros(2, 1, 16, 16)}, **settings).images
    assert torch.equal(replaced, torch.full_like(replaced, 0.5))
    with pytest.raises(ValueError, match=r"`latents` of `callback_on_step_end` must be .* but is None"):
        pipeline(callback_on_step_end=lambda *_: {"latents": None}, **settings)


def test_numbers_of_numpy_are_taken(pipeline):
    settings = {"eta": 0.5, "seed": 3, "batch_size": 2, "num_inference_steps": 3, "height": 16}
    expected = pipeline(output_type="np", **settings).images
    numbers = {name: np.float64(v) if isinstance(v, float) else np.int64(v) for name, v in settings.items()}
    assert np.array_equal(pipeline(output_type="np", **numbers).images, expected)
    mirrored = np.flip(expected, 2)  # of negative strides
    settings = {"seed": 0, "num_inference_steps": 1, "output_type": "np"}
    assert np.array_equal(
        pipeline(image=mirrored, **settings).images, pipeline(image=mirrored.copy(), **settings).images
    )


def test_bfloat16_model_keeps_a_float32_state(unet):
    half = UNet2DModel.from_config(unet.config)
    half.load_state_dict(unet.state_dict())
    pipe = EtaDDIMPipeline(unet=half.to(torch.bfloat16), scheduler=EtaDDIMScheduler())
    pipe.set_progress_bar_config(disable=True)
    images = pipe(batch_size=2, num_inference_steps=2, seed=0, output_type="np").images
    assert images.dtype == np.float32
    assert np.isfinite(images).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_error_with_a_half_precision_model(dtype, record_property):
    """100 steps on N(0, 1/4) data: the loop of diffusers' pipeline, whose state has the model's dtype, against ours."""
    unet = exact.ExactUNet(sample_size=32, in_channels=1, block_out_channels=(8,) * 4, norm_num_groups=4).to(dtype)
    unet.denoiser = exact.gaussian(0.0, 0.5)
    start = torch.randn(4, 1, 32, 32, generator=torch.Generator().manual_seed(0)).to(dtype)

    pipe = EtaDDIMPipeline(unet=unet, scheduler=EtaDDIMScheduler(clip_sample=False))
    pipe.set_progress_bar_config(disable=True)
    settings = {"batch_size": 4, "num_inference_steps": 100, "output_type": "latent"}
    ours = pipe(latents=start.float(), **settings).images.double()

    scheduler = DDIMScheduler(clip_sample=False)
    scheduler.set_timesteps(100)
    theirs = exact.sample(scheduler, unet.denoiser, start, exact.alphas_cumprod()).double()

    pipe.scheduler.set_timesteps(100)
    reference = exact.sample(pipe.scheduler, unet.denoiser, start.double(), exact.alphas_cumprod())
    ratio = ((ours - reference).square().mean() / (theirs - reference).square().mean()).sqrt().item()
    record_property("error over that of diffusers each", ratio)
    assert ratio < 0.15


def test_class_labels():
    unet = UNet2DModel(
        sample_size=(8, 16),
        in_channels=3,
        out_channels=3,
        layers_per_block=1,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        num_class_embeds=10,
    )
    pipe = EtaDDIMPipeline(unet=unet, scheduler=EtaDDIMScheduler())
    pipe.set_progress_bar_config(disable=True)
    settings = {"batch_size": 2, "num_inference_steps": 2, "seed": 0, "output_type": "pt"}
    images = pipe(class_labels=[1, 7], **settings).images
    assert images.shape == (2, 3, 8, 16)
    assert not torch.equal(images, pipe(class_labels=torch.tensor([2, 3]), **settings).images)
    assert torch.equal(images, pipe(class_labels=torch.tensor([1, 7], dtype=torch.uint8), **settings).images)
    with pytest.raises(ValueError, match="`class_labels`"):
        pipe(**settings)
    with pytest.raises(ValueError, match="`class_labels`"):
        pipe(class_labels=[1], **settings)


@pytest.mark.parametrize("exact_denoiser", [False, True])
def test_published_notebook_setting(exact_denoiser):
    """96x96 RGB, every 20th timestep, eta = 0.003, batch of 4 (see the paper's reproductions)."""
    torch.manual_seed(0)
    model_class = exact.ExactUNet if exact_denoiser else UNet2DModel
    unet = model_class(
        sample_size=96,
        layers_per_block=1,
        block_out_channels=(8, 8, 8, 8),
        norm_num_groups=4,
        down_block_types=("DownBlock2D",) * 4,
        up_block_types=("UpBlock2D",) * 4,
    ).eval()
    data = torch.rand(4, 3, 96, 96) * 2 - 1
    unet.denoiser = exact.point_mass(data.double())
    pipe = EtaDDIMPipeline(unet=unet, scheduler=EtaDDIMScheduler())
    pipe.set_progress_bar_config(disable=True)
    images = pipe(batch_size=4, timesteps=[*range(980, -1, -20)], eta=0.003, seed=0, output_type="pt").images
    assert images.shape == (4, 3, 96, 96)
    assert images.isfinite().all()
    if exact_denoiser:
        assert (images - (data / 2 + 0.5)).abs().max() < 1e-5


def test_saved_pipeline_loads_by_every_class(pipeline, tmp_path):
    pipeline.scheduler.register_to_config(timestep_spacing="trailing", eta=0.25)
    pipeline.save_pretrained(tmp_path)
    expected = pipeline(num_inference_steps=3, seed=1, output_type="pt").images
    for pipeline_class in (EtaDDIMPipeline, DiffusionPipeline):
        again = pipeline_class.from_pretrained(tmp_path)
        again.set_progress_bar_config(disable=True)
        assert type(again) is EtaDDIMPipeline
        assert type(again.scheduler) is EtaDDIMScheduler
        assert again.scheduler.config.eta == 0.25
        images = again(num_inference_steps=3, seed=1, output_type="pt").images
        assert (images - expected).abs().max() < 1e-5  # not bit for bit: memory alignment changes torch's kernels


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": 1.5}, "batch_size"),
        ({"num_inference_steps": 0}, "num_inference_steps"),
        ({"num_inference_steps": "20"}, "num_inference_steps"),
        ({"num_inference_steps": 1001}, "num_inference_steps"),
        ({"eta": 2.0}, "eta"),
        ({"eta": float("nan")}, "eta"),
        ({"timesteps": [1, 2]}, "timesteps"),
        ({"seed": -1}, "seed"),
        ({"seed": 0, "generator": torch.Generator()}, "generator"),
        ({"generator": [torch.Generator()] * 3}, "generator"),
        ({"latents": torch.randn(1, 1, 16, 16)}, "latents"),
        ({"latents": torch.randn(2, 3, 16, 16)}, "latents"),
        ({"class_labels": [1, 2]}, "class_labels"),
        ({"output_type": "pill"}, "output_type"),
        ({"callback_on_step_end_tensor_inputs": ["image"]}, "callback_on_step_end_tensor_inputs"),
        ({"callback_on_step_end_tensor_inputs": None}, "callback_on_step_end_tensor_inputs"),
        ({"callback_on_step_end": 5}, "callback_on_step_end"),
        ({"eta": "a"}, "eta"),
        ({"eta": True}, "eta"),
        ({"generator": 5}, "generator"),
        ({"generator": [1, 2]}, "generator"),
        ({"latents": np.zeros((2, 1, 16, 16))}, "latents"),
        ({"latents": torch.randn(3)}, "latents"),
        ({"use_clipped_model_output": "yes"}, "use_clipped_model_output"),
    ],
)
def test_bad_call_argument(pipeline, arguments, name):
    calls = []
    pipeline.unet.register_forward_hook(lambda *_: calls.append(1))
    with pytest.raises((ValueError, TypeError), match=f"`{name}`"):
        pipeline(**{"batch_size": 2, "num_inference_steps": 2, **arguments})
    assert not calls


def test_timesteps_for_a_scheduler_that_takes_none(unet):
    pipe = EtaDDIMPipeline(unet=unet, scheduler=DDIMScheduler())
    with pytest.raises(ValueError, match="`timesteps`"):
        pipe(timesteps=[3, 2])
