"""The Hub: the real client against the stand-in of `hub_server`; the snippets of the model card and docs/sharing.md."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from ddim_scheduler import EtaDDIMPipeline, EtaDDIMScheduler

import fresh
import hub_server

pytestmark = pytest.mark.xdist_group("hub")  # one worker, so that the processes are started once

TOLERANCE = 1e-5  # not bit for bit: memory alignment changes torch's kernels
CHAPTER = Path(__file__).parents[1] / "docs" / "sharing.md"
OLD = Path(__file__).parent / "fixtures" / "saved_by_0_1_0" / "model"
CODE = {*EtaDDIMPipeline._code, *(f"scheduler/{name}" for name in EtaDDIMScheduler._code)}
UNUSUAL = {  # changes of the UNet, which a snippet must take into account
    "classes": {"num_class_embeds": 10},
    "timestep-classes": {"class_embed_type": "timestep"},
    "two-channels": {"in_channels": 2, "out_channels": 2},
    "any-size": {"sample_size": None},
}


@pytest.fixture(scope="module")
def hub():
    with hub_server.Hub() as hub:
        yield hub


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A home with a cache for each side, and a place for files."""
    return {name: tmp_path_factory.mktemp(name) for name in ("with", "without", "files")}


def run(hub, folders, script, with_package=True, offline=False, **arguments):
    """Runs a script with the stand-in as the Hub; with the package, that is imported first."""
    env = {"HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": str(int(offline)), "HF_TOKEN": "hf_test"}
    env |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1"}
    if with_package:
        script = "from ddim_scheduler import EtaDDIMPipeline, EtaDDIMScheduler\n" + script
    home = folders["with" if with_package else "without"]
    return fresh.run(script, home, with_package, env, files=folders["files"], **arguments)


def files_of(hub, repo, revision="main"):
    return hub.repos[repo].at(revision)[1]


def python_snippets(text, mark="python"):
    return re.findall(rf"```{mark}\n(.*?)```", text, flags=re.DOTALL)


def assert_same(images, expected):
    assert np.abs(np.array(images) - np.array(expected)).max() < TOLERANCE


@pytest.fixture(scope="module")
def pushed(hub, folders, unet):
    """The first process: pushes in every way, loads some of it back. Yields what it found."""
    unet.save_pretrained(folders["files"] / "unet")
    index = {"_class_name": "LDMPipeline", "vqvae": ["diffusers", "VQModel"], "unet": ["diffusers", "UNet2DModel"]}
    for name, content in {"me/latent": index, "me/string": "me/digits"}.items():
        hub.repos[name] = hub_server.Repo(private=False)
        hub.repos[name].commit({"model_index.json": json.dumps(content).encode(), "unet/config.json": b"{}"})
    for name in ("me/old", "me/old-with-another"):
        hub.repos[name] = hub_server.Repo(private=False)
        files = {str(path.relative_to(OLD)): path.read_bytes() for path in OLD.rglob("*") if path.is_file()}
        hub.repos[name].commit({**files, "scheduler/my_own.py": b"", "ddim_steps_01234567.py": b""})
    script = """
from diffusers import DDIMScheduler, UNet2DModel
from huggingface_hub import upload_file
files = Path(arguments["files"])
unet = UNet2DModel.from_pretrained(files / "unet").eval()
pipe = EtaDDIMPipeline(unet, EtaDDIMScheduler(timestep_spacing="trailing", eta=0.25))
found["images"] = sample(pipe)
picture = pipe(num_inference_steps=5, seed=0).images[0]

# pipeline: by method, by `save_pretrained` of a Path, private, with a card that is there already
card = {"license": "apache-2.0", "sample_image": picture, "training_settings": {"learning_rate": 1e-4, "steps": 3600}}
commits = [pipe.push_to_hub("me/digits", **card) for _ in range(2)]
found["same commit"] = commits[0].oid == commits[1].oid
pipe.save_pretrained(files / "folder name", push_to_hub=True, repo_id="org/secret", private=True, variant="fp16")
found["private again"] = pipe.push_to_hub("org/secret", private=True, variant="fp16").oid
(files / "own").mkdir()
(files / "own" / "README.md").write_bytes(b"---\\nlicense: mit\\n---\\r\\nMy own words.\\n")
pipe.save_pretrained(files / "own", push_to_hub=True, license="apache-2.0")
for name in ("checkpoint-5/optimizer.bin", "unfinished-checkpoint-6/x", "logs/events", "samples/step-5.png"):
    (files / "trained" / name).parent.mkdir(parents=True)
    (files / "trained" / name).write_text(name)
(files / "trained" / "training_args.json").write_text('{"seed": 7}')
pipe.save_pretrained(files / "trained", push_to_hub=True)
found["public"] = refusal(pipe.push_to_hub, "me/digits", private=True)
found["typing error"] = refusal(pipe.push_to_hub, "me/digits", licence="apache-2.0")
found["no picture"] = refusal(pipe.push_to_hub, "me/digits", sample_image="sample.png")
for name, changes in arguments["unusual"].items():
    unusual = EtaDDIMPipeline(UNet2DModel.from_config({**unet.config, **changes}), EtaDDIMScheduler())
    unusual.push_to_hub(f"me/{name}")

# another model into the same repository: other weights in another format
pipe.push_to_hub("me/replaced", max_shard_size="40KB")
unusual.push_to_hub("me/replaced")

# over what 0.1.0 pushed; and a name with dots
pipe.push_to_hub("me/old")
class Other(DDIMScheduler):
    pass
EtaDDIMPipeline(unet, Other()).push_to_hub("me/old-with-another")
pipe.push_to_hub("me/digits-v1.5.1")

# a card of ours that a person changed on the Hub, while the folder has it as it was
pipe.save_pretrained(files / "changed", push_to_hub=True)
changed = (files / "changed" / "README.md").read_text().replace("# changed", "# My digits").encode()
upload_file(path_or_fileobj=changed, path_in_repo="README.md", repo_id="me/changed")
unusual.save_pretrained(files / "changed", push_to_hub=True)

# scheduler: alone, and into the repository of a pipeline
scheduler = EtaDDIMScheduler(eta=0.5)
found["scheduler commits"] = [scheduler.push_to_hub("me/scheduler", private=True, license="mit").oid for _ in range(2)]
scheduler.save_pretrained(files / "second-scheduler", push_to_hub=True)
scheduler.push_to_hub("me/replaced", subfolder="scheduler")
places = [("me/scheduler", None), ("me/second-scheduler", None), ("me/replaced", "scheduler")]
loaded = [EtaDDIMScheduler.from_pretrained(repo, subfolder=subfolder) for repo, subfolder in places]
found["schedulers"] = [scheduler.config.eta for scheduler in loaded]
found["public scheduler"] = refusal(scheduler.push_to_hub, "me/second-scheduler", private=True)

# revisions: the first commit, and one that is not there
scheduler = EtaDDIMScheduler(timestep_spacing="linspace")
EtaDDIMPipeline(unet, scheduler).push_to_hub("me/digits", commit_message="linspace")
found["first commit"] = commits[0].oid
for revision in (None, commits[0].oid):
    spacing = EtaDDIMPipeline.from_pretrained("me/digits", revision=revision).scheduler.config.timestep_spacing
    found[f"spacing at {'main' if revision is None else 'first'}"] = spacing
found["no revision"] = refusal(EtaDDIMPipeline.from_pretrained, "me/digits", revision="v9")
for name in ("nothing", "latent", "string"):
    found[name] = refusal(EtaDDIMPipeline.from_pretrained, f"me/{name}")
"""
    return run(hub, folders, script, unusual=UNUSUAL)


@pytest.fixture(scope="module")
def without(hub, folders, pushed):
    """The second process, without the package: loads by id, saves, pushes."""
    script = """
trusting = {"custom_pipeline": "pipeline", "trust_remote_code": True}
first = arguments["revision"]
found["no package"] = refusal(__import__, "ddim_scheduler")
found["no trust"] = refusal(DiffusionPipeline.from_pretrained, "me/digits", custom_pipeline="pipeline")
pipe = DiffusionPipeline.from_pretrained("me/digits", revision=first, **trusting)
found["loaded"] = [type(pipe).__name__, type(pipe.scheduler).__name__, sample(pipe)]
dotted = DiffusionPipeline.from_pretrained("me/digits-v1.5.1", **trusting)
found["dotted"] = [type(dotted).__name__, type(dotted.scheduler).__name__, sample(dotted)]
pipe.save_pretrained(Path(arguments["files"]) / "again", push_to_hub=True, repo_id="me/again")
pipe.push_to_hub("me/again-by-method", license="mit")
pipe.scheduler.push_to_hub("me/again-scheduler")
"""
    return run(hub, folders, script, with_package=False, revision=pushed["first commit"])


@pytest.fixture(scope="module")
def back(hub, folders, without):
    """The third process, with the package again: what the second pushed, without trust; and pushes that."""
    script = """
found["kinds"] = []
for cls in (EtaDDIMPipeline, DiffusionPipeline):
    pipe = cls.from_pretrained("me/again")
    found["kinds"].append(f"{type(pipe) is EtaDDIMPipeline} {type(pipe.scheduler) is EtaDDIMScheduler}")
found["images"] = sample(pipe)
found["variant"] = sample(EtaDDIMPipeline.from_pretrained("org/secret", variant="fp16"))
pipe.save_pretrained(Path(arguments["files"]) / "back", push_to_hub=True)
"""
    return run(hub, folders, script)


@pytest.fixture(scope="module")
def once_more(hub, folders, back):
    """The fourth process, without the package: what the third pushed."""
    script = """
pipe = DiffusionPipeline.from_pretrained("me/back", custom_pipeline="pipeline", trust_remote_code=True)
found["images"] = sample(pipe)
"""
    return run(hub, folders, script, with_package=False)


# ---------------------------------------------------------------------------------------------------------------- push


def test_push_uploads_weights_code_and_card(hub, pushed):
    assert set(files_of(hub, "me/digits", pushed["first commit"])) == CODE | {
        *("README.md", "model_index.json", "sample.png"),
        *("scheduler/scheduler_config.json", "unet/config.json", "unet/diffusion_pytorch_model.safetensors"),
    }
    for name in ("scheduler", "second-scheduler"):
        files = {*EtaDDIMScheduler._code, "scheduler_config.json", "README.md"}
        assert set(files_of(hub, f"me/{name}")) == files
    assert pushed["schedulers"] == [0.5, 0.5, 0.5]


def test_push_of_a_training_output_leaves_checkpoints_and_logs(hub, pushed):
    files = files_of(hub, "me/trained")
    assert {name for name in files if "/" in name} == {name for name in CODE if "/" in name} | {
        *("samples/step-5.png", "scheduler/scheduler_config.json"),
        *("unet/config.json", "unet/diffusion_pytorch_model.safetensors"),
    }
    assert json.loads(python_snippets(files["README.md"].decode(), "json")[-1]) == {"seed": 7}


def test_private_is_honoured(hub, pushed):
    requests = {r["name"]: r.get("private") or r.get("visibility") == "private" for r in hub.creations[::-1]}
    assert requests["secret"]
    assert requests["scheduler"]
    assert hub.repos["org/secret"].private
    assert hub.repos["me/scheduler"].private
    assert not hub.repos["me/digits"].private
    for name, repo in {"public": "me/digits", "public scheduler": "me/second-scheduler"}.items():
        assert pushed[name].startswith(f"ValueError: `private` is True, but the repository {repo} is there already")


def test_push_of_the_same_changes_nothing(hub, pushed):
    assert pushed["same commit"]
    assert len(hub.repos["me/digits"].commits) == 3  # when it was made, the first push, the push of another scheduler
    assert len(set(pushed["scheduler commits"])) == 1


def test_another_model_replaces_the_weights(hub, pushed):
    weights = {name for name in files_of(hub, "me/replaced") if name.startswith("unet/diffusion_pytorch_model")}
    assert weights == {"unet/diffusion_pytorch_model.safetensors"}


def test_push_leaves_no_code_of_the_former_one(hub, pushed):
    code = {name for name in files_of(hub, "me/old") if name.endswith(".py")}
    assert code == CODE | {"scheduler/my_own.py"}
    code = {name for name in files_of(hub, "me/old-with-another") if name.endswith(".py")}
    assert code == {*EtaDDIMPipeline._code, "scheduler/my_own.py"}


def test_own_card_is_kept(hub, pushed):
    assert files_of(hub, "me/own")["README.md"] == b"---\nlicense: mit\n---\r\nMy own words.\n"
    assert "has a README.md, which is kept: `license`" in pushed["stderr"]
    assert "TypeError" in pushed["typing error"]
    assert pushed["no picture"].startswith("TypeError: `sample_image` must be a PIL image")
    assert "'sample.png'" in pushed["no picture"]


def test_changed_card_is_kept(hub, folders, pushed):
    card = files_of(hub, "me/changed")["README.md"].decode()
    assert "# My digits\n" in card
    assert (folders["files"] / "changed" / "README.md").read_text() == card


def test_card_is_renewed_with_the_model(hub, pushed):
    """What described the former model goes, the licence stays."""
    files = files_of(hub, "me/digits")
    card = files["README.md"].decode()
    assert json.loads(python_snippets(card, "json")[0])["timestep_spacing"] == "linspace"
    assert "license: apache-2.0\n" in card
    assert "sample.png" in files_of(hub, "me/digits", pushed["first commit"])
    for trace in ("sample.png", "## Training", "Timesteps of 5"):
        assert trace not in card
    assert "sample.png" not in files


def test_scheduler_card(hub, pushed):
    card = files_of(hub, "me/scheduler")["README.md"].decode()
    assert re.match(r"---\nlibrary_name: diffusers\nlicense: mit\ntags:\n- ddim\n---\n\n# scheduler\n", card)
    assert 'EtaDDIMScheduler.from_pretrained("me/scheduler")' in card
    assert "# replaced\n" in files_of(hub, "me/replaced")["README.md"].decode()


def test_revision(pushed):
    assert pushed["spacing at main"] == "linspace"
    assert pushed["spacing at first"] == "trailing"
    assert pushed["no revision"].startswith("OSError: Cannot load model me/digits")
    assert pushed["nothing"].startswith("OSError: Cannot load model me/nothing")


def test_wrong_repository_is_refused_before_it_is_downloaded(hub, pushed):
    assert "model_index.json has a component 'vqvae', which EtaDDIMPipeline does not use" in pushed["latent"]
    assert "model_index.json must hold a dictionary, but holds 'me/digits'" in pushed["string"]
    assert not [line for line in hub.log if re.search("me/(latent|string)/.*config.json", line)]


# ---------------------------------------------------------------------------------------------------------------- load


def test_loads_without_the_package_by_trust_alone(pushed, without):
    assert "No module named 'ddim_scheduler'" in without["no package"]
    assert "trust_remote_code=True" in without["no trust"]
    assert without["loaded"][:2] == ["EtaDDIMPipeline", "EtaDDIMScheduler"]
    assert_same(without["loaded"][2], pushed["images"])
    assert "pip install" not in without["stderr"]


def test_repository_with_dots_in_its_name_loads_without_the_package(pushed, without):
    *names, images = without["dotted"]
    assert names == ["EtaDDIMPipeline", "EtaDDIMScheduler"]
    assert_same(images, pushed["images"])


def test_pushed_again_loads_on_both_sides(hub, pushed, back, once_more):
    assert back["kinds"] == ["True True", "True True"]
    for images in (back["images"], back["variant"], once_more["images"]):
        assert_same(images, pushed["images"])
    for name in ("again", "again-by-method", "back"):
        files = files_of(hub, f"me/{name}")
        assert {file for file in files if file.endswith(".py")} == CODE
        for file in CODE:
            assert files[file] == files_of(hub, "me/digits")[file]
        assert json.loads(files["model_index.json"])["scheduler"] == ["ddim_scheduler", "EtaDDIMScheduler"]
        assert b"from ddim_scheduler import EtaDDIMPipeline" in files["README.md"]
    assert "ddim_scheduler.py" in files_of(hub, "me/again-scheduler")


def test_offline_after_caching(hub, folders, pushed, back, once_more):
    requests = len(hub.log)
    script = """
found["images"] = sample(DiffusionPipeline.from_pretrained("me/again"))
found["not cached"] = refusal(DiffusionPipeline.from_pretrained, "me/again-by-method")
"""
    found = run(hub, folders, script, offline=True)
    assert_same(found["images"], pushed["images"])
    assert "me/again-by-method" in found["not cached"]
    # diffusers asks the Hub for the commit of remote code even where it is cached; the folder of the cache needs no Hub
    script = """
from huggingface_hub import snapshot_download
trusting = {"custom_pipeline": "pipeline", "trust_remote_code": True}
found["by id"] = refusal(DiffusionPipeline.from_pretrained, "me/back", **trusting)
folder = Path(snapshot_download("me/back", allow_patterns="model_index.json"))
found["images"] = sample(DiffusionPipeline.from_pretrained(folder, **trusting))
"""
    found = run(hub, folders, script, with_package=False, offline=True)
    assert "OfflineModeIsEnabled" in found["by id"] or found["by id"] == "nothing was raised"  # older diffusers
    assert_same(found["images"], pushed["images"])
    assert len(hub.log) == requests


# ----------------------------------------------------------------------------------------------- the card, the chapter


def test_model_card(hub, pushed):
    files = files_of(hub, "me/digits", pushed["first commit"])
    card = files["README.md"].decode()
    assert re.match(r"---\nlibrary_name: diffusers\nlicense: apache-2.0\npipeline_tag: [a-z-]+\ntags:\n- ddim\n", card)
    assert "![Samples](sample.png)" in card
    assert files["sample.png"].startswith(b"\x89PNG")
    assert "Timesteps of 5 steps: 999, 799, 599, 399, 199." in card
    scheduler, training = (json.loads(block) for block in python_snippets(card, "json"))
    assert scheduler["timestep_spacing"] == "trailing"
    assert scheduler["eta"] == 0.25
    assert training == {"learning_rate": 1e-4, "steps": 3600}
    plain = files_of(hub, "org/secret")["README.md"].decode()
    assert "license" not in plain
    assert "sample.png" not in plain
    assert "## Training" not in plain
    assert 'from_pretrained("org/secret", variant="fp16")' in plain


def test_snippets_of_card_and_chapter(hub, folders, pushed):
    """They run as they stand: those for the package with it, the others without it."""
    cards = {name: files_of(hub, f"me/{name}")["README.md"].decode() for name in ("digits", *UNUSUAL)}
    with_package, without_package = zip(*(python_snippets(card) for card in cards.values()), strict=True)
    (scheduler,) = python_snippets(files_of(hub, "me/scheduler")["README.md"].decode())
    share, use = python_snippets(CHAPTER.read_text(), "python hub")
    run_snippets = """
import os
os.chdir(arguments["files"])
for snippet in arguments["snippets"]:
    names = {}
    exec(snippet, names)
    loaded = names.get("pipe", names.get("scheduler"))
    found.setdefault("kinds", []).append(f"{type(loaded).__name__} {len(names.get('images', []))}")
"""
    prepare = "EtaDDIMPipeline.from_pretrained('me/digits').save_pretrained(arguments['files'] + '/outputs/digits')\n"
    found = run(hub, folders, prepare + run_snippets, snippets=[*with_package, scheduler, share])
    assert found["kinds"] == [*["EtaDDIMPipeline 4"] * len(cards), "EtaDDIMScheduler 0", "EtaDDIMPipeline 0"]
    assert hub.repos["your-name/digits"].private
    assert "sample.png" in files_of(hub, "your-name/digits")
    found = run(hub, folders, run_snippets, with_package=False, snippets=[without_package[0], without_package[-1], use])
    assert found["kinds"] == ["EtaDDIMPipeline 4", "EtaDDIMPipeline 4", "EtaDDIMPipeline 16"]
