"""The swap `pipe.scheduler = EtaDDIMScheduler.from_config(pipe.scheduler.config)` in diffusers' own pipelines."""

import functools
import inspect

import diffusers
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    CogVideoXDDIMScheduler,
    DDIMScheduler,
    DDPMScheduler,
    EDMEulerScheduler,
    SchedulerMixin,
    UNet2DConditionModel,
    UNet2DModel,
    VQModel,
)
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers

from ddim_scheduler import EtaDDIMScheduler

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # numpy's, in diffusers' solvers

STEPS = 5  # divides 1000: the built-in scheduler is right
LATENT = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def seeded(model_class, **config):
    torch.manual_seed(0)
    return model_class(**config).eval()


# ------------------------------------------------------------- tiny pipelines: (pipeline, arguments of its call)

VAE = {
    "block_out_channels": (4, 8),
    "norm_num_groups": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
}
UNET = {"sample_size": 8, "layers_per_block": 1, "block_out_channels": (8, 16), "norm_num_groups": 4}
CROSS_ATTENTION = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": 8,
    "attention_head_dim": 4,
}
SIMPLE_CROSS_ATTENTION = {
    "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
    "cross_attention_dim": 8,
    "encoder_hid_dim": 8,
    "attention_head_dim": 4,
    "resnet_time_scale_shift": "scale_shift",
}
TRANSFORMER = {"sample_size": 8, "patch_size": 2, "num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 4}
PROMPT = {"prompt_embeds": randn(1, 4, 8), "negative_prompt_embeds": randn(1, 4, 8, seed=1)}
PIXART = {
    "prompt_attention_mask": torch.ones(1, 4),
    "negative_prompt_attention_mask": torch.ones(1, 4),
    "use_resolution_binning": False,
}
SIZE = {"height": 16, "width": 16}
IMAGE = randn(1, 3, 16, 16, seed=2).clamp(0, 1)
INPAINT = {"image": IMAGE, "mask_image": IMAGE[:, :1].round(), **SIZE}


def vae():
    return seeded(AutoencoderKL, latent_channels=4, **VAE)


def vq_model(**config):
    return seeded(VQModel, **VAE | {"num_vq_embeddings": 12} | config)


def pixel_unet(**config):
    blocks = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    return seeded(UNet2DModel, **UNET, **blocks, **config)


def stable_diffusion(pipeline="StableDiffusionPipeline", scheduler=None, in_channels=4, components=None, **call):
    unet = seeded(UNet2DConditionModel, in_channels=in_channels, **UNET, **CROSS_ATTENTION)
    pipe = getattr(diffusers, pipeline)(
        vae=vae(),
        text_encoder=None,
        tokenizer=None,
        unet=unet,
        scheduler=scheduler or DDIMScheduler(**LATENT),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        **(components(unet) if components else {}),
    )
    return pipe, PROMPT | call


def control_net(unet):
    # one downsampling, as in the tiny VAE
    return {
        "controlnet": seeded(diffusers.ControlNetModel.from_unet, unet=unet, conditioning_embedding_out_channels=(4, 8))
    }


def stable_diffusion_xl(pipeline="StableDiffusionXLPipeline", **call):
    pipe = getattr(diffusers, pipeline)(
        vae=vae(),
        text_encoder=None,
        text_encoder_2=None,
        tokenizer=None,
        tokenizer_2=None,
        unet=seeded(
            UNet2DConditionModel,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + 8,
            **UNET,
            **CROSS_ATTENTION,
        ),
        scheduler=DDIMScheduler(**LATENT),
        add_watermarker=False,
    )
    pooled = {"pooled_prompt_embeds": randn(1, 8), "negative_pooled_prompt_embeds": randn(1, 8, seed=1)}
    return pipe, PROMPT | pooled | call


def ldm():
    return diffusers.LDMPipeline(vqvae=vq_model(), unet=pixel_unet(), scheduler=DDIMScheduler(**LATENT)), {}


def ldm_super_resolution():
    unet = pixel_unet(in_channels=6, out_channels=3)
    pipe = diffusers.LDMSuperResolutionPipeline(vqvae=vq_model(), unet=unet, scheduler=DDIMScheduler(**LATENT))
    return pipe, {"image": IMAGE[:, :, :8, :8]}


def ddpm():
    return diffusers.DDPMPipeline(unet=pixel_unet(), scheduler=DDIMScheduler()), {}


def dit():
    transformer = seeded(
        diffusers.DiTTransformer2DModel, in_channels=4, out_channels=8, num_embeds_ada_norm=1000, **TRANSFORMER
    )
    pipe = diffusers.DiTPipeline(transformer=transformer, vae=vae(), scheduler=DDIMScheduler(clip_sample=False))
    return pipe, {"class_labels": [1]}


def text_transformer(pipeline, model, call):
    transformer = seeded(
        getattr(diffusers, model),
        in_channels=4,
        out_channels=8,
        caption_channels=8,
        cross_attention_dim=8,
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        norm_eps=1e-6,
        attention_bias=True,
        **TRANSFORMER,
    )
    pipe = getattr(diffusers, pipeline)(
        tokenizer=None,
        text_encoder=None,
        vae=vae(),
        transformer=transformer,
        scheduler=DDIMScheduler(**LATENT),
    )
    return pipe, PROMPT | SIZE | {"clean_caption": False, "negative_prompt": None} | call


def kandinsky():
    unet = UNET | {"block_out_channels": (8, 8)} | SIMPLE_CROSS_ATTENTION
    image_unet = {
        "in_channels": 4,
        "out_channels": 8,
        "addition_embed_type": "image",
        "encoder_hid_dim_type": "image_proj",
    }
    pipe = diffusers.KandinskyV22Pipeline(
        unet=seeded(UNet2DConditionModel, **image_unet, **unet),
        scheduler=DDIMScheduler(beta_start=0.00085, beta_end=0.012, clip_sample=False),
        movq=vq_model(latent_channels=4, norm_type="spatial", block_out_channels=(32, 32), norm_num_groups=8),
    )
    return pipe, SIZE | {"image_embeds": randn(1, 8), "negative_image_embeds": randn(1, 8, seed=1)}


def animate_diff():
    pipe = diffusers.AnimateDiffPipeline(
        vae=vae(),
        text_encoder=None,
        tokenizer=None,
        unet=seeded(UNet2DConditionModel, **UNET, **CROSS_ATTENTION),
        motion_adapter=seeded(
            diffusers.MotionAdapter,
            block_out_channels=UNET["block_out_channels"],
            motion_layers_per_block=1,
            motion_norm_num_groups=4,
            motion_num_attention_heads=2,
        ),
        scheduler=DDIMScheduler(beta_schedule="linear", steps_offset=1, clip_sample=False),
    )
    return pipe, PROMPT | SIZE | {"num_frames": 2}


def cog_video_x():
    pipe = diffusers.CogVideoXPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=seeded(
            diffusers.AutoencoderKLCogVideoX,
            down_block_types=("CogVideoXDownBlock3D",) * 4,
            up_block_types=("CogVideoXUpBlock3D",) * 4,
            block_out_channels=(4,) * 4,
            latent_channels=4,
            layers_per_block=1,
            norm_num_groups=2,
        ),
        transformer=seeded(
            diffusers.CogVideoXTransformer3DModel,
            num_attention_heads=2,
            attention_head_dim=8,
            in_channels=4,
            out_channels=4,
            time_embed_dim=2,
            text_embed_dim=8,
            num_layers=1,
            sample_width=2,
            sample_height=2,
            sample_frames=5,
            max_text_seq_length=4,
        ),
        scheduler=DDIMScheduler(**LATENT | {"prediction_type": "v_prediction"}),
    )
    return pipe, PROMPT | SIZE | {"num_frames": 5, "max_sequence_length": 4}


def deepfloyd_if():
    unet = UNET | {"block_out_channels": (8, 8)} | SIMPLE_CROSS_ATTENTION
    text_unet = {"in_channels": 3, "out_channels": 6, "addition_embed_type": "text", "addition_embed_type_num_heads": 2}
    settings = {"beta_schedule": "squaredcos_cap_v2", "thresholding": True, "sample_max_value": 1.5}
    pipe = diffusers.IFPipeline(
        tokenizer=None,
        text_encoder=None,
        unet=seeded(UNet2DConditionModel, **text_unet, **unet),
        scheduler=DDPMScheduler(variance_type="fixed_small", **settings),
        safety_checker=None,
        feature_extractor=None,
        watermarker=None,
        requires_safety_checker=False,
    )
    return pipe, PROMPT


def marigold():
    pipe = diffusers.MarigoldDepthPipeline(
        unet=seeded(UNet2DConditionModel, in_channels=8, **UNET, **CROSS_ATTENTION),
        vae=vae(),
        scheduler=DDIMScheduler(**LATENT | {"prediction_type": "v_prediction"}),
        text_encoder=None,
        tokenizer=None,
        prediction_type="depth",
    )
    pipe.empty_text_embedding = PROMPT["prompt_embeds"]
    return pipe, {"image": IMAGE, "processing_resolution": 0}


PIPELINES = {
    "sd": stable_diffusion,
    "sd_img2img": lambda: stable_diffusion("StableDiffusionImg2ImgPipeline", image=IMAGE, strength=0.8),
    "sd_inpaint": lambda: stable_diffusion("StableDiffusionInpaintPipeline", **INPAINT),
    "sd_inpaint_unet": lambda: stable_diffusion("StableDiffusionInpaintPipeline", in_channels=9, **INPAINT),
    "sd_pix2pix": lambda: stable_diffusion("StableDiffusionInstructPix2PixPipeline", in_channels=8, image=IMAGE),
    "sd_panorama": lambda: stable_diffusion("StableDiffusionPanoramaPipeline", height=16, width=24),
    "controlnet": lambda: stable_diffusion("StableDiffusionControlNetPipeline", components=control_net, image=IMAGE),
    "sdxl": stable_diffusion_xl,
    "sdxl_img2img": lambda: stable_diffusion_xl("StableDiffusionXLImg2ImgPipeline", image=IMAGE, strength=0.8),
    "sdxl_inpaint": lambda: stable_diffusion_xl("StableDiffusionXLInpaintPipeline", strength=0.8, **INPAINT),
    "ldm": ldm,
    "ldm_super_resolution": ldm_super_resolution,
    "ddpm": ddpm,
    "dit": dit,
    "pixart_alpha": lambda: text_transformer("PixArtAlphaPipeline", "PixArtTransformer2DModel", PIXART),
    "pixart_sigma": lambda: text_transformer("PixArtSigmaPipeline", "PixArtTransformer2DModel", PIXART),
    "latte": lambda: text_transformer("LattePipeline", "LatteTransformer3DModel", {"video_length": 16}),
    "kandinsky": kandinsky,
    "animate_diff": animate_diff,
    "cog_video_x": cog_video_x,
    "deepfloyd_if": deepfloyd_if,
    "marigold": marigold,
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
    pipe, call = PIPELINES[name]()
    pipe.set_progress_bar_config(disable=True)
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
    images = torch.as_tensor(pipe(**call, output_type="np", return_dict=False)[0])
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
    pipe, call = stable_diffusion(scheduler=getattr(diffusers, name)(**settings))
    pipe.set_progress_bar_config(disable=True)
    config = pipe.scheduler.config
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


def swap(scheduler, scheduler_class, path, saved):
    """`scheduler_class` from the scheduler's config, in memory or from a file."""
    if not saved:
        return scheduler_class.from_config(scheduler.config)
    scheduler.save_pretrained(path)
    return scheduler_class.from_pretrained(path)


@pytest.mark.parametrize("saved", [False, True], ids=["config", "file"])
@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("name", KARRAS)
def test_swap_there_and_back_restores_the_config(name, settings, saved, tmp_path):
    scheduler_class = getattr(diffusers, name)
    if not issubclass(scheduler_class, SchedulerMixin):
        pytest.skip(f"{name} needs an optional package")
    keys = set(inspect.signature(scheduler_class).parameters)
    scheduler = scheduler_class(**{key: value for key, value in SETTINGS[settings].items() if key in keys})
    ours = swap(scheduler, EtaDDIMScheduler, tmp_path / "theirs", saved)
    back = swap(ours, scheduler_class, tmp_path / "ours", saved)
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
