import pytest
import torch
from monai.data import MetaTensor
from monai.networks.nets import UNet
from torch.testing import assert_close

from monai_diffeo.inferers import DiffeoInferer, TemplateInferer
from monai_diffeo.metrics import connected_components
from monai_diffeo.networks import ShapePrior, TemplateTransformer, compress_logits

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def network():
    torch.manual_seed(0)
    prior = ShapePrior([[0.0, -0.45], [0.0, 0.45]], [[0.6, 0.3], [0.6, 0.3]], 4.0)
    return TemplateTransformer(UNet(2, 3, 8, (4, 8), (2,)), prior, flow_size=32, gain=0.3).eval()


def test_it_answers_with_tame_log_odds_of_the_same_sign_and_tells_what_happened(network):
    results = []
    image = torch.rand(2, 1, 32, 32)
    with torch.no_grad():
        answer = TemplateInferer(results.append)(image, network)
        plain = network(image)
    assert_close(answer, compress_logits(plain))
    assert ((answer > 0) == (plain > 0)).all() and answer.abs().max() < 60 < plain.abs().max()
    assert len(results) == 1 and results[0].intact.all() and results[0].level.shape == (2,)


def test_metadata_travels(network):
    image = MetaTensor(torch.rand(1, 1, 32, 32), meta={"filename_or_obj": "film"})
    with torch.no_grad():
        answer = TemplateInferer()(image, network)
    assert isinstance(answer, MetaTensor) and answer.meta["filename_or_obj"] == "film" and answer.shape == (1, 2, 32, 32)


def test_it_can_be_wrapped_by_a_diffeo_inferer(network, canonicalizer):
    results, canonical = [], []
    image = torch.rand(2, 1, 32, 32)
    with torch.no_grad():
        wrapped = DiffeoInferer(canonicalizer, TemplateInferer(results.append), tta_samples=3, on_result=canonical.append)(
            image, network
        )
        simple = DiffeoInferer(canonicalizer)(image, network)
        off = DiffeoInferer(None, TemplateInferer(), enabled=False)(image, network)
    assert wrapped.shape == simple.shape == (2, 2, 32, 32) and len(results) == 3 and canonical[0].moved.all()
    assert torch.isfinite(wrapped).all() and (canonical[0].agreement > 0.5).all()
    assert [connected_components((o > 0).any(0).numpy())[1] for o in simple] == [2, 2]
    assert_close(off, compress_logits(network(image)).detach())
