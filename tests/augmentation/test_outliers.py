import pytest
import torch

from monai_diffeo.augmentation import outliers, random_outliers
from monai_diffeo.errors import ShapeError


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def films(batch=6, size=(40, 48)):
    """Smooth films, each with another slope, with a small bright square at a place of its own."""
    y, x = torch.meshgrid(torch.linspace(0, 1, size[0]), torch.linspace(0, 1, size[1]), indexing="ij")
    image = torch.stack([(0.2 + 0.1 * i) * y + (0.6 - 0.1 * i) * x * y for i in range(batch)])[:, None]
    for i in range(batch):
        image[i, 0, 4 * i + 4 : 4 * i + 8, 8:12] = 1
    return image


def masks(batch=6, size=(40, 48)):
    label = torch.zeros(batch, 2, *size)
    label[:, :, 10:30, 10:20] = 1
    return label


def made(kind, seed, other=1):
    draw = outliers._Draw(seeded(seed))
    film, mask = films(), masks()
    return kind(draw, film[:1], film[other : other + 1], mask[:1, :1]), film[:1], film[other : other + 1]


def test_as_many_images_in_the_range_of_films_that_the_generator_decides_alone():
    found = random_outliers(films(), masks(), seeded())
    assert found.shape == (6, 1, 40, 48) and found.dtype == torch.float32
    assert torch.equal(found.amin((1, 2, 3)), torch.zeros(6)) and torch.allclose(found.amax((1, 2, 3)), torch.ones(6))
    assert torch.equal(found, random_outliers(films(), masks(), seeded()))
    assert not torch.equal(found, random_outliers(films(), masks(), seeded(1)))
    assert random_outliers(films()[:0], masks()[:0], seeded()).shape == (0, 1, 40, 48)


def test_every_kind_is_drawn(monkeypatch):
    seen, kinds = set(), outliers._KINDS
    watched = tuple(lambda *given, kind=kind: (seen.add(kind), kind(*given))[1] for kind in kinds)
    monkeypatch.setattr(outliers, "_KINDS", watched)
    random_outliers(films(120, (80, 32)), masks(120, (80, 32)), seeded())
    assert seen == set(kinds) and len(kinds) == 11


@pytest.mark.parametrize("other", [0, 1], ids=["of one film", "of two films"])
@pytest.mark.parametrize("kind", outliers._KINDS, ids=lambda kind: kind.__name__)
def test_no_kind_gives_a_film_back_and_all_keep_its_frame(kind, other):
    for seed in range(60):
        image, film, other_film = made(kind, seed, other)
        assert image.shape == film.shape and image.isfinite().all() and image.std() > 0
        for one in (film, other_film):
            flat = torch.stack([image.flatten(), one.flatten()])
            assert torch.corrcoef(flat)[0, 1] < 0.999, seed


def test_what_each_kind_keeps_of_films():
    for seed in range(8):
        image, film, _ = made(outliers._shuffled, seed)
        assert torch.allclose(image.mean(), film.mean(), atol=0.02)  # the same squares
        image, film, _ = made(outliers._random_phases, seed)
        spectra = [torch.fft.fft2(one).abs() for one in (image, film)]
        assert torch.allclose(*spectra, atol=1e-3, rtol=1e-3)
        assert len(made(outliers._flattened, seed)[0].unique()) <= 4
        assert len(made(outliers._drawing, seed)[0].unique()) <= 3
        image, film, other = made(outliers._double_exposure, seed)
        assert image.amin() >= 0 and image.amax() <= 1 and min(film.mean(), other.mean()) - 0.1 < image.mean() < 0.9


def test_other_shapes_are_errors():
    with pytest.raises(ShapeError, match="films"):
        random_outliers(films()[0], masks(), seeded())
    with pytest.raises(ShapeError, match="masks"):
        random_outliers(films(), masks(5), seeded())
    for wrong in (films().repeat(1, 3, 1, 1), films(2, (8, 40))):
        with pytest.raises(ShapeError, match="H and W at least 16"):
            random_outliers(wrong, masks(len(wrong), wrong.shape[2:]), seeded())
