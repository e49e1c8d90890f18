"""Manifest, commit and lease, on file:// and s3:// alike: an artifact is whole or not there, and has one writer."""

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from pipeline.artifacts import lease as lease_module
from pipeline.artifacts.files import broken_files, local_copies, read_checked
from pipeline.artifacts.lease import Holder, Lease, await_free, check_idle
from pipeline.artifacts.manifest import Manifest, all_manifests, git_sha, read_manifest, remove_artifact
from pipeline.artifacts.writer import ArtifactWriter, commit
from pipeline.errors import ContractError, LeaseError, StorageError
from pipeline.storage.base import Storage
from pipeline.storage.uri import open_storage
from pipeline.workflow.lineage import unneeded

FINGERPRINT = "ab" * 32


def manifest_of(writer: ArtifactWriter, **changes: Any) -> Manifest:
    fields: dict[str, Any] = {
        "stage": "prepare", "fingerprint": FINGERPRINT, "inputs": {}, "input_contents": {}, "config": {},
        "files": writer.files, "rows": 1, "metrics": {}, "details": {}, "seconds": 1.0, "git_sha": None,
        "image_digest": None, "created": "2026-01-01T00:00:00+00:00",
    }  # fmt: skip
    return Manifest(**{**fields, **changes})


def made(storage: Storage, **changes: Any) -> Manifest:
    stage, fingerprint = changes.get("stage", "prepare"), changes.get("fingerprint", FINGERPRINT)
    writer = ArtifactWriter(storage, stage, fingerprint)
    writer.add_bytes(b"content", "a/file")
    manifest = manifest_of(writer, **changes)
    lease = Lease(storage, stage, fingerprint)
    commit(storage, manifest, lease)
    lease.release(finished=True)
    return manifest


def foreign(storage: Storage, **changes: Any) -> Holder:
    """A lease of a driver on another machine."""
    fields = {"owner": "ann@far process 7", "machine": "far/1", "pid": 7, "started": 1.0, "nonce": "n", "token": 4}
    holder = Holder(**{**fields, "heartbeat": time.time(), **changes})
    storage.write(f".work/prepare/{FINGERPRINT[:12]}/lease.json", holder.model_dump_json().encode())
    return holder


def test_an_artifact_exists_when_its_manifest_does(any_root: str) -> None:
    storage = open_storage(any_root)
    lease = Lease(storage, "prepare", FINGERPRINT)
    writer = ArtifactWriter(storage, "prepare", FINGERPRINT)
    writer.add_bytes(b"content", "file")
    storage.write(f"{writer.folder}/left-over", b"from an attempt that was cut")
    assert read_manifest(storage, "prepare", FINGERPRINT) is None
    assert all_manifests(storage) == []
    commit(storage, manifest_of(writer), lease)
    assert read_manifest(storage, "prepare", FINGERPRINT) == manifest_of(writer)
    assert [entry.path for entry in storage.list(writer.folder)] == [
        f"{writer.folder}/file", f"{writer.folder}/manifest.json",
    ]  # fmt: skip
    with pytest.raises(LeaseError, match="committed by another driver"):
        commit(storage, manifest_of(writer, rows=2), lease)
    lease.release(finished=True)
    assert list(storage.list(".work/prepare")) == []


def test_a_second_driver_is_refused_with_the_owners_name(any_root: str) -> None:
    storage = open_storage(any_root)
    lease = Lease(storage, "prepare", FINGERPRINT)
    with pytest.raises(LeaseError, match=rf"prepare is already running: {lease.holder.owner} holds"):
        Lease(storage, "prepare", FINGERPRINT)
    lease.release(finished=False)
    Lease(storage, "prepare", FINGERPRINT).release(finished=False)


@pytest.mark.parametrize("changes", [{"pid": 2**22 + 1}, {"started": 5.0}])
def test_a_dead_owners_lease_is_free_at_once_on_one_machine(any_root: str, changes: dict[str, Any]) -> None:
    """Dead, or its process number has gone to another process."""
    storage = open_storage(any_root)
    theirs = foreign(storage, machine=lease_module._machine(), **({"pid": 1} | changes))
    lease = Lease(storage, "prepare", FINGERPRINT)
    assert lease.holder.token == theirs.token + 1
    lease.release(finished=False)


def test_elsewhere_a_lease_is_free_after_a_minute_of_silence(any_root: str) -> None:
    storage = open_storage(any_root)
    foreign(storage, heartbeat=time.time() - 50)
    with pytest.raises(LeaseError, match=r"ann@far process 7.*60 s"):
        Lease(storage, "prepare", FINGERPRINT)
    foreign(storage, heartbeat=time.time() - 61)
    lease = Lease(storage, "prepare", FINGERPRINT)
    assert lease.holder.token == 5
    lease.release(finished=False)


def test_who_waits_for_a_dead_driver_elsewhere_gets_its_lease(any_root: str) -> None:
    """A head that is replaced within seconds: the driver on it is dead, though its lease looks alive."""
    storage = open_storage(any_root)
    foreign(storage, heartbeat=time.time() - 58)
    told: list[str] = []
    await_free(storage, "prepare", FINGERPRINT, told.append)
    lease = Lease(storage, "prepare", FINGERPRINT)
    assert lease.holder.token == 5
    (line,) = told
    assert line.startswith("prepare: ann@far process 7 holds its lease; waiting up to 60 s")
    lease.release(finished=False)


def test_who_waits_for_a_living_driver_elsewhere_is_refused_at_its_next_sign_of_life(any_root: str) -> None:
    storage = open_storage(any_root)
    foreign(storage)
    threading.Timer(1.5, lambda: foreign(storage, heartbeat=time.time())).start()
    begin = time.monotonic()
    with pytest.raises(LeaseError, match="is already running: ann@far process 7"):
        await_free(storage, "prepare", FINGERPRINT, lambda _: None)
    assert 1 < time.monotonic() - begin < 30


def test_nobody_waits_for_a_driver_on_the_same_machine(any_root: str) -> None:
    storage = open_storage(any_root)
    lease = Lease(storage, "prepare", FINGERPRINT)
    told: list[str] = []
    with pytest.raises(LeaseError, match="is already running"):
        await_free(storage, "prepare", FINGERPRINT, told.append)
    assert told == []
    lease.release(finished=False)
    await_free(storage, "prepare", FINGERPRINT, told.append)
    assert told == []


def test_who_is_patient_waits_for_a_living_driver(any_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond its signs of life, until it gives the lease back; one line is told, and a second of the next owner."""
    monkeypatch.setattr(lease_module, "_PATIENT_SECONDS", 0.1)
    storage = open_storage(any_root)
    foreign(storage)
    told: list[str] = []
    threading.Timer(1.2, lambda: foreign(storage, heartbeat=time.time())).start()
    threading.Timer(2.4, lambda: foreign(storage, owner="bea@far process 8", nonce="another")).start()
    threading.Timer(3.6, lambda: storage.delete(f".work/prepare/{FINGERPRINT[:12]}/lease.json")).start()
    begin = time.monotonic()
    await_free(storage, "prepare", FINGERPRINT, told.append, patient=True)
    assert 3.5 < time.monotonic() - begin < 30
    assert [line.partition(", who")[0] for line in told] == [
        "prepare: waiting for ann@far process 7", "prepare: waiting for bea@far process 8",
    ]  # fmt: skip


def test_who_was_taken_over_cannot_commit(any_root: str) -> None:
    storage = open_storage(any_root)
    lease = Lease(storage, "prepare", FINGERPRINT)
    writer = ArtifactWriter(storage, "prepare", FINGERPRINT)
    theirs = foreign(storage)
    lease.renew()
    with pytest.raises(LeaseError, match="taken over by ann@far process 7"):
        commit(storage, manifest_of(writer), lease)
    lease.release(finished=True)
    assert read_manifest(storage, "prepare", FINGERPRINT) is None
    text = storage.read(lease.path)
    assert Holder.model_validate_json(text) == theirs, "another's lease was touched"
    storage.delete(lease.path)
    with pytest.raises(LeaseError, match="was deleted"):
        lease.check()


def test_the_heart_beats_and_time_adds_up(any_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "HEARTBEAT_SECONDS", 0.05)
    storage = open_storage(any_root)
    lease = Lease(storage, "prepare", FINGERPRINT)
    begin = lease.holder.heartbeat
    for _ in range(100):
        time.sleep(0.05)
        if Holder.model_validate_json(storage.read(lease.path)).heartbeat > begin:
            break
    else:
        pytest.fail("no heartbeat")
    lease.release(finished=False)
    first = float(storage.read(next(storage.list(f"{lease.folder}/attempts")).path))
    again = Lease(storage, "prepare", FINGERPRINT)
    assert again.seconds() >= first > 0
    again.release(finished=False)


def test_a_full_disk_does_not_keep_a_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = open_storage(str(tmp_path))
    lease = Lease(storage, "prepare", FINGERPRINT)

    def full(*_: object) -> None:
        raise StorageError("the disk is full")

    monkeypatch.setattr(storage, "write", full)
    lease.release(finished=False)
    assert not storage.exists(lease.path)


def test_broken_files_are_found(any_root: str, tmp_path: Path) -> None:
    storage = open_storage(any_root)
    manifest = made(storage)
    path = f"prepare/{FINGERPRINT[:12]}/a/file"
    assert broken_files(storage, manifest) == []
    copies = local_copies(storage, manifest, ["a/file"], tmp_path / "scratch")
    assert copies["a/file"].read_bytes() == b"content"
    storage.write(path, b"kontent")
    assert broken_files(storage, manifest) == ["a/file"]
    with pytest.raises(ContractError, match=r"does not match its manifest.*artifact repair prepare/abab"):
        local_copies(storage, manifest, ["a/file"], tmp_path / "other")
    storage.delete(path)
    assert broken_files(storage, manifest) == ["a/file"]
    remove_artifact(storage, "prepare", FINGERPRINT)
    assert list(storage.list("prepare")) == []


def test_what_is_no_manifest_is_not_taken_for_one(any_root: str) -> None:
    storage = open_storage(any_root)
    path = f"prepare/{FINGERPRINT[:12]}/manifest.json"
    for text in (b"", b"{", b"{}"):
        storage.write(path, text)
        with pytest.raises(ContractError, match="is not a manifest"):
            read_manifest(storage, "prepare", FINGERPRINT)
    other = manifest_of(ArtifactWriter(storage, "prepare", FINGERPRINT), fingerprint=FINGERPRINT[:-1] + "c")
    storage.write(path, other.model_dump_json().encode())
    with pytest.raises(ContractError, match="has another fingerprint"):
        read_manifest(storage, "prepare", FINGERPRINT)


def test_what_nothing_kept_goes_back_to_is_unneeded(any_root: str) -> None:
    storage = open_storage(any_root)
    made(storage)
    child = made(storage, stage="train-tokenizer", fingerprint="cd" * 32, inputs={"prepare": FINGERPRINT})
    other = made(storage, fingerprint="ef" * 32)
    assert unneeded(storage, {child.fingerprint}) == [other]
    made(storage, stage="register", fingerprint="01" * 32, inputs={"prepare": other.fingerprint})
    assert unneeded(storage, {child.fingerprint}) == []


def test_a_file_that_has_changed_is_not_read(any_root: str) -> None:
    storage = open_storage(any_root)
    writer = ArtifactWriter(storage, "prepare", FINGERPRINT)
    writer.add_bytes(b"content", "file")
    known = manifest_of(writer)
    assert read_checked(storage, known, "file") == b"content"
    storage.write(f"{writer.folder}/file", b"contend")
    with pytest.raises(ContractError, match=r"does not match its manifest.*artifact repair"):
        read_checked(storage, known, "file")
    storage.delete(f"{writer.folder}/file")
    with pytest.raises(ContractError, match="does not match its manifest"):
        read_checked(storage, known, "file")


def test_what_is_being_made_is_not_idle(any_root: str) -> None:
    storage = open_storage(any_root)
    check_idle(storage)
    lease = Lease(storage, "prepare", FINGERPRINT)
    with pytest.raises(LeaseError, match="is already running"):
        check_idle(storage)
    lease.release(finished=False)
    check_idle(storage)


def test_without_git_there_is_no_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DVAE_GIT_SHA", raising=False)
    monkeypatch.setenv("PATH", "/nonexistent")
    git_sha.cache_clear()
    assert git_sha() is None
    git_sha.cache_clear()
