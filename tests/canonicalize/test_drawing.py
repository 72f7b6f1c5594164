"""A result and a canonicaliser say what they are in a few lines, and a result draws itself in a notebook."""

import base64
import io
import re
import sys
from dataclasses import replace

import pytest
import torch

from monai_diffeo.canonicalize import load_canonicalizer
from tests.helpers import blob, canonicalizer_folder, tiny_canonicalizer


def mixed():
    images = torch.cat(
        [blob(2, (48, 64)), torch.full((1, 1, 48, 64), 0.5), torch.full((1, 1, 48, 64), torch.nan), blob(1, (48, 64))]
    )
    return tiny_canonicalizer(ood_threshold=-1.0)(images)


def test_a_result_fits_on_a_screen_and_holds_the_numbers_of_the_report():
    found = mixed()
    text = repr(replace(found, agreement=torch.full((5,), 0.9), energy_after=found.energy_after + 7))
    assert f"{found.energy_after[0].item() + 7:.3g}" in text
    assert len(text.splitlines()) <= 12 and max(map(len, text.splitlines())) <= 110 and "tensor(" not in text
    assert "5 of shape (1, 48, 64), torch.float32, cpu" in text
    assert "3 canonicalized; 1 rejected: the image is constant; 1 rejected: the image holds NaN" in text
    assert f"{found.energy_before[0].item():.3g}" in text and "1 not finite" in text and "agreement             0.9" in text
    assert f"{found.largest_displacement.max().item():.3g}" in text and f"{found.seconds:.3g}" in text
    assert re.search(r"notes +\d x remains unlike the training images", text)


def test_a_volume_and_another_frame_are_named():
    found = tiny_canonicalizer(3)(torch.rand(1, 1, 12, 16, 20))
    assert "(1, 12, 16, 20)" in repr(found) and "the input on" not in repr(found)
    other = replace(found, image=torch.rand(1, 1, 16, 12, 20), ddf=torch.zeros(1, 3, 16, 12, 20))
    assert "(1, 16, 12, 20), torch.float32, cpu, the input on (12, 16, 20)" in repr(other)


def test_a_canonicaliser_fits_on_a_screen_too(tmp_path):
    text = repr(load_canonicalizer(canonicalizer_folder(tmp_path), "refine"))
    assert len(text.splitlines()) <= 12 and max(map(len, text.splitlines())) <= 110
    assert "WeightedEnergy" in text and "1 vae, 0.5 critic" in text and "ControlGrid" in text and "steps=3" in text
    assert re.search(r"predictor +DeformationPredictor \([\d,]+ weights\)", text)


def test_in_a_notebook_it_is_a_picture_of_at_most_four_images():
    pytest.importorskip("matplotlib")
    from PIL import Image

    for found, columns in ((mixed(), 4), (tiny_canonicalizer(3)(torch.rand(1, 1, 12, 16, 20)), 1)):
        shown = found._repr_html_()
        assert "<pre>Canonicalization" in shown
        data = re.search(r'src="data:image/png;base64,([^"]+)"', shown)[1]
        picture = Image.open(io.BytesIO(base64.b64decode(data)))
        assert picture.size == (240 * columns, 500) and len(set(picture.convert("L").getdata())) > 20


def test_without_matplotlib_it_is_the_text(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"] + ["matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    shown = mixed()._repr_html_()
    assert shown.startswith("<pre>Canonicalization") and "<img" not in shown
