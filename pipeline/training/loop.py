"""The training loop of both trainers: checkpoints, resume, skipped steps, throughput. A trainee computes the steps.

A step is a pure function of (state, seed, step): its data and all its randomness are drawn for the global batch and
sliced by rank. So the step number is the only position, a resumed run is bitwise equal to an uninterrupted one, and 1,
2 or 4 workers train the same model up to the order of float sums. No Ray here: `on_ray` starts the ranks.
"""

import json
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.artifacts import ArtifactWriter, Manifest, check_lease
from pipeline.errors import ContractError, PipelineError
from pipeline.inference import device_seconds, weights_names
from pipeline.training.checkpoint import Checkpoints, add_state
from pipeline.training.device_time import DeviceTime
from pipeline.training.history import History, Meter, Reporter
from pipeline.training.job import STATE, Loop
from pipeline.training.milestones import Milestones
from pipeline.training.restore import (
    check_work_folder,
    newest_state,
    newest_step,
    on_first_rank,
    restore_part,
    start_weights,
)
from pipeline.training.tensor_file import file_blocks
from pipeline.training.trainee import Trainee
from pipeline.training.world import World

MAX_SKIPPED_IN_A_ROW = 20


def _full_state(trainee: Trainee[Any], history: History, step: int) -> dict[str, Any]:
    parts = {name: part.state_dict() for name, part in trainee.states().items()}
    return {"step": step, "history": history.state_dict(), "parts": parts}


def _restore(trainee: Trainee[Any], history: History, checkpoints: Checkpoints, world: World) -> int:
    """Load the newest complete checkpoint, the same on every rank. Returns the step to resume from, 0 without one."""
    state = newest_state(checkpoints, world)
    if state is None:
        return 0
    parts = trainee.states()
    assert parts.keys() == state["parts"].keys()
    for name, part in parts.items():
        restore_part(part, state["parts"][name])
    history.load_state_dict(state["history"])
    return int(state["step"])


def _begin(
    trainee: Trainee[Any], loop: Loop, world: World, history: History, checkpoints: Checkpoints, milestones: Milestones
) -> int:
    """Bring the trainee to where it goes on, the same on every rank: to the newest complete checkpoint, else to the
    last state of a shorter training, else to the weights that it starts from, if any. Returns the step.
    """
    step = _restore(trainee, history, checkpoints, world)
    if not step and loop.shorter is not None:
        step = _go_on(trainee, loop, world, history, milestones, loop.shorter)
    elif not step and loop.start is not None:
        weights = start_weights(loop.storage, loop.start, list(trainee.weights()), world)
        trainee.start_from(weights, loop.start.name)
    on_first_rank(lambda: milestones.resume(step, trainee.weights()), world)
    return step


def _go_on(
    trainee: Trainee[Any], loop: Loop, world: World, history: History, milestones: Milestones, shorter: Manifest
) -> int:
    """Take over the milestones and the last state of a shorter training. ContractError if they are damaged."""
    on_first_rank(lambda: milestones.adopt(shorter), world)
    lost = ContractError(
        f"the state of {shorter.name}, which is to be gone on from, is missing or damaged",
        f"Run `python -m pipeline artifact repair {shorter.name} --root {loop.storage.root}`, or delete that artifact "
        "to train from the first step.",
    )
    try:
        step = _restore(trainee, history, Checkpoints(loop.storage, f"{shorter.name}/{STATE}", 1, loop.disk), world)
    except ContractError as error:
        raise lost from error
    if not step:
        raise lost
    return step


def train(trainee: Trainee[Any], loop: Loop, world: World, notice: Callable[[], float | None]) -> None:
    """Train to the last step, resuming from the work folder, then write the artifact's files and `result.json`.

    `notice` is called every `log_every` steps. It returns when a node of this group will be preempted, in seconds since
    the epoch (inf if unknown), or None if none will. After a notice a checkpoint is saved every `log_every` steps, as
    far as they can be written in time, so that the preemption loses few steps. Raises PipelineError after too many
    skipped steps in a row, LeaseError if another driver has taken over, and errors as `newest_state`.

    The host waits for the device every `log_every` steps and for checkpoints, not in a step: it is then that the number
    of skipped steps is known. A checkpoint between is good all the same, since a skipped step changes no weight.
    """
    check_work_folder(loop.storage, loop.work, loop.lease, world)
    checkpoints = Checkpoints(loop.storage, f"{loop.work}/checkpoints", loop.keep, loop.disk)
    history = History(world.device)
    milestones = Milestones(loop)
    start = _begin(trainee, loop, world, history, checkpoints, milestones)
    earlier = history.lines_until(start) if start == loop.steps else history.lines
    reporter = Reporter(loop, earlier) if world.rank == 0 else None
    spent = DeviceTime(loop.storage, loop.work, world.size)
    if start < loop.steps:
        _run_steps(trainee, loop, world, history, checkpoints, milestones, reporter, spent, start, notice)
    if reporter:
        reporter.close(history.lines_until(loop.steps)[-1])
        checkpoints.wait()
        _write_result(trainee, loop, history, milestones, spent)
    if world.size > 1:
        dist.barrier()


def _run_steps(
    trainee: Trainee[Any],
    loop: Loop,
    world: World,
    history: History,
    checkpoints: Checkpoints,
    milestones: Milestones,
    reporter: Reporter | None,
    spent: DeviceTime,
    start: int,
    notice: Callable[[], float | None],
) -> None:
    _warm_up_ddp(trainee, world, start)
    batches = trainee.batches(start, loop.steps)
    meter = Meter(loop, batches, trainee.flops_per_step)
    for step, batch in enumerate(batches, start + 1):
        losses = trainee.step(batch, step - 1)
        history.add(global_means(losses, world))
        meter.steps += 1
        due = step % loop.checkpoint_every == 0 or step == loop.steps
        if step % loop.log_every == 0 or step == loop.steps:
            # The last line stays open where no line ends: a longer training goes on with it.
            (line, skipped) = history.open_line(step) if step % loop.log_every else history.close_line(step)
            measured = meter.read()
            if skipped >= MAX_SKIPPED_IN_A_ROW:
                raise _too_many_skipped(skipped, newest_step(checkpoints, world), loop)
            if reporter:
                reporter.line(line, measured)
            end = notice()
            due = due or (end is not None and checkpoints.would_finish_by(end))
        if step in loop.milestones and world.rank == 0:
            milestones.write(step, trainee.weights())
        if due and world.rank == 0:
            check_lease(loop.storage, f"{loop.work}/lease.json", loop.lease)
            spent.write()
            checkpoints.save(step, _full_state(trainee, history, step))
    batches.close()


def _warm_up_ddp(trainee: Trainee[Any], world: World, start: int) -> None:
    """Run one backward pass before the first step: DDP changes its order of summation after the first one."""
    if world.size == 1:
        return
    batches = trainee.batches(start, start + 1)
    trainee.warm_up_ddp(next(iter(batches)))
    batches.close()


def global_means(losses: dict[str, Tensor], world: World) -> dict[str, Tensor]:
    """Means over the global batch, fp64 scalars on the device, by one all-reduce; NaN if no sample counts."""
    names = sorted(losses)
    pairs = torch.stack([_as_pair(losses[name].detach().double()) for name in names])
    sums, counts = world.mean(pairs).unbind(1)
    return dict(zip(names, (sums / counts).unbind(), strict=True))


def _as_pair(value: Tensor) -> Tensor:
    return value if value.ndim else torch.stack([value, torch.ones_like(value)])


def _too_many_skipped(skipped: int, newest: int | None, loop: Loop) -> PipelineError:
    good = f"the last good checkpoint is step {newest}" if newest else "there is no checkpoint yet"
    return PipelineError(
        f"{loop.stage}: {skipped} steps in a row had a non-finite gradient; {good}",
        f"Lower {loop.name}.learning_rate, or use precision fp32.",
    )


def _write_result(
    trainee: Trainee[Any], loop: Loop, history: History, milestones: Milestones, spent: DeviceTime
) -> None:
    """Write the artifact's files, and their hashes for the driver, which commits."""
    check_lease(loop.storage, f"{loop.work}/lease.json", loop.lease)
    writer = ArtifactWriter(loop.storage, loop.stage, loop.fingerprint)
    averages = trainee.weights()
    for decay, name in weights_names("weights", list(averages)).items():
        writer.add_stream(file_blocks(averages[decay]), name)
    writer.add_bytes(history.text(loop.steps).encode(), "history.jsonl")
    if loop.keep_state:
        add_state(writer, STATE, loop.steps, _full_state(trainee, history, loop.steps))
    files = writer.files | milestones.files()
    last = {name: value for name, value in history.lines_until(loop.steps)[-1].items() if name != "step"}
    last = {name: value for name, value in last.items() if math.isfinite(value)}
    before = 0.0 if loop.shorter is None else device_seconds(loop.shorter)
    result = {
        "files": {name: record.model_dump() for name, record in files.items()},
        "metrics": last,
        "device_seconds": round(before + spent.total(), 3),
    }
    loop.storage.write(f"{loop.work}/result.json", json.dumps(result).encode())
