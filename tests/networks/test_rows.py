"""Networks that take images row by row."""

import pytest
import torch

from monai_diffeo.networks import ImageOrientation
from monai_diffeo.networks.rows import ROWS_ON_CUDA, row_by_row
from tests.helpers_device import ClaimedDevice

CONV = getattr(torch.backends.cudnn, "conv", torch.backends.cudnn)  # by the newer names, or the older one


def precision(conv):
    return conv.fp32_precision if hasattr(conv, "fp32_precision") else conv.allow_tf32


@pytest.mark.parametrize("device, sizes", [("cpu", [1] * 40), ("cuda", [ROWS_ON_CUDA] * 2)])
def test_the_network_sees_batches_of_one_size_and_every_row_comes_back(device, sizes):
    seen = []

    def network(images):
        assert not images.is_cuda or precision(CONV) in ("ieee", False)
        seen.append(len(images))
        return images.flatten(1).sum(1, keepdim=True)

    with ClaimedDevice():
        images, before = torch.rand(40, 1, 3, 2).to(device), precision(CONV)
        found = row_by_row(network, images)
        assert torch.equal(found, images.flatten(1).sum(1, keepdim=True)) and seen == sizes
        assert precision(CONV) == before and before not in ("ieee", False)
        assert row_by_row(network, images[:0]).shape == (0, 1)


def test_an_orientation_network_shows_as_many_volumes_in_space_as_films_in_the_plane(monkeypatch):
    seen = []
    monkeypatch.setattr(
        ImageOrientation, "forward", lambda self, x: seen.append(len(x)) or x.new_zeros(len(x), 2, self.num_rotations)
    )
    with ClaimedDevice():
        for dims in (2, 3):
            network = ImageOrientation(dims, image_size=(8,) * dims, channels=(8,))
            network.probabilities(torch.rand(3, 1, *(8,) * dims).to("cuda"))
    assert seen == [32 * 8, 5 * 48]
