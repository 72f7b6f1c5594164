"""Laws of Canonicalize(d), around a canonicaliser whose predictor hardly looks at the image."""

import dataclasses
import pickle

import numpy as np
import pytest
import torch
from monai.data import CacheDataset, DataLoader, Dataset, MetaTensor, decollate_batch, set_track_meta
from monai.transforms import Compose, Flipd, Invertd, Resized
from torch import nn
from torch.testing import assert_close

from monai_diffeo.canonicalize import Canonicalizer
from monai_diffeo.energies import Energy
from monai_diffeo.errors import ShapeError
from monai_diffeo.families import ControlGrid
from monai_diffeo.flow import Deformation, warp
from monai_diffeo.flow.grid import voxel_grid
from monai_diffeo.transforms.spatial import Canonicalize, CanonicalizeD, Canonicalized, CanonicalizeDict

SIZE = (48, 40)


class Brightness(Energy):
    def forward(self, image):
        return image.flatten(1).mean(1)


class Fixed(nn.Module):
    """Answers a fixed ``theta``, twice as much for images brighter than a half, and another one at the second look."""

    def __init__(self, parameters, strength=0.08):
        super().__init__()
        draws = torch.randn(2, parameters, generator=torch.Generator().manual_seed(0)) * strength
        self.register_buffer("draws", draws)
        self.register_buffer("looks", torch.tensor(0))

    def forward(self, image):
        self.looks += 1
        return self.draws[self.looks % 2] * (1 + (image.flatten(1).mean(1, keepdim=True) > 0.5))


def canonicalizer(dims=2, **options):
    family = ControlGrid(dims, 5)
    options = {"max_energy_increase": None, "iterations": 2, **options}
    return Canonicalizer(Brightness(), family, predictor=Fixed(family.num_parameters), **options)


def picture(seed=0, size=SIZE, brightness=0.0):
    return torch.rand(1, *size, generator=torch.Generator().manual_seed(seed)) * 0.5 + brightness


def both_ways(image, prediction, **options):
    """What the canonicaliser itself answers: the canonical image, and the prediction brought back."""
    result = canonicalizer(**options)(image[None])
    return result, result.image[0], result.warp_back(prediction[None])[0]


# what it does is what the canonicaliser does


def test_there_is_the_canonicalisers_image_and_back_is_its_way_back():
    transform = Canonicalize(canonicalizer())
    for seed in range(3):
        image = picture(seed, brightness=0.4 * (seed == 1))
        prediction = torch.rand(3, *SIZE)
        result, there, back = both_ways(image, prediction)
        out = transform(image)
        assert result.largest_displacement > 3 and torch.equal(out.as_tensor(), there)
        moved = MetaTensor(prediction, applied_operations=out.applied_operations)
        assert torch.equal(transform.inverse(moved).as_tensor(), back)


def test_volumes_too():
    size = (16, 12, 14)
    image = picture(size=size)
    _, there, back = both_ways(image, image, dims=3)
    transform = Canonicalize(canonicalizer(3))
    out = transform(image)
    assert torch.equal(out.as_tensor(), there) and not torch.equal(there, image)
    back_from = MetaTensor(image, applied_operations=out.applied_operations)
    assert torch.equal(transform.inverse(back_from).as_tensor(), back)


def test_there_and_back_ends_where_it_began():
    """The coordinates come back, where they never left the frame; ones with zeros outside tell where that is."""
    grid = voxel_grid(SIZE).clone()
    transform = Canonicalized(("image", "grid", "ones"), canonicalizer(), padding_mode=("border", "border", "zeros"))
    moved = transform({"image": picture(), "grid": grid, "ones": torch.ones(1, *SIZE)})
    assert (moved["grid"] - grid).norm(dim=0).max() > 3
    back = transform.inverse(moved)
    inside = back["ones"][0] > 0.999
    error = (back["grid"] - grid).norm(dim=0)[inside]
    assert inside.float().mean() > 0.7
    assert error.mean() <= 0.03 and error.max() <= 0.15  # voxels; measured .015 and .057


def test_a_label_there_and_back_is_the_label():
    grid = voxel_grid(SIZE)
    label = ((grid - torch.tensor([24.0, 20.0]).view(2, 1, 1)).norm(dim=0) < 12)[None].to(torch.uint8) * 3
    transform = Canonicalized(("image", "label"), canonicalizer(), mode=("bilinear", "nearest"))
    moved = transform({"image": picture(), "label": label})
    back = transform.inverse(moved)["label"]
    overlaps = []
    for other in (moved["label"], back):
        assert other.dtype == torch.uint8 and set(other.unique().tolist()) == {0, 3}
        overlaps.append((2 * ((other > 0) & (label > 0)).sum() / ((other > 0).sum() + (label > 0).sum())).item())
    assert overlaps[0] < 0.95 and overlaps[1] >= 0.97  # measured .808 and .993


def test_two_forwards_before_one_inverse():
    transform = Canonicalize(canonicalizer())
    pictures = picture(0), picture(1, brightness=0.4)  # the second is moved twice as far
    moved = [transform(image) for image in pictures]
    for image, out in zip(pictures, moved):
        _, _, back = both_ways(image, out.as_tensor())
        assert torch.equal(transform.inverse(out).as_tensor(), back)


def test_the_inverse_does_not_look_at_the_canonicaliser():
    transform = Canonicalize(canonicalizer(final_steps=9), padding_mode="zeros")
    image = picture()
    out = transform(image)
    wanted = transform.inverse(MetaTensor(out.clone(), applied_operations=list(out.applied_operations)))
    transform.canonicalizer = transform.mode = transform.padding_mode = None
    assert torch.equal(transform.inverse(out), wanted)


# keys


def test_all_keys_move_with_the_source():
    grid, image = voxel_grid(SIZE).clone(), picture()
    data = {"image": image, "grid": grid, "low": grid[:, ::2, ::2], "name": "x"}
    result = canonicalizer()(image[None])
    out = Canonicalized(("image", "grid", "low"), canonicalizer())(data)
    assert out["name"] == "x"
    assert torch.equal(out["grid"].as_tensor(), warp(grid[None], result.ddf)[0])
    first = Canonicalized(("low", "grid"), canonicalizer(), source_key="image")(data)
    assert first["image"] is image and torch.equal(first["grid"], out["grid"]) and torch.equal(first["low"], out["low"])
    other = Canonicalized(("grid",), canonicalizer(), source_key="image")({**data, "image": picture(1, brightness=0.4)})
    assert (other["grid"] - out["grid"]).abs().max() > 1  # another source, another deformation


def test_another_resolution_covers_the_same_frame():
    size = (49, 41)
    grid = voxel_grid(size).clone()
    data = {"image": picture(size=size), "grid": grid, "low": grid[:, ::2, ::2]}
    transform = Canonicalized(("image", "grid", "low"), canonicalizer())
    out = transform(data)
    inside = (slice(None), slice(6, -6), slice(6, -6))
    assert (out["low"] - out["grid"][:, ::2, ::2])[inside].abs().max() <= 0.05  # voxels of the grid
    assert (transform.inverse(out)["low"] - data["low"])[inside].abs().max() <= 0.2


def test_modes_and_padding_belong_to_their_keys():
    ones = torch.ones(1, *SIZE)
    transform = Canonicalized(("image", "a", "b"), canonicalizer(), padding_mode=("border", "border", "zeros"))
    out = transform({"image": picture(brightness=0.4), "a": ones, "b": ones})
    assert out["a"].min() > 0.999 and out["b"].min() < 0.1
    assert [out[k].applied_operations[0]["extra_info"]["padding_mode"] for k in ("a", "b")] == ["border", "zeros"]


def test_missing_keys():
    with pytest.raises(KeyError, match="source_key"):
        Canonicalized(("image", "label"), canonicalizer(), allow_missing_keys=True)({"label": picture()})
    with pytest.raises(KeyError, match="label"):
        Canonicalized(("image", "label"), canonicalizer())({"image": picture()})
    out = Canonicalized(("image", "label"), canonicalizer(), allow_missing_keys=True)({"image": picture()})
    assert set(out) == {"image"}
    assert CanonicalizeD is CanonicalizeDict is Canonicalized


# images that are not moved


@pytest.mark.parametrize(
    "image, status",
    [
        (torch.full((1, *SIZE), 0.1), "rejected: the image is constant"),
        (torch.where(torch.rand(1, *SIZE) > 0.5, torch.nan, 1.0), "rejected: the image holds NaN"),
        (picture(brightness=-5.0), "left alone"),
    ],
)
def test_an_image_that_is_not_moved_is_not_touched(image, status):
    transform = Canonicalized(("image", "label"), canonicalizer(skip_below=0.0), padding_mode="zeros")
    out = transform({"image": image, "label": picture(3)})
    assert out["image"].meta["canonicalization"]["status"].startswith(status)
    assert torch.equal(out["image"].as_tensor().nan_to_num(7), image.nan_to_num(7))
    assert torch.equal(out["label"].as_tensor(), picture(3))
    out["pred"] = MetaTensor(torch.rand(2, *SIZE))
    back = Invertd("pred", transform, orig_keys="image", nearest_interp=False)(out)["pred"]
    assert torch.equal(back.as_tensor(), out["pred"]) and back.applied_operations == []
    moved = transform({"image": picture(), "label": picture(3)})  # and the record has the same keys
    records = [o["image"].applied_operations[0]["extra_info"] for o in (out, moved)]
    assert records[0].keys() == records[1].keys()
    assert [r["moved"] for r in records] == [False, True]
    assert [r["residual"].shape for r in records] == [(2, 60, 50)] * 2


# the record and the metadata


def test_what_is_recorded():
    out = Canonicalize(canonicalizer())(picture())
    record = out.applied_operations[0]["extra_info"]
    assert set(record) == {"matrix", "residual", "moved", "status", "spatial_size", "canonical_size"} | {
        "mode",
        "padding_mode",
        "align_corners",
    }
    assert record["matrix"].shape == (2, 3) and record["residual"].shape == (2, 60, 50)
    for tensor in (record["matrix"], record["residual"]):
        assert type(tensor) is torch.Tensor and tensor.device.type == "cpu" and not tensor.requires_grad
    numbers = out.meta["canonicalization"]
    result = canonicalizer()(picture()[None])
    assert numbers["status"] == "canonicalized" and all(type(v) is float for k, v in numbers.items() if k != "status")
    for name in ("energy_before", "energy_after", "folding_fraction", "inverse_error", "largest_displacement"):
        assert numbers[name] == pytest.approx(getattr(result, name).item())
    assert numbers["energy_before"] != numbers["energy_after"] and 0 < numbers["inverse_error"] < 0.1
    assert numbers["seconds"] > 0


def test_a_graph_is_not_recorded():
    """Invertd copies records deeply, which tensors with a graph do not survive."""

    def careless(image):
        result = canonicalizer()(image)
        weight = torch.ones((), requires_grad=True)
        return dataclasses.replace(
            result, inverse=Deformation(result.inverse.matrix * weight, result.inverse.residual * weight)
        )

    transform = Canonicalized("image", careless)
    out = transform({"image": picture()})
    back = Invertd("image", transform, nearest_interp=False)(out)["image"]
    assert torch.equal(back, transform.inverse(out)["image"])


def test_frame_affine_and_the_callers_image_stay():
    image = MetaTensor(picture(), affine=torch.diag(torch.tensor([0.5, 2.0, 1.0, 1.0])), meta={"name": "film"})
    out = Canonicalize(canonicalizer())(image)
    assert torch.equal(out.affine, image.affine) and out.meta["name"] == "film" and out.shape == image.shape
    assert "canonicalization" not in image.meta and image.applied_operations == []
    assert torch.equal(image.as_tensor(), picture())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.float16, torch.float64])
def test_dtypes_are_kept(dtype):
    image = (picture() * 200).to(dtype)
    out = Canonicalize(canonicalizer())(image)
    assert out.dtype == dtype
    assert_close(
        out.as_tensor().double(),
        Canonicalize(canonicalizer())(image.float()).as_tensor().double(),
        atol=0.5 if not dtype.is_floating_point else 0.1,
        rtol=0,
    )


def test_numpy_comes_out_as_tensor_with_metadata():
    out = Canonicalize(canonicalizer())(picture().numpy())
    assert isinstance(out, MetaTensor) and torch.equal(out, Canonicalize(canonicalizer())(picture()))


def test_without_metadata_plain_tensors_come_out():
    wanted = Canonicalize(canonicalizer())(picture()).as_tensor()
    set_track_meta(False)
    try:
        for given in (picture(), picture().numpy()):
            out = Canonicalized("image", canonicalizer())({"image": given})["image"]
            assert type(out) is torch.Tensor and torch.equal(out, wanted)
    finally:
        set_track_meta(True)


# in a pipeline


def items():
    brightness = [0.0, 0.4, -5.0, 0.1, 0.3]  # the third is left alone
    return [
        {"image": MetaTensor(picture(i, brightness=b), meta={"id": i}), "label": picture(i) > 0.25}
        for i, b in enumerate(brightness)
    ]


@pytest.mark.parametrize("workers", [0, 2])
def test_invertd_after_the_loader(workers):
    before = Compose([Canonicalized(("image", "label"), canonicalizer(skip_below=0.0), mode=("bilinear", "nearest"))])
    after = Invertd("pred", before, orig_keys="image", nearest_interp=False)
    seen = []
    for batch in DataLoader(Dataset(items(), before), batch_size=3, num_workers=workers):
        assert batch["image"].meta["canonicalization"]["energy_after"].dtype == torch.float64
        batch["pred"] = torch.cat([batch["image"], batch["image"] ** 2, 1 - batch["image"]], 1)
        for item in decollate_batch(batch):
            i = int(item["image"].meta["id"])
            result, there, back = both_ways(items()[i]["image"].as_tensor(), item["pred"].as_tensor(), skip_below=0.0)
            assert_close(
                item["image"].as_tensor(), there, atol=1e-5, rtol=0
            )  # workers run one thread, this process may run two
            pred = after(item)["pred"]
            assert_close(pred.as_tensor(), back, atol=1e-5, rtol=0)
            numbers = pred.meta["canonicalization"]
            assert numbers["status"] == result.status[0] == item["label"].meta["canonicalization"]["status"]
            assert numbers["energy_after"] == pytest.approx(result.energy_after.item())
            seen.append(numbers["status"].split(":")[0])
    assert seen == ["canonicalized"] * 2 + ["left alone"] + ["canonicalized"] * 2


def test_back_through_a_whole_pipeline():
    """Resizing, flipping and canonicalising come undone in order; lazily as eagerly."""
    image = picture(size=(96, 80))
    outs = []
    for lazy in (False, True):
        chain = [Resized("image", SIZE), Flipd("image", 0), Canonicalized("image", canonicalizer())]
        before = Compose(chain, lazy=lazy)
        out = before({"image": image})
        assert out["image"].pending_operations == []
        ramp = voxel_grid(SIZE).clone()
        result = canonicalizer()(before.transforms[1](before.transforms[0]({"image": image}))["image"][None])
        out["pred"] = MetaTensor(warp(ramp[None], result.ddf)[0])  # what lies on the canonical image
        pred = Invertd("pred", before, orig_keys="image", nearest_interp=False)(out)["pred"]
        assert pred.shape == (2, 96, 80) and pred.applied_operations == []
        outs.append(pred.as_tensor())
    assert_close(outs[0], outs[1], atol=0.05, rtol=0)
    straight = Resized("image", (96, 80))({"image": voxel_grid(SIZE).flip(1).clone()})["image"].as_tensor()
    assert (outs[0] - straight)[:, 24:-24, 24:-24].abs().max() <= 0.1  # voxels


def test_a_cache_runs_it_once_an_image():
    calls = []

    class Counting:
        final_steps = 7

        def __call__(self, image):
            calls.append(image.shape)
            return canonicalizer()(image)

    data = CacheDataset(items()[:2], Canonicalized("image", Counting()), progress=False, num_workers=0)
    for _ in range(3):
        _ = data[0], data[1]
    assert calls == [(1, 1, *SIZE)] * 2


def test_nothing_global_is_drawn():
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    Canonicalize(canonicalizer())(picture())
    assert torch.equal(torch.get_rng_state(), torch_state) and np.array_equal(np.random.get_state()[1], numpy_state)


@pytest.mark.parametrize("build", [lambda: Canonicalize(canonicalizer()), lambda: Canonicalized("image", canonicalizer())])
def test_pickles_give_the_same(build):
    transform = build()
    copy = pickle.loads(pickle.dumps(transform))
    data = {"image": picture()} if isinstance(transform, Canonicalized) else picture()
    one, other = transform(data), copy(data)
    if isinstance(transform, Canonicalized):
        one, other = one["image"], other["image"]
    assert torch.equal(one, other)


# errors


def test_bad_options_and_shapes_are_named():
    for options, words in (({"mode": "cubic"}, "'mode'"), ({"padding_mode": "wrap"}, "'padding_mode'")):
        with pytest.raises(ValueError, match=words):
            Canonicalize(canonicalizer(), **options)
        with pytest.raises(ValueError, match=words):
            Canonicalized("image", canonicalizer(), **options)
    with pytest.raises(ShapeError, match="canonicalize"):
        Canonicalize(canonicalizer())(picture()[0])
    with pytest.raises(ShapeError, match="Canonicalize"):
        Canonicalized(("image", "label"), canonicalizer())({"image": picture(), "label": torch.zeros(1, 8, 8, 8)})
    transform = Canonicalize(canonicalizer())
    out = transform(picture())
    with pytest.raises(ShapeError, match="inverse"):
        transform.inverse(MetaTensor(torch.zeros(1, 8, 8, 8), applied_operations=out.applied_operations))
