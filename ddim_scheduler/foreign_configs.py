# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""What the config of another scheduler, or one of an older diffusers, means for those of this package."""

import inspect
from typing import Any

import diffusers
from diffusers.configuration_utils import FrozenDict
from diffusers.utils import logging

logger = logging.get_logger(__name__)

FLOW = ("flow_prediction",)  # prediction types

# How a model was trained. diffusers lets the class that reads a config put its own defaults in the place of those that
# the class which wrote it had; these belong to the model and stay.
MODEL_KEYS = (
    *("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "snr_shift_scale"),
    *("prediction_type", "clip_sample", "rescale_betas_zero_snr"),
)


def check_config(config: Any):
    """Refuses what is no content of a `scheduler_config.json`: diffusers would take a string for a repository."""
    if not isinstance(config, dict):
        raise TypeError(f"`config` must be a dictionary of scheduler arguments, but is {config!r}.")


def adapt_config(config: Any, cls: type, given: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """
    A config as `cls.from_config` should read it, and the names in it that were defaults of the class which wrote it.

    Args:
        config (`dict`): A scheduler's `config`, or the content of a `scheduler_config.json`.
        cls (`type`): The class of this package that reads it.
        given (`dict`): Arguments of the constructor that replace those of the config.

    Raises:
        TypeError: If the config is not a dictionary.
        ValueError: If the config is that of a scheduler without betas (EDM, IPNDM...) or of flow matching.
    """
    check_config(config)
    is_of_object, config = isinstance(config, FrozenDict), dict(config)
    defaults = config.pop("_use_default_values", [])
    name = str(config.get("_class_name", "scheduler"))
    if is_of_flow_matching(config):
        raise ValueError(f"`config` of a {name} is that of a flow model: use EtaFlowMatchScheduler.from_config.")
    writer = cls if name == cls.__name__ else getattr(diffusers, name, None)
    parameters: dict[str, Any] | None = None  # of the constructor of the class that wrote it, where that is known
    if isinstance(writer, type) and issubclass(writer, diffusers.SchedulerMixin):
        parameters = {key: parameter.default for key, parameter in inspect.signature(writer).parameters.items()}
    elif writer is not None or is_of_object:
        # a class whose optional package is missing is a stand-in that takes anything; an object's config has no class
        # name before it was saved: both hold every argument
        parameters = config
    names = parameters if parameters is not None else config.keys() - inspect.signature(cls).parameters.keys()
    has_betas = {"beta_start", "beta_schedule"} & {*names, *config} or config.get("trained_betas") is not None
    if names and not has_betas:
        raise ValueError(f"`config` of a {name} cannot be used: it has no beta schedule (keys: {[*config]}).")

    if "clip_sample" not in {**config, **given}:
        if parameters is not None:
            config["clip_sample"] = parameters.get("clip_sample", False)
            reason = f"as {name} does by default" if config["clip_sample"] else f"which a {name} never is"
        else:
            config["clip_sample"], reason = True, "as DDIMScheduler does by default"
        state = "is" if config["clip_sample"] else "is not"
        logger.info(f"`config` has no `clip_sample`: x_0 {state} clipped, {reason}. `clip_sample=` decides otherwise.")
    if "fitted_tables" not in config and (is_of_object or "_class_name" in config):
        config.pop("solver_order", None)  # of DPM-Solver or UniPC, which have one that is not asked for
    for source in (given, config):  # of diffusers 0.4 to 0.9
        if "predict_epsilon" in source and "prediction_type" not in {**source, **given}:
            config["prediction_type"] = "epsilon" if source["predict_epsilon"] else "sample"
            break
    config.pop("predict_epsilon", None)
    return config, defaults


def is_of_flow_matching(config: dict[str, Any]) -> bool:
    """Whether a config is that of a flow matching scheduler, or of another one that is set to flow matching."""
    is_named = "FlowMatch" in str(config.get("_class_name", ""))
    has_levels = "shift" in config and not {"beta_start", "beta_schedule", "trained_betas"} & config.keys()
    return is_named or has_levels or bool(config.get("use_flow_sigmas")) or config.get("prediction_type") in FLOW


def adapt_flow_config(config: Any, cls: type) -> dict[str, Any]:
    """
    A config as `cls.from_config`, of a flow matching scheduler of this package, should read it.

    Raises:
        TypeError: If the config is not a dictionary.
        ValueError: If the config is that of a scheduler without flow matching, of a model that returns no velocity, or
            of levels that are no flow's.
    """
    check_config(config)
    foreign = {key for key in config if not key.startswith("_")} - inspect.signature(cls).parameters.keys()
    if not is_of_flow_matching(config) and foreign:
        name, betas = config.get("_class_name", "scheduler"), {"beta_start", "beta_schedule"} & config.keys()
        hint = ": use EtaDDIMScheduler.from_config" if betas else f" (keys: {[*config]})"
        raise ValueError(f"`config` of a {name} is not that of a flow model{hint}.")
    if config.get("use_flow_sigmas"):  # of UniPC or DPM
        if config.get("prediction_type", *FLOW) not in FLOW:
            raise ValueError(
                f"`prediction_type` {config['prediction_type']!r} of a config with `use_flow_sigmas` must be one of "
                f"{FLOW}: the model of a flow matching scheduler returns the velocity."
            )
        if (config.get("sigma_max") or 0) > 1:
            raise ValueError(
                f"`sigma_max` {config['sigma_max']!r} of a config with `use_flow_sigmas` is a level of sigma / (1 - "
                "sigma), which a flow matching scheduler has not: leave it and `sigma_min` out."
            )
    if "fitted_tables" not in config and (isinstance(config, FrozenDict) or "_class_name" in config):
        config = {key: value for key, value in config.items() if key != "solver_order"}  # of UniPC and DPM, as above
    if "flow_shift" in config:  # of UniPC and DPM
        return {**config, "shift": config["flow_shift"]}
    return config
