"""How many encoders and decoders a stage's nodes get."""

import pytest

from pipeline.cluster import encoder_pool
from pipeline.config import ClusterConfig

_GPU = {"CPU": 12.0, "GPU": 2.0, "gpu-batch": 1.0}
_CPU = {"CPU": 4.0}


@pytest.mark.parametrize(
    ("nodes", "settings", "expected"),
    [
        ([_CPU], {}, (4, 1)),  # a core decodes and encodes
        ([_CPU, _CPU], {"encode_actors": 2}, (2, 4)),
        ([_GPU, _CPU], {}, (2, 6)),  # decoders are on the node of their encoder
        ([_GPU, _GPU], {}, (4, 6)),
        ([_GPU, _CPU], {"gpu_shares": {"encode": 0.5}}, (4, 3)),  # two encoders on each GPU
        ([_GPU, _CPU], {"gpu_shares": {"encode": 0.3333}}, (6, 2)),
        ([_GPU, _CPU], {"gpu_shares": {"sample": 0.5}}, (2, 6)),
        ([_GPU, _CPU], {"device": "cpu"}, (16, 1)),
        ([_GPU, _CPU], {"device": "cpu", "pools": {"encode": {"gpu-batch": 0.001}}}, (12, 1)),
        ([{"CPU": 1.0}], {"encode_actors": 3}, (3, 1)),
        ([{"CPU": 0.0}], {}, (1, 1)),  # an autoscaler adds the node later
    ],
)
def test_a_device_each_and_the_cores_of_its_nodes(
    nodes: list[dict[str, float]],
    settings: dict[str, object],
    expected: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import ray

    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": one} for one in nodes] + [{"Alive": False}])
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"GPU": sum(one.get("GPU", 0.0) for one in nodes)})
    assert encoder_pool(ClusterConfig(**settings), "encode") == expected  # type: ignore[arg-type]
