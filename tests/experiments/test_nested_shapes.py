import torch

from docs.experiments.nested_shapes import nested_shapes


def test_shapes_are_nested_reproducible_and_narrow():
    draw = lambda: torch.Generator().manual_seed(3)  # noqa: E731
    images, masks = nested_shapes(30, 48, draw())
    again, _ = nested_shapes(30, 48, draw())
    assert torch.equal(images, again) and images.shape == masks.shape == (30, 1, 48, 48)
    assert images.min() >= 0 and images.max() <= 1 and set(masks.unique().tolist()) == {0.0, 1.0}
    inside, outside = (images * masks).sum() / masks.sum(), images[..., :4, :4].mean()
    assert (
        abs(inside - 0.3) < 0.05 and abs(outside - 0.15) < 0.02
    )  # the box is darker than the ellipse, lighter than the ground
    areas = masks.mean((1, 2, 3))
    assert (areas > 0.02).all() and areas.std() < areas.mean() / 2
    wide, _ = nested_shapes(30, 48, draw(), spread=0.1)
    assert wide.std(0).mean() > images.std(0).mean()
