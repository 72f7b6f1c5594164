"""Training a part: its cycle, its checkpoints, its errors."""

import pytest
import torch
from torch import nn

from monai_diffeo.errors import NumericalError
from monai_diffeo.fit import loop
from monai_diffeo.fit.loop import CHECKPOINT, cycle, train_part
from monai_diffeo.fit.parts import FitPart, parts_of, working_size_of
from tests.helpers_device import ClaimedDevice, claims


class NoisyStep:
    """Uses both its own generator and torch's, as the steps of the VAE do."""

    def __init__(self, seed, fails_at=None):
        self.generator, self.fails_at, self.calls = torch.Generator().manual_seed(seed), fails_at, 0

    def __call__(self, network, batch):
        self.calls += 1
        noise = 8 * (torch.rand((), generator=self.generator) + torch.rand(()) - 1)  # of either sign: Adam sees little else
        loss = (network(batch["image"].flatten(1)) - noise).square().mean()
        return {"loss": loss * (torch.nan if self.calls == self.fails_at else 1)}


def part(step=NoisyStep, batch_size=3):
    config = {"_target_": "torch.nn.Linear", "in_features": 16, "out_features": 1}
    return FitPart("vae", 1.0, config, (4, 4), batch_size, 1e-2, step)


DATA = {"image": torch.rand(8, 1, 4, 4, generator=torch.Generator().manual_seed(0))}
CPU = torch.device("cpu")


def trained(folder, steps=7, step=NoisyStep, every=0.0, seconds=None, data=DATA):
    seen = []
    plan = {"steps": steps, "seconds": seconds}
    train_part(part(step), data, folder, plan, CPU, 3, lambda share, loss: seen.append(share), every)
    return torch.load(folder / "vae.pt", weights_only=True), seen


def test_the_rate_rises_to_1_over_a_tenth_and_falls_to_0():
    assert [round(cycle(x), 6) for x in (0, 0.05, 0.1, 0.55, 1)] == [0, 0.5, 1, 0.5, 0]


def test_interrupted_and_resumed_gives_the_weights_of_an_uninterrupted_training(tmp_path, monkeypatch):
    state = torch.get_rng_state()
    whole, shares = trained(tmp_path / "a")
    assert torch.equal(torch.get_rng_state(), state), "the caller's random numbers stay"
    assert sum(shares) == pytest.approx(1) and len(shares) == 7
    advance, steps = loop._Training.advance, []

    def until_the_fifth(self):
        steps.append(1)
        if len(steps) == 5:
            raise KeyboardInterrupt
        return advance(self)

    monkeypatch.setattr(loop._Training, "advance", until_the_fifth)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "b")
    assert (tmp_path / "b" / CHECKPOINT).is_file() and not (tmp_path / "b" / "vae.pt").exists()
    monkeypatch.setattr(loop._Training, "advance", advance)
    torch.manual_seed(99)
    rest, shares = trained(tmp_path / "b")
    assert all(torch.equal(rest[name], whole[name]) for name in whole) and len(shares) == 4 and sum(shares) == pytest.approx(1)
    assert not (tmp_path / "b" / CHECKPOINT).exists()
    assert all(value.dtype == torch.float16 for value in whole.values())


def test_a_checkpoint_of_another_part_is_not_gone_on_with(tmp_path):
    whole, _ = trained(tmp_path / "a")
    (tmp_path / "b").mkdir()
    torch.save({"part": "critic"}, tmp_path / "b" / CHECKPOINT)
    other, shares = trained(tmp_path / "b")
    assert len(shares) == 7 and all(torch.equal(other[name], whole[name]) for name in whole)


@pytest.mark.parametrize("pace, steps, expected", [(2.0, 40, 20), (0.5, 40, 80), (1.05, 40, 40)])
def test_steps_are_planned_anew_for_a_slower_or_faster_machine_and_the_cycle_still_ends(
    tmp_path, monkeypatch, pace, steps, expected
):
    clock = [0.0]
    monkeypatch.setattr(loop.time, "perf_counter", lambda: clock[0])
    advance = loop._Training.advance

    def timed(self):
        clock[0] += pace
        return advance(self)

    monkeypatch.setattr(loop._Training, "advance", timed)
    _, shares = trained(tmp_path, steps, seconds=float(steps))
    assert abs(len(shares) - expected) <= 2 and sum(shares) == pytest.approx(1)


def test_a_part_that_fails_stops_the_fit_with_its_name_and_step_and_leaves_no_weights(tmp_path):
    with pytest.raises(NumericalError, match=r"^fit: the vae failed: at step 2 the loss .*nan.*Nothing stands in for it"):
        trained(tmp_path, step=lambda seed: NoisyStep(seed, fails_at=3))
    assert not (tmp_path / "vae.pt").exists() and (tmp_path / CHECKPOINT).is_file()


def test_every_second_batch_is_of_images_with_an_answer_where_some_have_none(tmp_path):
    batches = []

    class Spy(NoisyStep):
        def __call__(self, network, batch):
            batches.append(batch)
            return super().__call__(network, batch)

    numbered = torch.arange(8.0).view(8, 1, 1, 1).expand(8, 1, 4, 4)
    trained(tmp_path / "a", 40, Spy, data={"image": numbered, "answer": numbered[:3].half()})
    answered = [batch for batch in batches if "answer" in batch]
    assert len(answered) == 20 and all(torch.equal(batch["image"], batch["answer"]) for batch in answered)
    assert {int(x) for b in batches if "answer" not in b for x in b["image"].flatten()} == set(range(8))
    batches.clear()
    trained(tmp_path / "b", 4, Spy, data={"image": numbered, "answer": numbered})
    assert all("answer" in batch for batch in batches)


@pytest.mark.parametrize(
    "frame, size",
    [((192, 160), (128, 112)), ((512, 512), (128, 128)), ((3000, 2500), (128, 112)), ((160, 160, 96), (64, 64, 32))]
    + [((50, 44), (48, 48)), ((20, 20), (32, 32)), ((512, 512, 100), (64, 64, 32))],
)
def test_the_working_size_keeps_the_proportions_in_multiples_of_16(frame, size):
    assert working_size_of(frame) == size


@pytest.mark.parametrize("dims, channels, size", [(2, 3, (48, 32)), (3, 2, (32, 48, 32))])
def test_every_part_takes_a_step_in_2d_and_3d_with_channels(dims, channels, size):
    torch.manual_seed(0)
    for some in parts_of(dims, channels, size):
        network = some.build()
        losses = some.step(0)(network, {"image": torch.rand(2, channels, *some.size)})
        total = sum(losses.values())
        total.backward()
        assert torch.isfinite(total) and isinstance(network, nn.Module), some.name
    assert sum(some.share for some in parts_of(dims, channels, size)) == pytest.approx(1)


@pytest.mark.parametrize("dims, size", [(2, (32, 48)), (3, (32, 32, 32))])
def test_every_part_is_trained_on_a_device_that_is_not_the_cpu(dims, size):
    with ClaimedDevice():
        for some in parts_of(dims, 1, size):
            data = {"image": torch.rand(3, 1, *some.size)} | ({"answer": torch.rand(2, 2, *some.size).half()})
            training = loop._Training(some, data, torch.device("cuda", 0), 0, 3)
            training.advance()
            assert claims(next(training.network.parameters())) and training.advance() < float("inf")


def test_the_predictor_sees_half_of_the_working_size_and_in_space_about_a_third():
    for dims, size, seen in ((2, (128, 96), (64, 48)), (3, (48, 64, 48), (16, 24, 16)), (3, (64, 32, 32), (24, 16, 16))):
        part = parts_of(dims, 1, size)[0]
        assert part.size == seen == tuple(part.build().image_size)
