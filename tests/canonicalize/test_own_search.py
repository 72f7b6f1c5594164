"""A search of one's own takes the place of Adam's steps."""

import pytest
import torch
from torch.testing import assert_close

from monai_diffeo.canonicalize import Canonicalizer, SearchObjective
from monai_diffeo.energies import DeformationRegularizer, Energy, FunctionEnergy, StandardizedEnergy, WeightedEnergy
from monai_diffeo.errors import ShapeError
from monai_diffeo.families import AffineMatrix, ControlGrid, DiffeomorphicAffine
from monai_diffeo.flow import dense_velocity, warp
from tests.helpers import Brightness, FixedTheta, FromTemplate, blob, some_theta, template_canonicalizer

FAMILY = ControlGrid(2, controls=3)


def test_the_objective_is_the_energy_of_the_moved_image_plus_the_cost():
    image, theta, cost = blob(2, shift=0.2), some_theta(FAMILY, batch=2), DeformationRegularizer()
    start = FAMILY(some_theta(FAMILY, seed=1, batch=2), (32, 32))
    flow = FAMILY(theta, (32, 32))
    energy = FromTemplate(blob(1))
    objective = SearchObjective(image, energy, FAMILY, cost)
    generator, field = FAMILY.velocity(theta, (32, 32))
    velocity = dense_velocity(generator[:, None], field[:, None], (32, 32))[:, 0]
    ddf = flow.ddf((32, 32))
    assert_close(objective(theta), energy(warp(image, ddf)) + cost(velocity, ddf))
    after = SearchObjective(image, energy, FAMILY, None, start)(theta)
    assert_close(after, energy(warp(image, start.after(flow).ddf((32, 32)))))
    assert torch.equal(objective.identity(), torch.zeros(2, FAMILY.num_parameters))
    assert_close(objective(objective.identity()), energy(image))


def test_a_search_of_ones_own_is_asked_image_by_image_where_the_predictor_ended():
    asked = []

    def search(objective):
        asked.append((objective.image.clone(), objective.start))
        return objective.identity() + 0.05

    images = torch.cat([blob(1), torch.full((1, 1, 32, 32), 0.5), blob(1, shift=0.3)])
    predictor = FixedTheta(some_theta(FAMILY, 0.04))
    settings = {"predictor": predictor, "max_energy_increase": None}
    found = Canonicalizer(Brightness(), FAMILY, search=search, **settings)(images)
    assert [len(image) for image, _ in asked] == [1, 1] and torch.equal(
        asked[1][0], images[2:]
    )  # a constant image is not asked
    assert_close(asked[0][1].ddf((32, 32)), FAMILY(predictor.theta, (32, 32)).ddf((32, 32)))
    assert found.velocity.shape[1] == 2 and found.steps.tolist() == [0, 0, 0]
    step = FAMILY(torch.full((1, FAMILY.num_parameters), 0.05), (32, 32), 7)
    expected = FAMILY(predictor.theta, (32, 32), 7).after(step).ddf((32, 32))
    assert_close(found.ddf[:1], expected, atol=1e-4, rtol=0)
    alone = Canonicalizer(Brightness(), FAMILY, search=search, **settings)(images[2:])
    assert_close(alone.ddf[0], found.ddf[2], atol=1e-4, rtol=0)


def test_adam_written_by_hand_finds_what_steps_find():
    def adam(objective):
        theta = objective.identity().requires_grad_()
        optimizer = torch.optim.Adam([theta], lr=0.02)
        for _ in range(40):
            optimizer.zero_grad()
            objective(theta).sum().backward()
            optimizer.step()
        return theta

    image = blob(1, shift=0.2)
    own = template_canonicalizer(search=adam, steps=0, learning_rate=0.01)(image)
    ours = template_canonicalizer(patience=None)(image)
    assert own.status == ours.status == ("canonicalized",)
    assert own.energy_after < 0.5 * own.energy_before and abs(own.energy_after - ours.energy_after) < 0.1 * ours.energy_before


def test_where_a_search_raises_the_energy_what_the_predictor_found_counts_alone():
    family, energy, images = AffineMatrix(), FromTemplate(blob()), torch.cat([blob(1, shift=0.4), blob(1, shift=0.15)])
    there = torch.tensor([[0.0, 0.0, 0.2, 0.0, 0.0, 0.0]])  # the first image is nearer after twice this way, the second is not
    settings = {"predictor": FixedTheta(there), "max_energy_increase": 0.0}
    single = Canonicalizer(energy, family, **settings)
    both = Canonicalizer(energy, family, search=lambda objective: there, **settings)
    found, alone, without = both(images), [both(image[None]) for image in images], single(images)
    assert found.status == without.status == ("canonicalized",) * 2 and found.energy_after[0] < without.energy_after[0] / 4
    assert torch.equal(found.ddf[1], without.ddf[1]) and not torch.allclose(found.ddf[0], without.ddf[0])
    assert_close(found.ddf, torch.cat([one.ddf for one in alone]), atol=1e-5, rtol=0)
    never = Canonicalizer(energy, family, search=lambda objective: there, **{**settings, "max_energy_increase": None})(images)
    assert_close(never.ddf[1], never.ddf[0])
    nothing = Canonicalizer(energy, family, search=lambda objective: -there, max_energy_increase=0.0)(images[:1])
    assert nothing.status[0].startswith("rejected: energy rose")  # there is no predictor


@pytest.mark.parametrize("given", [{"steps": 3}, {"learning_rate": 0.1}, {"patience": None}, {"cuda_graph": True}])
def test_settings_that_nothing_reads_beside_a_search_are_refused(given):
    with pytest.raises(ValueError, match=f"beside a 'search' nothing reads {next(iter(given))}"):
        template_canonicalizer(search=lambda objective: objective.identity(), **{"steps": 0, "learning_rate": 0.01, **given})


def test_what_a_search_returns_is_checked():
    for wrong in (torch.zeros(2, FAMILY.num_parameters), torch.zeros(1, 3)):
        with pytest.raises(ShapeError, match="Canonicalizer: 'theta' must have shape .*Let 'search' give"):
            Canonicalizer(Brightness(), FAMILY, search=lambda objective, wrong=wrong: wrong)(blob(1))
    with pytest.raises(TypeError, match="'search' must be a module or a function, got str"):
        Canonicalizer(Brightness(), FAMILY, search="adam")


def test_functions_and_modules_are_energies_everywhere():
    def mean(image):
        return image.flatten(1).mean(1)

    class Mean(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(()))
            self.drop = torch.nn.Dropout(0.9)

        def forward(self, image):
            return self.drop(self.scale * image.flatten(1)).mean(1)

    images, module = torch.rand(3, 1, 8, 8), Mean()
    energy = WeightedEnergy({"function": mean, "module": StandardizedEnergy(module, 0.0, 2.0)})
    assert_close(energy(images), 1.5 * mean(images))
    assert all(isinstance(part, Energy) for part in energy.energies.values())
    assert module.training and module.scale.requires_grad  # the caller's own stays as it was
    assert not any(p.requires_grad for p in energy.parameters()) and set(energy.terms(images)) == {"function", "module"}
    assert isinstance(FunctionEnergy(mean), Energy) and torch.equal(FunctionEnergy(mean)(images), mean(images))


def test_predictors_and_regularisers_may_be_functions():
    shift = DiffeomorphicAffine(2)

    def left(image):
        return torch.tensor([[0.0, 0.0, 0.0, 0.0, 0.0, 0.2]]).expand(len(image), -1)

    found = Canonicalizer(Brightness(), shift, predictor=left, max_energy_increase=None)(blob(2))
    assert_close(found.ddf[:, 1], torch.full((2, 32, 32), 0.2 * 15.5), atol=1e-4, rtol=0)
    settings = {"steps": 5, "learning_rate": 0.05, "max_energy_increase": None}
    free = Canonicalizer(FromTemplate(blob(1)), shift, lambda v, ddf: 0 * ddf.flatten(1).mean(1), **settings)(
        blob(1, shift=0.3)
    )
    held = Canonicalizer(FromTemplate(blob(1)), shift, lambda v, ddf: 1e6 * ddf.square().flatten(1).mean(1), **settings)(
        blob(1, shift=0.3)
    )
    assert held.largest_displacement < 0.5 * free.largest_displacement
