"""
The law of diffusers' `test_compatibles`: a config that goes through a compatible class and back is the same, the list
of arguments that nobody gave included.
"""

import inspect

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler

from ddim_scheduler import EtaDDIMInverseScheduler, EtaDDIMScheduler

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # numpy's, in diffusers' solvers


def compatible_schedulers():
    """Those with betas that name DDIMScheduler among the classes that read their config."""
    classes = {name: getattr(diffusers, name) for name in dir(diffusers) if name.endswith("Scheduler")}
    return [
        name
        for name, c in classes.items()
        if c.__module__.startswith("diffusers.schedulers")
        and "DDIMScheduler" in getattr(c, "_compatibles", [])
        and "beta_start" in inspect.signature(c).parameters
    ]


# Each scheduler takes the entries that it knows. "usual" is what the tests of diffusers' schedulers give.
CONFIGS = {
    "default": {},
    "usual": {
        "num_train_timesteps": 110,
        "beta_start": 0.0001,
        "beta_end": 0.02,
        "beta_schedule": "linear",
        "clip_sample": True,
        "variance_type": "fixed_small",
        "solver_order": 2,
        "algorithm_type": "dpmsolver++",
        "solver_type": "midpoint",
        "lower_order_final": False,
        "euler_at_final": False,
        "lambda_min_clipped": -float("inf"),
        "final_sigmas_type": "sigma_min",
        "prediction_type": "epsilon",
        "thresholding": False,
        "sample_max_value": 1.0,
    },
    "latent": {
        "num_train_timesteps": 100,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "clip_sample": False,
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
        "prediction_type": "v_prediction",
        "timestep_spacing": "trailing",
        "rescale_betas_zero_snr": True,
        "use_karras_sigmas": True,
    },
    "betas": {
        "num_train_timesteps": 100,
        "trained_betas": torch.linspace(0.001, 0.02, 100).tolist(),
        "clip_sample": True,
        "clip_sample_range": 3.0,
        "timestep_spacing": "linspace",
        "variance_type": "learned_range",
        "snr_shift_scale": 1.0,
    },
    "defaults that were given": {"num_train_timesteps": 1000, "prediction_type": "epsilon", "steps_offset": 0},
}
SOLVER_TYPES = {"UniPCMultistepScheduler": "bh2", "DEISMultistepScheduler": "logrho"}
ALGORITHMS = {"SASolverScheduler": "data_prediction", "DEISMultistepScheduler": "deis"}


def config_for(scheduler_class, config):
    config = dict(config)
    name = scheduler_class.__name__
    if "solver_type" in config:
        config["solver_type"] = SOLVER_TYPES.get(name, config["solver_type"])
        config["algorithm_type"] = ALGORITHMS.get(name, config["algorithm_type"])
    if "variance_type" in config and name.startswith("DPMSolver"):
        config["variance_type"] = None
    parameters = inspect.signature(scheduler_class).parameters
    return {key: value for key, value in config.items() if key in parameters}


def assert_same_config(new, old, scheduler_class):
    """As diffusers' test has it: `new` holds what `old` holds, and else only names that the class does not have."""
    new, old = dict(new), dict(old)
    if scheduler_class not in (EtaDDIMScheduler, EtaDDIMInverseScheduler):
        for config in (new, old):  # the order of another solver is left out on purpose
            config.pop("solver_order", None)
            config["_use_default_values"] = sorted({*config["_use_default_values"]} - {"solver_order"})
    assert {key: value for key, value in new.items() if key in old} == old
    assert not (new.keys() - old.keys()) & inspect.signature(scheduler_class).parameters.keys()


def through(scheduler, other_class):
    """The scheduler made by `other_class` from the config, and the one made from that again."""
    other = other_class.from_config(scheduler.config)
    return other, type(scheduler).from_config(other.config)


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("name", compatible_schedulers())
def test_from_diffusers_and_back(name, config):
    scheduler_class = getattr(diffusers, name)
    scheduler = scheduler_class(**config_for(scheduler_class, CONFIGS[config]))
    ours, back = through(scheduler, EtaDDIMScheduler)
    assert_same_config(back.config, scheduler.config, scheduler_class)

    # nothing is lost on the way: whatever counts as given or not, the model is that of the other scheduler
    assert ours.config.prediction_type == scheduler.config.prediction_type
    if not ours.config.rescale_betas_zero_snr:  # some apply that otherwise
        assert (ours.alphas_cumprod - scheduler.alphas_cumprod).abs().max() < 1e-5
    for again in (EtaDDIMScheduler.from_config(ours.config), EtaDDIMScheduler.from_config(back.config)):
        assert_same_config(again.config, ours.config, EtaDDIMScheduler)


OURS = {name: CONFIGS[name] for name in ("default", "latent", "betas")} | {
    "of ours alone": {
        "num_train_timesteps": 90,
        "eta": 0.5,
        "variance_type": "sigma_hat",
        "use_clipped_model_output": True,
        "clip_sample": True,
    },
}


@pytest.mark.parametrize("ours_class", [EtaDDIMScheduler, EtaDDIMInverseScheduler])
@pytest.mark.parametrize("config", OURS)
@pytest.mark.parametrize("name", compatible_schedulers())
def test_from_ours_and_back(name, config, ours_class):
    ours = ours_class(**config_for(ours_class, OURS[config]))
    _, back = through(ours, getattr(diffusers, name))
    assert_same_config(back.config, ours.config, ours_class)


def test_compatibles():
    assert {*DDIMScheduler().compatibles} <= {*EtaDDIMScheduler().compatibles}
