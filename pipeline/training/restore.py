"""Restores a trainee from the newest checkpoint, or begins it: the same on every rank, read once by each node.

Tensors are copied one by one from the mapped file into the trainee, so that no rank holds the state twice.
"""

import platform
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file
from torch import Tensor

from pipeline.artifacts import Manifest, check_lease, local_copies
from pipeline.errors import ContractError, PipelineError, StorageError
from pipeline.inference import sit_weights
from pipeline.storage import Storage, cache_folder
from pipeline.training.checkpoint import Checkpoints
from pipeline.training.world import World

Result = TypeVar("Result")

_OWN_SETTINGS = {"params", "fused", "foreach", "capturable", "differentiable"}  # of the device, not of the checkpoint


def newest_state(checkpoints: Checkpoints, world: World) -> dict[str, Any] | None:
    """The state of the newest complete checkpoint, the same on every rank; None if there is none.

    Its tensors are mapped from a file: copy them, and let them go. An error of one rank is raised on every rank:
    ContractError if all checkpoints are damaged, StorageError if a node cannot read the one that rank 0 has chosen.
    """
    with ExitStack() as until:
        found = _attempt(lambda: checkpoints.fetch_newest(until)) if world.rank == 0 else None
        chosen, error, first_node = world.shared((*found, world.node) if found else None)
        if error is not None:
            raise error
        if chosen is None:
            return None
        path, error = (chosen.path, None) if world.rank == 0 else (None, None)
        if world.local_rank == 0 and world.node != first_node:
            path, error = _attempt(lambda: checkpoints.fetch_same(chosen, until).path)
        reports = world.gathered((world.node, path, error))
        _raise_first([error for _, _, error in reports])
        paths = {node: path for node, path, _ in reports if path is not None}
        state: dict[str, Any] = replace(chosen, path=paths[world.node]).state()
        world.gathered(None)  # every rank has mapped its file: downloads may go
        return state


def newest_step(checkpoints: Checkpoints, world: World) -> int | None:
    """The step of the newest complete checkpoint, the same on every rank; None if there is none.

    Rank 0 waits for its last write before it looks. Its error is raised on every rank.
    """
    step = on_first_rank(lambda: _newest_written(checkpoints), world)
    return None if step is None else int(step)


def on_first_rank(action: Callable[[], Result], world: World) -> Result | None:
    """What rank 0 has done, and its result, on every rank; an error of it is raised on every rank."""
    result: Result | None
    result, error = world.shared(_attempt(action) if world.rank == 0 else None)
    _raise_first([error])
    return result


def _newest_written(checkpoints: Checkpoints) -> int | None:
    checkpoints.wait()
    return checkpoints.newest()


def start_weights(
    storage: Storage, start: Manifest, decays: Sequence[float], world: World
) -> dict[float, dict[str, Tensor]]:
    """The weights that each average of a training starts from, by its decay, on every rank.

    They are the average of the same decay of the artifact `start`, or its first where it has none of that decay. The
    tensors are mapped from files, which the first rank of a node downloads. An error of one rank is raised on every
    rank: ContractError if a file is damaged.
    """
    weights, error = _attempt(lambda: _weights_of(storage, start, decays)) if world.local_rank == 0 else (None, None)
    _raise_first(world.gathered(error))
    if weights is None:
        weights, error = _attempt(lambda: _weights_of(storage, start, decays))
    _raise_first(world.gathered(error))
    assert weights is not None
    return weights


def _weights_of(storage: Storage, start: Manifest, decays: Sequence[float]) -> dict[float, dict[str, Tensor]]:
    kept = start.details.get("averages", ())  # not of a tokenizer, nor of what was imported
    names = {decay: sit_weights(start, decay if decay in kept else None) for decay in decays}
    paths = local_copies(storage, start, set(names.values()), cache_folder() / "weights")
    mapped = {name: load_file(path) for name, path in paths.items()}
    return {decay: mapped[name] for decay, name in names.items()}


def load_start(module: torch.nn.Module, weights: dict[str, Tensor], start: str) -> None:
    """Load the weights of the artifact `start`. ContractError with the first name whose shape differs."""
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        raise ContractError(
            f"the weights of {start}, which is to be started from, are of another network: "
            f"{_first_difference(module.state_dict(), weights)}",
            "Start from an artifact of the same network.",
        ) from error


def _first_difference(own: dict[str, Tensor], given: dict[str, Tensor]) -> str:
    for name in sorted(own.keys() | given.keys()):
        here, there = (str(list(side[name].shape)) if name in side else "missing" for side in (own, given))
        if here != there:
            return f"{name} is {there} there and {here} here"
    return "their names agree, their values cannot be read"


def check_work_folder(storage: Storage, work: str, lease: str, world: World) -> None:
    """On every rank: StorageError if a node does not see the work folder, LeaseError if the lease is another's.

    A node without the mount of a shared root would take its checkpoints for missing.
    """
    path = f"{work}/lease.json"
    seen, error = _attempt(lambda: world.local_rank != 0 or storage.exists(path))
    if error is None and not seen:
        error = StorageError(
            f"node {platform.node()} does not see {storage.uri(path)}, which the driver has written",
            "Mount the root's folder on every node, or use an s3:// root.",
        )
    _, lost = _attempt(lambda: check_lease(storage, path, lease)) if world.rank == 0 else (None, None)
    reports = world.gathered((world.local_rank == 0 and seen, error, lost))
    if any(seen for seen, _, _ in reports):
        _raise_first([error for _, error, _ in reports])
    _raise_first([lost for _, _, lost in reports])


def restore_part(part: Any, state: Any) -> None:
    """Copy a saved state into an object with `state_dict`, tensor by tensor. `state` is not referenced afterwards."""
    if isinstance(part, torch.optim.Optimizer):
        _restore_optimizer(part, state)
    else:
        part.load_state_dict(state)


def _restore_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """As `Optimizer.load_state_dict`, but the settings that depend on the device stay those of this optimizer."""
    for group, saved in zip(optimizer.param_groups, state["param_groups"], strict=True):
        for parameter, key in zip(group["params"], saved["params"], strict=True):
            optimizer.state.pop(parameter, None)
            if key in state["state"]:
                of_step = parameter.device if group.get("fused") or group.get("capturable") else torch.device("cpu")
                optimizer.state[parameter] = {
                    name: _copied(value, of_step if name == "step" else parameter.device)
                    for name, value in state["state"][key].items()
                }
        for name in saved.keys() - _OWN_SETTINGS:
            own = group.get(name)
            group[name] = _copied(saved[name], own.device if isinstance(own, Tensor) else torch.device("cpu"))


def _copied(value: Any, device: torch.device) -> Any:
    return value.to(device, copy=True) if isinstance(value, Tensor) else value


def _attempt(action: Callable[[], Result]) -> tuple[Result | None, PipelineError | None]:
    """The result or the error, to be told to the other ranks, which would wait forever for a rank that raises."""
    try:
        return action(), None
    except PipelineError as error:
        return None, error


def _raise_first(errors: list[PipelineError | None]) -> None:
    for error in errors:
        if error is not None:
            raise error
