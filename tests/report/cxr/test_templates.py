import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from monai.networks.nets import UNet

pytest.importorskip("matplotlib")
from PIL import Image

from monai_diffeo.inferers import TemplateInferer
from monai_diffeo.networks import ShapePrior, TemplateTransformer
from monai_diffeo.report.cxr import TemplateReporter
from monai_diffeo.report.cxr.template_figure import template_figure, template_stage

pytestmark = pytest.mark.filterwarnings("ignore")
SIZE = (48, 40)


def network(**settings):
    torch.manual_seed(0)
    prior = ShapePrior([[0.0, -0.45], [0.0, 0.45]], [[0.6, 0.3], [0.6, 0.3]], 4.0)
    return TemplateTransformer(
        UNet(2, 3, 8, (4, 8), (2,)), prior, **{"control_size": 4, "flow_size": 32, "gain": 0.5, **settings}
    ).eval()


def answered(net, film):
    with torch.no_grad():
        return net.segment(film[None, None])


def test_the_stages_go_from_the_template_to_the_answer():
    net, film = network(), torch.rand(SIZE)
    result = answered(net, film)
    assert result.factor == 1 and result.level == 0
    first, last = (template_stage(net, result.velocity[:, :t], SIZE) for t in (0, 4))
    assert (first == (net.prior(SIZE)[0] > 0.5).any(0).numpy()).all()
    assert (last == (result.log_odds[0] > 0).any(0).numpy()).all() and (first != last).any()


def test_the_picture_says_in_colour_whether_the_guard_acted(tmp_path):
    net, film = network(), torch.rand(SIZE)
    result = answered(net, film)
    mask = (result.log_odds[0] > 0).any(0).float()
    pictures = []
    for factor in (1.0, 0.5):
        template_figure(
            tmp_path / "a" / "p.png",
            net,
            result,
            film,
            mask,
            "film.png",
            {"template": {"factor": factor, "level": 0.0, "components": 2}},
        )
        pictures.append(np.asarray(Image.open(tmp_path / "a" / "p.png").convert("RGB")))
    assert pictures[0].shape == (1000, 1500, 3) and not (tmp_path / "a").joinpath(".p").exists()
    green, yellow = pictures[0][2, 700], pictures[1][2, 700]
    assert green[1] > green[0] and yellow[0] > yellow[2] and (green != yellow).any()


def test_a_line_tells_of_all_poses_and_of_nothing_else(tmp_path):
    net, film = network(), torch.rand(SIZE)
    inferer = TemplateInferer()
    with torch.no_grad():
        result = inferer.infer(film[None, None], net, plain=True)
        weakened = inferer.infer(1 - film[None, None], network(gain=30.0, limit=2.0, control_size=16))
    (calm,), (wild,) = result.templates, weakened.templates
    assert calm.factor == 1 and wild.factor < 1
    output = {
        "pred": (result.prediction[0] > 0).any(0, keepdim=True).float(),
        "pred_path": str(tmp_path / "f_lungs.png"),
        "pred_level": 0.0,
    }
    reporter = TemplateReporter(tmp_path, tmp_path, figures=False, network=net)
    reporter.begin(2)
    for name, templates in (("f.png", (calm,)), ("g.png", (calm, wild))):
        reporter.done(str(tmp_path / name), {"film": film[None, None]}, output, replace(result, templates=templates), 0.1)
    reporter.end()
    one, two, _ = map(json.loads, (tmp_path / "report.jsonl").read_text().splitlines())
    assert one["template"] == {
        "factor": 1.0,
        "level": 0.0,
        "folding_fraction": 0.0,
        "nonpositive_cell_fraction": 0.0,
        "agreement": None,
        "native_level": 0.0,
        "components": 2,
        "holes": 0,
    }
    assert two["template"]["factor"] == pytest.approx(wild.factor.item(), rel=1e-6)
