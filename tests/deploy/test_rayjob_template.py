"""What `deploy rayjob` makes of the chart's template: the RayJob that it would create."""

import re

import pytest

from deploy import rayjob
from deploy.submit import stage_work
from pipeline.errors import ConfigError
from tests.support.chart import values_of
from tests.support.rayjobs import job_options, template
from tests.support.weights import record_all


def test_the_job_is_put_into_the_charts_pods(tmp_path):
    work = stage_work("train-sit", "quickstart", ["sit.steps=7"], str(tmp_path))
    given = template("gpu-production")
    made = rayjob.render(given, work, job_options("train-sit", attempts=4), 2)
    assert made["metadata"]["name"] == f"{work.name}-2"
    assert len(made["metadata"]["name"]) <= 47
    spec = made["spec"]
    assert spec["backoffLimit"] == 3
    assert "clusterSelector" not in spec, "KubeRay refuses it beside a backoffLimit"
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["entrypoint"].startswith("python -m pipeline stage train-sit sent:quickstart --set sit.steps=7")
    head = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    assert {"name": "DVAE_SENT_CONFIG", "value": work.variables["DVAE_SENT_CONFIG"]} in head["env"]
    assert "runtimeEnvYAML" not in spec, "KubeRay's submitter would put it through a shell"
    before = given["spec"]["rayClusterSpec"]
    assert spec["rayClusterSpec"]["workerGroupSpecs"] == before["workerGroupSpecs"], "the autoscaler sees to it"


def test_a_preset_in_a_folder_is_sent_by_a_name_without_a_slash(tmp_path):
    sets = [f"data.revision={'ab' * 32}", "data.uri=s3://b/images", f"weights={record_all(tmp_path / 'weights')}"]
    work = stage_work("train-sit", "table1/f16d32-mlsr", sets, str(tmp_path))
    assert " sent:table1-f16d32-mlsr --set " in work.entrypoint
    assert work.metadata["dvae.preset"] == "table1-f16d32-mlsr"
    made = rayjob.render(template("gpu-production"), work, job_options("train-sit"), 1)
    assert made["metadata"]["annotations"]["denoising-vae/preset"] == "table1-f16d32-mlsr"


def test_with_a_queue_the_cluster_has_just_the_pods_of_the_work(tmp_path):
    """Kueue admits a cluster whole, and nothing scales it afterwards."""
    work = stage_work("train-sit", "quickstart", None, str(tmp_path))
    for given, queue, name in ((template("kueue"), None, "research"), (template("gpu-production"), "other", "other")):
        made = rayjob.render(given, work, job_options("train-sit", "register", workers=3, queue=queue), 1)
        assert made["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == name
        cluster = made["spec"]["rayClusterSpec"]
        assert "enableInTreeAutoscaling" not in cluster
        sizes = {group["groupName"]: group["replicas"] for group in cluster["workerGroupSpecs"]}
        assert sizes == {"gpu-sit": 3, "cpu": 1}
        assert all(one["minReplicas"] == one["maxReplicas"] == one["replicas"] for one in cluster["workerGroupSpecs"])


def test_kueues_elastic_jobs_keep_the_autoscaler(tmp_path):
    work = stage_work("train-sit", "quickstart", None, str(tmp_path))
    made = rayjob.render(template("everything"), work, job_options("train-sit"), 1)
    assert made["metadata"]["annotations"]["kueue.x-k8s.io/elastic-job"] == "true"
    assert made["spec"]["rayClusterSpec"]["enableInTreeAutoscaling"] is True


def test_more_pods_than_the_group_may_have_are_refused(tmp_path):
    work = stage_work("train-sit", "quickstart", None, str(tmp_path))
    with pytest.raises(ConfigError, match="train-sit needs 9 pods of the group gpu-sit, which has at most 8"):
        rayjob.render(template("gpu-production"), work, job_options("train-sit", workers=9), 1)


@pytest.mark.parametrize(
    ("stage", "gpus", "cluster", "pods"),
    [
        ("train-sit", {"gpu-sit": {"gpus": 8, "gpuResource": "example.com/accelerator"}}, {"workers": 16}, 2),
        ("train-sit", {"gpu-sit": {"gpuResource": "nvidia.com/mig-3g.20gb"}}, {"workers": 3}, 3),
        ("encode", {}, {"encode_actors": 8}, 8),
        ("encode", {}, {"encode_actors": 8, "gpu_shares": {"encode": 0.25}}, 2),
    ],
)
def test_pods_are_counted_by_the_gpus_that_ray_has_in_them(tmp_path, stage, gpus, cluster, pods):
    work = stage_work(stage, "quickstart", None, str(tmp_path))
    given = template("gpu-production", groups={**values_of("gpu-production")["groups"], **gpus})
    made = rayjob.render(given, work, job_options(stage, queue="q", **cluster), 1)
    (group,) = made["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert group["replicas"] == pods


@pytest.mark.parametrize("value", ["$HOME", "a;b", "a|b", "a>b", "`id`", "a\\b", "*", "(a)", "x{a,b}", "~/x"])
def test_what_a_shell_would_read_is_refused(tmp_path, value):
    work = stage_work("train-sit", "quickstart", [f"tracking.experiment={value}"], str(tmp_path))
    with pytest.raises(ConfigError, match="shells would change"):
        rayjob.render(template(), work, job_options("train-sit"), 1)


def test_what_a_shell_would_read_is_named_with_its_mend(tmp_path):
    odd = tmp_path / "a$b.yaml"
    odd.write_text("extends: quickstart\n")
    cases = {
        ("quickstart", "sit.steps=7", "s3://b/{x}"): "`s3://b/{x}`. Take another root.",
        (str(odd), "sit.steps=7", "s3://b/x"): "`sent:a$b`. Give the preset's file another name.",
        (
            "quickstart",
            "tracking.experiment=`id`",
            "s3://b/x",
        ): "`tracking.experiment=`id``. Set such a value in a preset",
    }
    for (preset, override, root), told in cases.items():
        work = stage_work("train-sit", preset, [override], root)
        with pytest.raises(ConfigError, match=re.escape(f"would change a character of {told}")):
            rayjob.render(template(), work, job_options("train-sit"), 1)


@pytest.mark.parametrize("value", ["a b", "a=b", "a,b", "a:b/c", "ä", "a'b c"])
def test_what_no_shell_would_read_goes_through(tmp_path, value):
    work = stage_work("train-sit", "quickstart", [f"tracking.experiment={value}"], str(tmp_path))
    rayjob.render(template(), work, job_options("train-sit"), 1)
