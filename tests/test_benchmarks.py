"""
The benchmarks that no other test runs, in small (of training.py what its processes do): that they fit the package, and
where it is known what they say.
"""

import importlib.util
import re
import shlex
import sys
from pathlib import Path

import PIL.Image
import pytest
import torch
from accelerate import Accelerator
from diffusers.schedulers import scheduling_flow_match_euler_discrete

from ddim_scheduler import EtaDDIMPipeline, EtaDDIMScheduler, steps, training
from ddim_scheduler.fitting import fit_sampler

from training import forget_accelerator, write_classifier, write_images

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import defaults
import differences
import few_steps_classes
import few_steps_cost
import flow_noise
import flow_step
import pipeline as pipeline_benchmark

import few_steps
import few_steps_models
import step as step_benchmark

BENCHMARKS = Path(step_benchmark.__file__).parent
WITH_DOCUMENT = sorted(path.stem for path in BENCHMARKS.glob("*.py") if '"--update"' in path.read_text())


def load(name):
    """A benchmark, under a name that is not that of a module of the tests."""
    spec = importlib.util.spec_from_file_location(f"{name}_benchmark", BENCHMARKS / f"{name}.py")
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    return benchmark


@pytest.fixture
def document(tmp_path):
    """Makes a document with the markers of some tables."""

    def make(*names):
        path = tmp_path / "RESULTS.md"
        path.write_text("".join(f"<!-- {name} -->\n<!-- /{name} -->\n" for name in names))
        return path

    return make


@pytest.fixture
def small(monkeypatch):
    """Sets constants of a benchmark; nothing is compiled, and nothing that it sets stays."""

    def make(module, **values):
        for name, value in values.items():
            assert type(getattr(module, name)) is type(value)
            monkeypatch.setattr(module, name, value)

    monkeypatch.setattr(torch, "compile", lambda model, **_: model)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    for module in (steps, scheduling_flow_match_euler_discrete):
        monkeypatch.setattr(module, "randn_tensor", getattr(module, "randn_tensor", None), raising=False)
    return make


def test_differences(document, small):
    rows = differences.ROWS
    small(differences, ROWS=[rows[k] for k in (0, 5, 7, 11)])
    path = document("differences")
    differences.main(["--update", str(path)])
    theirs, ours = zip(*(line.split("|")[2:4] for line in path.read_text().splitlines()[3:-1]), strict=True)
    assert [cell.strip() for cell in (theirs[0], ours[0])] == ["62 of 1000", "0 of 1000"]
    assert float(ours[1]) == pytest.approx(-1, abs=0.1)
    assert int(ours[2].split()[0]) == 0 < int(theirs[2].split()[0])
    assert ours[3].strip().endswith("(0)")


def test_step(document, small, monkeypatch, tmp_path):
    shapes = ((2, 3, 4, 4),)
    small(step_benchmark, SHAPES=shapes, LOOP_SHAPES=shapes, LOOP_STEPS=3, ROUNDS=4, SECONDS_PER_ROUND=1e-4)
    small(step_benchmark, BATCHES=((5, 3),))
    monkeypatch.setattr(step_benchmark, "import_seconds", lambda statement: len(statement) / 10)
    path, plot = document("step-cpu", "loop-cpu", "start-cpu", "batch-cpu"), tmp_path / "plot.png"
    ratios = step_benchmark.main(["--device", "cpu", "--update", str(path), "--plot", str(plot)])
    assert len(ratios) == 2 * 2 * 2 * 2
    assert all(ratio.low <= ratio.median <= ratio.high for ratio in ratios.values())
    assert path.read_text().count("| (2, 3, 4, 4) |") == 8 + 1
    assert path.read_text().count("| (5, 3) |") == 1
    assert PIL.Image.open(plot).width > 400


def test_pipeline(document, small):
    (name, (settings, _)), *_ = pipeline_benchmark.MODELS.items()
    small(pipeline_benchmark, MODELS={name: (settings, {"cpu": (2, 2)})}, ROUNDS=4)
    path = document("pipeline-cpu")
    (ratio,) = pipeline_benchmark.main(["--device", "cpu", "--update", str(path)])
    assert 0.1 < ratio < 10
    assert f"| {name} | 2 x 2 |" in path.read_text()


def test_flow_step(document, small):
    small(flow_step, SHAPES=((1, 2, 4, 4),), STEPS=3, ROUNDS=4, SECONDS_PER_ROUND=1e-3)
    path = document("flow-step")
    flow_step.main(["--update", str(path)])
    assert len(re.findall(r"\| \(1, 2, 4, 4\) \| [01] \| \d+ \| \d+ \|", path.read_text())) == 2


def test_flow_noise(document):
    path = document("flow-noise")
    left = flow_noise.main(["--update", str(path)])
    for eta in ("0.5", "1"):
        assert max(left[f"here, eta {eta}"]) < 1e-6
    assert min(left["Flow-GRPO, a = 0.7"] + left["DanceGRPO, 0.3"]) > 0.05
    assert "| Flow-GRPO, a = 0.7 |" in path.read_text()


def test_defaults(document, small, image_folder, tmp_path):
    """Two recipes of a step, kept for the next run."""
    images = defaults.ImageSet(image_folder, image_folder, "digits", write_classifier(tmp_path / "digits.safetensors"))
    network = "--resolution 16 --block_out_channels 8 16 --layers_per_block 1 --attention_resolutions"
    small(defaults, SETS={"digits": images}, NETWORK=network, NUM_IMAGES=33, NUM_REFERENCE=33, SAMPLER_STEPS=2)
    path = document("defaults")
    arguments = ["--num_steps", "1", "--work_dir", str(tmp_path / "work"), "--update", str(path)]
    results = defaults.main(arguments)
    assert results.keys() == {"digits floor", "digits ours 1", "digits diffusers' 1"}
    assert results["digits ours 1"]["kernel"] != results["digits diffusers' 1"]["kernel"]
    assert path.read_text().count("| digits | ") == 2
    assert defaults.main(arguments) == results
    forget_accelerator()


def test_few_steps_of_classes(document, small, small_unet, monkeypatch):
    unet = small_unet(in_channels=1, out_channels=1, num_class_embeds=5)
    pipe = EtaDDIMPipeline(unet, EtaDDIMScheduler(100, clip_sample=False))
    monkeypatch.setattr(few_steps_classes, "trained", lambda *_: pipe)
    small(few_steps_classes, COUNTS=(5,), FITTED_CLASSES=range(2), OTHER_CLASSES=range(2, 4), TRAJECTORIES=4)
    small(few_steps_models, SEEDS=(100,), CONVERGED_STEPS=12, TRIAL_IMAGES=2)
    monkeypatch.setattr(few_steps, "OF_BETAS", few_steps.MULTISTEP[:1])
    path = document("few-steps-classes")
    found = few_steps_classes.main(["data", "--num_images", "2", "--update", str(path)])
    assert found.keys() == {1.0, 3.0}
    assert path.read_text().count("fitted to 4 samples") == 2
    training.parse_args([*shlex.split(few_steps_classes.TRAINING), "--train_data_dir", "."])


def test_few_steps_cost(document, small, small_unet, tmp_path, monkeypatch):
    pipe = EtaDDIMPipeline(small_unet(), EtaDDIMScheduler(100, clip_sample=False))
    pipe.scheduler = fit_sampler(pipe, [3], teacher_steps=6, seeds=2)
    pipe.save_pretrained(tmp_path / "model")
    small(few_steps_cost, SHAPES=((1, 1, 4, 4),), NUM_STEPS=3, SEEDS=2)
    monkeypatch.setattr(few_steps_cost, "MODEL", tmp_path / "model")
    path = document("few-steps-cost")
    few_steps_cost.main(["--update", str(path)])
    assert len(re.findall(r"\| \(1, 1, 4, 4\) \| (?:plain|compiled) (?:\| \d+ µs ){4}\|", path.read_text())) == 2


@pytest.mark.parametrize("variant", ["loop", "script, fp32"])
def test_training(variant, small, monkeypatch, tmp_path):
    """What a process of the benchmark does; the tests have another module of that name."""
    benchmark = load("training")
    small(benchmark, STEPS={"cpu": {"demo": 2}})
    monkeypatch.setattr(Accelerator, "log", Accelerator.log)
    forget_accelerator()
    write_images(tmp_path, 16)
    if variant == "loop":
        with pytest.raises(ValueError, match="--train_data_dir holds 16 images, less than 32"):
            benchmark.run(variant, "demo", str(tmp_path), "cpu")
    write_images(tmp_path, 32)
    assert benchmark.run(variant, "demo", str(tmp_path), "cpu")["images_per_second"] > 0
    forget_accelerator()


@pytest.mark.parametrize("name", [*WITH_DOCUMENT, "flow_sweep"])
def test_a_document_without_a_place_for_the_table_is_refused_before_the_work(name, tmp_path, document, capsys):
    (tmp_path / "train").mkdir()
    (tmp_path / "test").mkdir()
    with_folder = ("closed_form", "few_steps", "few_steps_classes", "time_to_picture")
    places = {script: [tmp_path] for script in with_folder}
    places["few_steps_models"] = [tmp_path, tmp_path]
    write_images(tmp_path / "train", 1)
    places["table1"] = [tmp_path, "--reference", tmp_path, "--held_out", tmp_path, "--device", "cpu"]
    arguments = [str(argument) for argument in (*places.get(name, []), "--update", document("something else"))]
    with pytest.raises(ValueError, match=r"RESULTS.md must hold the markers <!-- "):
        load(name).main(arguments)
    arguments[-1] = str(tmp_path / "nowhere.md")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.md"):
        load(name).main(arguments)
    assert "|" not in capsys.readouterr().out  # no row of a table


def test_a_model_without_fitted_samplers_is_not_measured_as_one(pipeline, tmp_path, capsys, monkeypatch):
    """Its scheduler would be DDIM, under the name of a fitted one."""
    for part in ("model", "train", "test"):
        (tmp_path / part).mkdir()
    monkeypatch.setattr(few_steps_models, "load_network", lambda *_: None)
    arguments = [str(tmp_path / "model"), str(tmp_path)]
    pipeline.save_pretrained(tmp_path / "model")
    with pytest.raises(SystemExit):
        few_steps_models.main(arguments)
    assert "samplers fitted for 3 5 8 10 15 20 30 50 steps" in capsys.readouterr().err
    pipeline.scheduler = fit_sampler(pipeline, [5], teacher_steps=8, seeds=2)
    pipeline.save_pretrained(tmp_path / "model")
    with pytest.raises(SystemExit):
        few_steps_models.main(arguments)
    for wrong in (["--num_images", "0"], ["--num_compared", "3"]):
        with pytest.raises(SystemExit):
            few_steps_models.main([*arguments, *wrong])
        assert f"{wrong[0]} must be at least" in capsys.readouterr().err
    (tmp_path / "test").rmdir()
    with pytest.raises(SystemExit):
        few_steps_models.main(arguments)
    assert f"no folder {tmp_path / 'test'}" in capsys.readouterr().err
