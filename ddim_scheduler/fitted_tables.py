# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""
Fitted samplers in a scheduler's config: for a number of steps N, a grid and the weights of the predictions before each
of its steps (`multistep.py`). `fitting.py` makes them.
"""

from typing import Any, TypedDict

import numpy as np

from .multistep import MAX_ORDER
from .validation import check_integer, check_number


class FittedTable(TypedDict):
    """A sampler of N steps for one model. It is JSON-able."""

    prediction_type: str  # of the model
    timesteps: list[Any]  # N
    sigmas: list[float]  # N + 1 levels of the path, those of the timesteps and that of the end
    weights: list[list[float]]  # N times up to two: of the prediction before, and of the one before that


def check_tables(tables: Any) -> dict[str, FittedTable] | None:
    """The form of the config's `fitted_tables`: from numbers of steps, as strings, to tables."""
    name = "fitted_tables"
    if tables is None:
        return None
    if not isinstance(tables, dict):
        raise TypeError(f"`{name}` must be a dictionary from numbers of steps to tables, but is {tables!r:.80}.")
    for key, table in tables.items():
        if not isinstance(key, str):
            raise TypeError(f"`{name}` must have numbers of steps as strings, as in JSON, for keys, but has {key!r}.")
        if not isinstance(table, dict) or set(table) != set(FittedTable.__annotations__):
            raise ValueError(
                f"`{name}[{key!r}]` must have the keys {[*FittedTable.__annotations__]}, but is {table!r:.80}."
            )
        for column in ("timesteps", "sigmas"):
            _check_numbers(f"{name}[{key!r}][{column!r}]", table[column])
        rows = table["weights"]
        for row in rows if isinstance(rows, list) else [rows]:
            _check_numbers(f"{name}[{key!r}]['weights']", row)
        lengths = [len(table[column]) for column in ("timesteps", "sigmas", "weights")]
        N = lengths[0]
        if N == 0 or str(N) != key or lengths != [N, N + 1, N]:
            raise ValueError(f"`{name}[{key!r}]` must hold {key} timesteps and weights and one more sigma: {lengths}.")
        for i, weights in enumerate(table["weights"]):
            if len(weights) > min(i, MAX_ORDER - 1):
                raise ValueError(
                    f"`{name}[{key!r}]` must have at most {min(i, MAX_ORDER - 1)} weights at step {i}: {weights!r}."
                )
    return tables


def _check_numbers(name: str, numbers: Any):
    if not isinstance(numbers, list):
        raise TypeError(f"`{name}` must be made of lists, but is {numbers!r:.80}.")
    for number in numbers:
        if type(number) not in (int, float):  # one of NumPy's could not be saved
            raise TypeError(f"`{name}` must hold Python's numbers, but holds {number!r:.80}.")
        check_number(name, number)


def check_model(tables: dict[str, FittedTable] | None, prediction_type: str, sigmas: np.ndarray):
    """
    Refuses tables of another model.

    Args:
        tables: The config's.
        prediction_type: The config's.
        sigmas: Levels of the timesteps 0..T-1, and last of the end.
    """
    for key, table in (tables or {}).items():
        places = [check_integer("timesteps", t, 0, len(sigmas) - 2) for t in table["timesteps"]] + [-1]
        if table["prediction_type"] != prediction_type:
            reason = f"`prediction_type` {table['prediction_type']!r}, and this is {prediction_type!r}"
        elif not np.allclose(sigmas[places], table["sigmas"], rtol=0, atol=1e-5):
            reason = "another noise schedule"
        else:
            continue
        raise ValueError(
            f"`fitted_tables[{key!r}]` was fitted to a model with {reason}: fit this one by `fit_sampler`, or "
            "go without by `fitted_tables=None`."
        )


def fitted_table(
    tables: dict[str, FittedTable] | None, num_inference_steps: int, asked_by: str = "timestep_spacing='fitted'"
) -> FittedTable:
    """The table for N steps; raises ValueError with the numbers that there are, if there is none."""
    table = (tables or {}).get(str(num_inference_steps))
    if table is None:
        counts = ", ".join(sorted(tables, key=int)) if tables else "no number: call `fit_sampler` first"
        raise ValueError(
            f"`{asked_by}` has no sampler for `num_inference_steps` {num_inference_steps}, but for {counts}. Without "
            "it every number is taken."
        )
    return table
