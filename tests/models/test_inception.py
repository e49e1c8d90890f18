import pytest
import torch
from safetensors.torch import save_file


@pytest.mark.slow
def test_features_with_random_weights(tmp_path):
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    from models.inception import Inception

    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:  # build the network without weights, to have a state dict to save
        patch.setattr("torch.load", lambda *_, **__: {})
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        state = FeatureExtractorInceptionV3("random", ["2048"], feature_extractor_weights_path="none").state_dict()
    path = tmp_path / "inception.safetensors"
    save_file(state, path)

    network = Inception(str(path))
    x = torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8)
    kept = []
    network.network.Mixed_6d.branch1x1.conv.register_forward_hook(lambda _m, _i, output: kept.append(output))
    pool, spatial, logits = network(x)
    assert (pool.shape, spatial.shape, logits.shape) == ((2, 2048), (2, 17 * 17 * 7), (2, 1008))
    torch.testing.assert_close(logits, pool @ network.network.fc.weight.T)
    assert torch.equal(spatial.view(2, 17, 17, 7)[1, 3, 5], kept[0][1, :7, 3, 5])

    save_file({"weight": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="Inception"):
        Inception(str(path))
