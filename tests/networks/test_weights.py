import pytest
import torch
from torch import nn
from torch.testing import assert_close

from monai_diffeo.errors import WeightsError
from monai_diffeo.networks.weights import load_weights, mean_weights, save_weights, trained_part


def saved(network, path):
    torch.save(network.state_dict(), path)
    return path


def test_the_mean_lies_on_the_line_between_two_networks(tmp_path):
    first, second, mean = nn.Linear(3, 2), nn.Linear(3, 2), nn.Linear(3, 2)
    paths = saved(first, tmp_path / "first.pt"), saved(second, tmp_path / "second.pt")
    image = torch.rand(4, 3)
    for share in (0.0, 0.7, 1.0):
        torch.save(mean_weights(*paths, share), tmp_path / "mean.pt")
        load_weights(mean, tmp_path / "mean.pt")
        assert_close(mean(image), (1 - share) * first(image) + share * second(image))


def test_counters_are_the_seconds(tmp_path):
    first, second = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    second(torch.rand(4, 3))
    mean = mean_weights(saved(first, tmp_path / "first.pt"), saved(second, tmp_path / "second.pt"), 0.25)
    assert mean["num_batches_tracked"] == 1
    assert_close(mean["running_mean"], 0.25 * second.running_mean)


def test_other_networks_have_no_mean(tmp_path):
    paths = saved(nn.Linear(3, 2), tmp_path / "first.pt"), saved(nn.Linear(3, 1), tmp_path / "second.pt")
    with pytest.raises(WeightsError, match="first.pt and second.pt are of different networks"):
        mean_weights(*paths, 0.5)
    with pytest.raises(WeightsError, match=r"mean_weights\(\): no weights at"):
        mean_weights(tmp_path / "missing.pt", paths[1], 0.5)
    with pytest.raises(WeightsError, match="no weights at"):
        load_weights(nn.Linear(3, 2), tmp_path / "missing.pt")


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path, number):
    network = nn.Linear(3, 2)
    network.bias.data[1] = number
    with pytest.raises(WeightsError, match="bias.*NaN or infinite"):
        load_weights(nn.Linear(3, 2), saved(network, tmp_path / "broken.pt"))


def test_further_weights_replace_those_that_were_trained_and_no_others(tmp_path):
    network = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    whole = saved(network, tmp_path / "whole.pt")
    network[0].requires_grad_(False)
    network[1].weight.data += 1
    part = save_weights(trained_part(network), tmp_path / "part.pt", half=True)
    assert set(torch.load(part, weights_only=True)) == {"1.weight", "1.bias"}
    fresh = lambda: nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))  # noqa: E731
    plain, both = load_weights(fresh(), whole), load_weights(fresh(), whole, part)
    assert all(torch.equal(a, b) for a, b in zip(plain[0].parameters(), both[0].parameters()))
    assert_close(both[1].weight, plain[1].weight + 1, atol=1e-3, rtol=0)
    assert not both.training
    torch.save({"2.weight": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(WeightsError, match=r"(?s)other.pt does not load into Sequential: .*2.weight"):
        load_weights(fresh(), whole, tmp_path / "other.pt")
    with pytest.raises(WeightsError, match=r"load_weights\(\): no weights at .*absent.pt"):
        load_weights(fresh(), whole, tmp_path / "absent.pt")
