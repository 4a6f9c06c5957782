# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""
A page to look at a model: samples, samplers side by side, interpolation, inversion and editing.

`page.py` is the page, and the one file that knows Gradio; the others hold plain functions behind it. Each request has a
scheduler of its own, all of them share the network.
"""
