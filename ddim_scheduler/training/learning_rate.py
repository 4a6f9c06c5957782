# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""The learning rate: how long it warms up, and how a resumed run goes on with another one."""

from torch.optim.lr_scheduler import LambdaLR


def warmup_steps(lr_warmup_steps: int | float, max_train_steps: int) -> int:
    """
    Optimizer steps of warm-up.

    Args:
        lr_warmup_steps: Their number, or below 1 their share of all steps.
        max_train_steps: All steps of the run.
    """
    return lr_warmup_steps if isinstance(lr_warmup_steps, int) else round(lr_warmup_steps * max_train_steps)


def follow_schedule(lr_scheduler: LambdaLR, learning_rate: float):
    """
    Goes on along the schedule of this run, at its rate, where a checkpoint has put that of an earlier one. The same
    schedule and rate give the same numbers, to the bit.

    Args:
        lr_scheduler: As the checkpoint left it; its functions are those of this run.
        learning_rate: The peak.
    """
    lr_scheduler.base_lrs = [learning_rate for _ in lr_scheduler.base_lrs]
    rates: list[float] = [learning_rate * schedule(lr_scheduler.last_epoch) for schedule in lr_scheduler.lr_lambdas]
    for group, rate in zip(lr_scheduler.optimizer.param_groups, rates, strict=True):
        group["initial_lr"], group["lr"] = learning_rate, rate
    lr_scheduler._last_lr = [*rates]
