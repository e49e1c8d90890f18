"""weights.yaml and the files beside it are people's too: what they wrote stays, and what is wrong is named."""

import pytest

from pipeline.config import WeightFile, load_config
from pipeline.errors import ConfigError
from pipeline.storage import cache_folder, open_storage
from pipeline.weights import check, fetch, fetch_weights, read_recorded, resolve_weights
from pipeline.weights.local import sha256_of
from pipeline.weights.recorded import Recorded, record
from tests.pipeline.weights.test_fetching import offer, publisher, shown, vgg  # noqa: F401  # the fixture

MINE = "mine: {uri: 'file:///mnt/mine.safetensors', sha256: " + "a" * 64 + "} # of my own training"


@pytest.fixture
def place(tmp_path):
    return open_storage(str(tmp_path / "place"))


def test_an_entry_of_ones_own_is_not_replaced(publisher, place):  # noqa: F811
    text = f"# on the mount\ntiny: {{uri: file:///mnt/tiny.safetensors, sha256: {'a' * 64}}}\n"
    place.write("weights.yaml", text.encode())
    with pytest.raises(ConfigError, match=r"tiny in .*weights\.yaml is not the publisher's: file:///mnt/tiny"):
        fetch("tiny", place, shown)
    assert place.read("weights.yaml").decode() == text
    assert publisher.asked == []


def test_a_file_of_ones_own_is_not_replaced(publisher, place):  # noqa: F811
    place.write("tiny.safetensors", b"mine")
    with pytest.raises(ConfigError, match=r"tiny\.safetensors is there already, is not in weights\.yaml"):
        fetch("tiny", place, shown)
    assert place.read("tiny.safetensors") == b"mine"


def test_a_file_that_was_put_and_not_recorded_is_taken(publisher, place):  # noqa: F811
    """As a kill between the two leaves it."""
    recorded = fetch("tiny", place, shown)
    place.write("weights.yaml", b"")
    assert fetch("tiny", place, shown) == recorded


def test_comments_stay(publisher, place, monkeypatch):  # noqa: F811
    place.write("weights.yaml", f"# all of them\n\n{MINE}\n# end\n".encode())
    recorded = fetch("tiny", place, shown)
    text = place.read("weights.yaml").decode()
    assert text.startswith(f"# all of them\n\n{MINE}\n# end\ntiny:\n  uri: tiny.safetensors\n")
    place.write("tiny.safetensors", b"broken")
    assert fetch("tiny", place, shown) == recorded
    assert place.read("weights.yaml").decode() == text
    assert read_recorded(place)["mine"].sha256 == "a" * 64


def test_what_cannot_be_added_to_is_left(place):
    place.write("weights.yaml", f"{{mine: {{uri: x, sha256: {'a' * 64}}}}}\n".encode())
    before = place.read("weights.yaml")
    with pytest.raises(ConfigError, match=r"weights\.yaml.* (not valid YAML|cannot be added to)"):
        record(place, "other", Recorded(uri="y", sha256="b" * 64))
    assert place.read("weights.yaml") == before


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"a: {{uri: x, sha256: {'a' * 64}}}\na: {{uri: y, sha256: {'b' * 64}}}\n", "duplicate key 'a'"),
        ("a: {uri: x, sha256: 7}\n", r"a\.sha256: Input should be a valid string"),
        ("a: 3\n", "a: Input should be"),
        ("- a\n", "not a mapping"),
    ],
)
def test_a_wrong_entry_is_named(place, text, said):
    place.write("weights.yaml", text.encode())
    with pytest.raises(ConfigError, match=said):
        read_recorded(place)


def test_one_wrong_place_does_not_hide_the_others(place, tmp_path):
    place.write("whole", b"whole")
    record(place, "whole", Recorded(uri="whole", sha256=sha256_of(tmp_path / "place" / "whole")))
    for number, uri in enumerate((".", "http://x/y", "s3://b", "gone")):
        record(place, f"wrong{number}", Recorded(uri=uri, sha256="a" * 64))
    verdicts = {verdict.name: verdict for verdict in check(place)}
    assert [name for name, verdict in verdicts.items() if verdict.whole] == ["whole"]
    assert len(verdicts) == 5


# --- what a config says ---


def lpips_of(place, given: str) -> WeightFile | None:
    sets = [f"weights={place.root}", f"evaluate.lpips={given}"]
    return resolve_weights(load_config("quickstart", sets)).evaluate.lpips


def test_a_sum_that_is_given_counts(place):
    record(place, "vgg16", Recorded(uri="here.safetensors", sha256="a" * 64))
    given = lpips_of(place, f"{{name: vgg16, uri: s3://x/y, sha256: {'b' * 64}}}")
    assert given is not None
    assert (given.uri, given.sha256) == ("s3://x/y", "b" * 64)
    same = lpips_of(place, f"{{name: vgg16, uri: s3://x/y, sha256: {'a' * 64}}}")
    assert same is not None
    assert same.uri == place.uri("here.safetensors"), "the same file, nearer"


def test_a_file_under_a_name_that_only_the_sender_knows_is_taken(place):
    given = lpips_of(place, f"{{name: theirs, uri: s3://x/y, sha256: {'b' * 64}}}")
    assert given is not None
    assert given.uri == "s3://x/y"


def test_a_damaged_copy_in_the_cache_is_fetched_again(place, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    place.write("w.safetensors", b"whole")
    digest = sha256_of(tmp_path / "place" / "w.safetensors")
    file = WeightFile(uri=place.uri("w.safetensors"), sha256=digest)
    copy = fetch_weights(file)
    copy.write_bytes(b"damaged")
    assert fetch_weights(file).read_bytes() == b"whole"
    place.write("w.safetensors", b"another")
    copy.unlink()
    with pytest.raises(ConfigError, match=r"w\.safetensors has sha256 .* not"):
        fetch_weights(file)
    assert list((cache_folder() / "weights").iterdir()) == []


@pytest.mark.parametrize("uri", ["package:nope.bar:x", "package:os:nofile", "package:xml:dom", "package::x"])
def test_a_file_that_a_package_lacks(uri):
    with pytest.raises(ConfigError, match=r"(not installed|has no file)"):
        fetch_weights(WeightFile(uri=uri, sha256="a" * 64))


def test_a_folder_is_no_file(place, tmp_path):
    (tmp_path / "place" / "folder").mkdir(parents=True)
    with pytest.raises(ConfigError, match="folder are a folder"):
        fetch_weights(WeightFile(uri=place.uri("folder"), sha256="a" * 64))
