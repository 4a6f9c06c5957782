import logging
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before any import that reads it

import diffusers
import pytest
import torch
from diffusers import UNet2DModel

from ddim_scheduler import EtaDDIMPipeline, EtaDDIMScheduler

from training import write_images

diffusers.logging.set_verbosity_error()


def pytest_addoption(parser):
    parser.addoption("--figures", action="store_true", help="print what the tests measured, over their parameters")
    parser.addoption(
        "--screenshots", metavar="FOLDER", help="write pictures of the page there, by `-k digits_in_a_browser`"
    )


def pytest_terminal_summary(terminalreporter, config):
    if not config.getoption("--figures"):
        return
    figures = {}
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            test, _, parameters = report.nodeid.partition("[")
            group = parameters.rstrip("]") if name.endswith(" each") else ""
            figures.setdefault((test.split("::")[-1], name.removesuffix(" each"), group), []).append(value)
    terminalreporter.section("figures")
    for (test, name, group), values in sorted(figures.items()):
        terminalreporter.line(f"{test}{f'[{group}]' if group else ''}: {name} {min(values):.3g} to {max(values):.3g}")


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(autouse=True)
def log_tells_all():
    """Whatever a benchmark or script that ran before in this process has silenced."""
    logging.getLogger("ddim_scheduler").setLevel(logging.NOTSET)


@pytest.fixture(scope="session")
def unet():
    """A UNet of 16x16 gray images with random weights."""
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=16,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    ).eval()


@pytest.fixture(scope="session")
def small_unet():
    """Builds a UNet of one level for 8x8 images, given its channels, with random weights."""

    def build(**arguments):
        torch.manual_seed(0)
        return UNet2DModel(
            sample_size=8,
            layers_per_block=1,
            block_out_channels=(8,),
            norm_num_groups=4,
            down_block_types=("DownBlock2D",),
            up_block_types=("UpBlock2D",),
            **arguments,
        )

    return build


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory):
    """The images that the training is tried on; nothing writes there."""
    folder = tmp_path_factory.mktemp("images")
    write_images(folder)
    return folder


@pytest.fixture
def pipeline(unet):
    pipeline = EtaDDIMPipeline(unet=unet, scheduler=EtaDDIMScheduler())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
