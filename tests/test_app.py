"""The functions behind the page, on a small model: what people see is what the pipeline makes."""

import io
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import PIL.Image
import pytest
import torch

from ddim_scheduler import EtaDDIMPipeline, EtaDDIMScheduler
from ddim_scheduler.app import editing, pictures, snippets, space
from ddim_scheduler.app.__main__ import main
from ddim_scheduler.app.runs import Runs
from ddim_scheduler.app.samplers import SAMPLERS, WITH_ETA, Model, Settings, distance, reference, sample
from ddim_scheduler.fitting import fit_sampler

needs_gradio = pytest.mark.skipif(find_spec("gradio") is None, reason="the extra `app` is not installed")
HALF_A_LEVEL = 0.5001 / 255  # of an 8-bit image


@pytest.fixture(scope="module")
def model(unet, tmp_path_factory):
    """A saved model of 16 timesteps that clips x_0, as the page loads it."""
    folder = tmp_path_factory.mktemp("app") / "model"
    EtaDDIMPipeline(unet, EtaDDIMScheduler(num_train_timesteps=16)).save_pretrained(folder)
    return Model(EtaDDIMPipeline.from_pretrained(folder), str(folder))


@pytest.fixture
def picture(model, tmp_path, monkeypatch):
    """What the page makes of photo.png, in the folder that is current, which is of another size and in colour."""
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(256, size=(50, 40, 3), dtype=np.uint8)
    PIL.Image.fromarray(pixels).save("photo.png")
    return pictures.read_picture("photo.png", model.shape)


def made_by(code: str) -> torch.Tensor:
    """The images that a snippet makes, (B, C, H, W) in [0, 1]."""
    namespace: dict = {}
    exec(code, namespace)
    images = torch.stack([torch.from_numpy(np.asarray(image) / 255.0) for image in namespace["images"]])
    return images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2)


SETTINGS = [
    Settings(seed=3, num_images=2, num_inference_steps=4),
    Settings(num_images=3, num_inference_steps=5, eta=0.7, timestep_spacing="trailing", clip=False),
    Settings(num_images=1, num_inference_steps=3, eta=1.0, sampler="diffusers' DDIM"),
    Settings(num_images=2, num_inference_steps=5, sampler="DPM-Solver++", timestep_spacing="linspace"),
    Settings(seed=7, num_images=2, num_inference_steps=5, sampler="UniPC"),
]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: settings.sampler)
def test_code_under_samples_makes_them(model, settings):
    made = sample(model, settings)
    assert made.images.shape == (settings.num_images, *model.shape)
    assert len(made.timesteps) == settings.num_inference_steps
    code = snippets.of_samples(model, settings)
    assert (made_by(code) - made.images).abs().max() <= HALF_A_LEVEL


def test_every_sampler_is_tried():
    assert {settings.sampler for settings in SETTINGS} == {*SAMPLERS}


@pytest.mark.parametrize("sampler", WITH_ETA)
def test_predictions_end_at_the_images(model, sampler):
    """With eta = 0 the last step goes to the x_0 that it predicts."""
    made = sample(model, Settings(num_images=2, num_inference_steps=4, sampler=sampler))
    assert made.predictions.shape == (4, *made.images.shape)
    assert (made.predictions[-1] - made.images).abs().max() == 0
    assert (made.predictions[0] - made.images).abs().max() > 0.01


def test_visitors_at_once_get_their_own_images(model):
    """Their grids, samplers and settings differ; the network is the same one."""
    several = [*SETTINGS, *(replace(SETTINGS[1], seed=seed, num_inference_steps=3 + seed) for seed in range(3))]
    alone = [sample(model, settings).images for settings in several]
    barrier = threading.Barrier(len(several), timeout=60)

    def visit(settings):
        barrier.wait()
        return sample(model, settings).images

    with ThreadPoolExecutor(len(several)) as pool:
        together = list(pool.map(visit, several))
    for one, other in zip(alone, together, strict=True):
        assert (one - other).abs().max() <= 1e-5


def test_settings_leave_the_model_as_it_is(model):
    before = dict(model.config)
    sample(model, SETTINGS[1])
    assert dict(model.config) == before
    assert isinstance(model.unet, torch.nn.Module)


RUNS = {
    "sample": lambda model, picture, report: sample(model, SETTINGS[0], report),
    "reference": lambda model, picture, report: reference(model, replace(SETTINGS[0], seed=99), report),
    "invert": lambda model, picture, report: editing.invert(model, picture, SETTINGS[0], "o_belm", report),
    "edit": lambda model, picture, report: editing.edit(model, picture, None, SETTINGS[0], 1.0, 1, report),
    "interpolate": lambda model, picture, report: editing.interpolate(model, 0, picture, 3, SETTINGS[0], report),
}


@pytest.mark.parametrize("name", RUNS)
def test_runs_report_each_step_and_end_when_told(model, picture, name):
    reports = []
    RUNS[name](model, picture, lambda done, total: reports.append((done, total)))
    starts = [k for k, (done, _) in enumerate(reports) if done == 0]
    for start, end in zip(starts, [*starts[1:], len(reports)], strict=True):
        total = reports[start][1]
        assert reports[start:end] == [(done, total) for done in range(total)]

    calls = 0

    def stop_at_the_third(done, total):
        nonlocal calls
        calls += 1
        if calls == 3:
            raise InterruptedError

    model.references.clear()
    with pytest.raises(InterruptedError):
        RUNS[name](model, picture, stop_at_the_third)
    assert calls == 3
    assert not model.references


def test_reference_is_the_end_of_all_timesteps_and_is_kept(model):
    settings = Settings(seed=5, num_images=2, num_inference_steps=3, eta=0.5, timestep_spacing="trailing")
    reports = []
    exact = reference(model, settings, lambda *steps: reports.append(steps))
    assert len(reports) == 16
    every = replace(settings, num_inference_steps=16, eta=0.0)
    assert distance(sample(model, every).images, exact) == 0  # of each grid
    assert distance(sample(model, settings).images, exact) > 0.01
    assert reference(model, replace(settings, sampler="UniPC"), lambda *steps: reports.append(steps)) is exact
    assert len(reports) == 16
    for seed in range(20):
        model.references[Settings(seed=seed)] = exact
    reference(model, replace(settings, seed=6))
    assert len(model.references) == 16


@pytest.mark.parametrize(
    ("method", "tolerance"), [("fixed_point", 1e-4), ("plain", 0.5), ("o_belm", 1e-6), ("noise_record", 1e-4)]
)
def test_round_trip(model, picture, method, tolerance):
    """Of a model that clips: the page inverts without."""
    settings = Settings(num_inference_steps=8, seed=2)
    found = editing.invert(model, picture, settings, method)
    assert found.largest <= tolerance
    assert found.distance == pytest.approx(distance(found.image, picture))
    assert found.model_calls >= 8
    assert (
        made_by(snippets.of_round_trip(model, settings, method, "photo.png")) - found.image
    ).abs().max() <= HALF_A_LEVEL


def test_plain_inversion_is_worse(model, picture):
    plain, exact = (editing.invert(model, picture, SETTINGS[0], method) for method in ("plain", "fixed_point"))
    assert plain.distance > 10 * exact.distance


@pytest.mark.parametrize("has_mask", [False, True])
def test_edit(model, picture, has_mask):
    mask = None
    if has_mask:
        mask = torch.zeros(1, 1, *model.shape[1:])
        mask[..., 8:, :] = 1
        pictures.grid(mask).save("mask.png")
    settings = Settings(seed=1, num_images=2, num_inference_steps=5, eta=1.0, clip=False)
    made = editing.edit(model, picture, mask, settings, 0.8, 2)
    kept = (made - picture)[..., :8, :].abs().max()
    assert (kept <= 1e-6) == has_mask
    code = snippets.of_edit(model, settings, "photo.png", 0.8, 2, has_mask)
    assert (made_by(code) - made).abs().max() <= HALF_A_LEVEL


def test_interpolation_between_seeds_ends_at_their_samples(model):
    settings = Settings(num_inference_steps=4)
    row = editing.interpolate(model, 3, 8, 5, settings)
    assert row.shape == (5, *model.shape)
    for end, seed in ((row[:1], 3), (row[-1:], 8)):
        assert (end - sample(model, replace(settings, seed=seed, num_images=1)).images).abs().max() <= 1e-5
    assert (made_by(snippets.of_interpolation(model, 3, 8, 5, settings)) - row).abs().max() <= HALF_A_LEVEL


def test_interpolation_between_a_picture_and_a_seed(model, picture):
    settings = Settings(num_inference_steps=5)
    row = editing.interpolate(model, picture, 8, 4, settings)
    assert (row[:1] - picture).abs().max() <= 1e-4
    assert (made_by(snippets.of_interpolation(model, "photo.png", 8, 4, settings)) - row).abs().max() <= HALF_A_LEVEL


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": -1}, "`seed` must be at least 0, but is -1"),
        ({"seed": None}, "`seed` must be an integer, but is None"),
        ({"num_images": 65}, "`num_images` must be in 1..64, but is 65"),
        ({"num_inference_steps": 17}, "`num_inference_steps` must be in 1..16, but is 17"),
        ({"eta": 1.5}, "`eta` must be finite and in"),
        ({"eta": 0.5, "sampler": "UniPC"}, "`eta` is 0.5, but UniPC is deterministic"),
        ({"sampler": "Euler"}, "`sampler` must be one of"),
        ({"timestep_spacing": "cubic"}, "`timestep_spacing` must be one of"),
        ({"timestep_spacing": "quadratic", "sampler": "DPM-Solver++"}, "quadratic"),
        ({"clip": 1}, "`clip` must be True or False"),
        ({"class_label": 3}, "`class_label` is 3, but the model has no classes"),
        ({"guidance_scale": 2.0}, "`guidance_scale` is 2.0"),
    ],
)
def test_bad_settings_are_refused_before_the_network_is_called(model, change, message, monkeypatch):
    monkeypatch.setattr(model.unet, "forward", lambda *_: pytest.fail("the network was called"))
    with pytest.raises((TypeError, ValueError), match=message):
        sample(model, replace(SETTINGS[0], **change))


def test_model_with_classes(small_unet, tmp_path):
    unet = small_unet(in_channels=1, out_channels=1, num_class_embeds=4)
    EtaDDIMPipeline(unet, EtaDDIMScheduler()).save_pretrained(tmp_path)
    model = Model(EtaDDIMPipeline.from_pretrained(tmp_path), str(tmp_path))
    assert model.num_classes == 3
    in_turn = Settings(num_images=4, num_inference_steps=2)
    one = replace(in_turn, class_label=1, guidance_scale=3.0)
    images = [sample(model, settings).images for settings in (in_turn, one, replace(one, class_label=2))]
    assert (images[1] - images[2]).abs().max() > 1e-3
    for settings, made in zip((in_turn, one), images, strict=False):
        assert (made_by(snippets.of_samples(model, settings)) - made).abs().max() <= HALF_A_LEVEL
    with pytest.raises(ValueError, match=r"`class_label` must be in 0\.\.2, but is 3"):
        sample(model, replace(one, class_label=3))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_pictures_of_all_kinds_are_read(mode, channels, tmp_path):
    path = tmp_path / f"picture.{'tiff' if mode == 'CMYK' else 'png'}"
    (PIL.Image.new(mode, (50, 40), 65535) if mode == "I;16" else PIL.Image.new("L", (50, 40), 255).convert(mode)).save(
        path
    )
    picture = pictures.read_picture(path, (channels, 16, 16))
    assert picture.shape == (1, channels, 16, 16)
    assert picture.dtype == torch.float32
    assert picture.min() >= 0.99


def test_picture_of_the_models_size_is_kept_and_the_middle_of_a_long_one_taken(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(256, size=(16, 16), dtype=np.uint8)
    PIL.Image.fromarray(pixels).save("own.png")
    assert (pictures.read_picture("own.png", (1, 16, 16)).numpy() == pixels / np.float32(255)).all()
    long = np.zeros((16, 48), dtype=np.uint8)
    long[:, 16:32] = 255
    PIL.Image.fromarray(long).save("long.png")
    assert pictures.read_picture("long.png", (1, 16, 16)).min() == 1


def test_first_picture_of_an_animation_one_pixel_and_many(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first, second = (PIL.Image.new("P", (20, 20), k) for k in range(2))
    for frame in (first, second):
        frame.putpalette([255, 255, 255, 0, 0, 0])
    first.save("animation.gif", save_all=True, append_images=[second])
    assert PIL.Image.open("animation.gif").n_frames == 2
    PIL.Image.new("L", (1, 1), 255).save("one.png")
    PIL.Image.new("1", (8000, 8000), 1).save("many.png")
    for name in ("animation.gif", "one.png", "many.png"):
        picture = pictures.read_picture(name, (1, 16, 16))
        assert picture.shape == (1, 1, 16, 16)
        assert picture.min() == 1
    PIL.Image.new("1", (20000, 20000), 1).save("bomb.png")
    with pytest.raises(ValueError, match=r"The picture bomb\.png cannot be read: .* pixels"):
        pictures.read_picture("bomb.png", (1, 16, 16))


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n", None])
def test_broken_picture_is_refused_by_its_name(content, tmp_path):
    if content is None:
        file = io.BytesIO()
        PIL.Image.new("L", (99, 99), 7).save(file, "png")
        content = file.getvalue()[:-40]
    (tmp_path / "broken.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"The picture broken\.png cannot be read") as error:
        pictures.read_picture(tmp_path / "broken.png", (1, 16, 16))
    assert str(tmp_path) not in str(error.value)


def test_mask_is_what_was_drawn():
    layer = np.zeros((512, 512, 4), dtype=np.uint8)
    assert pictures.read_mask([], 16, 16) is None
    assert pictures.read_mask([layer], 16, 16) is None
    layer[256:, :, 3] = 255
    layer[:, :15, 3] = 255  # less than half of a pixel
    mask = pictures.read_mask([layer], 16, 16)
    assert mask.shape == (1, 1, 16, 16)
    assert (mask[..., 8:, :] == 1).all()
    assert (mask[..., :8, :] == 0).all()


def test_grid_and_strip_show_every_pixel():
    images = torch.arange(5 * 6 * 8).view(5, 1, 6, 8) % 256 / 255
    shown = np.asarray(pictures.grid(images, size=240).convert("L"))
    assert shown.shape == (2 * 60, 3 * 80)
    assert (shown[60 + 5 :: 10, 80 + 5 : 160 : 10] == (images[4, 0] * 255).round().numpy()).all()
    assert (shown[60:, 160:] == 0).all()
    strip = pictures.strip(images.view(5, 1, 1, 6, 8), num_shown=3)
    columns = np.asarray(strip.convert("L")).reshape(6, strip.height // 6, 3, 8, -1)[:, 0, :, :, 0]
    assert (columns == (images[[0, 2, 4], 0] * 255).round().permute(1, 0, 2).numpy()).all()


@pytest.mark.parametrize("channels", [2, 5])
def test_model_whose_images_no_picture_shows_is_refused(small_unet, channels):
    pipeline = EtaDDIMPipeline(small_unet(in_channels=channels, out_channels=channels), EtaDDIMScheduler())
    with pytest.raises(ValueError, match=f"images of {channels} channels"):
        Model(pipeline, "somewhere")


def test_runs_end_when_nobody_waits_for_them():
    runs = Runs()
    with runs.one_of("a") as first, runs.one_of("a") as second, runs.one_of("b") as other:
        runs.stop_of("a")
        assert first.is_set()
        assert second.is_set()
        assert not other.is_set()
        runs.stop_all()
        assert other.is_set()
    with runs.one_of("a") as later:
        assert not later.is_set()
    assert later.is_set()


def test_model_with_a_learned_variance(small_unet, tmp_path):
    """It is sampled, inverted and edited by ours; the other samplers are not offered."""
    scheduler = EtaDDIMScheduler(variance_type="learned_range", clip_sample=False, timestep_spacing="trailing")
    EtaDDIMPipeline(small_unet(in_channels=3, out_channels=6), scheduler).save_pretrained(tmp_path)
    model = Model(EtaDDIMPipeline.from_pretrained(tmp_path), str(tmp_path))
    assert model.shape == (3, 8, 8)
    assert model.samplers == ["EtaDDIM"]
    settings = Settings(num_images=2, num_inference_steps=4, eta=1.0)
    made = sample(model, settings)
    assert (made_by(snippets.of_samples(model, settings)) - made.images).abs().max() <= HALF_A_LEVEL
    settings = replace(settings, eta=0.0)
    assert editing.invert(model, made.images[:1], settings, "o_belm").distance <= 1e-5
    assert editing.edit(model, made.images[:1], None, settings, 0.5).shape == (2, 3, 8, 8)
    with pytest.raises(ValueError, match="knows no learned variance"):
        model.check(replace(settings, sampler="UniPC"))


def test_model_with_a_fitted_sampler(unet, tmp_path):
    pipeline = EtaDDIMPipeline(unet, EtaDDIMScheduler(clip_sample=False))
    pipeline.scheduler = fit_sampler(pipeline, [3], teacher_steps=12, seeds=2)
    pipeline.save_pretrained(tmp_path)
    model = Model(EtaDDIMPipeline.from_pretrained(tmp_path), str(tmp_path))
    assert model.fitted_steps == [3]
    assert "fitted" in model.spacings
    fitted = Settings(num_images=2, num_inference_steps=3, timestep_spacing="fitted")
    plain = replace(fitted, timestep_spacing="trailing")
    for settings in (fitted, plain, replace(plain, sampler="UniPC")):
        made = sample(model, settings)
        assert len(made.timesteps) == 3
        assert (made_by(snippets.of_samples(model, settings)) - made.images).abs().max() <= HALF_A_LEVEL
    for run in (sample, Model.check):
        with pytest.raises(ValueError, match="no sampler for `num_inference_steps` 4, but for"):
            run(model, replace(fitted, num_inference_steps=4))


def test_model_with_a_condition_is_refused(small_unet):
    pipeline = EtaDDIMPipeline(small_unet(in_channels=4, out_channels=1), EtaDDIMScheduler())
    with pytest.raises(ValueError, match="needs a condition of 3 channels"):
        Model(pipeline, "somewhere")


@needs_gradio
def test_space_holds_what_it_needs(model, tmp_path):
    """The model without a training's checkpoints, the package with its pipelines, the requirements of the page."""
    folder = tmp_path / "space"
    space.export_space(model.name, folder)
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert {"app.py", "README.md", "requirements.txt", "model/model_index.json", "model/unet/config.json"} <= names
    assert {"ddim_scheduler/app/page.py", "ddim_scheduler/pipelines/pipeline_ddim.py"} <= names
    assert not any("__pycache__" in name for name in names)
    front = (folder / "README.md").read_text().split("---")[1]
    assert "sdk: gradio" in front
    assert "app_file: app.py" in front
    requirements = (folder / "requirements.txt").read_text().splitlines()
    assert {"torch", "diffusers", "gradio"} <= {line.split(">")[0] for line in requirements}
    assert not any("pytest" in line or ";" in line for line in requirements)
    assert 'main(["model"])' in (folder / "app.py").read_text()
    with pytest.raises(ValueError, match="must be a new or empty folder"):
        space.export_space(model.name, folder)


@needs_gradio
def test_export_that_ends_early_leaves_nothing(model, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(space, "space_requirements", interrupted)
        with pytest.raises(KeyboardInterrupt):
            space.export_space(model.name, tmp_path / "space")
    assert not list(tmp_path.iterdir())
    space.export_space(model.name, tmp_path / "space")
    assert [path.name for path in tmp_path.iterdir()] == ["space"]


@needs_gradio
def test_one_of_two_exports_at_once_is_refused(model, tmp_path):
    barrier = threading.Barrier(2, timeout=60)

    def export(name):
        barrier.wait()
        space.export_space(name, tmp_path / "space")
        return name

    with ThreadPoolExecutor(2) as pool:
        exports = {name: pool.submit(export, name) for name in (model.name, "someone/digits")}
    errors = [export.exception() for export in exports.values() if export.exception() is not None]
    assert len(errors) == 1
    assert isinstance(errors[0], ValueError)
    assert str(tmp_path / "space") in str(errors[0])
    (done,) = [name for name, export in exports.items() if export.exception() is None]
    assert (tmp_path / "space" / "model").exists() == (done == model.name)
    assert [path.name for path in tmp_path.iterdir()] == ["space"]


@needs_gradio
def test_space_of_a_hub_model_names_it(tmp_path):
    space.export_space("someone/digits", tmp_path / "space")
    assert 'main(["someone/digits"])' in (tmp_path / "space" / "app.py").read_text()
    assert not (tmp_path / "space" / "model").exists()
    front = (tmp_path / "space" / "README.md").read_text().split("---")[1]
    assert "- someone/digits" in front


@pytest.mark.parametrize("arguments", ["--share perhaps", "--port many", "--port 65536", "--port 0", "model another"])
def test_command_line_refuses(arguments, capsys):
    with pytest.raises(SystemExit):
        main(arguments.split())
    assert arguments.split()[-1] in capsys.readouterr().err


def test_settings_travel_in_the_picture(model):
    picture = pictures.with_settings(PIL.Image.new("L", (4, 4)), model, SETTINGS[0], "images = ...")
    assert json.loads(picture.info["parameters"])["seed"] == 3
    assert picture.info["python"] == "images = ..."
