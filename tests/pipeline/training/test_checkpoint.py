"""Checkpoints: what is saved is what is loaded, whatever a kill has left between the two files."""

import hashlib
import json
import math
import os
import random
import tempfile
import threading
import time
from contextlib import ExitStack, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torch.multiprocessing as mp
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.checkpoint import run_side
from pipeline.errors import ContractError, StorageError
from pipeline.storage.uri import open_storage
from pipeline.training.checkpoint import Checkpoints, flatten_state, unflatten_state
from tests.pipeline.training.test_tensor_file import tensors
from tests.support.trainers import same_state

BROKEN: dict[str, tuple[str, bytes | None]] = {  # file, what is left of it
    "killed between the files": ("state.json", None),
    "cut text": ("state.json", b'{"sha256": "0'),
    "other JSON": ("state.json", b"[1]"),
    "no digest": ("state.json", b'{"state": {}}'),
    "no tensors": ("state.safetensors", None),
    "cut tensors": ("state.safetensors", b"\0" * 20),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_checkpoint_is_passed_over(tmp_path: Path, how: str) -> None:
    name, content = BROKEN[how]
    storage = open_storage(tmp_path.as_uri())
    checkpoints = Checkpoints(storage, "c", keep=5)
    for step in (1, 2):
        checkpoints.save(step, {"step": step, "x": torch.full((3,), float(step))})
    checkpoints.wait()
    if content is None:
        storage.delete(f"c/000000002/{name}")
    else:
        storage.write(f"c/000000002/{name}", content)
    assert checkpoints.newest() == 1
    assert checkpoints.load(1)["x"].tolist() == [1, 1, 1]
    with pytest.raises(ContractError, match="not a complete checkpoint"):
        checkpoints.load(2)


def test_only_the_newest_checkpoints_stay(tmp_path: Path) -> None:
    checkpoints = Checkpoints(open_storage(tmp_path.as_uri()), "c", keep=2)
    for step in range(5):
        checkpoints.save(step, {"step": step})
    checkpoints.wait()
    assert checkpoints.steps() == [4, 3]


def test_other_folders_beside_checkpoints_are_left_alone(any_root: str, tmp_path: Path) -> None:
    """As of somebody who restores one from a backup and keeps the damaged one."""
    storage = open_storage(any_root)
    checkpoints = Checkpoints(storage, "c", 1, tmp_path / "disk")
    storage.write("c/000000001.damaged/state.json", b"{}")
    for step in (1, 2):
        checkpoints.save(step, {"step": step})
    checkpoints.wait()
    assert checkpoints.newest() == 2
    assert storage.folders("c") == ["000000001.damaged", "000000002"]


def test_a_saved_state_does_not_move_with_training(tmp_path: Path) -> None:
    """The copy is taken before `save` returns, though it is written later."""
    checkpoints = Checkpoints(open_storage(tmp_path.as_uri()), "c", keep=2)
    tensor = torch.zeros(3)
    checkpoints.save(1, {"x": tensor})
    tensor.fill_(9)
    checkpoints.wait()
    assert checkpoints.load(1)["x"].tolist() == [0, 0, 0]


leaves = st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats(allow_nan=False) | st.text(max_size=5)
states = st.recursive(
    leaves | tensors,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=4).filter(lambda key: not key.startswith("__")), inner, max_size=3)
        | st.dictionaries(st.integers(0, 9), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(states)
def test_what_is_saved_is_loaded_to_the_last_bit(state: Any) -> None:
    tree, found = flatten_state(state)
    assert same_state(unflatten_state(json.loads(json.dumps(tree)), found), state)
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Checkpoints(open_storage(folder), "c", keep=1)
        checkpoints.save(7, {"all": state})
        checkpoints.wait()
        assert same_state(checkpoints.load(7), {"all": state})


def test_checkpoints_of_earlier_commits_are_loaded(any_root: str, tmp_path: Path) -> None:
    """As they were written before: by safetensors itself, with a JSON file beside them."""
    storage, x = open_storage(any_root), torch.arange(3.0)
    data = safetensors.torch.save({"/x": x})
    storage.write("c/000000004/state.safetensors", data)
    text = {"sha256": hashlib.sha256(data).hexdigest(), "state": {"step": 4, "x": {"__tensor__": "/x"}}}
    storage.write("c/000000004/state.json", json.dumps(text).encode())
    checkpoints = Checkpoints(storage, "c", 1, tmp_path / "disk")
    assert checkpoints.newest() == 4
    assert same_state(checkpoints.load(4), {"step": 4, "x": x})


def test_nothing_stays_on_the_disk_of_the_node(s3_root: str, tmp_path: Path) -> None:
    """Neither of a download, nor of one whose process was killed; what another process reads stays."""
    storage, disk = open_storage(s3_root), tmp_path / "disk"
    checkpoints = Checkpoints(storage, "c", 2, disk)
    for step in (1, 2):
        checkpoints.save(step, {"x": torch.full((3,), float(step))})
    checkpoints.wait()
    (disk / "of a killed process").mkdir(parents=True)
    (disk / "of a killed process" / "state.safetensors").write_bytes(b"1")
    storage.write("c/000000002/state.safetensors", b"damaged")
    with ExitStack() as until:
        copy = checkpoints.fetch_newest(until)
        assert copy is not None
        assert [path.parent for path in disk.glob("*/*")] == [copy.path.parent]
        assert Checkpoints(storage, "c", 2, disk).load(1)["x"].tolist() == [1, 1, 1]
        state = copy.state()
        assert copy.path.exists()
    assert list(disk.iterdir()) == []
    assert state["x"].tolist() == [1, 1, 1], "mapped, though the file is deleted"


def test_if_all_are_damaged_the_training_does_not_begin_anew(any_root: str, tmp_path: Path) -> None:
    storage = open_storage(any_root)
    checkpoints = Checkpoints(storage, "c", 2, tmp_path / "disk")
    for step in (1, 2):
        checkpoints.save(step, {"step": step})
    checkpoints.wait()
    storage.delete("c/000000001/state.safetensors")
    storage.write("c/000000002/state.json", b"{}")
    with pytest.raises(ContractError, match=r"c/000000002 is damaged \(state\.json is not what was written\)"):
        checkpoints.newest()


def test_one_that_was_never_complete_is_none(any_root: str, tmp_path: Path) -> None:
    """A training that is killed while it writes its first checkpoint begins anew."""
    storage = open_storage(any_root)
    storage.write("c/000000001/state.safetensors", b"cut off")
    assert Checkpoints(storage, "c", 2, tmp_path / "disk").newest() is None


def test_the_old_ones_stay_until_the_new_one_is_complete(tmp_path: Path) -> None:
    storage = open_storage(tmp_path.as_uri())
    checkpoints = Checkpoints(storage, "c", keep=1)
    checkpoints.save(1, {"step": 1})
    checkpoints.wait()
    storage.write("c/000000002/state.safetensors", b"cut off")
    storage.write("c/000000009/state.safetensors", b"of a later step, which is made again")

    def fails(path: str, blocks: Any) -> None:
        raise StorageError("the disk is full")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "write_stream", fails)
        checkpoints.save(3, {"step": 3})
        with pytest.raises(StorageError, match="full"):
            checkpoints.wait()
    assert checkpoints.newest() == 1
    checkpoints.save(4, {"step": 4})
    checkpoints.wait()
    assert checkpoints.steps() == [4]


def test_an_error_of_the_writer_is_raised_by_the_next_save(tmp_path: Path) -> None:
    storage = open_storage(tmp_path.as_uri())
    checkpoints = Checkpoints(storage, "c", keep=2)

    def fails(path: str, blocks: Any) -> None:
        raise StorageError("the disk is full")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "write_stream", fails)
        checkpoints.save(1, {"step": 1})
        with pytest.raises(StorageError, match="full"):
            checkpoints.save(2, {"step": 2})
    checkpoints.save(3, {"step": 3})
    checkpoints.wait()
    assert checkpoints.newest() == 3


@pytest.mark.slow
@pytest.mark.parametrize("where", ["file", "s3"])
def test_a_state_is_in_memory_once_more_and_no_oftener(
    tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Measured from outside, on a state of 130 MB; on S3, four parts of 16 MiB are on their way besides."""
    uri = tmp_path.as_uri() if where == "file" else request.getfixturevalue("s3_root")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    here, size = Path(__file__).parents[3], 130_000_000
    besides = 0.02 if where == "file" else 0.5
    for row in run_side(here, "save", uri, size, {}):
        assert row["memory"] < 1 + besides
    (row,) = run_side(here, "load", uri, size, {})
    assert row["memory"] < 0.05 + besides


def write_until_killed(root: str, step: int, environment: dict[str, str], told: Connection) -> None:
    """Save every step from this one on; tells each that is complete."""
    os.environ.update(environment)
    checkpoints = Checkpoints(open_storage(root), "c", keep=1)
    while True:
        checkpoints.save(step, {"step": step, "x": torch.full((500_000,), float(step))})
        checkpoints.wait()
        told.send(step)
        step += 1


@pytest.mark.slow
def test_after_every_kill_there_is_a_complete_checkpoint(any_root: str, tmp_path: Path) -> None:
    """Killed at random moments; the last one that was told complete, or a later one, is there."""
    chance, checkpoints = random.Random(0), Checkpoints(open_storage(any_root), "c", 1, tmp_path / "disk")
    context = mp.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    written = 0
    for _ in range(12):
        told, end = context.Pipe(duplex=False)
        process = context.Process(target=write_until_killed, args=(any_root, written + 1, dict(os.environ), end))
        process.start()
        end.close()
        written = told.recv()
        time.sleep(chance.uniform(0, 0.1))
        process.kill()
        process.join()
        with suppress(EOFError):
            while True:
                written = told.recv()
        newest = checkpoints.newest()
        assert newest is not None
        assert newest >= written
        state = checkpoints.load(newest)
        assert state["step"] == newest
        assert state["x"].eq(newest).all()
        written = newest


def test_none_is_begun_while_one_is_written(tmp_path: Path) -> None:
    storage = open_storage(tmp_path.as_uri())
    checkpoints, goes_on = Checkpoints(storage, "c", keep=2), threading.Event()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "write", lambda *_: goes_on.wait())
        checkpoints.save(1, {"step": 1})
        assert not checkpoints.would_finish_by(math.inf)
        goes_on.set()
        checkpoints.wait()
    assert checkpoints.would_finish_by(math.inf)
