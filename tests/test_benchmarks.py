"""The benchmarks' sides at tiny sizes: what is compared computes the same, or the comparison is refused."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import (
    activations,
    checkpoint,
    decode,
    device,
    device_steps,
    encode,
    evaluate,
    loader,
    mask,
    memory,
    precision,
    sit,
    tokenizer,
    train_step,
)  # fmt: skip
from benchmarks.counting import LiveBytes, MovedBytes
from models import generator
from models.alignment import AlignedSiT
from models.choices import RegularizerKind
from models.metrics import frechet_distance
from models.regularizers import Draw, SpectralRegularizer
from models.sit import SiT
from models.spectral import LatentFilter
from pipeline.evaluation import networks
from pipeline.training.sit import alignment_of
from pipeline.workflow import sit_gflops
from tests.support import PROJECT, sources
from tests.support.artifacts import config_at
from tests.support.trainers import SETS


@pytest.mark.parametrize("which", ["tokenizer", "adversarial", "sit"])
def test_plain_step_has_our_loss(which: str, tmp_path: Path) -> None:
    pair = train_step.make_pair(config_at(tmp_path, "quickstart", *SETS), tmp_path, which, "cpu", batches=2)
    row = pair.measure(rounds=1, peak_seconds=0.01)
    assert row["first_loss"] == pytest.approx(row["first_loss_plain"], rel=1e-4)
    seconds, peak = 1e-3 * row["ms_ours"], row["peak_gflops_per_s"]
    assert row["mfu"] == pytest.approx(row["gflops_step"] / seconds / peak)


TINY_SIT = ["sit.width=16", "sit.depth=3", "sit.heads=2", "sit.student_block=1", "sit.teacher_block=2"]


def test_what_alignment_adds_to_a_step(tmp_path: Path) -> None:
    rows = sit.measure_alignments(tmp_path, [*SETS, *TINY_SIT], rounds=1, batches=1)
    assert list(rows) == ["none", "sra", "fda"]
    assert rows["none"]["floor"] == rows["none"]["ratio_to_none"] == 1.0
    own = config_at(tmp_path, "quickstart", *TINY_SIT)
    counted = FlopCounterMode(display=False)
    with torch.device("meta"):
        trained = AlignedSiT(SiT(**own.sit_network), alignment_of(own))
        z, t, label = torch.zeros(1, 4, 8, 8), torch.zeros(1), torch.zeros(1, dtype=torch.long)
        with counted:
            trained(z, t, label)
    plain = 1e9 * sit_gflops(own, attention=True)
    head = counted.get_total_flops() - plain
    assert rows["fda"]["floor"] == pytest.approx(1 + (2 / 3 * plain + 3 * head) / (3 * plain), rel=1e-3)
    assert rows["sra"]["all_blocks_to_ours"] > 0


def test_samples_a_second(tmp_path: Path) -> None:
    images = sit.image_generator(config_at(tmp_path, "quickstart", *TINY_SIT))
    guidance = sit.measure_guidance(images, 2, steps=3, rounds=1)
    assert guidance["evaluations"] == 2
    assert guidance["unguided_to_unguided"] == 1
    noise = sit.measure_noise(images, 2, steps=3, rounds=1)
    assert noise["ratio_to_when_needed"] > 0


def test_noise_drawn_when_needed_is_that_drawn_ahead() -> None:
    def draw(stream: int) -> torch.Tensor:
        return torch.tensor(stream)

    for how in (sit.when_needed, generator.drawn_ahead):
        assert [int(drawn) for drawn in how(draw, range(1, 5))] == [1, 2, 3, 4]


SMALL = [one for one in SETS if not one.startswith("tokenizer.steps")]


def test_a_step_with_each_regularizer_is_compared_with_a_plain_one(tmp_path: Path) -> None:
    """Of the same losses in every kind of step that the draws bring."""
    rows = tokenizer.measure_regularizers(tmp_path, SMALL, rounds=1, batches=6)
    assert set(rows) == set(get_args(RegularizerKind))
    assert rows["none"]["ratio_to_none"] == 1.0
    assert all(row["ratio_to_plain"] > 0 for row in rows.values())


def test_the_operators_share_of_a_step(tmp_path: Path) -> None:
    row = tokenizer.measure_share(tmp_path, SMALL, rounds=1, batches=1)
    assert row["share"] == pytest.approx(row["ms_operators"] / row["ms_step"])


def test_the_closed_forms_of_the_operators_are_what_they_do() -> None:
    regularizer, x, z = SpectralRegularizer(8), torch.zeros(4, 3, 64, 64), torch.zeros(4, 16, 8, 8)
    with MovedBytes() as moved:
        tokenizer.apply_operators(regularizer, z, x, level=2)
    expected = tokenizer.operator_bytes(grid=8, latent_dim=16, image_size=64, batch=4)
    assert moved.total / 4 == pytest.approx(sum(expected.values()), rel=1e-3)
    with FlopCounterMode(display=False) as forward:
        regularizer.latent(z, Draw(level=2))
    flops = tokenizer.operator_flops(grid=8, latent_dim=16, image_size=64)
    assert 2 * forward.get_total_flops() == 4 * flops["S_l"]


def test_the_papers_step_is_counted_without_its_memory() -> None:
    """A block deep, so that it is quick; the whole one moves more."""
    found = tokenizer.papers_share(2, "tokenizer.depth=1")
    assert found["flops_of_an_image"]["S_l"] == 4 * 256**2 * 32
    assert 0 < found["share_by_flops"] < 0.01
    assert 0 < found["share_by_bytes"] < 0.05


def test_s_l_by_fft_is_s_l() -> None:
    rows = tokenizer.measure_filters([4, 8], rounds=1)
    assert [row["bytes_matrices"] for row in rows.values()] == [4096, 65536]
    assert all(row["largest_difference"] < 1e-5 for row in rows.values())
    latent_filter, z = LatentFilter(7), torch.randn(2, 3, 7, 7)  # an odd side
    for level in range(4):
        half_hw = tokenizer.half_mask(latent_filter.matrices[level])
        torch.testing.assert_close(tokenizer.by_fft(z, half_hw), latent_filter(z, level), atol=1e-5, rtol=1e-5)


def test_bytes_alive_are_those_of_storages() -> None:
    weight = torch.ones(100, requires_grad=True)  # from outside: not counted
    with LiveBytes() as live:
        kept = (weight * 2).view(10, 10)  # a view adds nothing
        assert live.now == 400
        kept = kept.exp().sum()  # keeps its result for the backward pass
        assert (live.now, live.peak) == (404, 804)
        torch.autograd.backward(kept)
        del kept
        assert live.now == 400, "the gradient"
        weight.grad = None
    assert live.now == 0


@pytest.mark.slow
def test_memory_of_an_image_is_measured_by_setting() -> None:
    """Real, in processes, and on fake tensors; parts and recomputed blocks need less."""
    tiny = ["tokenizer.width=32", "tokenizer.depth=2", "tokenizer.heads=2", "tokenizer.hidden=48"]
    real = {name: activations.in_a_process([*activations.SETTINGS[name], *tiny], 8) for name in ("as it is", "4 parts")}
    assert all(row["resident"] > row["alive"] > 0 for row in real.values())
    assert real["4 parts"]["alive"] < real["as it is"]["alive"]
    found = activations.measure_papers(8, ["tokenizer.depth=2"])
    assert found["as it is"]["alive_ratio"] == 1.0
    assert found["4 parts"]["batch"] < found["as it is"]["batch"]
    assert found["recomputed"]["alive"] < found["as it is"]["alive"]


def test_curves_are_compared_with_those_of_other_seeds() -> None:
    def curve(*values: float) -> precision.Curve:
        return [{"loss": value, "mse": 1.0} for value in values]

    fp32 = [curve(1.0, 2.0), curve(1.2, 2.4)]
    near, far = ([curve(*(a * line["loss"] for line in one)) for one in fp32] for a in (1.01, 2.0))
    alike = precision.compare({"fp32": fp32, "bf16": near})
    assert alike["loss"]["precision"] == pytest.approx(0.01, rel=0.01)
    assert alike["loss"]["seeds"] == pytest.approx(2 / 11)
    assert alike["loss"]["within_noise"]
    assert alike["mse"]["within_noise"]
    assert not precision.compare({"fp32": fp32, "bf16": far})["loss"]["within_noise"]


@pytest.mark.slow
def test_the_document_of_the_masks_has_the_recorded_table() -> None:
    text, runs = (PROJECT / "docs" / "mask.md").read_text(), mask.recorded().values()
    assert "\n".join(mask.table(runs)) in text
    (done,) = re.findall(r"(\d+) of (\d+) runs", text)
    assert tuple(map(int, done)) == (len(runs), sum(row.seeds for row in mask.ROWS.values()))


def test_both_precisions_are_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DVAE_TEST_DATA", raising=False)
    words = [word for one in SMALL for word in ("--set", one)]
    path = precision.main([*words, "--steps", "10", "--seeds", "2"], tmp_path)
    result = json.loads(path.read_text())
    assert {len(curve) for found in result["curves"].values() for curve in found} == {10}
    assert set(result["terms"]) == set(precision.TERMS)


def test_a_plain_step_of_another_loss_is_refused(tmp_path: Path) -> None:
    """As without the discriminator's term, once D is at work."""
    pair = train_step.make_pair(config_at(tmp_path, "quickstart", *SETS), tmp_path, "adversarial", "cpu", batches=1)
    pair.plain.adversarial = False
    pair.trainee.config = pair.trainee.config.model_copy(update={"adversarial_weight": 1.0})
    with pytest.raises(AssertionError, match="computes another loss"):
        pair.measure(rounds=1, peak_seconds=0.01)


@pytest.mark.slow
def test_loaders_give_what_they_are_compared_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DVAE_TEST_DATA", raising=False)
    for case in loader.cases(tmp_path, batches=2, latent_rows=600).values():
        ours = [_channels_last(batch) for batch in case.loader()]
        assert sum(len(batch) for batch in ours) == case.examples
        rivals = case.rivals()
        if (copies := rivals.pop("memcpy", None)) is not None:
            assert [_channels_last(batch).shape for batch in copies()] == [batch.shape for batch in ours]
        for side in rivals.values():
            assert all(np.array_equal(a, _channels_last(b)) for a, b in zip(ours, side(), strict=True))


@pytest.mark.slow
def test_the_loader_of_another_commit_is_measured_and_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the rivals' workers hold its pipe."""
    monkeypatch.delenv("DVAE_TEST_DATA", raising=False)
    for row in loader.measure(tmp_path, rounds=1, batches=2, before="HEAD").values():
        assert row["loader before"] > 0


def test_decoders_are_compared_by_their_pixels() -> None:
    images = [sources.encoded(sources.picture(seed, 90, 70), "JPEG") for seed in range(3)]
    rows = decode.measure(images, size=16, rounds=1)
    assert rows["torchvision"]["largest_difference"] == 0, "both are libjpeg-turbo"
    assert rows["Pillow's draft"]["images_that_differ"] == 1, "it decodes a half of the size or less"
    assert all(row["ms_alone"] > 0 for row in rows.values())


@pytest.mark.slow
def test_checkpoints_are_measured_against_a_commit(tmp_path: Path) -> None:
    """Each side with its own code, and in processes that load what they saved."""
    with (
        checkpoint.worktree("HEAD", tmp_path / "before") as before,
        checkpoint.opened_places(["disk"], tmp_path) as places,
    ):
        rows = checkpoint.measure(places, {"before": before, "now": Path(__file__).parents[1]}, [0.001], rounds=1)
    assert list(rows) == ["0.001 GB, disk, before", "0.001 GB, disk, now"]
    for row in rows.values():
        assert 0 < row["save_blocked"] < row["save_whole"]
        assert row["load_whole"] > 0
    assert not (tmp_path / "before").exists()


def _channels_last(batch: object) -> np.ndarray:
    """Pixels (B, H, W, 3), or both moments of latents beside each other, (B, h, w, 2 D)."""
    if isinstance(batch, tuple):
        batch = np.concatenate(batch, axis=1)
    assert isinstance(batch, np.ndarray)
    return batch if batch.shape[-1] == 3 else batch.transpose(0, 2, 3, 1)


def measured(folder: Path, *parts: str) -> dict[str, Any]:
    """The results of these parts of `benchmarks/device.py` on the CPU."""
    only = [word for part in parts for word in ("--only", part)]
    path = device.main(["--device", "cpu", *only], folder)
    assert path.name.startswith("device-")
    result: dict[str, Any] = json.loads(path.read_text())
    return result


@pytest.mark.slow
def test_the_device_benchmark_measures_every_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At tiny sizes; compiling is only counted."""
    compiled = list[object]()
    monkeypatch.setattr(device_steps, "compile_blocks", compiled.append)
    result = measured(tmp_path)
    assert set(result["parts"]) == {name for name, _, _ in device.PARTS}
    assert not [part for part in result["parts"].values() if "error" in part or "skipped" in part]
    assert result["parts"]["resume/sit-fda"]["same_bits"]
    assert result["parts"]["resume/tokenizer"]["same_bits"]
    assert set(result["ratios"]) == set(device.ratios(result["parts"]))
    assert len(result["ratios"]) == 6
    assert compiled


@pytest.mark.slow
def test_a_part_of_the_device_benchmark_that_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setitem(device.STEPS, "sit-none", full)
    parts = measured(tmp_path, "sit-none/eager", "encode")["parts"]
    assert parts["sit-none/eager"] == {"error": "OutOfMemoryError: no memory"}
    assert parts["encode"]["encoded_per_second"] > 0


def test_bits_that_differ_after_a_resume_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_steps.SitStep, "load", lambda *_: None)
    part = measured(tmp_path, "resume/sit-fda")["parts"]["resume/sit-fda"]
    assert not part["same_bits"]
    assert part["different"]


@pytest.mark.slow
def test_the_device_benchmark_needs_torch_alone() -> None:
    code = (
        "import sys, importlib.abc\n"
        "class Refuse(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        others = 'pipeline deploy ray pydantic mlflow lpips timm safetensors torchvision tests'\n"
        "        if name.partition('.')[0] in others.split(): raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "from benchmarks import device\n"
        "print(device.measure(device.Device('cpu'), ['encode'], 60.0)['encode']['batch'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1:] == ["4"], done.stderr


@pytest.mark.slow
def test_memory_of_every_process_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_POLL_SECONDS", 0.02)  # a unit of so few rows is soon done
    peaks = memory.measure(tmp_path, rows=1200, units=20)
    assert {"driver", "reader"} <= {role for roles in peaks.values() for role in roles}
    assert all(most[when] > 1 for roles in peaks.values() for most in roles.values() for when in ("early", "late"))


@pytest.mark.slow
@pytest.mark.ray
def test_encode_is_measured_against_what_is_possible(real_data: Path, tmp_path: Path) -> None:
    found = encode.measure(tmp_path, count=40, few=8, rounds=1, before=None)
    rates = found["images_per_second"]
    assert {"ours, with start-up", "script, without", "decoding alone, all cores", "possible"} <= rates.keys()
    assert len(list((tmp_path / "npy").glob("*.npy"))) == 40
    assert found["ratio to the script, with start-up"] == pytest.approx(
        rates["ours, with start-up"] / rates["script, with start-up"]
    )
    assert not list((tmp_path / "ours40").glob("encode/*")), "each round encodes all of it"


def test_the_usual_script_leaves_an_array_for_each_image(real_data: Path, tmp_path: Path) -> None:
    images = encode.make_images(tmp_path / "images", 5)
    encode.script(images, tmp_path / "npy", workers=0)
    made = [np.load(path) for path in sorted((tmp_path / "npy").iterdir())]
    assert [(one.shape, one.dtype) for one in made] == [((2, 16, 16, 16), np.dtype(np.float16))] * 5
    assert encode.best_batch(8) > 0


@pytest.mark.slow
def test_our_fid_is_that_of_others(tmp_path: Path) -> None:
    """Each in a process of its own, on noise and random weights."""
    evaluate.write_inception(tmp_path)
    rows = evaluate.compare_others(tmp_path, images=12, side=32)
    assert rows.keys() == {"ours", "torch-fidelity", "torchmetrics"}
    assert abs(rows["torch-fidelity"]["relative_to_ours"]) < 1e-6
    assert abs(rows["torchmetrics"]["relative_to_ours"]) < 0.02, (
        "its eigenvalues suffer from too few images for the rank"
    )
    for row in rows.values():
        assert row["seconds"] > 0
        assert 100 < row["peak_mb"] < 20_000


def test_our_fid_is_by_the_functions_of_the_stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its interval, whose seconds are a part; here the network is a mean, so that the distance is known."""

    def means(x_NCHW: torch.Tensor) -> dict[str, torch.Tensor]:
        pool = x_NCHW.float().mean((2, 3))
        return {"pool": pool, "spatial": pool, "logits": pool}

    monkeypatch.setattr(networks, "feature_network", lambda *_: means)
    monkeypatch.setattr(evaluate, "our_inception", lambda _: networks.Network("inception", "inception", 299, None, ""))
    row = evaluate.alone("ours", tmp_path, images=40, side=8)
    one, other = (
        means(evaluate.noise(40, 8, seed, contrast))["pool"].double() for seed, contrast in ((0, 40), (1, 90))
    )
    expected = frechet_distance(one.mean(0), one.T.cov(), other.mean(0), other.T.cov())
    assert row["fid"] == pytest.approx(expected, rel=1e-6)
    assert 0 < row["interval_s"] < row["seconds"]
    assert row["images_per_s"] == pytest.approx(80 / row["seconds"])


def test_a_frechet_distance_by_eigenvalues_and_by_a_square_root() -> None:
    measured = evaluate.measure_frechet(features=24, rounds=1)
    assert abs(measured["relative_difference"]) < 1e-9
    assert measured["ours_to_sqrtm"] > 0


def test_the_evaluation_against_the_bare_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both read the same images; here the network is a sum, so that only the way to it is seen."""
    for module in (networks, evaluate):
        monkeypatch.setattr(module, "feature_network", lambda *_: lambda x_NCHW: {"pool": x_NCHW.float().sum((2, 3))})
    network = networks.Network("sum", "inception", 299, None, "")
    measured = evaluate.measure_features(network, evaluate.noise(8, 16, 0, 40), rounds=1)
    assert measured["ours_to_bare"] > 0
