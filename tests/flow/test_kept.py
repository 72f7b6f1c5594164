"""Grids that are kept between calls stay within a bound of bytes, serve autograd, and are the same for every caller."""

import threading

import pytest
import torch

from monai_diffeo.families import CPAB, ControlGrid, ThinPlateSpline
from monai_diffeo.flow import exp, grid, kept, warp
from monai_diffeo.flow.grid import centered_grid, voxel_grid
from tests.helpers import some_theta


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch):
    monkeypatch.setattr(kept, "_kept", {})


def held():
    """Bytes of the distinct storages that the module holds, counted without it."""
    values, storages = [value for value, _ in kept._kept.values()], {}
    while values:
        value = values.pop()
        if isinstance(value, torch.Tensor):
            storages[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        else:
            values.extend(value)
    return sum(storages.values())


def test_many_sizes_of_volumes_hold_no_more_than_the_bound(monkeypatch):
    monkeypatch.setattr(kept, "MOST_BYTES", 8 * 2**20)
    family, most = ControlGrid(3, 4), 0
    for n in range(16, 40, 3):
        size = (n, n + 1, n + 2)
        ddf = family(some_theta(family, 0.02), size).ddf(size)
        warp(torch.rand(1, 1, *size), ddf)
        most = max(most, held())
        assert kept.kept_bytes() >= held() and kept.kept_bytes() <= 8 * 2**20
    assert 4 * 2**20 < most <= 8 * 2**20


@pytest.mark.parametrize("family", [CPAB((2, 2)), ThinPlateSpline(2, 4), ControlGrid(2, 4)], ids=lambda f: type(f).__name__)
def test_every_familys_own_tensors_count(family, monkeypatch):
    monkeypatch.setattr(kept, "MOST_BYTES", 2**20)
    for n in range(40, 140, 10):
        family.inverse(some_theta(family, 0.02), (n, n)).ddf((n, n))
        assert held() <= 2**20


def test_what_was_used_last_stays_and_the_rest_goes_in_order(monkeypatch):
    monkeypatch.setattr(kept, "MOST_BYTES", 3 * 2 * 4 * 100)  # three grids of 10 x 10
    first, second, third = (voxel_grid((10, 10), dtype=d) for d in (torch.float32, torch.int32, torch.float32))
    assert third is first
    third = voxel_grid((5, 20))
    assert voxel_grid((10, 10)) is first
    fourth = voxel_grid((20, 5))  # the second was used longest ago
    assert voxel_grid((10, 10)) is first and voxel_grid((5, 20)) is third and voxel_grid((20, 5)) is fourth
    assert voxel_grid((10, 10), dtype=torch.int32) is not second
    assert torch.equal(voxel_grid((10, 10), dtype=torch.int32), second)


def test_what_is_larger_than_the_bound_is_not_kept_and_drives_nothing_out(monkeypatch):
    monkeypatch.setattr(kept, "MOST_BYTES", 1000)
    small = voxel_grid((5, 5))
    assert torch.equal(voxel_grid((50, 50)), voxel_grid((50, 50))) and voxel_grid((50, 50)) is not voxel_grid((50, 50))
    assert voxel_grid((5, 5)) is small and held() == small.nbytes


def test_a_grid_first_asked_for_in_inference_mode_serves_autograd():
    with torch.inference_mode():
        exp(torch.zeros(1, 2, 9, 9))
    v = torch.zeros(1, 2, 9, 9, requires_grad=True)
    exp(v).sum().backward()
    assert not any(t.is_inference() or t.requires_grad for t in (voxel_grid((9, 9)), centered_grid((9, 9)), v.grad))


def test_threads_get_the_same_numbers(monkeypatch):
    monkeypatch.setattr(kept, "MOST_BYTES", 20_000)  # grids come and go all the time
    sizes, wrong = [(n, n + 1) for n in range(10, 30)], []
    expected = {size: centered_grid(size).clone() for size in sizes}

    def work(seed):
        for k in range(300):
            size = sizes[(7 * k + seed) % len(sizes)]
            if not torch.equal(centered_grid(size), expected[size]):
                wrong.append(size)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and held() <= 20_000


def test_compilers_see_the_function_and_leave_nothing_behind():
    exported = torch.export.export(Exp(), (torch.zeros(1, 2, 11, 13),))
    assert not kept._kept
    v = torch.randn(1, 2, 11, 13, generator=torch.Generator().manual_seed(0))
    assert torch.equal(exported.module()(v), exp(v))
    assert grid._cached_grid.__name__ == "_cached_grid"


class Exp(torch.nn.Module):
    def forward(self, v):
        return exp(v)
