"""What `plan` says of GPUs that tasks share, of large latents, and of what each stage costs."""

import io

import pytest
from rich.console import Console

from models.feature_sizes import efficientnet_gflops, feature_gflops
from models.sizes import tokenizer_sizes
from pipeline.config import Config, load_config
from pipeline.workflow import make_plan, print_plan, stages_until, survey, tokenizer_step_gflops

LARGE = ("data.image_size=256", "tokenizer.patch_size=16")


def told(config: Config) -> str:
    text = io.StringIO()
    print_plan(Console(file=text, width=200), config, make_plan(config, survey(config)))
    return text.getvalue()


def planned(root: str, *sets: str) -> Config:
    return load_config("quickstart", list(sets), root)


def test_plan_says_how_many_tasks_share_a_gpu(tmp_path):
    shared = planned(str(tmp_path), "cluster.gpu_shares.encode=0.5", "cluster.gpu_shares.sample=0.33")
    assert "encode: 2 tasks on a GPU at a time (cluster.gpu_shares)\n" in told(shared)
    assert "sample: 3 tasks on a GPU at a time" in told(shared)
    assert "on a GPU" not in told(planned(str(tmp_path)))


def test_and_where_there_is_none_to_share(tmp_path):
    text = told(planned(str(tmp_path), "cluster.gpu_shares.encode=0.5", "cluster.device=cpu"))
    assert "! cluster.gpu_shares of encode share no GPU: cluster.device is cpu" in text
    assert "at a time" not in text


def test_plan_tells_what_the_filter_of_a_large_latent_takes(tmp_path):
    """4 levels of (64 x 64)^2 weights in fp32, and 16 channels of as many sums in fp64."""
    large = told(load_config("imagenet-f16d16", ["data.image_size=1024"], str(tmp_path)))
    (line,) = [line for line in large.splitlines() if "matrices" in line]
    assert line.startswith("! the matrices of S_l on a 64 x 64 latent take 268 MB in each process")
    assert "sums for the statistics 2.1 GB more" in line
    assert "tokenizer.patch_size" in line
    for preset, size in (("quickstart", 32), ("imagenet-f16d16", 512)):
        assert "matrices" not in told(load_config(preset, [f"data.image_size={size}"], str(tmp_path)))


def test_plan_counts_the_passes_of_the_regularizer(tmp_path):
    """Scale equivariance decodes a half or a quarter of the side too: 5/32 of the cells."""
    none, scale, equivariance = (
        tokenizer_step_gflops(planned(str(tmp_path), *LARGE, f"tokenizer.regularizer={name}"))
        for name in ("none", "scale", "equivariance")
    )
    plain = tokenizer_sizes("vit", planned(str(tmp_path), *LARGE).tokenizer_network)
    assert none == pytest.approx(plain.gflops)
    assert scale == pytest.approx(plain.encode_gflops + plain.decode_gflops * (1 + 5 / 32))
    assert 0.7 * none < equivariance < 0.9 * none


def hours(root: object, *sets: str, until: str | None = None) -> dict[str, float]:
    """Of each stage of the quickstart, in GFLOPs of a device that makes one a second."""
    slow = ("cluster.device_peak_tflops=0.001", "cluster.assumed_mfu=1")
    config = planned(str(root), *slow, *sets)
    plan = make_plan(config, survey(config, stages_until(until)))
    return {stage["name"]: stage["device_hours"] * 3600 for stage in plan["stages"]}


def test_the_evaluation_of_samples_costs_their_features(tmp_path):
    """By all networks, and more if a classifier of ImageNet reads them, too."""
    one, more = (hours(tmp_path, f"sample.count={count}")["evaluate-samples"] for count in (100, 300))
    per_image = efficientnet_gflops(load_config("quickstart", [], str(tmp_path)).evaluate.network_size)
    assert one == pytest.approx(100 * per_image)
    assert more == pytest.approx(3 * one)
    both = ("evaluate.also=[self]", "data.name=digits", "data.classes=10")
    assert hours(tmp_path, "sample.count=100", *both)["evaluate-samples"] == pytest.approx(
        one + 100 * feature_gflops("self", 0, 32, 10)
    )
    read = ("evaluate.classifier=efficientnet_lite0", "data.classes=1000")
    assert hours(tmp_path, "sample.count=100", *read)["evaluate-samples"] == pytest.approx(
        one + 100 * efficientnet_gflops(224, logits=True)
    )


def test_the_reference_costs_the_features_of_its_images(tmp_path):
    per_image = efficientnet_gflops(load_config("quickstart", [], str(tmp_path)).evaluate.network_size)
    config = planned(str(tmp_path))
    images = make_plan(config, survey(config))["images"]
    whole = hours(tmp_path)["reference"]
    assert whole == pytest.approx(images["train"] * per_image)
    assert hours(tmp_path, "evaluate.reference_images=100")["reference"] == pytest.approx(100 * per_image)
    assert hours(tmp_path, "evaluate.reference_split=validation")["reference"] == pytest.approx(
        images["validation"] * per_image
    )


def test_other_stages_take_features_of_what_they_reconstruct(tmp_path):
    """floor of each image once, evaluate-tokenizer of the original and of four levels."""
    sets = ("evaluate.images=10", "evaluate.reference_images=10")
    own = hours(tmp_path, *sets)
    wide = hours(tmp_path, *sets, "evaluate.network_size=448")
    size = load_config("quickstart", [], str(tmp_path)).evaluate.network_size
    more = 10 * (efficientnet_gflops(448) - efficientnet_gflops(size))
    assert wide["floor"] - own["floor"] == pytest.approx(more)
    assert wide["evaluate-tokenizer"] - own["evaluate-tokenizer"] == pytest.approx(5 * more)


def test_analyze_decodes_its_images_with_ever_fewer_frequencies(tmp_path):
    network = tokenizer_sizes("vit", planned(str(tmp_path)).tokenizer_network)
    images = ("data.format=folder", "data.uri=/none")  # of as many as ImageNet
    assert hours(tmp_path, *images)["analyze"] == pytest.approx(
        256 * (network.encode_gflops + 10 * network.decode_gflops)
    )


def test_convergence_draws_at_each_milestone(tmp_path):
    """As many images as `sample` would, and their features; it is charged only where it will run."""
    sets = ("convergence.images=50", "sample.count=50")
    two, four = (
        hours(tmp_path, *sets, f"sit.milestones={steps}", until="convergence") for steps in ("[10,20]", "[10,20,30,40]")
    )
    whole = hours(tmp_path, *sets, "sit.milestones=[10,20]")
    assert two["convergence"] == pytest.approx(2 * (whole["sample"] + whole["evaluate-samples"]))
    assert four["convergence"] == pytest.approx(2 * two["convergence"])
    assert "convergence" not in whole
