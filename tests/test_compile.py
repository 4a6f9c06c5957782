"""No waiting for the device, one graph for a whole loop, export, memory. What only a GPU can show is marked `gpu`."""

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler
from torch.utils._python_dispatch import TorchDispatchMode

from ddim_scheduler import EtaDDIMPipeline, EtaDDIMScheduler


def randn(*shape, seed=0, device="cpu"):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(device)


class NoWaiting(TorchDispatchMode):
    """Fails where a value is read back from a tensor, or a tensor is copied from the device "meta" to the host."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        assert func.overloadpacket.__name__ not in ("item", "_local_scalar_dense"), func
        result = func(*args, **kwargs)
        devices = [value.device.type for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)]
        if "meta" in devices and isinstance(result, torch.Tensor):
            assert result.device.type == "meta", f"{func} copies to the host"
        return result


def loop(scheduler, device, timesteps_on_device, **step_kwargs):
    """`set_timesteps` and a loop, with the timesteps where asked for."""
    scheduler.set_timesteps(5, device=device if timesteps_on_device else None)
    sample = torch.empty(2, 3, 8, 8, device=device)
    for t in scheduler.timesteps:
        sample = scheduler.step(torch.empty_like(sample), t, sample, **step_kwargs).prev_sample
    return sample


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("timesteps_on_device", [False, True])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_loop_reads_nothing_back(device, timesteps_on_device, eta):
    """The device "meta" stands in for an accelerator: nothing can be read from it."""
    with NoWaiting():
        assert loop(EtaDDIMScheduler(), device, timesteps_on_device, eta=eta).shape == (2, 3, 8, 8)


def test_loop_of_diffusers_reads_back():
    with NoWaiting(), pytest.raises(AssertionError, match="_local_scalar_dense"):
        loop(DDIMScheduler(), "cpu", False)


@pytest.mark.parametrize("settings", [{}, {"prediction_type": "v_prediction", "clip_sample": False}])
def test_one_compilation_for_all_timesteps_of_each_eta(settings):
    torch._dynamo.reset()
    scheduler = EtaDDIMScheduler(**settings)
    scheduler.set_timesteps(20)
    step = torch.compile(scheduler.step, fullgraph=True)
    graphs = []
    for eta in (0.0, 0.5, 1.0):
        torch._dynamo.utils.counters.clear()
        sample = randn(2, 3, 8, 8)
        for i, t in enumerate(scheduler.timesteps):
            output, z = randn(2, 3, 8, 8, seed=i), randn(2, 3, 8, 8, seed=100 + i)
            expected = scheduler.step(output, t, sample, eta=eta, variance_noise=z).prev_sample
            sample = step(output, t, sample, eta=eta, variance_noise=z).prev_sample
            assert (sample - expected).abs().max() < 1e-6 * expected.abs().max()
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert graphs[0] == 1
    assert max(graphs) == 1


def test_one_compilation_for_every_eta_that_is_a_tensor():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    scheduler = EtaDDIMScheduler()
    scheduler.set_timesteps(5)
    step = torch.compile(scheduler.step, fullgraph=True)
    sample, output, z = randn(3, 2, 3, 8, 8)
    for eta in torch.tensor([0.0, 0.3, 1.0]):
        for t in scheduler.timesteps:
            expected = scheduler.step(output, t, sample, eta=eta, variance_noise=z).prev_sample
            assert (step(output, t, sample, eta=eta, variance_noise=z).prev_sample - expected).abs().max() < 1e-6
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


class Step(torch.nn.Module):
    """A UNet's call and the step behind it."""

    def __init__(self, unet, scheduler):
        super().__init__()
        self.unet, self.scheduler = unet, scheduler

    def forward(self, sample, timestep):
        output = sample if self.unet is None else self.unet(sample, timestep, return_dict=False)[0]
        return self.scheduler.step(output, timestep, sample, return_dict=False)


@pytest.mark.parametrize("with_unet", [False, True])
def test_export(unet, with_unet):
    scheduler = EtaDDIMScheduler()
    scheduler.set_timesteps(10)
    module = Step(unet if with_unet else None, scheduler)
    sample = randn(2, 1, 16, 16)
    exported = torch.export.export(module, (sample, torch.tensor(900))).module()
    for t in scheduler.timesteps:
        for a, b in zip(exported(sample, t), module(sample, t), strict=True):
            assert (a - b).abs().max() < 1e-5


def test_onnx_export_gives_the_same_step(unet, tmp_path, record_property):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    scheduler = EtaDDIMScheduler()
    scheduler.set_timesteps(10)
    module = Step(unet, scheduler).eval()
    sample = randn(2, 1, 16, 16)
    path = tmp_path / "step.onnx"
    torch.onnx.export(module, (sample, torch.tensor(900)), path, dynamo=True, input_names=["sample", "timestep"])
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for t in scheduler.timesteps:
        outputs = session.run(None, {"sample": sample.numpy(), "timestep": t.numpy()})
        with torch.no_grad():
            for a, b in zip(outputs, module(sample, t), strict=True):
                error = float(abs(a - b.numpy()).max())
                record_property("largest difference", error)
                assert error < 1e-4


def peak_bytes(function) -> int:
    """Most bytes that a call holds on the CPU beyond those that were there before, its result among them."""
    function()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        function()
    total = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            total += event.nbytes()
            peak = max(peak, total)
    return peak


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"clip_sample": False},
        {"prediction_type": "sample"},
        {"prediction_type": "v_prediction"},
        {"use_clipped_model_output": True},
        {"thresholding": True},
    ],
)
def test_step_needs_one_tensor_beyond_its_outputs(settings, eta, record_property):
    scheduler = EtaDDIMScheduler(**settings)
    scheduler.set_timesteps(10)
    model_output, sample = randn(2, 4, 3, 64, 64)
    tensors = peak_bytes(lambda: scheduler.step(model_output, 500, sample, eta=eta)) / sample.nbytes
    record_property("peak in tensors of the sample's size", tensors)
    assert 2 <= tensors <= 3.01


def test_pipeline_needs_no_more_memory_than_that_of_diffusers(unet, record_property):
    peaks = []
    for pipeline in (DDIMPipeline(unet, DDIMScheduler()), EtaDDIMPipeline(unet, EtaDDIMScheduler())):
        pipeline.set_progress_bar_config(disable=True)
        peaks.append(peak_bytes(lambda p=pipeline: p(4, num_inference_steps=5, output_type="np")))
    record_property("peak over that of diffusers", peaks[1] / peaks[0])
    assert peaks[1] <= peaks[0]


@pytest.mark.gpu
@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("timesteps_on_device", [False, True])
def test_gpu_loop_makes_the_host_wait_for_nothing(timesteps_on_device, eta):
    scheduler = EtaDDIMScheduler()
    loop(scheduler, "cuda", timesteps_on_device, eta=eta)
    torch.cuda.set_sync_debug_mode("error")
    try:
        loop(scheduler, "cuda", timesteps_on_device, eta=eta)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
def test_gpu_graph_of_the_whole_loop_replays_the_eager_images(unet):
    unet = unet.to("cuda")
    scheduler = EtaDDIMScheduler()
    scheduler.set_timesteps(10, device="cuda")
    timesteps = list(scheduler.timesteps)

    @torch.no_grad()
    def sample_loop(sample):
        for t in timesteps:
            sample = scheduler.step(unet(sample, t).sample, t, sample).prev_sample
        return sample

    start = randn(2, 1, 16, 16, device="cuda")
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        expected = sample_loop(start)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = sample_loop(start)
    captured.zero_()
    graph.replay()
    torch.cuda.synchronize()
    unet.to("cpu")
    assert (captured - expected).abs().max() < 1e-5
