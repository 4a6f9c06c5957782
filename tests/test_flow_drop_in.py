"""EtaFlowMatchScheduler in diffusers' own pipelines, built from tiny parts by `benchmarks/flow_sweep.py`."""

import inspect
import sys
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

from ddim_scheduler import EtaFlowMatchInverseScheduler, EtaFlowMatchScheduler

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import flow_sweep
from tiny_flow_pipelines import arguments, build, built_in

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")

# what each of them asks of a scheduler beside the plain step
PIPELINES = {
    "StableDiffusion3Pipeline": "sigmas and mu",
    "FluxImg2ImgPipeline": "scale_noise, set_begin_index",
    "FluxInpaintPipeline": "scale_noise in the loop",
    "QwenImagePipeline": "the config's sequence lengths",
    "LTXConditionPipeline": "per_token_timesteps",
    "LTX2Pipeline": "a copy for the audio, shift_terminal",
    "LTX2ConditionPipeline": "the sigmas of both",
    "WanPipeline": "float32 states",
    "MochiPipeline": "inverted levels",
    "OmniGenPipeline": "inverted levels, one train timestep",
    "LongCatAudioDiTPipeline": "inverted levels",
    "Cosmos2TextToImagePipeline": "exploding variance, written sigmas",
    "ZImagePipeline": "a float32 result",
    "StableAudio3Pipeline": "stochastic sampling",
    "EasyAnimatePipeline": "timesteps, eta in the signature",
    "SanaPipeline": "eta and generator in the signature",
    "Kandinsky5T2IPipeline": ".prev_sample or a tuple",
    "BriaPipeline": "scale_model_input",
}


@pytest.mark.parametrize("name", PIPELINES)
def test_pipeline(name):
    """It runs, is equal to the built-in at eta = 0, and finite at 0.5 and 1."""
    if not hasattr(diffusers, name):
        pytest.skip(f"this diffusers has no {name}")
    row = flow_sweep.sweep(name)
    assert (row.builtin, row.ours, row.noisy) == ("", "", "")
    assert row.difference < 1e-5


def test_isinstance_and_swap_by_a_solvers_config():
    """Wan's pipelines come with UniPC; the swap takes its shift, and back."""
    pipe = build("WanPipeline", built_in("WanPipeline"))
    solver = UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0)
    pipe.scheduler = solver
    pipe.scheduler = EtaFlowMatchScheduler.from_config(pipe.scheduler.config, eta=0.3)
    assert isinstance(pipe.scheduler, FlowMatchEulerDiscreteScheduler)
    assert torch.equal(pipe.scheduler.sigmas, built_in("WanPipeline").sigmas)
    pipe(**arguments(pipe), num_inference_steps=2)
    back = UniPCMultistepScheduler.from_config(pipe.scheduler.config)
    assert (back.config.flow_shift, back.config.use_flow_sigmas) == (3.0, True)


def test_inversion_in_a_pipeline():
    """The inverse scheduler in SD3's own loop, then the sampler: the error falls with the number of steps."""
    pipe = build("StableDiffusion3Pipeline", built_in("StableDiffusion3Pipeline"))
    call = arguments(pipe) | {"guidance_scale": 1.0}
    config, latents = pipe.scheduler.config, torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    errors = []
    for N in (8, 64):
        result = latents
        for scheduler_class in (EtaFlowMatchInverseScheduler, EtaFlowMatchScheduler):
            pipe.scheduler = scheduler_class.from_config(config)
            result = pipe(**call | {"latents": result}, num_inference_steps=N, return_dict=False)[0]
        errors.append((result - latents).abs().max().item())
    assert errors[1] < errors[0] / 4
    assert errors[1] < 0.1


def test_audio_scheduler_with_another_shift_is_refused():
    """LTX2 Condition gives the video's timestep to the audio's scheduler, which is right by the same levels alone."""
    if "audio_scheduler" not in inspect.signature(diffusers.LTX2ConditionPipeline.__init__).parameters:
        pytest.skip("this diffusers copies the video's scheduler")
    pipe = build("LTX2ConditionPipeline", built_in("LTX2ConditionPipeline"))
    pipe.scheduler = EtaFlowMatchScheduler.from_config(pipe.scheduler.config)
    pipe.audio_scheduler = EtaFlowMatchScheduler.from_config(pipe.scheduler.config, shift_terminal=0.3)
    with pytest.raises(ValueError, match="`timestep` must be one of"):
        pipe(**arguments(pipe), num_inference_steps=3)


def test_signature_that_pipelines_inspect():
    parameters = inspect.signature(EtaFlowMatchScheduler.set_timesteps).parameters
    theirs = inspect.signature(FlowMatchEulerDiscreteScheduler.set_timesteps).parameters
    assert [*parameters] == [*theirs]
    ours, theirs = (
        [*inspect.signature(cls.step).parameters] for cls in (EtaFlowMatchScheduler, FlowMatchEulerDiscreteScheduler)
    )
    assert ours == [*theirs, "eta", "variance_noise"]
    ours, theirs = (
        [*inspect.signature(cls).parameters] for cls in (EtaFlowMatchScheduler, FlowMatchEulerDiscreteScheduler)
    )
    assert ours == [*theirs, "eta", "solver_order", "fitted_tables", "use_fitted_sigmas"]
