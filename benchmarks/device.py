"""What does a GPU make of the training steps, of encoding and of sampling, and are its results the same each time?

Run: python -m benchmarks.device [--minutes 10] [--only PART]...
It needs torch (2.11 or newer), NumPy and this checkout, no other package, and takes under ten minutes: parts that would
not be done in time are skipped, and named. It writes results/device-NAME.json with the card's name. Random weights and
data: a step's time does not depend on them. MFU counts the FLOPs of the tokenizer or of SiT as the trainers do; those
of D and LPIPS are not among them, but in `mfu_of_all`. On a CPU everything is tiny, to see that it runs.
"""

import argparse
import gc
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common import RESULTS, hardware, save
from benchmarks.device_steps import FULL, STEPS, TINY, Sizes, Step
from models.device import measured_peak, set_up_cuda
from models.sampler import sample
from models.sit import SiT
from models.tokenizers import Tokenizer

_SECONDS = 5.0  # of measuring in a part
_EVALUATIONS = 5  # of SiT, in a round of sampling


class Device:
    """A device, the sizes that it is measured at, and its peak in FLOP/s. A CPU is only to see that all runs."""

    def __init__(self, name: str) -> None:
        self.device = torch.device(name)
        self.is_gpu = self.device.type == "cuda"
        self.sizes: Sizes = FULL if self.is_gpu else TINY
        self.seconds, self.calls = (_SECONDS, 5) if self.is_gpu else (0.01, 1)
        self.set_deterministic(True)
        self.peak = measured_peak(self.device, self.seconds / 5)

    def set_deterministic(self, deterministic: bool) -> None:
        if self.is_gpu:
            set_up_cuda(deterministic)

    def wait(self) -> None:
        if self.is_gpu:
            torch.cuda.synchronize()

    def rate(self, action: Callable[[int], Any]) -> float:
        """Calls a second, after a few to warm up. The host does not wait between `calls` of them."""
        for number in range(self.calls):
            action(number)
        self.wait()
        begin, count = time.perf_counter(), 0
        while time.perf_counter() - begin < self.seconds:
            for _ in range(self.calls):
                action(count)
                count += 1
            self.wait()
        return count / (time.perf_counter() - begin)

    def clear(self) -> None:
        """Forget the part before: its memory and its compiled graphs."""
        gc.collect()
        torch._dynamo.reset()
        if self.is_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak_memory(self) -> float | None:
        """In GB, since `clear`."""
        return torch.cuda.max_memory_allocated() / 1e9 if self.is_gpu else None


def measure_step(device: Device, name: str, compiled: bool, deterministic: bool) -> dict[str, Any]:
    """A training step's time, MFU and peak memory, and whether the host waits for the device in it."""
    device.set_deterministic(deterministic)
    step = STEPS[name](device.sizes, device.device)
    with FlopCounterMode(display=False) as counter:
        step(0)
    device.clear()
    if compiled:
        step.compile()
    began = time.perf_counter()
    step(0)
    device.wait()
    first = time.perf_counter() - began
    rate = device.rate(step)
    return {
        "seconds_step": 1 / rate,
        "images_per_second": rate * step.batch,
        "batch": step.batch,
        "mfu": rate * step.flops / device.peak,
        "mfu_of_all": rate * counter.get_total_flops() / device.peak,
        "seconds_first_step": first,
        "peak_memory_gb": device.peak_memory(),
        "waits_for_device": _waits(device, step),
    }


def _waits(device: Device, step: Step) -> bool | None:
    if not device.is_gpu:
        return None
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(0)
    except RuntimeError as error:
        if "synchroniz" not in str(error):
            raise
        return True
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return False


def measure_resume(device: Device, name: str, compiled: bool) -> dict[str, Any]:
    """Four steps against two, a restart from their state, and two more: are all states the same to the bit?"""
    device.set_deterministic(True)

    def begin(state: dict[str, Any] | None) -> Step:
        step = STEPS[name](device.sizes, device.device)
        if compiled:
            step.compile()
        if state is not None:
            step.load(state)
        return step

    step, middle = begin(None), None
    for number in range(4):
        if number == 2:
            middle = step.state()
        step(number)
    whole = step.state()
    del step
    device.clear()
    step = begin(middle)
    for number in (2, 3):
        step(number)
    pairs = list(zip(tensors(whole), tensors(step.state()), strict=True))
    different = [path for (path, a), (_, b) in pairs if not a.equal(b)]
    return {"same_bits": not different, "tensors": len(pairs), "different": different[:5]}


def tensors(state: Any, path: str = "") -> list[tuple[str, Tensor]]:
    """All tensors of a nested state, with their paths."""
    if isinstance(state, Tensor):
        return [(path, state)]
    if isinstance(state, (dict, list)):
        parts = state.items() if isinstance(state, dict) else enumerate(state)
        return [found for key, part in parts for found in tensors(part, f"{path}/{key}")]
    return []


def measure_encode(device: Device) -> dict[str, Any]:
    """The encoder and the decoder alone, in bf16 on a GPU."""
    tokenizer = Tokenizer(**device.sizes.tokenizer).to(device.device).eval()
    batch, side = device.sizes.encode_batch, device.sizes.tokenizer["image_size"]
    x_BCHW = torch.rand(batch, 3, side, side, device=device.device) * 2 - 1
    with torch.inference_mode(), torch.autocast(device.device.type, torch.bfloat16, enabled=device.is_gpu):
        z_BDhw = tokenizer.encode(x_BCHW).mean_BDhw
        encoded = device.rate(lambda _: tokenizer.encode(x_BCHW))
        decoded = device.rate(lambda _: tokenizer.decode(z_BDhw))
    return {
        "encoded_per_second": encoded * batch,
        "decoded_per_second": decoded * batch,
        "batch": batch,
        "peak_memory_gb": device.peak_memory(),
    }


def measure_sample(device: Device) -> dict[str, Any]:
    """SiT's evaluations with guidance, which makes two of each, in bf16 on a GPU."""
    own, batch = device.sizes.sit, device.sizes.sit_batch
    sit = SiT(**own).to(device.device).eval()
    noise = torch.randn(batch, own["latent_dim"], own["grid"], own["grid"], device=device.device)
    labels = torch.zeros(batch, dtype=torch.long, device=device.device)

    def draw(_: int) -> Tensor:
        return sample(
            sit, noise, labels, null_label=own["classes"], method="euler", steps=_EVALUATIONS + 1, guidance_scale=1.8
        )

    with torch.autocast(device.device.type, torch.bfloat16, enabled=device.is_gpu):
        evaluations = device.rate(draw) * _EVALUATIONS
    return {
        "evaluations_per_second": evaluations * batch,
        "images_per_second_at_250_steps": evaluations * batch / 250,
        "batch": batch,
        "peak_memory_gb": device.peak_memory(),
    }


Part = tuple[str, float, Callable[[Device], dict[str, Any]]]
"""Name, seconds that it may take on a GPU, function."""


def _step_part(name: str, compiled: bool, deterministic: bool = True) -> Part:
    words = [name, "compiled" if compiled else "eager", *([] if deterministic else ["not-deterministic"])]
    seconds = 75.0 if compiled else 30.0
    return "/".join(words), seconds, lambda device: measure_step(device, name, compiled, deterministic)


PARTS: list[Part] = [  # the most telling first
    _step_part("sit-none", compiled=True),
    _step_part("sit-fda", compiled=True),
    _step_part("tokenizer", compiled=True),
    ("resume/sit-fda", 60.0, lambda device: measure_resume(device, "sit-fda", device.is_gpu)),
    ("encode", 30.0, measure_encode),
    ("sample", 30.0, measure_sample),
    _step_part("sit-none", compiled=False),
    _step_part("tokenizer", compiled=False),
    _step_part("sit-sra", compiled=True),
    _step_part("sit-none", compiled=True, deterministic=False),
    _step_part("tokenizer", compiled=True, deterministic=False),
    ("resume/tokenizer", 60.0, lambda device: measure_resume(device, "tokenizer", device.is_gpu)),
    _step_part("sit-fda", compiled=False),
    _step_part("sit-sra", compiled=False),
]


def measure(device: Device, only: list[str], budget: float) -> dict[str, Any]:
    """The parts' results by name, within so many seconds. A part that fails is an `error`, and the next one runs."""
    began, results = time.monotonic(), dict[str, Any]()
    for name, seconds, run in PARTS:
        if only and name not in only:
            continue
        if device.is_gpu and time.monotonic() - began + seconds > budget:
            results[name] = {"skipped": "no time left"}
        else:
            device.clear()
            try:
                results[name] = run(device)
            except (RuntimeError, torch._dynamo.exc.FailOnRecompileLimitHit) as error:
                results[name] = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
        print(f"{time.monotonic() - began:5.0f} s  {name}: {_shown(results[name])}", flush=True)
    return results


def _shown(result: dict[str, Any]) -> str:
    values = {key: f"{value:.4g}" if isinstance(value, float) else value for key, value in result.items()}
    return ", ".join(f"{key} {value}" for key, value in values.items())


def ratios(results: dict[str, Any]) -> dict[str, float]:
    """What is said of a step by another: how many times longer it takes."""
    pairs = {
        "fda_to_none": ("sit-fda/compiled", "sit-none/compiled"),
        "sra_to_none": ("sit-sra/compiled", "sit-none/compiled"),
        "sit_eager_to_compiled": ("sit-none/eager", "sit-none/compiled"),
        "tokenizer_eager_to_compiled": ("tokenizer/eager", "tokenizer/compiled"),
        "sit_deterministic_to_not": ("sit-none/compiled", "sit-none/compiled/not-deterministic"),
        "tokenizer_deterministic_to_not": ("tokenizer/compiled", "tokenizer/compiled/not-deterministic"),
    }
    times = {name: result["seconds_step"] for name, result in results.items() if "seconds_step" in result}
    return {key: times[a] / times[b] for key, (a, b) in pairs.items() if a in times and b in times}


def main(arguments: list[str] | None = None, folder: Path = RESULTS) -> Path:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--only", action="append", default=[], choices=[name for name, _, _ in PARTS])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    given = parser.parse_args(arguments)
    began = time.monotonic()
    device = Device(given.device)
    print(f"{hardware(given.device)}: {device.peak / 1e12:.4g} TFLOP/s in a matrix product")
    results = measure(device, given.only, 60 * given.minutes - (time.monotonic() - began))
    result = {"peak_tflops": device.peak / 1e12, "parts": results, "ratios": ratios(results)}
    name = "device-" + re.sub(r"[^a-z0-9]+", "-", hardware(given.device).lower()).strip("-")
    path = save(name, result, given.device, folder)
    print(path.name)
    return path


if __name__ == "__main__":
    main()
