"""Networks that take images row by row."""

import pytest
import torch

from monai_diffeo.networks import ImageOrientation
from monai_diffeo.networks.rows import ROWS_ON_CUDA, row_by_row
from tests.helpers_device import ClaimedDevice


@pytest.mark.parametrize("device, sizes", [("cpu", [1] * 40), ("cuda", [ROWS_ON_CUDA] * 2)])
def test_the_network_sees_batches_of_one_size_and_every_row_comes_back(device, sizes):
    seen = []

    def network(images):
        assert not images.is_cuda or not torch.backends.cudnn.allow_tf32
        seen.append(len(images))
        return images.flatten(1).sum(1, keepdim=True)

    with ClaimedDevice():
        images, before = torch.rand(40, 1, 3, 2).to(device), torch.backends.cudnn.allow_tf32
        found = row_by_row(network, images)
        assert torch.equal(found, images.flatten(1).sum(1, keepdim=True)) and seen == sizes
        assert torch.backends.cudnn.allow_tf32 == before and before
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


@pytest.mark.skipif(not hasattr(torch.backends.cudnn, "conv"), reason="torch has the older name alone")
def test_who_sets_the_precision_by_the_newer_names_may():
    cudnn, seen = torch.backends.cudnn, []
    before, cudnn.rnn.fp32_precision = cudnn.rnn.fp32_precision, "ieee"
    try:
        with pytest.raises(RuntimeError):
            _ = cudnn.allow_tf32  # the older name may not be read then
        with ClaimedDevice():
            row_by_row(lambda images: seen.append(cudnn.conv.fp32_precision) or images, torch.rand(2, 1).to("cuda"))
        assert seen == ["ieee"] and cudnn.conv.fp32_precision == "tf32"
    finally:
        cudnn.rnn.fp32_precision = before
