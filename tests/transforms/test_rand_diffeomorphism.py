"""Laws of RandDiffeomorphism(d). Most tests warp the coordinates: the image that holds at each voxel where it is."""

import pickle

import numpy as np
import pytest
import torch
from monai.data import CacheDataset, DataLoader, Dataset, MetaTensor, decollate_batch, set_track_meta
from monai.transforms import Compose, Flipd, Invertd, Rotate90d
from torch.testing import assert_close

from monai_diffeo.errors import ShapeError
from monai_diffeo.flow import exp, folding_fraction
from monai_diffeo.flow.grid import voxel_grid
from monai_diffeo.transforms.spatial import (
    RandDiffeomorphism,
    RandDiffeomorphismD,
    RandDiffeomorphismd,
    RandDiffeomorphismDict,
)
from monai_diffeo.transforms.spatial.array import _deform, _flow

BOTH = ["svf", "tps"]


@pytest.fixture
def no_meta():
    set_track_meta(False)
    yield
    set_track_meta(True)


def coordinates(*size):
    return voxel_grid(size).clone()


def disk(*size, radius=0.3):
    away = torch.stack([c / (n - 1) - 0.5 for c, n in zip(coordinates(*size), size)]).norm(dim=0)
    return (away < radius)[None].to(torch.uint8)


def dice(a, b):
    a, b = a.bool(), b.bool()
    return (2 * (a & b).sum() / (a.sum() + b.sum())).item()


def stayed(transform, moved, size):
    """Voxels that what came there and back never left the frame for; ones warped with zeros outside tell."""
    ones = MetaTensor(torch.ones(1, *size))
    record = moved.applied_operations[-1]
    there = _deform(ones, _flow(record["extra_info"], size), "bilinear", "zeros")
    return _deform(there, _flow(record["extra_info"], size, inverse=True), "bilinear", "zeros")[0].as_tensor() > 0.999


def make(seed=0, **options):
    return RandDiffeomorphism(prob=1.0, **options).set_random_state(seed=seed)


def make_d(keys=("image",), seed=0, prob=1.0, **options):
    return RandDiffeomorphismd(keys, prob=prob, **options).set_random_state(seed=seed)


# the inverse


@pytest.mark.parametrize(
    "kind, size, mean, largest",  # voxels; measured over 40 draws: .0125/.10, .0117/.22, 1e-5/.001
    [("svf", (64, 64), 0.02, 0.2), ("svf", (24, 20, 28), 0.02, 0.4), ("tps", (64, 64), 1e-4, 0.01)],
)
def test_there_and_back_ends_where_it_began(kind, size, mean, largest):
    transform, image = make(kind=kind), coordinates(*size)
    for _ in range(10):
        moved = transform(image)
        inside = stayed(transform, moved, size)
        error = (transform.inverse(moved) - image).norm(dim=0)[inside]
        assert inside.float().mean() > (0.999 if kind == "svf" else 0.4)
        assert (moved - image).norm(dim=0).max() > 0.3  # voxels: there is something to undo
        assert error.mean() <= mean and error.max() <= largest


@pytest.mark.parametrize("kind, least", [("svf", 0.985), ("tps", 0.97)])  # measured: smallest .994, .982
def test_a_label_there_and_back_is_the_label(kind, least):
    transform, label = make(kind=kind, mode="nearest"), disk(64, 64)
    for _ in range(10):
        moved = transform(label)
        assert dice(moved, label) < 1
        assert dice(transform.inverse(moved), label) >= least


@pytest.mark.parametrize("kind", BOTH)
def test_two_forwards_before_one_inverse(kind):
    transform, image = make(kind=kind), coordinates(40, 40)
    first, second = transform(image), transform(image)
    assert (first - second).abs().max() > 0.5
    for moved in (first, second):
        assert (transform.inverse(moved) - image)[:, 12:-12, 12:-12].abs().max() <= 0.2


@pytest.mark.parametrize("kind", BOTH)
def test_the_inverse_does_not_look_at_the_transform(kind):
    transform, image = make(kind=kind, padding_mode="zeros"), coordinates(32, 32)
    moved = transform(image)
    wanted = transform.inverse(MetaTensor(moved.clone(), applied_operations=list(moved.applied_operations)))
    transform.kind, transform.num_steps, transform.mode, transform.padding_mode, transform._drawn = 0, 0, 0, 0, None
    assert torch.equal(transform.inverse(moved), wanted)


@pytest.mark.parametrize("kind", BOTH)
def test_a_prediction_of_lower_resolution_and_more_channels_goes_back_too(kind):
    transform, image = make(kind=kind), coordinates(65, 65)
    moved = transform(image)
    low = MetaTensor(moved[:, ::2, ::2].as_tensor().repeat(3, 1, 1), applied_operations=moved.applied_operations)
    back = transform.inverse(low)
    assert back.shape == (6, 33, 33)
    assert (back - image[:, ::2, ::2].repeat(3, 1, 1))[:, 8:-8, 8:-8].abs().max() <= 0.5  # voxels of the image


@pytest.mark.parametrize("kind", BOTH)
def test_twice_over_comes_undone_in_order(kind):
    transform, image = make(kind=kind), coordinates(48, 48)
    back = transform.inverse(transform.inverse(transform(transform(image))))
    assert back.applied_operations == []
    assert (back - image)[:, 20:-20, 20:-20].abs().max() <= 0.2


# folding


@pytest.mark.parametrize("kind", BOTH)
def test_a_thousand_deformations_do_not_fold(kind):
    transform = make(kind=kind, downsample=1)
    fields = []
    for _ in range(1000):
        transform.randomize()
        fields.append(transform.field((32, 32))[1])
    assert folding_fraction(torch.stack(fields)).sum() == 0
    assert torch.linalg.vector_norm(torch.stack(fields), dim=1).flatten(1).amax(1).min() > 0.4


def test_a_volume_does_not_fold():
    transform = make()
    for _ in range(50):
        transform.randomize()
        assert folding_fraction(transform.field((20, 16, 18))[1][None]) == 0


@pytest.mark.parametrize("options", [{"amplitude": 0.4, "sigma": 0.05}, {"kind": "tps", "strength": 3.0, "jitter": 0.3}])
def test_what_would_fold_is_halved_until_it_does_not(options):
    """The same draws with a tiny and with a huge factor: the huge ones fold, what comes out does not."""
    tiny = {**options, **({"strength": 0.01} if "kind" in options else {"amplitude": 0.001})}
    factor = 300 if "kind" in options else 400
    transform, small = make(**options), make(**tiny)
    folded = 0
    for _ in range(20):
        transform.randomize(), small.randomize()
        assert folding_fraction(transform.field((48, 48))[1][None]) == 0
        field = small.field((48, 48))[0]
        huge = exp(field["velocity"][None] * factor) if "velocity" in field else field["displacement"][None] * factor
        folded += int(folding_fraction(huge) > 0)
    assert folded >= 5


# what is drawn


def test_speeds_reach_what_was_asked_for_whatever_the_recorded_grid():
    for downsample, size in ((1, (33, 65)), (2, (33, 65)), (4, (33, 65)), (3, (30, 20))):
        transform = make(amplitude=0.05, sigma=0.1, downsample=downsample)
        transform.randomize()
        v = transform.field(size)[0]["velocity"]
        stretch = torch.tensor([(n - 1) / (m - 1) for n, m in zip(size, v.shape[1:])]).view(2, 1, 1)
        assert v[0].numel() <= (size[0] // downsample + 1) * (size[1] // downsample + 1)
        assert_close((v * stretch).norm(dim=0).max(), torch.tensor(0.05 * min(size)), rtol=1e-4, atol=0)


@pytest.mark.parametrize("kind", BOTH)
def test_a_coarse_record_inverts_as_well(kind):
    transform, image = make(kind=kind, downsample=3, sigma=0.1), coordinates(61, 50)
    for _ in range(5):
        moved = transform(image)
        assert (transform.inverse(moved) - image)[:, 16:-16, 16:-16].norm(dim=0).max() <= 0.4


def test_the_range_of_amplitudes_is_used_and_kept():
    transform = make(amplitude=(0.02, 0.06))
    speeds = []
    for _ in range(60):
        transform.randomize()
        speeds.append(transform.field((32, 32))[0]["velocity"].norm(dim=0).max().item() / 32)
    assert 0.02 <= min(speeds) < 0.025 and 0.055 < max(speeds) <= 0.0601


def test_strength_scales_the_spline():
    full, half = make(kind="tps", jitter=0.05), make(kind="tps", jitter=0.05, strength=0.5)
    full.randomize(), half.randomize()
    assert_close(half.field((32, 32))[1] * 2, full.field((32, 32))[1])


@pytest.mark.parametrize("kind", BOTH)
def test_seeds_fix_everything_and_nothing_global_is_drawn(kind):
    image = coordinates(24, 24)
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    one = make(seed=3, kind=kind)
    first = [one(image) for _ in range(3)]
    assert torch.equal(torch.get_rng_state(), torch_state) and np.array_equal(np.random.get_state()[1], numpy_state)
    other = make(seed=3, kind=kind)
    for wanted in first:
        assert torch.equal(other(image), wanted)
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(make(seed=4, kind=kind)(image), first[0])
    as_dictionary = make_d(seed=3, kind=kind)
    for wanted in first:
        assert torch.equal(as_dictionary({"image": image})["image"], wanted)


def test_the_probability_is_kept():
    transform = RandDiffeomorphism(prob=0.3).set_random_state(seed=0)
    done = 0
    for _ in range(300):
        transform.randomize()
        done += transform._do_transform
    assert 60 <= done <= 120


@pytest.mark.parametrize("kind", BOTH)
def test_probability_zero_is_the_identity_bit_for_bit(kind):
    image = MetaTensor(torch.rand(2, 16, 16))
    out = RandDiffeomorphism(kind, prob=0.0)(image)
    assert torch.equal(out, image) and out is not image
    assert image.applied_operations == []  # the caller's tensor has not been written on
    done = make(kind=kind)(image)
    assert out.applied_operations[0]["extra_info"].keys() == done.applied_operations[0]["extra_info"].keys()
    transform = RandDiffeomorphismd(("image", "label"), kind, prob=0.0)
    out = transform({"image": image, "label": image > 0.5})
    assert torch.equal(out["image"], image) and torch.equal(out["label"], image > 0.5)
    back = transform.inverse(out)
    assert torch.equal(back["image"], image) and back["image"].applied_operations == []


# dictionaries


@pytest.mark.parametrize("kind", BOTH)
def test_all_keys_get_the_same_deformation(kind):
    transform = make_d(("image", "label", "other"), kind=kind, mode=("bilinear", "nearest", "bilinear"))
    grid = coordinates(33, 33)
    for _ in range(3):
        out = transform({"image": grid, "label": grid.round().int(), "other": grid[:, ::2, ::2], "name": "x"})
        assert out["name"] == "x"
        assert (out["label"] - out["image"]).abs().max() <= 0.5 + 1e-3  # nearest: the same place, rounded
        inside = (slice(None), slice(4, -4), slice(4, -4))
        assert (out["other"] - out["image"][:, ::2, ::2])[inside].abs().max() <= 0.6  # voxels; half the sampling
    assert (out["image"] - grid).abs().max() > 0.5


def test_modes_and_padding_belong_to_their_keys():
    transform = make_d(
        ("image", "label"),
        kind="tps",
        mode=("bilinear", "nearest"),
        padding_mode=("border", "zeros"),
        scale=1.5,
        angle=0.0,
        jitter=0.0,
    )  # looks outside the frame
    out = transform({"image": torch.ones(1, 32, 32), "label": disk(32, 32, radius=9) * 3})
    assert out["image"].min() > 0.999
    assert set(out["label"].unique().tolist()) == {0, 3} and out["label"][0, 0, 0] == 0
    transform = make_d(("image", "label"), kind="tps", padding_mode=("border", "zeros"), scale=0.5, jitter=0.0)
    ones = torch.ones(1, 32, 32)
    out = transform({"image": ones, "label": ones})
    back = transform.inverse(out)  # it is the way back that looks outside the frame
    assert out["label"].min() > 0.999 and back["label"][0, 0, 0] == 0 and back["image"].min() > 0.999


def test_missing_keys():
    data = {"label": disk(16, 16)}
    with pytest.raises(KeyError, match="image"):
        make_d(("image", "label"))(data)
    out = make_d(("image", "label"), allow_missing_keys=True)(data)
    assert out.keys() == data.keys() and not torch.equal(out["label"], data["label"])
    assert RandDiffeomorphismD is RandDiffeomorphismDict is RandDiffeomorphismd


def disks(n=5):
    images = [MetaTensor(disk(48, 48, radius=0.2 + 0.02 * i).float(), meta={"id": i}) for i in range(n)]
    return [{"image": image, "label": disk(48, 48, radius=0.25)} for image in images]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", BOTH)
def test_invertd_after_the_loader(workers, kind):
    """A prediction with two channels: the moved image, and its complement."""
    before = Compose(
        [
            RandDiffeomorphismd(("image", "label"), kind, prob=0.7, jitter=0.06, mode=("bilinear", "nearest")),
            Flipd(("image", "label"), 0),
        ]
    ).set_random_state(seed=1)
    after = Invertd(("pred", "label"), before, orig_keys=("image", "label"), nearest_interp=False)
    moved = 0
    seeded = torch.Generator().manual_seed(0)  # MONAI's loader seeds the transforms anew
    for batch in DataLoader(Dataset(disks(), before), batch_size=3, num_workers=workers, generator=seeded):
        batch["pred"] = torch.cat([batch["image"], 1 - batch["image"]], 1)
        for item in decollate_batch(batch):
            moved += int(item["image"].applied_operations[0]["do_transforms"])
            i = int(item["image"].meta["id"])
            back = after(item)
            assert_close(back["pred"].as_tensor().sum(0), torch.ones(48, 48))
            assert dice(back["pred"][:1] > 0.5, disks()[i]["image"]) > 0.97
            assert dice(back["label"], disks()[i]["label"]) > 0.96
            assert item["image"].applied_operations  # Invertd left the image as it was
    assert 1 <= moved <= 5


def test_invertd_may_ask_for_the_nearest_voxel():
    transform = make_d(("image",))
    out = transform({"image": disk(32, 32).float()})
    out["pred"] = out["image"]
    soft = Invertd("pred", transform, orig_keys="image", nearest_interp=False)(out)["pred"]
    hard = Invertd("pred", transform, orig_keys="image")(out)["pred"]
    assert len(soft.unique()) > len(out["image"].unique()) >= len(hard.unique())


def test_lazy_compositions_give_what_eager_ones_give():
    def build(lazy):
        chain = [Flipd("image", 1), Rotate90d("image"), make_d(), Flipd("image", 0)]
        return Compose(chain, lazy=lazy).set_random_state(seed=0)

    image = torch.rand(1, 32, 32, generator=torch.Generator().manual_seed(0))
    eager, lazy = (build(which)({"image": image})["image"] for which in (False, True))
    assert lazy.pending_operations == []
    assert_close(lazy.as_tensor(), eager.as_tensor(), atol=1e-4, rtol=0)


def test_a_cache_stops_before_it():
    data = CacheDataset([{"image": coordinates(16, 16)}], make_d(), progress=False)
    assert not torch.equal(data[0]["image"], data[0]["image"])


# containers and dtypes


@pytest.mark.parametrize("make_image", [lambda x: x.numpy(), lambda x: x, lambda x: MetaTensor(x, meta={"a": 1})])
def test_every_container_gives_the_same_numbers(make_image):
    image = torch.rand(2, 20, 24, generator=torch.Generator().manual_seed(0))
    given = make_image(image.clone())
    out = make()(given)
    assert isinstance(out, MetaTensor) and out.dtype == torch.float32
    assert torch.equal(out.as_tensor(), make()(image).as_tensor())
    assert np.array_equal(np.asarray(given), image.numpy())
    if isinstance(given, MetaTensor):
        assert given.applied_operations == [] and out.meta["a"] == 1 and torch.equal(out.affine, given.affine)


@pytest.mark.parametrize("prob", [0.0, 1.0])
def test_without_metadata_plain_tensors_come_out(no_meta, prob):
    image = np.random.RandomState(0).rand(1, 16, 16).astype("float32")
    for given in (image, torch.from_numpy(image)):
        out = RandDiffeomorphism(prob=prob).set_random_state(seed=0)(given)
        assert type(out) is torch.Tensor and out.shape == given.shape
        out = RandDiffeomorphismd("image", prob=prob).set_random_state(seed=0)({"image": given})["image"]
        assert type(out) is torch.Tensor
        assert torch.equal(out, torch.from_numpy(image)) == (prob == 0)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64, torch.bool])
def test_labels_keep_their_dtype_and_their_values(dtype):
    largest = {torch.bool: 1, torch.int64: 2**40 + 1}.get(dtype) or torch.iinfo(dtype).max
    label = (disk(32, 32).long() * largest).to(dtype)
    transform = make(mode="nearest")
    out = transform(label)
    back = transform.inverse(out)
    for there in (out, back):
        assert there.dtype == dtype and set(there.unique().tolist()) == {0, largest}
    assert not torch.equal(out, label)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float16, 2e-3), (torch.bfloat16, 1e-2), (torch.float64, 1e-5)])
def test_other_floats_are_warped_in_float32_at_least(dtype, tolerance):
    image = torch.rand(1, 64, 64, generator=torch.Generator().manual_seed(0))
    out = make()(image.to(dtype))
    assert out.dtype == dtype
    assert_close(out.as_tensor().float(), make()(image).as_tensor(), atol=tolerance, rtol=0)


def test_the_record_is_small_plain_and_shared():
    for kind, name in (("svf", "velocity"), ("tps", "displacement")):
        out = make_d(("image", "label"), kind=kind)({"image": coordinates(16, 16), "label": disk(16, 16)})
        records = [out[key].applied_operations[0]["extra_info"] for key in ("image", "label")]
        assert set(records[0]) == {name, "mode", "padding_mode", "align_corners", "num_steps"}
        assert records[0][name].shape == (2, 16, 16) and not records[0][name].requires_grad
        assert type(records[0][name]) is torch.Tensor and records[0][name].device.type == "cpu"
        assert records[0][name].data_ptr() == records[1][name].data_ptr()


@pytest.mark.parametrize("build", [make, make_d])
def test_pickles_go_on_where_the_original_would(build):
    transform = build()
    data = coordinates(16, 16)
    data = data if build is make else {"image": data}
    transform(data)
    copy = pickle.loads(pickle.dumps(transform))
    one, other = transform(data), copy(data)
    if build is make_d:
        one, other = one["image"], other["image"]
    assert torch.equal(one, other)


def test_draw_once_use_twice():
    transform, image = make(), coordinates(16, 16)
    assert torch.equal(transform(image), transform(image, randomize=False))


# errors


@pytest.mark.parametrize(
    "options, words",
    [
        ({"kind": "affine"}, "'kind'"),
        ({"mode": "bicubic"}, "'mode'"),
        ({"padding_mode": "wrap"}, "'padding_mode'"),
        ({"amplitude": (0.2, 0.1)}, "'amplitude'"),
        ({"sigma": 0.0}, "'sigma'"),
        ({"strength": -1.0}, "'strength'"),
        ({"downsample": 0}, "'downsample'"),
        ({"num_steps": -1}, "'num_steps'"),
    ],
)
def test_bad_options_are_named(options, words):
    with pytest.raises(ValueError, match=words):
        RandDiffeomorphism(**options)
    with pytest.raises(ValueError, match=words):
        RandDiffeomorphismd("image", **options)


def test_bad_shapes_are_named():
    for image in (torch.zeros(16, 16), torch.zeros(1, 16, 16, 1), torch.zeros(1, 2, 8, 8, 8)):
        with pytest.raises(ShapeError, match="RandDiffeomorphism"):
            make()(image)
    with pytest.raises(ShapeError, match="svf"):
        make(kind="tps")(torch.zeros(1, 8, 8, 8))
    with pytest.raises(ShapeError, match="RandDiffeomorphismd"):
        make_d(("image", "label"))({"image": torch.zeros(1, 8, 8), "label": torch.zeros(1, 8, 8, 8)})
    moved = make()(torch.zeros(1, 8, 8))
    with pytest.raises(ShapeError, match="inverse"):
        make_transform = make()
        moved = make_transform(torch.zeros(1, 8, 8))
        make_transform.inverse(MetaTensor(torch.zeros(1, 8, 8, 8), applied_operations=moved.applied_operations))
