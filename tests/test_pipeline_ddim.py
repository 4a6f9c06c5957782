"""The pipeline: what it keeps, what it returns, what it refuses."""

import copy
import logging
import pickle
import types

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMInverseScheduler,
    DDIMParallelScheduler,
    DDIMPipeline,
    DDIMScheduler,
    DDPMScheduler,
    DiffusionPipeline,
    PNDMScheduler,
    UNet1DModel,
    UNet2DConditionModel,
    UNet2DModel,
)

from ddim_scheduler import EtaDDIMInverseScheduler, EtaDDIMPipeline, EtaDDIMScheduler, image_generators

import exact

# ------------------------------------------------------------------------------------------ the scheduler, the network


class Counting(EtaDDIMScheduler):
    """A subclass whose step hides its arguments."""

    calls = 0

    def step(self, *args, **kwargs):
        self.calls += 1
        return super().step(*args, **kwargs)


class Positional(EtaDDIMScheduler):
    """A subclass whose step takes no eta."""

    def step(self, model_output, timestep, sample, generator=None):
        return super().step(model_output, timestep, sample, generator=generator)


class TheirsWithAnExtra(DDIMScheduler):
    """A user's own class of diffusers' one."""


class Foreign(DDPMScheduler):
    """A foreign scheduler that takes eta among its keywords."""

    def step(self, model_output, timestep, sample, **kwargs):
        return super().step(model_output, timestep, sample, generator=kwargs.get("generator"))


class ForeignWithEta(DDPMScheduler):
    def step(self, model_output, timestep, sample, eta=0.0, generator=None):
        return super().step(model_output, timestep, sample, generator=generator)


@pytest.mark.parametrize(
    "scheduler_class", [EtaDDIMScheduler, Counting, Positional, TheirsWithAnExtra, Foreign, ForeignWithEta]
)
def test_scheduler_is_kept(unet, scheduler_class):
    scheduler = scheduler_class(timestep_spacing="trailing")
    pipe = EtaDDIMPipeline(unet=unet, scheduler=scheduler)
    assert pipe.scheduler is scheduler
    pipe.set_progress_bar_config(disable=True)
    assert pipe(num_inference_steps=3, seed=0, output_type="pt").images.isfinite().all()
    if scheduler_class is Counting:
        assert scheduler.calls == 3
        pipe(num_inference_steps=2, use_clipped_model_output=True, eta=0.5)


def test_scheduler_whose_step_was_replaced_is_kept(unet):
    scheduler = DDIMScheduler()
    step, calls = scheduler.step, []

    def counting(*args, **kwargs):
        calls.append(1)
        return step(*args, **kwargs)

    scheduler.step = counting
    pipe = EtaDDIMPipeline(unet=unet, scheduler=scheduler)
    pipe(num_inference_steps=2, eta=0.5, seed=0)
    assert len(calls) == 2


@pytest.mark.parametrize("scheduler_class", [DDPMScheduler, DDIMScheduler, DDIMParallelScheduler, PNDMScheduler])
def test_scheduler_of_diffusers_is_converted(unet, scheduler_class, caplog):
    other = scheduler_class(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
    with caplog.at_level(logging.INFO):
        scheduler = EtaDDIMPipeline(unet=unet, scheduler=other).scheduler
    assert type(scheduler) is EtaDDIMScheduler
    assert scheduler.config.beta_schedule == "squaredcos_cap_v2"
    assert scheduler.config.prediction_type == "v_prediction"
    assert f"{scheduler_class.__name__} " in caplog.text
    assert "samples with EtaDDIMScheduler instead" in caplog.text


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("scheduler", EtaDDIMInverseScheduler, "must be an object .* is the class EtaDDIMInverseScheduler itself"),
        ("scheduler", DDPMScheduler, "must be an object .* is the class DDPMScheduler itself"),
        ("scheduler", None, "must be an object .* is a NoneType"),
        ("scheduler", EtaDDIMInverseScheduler(), "must go towards the image, but is a EtaDDIMInverseScheduler"),
        ("scheduler", DDIMInverseScheduler(), "must go towards the image, but is a DDIMInverseScheduler"),
        ("unet", UNet2DModel, "must be a UNet2DModel, .* is the class UNet2DModel itself"),
        ("unet", torch.nn.DataParallel(torch.nn.Linear(1, 1)), "must not be a DataParallel: .* `unet.module`"),
        ("unet", torch.nn.Linear(1, 1), "must be a UNet2DModel, .* is a Linear"),
        ("unet", 5, "must be a UNet2DModel, .* is a int"),
    ],
)
def test_component_of_another_kind_is_refused_when_made_and_when_assigned(pipeline, name, value, message):
    components = pipeline.components
    with pytest.raises(TypeError, match=f"`{name}` {message}"):
        EtaDDIMPipeline(**{**components, name: value})
    with pytest.raises(TypeError, match=f"`{name}` {message}"):
        setattr(pipeline, name, value)
    assert pipeline.components == components
    assert pipeline.config[name][1] == type(components[name]).__name__


def test_what_others_cannot_load_is_said_when_it_is_saved(unet, tmp_path, caplog):
    pipe = EtaDDIMPipeline(unet=unet, scheduler=EtaDDIMScheduler())
    with caplog.at_level(logging.WARNING):
        for scheduler in (EtaDDIMScheduler(), DDIMScheduler(), ForeignWithEta()):
            pipe.scheduler = scheduler
            pipe.save_pretrained(tmp_path / "model")
        assert not caplog.text
        pipe.scheduler = DDPMScheduler()
        pipe.save_pretrained(tmp_path / "model")
    assert (
        "`scheduler` is a DDPMScheduler, which takes no eta: what is saved loads only where the package" in caplog.text
    )
    assert type(EtaDDIMPipeline.from_pretrained(tmp_path / "model").scheduler) is EtaDDIMScheduler


def test_wrapped_network_is_not_half_saved(unet, tmp_path):
    try:
        pipe = EtaDDIMPipeline(unet=in_ddp(unet, tmp_path), scheduler=EtaDDIMScheduler())
        with pytest.raises(TypeError, match=r"`unet` is a DistributedDataParallel, .* `pipe.unet.module` for DDP"):
            pipe.save_pretrained(tmp_path / "model")
        assert not (tmp_path / "model").exists()
        pipe.unet = pipe.unet.module
        pipe.save_pretrained(tmp_path / "model")
    finally:
        torch.distributed.destroy_process_group()


def test_repository_of_ddim_pipeline_has_as_many_steps_as_asked_for(unet, tmp_path):
    """The built-in's `trailing` with 61 steps has 62, the last at -1."""
    DDIMPipeline(unet=unet, scheduler=DDIMScheduler(timestep_spacing="trailing")).save_pretrained(tmp_path)
    pipe = EtaDDIMPipeline.from_pretrained(tmp_path)
    pipe.scheduler.set_timesteps(61)
    assert len(pipe.scheduler.timesteps) == 61
    assert pipe.scheduler.timesteps.min() >= 0


@pytest.mark.parametrize(
    ("network_class", "settings"),
    [
        (UNet1DModel, {"sample_size": 16, "block_out_channels": (8, 8, 16), "in_channels": 1, "out_channels": 1}),
        (UNet2DConditionModel, {"block_out_channels": (8, 8), "norm_num_groups": 4, "cross_attention_dim": 8}),
        (AutoencoderKL, {"block_out_channels": (8,), "norm_num_groups": 4}),
    ],
)
@pytest.mark.parametrize("is_compiled", [False, True])
def test_network_of_another_kind_is_refused(network_class, settings, is_compiled):
    if network_class is UNet2DConditionModel:
        settings = {
            **settings,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        }
    if network_class is UNet1DModel:
        settings = {**settings, "extra_in_channels": 0}
    network = network_class(**settings)
    network = torch.compile(network) if is_compiled else network
    with pytest.raises(TypeError, match=f"`unet` must be a UNet2DModel, .* but is a {network_class.__name__}"):
        EtaDDIMPipeline(unet=network, scheduler=EtaDDIMScheduler())


@pytest.mark.parametrize(
    ("taken", "returned", "variance_type"),
    [(3, 4, None), (2, 4, None), (1, 3, "sigma_hat"), (2, 2, "learned"), (4, 6, "learned_range"), (4, 2, "learned")],
)
def test_channels_that_do_not_fit_are_refused(small_unet, taken, returned, variance_type):
    network = small_unet(in_channels=taken, out_channels=returned)
    message = f"`unet` must return .* as many channels as it takes, .* but it takes {taken} and returns {returned}"
    with pytest.raises(ValueError, match=message):
        EtaDDIMPipeline(unet=network, scheduler=EtaDDIMScheduler(variance_type=variance_type))


def test_learned_variance_is_taken(small_unet):
    network = small_unet(in_channels=2, out_channels=4)
    other = DDPMScheduler(variance_type="learned_range")
    assert EtaDDIMPipeline(unet=network, scheduler=other).scheduler.config.variance_type == "learned_range"


class Peft(torch.nn.Module):
    """Wraps as PEFT's `PeftModel` and `LoraModel` do."""

    def __init__(self, model, name="base_model"):
        super().__init__()
        setattr(self, name, model if name == "model" else Peft(model, "model"))
        self.inner = name

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__(self.inner), name)

    def forward(self, *args, **kwargs):
        return getattr(self, self.inner)(*args, **kwargs)


class Subclass(UNet2DModel):
    def forward(self, *args, **kwargs):
        return super().forward(*args, **kwargs)


class Duck(torch.nn.Module):
    """A network of another class with the same interface."""

    def __init__(self, unet):
        super().__init__()
        self.network = [unet]
        self.config, self.dtype, self.device, self.class_embedding = unet.config, unet.dtype, unet.device, None

    def forward(self, sample, timestep, class_labels=None):
        return self.network[0](sample, timestep, class_labels)


class Conditioned(torch.nn.Module):
    """A wrapper that is a network of its own: the one within takes a condition as further channels."""

    def __init__(self, unet, channels):
        super().__init__()
        self.module, self.condition = unet, torch.zeros(1, unet.config.in_channels - channels, 8, 8)
        self.config = types.SimpleNamespace(**{**unet.config, "in_channels": channels})
        self.dtype, self.device, self.class_embedding = unet.dtype, unet.device, None

    def forward(self, sample, timestep, class_labels=None):
        condition = self.condition.expand(len(sample), -1, -1, -1)
        return self.module(torch.cat([sample, condition], dim=1), timestep)


def test_wrapper_with_a_config_of_its_own_is_taken(small_unet):
    network = Conditioned(small_unet(in_channels=5, out_channels=3), 3)
    pipe = EtaDDIMPipeline(unet=network, scheduler=EtaDDIMScheduler())
    pipe.set_progress_bar_config(disable=True)
    assert pipe(num_inference_steps=2, output_type="pt").images.shape == (1, 3, 8, 8)


def of_class(unet, network_class):
    network = network_class.from_config(unet.config)
    network.load_state_dict(unet.state_dict())
    return network.eval()


def in_ddp(unet, tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    return torch.nn.parallel.DistributedDataParallel(unet)


WRAPPERS = {
    "compiled": lambda unet, _: torch.compile(unet, backend="eager"),
    "ddp": in_ddp,
    "compiled in ddp": lambda unet, path: in_ddp(torch.compile(unet, backend="eager"), path),
    "peft": lambda unet, _: Peft(unet),
    "subclass": lambda unet, _: of_class(unet, Subclass),
    "another class": lambda unet, _: Duck(unet),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrapped_network_is_taken(pipeline, unet, wrapper, tmp_path):
    settings = {"num_inference_steps": 2, "seed": 0, "output_type": "pt"}
    expected = pipeline(**settings).images
    try:
        pipe = EtaDDIMPipeline(unet=WRAPPERS[wrapper](unet, tmp_path), scheduler=EtaDDIMScheduler())
        pipe.set_progress_bar_config(disable=True)
        assert (pipe(**settings).images - expected).abs().max() < 1e-5
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def test_pipeline_may_be_loaded_without_its_network(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    pipe = EtaDDIMPipeline.from_pretrained(tmp_path, unet=None)
    assert type(pipe.scheduler) is EtaDDIMScheduler
    with pytest.raises(ValueError, match="`unet` is None"):
        pipe()


# ------------------------------------------------------------------------------------------------------------ the call


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
    pipe = EtaDDIMPipeline(unet=unet, scheduler=TheirsWithAnExtra())
    with pytest.raises(ValueError, match="`timesteps`"):
        pipe(timesteps=[3, 2])


def test_assigned_scheduler_that_takes_neither_eta_nor_generator(unet):
    pipe = EtaDDIMPipeline(unet=unet, scheduler=EtaDDIMScheduler(clip_sample=False))
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = PNDMScheduler.from_config(pipe.scheduler.config)
    calls = []
    handle = unet.register_forward_hook(lambda *_: calls.append(1))
    with pytest.raises(ValueError, match=r"`eta` is 0\.0, but `step` of PNDMScheduler takes none"):
        pipe(num_inference_steps=6, eta=0.0)
    handle.remove()
    assert not calls
    first, again, other = (pipe(num_inference_steps=6, seed=seed, output_type="pt").images for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


# ----------------------------------------------------------------------------------------------- what is not a picture


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("output_type", ["pil", "np", "pt", "latent"])
@pytest.mark.parametrize("clip_sample", [False, True])
def test_weights_that_are_not_finite_are_an_error(unet, value, output_type, clip_sample):
    broken = copy.deepcopy(unet)
    broken.conv_out.bias.data[:] = value
    pipe = EtaDDIMPipeline(unet=broken, scheduler=EtaDDIMScheduler(clip_sample=clip_sample))
    message = r"2 of 2 images are not finite: 1 of the UNet's weights are not either, the first is 'conv_out\.bias'"
    with pytest.raises(ValueError, match=message):
        pipe(batch_size=2, num_inference_steps=3, seed=0, output_type=output_type)


def test_one_image_that_is_not_finite_is_an_error(pipeline):
    latents = torch.randn(3, 1, 16, 16)
    latents[1, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"1 of 3 images are not finite: something that .* its weights are"):
        pipeline(latents=latents, num_inference_steps=2)


def test_overflow_of_half_precision_is_an_error(unet):
    half = copy.deepcopy(unet)
    half.conv_norm_out.weight.data.mul_(1e3)
    half.conv_out.weight.data.mul_(1e3)
    pipe = EtaDDIMPipeline(unet=half.half(), scheduler=EtaDDIMScheduler())
    with pytest.raises(ValueError, match=r"images are not finite: .* in torch\.float16"):
        pipe(batch_size=2, num_inference_steps=3, seed=0)


# ------------------------------------------------------------------------------------------------------------- pickles


def test_pickles(small_unet):
    network = small_unet(in_channels=1, out_channels=1)
    pipeline = EtaDDIMPipeline(unet=network, scheduler=EtaDDIMScheduler(timestep_spacing="trailing"))
    again = pickle.loads(pickle.dumps(pipeline))
    assert type(again) is EtaDDIMPipeline
    assert type(again.scheduler) is EtaDDIMScheduler
    settings = {"num_inference_steps": 3, "seed": 1, "output_type": "pt"}
    assert torch.equal(again(**settings).images, pipeline(**settings).images)
    pipeline.scheduler.config.clip_sample = False
    found = pipeline.invert(torch.rand(1, 1, 8, 8), 2)
    assert torch.equal(pickle.loads(pickle.dumps(found)).latents, found.latents)
