"""`evaluate`: the same images are at distance 0 in whatever form, and what cannot be compared is said in a line."""

import io
import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.lib.format as numpy_format
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

from models.metrics import FeatureMoments
from pipeline.artifacts import SHORT
from pipeline.cli import evaluate
from pipeline.cli.app import app
from pipeline.config import Config
from pipeline.errors import PipelineError
from pipeline.evaluation import networks
from tests.support.artifacts import prepared, put
from tests.support.contexts import real_images, reference_of, samples
from tests.support.registration import Registration
from tests.support.trainers import small_config

COUNT = 24
LITE = ["--network", "efficientnet_lite0", "--set", "evaluate.network_size=32"]
KEY = "frechet_distance/efficientnet_lite0"


class World:
    """The same 24 digits in every form."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        sets = ["evaluate.network_size=32", f"evaluate.reference_images={COUNT}", "evaluate.also=[self]"]
        self.config: Config = small_config(folder / "runs", *sets)
        prepare = put(self.config, prepared(self.config))
        self.made = reference_of(self.config, prepare, folder / "scratch")
        self.images, self.labels = real_images(self.config, prepare, "train", COUNT)
        self.made["sample"] = samples(self.config, self.images, self.labels, shard_rows=10)
        self.pixels = self.images.transpose(0, 2, 3, 1)
        self.write_forms()

    def write_forms(self) -> None:
        (self.folder / "png").mkdir()
        encoded = []
        for place, image in enumerate(self.pixels):
            Image.fromarray(image).save(self.folder / "png" / f"{place:02d}.png")
            encoded.append((self.folder / "png" / f"{place:02d}.png").read_bytes())
        pq.write_table(pa.table({"image": encoded}), self.folder / "pictures.parquet")
        self.npz("adm.npz", arr_0=self.pixels, arr_1=self.labels)
        self.npz("floats.npz", arr_0=self.pixels / np.float32(255))

    def npz(self, name: str, **arrays: Any) -> str:
        np.savez(self.folder / name, **arrays)
        return str(self.folder / name)

    def at(self, form: str) -> str:
        stage, _, rest = form.partition(":")
        if stage in self.made:
            return f"{stage}/{self.made[stage].fingerprint[:SHORT]}" + (f":{rest}" if rest else "")
        return str(self.folder / form)

    def call(self, images: str, reference: str, *words: str) -> Result:
        root = ["--root", (self.folder / "runs").as_uri()]
        command = ["evaluate", "--images", images, "--reference", reference, *root, *words]
        return CliRunner().invoke(app, command, env={"COLUMNS": "200"})

    def measured(self, images: str, reference: str, *words: str) -> dict[str, Any]:
        done = self.call(self.at(images), self.at(reference), "--json", *(words or LITE))
        assert done.exit_code == 0, done.output or repr(done.exception)
        report: dict[str, Any] = json.loads(done.stdout[done.stdout.index("{") :])
        return report

    def refused(self, images: str, reference: str, *words: str) -> str:
        done = self.call(images, reference, *(words or LITE))
        assert isinstance(done.exception, PipelineError), done.output or repr(done.exception)
        assert "\n" not in str(done.exception)
        return str(done.exception)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("evaluate"))


@pytest.mark.parametrize("form", ["sample", "png", "pictures.parquet", "adm.npz", "floats.npz"])
def test_the_same_images_are_at_no_distance(world: World, form: str) -> None:
    found = world.measured(form, "reference")
    assert found["images"] == {"name": world.at(form), "count": COUNT}
    assert found["metrics"][KEY] == pytest.approx(0, abs=1e-3)
    assert found["metrics"]["precision/efficientnet_lite0"] == found["metrics"]["recall/efficientnet_lite0"] == 1
    assert (
        set(found["metrics"])
        == set(found["intervals"])
        == {f"{measure}/efficientnet_lite0" for measure in ("frechet_distance", "kid", "precision", "recall")}
    )
    assert "24 images for the 1,280 features" in found["notes"][0]


def test_any_form_can_be_the_reference(world: World) -> None:
    one = world.measured("sample", "prepare:validation")
    for form, words in (("png", ["--size", "32"]), ("adm.npz", [])):
        found = world.measured(form, "prepare:validation", *LITE, *words)
        assert found["metrics"] == pytest.approx(one["metrics"], rel=1e-6, abs=1e-6)
    small = world.refused(world.at("png"), world.at("prepare:validation"))
    assert "has images of 32 x 32 pixels, and prepare/" in small
    assert "of 8 x 8. Give --size" in small
    assert one["metrics"][KEY] > 0.1
    there = world.measured("adm.npz", "png")["metrics"][KEY]
    assert there == pytest.approx(0, abs=1e-3)


def test_by_the_datas_own_classifier(world: World) -> None:
    own = ["--network", world.at("classifier")]
    pixels = torch.from_numpy(world.images)
    network = networks.Network(
        "self-digits", "self", 32, None, world.config.root, world.made["classifier"].model_dump_json()
    )
    read = networks.feature_network(network, torch.device("cpu"))(pixels)["logits"].argmax(1).numpy()
    labelled = {
        "image": [path.read_bytes() for path in sorted((world.folder / "png").iterdir())],
        "label": world.labels,
    }
    pq.write_table(pa.table(labelled), world.folder / "labelled.parquet")
    for form in ("sample", "adm.npz", "labelled.parquet"):
        found = world.measured(form, "reference", *own)
        assert found["network"] == "self-digits"
        assert found["metrics"]["frechet_distance/self-digits"] == pytest.approx(0, abs=1e-3)
        assert found["metrics"]["class_accuracy/self-digits"] == pytest.approx((read == world.labels).mean())
        assert world.made["classifier"].details["classifier"] in found["notes"]
    shifted = world.npz("shifted.npz", arr_0=world.pixels, arr_1=(world.labels + 1) % 10)
    wrong = world.measured(shifted, "reference", *own)["metrics"]["class_accuracy/self-digits"]
    assert wrong == pytest.approx((read == (world.labels + 1) % 10).mean())
    of_split = world.measured("prepare:validation", "reference", *own, "--size", "32")
    assert of_split["metrics"]["class_accuracy/self-digits"] > 0.5


def test_images_without_labels_of_the_classes_have_no_accuracy(world: World) -> None:
    world.npz("eleven.npz", arr_0=world.pixels, arr_1=world.labels + 10)
    world.npz("fewer.npz", arr_0=world.pixels, arr_1=world.labels[1:])
    cases = {
        "png": "the images have no labels: no class_accuracy/self-digits",
        "eleven.npz": "the images' labels are not one of 10 classes each: no class_accuracy/self-digits",
        "fewer.npz": "the images' labels are not one of 10 classes each: no class_accuracy/self-digits",
    }
    for form, note in cases.items():
        found = world.measured(form, "reference", "--network", world.at("classifier"))
        assert "class_accuracy/self-digits" not in found["metrics"]
        assert note in found["notes"]


def test_a_person_reads_intervals_beside_the_numbers(world: World) -> None:
    done = world.call(world.at("sample"), world.at("reference"), *LITE)
    (line,) = [line for line in done.output.splitlines() if "precision/" in line]
    assert "1 (0.862 to 1)" in line
    assert "! 24 images for the 1,280 features" in done.output


def test_means_and_covariances_as_adms(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of stand-ins for Inception's features, with and without the images they are of."""

    def features(x_NCHW: torch.Tensor) -> networks.Features:
        flat = x_NCHW.flatten(1).float() / 255
        return {"pool": flat[:, 500:520], "spatial": flat[:, 800:806], "logits": flat[:, 500:1508]}

    monkeypatch.setattr(networks, "feature_network", lambda network, device: features)
    monkeypatch.setattr(evaluate, "_config", lambda network, sets, root: world.config)
    monkeypatch.setattr(evaluate, "_network", lambda *_: networks.Network("inception", "inception", 299, None, ""))
    made = dict[str, np.ndarray]()
    for kind, names in (("pool", ("mu", "sigma")), ("spatial", ("mu_s", "sigma_s"))):
        moments = FeatureMoments(features(torch.from_numpy(world.images))[kind].shape[1])
        moments.update(features(torch.from_numpy(world.images))[kind])
        made |= {name: part.numpy() for name, part in zip(names, moments.result(), strict=True)}
    world.npz("moments.npz", **made)
    world.npz("both.npz", arr_0=world.pixels, **made)
    alone, both = (world.measured("sample", name, "--network", "inception") for name in ("moments.npz", "both.npz"))
    assert alone["metrics"].keys() == {"frechet_distance/inception", "sfid", "inception_score"}
    assert both["metrics"].keys() == alone["metrics"].keys() | {
        f"{measure}/inception" for measure in ("kid", "precision", "recall")
    }
    for found in (alone, both):
        assert found["metrics"]["frechet_distance/inception"] == pytest.approx(0, abs=1e-6)
        assert found["metrics"]["sfid"] == pytest.approx(0, abs=1e-6)
    assert "has no images: neither KID nor precision and recall" in alone["notes"][0]


# --- what is refused ---


def test_files_that_are_no_images(world: World) -> None:
    there = world.at("reference")
    pixels, first = world.pixels, int((world.pixels > 250).any((1, 2, 3)).argmax())
    cases = {
        "keys.npz": ({"images": pixels}, "has images, and not arr_0. Give one with arr_0"),
        "one.npz": ({"arr_0": pixels[:1]}, "has 1 images, and a distance needs two"),
        "minus.npz": ({"arr_0": pixels / np.float32(127.5) - 1}, "has floats from -1 to 1. Give uint8"),
        "nan.npz": (
            {"arr_0": np.where(pixels > 250, np.nan, pixels / 255)},
            f"has NaN in image {first}. Draw",
        ),
        "columns.npz": ({"arr_0": np.asfortranarray(pixels)}, "is stored in Fortran's order. Write it again"),
        "ints.npz": ({"arr_0": pixels.astype(np.int32)}, "is of int32"),
        "first.npz": ({"arr_0": world.images}, "has the shape (24, 3, 32, 32)"),
        "large.npz": ({"arr_0": pixels.repeat(2, 1).repeat(2, 2)}, "has images of 64 x 64 pixels, and"),
        "moments.npz": ({"mu": np.zeros(4), "sigma": np.eye(4)}, "has no images, only mu and sigma"),
    }
    for name, (arrays, said) in cases.items():
        assert said in world.refused(world.npz(name, **arrays), there), name
    (world.folder / "text.npz").write_text("no zip")
    assert "is no .npz of arrays" in world.refused(world.at("text.npz"), there)
    for gone in ("gone.npz", "gone.parquet"):
        line = f"{world.at(gone)} is not there. Correct the path."
        assert world.refused(world.at(gone), there) == world.refused(world.at("sample"), world.at(gone)) == line
    (world.folder / "empty").mkdir()
    assert "has no pictures in it" in world.refused(world.at("empty"), there)
    (world.folder / "text.parquet").write_text("no Parquet")
    assert "is no Parquet file" in world.refused(world.at("text.parquet"), there)


def test_npz_that_were_cut_or_damaged(world: World) -> None:
    """Wherever it was cut; and bytes that changed within, of values that are packed and of some that are not."""
    whole, there = (world.folder / "adm.npz").read_bytes(), world.at("reference")
    broken = [whole[:length] for length in (0, 1, 100, len(whole) // 2, len(whole) - 200, len(whole) - 1)]
    np.savez_compressed(world.folder / "packed.npz", arr_0=world.pixels)
    for content in (whole, (world.folder / "packed.npz").read_bytes()):
        middle = len(content) // 2
        broken.append(
            content[:middle] + bytes(255 - byte for byte in content[middle : middle + 50]) + content[middle + 50 :]
        )
    for place, content in enumerate(broken):
        (world.folder / "broken.npz").write_bytes(content)
        for images, reference in ((world.at("broken.npz"), there), (world.at("sample"), world.at("broken.npz"))):
            said = world.refused(images, reference)
            assert said.startswith(f"{world.at('broken.npz')} is no .npz of arrays, or was cut or damaged ("), place
            assert "Copy it again, or give one with arr_0" in said


def test_an_npz_without_all_of_its_images(world: World) -> None:
    """Its header tells of more than there are."""
    header = io.BytesIO()
    numpy_format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (30, 32, 32, 3)})
    with zipfile.ZipFile(world.folder / "short.npz", "w") as archive:
        archive.writestr("arr_0.npy", header.getvalue() + world.pixels.tobytes())
    said = world.refused(world.at("short.npz"), world.at("reference"))
    assert "(arr_0 ends before image 30 of 30). Copy it again" in said


def test_pictures_of_several_sizes_want_one(world: World) -> None:
    folder = world.folder / "mixed"
    folder.mkdir()
    for place, side in enumerate((40, 32, 48)):
        Image.fromarray(world.pixels[place]).resize((side, side)).save(folder / f"{place}.png")
    assert "Give --size" in world.refused(str(folder), str(folder))
    found = world.measured("mixed", "mixed", *LITE, "--size", "32")
    assert found["images"]["count"] == 3
    assert "need 4 images on both sides" in found["notes"][0]
    (folder / "3.png").write_bytes(b"\x89PNG broken")
    assert "3.png cannot be read" in world.refused(str(folder), str(folder), *LITE, "--size", "32")


def test_features_of_different_networks(world: World) -> None:
    sample, reference = world.at("sample"), world.at("reference")
    given = world.npz("adms.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    assert "of Inception's features, and not of efficientnet_lite0's" in world.refused(sample, given)
    other = ["--network", "efficientnet_lite0", "--set", "evaluate.network_size=64"]
    assert "resized to 32 pixels for efficientnet_lite0, not to 64" in world.refused(sample, reference, *other)
    assert "--network resnet is unknown" in world.refused(sample, reference, "--network", "resnet")
    assert "pretrained weights are missing" in world.refused(sample, reference, "--network", "inception")


def test_another_classifier_of_the_same_data(world: World) -> None:
    """Its name is the same; so is that of one that was trained again to other weights."""
    sample, reference, own = world.at("sample"), world.at("reference"), world.made["classifier"]
    other = put(world.config, own.model_copy(update={"fingerprint": "f" * 64}))
    line = f"{reference} has features of {own.name}, not of {other.name}. Give --network {own.name}."
    assert world.refused(sample, reference, "--network", other.name) == line
    spoiled = {name: record.model_copy(update={"sha256": "0" * 64}) for name, record in own.files.items()}
    put(world.config, own.model_copy(update={"files": spoiled}))
    try:
        said = world.refused(sample, reference, "--network", own.name)
    finally:
        put(world.config, own)
    assert f"has features of {own.name} with other weights: it was trained again" in said


def test_a_reference_of_a_classifier_alone_names_it(world: World) -> None:
    made = world.made["reference"]
    details = made.details | {"networks": ["self-digits"]}
    alone = put(world.config, made.model_copy(update={"fingerprint": "e" * 64, "details": details}))
    said = world.refused(world.at("sample"), alone.name)
    assert said.endswith(f"not of efficientnet_lite0. Give --network {world.at('classifier')}.")


def test_other_weights_of_the_same_network(world: World) -> None:
    """Of the package and of a file, either way."""
    sample, reference, made = world.at("sample"), world.at("reference"), world.made["reference"]
    given = ["--set", f"evaluate.network_weights={{uri: file:///w.safetensors, sha256: {'a' * 64}}}"]
    said = world.refused(sample, reference, *LITE, *given)
    assert "with the weights of its package, not with the weights aaaaaaaaaaaa. Give --set evaluate.network" in said
    assert said.endswith("network_weights=null.")
    config = made.config | {"evaluate.network_weights": {"sha256": "b" * 64}}
    whole = {"evaluate.network_weights": {"name": None, "uri": "file:///b.safetensors", "sha256": "b" * 64}}
    of_file = {"fingerprint": "d" * 64, "config": config, "uncounted": made.uncounted | whole}
    other = put(world.config, made.model_copy(update=of_file))
    said = world.refused(sample, other.name)
    assert "with the weights bbbbbbbbbbbb, not with the weights of its package" in said
    option = f"evaluate.network_weights={{uri: file:///b.safetensors, sha256: {'b' * 64}}}"
    assert said.endswith(f"Give --set '{option}'.")
    assert "not with the weights aaaaaaaaaaaa" in world.refused(sample, other.name, *LITE, *given)


def test_artifacts_that_are_not_there(world: World) -> None:
    sample = world.at("sample")
    assert "no artifacts match reference/0123456789ab" in world.refused(sample, "reference/0123456789ab")
    assert "names no split" in world.refused(world.at("prepare"), world.at("reference"))
    assert "holds features, and no images" in world.refused(world.at("reference"), world.at("reference"))
    assert "is no version of a registered model" in world.refused("models:/nothing@champion", world.at("reference"))


def test_the_samples_of_a_registered_version(world: World, registration: Registration) -> None:
    """Those that it was measured with, as what is measured and as what others are compared with."""
    sample, root = world.made["sample"], registration.folder / "runs"
    shutil.copytree(world.folder / "runs" / sample.name, root / sample.name)
    registration.sample = sample.fingerprint
    registration.register(0.95)
    champion, there = "models:/denoising-vae@champion", ["--root", registration.storage.root, "--json", *LITE]
    for images, reference in ((champion, world.at("png")), (world.at("png"), champion)):
        done = world.call(images, reference, *there)
        assert done.exit_code == 0, done.output or repr(done.exception)
        found = json.loads(done.stdout[done.stdout.index("{") :])
        assert found["images"] == {"name": images, "count": COUNT}
        assert found["metrics"][KEY] == pytest.approx(0, abs=1e-3)
    shutil.rmtree(root / sample.name)
    for images, reference in ((champion, world.at("png")), (world.at("png"), champion)):
        assert f"the samples of {champion} are not at {registration.storage.root}" in world.refused(
            images, reference, *there
        )


def test_bytes_of_a_picture_in_a_struct(world: World) -> None:
    """As Hugging Face stores them."""
    buffer = io.BytesIO()
    Image.fromarray(world.pixels[0]).save(buffer, "PNG")
    column = pa.array([{"bytes": buffer.getvalue(), "path": None}] * 4)
    pq.write_table(pa.table({"img": column, "label": [0] * 4}), world.folder / "struct.parquet")
    assert world.measured("struct.parquet", "reference")["images"]["count"] == 4
