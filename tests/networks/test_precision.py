"""Networks in mixed precision: what computes in bfloat16, and what does not."""

import copy
import pickle

import pytest
import torch
from monai.networks.nets import UNet
from torch import nn
from torch.testing import assert_close

from monai_diffeo.networks import SegmentThenRegister, ShapePrior, TemplateTransformer, load_weights, mixed_precision


class Probe(nn.Module):
    """A convolution that notes under which autocast it runs, and what it gives."""

    def __init__(self, channels, answers):
        super().__init__()
        self.convolution, self.seen = nn.Conv2d(channels, answers, 3, padding=1), []

    def forward(self, image, factor=1.0):
        answer = self.convolution(image)
        self.seen.append((torch.is_autocast_enabled("cpu"), answer.dtype))
        return answer * factor


def test_a_network_computes_in_bfloat16_and_answers_in_float32():
    network, image = Probe(1, 2), torch.rand(3, 1, 16, 16)
    before, keys = network(image, factor=2.0), list(network.state_dict())
    assert mixed_precision(network) is network and list(network.state_dict()) == keys
    answer = network(image, factor=2.0)
    assert network.seen == [(False, torch.float32), (True, torch.bfloat16)] and answer.dtype == torch.float32
    assert_close(answer, before, atol=0.02, rtol=0.02)
    assert not torch.equal(answer, before) and not torch.is_autocast_enabled("cpu")


def test_answers_of_several_parts_come_back_in_float32_and_an_image_may_be_given_by_name():
    class Several(Probe):
        def forward(self, image, factor=1.0):
            answer = super().forward(image, factor)
            return {"map": answer, "deep": [answer, (answer.argmax(1), answer.double())], "name": "x"}

    answer = mixed_precision(Several(1, 2))(image=torch.rand(1, 1, 8, 8))
    deep, (labels, double) = answer["deep"]
    assert answer["map"].dtype == deep.dtype == torch.float32 and answer["name"] == "x"
    assert labels.dtype == torch.int64 and double.dtype == torch.float64 and isinstance(answer["deep"][1], tuple)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda network: pickle.loads(pickle.dumps(network))], ids=["copy", "pickle"])
def test_a_copy_computes_with_its_own_weights(copied):
    network = mixed_precision(Probe(1, 1))
    other = copied(network)
    nn.init.zeros_(other.convolution.weight)
    nn.init.zeros_(other.convolution.bias)
    assert not other(torch.rand(1, 1, 8, 8)).any() and other.seen == [(True, torch.bfloat16)] and network.seen == []


def test_of_a_template_transformer_the_networks_compute_in_bfloat16_and_no_field_does(monkeypatch):
    torch.manual_seed(0)
    prior = ShapePrior([[0.0, -0.45], [0.0, 0.45]], [[0.6, 0.3], [0.6, 0.3]], 3.0)
    steps = [Probe(4, 2), Probe(4, 2)]
    backbone = SegmentThenRegister(Probe(1, 2), steps, uncertainty_bias=2.0)
    network = TemplateTransformer(backbone, prior, pieces=2, flow_size=24, gain=0.5).eval()
    image, fields = torch.rand(2, 1, 24, 24), []
    for name in ("_fields", "_onward", "warp_prior"):
        real = getattr(TemplateTransformer, name)

        def watched(self, given, *args, real=real):
            fields.append((torch.is_autocast_enabled("cpu"), given.dtype))
            return real(self, given, *args)

        monkeypatch.setattr(TemplateTransformer, name, watched)
    biased = []
    real_sigmoid = torch.sigmoid
    monkeypatch.setattr(
        torch, "sigmoid", lambda x: biased.append((torch.is_autocast_enabled("cpu"), x.dtype)) or real_sigmoid(x)
    )
    with torch.no_grad():
        before = network.segment(image)
        assert mixed_precision(network) is network
        for probe in (backbone.segmentation, *steps):
            probe.seen.clear()
        after = network.segment(image)
    for probe in (backbone.segmentation, *steps):
        assert probe.seen == [(True, torch.bfloat16)]
    assert set(fields) == set(biased) == {(False, torch.float32)} and len(fields) > 6
    assert after.ddf.dtype == after.log_odds.dtype == torch.float32
    assert_close(after.ddf, before.ddf, atol=0.05, rtol=0.05)
    assert not torch.equal(after.ddf, before.ddf)


def test_of_a_template_transformer_with_one_network_that_network_does():
    prior = ShapePrior([[0.0, -0.45], [0.0, 0.45]], [[0.6, 0.3], [0.6, 0.3]], 3.0)
    network = mixed_precision(TemplateTransformer(Probe(3, 4), prior, pieces=2, flow_size=24).eval())
    assert network.segment(torch.rand(1, 1, 24, 24)).ddf.dtype == torch.float32
    assert network.backbone.seen == [(True, torch.bfloat16)]


def test_weights_load_with_and_without_it(tmp_path):
    torch.manual_seed(0)
    network, image = UNet(2, 1, 1, (4, 8), (2,)).eval(), torch.rand(1, 1, 32, 32)
    torch.save(network.state_dict(), tmp_path / "model.pt")
    with torch.no_grad():
        before = network(image)
        for amp in (False, "false", "False"):
            assert torch.equal(load_weights(copy.deepcopy(network), tmp_path / "model.pt", amp=amp)(image), before)
        for amp in (True, "true"):
            after = load_weights(copy.deepcopy(network), tmp_path / "model.pt", amp=amp)(image)
            assert not torch.equal(after, before)
            assert_close(after, before, atol=0.05, rtol=0.05)
    with pytest.raises(ValueError, match="expected true or false, got 'perhaps'"):
        load_weights(network, tmp_path / "model.pt", amp="perhaps")
