"""The loop that both trainers share: state, checkpoint, resume, guard, metering. What a step computes is theirs.

A step is a pure function of (state, seed, step): its data and all its randomness are drawn for the global batch and
sliced by rank. So the position is the step and nothing else, a resumed run equals an undisturbed one to the last bit,
and 1, 2 or 4 workers train the same model up to the order of float sums. No Ray here: `ray_training` brings the ranks.
"""

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipeline.artifacts import ArtifactWriter, check_lease
from pipeline.checkpoint import Checkpoints
from pipeline.errors import PipelineError
from pipeline.gauges import publish
from pipeline.storage import Storage
from pipeline.tracking import Outbox, metric_event

MAX_SKIPPED_IN_A_ROW = 20
_FLUSH_SECONDS = 2.0
Batch = TypeVar("Batch", contravariant=True)
Made = TypeVar("Made", covariant=True)


@dataclass(frozen=True)
class World:
    """This process among the training workers."""

    rank: int
    size: int
    device: torch.device

    def mean(self, values: Tensor) -> Tensor:
        """The mean over all ranks; the values themselves where there is one."""
        if self.size > 1:
            dist.all_reduce(values)
            values /= self.size
        return values

    def shared(self, value: Any) -> Any:
        """Rank 0's value, on every rank."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def slice(self, batch_B: Tensor) -> Tensor:
        """This rank's part of what was drawn for the global batch."""
        rows = batch_B.shape[0] // self.size
        return batch_B[self.rank * rows : (self.rank + 1) * rows]

    def parallel(self, module: nn.Module) -> nn.Module:
        """DistributedDataParallel around the module; the module itself where there is one rank."""
        if self.size == 1:
            return module
        ids = [self.device] if self.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(module, device_ids=ids, broadcast_buffers=False)


class Trainee(Protocol[Batch]):
    """What the loop trains. Its `states` are everything that a step changes."""

    flops_per_step: float  # model FLOPs of one global batch, attention products included

    def states(self) -> dict[str, Any]:
        """Every object with `state_dict` and `load_state_dict` that a step changes, by name."""

    def batches(self, start: int, stop: int) -> "Batches[Any]":
        """This rank's batches of steps start to stop - 1."""

    def step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """One optimizer step, counted from 0. This rank's losses, "loss" among them, detached: scalars that are
        means over the batch, or pairs (sum, count) where not every sample counts.

        A non-finite gradient must leave every state as it was and show as a non-finite "loss".
        """

    def rehearse(self, batch: Batch) -> None:
        """One forward and backward through everything that is wrapped in DDP, thrown away."""

    def weights(self) -> dict[str, Tensor]:
        """What the artifact holds, by parameter name, in fp32."""


class Batches(Protocol[Made]):
    waited: float  # seconds that the consumer has waited in all

    def __iter__(self) -> Iterator[Made]: ...
    def close(self) -> None: ...


@dataclass(frozen=True)
class Loop:
    """How long, how often, and where to."""

    name: str  # prefix of the metrics: tokenizer or sit
    steps: int
    batch_size: int
    checkpoint_every: int
    log_every: int
    keep: int
    storage: Storage
    work: str
    lease: str  # nonce of the lease under which this attempt runs
    outbox: str  # key of the run in MLflow
    stage: str
    fingerprint: str
    peak_flops: float


def generator(seed: int, step: int, purpose: str, device: torch.device) -> torch.Generator:
    """The source of one kind of randomness in one step, keyed by (seed, step, purpose)."""
    digest = hashlib.sha256(f"{seed}/{step}/{purpose}".encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def learning_rate(step: int, steps: int, peak: float, warmup: float, decay: str) -> float:
    """Linear from 0 to `peak` over the share `warmup` of the steps, then constant or a cosine to 0."""
    rising = warmup * steps
    if step + 1 < rising:
        return peak * (step + 1) / rising
    if decay == "constant":
        return peak
    done = (step - rising) / max(1.0, steps - rising)
    return peak * 0.5 * (1.0 + math.cos(math.pi * min(1.0, max(0.0, done))))


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def clipped_step(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], clip: float) -> bool:
    """Clip the gradient's norm and step, unless it is not finite; then nothing changes. The gradient is freed."""
    norm = nn.utils.clip_grad_norm_(parameters, clip)
    finite = bool(torch.isfinite(norm))
    if finite:
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return finite


class History:
    """The losses' means between two lines, the lines themselves, and how many steps were skipped.

    Means are over the steps that were not skipped, weighted alike; a term that is absent in a step does not count.
    """

    def __init__(self) -> None:
        self.lines: list[dict[str, float]] = []
        self.sums: dict[str, float] = {}
        self.counts: dict[str, int] = {}
        self.skipped = 0
        self.in_a_row = 0

    def add(self, losses: dict[str, float]) -> None:
        if not math.isfinite(losses["loss"]):
            self.skipped += 1
            self.in_a_row += 1
            return
        self.in_a_row = 0
        for name, value in losses.items():
            if math.isfinite(value):  # a t-bin without a sample has no mean
                self.sums[name] = self.sums.get(name, 0.0) + value
                self.counts[name] = self.counts.get(name, 0) + 1

    def close_line(self, step: int) -> dict[str, float]:
        """The line for the steps since the last one; `step` counts from 1. The loss is NaN when all were skipped."""
        line: dict[str, float] = {"step": step}
        line.update({name: total / self.counts[name] for name, total in self.sums.items()})
        line.setdefault("loss", math.nan)
        line["skipped"] = self.skipped
        self.lines.append(line)
        self.sums, self.counts = {}, {}
        return line

    def state_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)

    def text(self) -> str:
        """A line of JSON each; a loss that is not there is null."""
        finite = (
            {name: value if math.isfinite(value) else None for name, value in line.items()} for line in self.lines
        )
        return "".join(json.dumps(line, allow_nan=False) + "\n" for line in finite)


class Meter:
    """What the machine did since the last line: examples/s, seconds a step, share of waiting for data, MFU."""

    def __init__(self, loop: Loop, batches: "Batches[Any]", flops_per_step: float) -> None:
        self.loop, self.batches, self.flops = loop, batches, flops_per_step
        self.began, self.steps, self.waited = time.monotonic(), 0, batches.waited

    def read(self) -> dict[str, float]:
        seconds = max(1e-9, time.monotonic() - self.began)
        values = {
            "images_per_second": self.steps * self.loop.batch_size / seconds,
            "step_seconds": seconds / max(1, self.steps),
            "data_wait_share": (self.batches.waited - self.waited) / seconds,
            "mfu": self.steps * self.flops / seconds / self.loop.peak_flops,
        }
        self.began, self.steps, self.waited = time.monotonic(), 0, self.batches.waited
        return values


class Reporter:
    """Rank 0's way out: history lines and measurements to outbox and gauges, the position to the driver's bar."""

    def __init__(self, loop: Loop, earlier: list[dict[str, float]]) -> None:
        """`earlier` are the lines from before a resume, which are posted again: the attempt before may have died with
        some in hand, and MLflow takes of them only the steps that it does not have.
        """
        self.loop = loop
        self.outbox = Outbox(loop.storage, loop.outbox)
        self._events = [self._event(line, {}) for line in earlier]
        self._last = 0.0
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="reporter")
        self._unwritten: list[dict[str, Any]] = []  # of a write that has failed, in front of the next

    def line(self, line: dict[str, float], measured: dict[str, float]) -> None:
        publish(self.loop.stage, {**line, **measured})
        self._events.append(self._event(line, measured))
        if time.monotonic() - self._last > _FLUSH_SECONDS:
            self.flush(line)

    def _event(self, line: dict[str, float], measured: dict[str, float]) -> dict[str, Any]:
        losses = {name: value for name, value in line.items() if name != "step" and math.isfinite(value)}
        values = {f"{self.loop.name}/{name}": value for name, value in {**losses, **measured}.items()}
        return metric_event(values, int(line["step"]))

    def flush(self, line: dict[str, float]) -> None:
        """Write what there is, in the background; what fails goes with the next."""
        self._last = time.monotonic()
        events, self._events = self._events, []
        self._writer.submit(self._write, events, line)

    def _write(self, events: list[dict[str, Any]], line: dict[str, float]) -> None:
        self._unwritten += events
        if self._unwritten:
            self.outbox.post(*self._unwritten)
            self._unwritten = []
        shown = {name: value for name, value in line.items() if math.isfinite(value)}
        self.loop.storage.write(f"{self.loop.work}/progress.json", json.dumps(shown).encode())

    def close(self, line: dict[str, float]) -> None:
        """Write all that is left; `line` is the last one. Raises what that fails with."""
        self._writer.shutdown(wait=True)
        self._write(self._events, line)


def _whole_state(trainee: Trainee[Any], history: History, step: int) -> dict[str, Any]:
    parts = {name: part.state_dict() for name, part in trainee.states().items()}
    return {"step": step, "history": history.state_dict(), "parts": parts}


def _restore(trainee: Trainee[Any], history: History, checkpoints: Checkpoints, world: World) -> int:
    """Load the newest whole checkpoint, the same on every rank. Returns the step to go on with."""
    newest = world.shared(checkpoints.newest() if world.rank == 0 else None)
    if newest is None:
        return 0
    state = checkpoints.load(newest)
    parts = trainee.states()
    assert parts.keys() == state["parts"].keys()
    for name, part in parts.items():
        part.load_state_dict(state["parts"][name])
    history.load_state_dict(state["history"])
    return int(state["step"])


def train(trainee: Trainee[Any], loop: Loop, world: World, notice: Callable[[], float | None]) -> None:
    """Train to the end from wherever the work folder stands, then leave the artifact's files and `result.json`.

    `notice` is asked every `log_every` steps: when will a node of this group go away, in seconds since the epoch (inf
    where that was not said), or None as long as none will? From then on as many checkpoints are saved as can be
    written, so that the end of the node costs a few steps. Raises PipelineError when too many steps in a row had to be
    skipped, LeaseError when another driver has taken over.
    """
    checkpoints = Checkpoints(loop.storage, f"{loop.work}/checkpoints", loop.keep)
    history = History()
    start = _restore(trainee, history, checkpoints, world)
    reporter = Reporter(loop, history.lines) if world.rank == 0 else None
    if start < loop.steps:
        _run_steps(trainee, loop, world, history, checkpoints, reporter, start, notice)
    if reporter:
        reporter.close(history.lines[-1])
        checkpoints.wait()
        _leave_result(trainee, loop, history)
    if world.size > 1:
        dist.barrier()


def _run_steps(
    trainee: Trainee[Any],
    loop: Loop,
    world: World,
    history: History,
    checkpoints: Checkpoints,
    reporter: Reporter | None,
    start: int,
    notice: Callable[[], float | None],
) -> None:
    _settle_buckets(trainee, world, start)
    batches = trainee.batches(start, loop.steps)
    meter = Meter(loop, batches, trainee.flops_per_step)
    for step, batch in enumerate(batches, start + 1):
        losses = trainee.step(batch, step - 1)
        history.add(_global_means(losses, world))
        meter.steps += 1
        if history.in_a_row >= MAX_SKIPPED_IN_A_ROW:
            raise _stuck(history, checkpoints, loop)
        due = step % loop.checkpoint_every == 0 or step == loop.steps
        if step % loop.log_every == 0 or step == loop.steps:
            line, measured = history.close_line(step), meter.read()
            if reporter:
                reporter.line(line, measured)
            end = notice()
            due = due or (end is not None and checkpoints.would_be_whole_by(end))
        if due and world.rank == 0:
            check_lease(loop.storage, f"{loop.work}/lease.json", loop.lease)
            checkpoints.save(step, _whole_state(trainee, history, step))
    batches.close()


def _settle_buckets(trainee: Trainee[Any], world: World, start: int) -> None:
    """DDP sums in another order after its first backward; let that be behind us before the first counted step."""
    if world.size == 1:
        return
    batches = trainee.batches(start, start + 1)
    trainee.rehearse(next(iter(batches)))
    batches.close()


def _global_means(losses: dict[str, Tensor], world: World) -> dict[str, float]:
    """Means over the global batch, in float64, by one collective; NaN where no sample counted."""
    names = sorted(losses)
    pairs = torch.stack([_as_pair(losses[name].detach().double()) for name in names])
    sums, counts = world.mean(pairs).unbind(1)
    return dict(zip(names, (sums / counts).tolist(), strict=True))


def _as_pair(value: Tensor) -> Tensor:
    return value if value.ndim else torch.stack([value, torch.ones_like(value)])


def _stuck(history: History, checkpoints: Checkpoints, loop: Loop) -> PipelineError:
    checkpoints.wait()
    newest = checkpoints.newest()
    good = f"the last good checkpoint is step {newest}" if newest else "there is no checkpoint yet"
    return PipelineError(
        f"{loop.stage}: {history.in_a_row} steps in a row had no finite gradient; {good}",
        f"Lower {loop.name}.learning_rate, or use precision fp32.",
    )


def _leave_result(trainee: Trainee[Any], loop: Loop, history: History) -> None:
    """The artifact's files in their place, and their hashes for the driver, who commits."""
    from safetensors.torch import save

    check_lease(loop.storage, f"{loop.work}/lease.json", loop.lease)
    writer = ArtifactWriter(loop.storage, loop.stage, loop.fingerprint)
    weights = {name: tensor.detach().float().cpu().contiguous() for name, tensor in trainee.weights().items()}
    writer.add_bytes(save(weights), "weights.safetensors")
    writer.add_bytes(history.text().encode(), "history.jsonl")
    last = {name: value for name, value in history.lines[-1].items() if name != "step"}
    last = {name: value for name, value in last.items() if math.isfinite(value)}
    result = {"files": {name: record.model_dump() for name, record in writer.files.items()}, "metrics": last}
    loop.storage.write(f"{loop.work}/result.json", json.dumps(result).encode())


def measured_peak(device: torch.device, seconds: float = 0.3) -> float:
    """FLOP/s of a large matrix product on this device, in the precision it trains in: the denominator of MFU."""
    size, dtype = (8192, torch.bfloat16) if device.type == "cuda" else (1024, torch.float32)
    a = torch.randn(size, size, device=device, dtype=dtype)
    torch.mm(a, a)
    _wait_for(device)
    begin, count = time.monotonic(), 0
    while time.monotonic() - begin < seconds:
        torch.mm(a, a)
        _wait_for(device)
        count += 1
    return count * 2.0 * size**3 / (time.monotonic() - begin)


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
