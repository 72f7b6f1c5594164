import pytest
import torch
from torch import nn
from torch.testing import assert_close

from monai_diffeo.errors import WeightsError
from monai_diffeo.networks.weights import load_weights, mean_weights


def saved(network, path):
    torch.save(network.state_dict(), path)
    return path


@pytest.mark.parametrize("shares", [(0.0, 1.0), (0.3, 0.7), (0.2, 0.5, 0.3)])
def test_a_linear_network_of_mean_weights_gives_the_mean_answer(tmp_path, shares):
    networks, mean = [nn.Linear(3, 2) for _ in shares], nn.Linear(3, 2)
    paths = [saved(network, tmp_path / f"{k}.pt") for k, network in enumerate(networks)]
    torch.save(mean_weights(paths, shares), tmp_path / "mean.pt")
    load_weights(mean, tmp_path / "mean.pt")
    image = torch.rand(4, 3)
    assert_close(mean(image), sum(share * network(image) for share, network in zip(shares, networks)))


def test_counters_are_the_lasts(tmp_path):
    first, second = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    second(torch.rand(4, 3))
    mean = mean_weights([saved(first, tmp_path / "first.pt"), saved(second, tmp_path / "second.pt")], [0.75, 0.25])
    assert mean["num_batches_tracked"] == 1
    assert_close(mean["running_mean"], 0.25 * second.running_mean)


def test_other_networks_have_no_mean(tmp_path):
    paths = saved(nn.Linear(3, 2), tmp_path / "first.pt"), saved(nn.Linear(3, 1), tmp_path / "second.pt")
    with pytest.raises(WeightsError, match="first.pt and second.pt are of different networks"):
        mean_weights(paths, [0.5, 0.5])
    with pytest.raises(WeightsError, match=r"mean_weights\(\): no weights at"):
        mean_weights([tmp_path / "missing.pt", paths[1]], [0.5, 0.5])
    for shares in ([0.5], [0.5, 0.6], []):
        with pytest.raises(ValueError, match="one for each of 2 files and add up to 1"):
            mean_weights(paths, shares)
    with pytest.raises(WeightsError, match="no weights at"):
        load_weights(nn.Linear(3, 2), tmp_path / "missing.pt")
