"""Restoring on several ranks and nodes: one reader a node, the same state or the same error on every rank."""

import copy
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pipeline.artifacts.lease import Holder
from pipeline.errors import ContractError, LeaseError, PipelineError, StorageError
from pipeline.storage.local import LocalStorage
from pipeline.storage.uri import open_storage
from pipeline.training.checkpoint import Checkpoints
from pipeline.training.restore import check_work_folder, newest_state, newest_step, restore_part
from pipeline.training.world import World
from tests.support.trainers import same_state

NODES = [0, 0, 1, 1]  # of four ranks


class Group:
    """What the ranks, which are threads here, tell each other."""

    def __init__(self, size: int) -> None:
        self.barrier, self.values = threading.Barrier(size, timeout=20), [None] * size

    def exchange(self, rank: int, value: Any) -> list[Any]:
        self.values[rank] = value
        self.barrier.wait()
        values = copy.copy(self.values)
        self.barrier.wait()
        return values


class Rank(World):
    """A rank in a thread."""

    def __init__(self, group: Group, rank: int) -> None:
        super().__init__(rank, len(NODES), torch.device("cpu"), NODES[rank], rank % 2)
        object.__setattr__(self, "group", group)

    def gathered(self, value: Any) -> list[Any]:
        group: Group = vars(self)["group"]
        return group.exchange(self.rank, value)

    def shared(self, value: Any) -> Any:
        return self.gathered(value)[0]


def on_all_ranks(action: Callable[[World], Any]) -> list[Any]:
    """What each rank returns, or raises."""
    group = Group(len(NODES))

    def run(rank: int) -> Any:
        try:
            return action(Rank(group, rank))
        except PipelineError as error:
            return error

    with ThreadPoolExecutor(len(NODES)) as pool:
        return list(pool.map(run, range(len(NODES))))


@pytest.fixture
def saved(any_root: str) -> Checkpoints:
    """Two checkpoints, of which the newer one is damaged."""
    storage = open_storage(any_root)
    checkpoints = Checkpoints(storage, "work/checkpoints", 2)
    for step in (1, 2):
        checkpoints.save(step, {"step": step, "x": torch.full((1000,), float(step))})
    checkpoints.wait()
    storage.write("work/checkpoints/000000002/state.safetensors", b"damaged")
    return checkpoints


def reading(storages: list[Any], disk: Path) -> list[Any]:
    """What each rank restores, with a storage and a disk for each node."""
    return on_all_ranks(
        lambda world: newest_state(
            Checkpoints(storages[world.node], "work/checkpoints", 2, disk / str(world.node)), world
        )
    )


def test_every_rank_has_the_state_and_every_node_reads_it_once(
    saved: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched = list[Any]()
    fetch = Checkpoints._fetch

    def counted(self: Checkpoints, step: int, *arguments: Any) -> Any:
        fetched.append((step, self.disk.name))
        return fetch(self, step, *arguments)

    monkeypatch.setattr(Checkpoints, "_fetch", counted)
    states = reading([saved.storage] * 2, tmp_path / "disk")
    assert all(same_state(state, {"step": 1, "x": torch.ones(1000)}) for state in states)
    assert fetched == [(2, "0"), (1, "0"), (1, "1")], "rank 0 chooses, and the other node reads its choice"
    assert not list((tmp_path / "disk").glob("*/*"))


def test_nothing_was_saved(any_root: str, tmp_path: Path) -> None:
    assert reading([open_storage(any_root)] * 2, tmp_path) == [None] * 4


class SlowStorage(LocalStorage):
    """A folder to which tensors are written slowly."""

    def write_stream(self, path: str, blocks: Any) -> None:
        if path.endswith(".safetensors"):
            time.sleep(0.3)
        super().write_stream(path, blocks)


def test_every_rank_names_the_checkpoint_that_is_being_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 0 alone knows of it, and alone reads it."""
    read = list[int]()
    newest = Checkpoints.newest

    def counted(self: Checkpoints) -> int | None:
        read.append(1)
        return newest(self)

    def stop(world: World) -> int | None:
        checkpoints = Checkpoints(SlowStorage(tmp_path), "work/checkpoints", 2)
        if world.rank == 0:
            checkpoints.save(7, {"x": torch.ones(3)})
        return newest_step(checkpoints, world)

    monkeypatch.setattr(Checkpoints, "newest", counted)
    assert on_all_ranks(stop) == [7] * 4
    assert len(read) == 1


def test_a_checkpoint_that_could_not_be_written_is_told_by_every_rank(tmp_path: Path) -> None:
    def stop(world: World) -> int | None:
        checkpoints = Checkpoints(LocalStorage(tmp_path / "file" / "root"), "work/checkpoints", 2)
        if world.rank == 0:
            checkpoints.save(7, {"x": torch.ones(3)})
        return newest_step(checkpoints, world)

    (tmp_path / "file").write_bytes(b"no folder")
    raised = on_all_ranks(stop)
    assert [type(error) for error in raised] == [StorageError] * 4
    assert len({str(error) for error in raised}) == 1


def test_all_are_damaged(saved: Checkpoints, tmp_path: Path) -> None:
    saved.storage.delete("work/checkpoints/000000001/state.safetensors")
    raised = reading([saved.storage] * 2, tmp_path / "disk")
    assert [type(error) for error in raised] == [ContractError] * 4
    assert len({str(error) for error in raised}) == 1


@pytest.mark.parametrize("how", ["nothing", "another", "cut"])
def test_a_node_that_reads_something_else_stops_all(tmp_path: Path, how: str) -> None:
    """As without the mount of a shared folder; nothing is removed, and nothing begins anew."""
    storage, other = LocalStorage(tmp_path / "root"), LocalStorage(tmp_path / "other")
    checkpoints = Checkpoints(storage, "work/checkpoints", 2)
    checkpoints.save(5, {"x": torch.ones(3)})
    checkpoints.wait()
    if how == "another":
        elsewhere = Checkpoints(other, "work/checkpoints", 2)
        elsewhere.save(5, {"x": torch.zeros(3)})
        elsewhere.wait()
    elif how == "cut":
        shutil.copytree(tmp_path / "root", tmp_path / "other")
        other.write("work/checkpoints/000000005/state.safetensors", b"cut")
    before = [list(place.list()) for place in (storage, other)]
    for storages in ([storage, other], [other, storage]):
        if how != "another" and storages[0] is other:
            continue  # rank 0 finds none, or a damaged one
        raised = reading(storages, tmp_path / "disk")
        assert [type(error) for error in raised] == [StorageError] * 4
        place = storages[1].uri("work/checkpoints/000000005")
        assert f"does not read the checkpoint at {place} that the first worker resumes from" in str(raised[0])
    assert [list(place.list()) for place in (storage, other)] == before


def test_a_node_that_does_not_see_the_work_folder(tmp_path: Path) -> None:
    """Whichever it is; and if no node sees the lease, or another's, it was lost."""
    there, absent = LocalStorage(tmp_path / "root"), LocalStorage(tmp_path / "absent")
    holder = Holder(owner="test", machine="m", pid=1, started=0, nonce="mine", token=1, heartbeat=0)
    there.write("work/lease.json", holder.model_dump_json().encode())

    def check(storages: list[LocalStorage], nonce: str = "mine") -> list[Any]:
        return on_all_ranks(lambda world: check_work_folder(storages[world.node], "work", nonce, world))

    assert check([there, there]) == [None] * 4
    for storages in ([there, absent], [absent, there]):
        raised = check(storages)
        assert [type(error) for error in raised] == [StorageError] * 4
        assert f"does not see {absent.uri('work/lease.json')}" in str(raised[0])
    assert [type(error) for error in check([absent, absent])] == [LeaseError] * 4
    assert [type(error) for error in check([there, there], "another's")] == [LeaseError] * 4


# --- parts ---


def trained(**settings: Any) -> tuple[nn.Linear, torch.optim.AdamW]:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2, **settings)
    step(model, optimizer)
    return model, optimizer


def step(model: nn.Linear, optimizer: torch.optim.AdamW) -> None:
    torch.autograd.backward(model(torch.linspace(0, 1, 3)).square().sum())
    optimizer.step()
    optimizer.zero_grad()


def through_a_file(state: Any, folder: Path) -> Any:
    checkpoints = Checkpoints(open_storage(str(folder)), "c", 1)
    checkpoints.save(1, {"state": state})
    checkpoints.wait()
    return checkpoints.load(1)["state"]


def test_an_optimizer_goes_on_as_if_never_saved(tmp_path: Path) -> None:
    """As torch's own loading does it, and the file may change afterwards."""
    model, optimizer = trained()
    again, restored = trained()
    other, by_torch = trained()
    step(again, restored)  # what is there is replaced
    state = through_a_file(optimizer.state_dict(), tmp_path)
    by_torch.load_state_dict(copy.deepcopy(state))
    restore_part(restored, state)
    assert same_state(restored.state_dict(), by_torch.state_dict())
    again.load_state_dict(model.state_dict())
    addresses = {tensor.data_ptr() for kept in state["state"].values() for tensor in kept.values()}
    assert not addresses & {tensor.data_ptr() for kept in restored.state.values() for tensor in kept.values()}
    for _ in range(3):
        step(model, optimizer)
        step(again, restored)
        step(other, by_torch)
    assert same_state(again.state_dict(), model.state_dict())
    assert same_state(other.state_dict(), model.state_dict())


def test_settings_of_the_device_are_the_optimizers_own(tmp_path: Path) -> None:
    """A training that began on CPUs goes on by the fused optimizer of a GPU, and the other way round."""
    for saved, own in ((False, True), (True, False)):
        state = through_a_file(trained(fused=saved)[1].state_dict(), tmp_path / str(saved))
        model, optimizer = trained(fused=own)
        optimizer.param_groups[0]["lr"] = 9.0
        restore_part(optimizer, state)
        assert optimizer.param_groups[0]["fused"] is own
        assert optimizer.param_groups[0]["lr"] == 1e-2
        step(model, optimizer)
        assert all(kept["step"] == 2 for kept in optimizer.state.values())


def test_parts_that_were_never_stepped(tmp_path: Path) -> None:
    """The discriminator's optimizer is empty before it begins."""
    _, optimizer = trained()
    fresh = torch.optim.AdamW(nn.Linear(3, 2).parameters(), 1e-2)
    restore_part(optimizer, through_a_file(fresh.state_dict(), tmp_path))
    assert not optimizer.state
