"""Networks that take images row by row."""

import pytest
import torch

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
        assert torch.backends.cudnn.allow_tf32 == before
        assert row_by_row(network, images[:0]).shape == (0, 1)
