"""One step of the search at a time: order, composition, what is looked at, when it stops."""

import pytest
import torch
from torch.testing import assert_close

from monai_diffeo.canonicalize.search import Chain, minimize, predict, velocity_of
from monai_diffeo.energies import Energy
from monai_diffeo.errors import ShapeError
from monai_diffeo.families import AffineMatrix, ControlGrid, DiffeomorphicAffine, Siren
from monai_diffeo.flow import warp
from tests.helpers import blob, some_theta
from tests.helpers_device import ClaimedDevice

SIZE = (17, 17)
SCALE = torch.tensor([[1.0, 0.0, 0.0, 0.0, 1.0, 0.0]])  # x -> 2 x, in halves of the frame
SHIFT = torch.tensor([[0.0, 0.0, 0.5, 0.0, 0.0, 0.0]])  # 4 voxels along axis 0


class Free(Energy):
    """Costs nothing."""

    def forward(self, image):
        return 0 * image.flatten(1).mean(1)


class Pull:
    """Rewards, voxel by voxel, a displacement along axis 0 by ``slope``, a number or one an image; plus ``more(ddf)``."""

    def __init__(self, slope, more=lambda ddf: 0.0):
        self.slope, self.more = slope, more

    def __call__(self, v, ddf):
        return self.more(ddf) - torch.as_tensor(self.slope) * ddf[:, 0].flatten(1).mean(1)


def search(regularizer, steps=3, learning_rate=0.125, batch=1, energy=None, family=None, start=None, **settings):
    """``minimize`` among affine maps; ``theta[0, 2]`` is the translation along axis 0 in halves (8 voxels)."""
    family = AffineMatrix() if family is None else family
    energy = Free() if energy is None else energy
    return minimize(blob(batch, SIZE), energy, family, regularizer, start, steps, learning_rate, **settings)


def test_a_chain_composes_in_the_order_in_which_its_links_move_the_image():
    family, image = AffineMatrix(), blob(1, SIZE, shift=0.2, width=0.5)
    chain = Chain().then(family, SCALE).then(family, SHIFT)
    assert_close(chain.forward(SIZE).matrix[0], torch.tensor([[2.0, 0.0, 8.0], [0.0, 2.0, 0.0]]))  # 2 (x + 4)
    assert_close(chain.inverse(SIZE).matrix[0], torch.tensor([[0.5, 0.0, -4.0], [0.0, 0.5, 0.0]]))  # x / 2 - 4
    one_by_one = warp(warp(image, family(SCALE, SIZE).ddf()), family(SHIFT, SIZE).ddf())
    assert_close(warp(image, chain.forward(SIZE).ddf()), one_by_one, atol=1e-5, rtol=0)
    assert_close(chain.velocity(SIZE)[0, 1], family(SHIFT, SIZE).ddf()[0])


def test_the_velocity_of_a_flow_is_its_velocity_and_of_another_map_its_displacement():
    flow, other = DiffeomorphicAffine(), AffineMatrix()
    x = torch.arange(17.0) - 8
    assert_close(velocity_of(flow, SCALE, SIZE)[0, 0, :, 0], x)  # v = x; its flow is e x
    assert_close(velocity_of(other, SCALE, SIZE)[0, 0, :, 0], x)


def test_each_iteration_of_the_predictor_sees_what_all_before_have_moved():
    family, image, seen = AffineMatrix(), blob(1, SIZE, shift=0.2), []
    answers = [SCALE / 4, SHIFT, SHIFT]

    class Records(torch.nn.Module):
        def forward(self, image):
            seen.append(image)
            return answers[len(seen) - 1]

    found = predict(image, Records(), family, 3)
    assert len(seen) == 3 and torch.equal(seen[0], image)
    for k in (1, 2):
        assert torch.equal(seen[k], warp(image, Chain(found.links[:k]).forward(SIZE).ddf()))
        assert (seen[k] - seen[k - 1]).abs().max() > 0.1
    assert [theta is answer for (_, theta), answer in zip(found.links, answers)] == [True] * 3


@pytest.mark.parametrize("family", [AffineMatrix(), ControlGrid(controls=3), Siren()], ids=lambda f: type(f).__name__)
def test_an_image_at_rest_is_not_looked_at_again_and_a_batch_gives_what_each_image_gives(family):
    """The predictor moves an image by half of what is left, by how bright it is; the darkest is at rest at once."""
    image = torch.cat([blob(1, SIZE, shift=s) for s in (0.0, 0.1, 0.2)]) * torch.tensor([0.05, 0.4, 1.0]).view(3, 1, 1, 1)
    moves, asked = family.sample(1, 0.05 if isinstance(family, Siren) else 0.4, torch.Generator().manual_seed(1)), []

    def predictor(seen):
        asked.append(len(seen))
        return family.scaled(moves.expand(len(seen), -1), seen.amax((1, 2, 3)) * 0.5 ** (len(asked) - 1))

    def found(rows, min_motion):
        asked.clear()
        chain = predict(image[rows], predictor, family, 6, min_motion)
        return len(chain.links), chain.forward(SIZE).ddf(SIZE), list(asked)

    full = found(slice(None), None)
    assert full[0] == 6 and full[2] == [3] * 6
    first = family(family.scaled(moves, torch.tensor([0.3])), SIZE).ddf(SIZE)  # between the second and the third
    least = float((first / 17).square().sum(1).sqrt().mean())
    count, ddf, seen = found(slice(None), least)
    assert seen[0] == 3 and seen[1] == 2 and seen[-1] == 1 and 1 < count < 6 and len(seen) == count
    for i in range(3):
        alone = found(slice(i, i + 1), least)
        assert_close(ddf[i : i + 1], alone[1], atol=1e-4, rtol=0)
        assert len(alone[2]) == sum(n > 2 - i for n in seen)
    assert (ddf[2] - full[1][2]).abs().max() > 1e-3


def test_a_predictor_of_another_family_is_named():
    with pytest.raises(ShapeError, match=r"\(1, 6\) as AffineMatrix has it, got \(1, 3\)"):
        predict(blob(1, SIZE), lambda image: torch.zeros(1, 3), AffineMatrix(), 1)


def test_the_search_moves_the_image_after_the_start_and_pays_for_its_own_deformation_alone():
    thetas, images, paid = [], [], []

    class Family(AffineMatrix):
        def forward(self, theta, spatial_size, steps=None):
            thetas.append(theta.detach().clone())
            return super().forward(theta, spatial_size)

    class Sees(Energy):
        def forward(self, image):
            images.append(image.detach())
            return 0 * image.flatten(1).mean(1)

    def regularizer(v, ddf):
        paid.append((v.detach(), ddf.detach()))
        return Pull(1.0)(v, ddf)

    start = AffineMatrix()(SCALE, SIZE)
    search(regularizer, steps=2, learning_rate=0.25, energy=Sees(), family=Family(), start=start)
    assert len(thetas) == len(images) == len(paid) == 3
    for theta, image, (v, ddf) in zip(thetas, images, paid):
        own = AffineMatrix()(theta, SIZE)
        assert_close(image, warp(blob(1, SIZE), start.after(own).ddf()))
        assert torch.equal(ddf, own.ddf()) and torch.equal(v, own.ddf())
    swapped = warp(blob(1, SIZE), AffineMatrix()(thetas[2], SIZE).after(start).ddf())
    assert (images[2] - swapped).abs().max() > 0.1


@pytest.mark.parametrize("steps", [1, 4])
def test_the_last_step_is_looked_at_too(steps):
    theta, used = search(Pull(1.0), steps)
    assert_close(
        theta[0, 2].item(), 0.125 * steps, atol=1e-3, rtol=0
    )  # Adam's steps on a slope have the learning rate's length
    assert used.tolist() == [steps]


def test_the_best_parameters_are_kept_not_the_last():
    theta, used = search(Pull(1.0, lambda ddf: 3 * (ddf[:, 0].flatten(1).mean(1) - 2).clamp(min=0)), steps=6)
    assert_close(theta[0, 2].item(), 0.25, atol=0.01, rtol=0)  # two steps to the bend at 2 voxels
    assert used.tolist() == [6]


@pytest.mark.parametrize(
    "slope, tolerance, steps", [(0.004, None, 20), (0.00004, None, 2), (0.004, 0.1, 2), (0.00004, 1e-6, 20), (0.0, None, 2)]
)
def test_only_an_improvement_by_the_tolerance_counts_against_patience(slope, tolerance, steps):
    settings = {} if tolerance is None else {"tolerance": tolerance}  # a step gains slope / 8 voxel
    assert search(Pull(slope), 20, learning_rate=0.125 / 8, patience=2, **settings)[1].tolist() == [steps]


def test_without_patience_every_step_is_used():
    assert search(Pull(0.0), 20)[1].tolist() == [20]


def test_a_gradient_that_is_not_a_number_moves_nothing_and_spoils_nothing():
    root = lambda ddf: ddf[:, 1].square().flatten(1).mean(1).sqrt()  # noqa: E731  no derivative at 0
    theta, used = search(Pull(1.0, root), 3)
    assert_close(theta[0, 2].item(), 0.375, atol=1e-3, rtol=0)
    assert theta[0, 3:].abs().max() == 0 and used.tolist() == [3]


def test_an_objective_that_becomes_nan_or_infinite_ends_the_search_at_the_best_before():
    for wall in (float("nan"), float("inf"), float("-inf")):
        bad = lambda ddf, wall=wall: torch.where(ddf[:, 0].flatten(1).mean(1) > 1.5, wall, 0.0)  # noqa: E731
        theta, used = search(Pull(1.0, bad), 6)
        assert_close(theta[0, 2].item(), 0.125, atol=1e-3, rtol=0)
        assert used.tolist() == [2]


def test_the_images_of_a_batch_stop_each_by_itself():
    theta, used = search(Pull([1.0, 0.0, -1.0]), 8, batch=3, patience=3)
    assert used.tolist() == [8, 3, 8]
    assert_close(theta[:, 2], torch.tensor([1.0, 0.0, -1.0]), atol=0.01, rtol=0)
    assert not theta.requires_grad


def test_progress_reports_every_look():
    calls = []
    search(Pull(1.0), 3, progress=lambda step, value: calls.append((step, value.item())))
    assert [step for step, _ in calls] == [0, 1, 2, 3]
    assert_close(torch.tensor([value for _, value in calls]), -torch.arange(4.0), atol=0.02, rtol=0)


def test_the_search_leaves_no_gradient_on_weights_of_the_energy():
    class Learned(Free):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(1))

        def forward(self, image):
            return self.scale * image.flatten(1).mean(1)

    energy = Learned()
    search(Pull(1.0), 2, energy=energy)
    assert energy.scale.grad is None and energy.scale.requires_grad


def test_the_search_starts_from_the_familys_identity_of_the_seed():
    class Family(ControlGrid):
        def identity(self, batch_size, device="cpu", seed=0):
            return some_theta(self, 0.01, seed, batch_size)

    for seed in (0, 5):
        theta, _ = search(Pull(0.0), 0, family=Family(2, 3), seed=seed)
        assert torch.equal(theta, some_theta(ControlGrid(2, 3), 0.01, seed))


@pytest.mark.parametrize("device, cuda_graph, captures", [("cuda", True, 1), ("cuda", False, 0), ("cpu", True, 0)])
def test_on_cuda_the_objective_can_be_a_graph(device, cuda_graph, captures, monkeypatch):
    captured, seen, where = [], [], torch.empty(3)

    def graphed(function, given):
        captured.append(given)

        def replayed(theta):  # to the same place, as a graph does; a half more, to see that it is asked
            value = function(theta) + 0.5
            value.data = where.copy_(value.detach())
            return value

        return replayed

    with ClaimedDevice(), monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "make_graphed_callables", graphed)
        where, image = where.to(device), blob(3, SIZE).to(device)
        settings = {"cuda_graph": cuda_graph, "progress": lambda step, values: seen.append(values)}
        theta, used = minimize(image, Free(), DiffeomorphicAffine(), Pull(1.0), None, 10, 0.125, **settings)
    alone = minimize(blob(3, SIZE), Free(), DiffeomorphicAffine(), Pull(1.0), None, 10, 0.125)
    assert len(captured) == captures and (theta.cpu() - alone[0]).abs().max() < 1e-6
    assert (seen[0] == 0.5 * captures).all() and (seen[-1] < seen[0]).all()
