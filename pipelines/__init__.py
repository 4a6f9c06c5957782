# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""Pipelines that use DDIM; installed as `ddim_scheduler.pipelines`."""
