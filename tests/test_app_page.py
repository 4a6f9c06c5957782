"""The page itself: by Gradio's client, and in headless Chromium where that is installed."""

import io
import json
import os
import shutil
import socket
import subprocess
import time
import venv
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from ddim_scheduler import EtaDDIMPipeline, EtaDDIMScheduler
from ddim_scheduler.app import pictures
from ddim_scheduler.app.samplers import Model, Settings, sample
from ddim_scheduler.app.space import export_space

if find_spec("gradio") is None:
    pytest.skip("the extra `app` is not installed", allow_module_level=True)

pytestmark = pytest.mark.xdist_group("app")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
STEPS = 16


@pytest.fixture(scope="module")
def model(unet, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page") / "model"
    scheduler = EtaDDIMScheduler(num_train_timesteps=STEPS, clip_sample=False)
    EtaDDIMPipeline(unet, scheduler).save_pretrained(folder)
    return Model(EtaDDIMPipeline.from_pretrained(folder), str(folder))


@pytest.fixture(scope="module")
def url(model):
    """A page on loopback, of a model of 16x16 images and 16 timesteps."""
    from ddim_scheduler.app.page import build_page

    page = build_page(model)
    _, url, _ = page.launch(prevent_thread_lock=True, show_error=True, quiet=True)
    yield url
    page.close()


@pytest.fixture(scope="module")
def connect(url):
    from gradio_client import Client

    return lambda: Client(url, verbose=False, httpx_kwargs={"timeout": 120})


def draw_arguments(settings: Settings) -> list:
    return [settings.seed, settings.num_images, settings.num_inference_steps, settings.eta, "leading", False, -1, 1]


def shown_of(model: Model, settings: Settings) -> np.ndarray:
    return np.asarray(pictures.grid(sample(model, settings).images))


def opened(path: str) -> np.ndarray:
    """The picture that a page returned. The client has its file in a temporary folder."""
    with PIL.Image.open(path) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


def test_two_visitors_at_once_get_their_own_pictures(model, connect):
    several = [Settings(seed=k, num_images=2 + k, num_inference_steps=4 + k, eta=k / 4) for k in range(4)]
    clients = [connect() for _ in several]
    with ThreadPoolExecutor(len(several)) as pool:
        drawn = [
            pool.submit(client.predict, *draw_arguments(settings), api_name="/draw")
            for client, settings in zip(clients, several, strict=True)
        ]
    for settings, future in zip(several, drawn, strict=True):
        picture = future.result()[0]
        assert abs(opened(picture) - shown_of(model, settings)).max() <= 1


def test_saved_picture_holds_its_settings_and_the_code_that_makes_it(connect):
    settings = Settings(seed=5, num_images=3, num_inference_steps=3, eta=0.5)
    path, _, _, code = connect().predict(*draw_arguments(settings), api_name="/draw")
    with PIL.Image.open(path) as picture:
        info = picture.info
    assert info["python"] == code
    assert json.loads(info["parameters"])["eta"] == 0.5
    namespace: dict = {}
    exec(code, namespace)
    image = np.asarray(namespace["images"][1]).astype(int)
    scale = pictures.SHOWN_SIZE // 32
    assert (opened(path)[: 16 * scale : scale, 16 * scale :: scale, 0] == image).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [({0: -1}, "less than minimum"), ({0: None}, "`seed` must be an integer"), ({2: 99}, "greater than maximum")],
)
def test_wrong_number_is_a_message(connect, change, message):
    from gradio_client.exceptions import AppError

    arguments = draw_arguments(Settings())
    arguments[2] = 4
    for place, value in change.items():
        arguments[place] = value
    with pytest.raises(AppError, match=message):
        connect().predict(*arguments, api_name="/draw")


def test_stopped_run_ends(connect, model, monkeypatch):
    """It calls the network no more."""
    calls = []
    forward = type(model.unet).forward

    def slow(self, *args, **kwargs):
        calls.append(1)
        time.sleep(0.2)
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(type(model.unet), "forward", slow)
    columns = [value for _ in range(4) for value in ("EtaDDIM", STEPS, 0, "leading")]
    job = connect().submit(0, 1, -1, 1, True, *columns, api_name="/compare")
    while len(calls) < 3:
        time.sleep(0.05)
    job.cancel()
    time.sleep(0.6)
    stopped_at = len(calls)
    time.sleep(1)
    assert len(calls) == stopped_at < 4 * STEPS


@pytest.fixture
def browser_page(url):
    """A page in headless Chromium that must end without an error in its console."""
    if CHROMIUM is None:
        pytest.skip("there is no Chromium: `apt-get install chromium`")
    sync_api = pytest.importorskip("playwright.sync_api", reason="the extra `dev-app` is not installed")
    errors = []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        page.set_default_timeout(120_000)
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(url)
        yield page
        browser.close()
    assert not errors


def visible(locator):
    return locator.locator("visible=true")


@pytest.mark.slow  # CI runs it all the same
def test_page_in_a_browser(browser_page, model):
    """What a visitor does: looks, moves eta, saves, compares, uploads, inverts, paints, and uploads no picture."""
    page = browser_page
    samples = visible(page.locator("img")).first

    # 1. it is drawn when the page opens, and again when eta is moved
    visible(page.get_by_text("calls of the network")).wait_for()
    first = samples.get_attribute("src")
    eta = visible(page.get_by_label("number input for η")).first
    eta.fill("0.5")
    eta.press("Tab")
    page.wait_for_function("src => document.querySelector('img').src != src", arg=first)
    visible(page.get_by_text("eta=0.5")).wait_for()
    with page.expect_download() as download:
        visible(page.get_by_label("Download")).first.click()
    saved = download.value.path()
    expected = Settings(num_images=16, num_inference_steps=STEPS, eta=0.5)
    assert abs(opened(saved) - shown_of(model, expected)).max() <= 1
    assert "eta=0.5" in PIL.Image.open(saved).info["python"]

    # 2. four samplers, and their distances
    page.get_by_role("tab", name="Compare").click()
    page.get_by_role("button", name="Compare", exact=True).click()
    page.wait_for_function("() => document.body.innerText.split('distance 0.').length == 5")

    # 3. a picture, its noise, and the picture again
    page.get_by_role("tab", name="Invert and edit").click()
    file = io.BytesIO()
    PIL.Image.fromarray(np.random.default_rng(0).integers(256, size=(50, 40, 3), dtype=np.uint8)).save(file, "png")
    upload = page.locator("[role=tabpanel]:visible input[type=file]").first
    upload.set_input_files({"name": "noise.png", "mimeType": "image/png", "buffer": file.getvalue()})
    page.get_by_role("button", name="Invert", exact=True).click()
    visible(page.get_by_text("The picture comes back")).wait_for()

    # 4. what is drawn upon is painted anew
    canvas = visible(page.locator("canvas")).first
    box = canvas.bounding_box()
    middle = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.move(*middle)
    page.mouse.down()
    page.mouse.move(middle[0] + 40, middle[1] + 20, steps=5)
    page.mouse.up()
    page.get_by_role("button", name="Edit", exact=True).click()
    visible(page.get_by_text("mask=mask")).wait_for()

    # 5. what is no picture is a message
    page.get_by_role("tab", name="Interpolate").click()
    broken = {"name": "broken.png", "mimeType": "image/png", "buffer": b"no picture"}
    upload.set_input_files(broken)
    page.get_by_role("button", name="Interpolate", exact=True).click()
    visible(page.get_by_text("The picture broken.png cannot be read")).wait_for()
    assert "Traceback" not in page.inner_text("body")


@pytest.mark.slow
def test_space_starts_from_its_folder_in_a_fresh_environment(model, tmp_path):
    """Where nothing is installed but what its requirements.txt asks for."""
    from gradio_client import Client

    space, root = tmp_path / "space", Path(__file__).parents[1]
    export_space(model.name, space)
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    install = [python, "-m", "pip", "install", "--quiet", "-c", root / "constraints.txt", "-r", "requirements.txt"]
    subprocess.run(install, cwd=space, check=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    with (tmp_path / "log").open("w") as log:
        environment = {**os.environ, "GRADIO_SERVER_PORT": port, "PYTHONNOUSERSITE": "1"}
        server = subprocess.Popen([python, "app.py"], cwd=space, env=environment, stdout=log, stderr=log)
    try:
        while "Running on" not in (tmp_path / "log").read_text():
            assert server.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.5)
        settings = Settings(num_images=2, num_inference_steps=4)
        client = Client(f"http://127.0.0.1:{port}", verbose=False, httpx_kwargs={"timeout": 120})
        picture = client.predict(*draw_arguments(settings), api_name="/draw")[0]
        assert abs(opened(picture) - shown_of(model, settings)).max() <= 1
    finally:
        server.terminate()
        server.wait()
