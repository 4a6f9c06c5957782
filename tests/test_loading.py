"""Saving and loading of local folders: every load in a process that did not save, with the package and without it."""

import ast
import inspect
import json
import os
import re
import shutil
import sys
from pathlib import Path

import diffusers
import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    LDMPipeline,
    SchedulerMixin,
    VQModel,
)
from packaging.version import Version

from ddim_scheduler import EtaDDIMPipeline, EtaDDIMScheduler

import fresh

pytestmark = [
    pytest.mark.xdist_group("loading"),  # one worker, so that the processes are started once
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # numpy's, in diffusers' solvers
]

TOLERANCE = 1e-5  # not bit for bit: memory alignment changes torch's kernels
SETTINGS = {"timestep_spacing": "trailing", "eta": 0.25, "beta_schedule": "sigmoid"}

# newer diffusers names the path in the index, older ones fail at what they find there, which holds no safetensors
SHARD_OUTSIDE = (
    "path separator" if Version(diffusers.__version__) >= Version("0.42") else "OSError: Unable to load weights"
)

# how a folder is saved -> how it is loaded
SAVED = {
    "plain": ({}, {}),
    "variant": ({"variant": "fp16"}, {"variant": "fp16"}),
    "pickle": ({"safe_serialization": False}, {}),
    "sharded": ({"max_shard_size": "40KB"}, {}),
}


class Derived(EtaDDIMScheduler):
    pass


class DerivedFromTheirs(DDIMScheduler):
    pass


def sample(pipe, **settings):
    pipe.set_progress_bar_config(disable=True)
    return pipe(num_inference_steps=3, output_type="pt", **settings).images.flatten().numpy()


def assert_same(images, expected):
    assert np.abs(np.array(images) - expected).max() < TOLERANCE


# ---------------------------------------------------------------------------------------------------- what is loaded


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def root(tmp_path_factory, unet):
    """Folders of our pipeline saved in every way, and of a scheduler that the built-in one has an equal of."""
    root = tmp_path_factory.mktemp("saved")
    for name, (saving, _) in SAVED.items():
        pipeline = EtaDDIMPipeline(unet=unet, scheduler=EtaDDIMScheduler(**SETTINGS))
        pipeline.save_pretrained(root / name, **saving)
    EtaDDIMScheduler().save_pretrained(root / "scheduler")
    return root


@pytest.fixture(scope="module")
def expected(unet):
    return sample(EtaDDIMPipeline(unet=unet, scheduler=EtaDDIMScheduler(**SETTINGS)), seed=1)


@pytest.fixture(scope="module")
def ddpm_root(tmp_path_factory, unet):
    """Repositories of DDPM weights: as diffusers saves one, and flat as `google/ddpm-cifar10-32` is."""
    root = tmp_path_factory.mktemp("ddpm")
    scheduler = DDPMScheduler(variance_type="fixed_large", beta_schedule="squaredcos_cap_v2")
    DDPMPipeline(unet=unet, scheduler=scheduler).save_pretrained(root / "folders")
    flat = root / "flat"
    shutil.copytree(root / "folders" / "unet", flat)
    index = {"scheduler": ["diffusers", "DDPMScheduler"], "unet": ["diffusers", "UNet2DModel"]}
    index |= {"_class_name": "DDPMPipeline", "_diffusers_version": "0.1.1"}
    config = {"num_train_timesteps": 1000, "beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"}
    config |= {"clip_sample": True, "trained_betas": None, "variance_type": "fixed_large"}
    config |= {"_class_name": "DDPMScheduler", "_diffusers_version": "0.1.1"}
    (flat / "model_index.json").write_text(json.dumps(index))
    (flat / "scheduler_config.json").write_text(json.dumps(config))
    return root


@pytest.fixture(scope="module")
def schedulers_root(tmp_path_factory):
    """A folder for every scheduler of diffusers that can be made without arguments."""
    root = tmp_path_factory.mktemp("schedulers")
    for name, scheduler_class in inspect.getmembers(diffusers, inspect.isclass):
        if not issubclass(scheduler_class, SchedulerMixin) or scheduler_class in (SchedulerMixin, EtaDDIMScheduler):
            continue
        if all(p.default is not p.empty for p in inspect.signature(scheduler_class).parameters.values()):
            scheduler_class().save_pretrained(root / name)
    return root


# ------------------------------------------------------------------------------------- one process with the package


@pytest.fixture(scope="module")
def with_package(home, root, ddpm_root, schedulers_root):
    script = """
import ddim_scheduler
from ddim_scheduler import EtaDDIMPipeline, EtaDDIMScheduler
from diffusers import DDPMPipeline, DDIMScheduler

root, ddpm_root = Path(arguments["root"]), Path(arguments["ddpm_root"])
for name, loading in arguments["saved"].items():
    for cls in (EtaDDIMPipeline, DiffusionPipeline):
        pipe = cls.from_pretrained(root / name, **loading)
        kind = f"{type(pipe) is EtaDDIMPipeline} {type(pipe.scheduler) is EtaDDIMScheduler}"
        found[f"{name} by {cls.__name__}"] = [kind, dict(pipe.scheduler.config), sample(pipe)]

pipe = DDPMPipeline.from_pretrained(str(root / "plain"))
found["DDPMPipeline"] = f"{type(pipe).__name__} {type(pipe.scheduler) is EtaDDIMScheduler}"
ours = EtaDDIMScheduler.from_pretrained(root / "plain", subfolder="scheduler")
theirs = DDIMScheduler.from_pretrained(root / "scheduler")
found["ours alone"] = dict(ours.config)
found["theirs alone"] = [type(theirs).__name__, theirs.alphas_cumprod.tolist()]

for name in ("folders", "flat"):
    pipe = EtaDDIMPipeline.from_pretrained(ddpm_root / name)
    pipe.set_progress_bar_config(disable=True)
    settings = {"num_inference_steps": 10, "generator": torch.Generator().manual_seed(0), "output_type": "pt"}
    found[f"ddpm {name}"] = [type(pipe.scheduler).__name__, pipe(**settings).images.flatten().tolist()]

for folder in sorted(Path(arguments["schedulers_root"]).iterdir()):
    try:
        found[f"from {folder.name}"] = EtaDDIMScheduler.from_pretrained(folder).alphas_cumprod.tolist()
    except ValueError as error:
        found[f"from {folder.name}"] = str(error)
"""
    saved = {name: loading for name, (_, loading) in SAVED.items()}
    return fresh.run(
        script, home, root=root, ddpm_root=ddpm_root, schedulers_root=schedulers_root, saved=saved
    )  # one process for all, since an import of diffusers takes seconds


@pytest.mark.parametrize("loader", ["EtaDDIMPipeline", "DiffusionPipeline"])
@pytest.mark.parametrize("name", SAVED)
def test_pipeline_loads_as_ours(with_package, expected, name, loader):
    kind, config, images = with_package[f"{name} by {loader}"]
    assert kind == "True True"
    assert SETTINGS.items() <= config.items()
    assert_same(images, expected)


def test_files_are_what_was_asked_for(root):
    files = {name: sorted(path.name for path in (root / name / "unet").iterdir()) for name in SAVED}
    assert files["plain"] == ["config.json", "diffusion_pytorch_model.safetensors"]
    assert files["variant"] == ["config.json", "diffusion_pytorch_model.fp16.safetensors"]
    assert files["pickle"] == ["config.json", "diffusion_pytorch_model.bin"]
    assert len(files["sharded"]) > 3
    assert json.loads((root / "plain" / "model_index.json").read_text())["scheduler"] == [
        *("ddim_scheduler", "EtaDDIMScheduler")
    ]


def test_ddpm_pipeline_keeps_our_scheduler(with_package):
    assert with_package["DDPMPipeline"] == "DDPMPipeline True"


def test_scheduler_loads_alone(with_package):
    assert SETTINGS.items() <= with_package["ours alone"].items()


def test_builtin_scheduler_loads_our_config(with_package):
    name, alphas_cumprod = with_package["theirs alone"]
    assert name == "DDIMScheduler"
    assert np.abs(np.array(alphas_cumprod) - DDIMScheduler().alphas_cumprod.numpy()).max() < 1e-6


def test_builtin_scheduler_keeps_our_settings(tmp_path):
    """It uses those that it knows, and saves the others."""
    settings = {"eta": 0.5, "beta_schedule": "scaled_linear", "timestep_spacing": "trailing", "set_alpha_to_one": False}
    ours = EtaDDIMScheduler(**settings, variance_type="sigma_hat", steps_offset=1, clip_sample=False)
    ours.save_pretrained(tmp_path / "ours")
    theirs = DDIMScheduler.from_pretrained(tmp_path / "ours")
    assert settings.items() <= theirs.config.items()
    assert (theirs.alphas_cumprod - ours.alphas_cumprod).abs().max() < 1e-6
    theirs.save_pretrained(tmp_path / "theirs")
    again = EtaDDIMScheduler.from_pretrained(tmp_path / "theirs")
    assert dict(again.config) | {"_use_default_values": None} == dict(ours.config) | {"_use_default_values": None}


@pytest.mark.parametrize("settings", [{"timestep_spacing": "quadratic"}, {"beta_schedule": "sigmoid"}])
def test_builtin_scheduler_refuses_what_it_has_not(tmp_path, settings):
    EtaDDIMScheduler(**settings).save_pretrained(tmp_path)
    with pytest.raises((ValueError, NotImplementedError), match=next(iter(settings.values()))):
        DDIMScheduler.from_pretrained(tmp_path).set_timesteps(10)


def test_builtin_pipeline_replaces_our_scheduler(root, tmp_path):
    """diffusers' DDIMPipeline does so with every scheduler; the settings can be had back."""
    EtaDDIMPipeline.from_pretrained(root / "plain", scheduler=EtaDDIMScheduler(eta=0.5)).save_pretrained(tmp_path)
    pipe = DDIMPipeline.from_pretrained(tmp_path)
    assert type(pipe.scheduler) is DDIMScheduler
    assert EtaDDIMScheduler.from_config(pipe.scheduler.config).config.eta == 0.5


@pytest.mark.parametrize(("name", "betas"), [("folders", "squaredcos_cap_v2"), ("flat", "linear")])
def test_ddpm_repository_samples_by_ddim_at_once(with_package, unet, name, betas):
    pipe = DDIMPipeline(unet=unet, scheduler=DDIMScheduler(beta_schedule=betas))
    pipe.set_progress_bar_config(disable=True)
    settings = {"num_inference_steps": 10, "generator": torch.Generator().manual_seed(0), "output_type": "np"}
    reference = torch.from_numpy(pipe(**settings).images).permute(0, 3, 1, 2).flatten().numpy()
    kind, images = with_package[f"ddpm {name}"]
    assert kind == "EtaDDIMScheduler"
    assert np.abs(np.array(images) - reference).max() < 1e-4


def test_config_of_every_builtin_scheduler_loads_or_is_refused(with_package, schedulers_root, record_property):
    names = [folder.name for folder in schedulers_root.iterdir()]
    assert len(names) > 30
    loaded, refused = [], []
    for name in names:
        result = with_package[f"from {name}"]
        if isinstance(result, str):
            refused.append(name)
            assert name in result, result
            continue
        loaded.append(name)
        theirs = getattr(diffusers, name)()
        assert hasattr(theirs, "alphas_cumprod") or name == "IPNDMScheduler"  # makes its betas in `set_timesteps`
        if hasattr(theirs, "alphas_cumprod"):
            assert np.abs(np.array(result) - theirs.alphas_cumprod.numpy()).max() < 1e-6, name
    assert {"DDPMScheduler", "DDIMScheduler", "PNDMScheduler", "EulerDiscreteScheduler"} <= set(loaded)
    assert "FlowMatchEulerDiscreteScheduler" in refused
    record_property("configs that load", len(loaded))
    record_property("configs that are refused", len(refused))


# -------------------------------------------------------------------- without the package, and back, and once again

WITHOUT = {"custom_pipeline": "pipeline", "trust_remote_code": True}


@pytest.fixture(scope="module")
def newer(home, root, request, tmp_path_factory):
    """What another version of this package saves, whose images are brighter by 1/4 and whose classes have a version."""
    package = tmp_path_factory.mktemp("newer") / "ddim_scheduler"
    shutil.copytree(request.config.rootpath / "ddim_scheduler", package)
    shutil.copytree(request.config.rootpath / "pipelines", package / "pipelines")
    images, sharing = package / "pipelines" / "images.py", package / "sharing.py"
    assert "latents / 2 + 0.5)" in images.read_text()
    images.write_text(images.read_text().replace("latents / 2 + 0.5)", "latents / 2 + 0.75)"))
    sharing.write_text(sharing.read_text() + "\n\nShared.version = 'newer'\n")
    script = """
sys.path.insert(0, arguments["path"])
from ddim_scheduler import EtaDDIMPipeline
pipe = EtaDDIMPipeline.from_pretrained(Path(arguments["root"], "plain"))
pipe.save_pretrained(Path(arguments["root"], "newer"))
found["newer"] = [pipe.version, pipe.scheduler.version]
"""
    assert fresh.run(script, home, path=package.parent, root=root)["newer"] == ["newer", "newer"]


@pytest.fixture(scope="module")
def without_package(home, root, ddpm_root, newer):
    """Loads the folder, saves the result as `again`."""
    script = """
from diffusers import DDPMPipeline, DDIMScheduler
root, trusting = Path(arguments["root"]), arguments["trusting"]
found["no package"] = refusal(__import__, "ddim_scheduler")
found["no trust"] = [
    refusal(DiffusionPipeline.from_pretrained, root / "plain"),
    refusal(DiffusionPipeline.from_pretrained, root / "plain", custom_pipeline="pipeline"),
    refusal(DDPMPipeline.from_pretrained, root / "plain"),
]
found["no conversion"] = refusal(
    DiffusionPipeline.from_pretrained, arguments["ddpm"], custom_pipeline=str(root / "plain"), trust_remote_code=True
)
theirs = DDIMScheduler.from_pretrained(root / "scheduler")
found["theirs alone"] = theirs.alphas_cumprod.tolist()
pipe = DiffusionPipeline.from_pretrained(root / "plain", **trusting)
found["plain"] = [type(pipe).__name__, type(pipe.scheduler).__name__, sample(pipe)]
pipe.save_pretrained(root / "again")
found["own default"] = type(pipe.scheduler).from_config({"_class_name": "EtaDDIMScheduler"}).config.clip_sample

# the scheduler in a pipeline that is not ours
pipe = DDPMPipeline.from_pretrained(root / "plain", trust_remote_code=True)
found["DDPMPipeline"] = type(pipe.scheduler).__name__
pipe.save_pretrained(str(root / "other"))
found["other"] = type(DiffusionPipeline.from_pretrained(root / "other", trust_remote_code=True).scheduler).__name__

# two versions of the package by turns, one of them twice
pipes = {}
for name in ("plain", "newer", "again", "newer"):
    pipes[name] = DiffusionPipeline.from_pretrained(root / name, **trusting)
for name, pipe in pipes.items():
    found[f"{name} beside another"] = [getattr(pipe, "version", None), getattr(pipe.scheduler, "version", None)]
    found[f"{name} beside another"].append(sample(pipe))
    pipe.save_pretrained(root / f"{name} saved")
"""
    found = fresh.run(script, home, with_package=False, root=root, ddpm=ddpm_root / "folders", trusting=WITHOUT)
    assert "No module named 'ddim_scheduler'" in found["no package"]
    return found


def test_loads_without_the_package(without_package, expected):
    *names, images = without_package["plain"]
    assert names == ["EtaDDIMPipeline", "EtaDDIMScheduler"]
    assert_same(images, expected)
    assert "pip install" not in without_package["stderr"]


def test_config_of_our_own_means_the_same_without_the_package(without_package):
    config = {"_class_name": "EtaDDIMScheduler"}
    assert without_package["own default"] == EtaDDIMScheduler.from_config(config).config.clip_sample


def test_no_code_of_the_folder_runs_without_trust(without_package):
    by_name, by_file, by_other_pipeline = without_package["no trust"]
    assert "EtaDDIMPipeline" in by_name
    assert "trust_remote_code" in by_file
    assert "trust_remote_code" in by_other_pipeline


def test_conversion_without_the_package_names_it(without_package):
    assert without_package["no conversion"].startswith("ImportError: `scheduler` is a DDPMScheduler")


def test_scheduler_in_another_pipeline_without_the_package(without_package):
    assert without_package["DDPMPipeline"] == without_package["other"] == "EtaDDIMScheduler"


def test_builtin_scheduler_loads_our_config_without_the_package(without_package, with_package):
    assert without_package["theirs alone"] == with_package["theirs alone"][1]


def code_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.py")}


def test_a_pipeline_ships_the_code_it_was_loaded_from(without_package, root):
    code = code_of(root / "plain")
    assert {"pipeline.py", "scheduler/ddim_scheduler.py"} < set(code)
    assert code != code_of(root / "newer")
    for name in ("again", "plain saved", "again saved"):
        assert code_of(root / name) == code
    assert code_of(root / "newer saved") == code_of(root / "newer")


def test_versions_in_one_process_do_not_meet(without_package, expected):
    for name in ("plain", "again"):
        *versions, images = without_package[f"{name} beside another"]
        assert versions == [None, None]
        assert_same(images, expected)
    *versions, images = without_package["newer beside another"]
    assert versions == ["newer", "newer"]
    inside = (expected > 0) & (expected < 0.75)
    assert inside.any()
    assert_same(np.array(images)[inside], expected[inside] + 0.25)


def test_code_needs_nothing_but_what_diffusers_brings(root):
    """diffusers looks for imports by patterns like these, in strings too, and asks for a `pip install` of the rest."""
    allowed = {"diffusers", "huggingface_hub", "numpy", "PIL", "torch"} | set(sys.stdlib_module_names)
    for code in (code_of(root / "plain"), code_of(root / "plain" / "scheduler")):
        for name, content in code.items():
            lines = re.findall(r"^\s*(?:import|from)\s+(\S+)(?:\s*$|\s+import)", content.decode(), flags=re.MULTILINE)
            assert {line.split(".")[0] for line in lines if not line.startswith(".")} <= allowed
            folder = str(Path(name).parent / "x")
            assert {f"{folder[:-1]}{line[1:]}.py".removeprefix("./") for line in lines if line[0] == "."} <= set(code)


def test_entry_names_all_files(root):
    """diffusers copies no other ones of a folder."""
    for folder, entry in ((root / "plain", "pipeline.py"), (root / "plain" / "scheduler", "ddim_scheduler.py")):
        names = re.findall(r"^from \.(\w+) import", (folder / entry).read_text(), flags=re.MULTILINE)
        assert {f"{name}.py" for name in names} | {entry} == {path.name for path in folder.glob("*.py")}


OLD = Path(__file__).parent / "fixtures" / "saved_by_0_1_0"
LOAD_OLD = """
load = {"trusting": DiffusionPipeline.from_pretrained}
if not arguments["loading"]:
    from ddim_scheduler import EtaDDIMPipeline
    load = {"generic": DiffusionPipeline.from_pretrained, "ours": EtaDDIMPipeline.from_pretrained}
for name, from_pretrained in load.items():
    pipe = from_pretrained(arguments["old"], **arguments["loading"])
    found[name] = [type(pipe).__name__, type(pipe.scheduler).__name__, sample(pipe)]
    pipe.save_pretrained(Path(arguments["folder"], name))
"""


@pytest.mark.parametrize("with_package", [True, False])
def test_folder_of_the_first_version_loads(home, tmp_path, with_package):
    """Saved by 0.1.0, in single files, with its images."""
    loading = {} if with_package else WITHOUT
    found = fresh.run(LOAD_OLD, home, with_package, old=OLD / "model", folder=tmp_path, loading=loading)
    expected = np.array(json.loads((OLD / "images.json").read_text()))
    for name in ("generic", "ours") if with_package else ("trusting",):
        *names, images = found[name]
        assert names == ["EtaDDIMPipeline", "EtaDDIMScheduler"]
        assert_same(images, expected)
        assert (code_of(tmp_path / name) == code_of(OLD / "model")) is not with_package
        again = EtaDDIMPipeline.from_pretrained(tmp_path / name)
        assert_same(sample(again, seed=1), expected)


@pytest.mark.parametrize("scheduler", [EtaDDIMScheduler(), Derived(), DerivedFromTheirs()])
def test_a_second_save_leaves_no_code_of_the_first(unet, tmp_path, root, newer, scheduler):
    """That of an older version, of a newer one, and of another scheduler."""
    for source in (OLD / "model", root / "newer"):
        shutil.copytree(source, tmp_path / "model", dirs_exist_ok=True)
    (tmp_path / "model" / "scheduler" / "my_own.py").write_text("")
    EtaDDIMPipeline(unet=unet, scheduler=scheduler).save_pretrained(tmp_path / "model")
    expected = set(code_of(root / "plain"))
    if type(scheduler) is not EtaDDIMScheduler:
        expected = {name for name in expected if "/" not in name}
    assert set(code_of(tmp_path / "model")) == expected | {"scheduler/my_own.py"}
    scheduler.save_pretrained(tmp_path / "scheduler")
    assert set(code_of(tmp_path / "scheduler")) == {Path(name).name for name in expected if "/" in name}


def test_what_was_written_into_the_config_is_saved(pipeline, tmp_path):
    pipeline.scheduler.config.clip_sample = False
    pipeline.save_pretrained(tmp_path)
    assert EtaDDIMPipeline.from_pretrained(tmp_path).scheduler.config.clip_sample is False
    assert pipeline.scheduler.config["clip_sample"] is False


def test_saved_without_the_package_loads_on_both_sides(without_package, home, root, expected):
    load = """
pipe = DiffusionPipeline.from_pretrained(Path(arguments["root"]) / arguments["source"], **arguments["loading"])
found["pipe"] = [type(pipe).__module__, type(pipe.scheduler).__name__, sample(pipe)]
pipe.save_pretrained(Path(arguments["root"]) / "back")
"""
    back = fresh.run("import ddim_scheduler\n" + load, home, root=root, source="again", loading={})
    once_more = fresh.run(load, home, with_package=False, root=root, source="back", loading=WITHOUT)
    for found in (back, once_more):
        module, scheduler, images = found["pipe"]
        assert (module, scheduler) == ("ddim_scheduler", "EtaDDIMScheduler")
        assert_same(images, expected)
    index = {name: json.loads((root / name / "model_index.json").read_text()) for name in ("plain", "again", "back")}
    for content in index.values():
        content.pop("_name_or_path", None)
    assert index["plain"] == index["again"] == index["back"]


# ------------------------------------------------------------------------------------------------------------- safety


class Sentinel:
    """Unpickled, it writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (exec, (f"open({str(self.path)!r}, 'w')",))


@pytest.fixture(scope="module")
def attacks(home, root, ddpm_root, tmp_path_factory):
    """
    A folder for each attack, loaded by both classes with the package and without any trust; the result is the error, or
    the images. `sentinel` is written if code of a folder runs.
    """
    evil = tmp_path_factory.mktemp("evil")
    sentinel = evil / "sentinel"
    run_me = f"open({str(sentinel)!r}, 'w')\n"
    outside = evil / "outside"
    outside.mkdir()
    (outside / "evil.py").write_text(run_me + "class EtaDDIMScheduler: pass\nclass EtaDDIMPipeline: pass\n")
    (outside / "secret.txt").write_text("a secret")
    shutil.copy(root / "plain" / "unet" / "diffusion_pytorch_model.safetensors", outside / "weights")

    def attack(name, source="plain"):
        return shutil.copytree(root / source, evil / name)

    def edit(file, **entries):
        file.write_text(json.dumps({**json.loads(file.read_text()), **entries}))

    def link(file, target):
        file.unlink()
        file.symlink_to(target)

    torch.save({"weight": Sentinel(sentinel)}, attack("bin beside safetensors") / "unet/diffusion_pytorch_model.bin")
    torch.save({"weight": Sentinel(sentinel)}, attack("bin alone", "pickle") / "unet/diffusion_pytorch_model.bin")
    for file in ("pipeline.py", "scheduler/ddim_scheduler.py"):
        (evil / "bin beside safetensors" / file).write_text(run_me)
    index = "model_index.json"
    edit(attack("library outside") / index, scheduler=["../../outside/evil", "EtaDDIMScheduler"])
    edit(attack("class outside") / index, _class_name=["../outside/evil", "EtaDDIMPipeline"])
    edit(attack("component outside") / index, **{"../outside": ["evil", "EtaDDIMScheduler"]})
    shards = attack("shard outside", "sharded") / "unet/diffusion_pytorch_model.safetensors.index.json"
    edit(shards, weight_map=dict.fromkeys(json.loads(shards.read_text())["weight_map"], "../../outside/weights"))
    for file in ("scheduler/scheduler_config.json", "unet/config.json", "model_index.json"):
        for name, content in {"string": str((root / "plain" / file).parent), "list": [{"eta": 0.0}]}.items():
            (attack(f"{Path(file).name} is a {name}") / file).write_text(json.dumps(content))
    link(attack("secret linked") / "scheduler/scheduler_config.json", outside / "secret.txt")
    link(attack("config linked") / "scheduler/scheduler_config.json", root / "plain/scheduler/scheduler_config.json")
    link(attack("index linked") / "model_index.json", root / "plain/model_index.json")
    link(attack("code linked") / "scheduler/ddim_scheduler.py", outside / "evil.py")
    link(attack("weights linked") / "unet/diffusion_pytorch_model.safetensors", outside / "weights")
    shutil.rmtree(attack("unet linked") / "unet")
    (evil / "unet linked" / "unet").symlink_to(root / "plain/unet")
    shutil.move(attack("linked within") / "unet/config.json", evil / "linked within" / "config of the unet.json")
    (evil / "linked within" / "unet/config.json").symlink_to("../config of the unet.json")
    script = """
from ddim_scheduler import EtaDDIMPipeline, EtaDDIMScheduler
for folder in sorted(Path(arguments["evil"]).iterdir()):
    for cls in (EtaDDIMPipeline, DiffusionPipeline):
        try:
            found[f"{folder.name} by {cls.__name__}"] = sample(cls.from_pretrained(folder))
        except Exception as error:
            found[f"{folder.name} by {cls.__name__}"] = f"{type(error).__name__}: {error}"
linked = Path(arguments["evil"]) / "config linked"
found["scheduler by folder"] = refusal(EtaDDIMScheduler.from_pretrained, linked / "scheduler")
found["scheduler by subfolder"] = refusal(EtaDDIMScheduler.from_pretrained, linked, subfolder="scheduler")
pipe = EtaDDIMPipeline.from_pretrained(arguments["plain"])
linked = Path(arguments["evil"]) / "code linked"
found["push"] = refusal(pipe.save_pretrained, linked, push_to_hub=True)
found["push of the scheduler"] = refusal(pipe.scheduler.save_pretrained, linked / "scheduler", push_to_hub=True)
"""
    found = fresh.run(script, home, evil=evil, plain=root / "plain")
    assert not sentinel.exists()
    with pytest.raises(TypeError):  # the sentinel works
        torch.load(evil / "bin alone" / "unet/diffusion_pytorch_model.bin", weights_only=False)["weight"] + 1
    assert sentinel.exists()
    return found


@pytest.mark.parametrize("loader", ["EtaDDIMPipeline", "DiffusionPipeline"])
@pytest.mark.parametrize(
    ("attack", "message"),
    [
        ("bin alone", "OSError: Unable to load weights"),
        ("shard outside", SHARD_OUTSIDE),
        ("scheduler_config.json is a string", "a dictionary"),
        ("scheduler_config.json is a list", "a dictionary"),
        ("config linked", "scheduler_config.json leads out of its folder by a link"),
        ("secret linked", "scheduler_config.json leads out of its folder by a link"),
    ],
)
def test_attack_is_refused(attacks, attack, message, loader):
    result = attacks[f"{attack} by {loader}"]
    assert isinstance(result, str)
    assert message in result


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        ("library outside", "leads out of its folder by 'scheduler': ['../../outside/evil', 'EtaDDIMScheduler']"),
        ("class outside", "leads out of its folder by '_class_name': ['../outside/evil', 'EtaDDIMPipeline']"),
        ("component outside", "leads out of its folder by '../outside': ['evil', 'EtaDDIMScheduler']"),
        ("config.json is a string", "config.json must hold a dictionary, but holds '"),
        ("config.json is a list", "config.json must hold a dictionary, but holds [{'eta': 0.0}]"),
        ("model_index.json is a string", "model_index.json must hold a dictionary, but holds '"),
        ("model_index.json is a list", "model_index.json must hold a dictionary, but holds [{'eta': 0.0}]"),
        ("code linked", "ddim_scheduler.py leads out of its folder by a link"),
        ("index linked", "model_index.json leads out of its folder by a link"),
        ("weights linked", "diffusion_pytorch_model.safetensors leads out of its folder by a link"),
        ("unet linked", "leads out of its folder by a link"),
    ],
)
def test_attack_is_refused_by_our_class(attacks, attack, message):
    """diffusers' own `DiffusionPipeline` reads these before any class of ours is asked."""
    assert message in attacks[f"{attack} by EtaDDIMPipeline"]


@pytest.mark.parametrize("attack", ["library outside", "class outside"])
def test_generic_loader_runs_nothing_without_trust(attacks, attack):
    assert "trust_remote_code=True" in attacks[f"{attack} by DiffusionPipeline"]


@pytest.mark.parametrize("loader", ["EtaDDIMPipeline", "DiffusionPipeline"])
@pytest.mark.parametrize("folder", ["bin beside safetensors", "linked within"])
def test_harmless_folder_loads(attacks, expected, folder, loader):
    """No pickle and no code of the folder is run."""
    assert_same(attacks[f"{folder} by {loader}"], expected)


@pytest.mark.parametrize("place", ["folder", "subfolder"])
def test_scheduler_alone_refuses_a_link(attacks, place):
    assert "scheduler_config.json leads out of its folder by a link" in attacks[f"scheduler by {place}"]


def test_folder_in_the_cache_of_the_hub_loads(root, tmp_path):
    """Its files are links to the repository's blobs, which may be links to blobs of the whole cache."""
    snapshot = tmp_path / "models--me--digits/snapshots/0123"
    blobs = tmp_path / "models--me--digits/blobs"
    for number, file in enumerate(path for path in (root / "plain").rglob("*") if path.is_file()):
        link = snapshot / file.relative_to(root / "plain")
        for folder in (link.parent, blobs, tmp_path / "blobs/ab"):
            folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, tmp_path / "blobs/ab" / str(number) if number % 2 else blobs / str(number))
        if number % 2:
            (blobs / str(number)).symlink_to(f"../../blobs/ab/{number}")
        link.symlink_to(os.path.relpath(blobs / str(number), link.parent))
    for loaded in (
        EtaDDIMPipeline.from_pretrained(snapshot).scheduler,
        EtaDDIMScheduler.from_pretrained(snapshot, subfolder="scheduler"),
        EtaDDIMScheduler.from_pretrained(snapshot / "scheduler"),
    ):
        assert SETTINGS.items() <= loaded.config.items()
    (snapshot / "unet/config.json").unlink()
    (snapshot / "unet/config.json").symlink_to(root / "plain/unet/config.json")
    with pytest.raises(ValueError, match=r"unet/config\.json leads out of its folder"):
        EtaDDIMPipeline.from_pretrained(snapshot)


def test_our_code_never_trusts(request):
    """Nothing that is installed or copied passes `trust_remote_code`; users do."""
    root = request.config.rootpath
    for file in (
        file for folder in ("ddim_scheduler", "pipelines", "examples") for file in (root / folder).glob("*.py")
    ):
        calls = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)]
        assert not [keyword for call in calls for keyword in call.keywords if keyword.arg == "trust_remote_code"]


def test_latent_diffusion_is_refused(unet, tmp_path):
    """Its UNet alone would make noise; a component that is null does not matter."""
    vqvae = VQModel(norm_num_groups=4, block_out_channels=(4,), latent_channels=1, num_vq_embeddings=4)
    LDMPipeline(vqvae=vqvae, unet=unet, scheduler=DDIMScheduler()).save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"model_index\.json has a component 'vqvae', which EtaDDIMPipeline .*LDMPipeline"
    ):
        EtaDDIMPipeline.from_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    (tmp_path / "model_index.json").write_text(
        json.dumps({**index, "vqvae": [None, None], "_ignore_files": ["unet/x"]})
    )
    assert type(EtaDDIMPipeline.from_pretrained(tmp_path)) is EtaDDIMPipeline


def test_a_link_out_of_the_folder_is_not_uploaded(attacks):
    for push in ("push", "push of the scheduler"):
        assert "ddim_scheduler.py leads out of its folder by a link" in attacks[push]


@pytest.mark.parametrize("first", SAVED)
@pytest.mark.parametrize("second", SAVED)
def test_a_second_save_replaces_the_first(first, second, unet, tmp_path):
    other = type(unet).from_config(unet.config)
    EtaDDIMPipeline(unet=unet, scheduler=EtaDDIMScheduler(eta=0.5)).save_pretrained(tmp_path, **SAVED[first][0])
    EtaDDIMPipeline(unet=other, scheduler=EtaDDIMScheduler()).save_pretrained(tmp_path, **SAVED[second][0])
    again = EtaDDIMPipeline.from_pretrained(tmp_path, **SAVED[second][1])
    assert again.scheduler.config.eta == 0
    assert all(torch.equal(a, b) for a, b in zip(again.unet.parameters(), other.parameters(), strict=True))


def test_save_that_fails_leaves_the_older_one(pipeline, tmp_path, monkeypatch):
    pipeline.save_pretrained(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def die(*args, **kwargs):
        raise KeyboardInterrupt

    with pytest.raises(ValueError, match="5G"):
        pipeline.save_pretrained(tmp_path, max_shard_size="5G")
    monkeypatch.setattr(EtaDDIMScheduler, "save_pretrained", die)
    with pytest.raises(KeyboardInterrupt):
        pipeline.save_pretrained(tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    EtaDDIMPipeline.from_pretrained(tmp_path)


def test_half_a_save_does_not_load(pipeline, tmp_path, monkeypatch):
    pipeline.save_pretrained(tmp_path)
    replace = Path.replace

    def die_at_the_scheduler(path, target):
        if path.name == "scheduler_config.json":
            raise KeyboardInterrupt
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", die_at_the_scheduler)
    with pytest.raises(KeyboardInterrupt):
        pipeline.save_pretrained(tmp_path)
    with pytest.raises(OSError, match=r"model_index\.json"):
        EtaDDIMPipeline.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"sample_image": PIL.Image.new("CMYK", (2, 2))}, "`sample_image`"),
        ({"sample_image": "sample.png"}, "`sample_image`"),
        ({"training_settings": {(1, 2): 3}}, "`training_settings`"),
    ],
)
def test_bad_push_is_refused_before_anything_is_written(pipeline, tmp_path, arguments, name):
    with pytest.raises(TypeError, match=name):
        pipeline.save_pretrained(tmp_path / "new", push_to_hub=True, **arguments)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("repo_id", [None, ""])
def test_push_needs_a_name(pipeline, repo_id):
    for pushed in (pipeline, pipeline.scheduler):
        with pytest.raises(ValueError, match="`repo_id`"):
            pushed.push_to_hub(repo_id)


def test_scheduler_without_a_step_is_refused(unet):
    with pytest.raises(TypeError, match="`scheduler`"):
        EtaDDIMPipeline(unet=unet, scheduler=None)
