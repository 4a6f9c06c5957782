"""The page itself: by Gradio's client, and in headless Chromium where that is installed."""

import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import venv
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from ddim_scheduler import EtaDDIMPipeline, EtaDDIMScheduler
from ddim_scheduler.app import pictures
from ddim_scheduler.app.samplers import Model, Settings, sample
from ddim_scheduler.app.space import export_space

if find_spec("gradio") is None:
    pytest.skip("the extra `app` is not installed", allow_module_level=True)

pytestmark = pytest.mark.xdist_group("app")
ROOT = Path(__file__).parents[1]
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
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_HEARTBEAT_INTERVAL", "0.2")  # seconds, after which a client that is closed is gone
        _, url, _ = page.launch(prevent_thread_lock=True, show_error=True, quiet=True)
        yield url
        page.close()


@contextmanager
def served(command: list, log: Path, cwd: Path = ROOT, **environment: str) -> Iterator[tuple[subprocess.Popen, str]]:
    """A process that shows a page, and the page's address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    with log.open("w") as output:
        environment = {**os.environ, "GRADIO_SERVER_PORT": port, "PYTHONUNBUFFERED": "1", **environment}
        server = subprocess.Popen(command, cwd=cwd, env=environment, stdout=output, stderr=output)
    try:
        while "Running on" not in log.read_text():
            assert server.poll() is None, log.read_text()
            time.sleep(0.1)
        yield server, f"http://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


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


COMPARED = [value for name in ("EtaDDIM", "DPM-Solver++", "UniPC", "none") for value in (name, 5, 0, "leading")]
NOTHING_DRAWN = {"background": None, "layers": [], "composite": None}


@pytest.fixture
def photo(tmp_path, monkeypatch):
    """photo.png, in the folder that is current, as Gradio's client sends it."""
    from gradio_client import handle_file

    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(256, size=(50, 40, 3), dtype=np.uint8)
    PIL.Image.fromarray(pixels).save("photo.png")
    return handle_file("photo.png")


@pytest.fixture
def drawing(photo):
    """A drawing upon the lower half of a picture."""
    from gradio_client import handle_file

    layer = np.zeros((512, 512, 4), dtype=np.uint8)
    layer[256:] = 255
    PIL.Image.fromarray(layer).save("layer.png")
    return {"background": None, "layers": [handle_file("layer.png")], "composite": None}


def assert_remade(path: str, **parameters):
    """A saved picture holds these settings, and Python that makes it."""
    with PIL.Image.open(path) as picture:
        info = picture.info
    assert json.loads(info["parameters"]).items() >= parameters.items()
    namespace: dict = {}
    exec(info["python"], namespace)
    images = [namespace["image"]] if "image" in namespace else namespace["images"]
    pixels = torch.stack([torch.from_numpy(np.asarray(image) / 255) for image in images])[:, None]
    with PIL.Image.open(path) as picture:
        columns = 16 if picture.width > 2 * pictures.SHOWN_SIZE - 64 else None
    assert abs(opened(path) - np.asarray(pictures.grid(pixels, columns, picture.width))).max() <= 1


def test_saved_pictures_hold_their_settings_and_the_code_that_makes_them(connect, photo, drawing):
    """Of each tab."""
    from gradio_client.exceptions import AppError

    client = connect()
    settings = Settings(seed=5, num_images=3, num_inference_steps=3, eta=0.5)
    made = client.predict(*draw_arguments(settings), api_name="/draw")
    assert_remade(made[0], seed=5, num_images=3, num_inference_steps=3, eta=0.5)
    with PIL.Image.open(made[0]) as picture:
        assert picture.info["python"] == made[-1]

    job = client.submit(0, 2, -1, 1, True, *COMPARED, api_name="/compare")
    job.result()
    shown = {path for output in job.outputs() for path in output if str(path).endswith(".png")}
    for path in shown:
        assert_remade(path, num_images=2)
    samplers = {(json.loads(PIL.Image.open(path).info["parameters"])["sampler"]) for path in shown}
    assert samplers == {"EtaDDIM", "DPM-Solver++", "UniPC"}

    for a, b, file in ((3, 4, None), (3, "photo.png", photo)):
        row = client.predict(3, None, 4, file, 4, "leading", 8, -1, 1, api_name="/interpolate")
        assert_remade(row[0], a=a, b=b, n=16)
        assert_remade(client.predict(5, api_name="/at"), n=16)
        for place in (17, 2.5, None):
            with pytest.raises(AppError, match=f"`place` must be .* but is {place}"):
                client.predict(place, api_name="/at")

    for method in ("fixed_point", "noise_record"):
        _, back, *_ = client.predict(photo, 0, 4, "leading", method, -1, 1, api_name="/invert")
        assert_remade(back, method=method, picture="photo.png")

    for drawn in (NOTHING_DRAWN, drawing):
        made, mask, _ = client.predict(photo, drawn, 0, 4, "leading", 0.5, 1, 2, 3, -1, 1, api_name="/edit")
        shutil.copy(mask, "mask.png")
        assert_remade(made, strength=0.5, num_resamples=2, num_images=3)


WRONG = {
    "/draw": {
        0: [(-1, "`seed` must be at least 0"), (None, "`seed` must be an integer"), ("a", "`seed` must be an integer")],
        1: [(0, r"`num_images` must be in 1\.\.64"), (3.5, "`num_images` must be an integer, but is 3.5")],
        2: [(0, r"`num_inference_steps` must be in 1\.\.16"), (1000, "is 1000"), (3.5, "is 3.5"), (None, "is None")],
        3: [(2, r"`eta` must be finite and in \[0.0, 1.0\]"), (-0.1, "is -0.1"), (None, "`eta` must be a number")],
        5: [(2, "`clip` must be True or False")],
        7: [(2, "`guidance_scale` is 2, but"), (None, "`guidance_scale` must be")],
    },
    "/compare": {
        1: [(0, "`num_images` must be")],
        10: [(0, "`num_inference_steps` must be")],
        12: [("quadratic", "quad")],
    },
    "/interpolate": {
        0: [(-1, "`a` must be at least 0")],
        2: [(None, "`b`")],
        4: [(0, "`num_inference_steps` must be"), (None, "is None")],
        6: [(17, r"`place` must be in 1\.\.16, but is 17"), (None, "`place`")],
    },
    "/invert": {0: [(None, "There is no picture yet")], 2: [(0, "`num_inference_steps` must be")]},
    "/edit": {
        0: [(None, "There is no picture yet")],
        5: [(0, "`strength` must be"), (None, "`strength` must be")],
        6: [(-1, "`eta` must be")],
        7: [(0, "`num_resamples` must be"), (None, "`num_resamples` must be")],
        8: [(1e30, "`num_images` must be in")],
    },
}


def test_what_is_wrong_is_a_message(connect, photo, drawing, model, monkeypatch, capfd):
    """On the page, before any work is done; and no traceback in the terminal."""
    from gradio_client.exceptions import AppError

    monkeypatch.setattr(type(model.unet), "forward", None)  # it is not called
    client = connect()
    right = {
        "/draw": draw_arguments(Settings(num_inference_steps=4)),
        "/compare": [0, 2, -1, 1, True, *COMPARED],
        "/interpolate": [0, None, 1, None, 4, "leading", 8, -1, 1],
        "/invert": [photo, 0, 4, "leading", "plain", -1, 1],
        "/edit": [photo, drawing, 0, 4, "leading", 0.5, 0, 1, 2, -1, 1],
    }
    for name, places in WRONG.items():
        for place, values in places.items():
            for value, message in values:
                arguments = [*right[name][:place], value, *right[name][place + 1 :]]
                with pytest.raises(AppError, match=message):
                    client.predict(*arguments, api_name=name)
    assert "Traceback" not in "".join(capfd.readouterr())


@pytest.fixture
def calls(model, monkeypatch):
    """Grows with each call of the network, which is made slow."""
    calls: list[int] = []
    forward = type(model.unet).forward

    def slow(self, *args, **kwargs):
        calls.append(1)
        time.sleep(0.2)
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(type(model.unet), "forward", slow)
    return calls


def wait_for_three(calls: list[int]):
    while len(calls) < 3:
        time.sleep(0.05)


def assert_no_more(calls: list[int], fewer_than: int = STEPS):
    time.sleep(1)
    stopped_at = len(calls)
    time.sleep(1)
    assert len(calls) == stopped_at < fewer_than


LONG = {
    "/draw": draw_arguments(Settings(num_inference_steps=STEPS)),
    "/compare": [0, 1, -1, 1, True, *(value for _ in range(4) for value in ("EtaDDIM", STEPS, 0, "leading"))],
    "/interpolate": [0, None, 1, None, STEPS, "leading", 8, -1, 1],
    "/take": [0, STEPS, "leading", -1, 1],
    "/invert": ["photo", 0, STEPS, "leading", "plain", -1, 1],
    "/edit": ["photo", NOTHING_DRAWN, 0, STEPS, "leading", 1, 0, 1, 2, -1, 1],
}


@pytest.mark.parametrize("name", LONG)
def test_cancelled_run_ends(name, connect, calls, photo):
    """It calls the network no more."""
    job = connect().submit(*(photo if value == "photo" else value for value in LONG[name]), api_name=name)
    wait_for_three(calls)
    job.cancel()
    assert_no_more(calls)


def test_run_of_a_closed_page_ends_and_that_of_another_goes_on(connect, model, calls):
    settings = Settings(num_images=1, num_inference_steps=STEPS)
    expected = shown_of(model, settings)
    calls.clear()
    closed, other = connect(), connect()
    closed.submit(*LONG["/compare"], api_name="/compare")
    wait_for_three(calls)
    job = other.submit(*draw_arguments(settings), api_name="/draw")
    closed.close()
    assert abs(opened(job.result()[0]) - expected).max() <= 1
    assert_no_more(calls, fewer_than=2 * STEPS)


@pytest.fixture
def browser():
    """Headless Chromium, whose pages must end without an error in their console."""
    if CHROMIUM is None:
        pytest.skip("there is no Chromium: `apt-get install chromium`")
    sync_api = pytest.importorskip("playwright.sync_api", reason="the extra `dev-app` is not installed")
    errors: list[str] = []

    def watch(page):
        page.set_default_timeout(120_000)
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))

    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        context = chromium.new_context(viewport={"width": 1280, "height": 1000})
        context.on("page", watch)
        yield context
        chromium.close()
    assert not errors


def visible(locator):
    return locator.locator("visible=true")


def fill(page, label: str, value: str):
    """Types into the box of a number."""
    box = visible(page.get_by_label(label)).first
    box.fill(value)
    box.press("Tab")


def draw_upon_the_middle(page, width: float, height: float):
    canvas = visible(page.locator("canvas")).first
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x - width / 2, y)
    page.mouse.down()
    for k in range(5):
        page.mouse.move(x + (width / 2 if k % 2 == 0 else -width / 2), y + height * k / 4, steps=10)
    page.mouse.up()


@pytest.mark.slow  # CI runs it all the same
def test_page_in_a_browser(browser, url, model):
    """What a visitor does: looks, moves eta, saves, compares, uploads, inverts, paints, and uploads no picture."""
    page = browser.new_page()
    page.goto(url)
    samples = visible(page.locator("img")).first

    # 1. it is drawn when the page opens, and again when eta is moved
    visible(page.get_by_text("calls of the network")).wait_for()
    first = samples.get_attribute("src")
    fill(page, "number input for η", "0.5")
    page.wait_for_function("src => document.querySelector('img').src != src", arg=first)
    visible(page.get_by_text("eta=0.5")).wait_for()
    with page.expect_download() as download:
        visible(page.get_by_label("Download")).first.click()
    saved = download.value.path()
    expected = Settings(num_images=16, num_inference_steps=STEPS, eta=0.5)
    assert abs(opened(saved) - shown_of(model, expected)).max() <= 1
    assert "eta=0.5" in PIL.Image.open(saved).info["python"]

    # 2. a box without a number is a message
    fill(page, "Seed", "")
    visible(page.get_by_text("`seed` must be an integer, but is None")).wait_for()

    # 3. four samplers, and their distances
    page.get_by_role("tab", name="Compare").click()
    page.get_by_role("button", name="Compare", exact=True).click()
    page.wait_for_function("() => document.body.innerText.split('distance 0.').length == 5")

    # 4. a picture, its noise, and the picture again
    page.get_by_role("tab", name="Invert and edit").click()
    file = io.BytesIO()
    PIL.Image.fromarray(np.random.default_rng(0).integers(256, size=(50, 40, 3), dtype=np.uint8)).save(file, "png")
    upload = page.locator("[role=tabpanel]:visible input[type=file]").first
    upload.set_input_files({"name": "noise.png", "mimeType": "image/png", "buffer": file.getvalue()})
    page.get_by_role("button", name="Invert", exact=True).click()
    visible(page.get_by_text("The picture comes back")).wait_for()

    # 5. what is drawn upon is painted anew
    draw_upon_the_middle(page, 80, 20)
    page.get_by_role("button", name="Edit", exact=True).click()
    visible(page.get_by_text("mask=mask")).wait_for()

    # 6. a picture on the way between two seeds
    page.get_by_role("tab", name="Interpolate").click()
    page.get_by_role("button", name="Interpolate", exact=True).click()
    visible(page.get_by_text("pipe.interpolate(0, 1, 16")).wait_for()
    there = visible(page.locator("[role=tabpanel] img")).last
    before = there.get_attribute("src")
    fill(page, "number input for Place on the way", "16")
    sync_api = pytest.importorskip("playwright.sync_api")
    sync_api.expect(there).not_to_have_attribute("src", before)
    last = sample(model, Settings(seed=1, num_images=1, num_inference_steps=STEPS)).images
    with page.expect_download() as download:
        visible(page.get_by_label("Download")).nth(1).click()
    assert abs(opened(download.value.path()) - np.asarray(pictures.grid(last))).max() <= 1

    # 7. what is no picture is a message
    broken = {"name": "broken.png", "mimeType": "image/png", "buffer": b"no picture"}
    upload.set_input_files(broken)
    page.get_by_role("button", name="Interpolate", exact=True).click()
    visible(page.get_by_text("The picture broken.png cannot be read")).wait_for()
    assert "Traceback" not in page.inner_text("body")


@pytest.mark.slow
def test_closed_tab_in_a_browser(browser, url, calls):
    page = browser.new_page()
    page.goto(url)
    wait_for_three(calls)
    page.close()
    assert_no_more(calls)


@pytest.mark.slow
def test_digits_in_a_browser(browser, tmp_path, record_property, pytestconfig):
    """`make app`: the first picture, then what each tab is for. `--screenshots` keeps what it looks like."""
    folder = pytestconfig.getoption("--screenshots")

    def screenshot(tab: str):
        if folder is not None:
            page.mouse.move(0, 0)
            page.screenshot(path=Path(folder) / f"app-{tab}.png", full_page=True)

    command = [sys.executable, "-m", "ddim_scheduler.app", "models/digits"]
    with served(command, tmp_path / "log") as (_, url):
        page = browser.new_page()
        start = time.perf_counter()
        page.goto(url)
        visible(page.get_by_text("20 calls of the network")).wait_for()
        page.wait_for_function("() => document.querySelector('img').complete")
        record_property("seconds from opening the page to 16 digits in 20 steps", time.perf_counter() - start)
        screenshot("sample")

        page.get_by_role("tab", name="Compare").click()
        page.get_by_role("button", name="Compare", exact=True).click()
        page.wait_for_function("() => document.body.innerText.split('distance 0.').length == 5")
        distances = [float(text) for text in re.findall(r"distance (0\.\d+)", page.inner_text("body"))]
        assert distances[0] < distances[1] / 2  # fitted, and the built-in
        screenshot("compare")

        page.get_by_role("tab", name="Interpolate").click()
        page.get_by_role("button", name="Interpolate", exact=True).click()
        visible(page.get_by_text("pipe.interpolate(0, 1, 16")).wait_for()
        screenshot("interpolate")

        page.get_by_role("tab", name="Invert and edit").click()
        page.get_by_role("button", name="Take a sample").click()
        page.wait_for_function("() => [...document.querySelectorAll('img')].filter(img => img.offsetParent).length")
        page.get_by_role("button", name="Invert", exact=True).click()
        visible(page.get_by_text("The picture comes back")).wait_for()
        draw_upon_the_middle(page, 80, 60)
        page.get_by_role("button", name="Edit", exact=True).click()
        visible(page.get_by_text("mask=mask")).wait_for()
        screenshot("edit")


@pytest.mark.slow
def test_ctrl_c_ends_the_page_and_its_runs(unet, tmp_path):
    """Without a traceback, though a run of a thousand steps goes on."""
    from gradio_client import Client

    EtaDDIMPipeline(unet, EtaDDIMScheduler()).save_pretrained(tmp_path / "model")
    command = [sys.executable, "-m", "ddim_scheduler.app", tmp_path / "model"]
    with served(command, tmp_path / "log") as (server, url):
        client = Client(url, verbose=False, httpx_kwargs={"timeout": 120})
        columns = [value for name in ("EtaDDIM", *3 * ["none"]) for value in (name, 2, 0, "leading")]
        job = client.submit(0, 16, -1, 1, True, *columns, api_name="/compare")
        while len(job.outputs()) < 2:  # the distance is yet to come
            time.sleep(0.1)
        time.sleep(1)
        assert not job.done()
        server.send_signal(signal.SIGINT)
        server.wait(timeout=10)
    assert "Traceback" not in (tmp_path / "log").read_text()


@pytest.mark.slow
def test_space_starts_from_its_folder_in_a_fresh_environment(model, tmp_path):
    """Where nothing is installed but what its requirements.txt asks for."""
    from gradio_client import Client

    space = tmp_path / "space"
    export_space(model.name, space)
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    install = [python, "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt", "-r", "requirements.txt"]
    subprocess.run(install, cwd=space, check=True)
    with served([python, "app.py"], tmp_path / "log", cwd=space, PYTHONNOUSERSITE="1") as (_, url):
        settings = Settings(num_images=2, num_inference_steps=4)
        client = Client(url, verbose=False, httpx_kwargs={"timeout": 120})
        picture = client.predict(*draw_arguments(settings), api_name="/draw")[0]
        assert abs(opened(picture) - shown_of(model, settings)).max() <= 1
