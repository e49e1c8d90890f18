"""`sample`: the same pictures however they are asked for, files of the right form, going on after a cut, refusals."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner, Result

from pipeline.artifacts import Manifest
from pipeline.cli.app import app
from pipeline.config import Config
from pipeline.errors import PipelineError
from pipeline.inference import Request, drawing
from pipeline.stages import sample as stage
from pipeline.workflow import artifacts_of, survey
from tests.support.artifacts import artifact_writer, fingerprint_of, manifest, put
from tests.support.contexts import untrained_generator, untrained_tokenizer
from tests.support.trainers import SETS, small_config

NAMES = [f"digit {number}" for number in range(10)]
SMALL = [*SETS, "sample.method=euler", "sample.steps=3", "sample.batch_size=4"]


class World:
    """A root with a generator of random weights."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config: Config = small_config(folder / "runs", *SMALL)
        empty = artifact_writer(self.config, "prepare")
        prepare = put(self.config, manifest(self.config, "prepare", empty, {}, class_names=NAMES))
        tokenizer = untrained_tokenizer(self.config, prepare, folder / "scratch")
        untrained_generator(self.config, {"train-tokenizer": tokenizer}, folder / "scratch")

    def call(self, *words: str) -> Result:
        sets = [word for pair in SMALL for word in ("--set", pair)]
        root = ["--root", (self.folder / "runs").as_uri()]
        return CliRunner().invoke(app, ["sample", "quickstart", *sets, *root, *words], env={"COLUMNS": "200"})

    def made(self, *words: str) -> Result:
        done = self.call(*words)
        assert done.exit_code == 0, done.output or repr(done.exception)
        return done

    def refused(self, *words: str) -> str:
        done = self.call(*words)
        assert isinstance(done.exception, PipelineError), done.output or repr(done.exception)
        assert "\n" not in str(done.exception)
        return str(done.exception)

    def artifacts(self) -> dict[str, Manifest]:
        return artifacts_of(survey(self.config))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("sample"))


def npz(path: Path) -> tuple[np.ndarray, np.ndarray]:
    with np.load(path) as file:
        assert sorted(file.files) == ["arr_0", "arr_1"]
        return file["arr_0"], file["arr_1"]


def png(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def apart(one: np.ndarray, other: np.ndarray) -> int:
    assert one.shape == other.shape
    return int(np.abs(one.astype(int) - other).max())


# --- which picture is which ---


@given(st.integers(1, 50), st.integers(1, 5), st.data())
def test_a_picture_keeps_its_noise_whatever_else_is_asked_for(classes: int, count: int, data: st.DataObject) -> None:
    labels = data.draw(st.lists(st.integers(0, classes - 1), min_size=1, unique=True))
    asked = Request(labels, count, classes)
    noise = {(asked.label(place), asked.number(place)): asked.index(place) for place in range(len(asked))}
    assert len(set(noise.values())) == len(noise) == len(labels) * count
    label = data.draw(st.sampled_from(labels))
    alone = Request([label], count + 1, classes)
    assert [noise[label, number] for number in range(count)] == [alone.index(number) for number in range(count)]
    assert all(index % classes == label for (label, _), index in noise.items())  # as in the stage
    assert [asked.label(place) for place in range(len(labels))] == labels  # all classes' first pictures come first


def test_a_picture_is_the_same_alone_and_among_others(world: World, tmp_path: Path) -> None:
    world.made("--class", "2-4,7", "--n", "3", "--out", str(tmp_path / "all"))
    world.made("--class", "7", "--n", "2", "--out", str(tmp_path / "one"), "--set", "sample.batch_size=1")
    for name in ("class0007-0000.png", "class0007-0001.png"):
        assert apart(png(tmp_path / "all" / name), png(tmp_path / "one" / name)) <= 1
    assert len(list((tmp_path / "all").iterdir())) == 4 * 3
    pictures = {path.name: png(path).tobytes() for path in (tmp_path / "all").iterdir()}
    assert len(set(pictures.values())) == len(pictures)


def test_all_classes_are_the_pictures_of_the_stage(world: World, tmp_path: Path) -> None:
    world.made("--class", "0-9", "--n", "2", "--npz", str(tmp_path / "all.npz"))
    images, labels = npz(tmp_path / "all.npz")
    config = world.config
    inputs = {name: world.artifacts()[name] for name in ("train-tokenizer", "train-sit")}
    spec = stage.Spec(config.root, inputs, fingerprint_of(config, "sample"), config.sampling(), None, 10, 0, 20)
    record = stage.generate(spec)
    folder = artifact_writer(config, "sample").folder
    with np.load(world.folder / "runs" / folder / record["path"]) as made:
        assert apart(images, made["images"].transpose(0, 2, 3, 1)) <= 1
        assert np.array_equal(labels, made["labels"])


def test_options_take_the_place_of_the_preset(world: World, tmp_path: Path) -> None:
    base = ("--class", "1,5", "--n", "2")

    def drawn(*words: str) -> np.ndarray:
        file = tmp_path / "x.npz"
        file.unlink(missing_ok=True)
        world.made(*base, *words, "--npz", str(file))
        return npz(file)[0]

    plain = drawn()
    for option, value, field in (
        ("--seed", "3", "sample.seed=3"),
        ("--steps", "5", "sample.steps=5"),
        ("--method", "heun", "sample.method=heun"),
        ("--guidance", "4", "sample.guidance=4"),
        ("--interval", "0.6,1", "sample.guidance_interval=[0.6, 1]"),
    ):
        other = drawn(option, value)
        assert apart(other, plain) > 1, option
        assert np.array_equal(other, drawn("--set", field)), option


# --- files ---


def test_an_npz_has_adms_form(world: World, tmp_path: Path) -> None:
    done = world.made("--class", "8,0,digit 3", "--n", "2", "--npz", str(tmp_path / "a.npz"), "--out", str(tmp_path))
    images, labels = npz(tmp_path / "a.npz")
    assert (images.dtype, images.shape, labels.dtype) == (np.uint8, (6, 32, 32, 3), np.int64)
    assert labels.tolist() == [8, 0, 3, 8, 0, 3]
    for place, label in enumerate(labels):
        assert np.array_equal(images[place], png(tmp_path / f"class{label:04d}-{place // 3:04d}.png"))
    assert f"{tmp_path / 'a.npz'}: 6 images" in done.output
    assert not (tmp_path / "a.npz.parts").exists()


def position(page: np.ndarray, tile: np.ndarray) -> tuple[int, int]:
    """Where the tile is on the page."""
    windows = np.lib.stride_tricks.sliding_window_view(page, tile.shape)[..., 0, :, :, :]
    for y, x in np.argwhere((windows[..., 0, 0, :] == tile[0, 0]).all(-1)):
        if (windows[y, x] == tile).all():
            return int(y), int(x)
    raise AssertionError("it is not there")


@pytest.mark.parametrize("size", [32, 64])
def test_a_grid_has_rows_as_asked_for_and_tiles_of_the_size(world: World, tmp_path: Path, size: int) -> None:
    grid = tmp_path / "grid.png"
    world.made("--class", "7,2", "--n", "2", "--grid", str(grid), "--size", str(size), "--out", str(tmp_path))
    page = np.asarray(Image.open(grid).convert("RGB"))
    times = size // 32
    tiles = {
        (label, number): png(tmp_path / f"class{label:04d}-{number:04d}.png").repeat(times, 0).repeat(times, 1)
        for label in (7, 2)
        for number in (0, 1)
    }
    (y, x), step = position(page, tiles[7, 0]), size + 6
    assert position(page, tiles[7, 1]) == (y, x + step)
    assert position(page, tiles[2, 0]) == (y + step, x)
    assert position(page, tiles[2, 1]) == (y + step, x + step)


def test_a_grid_of_another_size_and_its_words(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline import reports

    told: dict[str, Any] = {}

    def sample_grid(images: np.ndarray, labels: np.ndarray, names: list[str], **more: Any) -> bytes:
        told.update(more, names=names, labels=labels.tolist())
        return b"png"

    monkeypatch.setattr(reports, "sample_grid", sample_grid)
    world.made("--class", "3", "--n", "1", "--grid", str(tmp_path / "g.png"), "--size", "40", "--seed", "2")
    note = "euler, 3 steps, guidance 2.5 for t from 0 to 1, seed 2."
    assert told == {"size": 40, "note": note, "names": NAMES, "labels": [3]}
    assert (tmp_path / "g.png").read_bytes() == b"png"


# --- going on ---


class Cut(Exception):
    """Stands for the end of the process."""


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Callable[[int | None], list[int]]:
    """From now on batches are counted, the sizes in the list; the draw number `cut`, from 0, fails."""
    opened = drawing._open_trained

    def count(cut: int | None) -> list[int]:
        sizes: list[int] = []

        def open_counted(*arguments: Any) -> drawing.Opened:
            real = opened(*arguments)

            def draw(labels: Any, indices: Any, sampling: Any) -> drawing.Pixels:
                if len(sizes) == cut:
                    raise Cut
                sizes.append(len(labels))
                return real.draw(labels, indices, sampling)

            return real._replace(draw=draw)

        monkeypatch.setattr(drawing, "_open_trained", open_counted)
        return sizes

    return count


def test_a_command_that_was_cut_goes_on(world: World, tmp_path: Path, counted: Callable[..., list[int]]) -> None:
    words = ("--class", "0-4", "--n", "2", "--npz")
    world.made(*words, str(tmp_path / "undisturbed.npz"))
    file = tmp_path / "a.npz"
    first = counted(2)
    assert isinstance(world.call(*words, str(file)).exception, Cut)
    assert first == [4, 4]
    assert not file.exists()
    again = counted(None)
    world.made(*words, str(file))
    assert again == [2]
    assert file.read_bytes() == (tmp_path / "undisturbed.npz").read_bytes()
    assert [path.name for path in tmp_path.iterdir() if "a.npz" in path.name] == ["a.npz"]


def test_parts_of_another_command_are_not_taken(
    world: World, tmp_path: Path, counted: Callable[..., list[int]]
) -> None:
    words, file = ("--class", "0-4", "--n", "2", "--npz", str(tmp_path / "a.npz")), tmp_path / "a.npz"
    counted(2)
    world.call(*words)
    for other in (["--seed", "1"], ["--steps", "4"], ["--method", "heun"], ["--guidance", "1"]):
        drawn = counted(1)
        assert isinstance(world.call(*words, *other).exception, Cut)
        assert drawn == [4], other
    drawn = counted(1)
    assert isinstance(world.call("--class", "1-5", *words[2:]).exception, Cut)
    assert drawn == [4]
    parts = {path.name.partition("-")[0] for path in (tmp_path / "a.npz.parts").iterdir()}
    assert len(parts) == 6
    (tmp_path / "a.npz.parts" / "notes.txt").write_text("mine")
    more = counted(None)
    world.made(*words[:3], "3", *words[4:])  # more of the same
    assert more == [4, 3]
    assert len(npz(file)[0]) == 15
    assert [path.name for path in (tmp_path / "a.npz.parts").iterdir()] == ["notes.txt"]


def test_other_weights_are_another_command(world: World) -> None:
    asked = Request([1, 2], 3, 10)
    sampling = world.config.sampling()
    assert asked.digest("weights", sampling) == Request([1, 2], 5, 10).digest("weights", sampling)
    others = [asked.digest("others", sampling), asked.digest("weights", {**sampling, "seed": 1})]
    others += [Request(labels, 3, 10).digest("weights", sampling) for labels in ([2, 1], [1], [1, 2, 3])]
    assert len({asked.digest("weights", sampling), *others}) == 6
    first = drawing._open_trained(world.config, world.artifacts()).identity
    sit = world.artifacts()["train-sit"]
    changed = {name: record.model_copy(update={"sha256": "0" * 64}) for name, record in sit.files.items()}
    manifests = {**world.artifacts(), "train-sit": sit.model_copy(update={"files": changed})}
    assert drawing.identity(manifests, None) != drawing.identity(world.artifacts(), None) == first
    assert drawing.identity(world.artifacts(), 0.5) != first


def test_a_part_that_is_not_whole_is_drawn_again(
    world: World, tmp_path: Path, counted: Callable[..., list[int]]
) -> None:
    words = ("--class", "0-4", "--n", "2", "--npz", str(tmp_path / "a.npz"))
    for spoil in (lambda whole: whole[:-1], lambda _: b"", lambda _: np_bytes(np.zeros((4, 32, 32, 3)))):
        counted(1)
        world.call(*words)
        (part,) = (tmp_path / "a.npz.parts").iterdir()
        part.write_bytes(spoil(part.read_bytes()))
        drawn = counted(None)
        world.made(*words)
        assert drawn == [4, 4, 2]
        (tmp_path / "a.npz").unlink()


def np_bytes(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


# --- refusals ---


def test_an_npz_that_is_there_is_not_replaced(world: World, tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(b"somebody's")
    assert "a.npz is there already. Delete it" in world.refused("--class", "1", "--npz", str(tmp_path / "a.npz"))
    assert (tmp_path / "a.npz").read_bytes() == b"somebody's"


OUT = ("--out", "unused")
REFUSED = {
    "nothing to write": (("--class", "1"), "there is nothing to write. Give --out FOLDER, --grid FILE.png or --npz"),
    "a size of nothing": (("--class", "1", *OUT, "--size", "64"), "--size has no effect without --grid"),
    "steps of dopri5": (
        ("--class", "1", *OUT, "--method", "dopri5", "--steps", "9"),
        "--steps has no effect: dopri5 chooses its own",
    ),
    "an interval without guidance": (
        ("--class", "1", *OUT, "--guidance", "1", "--interval", "0,1"),
        "--interval has no effect without guidance",
    ),
    "one number": (("--class", "1", *OUT, "--interval", "0.7"), "--interval 0.7 is not of two numbers"),
    "words": (("--class", "1", *OUT, "--interval", "a,b"), "--interval a,b is not of two numbers"),
    "falling": (("--class", "1", *OUT, "--interval", "0.7,0"), "--interval 0.7,0 is not an interval in [0, 1]"),
    "outside": (("--class", "1", *OUT, "--interval", "0,1.5"), "--interval 0,1.5 is not an interval in [0, 1]"),
    "not a number": (("--class", "1", *OUT, "--interval", "0,nan"), "is not an interval in [0, 1]"),
    "guidance without end": (("--class", "1", *OUT, "--guidance", "inf"), "--guidance inf is not a finite number"),
    "a class": (("--class", "10", *OUT), "--class 10 is out of range. Choose a class from 0 to 9"),
    "a name": (("--class", "digit3", *OUT), "Did you mean 'digit 3'?"),
    "a grid like a wall": (
        ("--class", "0-9", "--n", "500", "--grid", "g.png", "--size", "256"),
        "a grid of 10 x 500 pictures of 256 pixels is too large to be drawn",
    ),
    "a file elsewhere": (("--class", "1", "--npz", "s3://bucket/a.npz"), "'s3://bucket/a.npz' is no local file"),
}


@pytest.mark.parametrize("wrong", REFUSED)
def test_what_is_refused(world: World, wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(*_: object) -> None:
        raise AssertionError("networks were loaded")

    monkeypatch.setattr(drawing, "_open_trained", opened)
    words, said = REFUSED[wrong]
    assert said in world.refused(*words)


OUT_OF_RANGE = ("--method rk4", "--steps 1", "--seed -1", "--guidance 0.5", "--guidance nan", "--n 0")


@pytest.mark.parametrize("words", OUT_OF_RANGE)
def test_values_out_of_range_are_refused_by_their_option(world: World, words: str) -> None:
    option, value = words.split()
    done = world.call("--class", "1", *OUT, option, value)
    assert done.exit_code == 2
    assert option in done.output


def test_files_that_cannot_be_written_are_told_before_anything_is_drawn(
    world: World, tmp_path: Path, counted: Callable[..., list[int]]
) -> None:
    (tmp_path / "file").write_text("")
    drawn = counted(None)
    for option, path, said in (
        ("--out", tmp_path / "file", "Choose another path with --out"),
        ("--npz", tmp_path / "file" / "a.npz", "Choose another path with --npz"),
        ("--npz", tmp_path, "is a folder. Choose a file with --npz"),
        ("--grid", tmp_path, "is a folder. Choose a file with --grid"),
    ):
        line = world.refused("--class", "1", "--n", "1", option, str(path))
        assert said in line
        assert str(path) in line or str(path.parent) in line
    assert drawn == []
