"""What people give to EtaFlowMatchScheduler and write into it: it takes effect, or is an error that names it."""

import math

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    FlowMatchLCMScheduler,
    SASolverScheduler,
    UniPCMultistepScheduler,
)
from test_flow_match import FLUX, randn, scheduler_of

from ddim_scheduler import EtaDDIMScheduler, EtaFlowMatchInverseScheduler, EtaFlowMatchScheduler

SCHEDULERS = [EtaFlowMatchScheduler, EtaFlowMatchInverseScheduler]

# ------------------------------------------------------------------------------------------------ attributes and errors


def test_written_levels_reach_the_next_step():
    scheduler = scheduler_of(4)
    x, u = randn(1, 2), randn(1, 2, seed=1)
    scheduler.sigmas[2] = 0.4
    expected = x + (0.4 - scheduler.sigmas[1].double()) * u
    assert (scheduler.step(u, scheduler.timesteps[1], x)[0] - expected).abs().max() < 1e-7
    scheduler.sigmas = torch.tensor([0.9, 0.3, 0.0])
    assert torch.equal(scheduler.timesteps, torch.tensor([0.9, 0.3]) * 1000)
    assert scheduler.num_inference_steps == 2
    scheduler.timesteps = torch.tensor([800.0, 600.0, 200.0])
    assert torch.equal(scheduler.sigmas, torch.tensor([0.8, 0.6, 0.2, 0.0]))
    scheduler.timesteps[0] = 1000.0
    assert (scheduler.step(u, 1000.0, x)[0] - (x - 0.2 * u)).abs().max() < 1e-7
    for bad in ([0.5, 0.6, 0.1, 0.0], [0.8, math.nan, 0.1, 0.0], [1.2, 0.5, 0.1, 0.0], [0.9, 0.5, 0.1, 0.2]):
        with pytest.raises(ValueError, match="`sigmas`"):
            scheduler.sigmas = torch.tensor(bad)
    with pytest.raises(ValueError, match="`num_inference_steps`"):
        scheduler.num_inference_steps = 7
    scheduler.register_to_config(shift=5.0)
    scheduler.set_timesteps(3)
    assert torch.equal(scheduler.sigmas, scheduler_of(3, shift=5.0).sigmas)
    with pytest.raises(ValueError, match="`shift`"):
        scheduler.register_to_config(shift=0.0)
    scheduler.config.eta = 1.0
    assert scheduler.transition(u, scheduler.timesteps[0], x).std > 0


@pytest.mark.parametrize(
    ("config", "call", "name"),
    [
        ({"num_train_timesteps": 1}, {"num_inference_steps": 4}, "strictly decreasing"),
        ({"shift_terminal": 0.1}, {"num_inference_steps": 1}, "finite"),
        (FLUX, {"num_inference_steps": 4}, "`mu`"),
        ({}, {}, "`num_inference_steps`"),
        ({}, {"num_inference_steps": 0}, "`num_inference_steps`"),
        ({}, {"num_inference_steps": 2, "sigmas": [1.0]}, "`sigmas`"),
        ({}, {"sigmas": [0.2, 0.8]}, "`sigmas`"),
        ({}, {"sigmas": [0.8, 0.8]}, "`sigmas`"),
        ({}, {"sigmas": [0.8, math.nan]}, "`sigmas`"),
        ({}, {"sigmas": [1.8, 0.5]}, "`sigmas`"),
        ({}, {"sigmas": [0.8, 0.5], "timesteps": [500.0, 800.0]}, "`timesteps`"),
        ({"use_exponential_sigmas": True}, {"sigmas": [1.0, 0.0]}, "`sigmas`"),
        (FLUX, {"num_inference_steps": 4, "mu": 1000.0}, r"`mu` 1000\.0"),
        (FLUX, {"num_inference_steps": 4, "mu": math.nan}, "`mu`"),
    ],
)
def test_grids_that_are_refused_change_nothing(config, call, name):
    scheduler = EtaFlowMatchScheduler(**config)
    before = scheduler.timesteps.clone()
    with pytest.raises(ValueError, match=name):
        scheduler.set_timesteps(**call)
    assert torch.equal(scheduler.timesteps, before)
    with pytest.raises(ValueError, match="`set_timesteps` must be called"):
        scheduler.step(randn(1, 2), before[0], randn(1, 2))


def test_steps_that_are_refused():
    scheduler, t = scheduler_of(4), torch.tensor(1000.0)
    x, u = randn(2, 3, 4), randn(2, 3, 4)
    for error, name, arguments in (
        (ValueError, "eta", {"eta": 1.5}),
        (TypeError, "eta", {"eta": "1"}),
        (ValueError, "eta", {"eta": torch.tensor([0.5, 2.0])}),
        (ValueError, "s_churn", {"s_churn": 0.1}),
        (ValueError, "variance_noise", {"eta": 1.0, "variance_noise": x[:1]}),
        (TypeError, "generator", {"generator": 0}),
        (ValueError, "per_token_timesteps", {"per_token_timesteps": torch.ones(2, 5)}),
        (ValueError, "per_token_timesteps", {"per_token_timesteps": torch.full((2, 3), 1001.0)}),
        (TypeError, "per_token_timesteps", {"per_token_timesteps": [1000.0]}),
        (ValueError, "per_token_timesteps", {"per_token_timesteps": torch.full((2, 3), math.nan)}),
    ):
        with pytest.raises(error, match=f"`{name}"):
            scheduler.step(u, t, x, **arguments)
    for return_dict in (True, False):
        with pytest.raises(ValueError, match="`model_output`"):
            scheduler.step(u[:1], t, x, return_dict=return_dict)
        with pytest.raises(TypeError, match="`sample`"):
            scheduler.step(u, t, x.long(), return_dict=return_dict)
    # the user's own terminal 0: the step from there does nothing
    scheduler.set_timesteps(sigmas=[1.0, 0.5, 0.0])
    mean, std, _ = scheduler.transition(u, scheduler.timesteps[-1], x, 1.0)
    assert torch.equal(mean, x)
    assert std == 0


@pytest.mark.parametrize("cls", SCHEDULERS)
@pytest.mark.parametrize("given", ["int", "bfloat16", "tolist", "numpy"])
def test_written_grids_of_any_kind_can_be_stepped(cls, given):
    """diffusers refuses a step by the elements of what it took."""
    levels, names = [1.0, 0.5, 0.0], [1000.0, 500.0]
    if cls is EtaFlowMatchInverseScheduler:
        levels, names = levels[::-1], names[::-1]
    x = randn(1, 2)
    for name, values in (("timesteps", names), ("sigmas", [round(v) for v in levels if v != 0.5])):
        scheduler = scheduler_of(3, cls)
        setattr(scheduler, name, getattr(torch.tensor(values), given)())
        assert scheduler.timesteps.is_floating_point()
        for t in scheduler.timesteps:
            assert scheduler.step(x, t, x, return_dict=False)[0].isfinite().all()
    for bad in (torch.tensor(1.0), torch.ones(2, 1), "1", None):
        for name in ("sigmas", "timesteps"):
            with pytest.raises(TypeError, match=f"`{name}` must be a tensor"):
                setattr(scheduler, name, bad)


def test_level_that_is_written_into_the_config_as_an_attribute():
    """As Cosmos2's `sigma_max`, which diffusers asks the config for as an attribute."""
    scheduler = EtaFlowMatchScheduler(use_karras_sigmas=True)
    scheduler.config.sigma_max = 80.0
    scheduler.set_timesteps(5)
    assert scheduler.sigmas[0] == 80
    with pytest.raises(TypeError, match="`sigma_max`"):
        scheduler.register_to_config(sigma_max="80")


def test_shift_that_is_set():
    scheduler, theirs = EtaFlowMatchScheduler(), FlowMatchEulerDiscreteScheduler()
    for each, shift in ((scheduler, np.float32(3)), (theirs, 3.0)):
        each.set_shift(shift)
        each.set_timesteps(4)
    assert torch.equal(scheduler.sigmas, theirs.sigmas)
    for bad in (0, -1.0, math.nan, "3", None, True):
        with pytest.raises((ValueError, TypeError), match="`shift`"):
            scheduler.set_shift(bad)
    assert scheduler.shift == 3


@pytest.mark.parametrize("cls", SCHEDULERS)
def test_timesteps_of_the_training(cls):
    """As many as one likes for one image, and 4,096 of them; integers, of which the built-in misses 10 of 1000."""
    scheduler, theirs = cls(), FlowMatchEulerDiscreteScheduler()
    image, noise = randn(1, 2, 2), randn(1, 2, 2, seed=1)
    some = torch.tensor([1000.0, 3.0, 500.0])
    found = scheduler.scale_noise(image, some, noise)
    assert found.shape == (3, 2, 2)
    assert (found - theirs.scale_noise(image, some, noise)).abs().max() < 1e-6
    assert torch.equal(scheduler.scale_noise(image, some.long(), noise), found)
    many = torch.randint(1, 1001, (4096,), generator=torch.Generator().manual_seed(0))
    levels, zero, one = many[:, None, None] / 1000, torch.zeros(4096, 1, 1), torch.ones(1, 1, 1)
    for timesteps in (many, many.int(), many.double(), many.float() + 2e-4):
        assert (scheduler.add_noise(zero, one, timesteps) - levels).abs().max() < 1e-6
    for bad in (many.half(), many % 2 == 0, many.float() + 0.5, torch.tensor([5.0, math.nan]), torch.tensor([0])):
        with pytest.raises(ValueError, match="`timestep`"):
            scheduler.add_noise(zero, one, bad)
    for of_image, of_noise, message in (
        (zero[:2], randn(3, 1, 1), "`noise` of shape"),
        (zero[:2], randn(2, 1, 1), "3 `timesteps` do not go"),
    ):
        with pytest.raises(ValueError, match=message):
            scheduler.scale_noise(of_image, some, of_noise)
    with pytest.raises(ValueError, match="`noise` of shape"):
        scheduler.get_velocity(randn(2, 3), randn(2, 2))


@pytest.mark.parametrize("cls", SCHEDULERS)
def test_samples_of_any_shape(cls):
    scheduler = scheduler_of(4, cls)
    t, eta = scheduler.timesteps[1], {"eta": 0.5} if cls is EtaFlowMatchScheduler else {}
    for shape in ((), (3,), (0, 2), (2, 0), (2, 3, 4), (1, 2, 3, 4, 5)):
        x = torch.ones(shape)
        for timestep in (t, t.expand(x.shape[:1]).clone()):
            for return_dict in (True, False):
                settings = {"generator": torch.Generator(), "return_dict": return_dict} | eta
                assert scheduler.step(x, timestep, x, **settings)[0].shape == shape


# ---------------------------------------------------------------------------------------------------------- the configs

SOLVER = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
FLOW_SCHEDULERS = [
    FlowMatchEulerDiscreteScheduler(**FLUX),
    FlowMatchHeunDiscreteScheduler(shift=3.0),
    FlowMatchLCMScheduler(shift=3.0, shift_terminal=0.1, scale_factors=[1.0, 2.0]),
    UniPCMultistepScheduler(**SOLVER),
    DPMSolverMultistepScheduler(**SOLVER, solver_order=3),
    DEISMultistepScheduler(**SOLVER),
    SASolverScheduler(**SOLVER),
]


@pytest.mark.parametrize("theirs", FLOW_SCHEDULERS, ids=lambda scheduler: type(scheduler).__name__)
def test_configs_of_flow_schedulers_go_there_and_back(theirs, tmp_path):
    keys = theirs.config.keys() - {"_use_default_values", "_class_name", "_diffusers_version"}
    keys -= {"solver_order"}  # which is left out on purpose: ours has an order of its own
    theirs.save_pretrained(tmp_path / "theirs")
    for ours in (
        EtaFlowMatchScheduler.from_config(theirs.config),
        EtaFlowMatchScheduler.from_pretrained(tmp_path / "theirs"),
    ):
        assert ours.config.shift == 3.0
        assert not getattr(ours.config, "use_flow_sigmas", False)  # what pipelines ask
        ours.register_to_config(base_shift=0.4)
        assert not getattr(ours.config, "use_flow_sigmas", False)
        ours.register_to_config(base_shift=0.5)
        ours.set_timesteps(4, mu=0.9)
        sample, output = randn(1, 2), randn(1, 2, seed=1)
        for sigma, t in zip(ours.sigmas.double().diff(), ours.timesteps, strict=True):  # of first order, as it says
            expected = sample + sigma * output
            assert (ours.step(output, t, sample).prev_sample - expected).abs().max() < 1e-12
            sample = expected
        ours.save_pretrained(tmp_path / "ours")
        for back in (type(theirs).from_config(ours.config), type(theirs).from_pretrained(tmp_path / "ours")):
            assert {key: back.config[key] for key in keys} == {key: theirs.config[key] for key in keys}
    again = EtaFlowMatchScheduler.from_config(ours.config, shift=5.0)
    assert again.config.shift == 5.0
    assert again.config.get("flow_shift", 5.0) == 5.0


def test_configs_name_the_class_that_takes_them(tmp_path):
    for theirs in FLOW_SCHEDULERS:
        with pytest.raises(ValueError, match=r"use EtaFlowMatchScheduler\.from_config"):
            EtaDDIMScheduler.from_config(theirs.config)
    for config in (DDIMScheduler().config, {"beta_schedule": "linear"}, UniPCMultistepScheduler().config):
        with pytest.raises(ValueError, match=r"use EtaDDIMScheduler\.from_config"):
            EtaFlowMatchScheduler.from_config(config)
    with pytest.raises(ValueError, match="not that of a flow model"):
        EtaFlowMatchScheduler.from_config(EDMEulerScheduler().config)
    with pytest.raises(TypeError, match="`config`"):
        EtaFlowMatchScheduler.from_config("a/path")
    DDIMScheduler().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="EtaDDIMScheduler"):
        EtaFlowMatchScheduler.from_pretrained(tmp_path)
    for name, value in (("shift", -1), ("shift", math.nan), ("eta", 2.0), ("num_train_timesteps", 0)):
        with pytest.raises(ValueError, match=f"`{name}`"):
            EtaFlowMatchScheduler(**{name: value})
    with pytest.raises(TypeError, match="`invert_sigmas`"):
        EtaFlowMatchScheduler(invert_sigmas="yes")
    assert EtaFlowMatchScheduler.from_config({}).config.shift == 1


def test_models_and_levels_that_are_no_flows_are_refused():
    """UniPC and DPM take flow sigmas with any model, and UniPC with levels of variance exploding, as Cosmos 2.5 has."""
    for theirs in (UniPCMultistepScheduler(use_flow_sigmas=True), DPMSolverMultistepScheduler(use_flow_sigmas=True)):
        for config in (theirs.config, dict(theirs.config) | {"prediction_type": "v_prediction"}):
            with pytest.raises(ValueError, match=r"`prediction_type` '(epsilon|v_prediction)' of a config"):
                EtaFlowMatchScheduler.from_config(config)
    theirs = UniPCMultistepScheduler(**SOLVER, use_karras_sigmas=True, sigma_max=200.0, sigma_min=0.01)
    with pytest.raises(ValueError, match=r"`sigma_max` 200\.0 .* leave it"):
        EtaFlowMatchScheduler.from_config(theirs.config)
    without = {key: value for key, value in theirs.config.items() if key not in ("sigma_min", "sigma_max")}
    assert EtaFlowMatchScheduler.from_config(without).config.use_karras_sigmas


def test_flow_shift_is_an_argument_as_for_the_solvers():
    for config in (UniPCMultistepScheduler(**SOLVER).config, FlowMatchEulerDiscreteScheduler().config, {}):
        scheduler = EtaFlowMatchScheduler.from_config(config, flow_shift=5.0)
        assert scheduler.config.shift == 5
        assert scheduler.config.get("flow_shift", 5) == 5


def test_subclass_that_does_not_call_our_constructor_is_told_to():
    class WithoutSuper(EtaFlowMatchScheduler):
        def __init__(self):
            pass

    with pytest.raises(RuntimeError, match=r"`WithoutSuper\.__init__` must call .* or write `sigmas`"):
        WithoutSuper().set_timesteps(3)
