import pytest
import torch

from monai_diffeo.errors import ShapeError
from monai_diffeo.networks import OutlierDetector


def detector(**settings):
    torch.manual_seed(0)
    return OutlierDetector(image_size=(32, 32), channels=(8, 16), **settings).eval()


def test_it_gives_one_number_an_image_whatever_its_size_and_its_grey_values():
    network, image = detector(), torch.rand(3, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        odds = network(image)
        assert odds.shape == (3,) and odds.unique().numel() == 3
        torch.testing.assert_close(network(3 * image + 1), odds, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(torch.cat([network(row) for row in image.split(1)]), odds, atol=1e-5, rtol=1e-4)
        wide = torch.nn.functional.interpolate(image, (64, 128), mode="nearest")
        torch.testing.assert_close(network(wide), odds, atol=0.05, rtol=0.2)
        assert network(torch.zeros(1, 1, 40, 40)).isfinite().all()


def test_it_learns_in_space_too_and_other_images_are_errors():
    torch.manual_seed(0)
    network = OutlierDetector((16, 16, 16), 2, (4, 6))
    assert network(torch.rand(2, 2, 20, 16, 12)).shape == (2,)
    for wrong in (torch.rand(2, 1, 16, 16, 16), torch.rand(2, 2, 16, 16)):
        with pytest.raises(ShapeError, match="OutlierDetector"):
            network(wrong)
