"""Checkpoints: what is saved is what is loaded, whatever a kill has left between the two files."""

import json
import math
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ContractError
from pipeline.storage.uri import open_storage
from pipeline.training.checkpoint import Checkpoints, flatten_state, unflatten_state
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
    leaves | st.integers(0, 5).map(lambda n: torch.arange(n, dtype=torch.float32)),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=4).filter(lambda key: not key.startswith("__")), inner, max_size=3)
        | st.dictionaries(st.integers(0, 9), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(states)
def test_flattening_is_undone(state: Any) -> None:
    tree, tensors = flatten_state(state)
    assert same_state(unflatten_state(json.loads(json.dumps(tree)), tensors), state)


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
