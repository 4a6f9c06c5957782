"""The release: what `python -m build` makes holds the whole package and works where the clone is not."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import ddim_scheduler

ROOT = Path(__file__).parents[1]
USE = """
import json
import ddim_scheduler.checkpoints, ddim_scheduler.evaluation, ddim_scheduler.generation, ddim_scheduler.training
from diffusers import UNet2DModel
from ddim_scheduler import EtaDDIMPipeline, EtaDDIMScheduler

unet = UNet2DModel(sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(8,),
                   norm_num_groups=4, down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",))
EtaDDIMPipeline(unet, EtaDDIMScheduler()).save_pretrained("saved")
images = EtaDDIMPipeline.from_pretrained("saved")(num_inference_steps=2, seed=0, output_type="np").images
print(json.dumps({"file": ddim_scheduler.__file__, "shape": images.shape}))
"""


def run(*command: str, cwd: Path, **env: str) -> str:
    result = subprocess.run(command, cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def distributions(tmp_path_factory):
    """The folder with the source distribution, and the wheel that was built from it."""
    clone, folder = tmp_path_factory.mktemp("clone"), tmp_path_factory.mktemp("dist")
    for path in ROOT.iterdir():  # a build writes beside the sources, where other processes may build too
        if path.name in ("ddim_scheduler", "pipelines", "tests"):
            shutil.copytree(path, clone / path.name, ignore=shutil.ignore_patterns("__pycache__"))
        elif path.is_file():
            shutil.copy(path, clone)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(clone), cwd=folder)
    return folder


def source_files() -> set[str]:
    """The package's files by their installed names."""
    house = {file.relative_to(ROOT) for file in (ROOT / "ddim_scheduler").rglob("*.py")}
    pipelines = {Path("ddim_scheduler", file.relative_to(ROOT)) for file in (ROOT / "pipelines").rglob("*.py")}
    return {file.as_posix() for file in house | pipelines} | {"ddim_scheduler/py.typed"}


def test_wheel_has_every_file_of_the_package_and_nothing_else(distributions):
    (wheel,) = distributions.glob("*.whl")
    assert wheel.name == f"ddim_scheduler-{ddim_scheduler.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == source_files()


def test_source_distribution_has_no_tests(distributions):
    (archive,) = distributions.glob("*.tar.gz")
    with tarfile.open(archive) as files:
        names = {name.partition("/")[2] for name in files.getnames()}
    assert {"README.md", "CHANGELOG.md", "LICENSE", "setup.cfg", "pyproject.toml"} <= names
    assert not [name for name in names if name.startswith("tests")]


def test_description_renders(distributions):
    archives = [str(file) for file in distributions.iterdir()]
    assert run(sys.executable, "-m", "twine", "check", "--strict", *archives, cwd=distributions).count("PASSED") == 2


def test_wheel_works_without_the_clone(distributions, tmp_path):
    (wheel,) = distributions.glob("*.whl")
    target = tmp_path / "installed"
    run(sys.executable, "-m", "pip", "install", "--no-deps", "--target", str(target), str(wheel), cwd=tmp_path)
    found = json.loads(run(sys.executable, "-c", USE, cwd=tmp_path, PYTHONPATH=str(target)).splitlines()[-1])
    assert Path(found["file"]).is_relative_to(target)
    assert found["shape"] == [1, 8, 8, 1]
