# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""
DDIM for diffusers: `EtaDDIMScheduler`, its inverse `EtaDDIMInverseScheduler`, and `EtaDDIMPipeline`; for flow models
`EtaFlowMatchScheduler` and `EtaFlowMatchInverseScheduler`.
"""

import sys

import diffusers

from .pipelines.images import image_generators
from .pipelines.inversion import EtaDDIMInversionOutput, slerp
from .pipelines.pipeline_ddim import EtaDDIMPipeline
from .scheduling_ddim import EtaDDIMScheduler
from .scheduling_ddim_inverse import EtaDDIMInverseScheduler
from .scheduling_flow_match import EtaFlowMatchScheduler
from .scheduling_flow_match_inverse import EtaFlowMatchInverseScheduler

__all__ = [
    "EtaDDIMInverseScheduler",
    "EtaDDIMInversionOutput",
    "EtaDDIMPipeline",
    "EtaDDIMScheduler",
    "EtaFlowMatchInverseScheduler",
    "EtaFlowMatchScheduler",
    "image_generators",
    "slerp",
]
__version__ = "0.2.0"

# diffusers finds the classes of a model_index.json in this module; it tells schedulers by this name in it.
SchedulerMixin = diffusers.SchedulerMixin


def _register_with_diffusers():
    """
    Lets every `from_pretrained` of diffusers load what was saved with these classes, once this package is imported.

    diffusers records a component by its class's `__module__`, here this package's name, looks a pipeline's class up in
    `diffusers`, and takes a library that it does not know from a Hub repository only if it finds it in
    `diffusers.pipelines`. None of that is a public interface, so the tests run it on each supported version.
    """
    schedulers = EtaDDIMScheduler, EtaDDIMInverseScheduler, EtaFlowMatchScheduler, EtaFlowMatchInverseScheduler
    for cls in (*schedulers, EtaDDIMPipeline):
        setattr(diffusers, cls.__name__, cls)
    setattr(diffusers.pipelines, __name__, sys.modules[__name__])


_register_with_diffusers()
