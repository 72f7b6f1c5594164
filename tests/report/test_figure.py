import re
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch

pytest.importorskip("matplotlib")
from PIL import Image

from monai_diffeo.errors import ShapeError
from monai_diffeo.report import SWITCHED_OFF, film_figure
from monai_diffeo.report.decision import DECISION_COLOURS
from monai_diffeo.report.panels import FOLDED
from monai_diffeo.report.sheet import Panel

PANELS = {  # left, top, right, bottom in pixels
    "film": (34, 112, 418, 496),
    "canonical": (524, 112, 908, 496),
    "change": (1014, 112, 1398, 496),
    "grid": (34, 566, 418, 950),
    "area": (524, 566, 908, 950),
    "table": (1010, 520, 1480, 955),
    "title": (0, 8, 1500, 70),
}
NUMBERS = {
    "status": "canonicalized",
    "energy_before": 18.3,
    "energy_after": 4.1,
    "largest_displacement": 8.4,
    "folding_fraction": 0.0,
    "displacement_share": 0.13,
    "inverse_error": 0.02,
    "frame": [128, 128],
    "seconds": 0.4,
    "areas": {"right": 0.15, "left": 0.13},
}
SIZE = 64


def ellipses(shift=0):
    y, x = np.mgrid[:SIZE, :SIZE] - SIZE / 2
    return sum((((x - c - shift) / 9) ** 2 + (y / 20) ** 2 < 1).astype(float) for c in (-14, 15))


def wave(height=3.0):
    x = torch.linspace(0, 2 * np.pi, SIZE)
    return height * torch.stack([torch.sin(x).expand(SIZE, SIZE), torch.sin(x)[:, None].expand(SIZE, SIZE)])


@pytest.fixture(scope="module")
def draw(tmp_path_factory):
    folder = tmp_path_factory.mktemp("figures")

    def draw(**changes):
        film = 0.7 - 0.5 * ellipses() + 0.05 * np.sin(np.arange(SIZE))
        inputs = {
            "film": film,
            "canonical": film,
            "ddf": wave(),
            "plain_mask": ellipses(2),
            "mask": ellipses(),
            "canonical_mask": ellipses(),
            "title": "0017.png",
            "numbers": NUMBERS,
            **changes,
        }
        film_figure(folder / "sub" / "film.png", **inputs)
        return Image.open(folder / "sub" / "film.png").convert("RGB")

    return draw


@pytest.fixture(scope="module")
def usual(draw):
    return draw()


def changed(a, b):
    return {name for name, box in PANELS.items() if a.crop(box).tobytes() != b.crop(box).tobytes()}


def has(image, panel, colour):
    """Pixels of about a colour in a panel."""
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    return int((np.abs(np.asarray(image.crop(PANELS[panel])).astype(int) - wanted).max(-1) < 12).sum())


def test_the_figure_is_a_png_of_1500_by_1000_and_the_same_twice(draw, usual, tmp_path):
    assert usual.size == (1500, 1000)
    assert changed(usual, draw()) == set()
    film = torch.zeros(8, 8)
    film_figure(tmp_path / "x.png", film, film, torch.zeros(2, 8, 8), None, film, None, "", {})
    assert (tmp_path / "x.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert [p.name for p in tmp_path.iterdir()] == ["x.png"]  # nothing unfinished stays behind


def test_each_input_changes_the_panels_it_belongs_to_and_no_others(draw, usual):
    film = np.random.default_rng(0).random((SIZE, SIZE))
    assert changed(usual, draw(film=film)) == {"film", "change", "grid"}
    assert changed(usual, draw(canonical=film)) == {"canonical"}
    assert changed(usual, draw(ddf=wave(2.0))) == {"grid", "area"}
    assert changed(usual, draw(plain_mask=ellipses(4))) == {"change", "table"}  # the table gives the overlap
    assert changed(usual, draw(mask=ellipses(1))) == {"film", "change", "table"}
    assert changed(usual, draw(canonical_mask=ellipses(1))) == {"canonical", "area"}
    assert changed(usual, draw(title="another")) == {"title"}
    assert changed(usual, draw(uncertainty=ellipses() * 0.5)) == {"film"}
    assert changed(usual, draw(numbers={**NUMBERS, "energy_after": 5.0})) == {"table"}


@pytest.mark.parametrize(
    "status, wanted",
    [
        ("canonicalized", "ok"),
        ("left alone: looks like training", "ok"),
        (SWITCHED_OFF, "not judged"),
        ("rejected: energy rose", "review"),
        ("failed", "no result"),
    ],
)
def test_what_to_do_has_its_colour(draw, status, wanted):
    image = draw(numbers={**NUMBERS, "status": status})
    seen = {name: has(image, "table", colour) for name, colour in DECISION_COLOURS.items()}
    assert max(seen, key=seen.get) == wanted and max(seen.values()) > 100
    assert np.asarray(image)[1, 700].tolist() == [int(DECISION_COLOURS[wanted][i : i + 2], 16) for i in (1, 3, 5)]  # the stripe


@pytest.fixture
def said(monkeypatch):
    """All words that a figure shows."""
    texts, words = [], Panel.words
    monkeypatch.setattr(Panel, "words", lambda *args, **style: (texts.append(args[3]), words(*args, **style)))
    return texts


def test_motion_is_in_millimetres_of_the_film_or_a_share_and_never_in_pixels_of_the_network(draw, said):
    draw(numbers={**NUMBERS, "largest_displacement_mm": 21.4})
    assert "21 mm of film · 13% of frame" in said and "0.02%" in said
    said.clear()
    draw()
    assert "13% of frame" in said and not any("mm" in text for text in said)


JARGON = r"\bpx\b|pixel|plain|jacobian|\bddf\b|energy|warp|field|diffeo|theta|tta|svf"


def test_the_words_are_those_of_a_reader(draw, said):
    for status in ("canonicalized", "left alone: canonicalisation is switched off", "rejected: the image is constant"):
        draw(numbers={**NUMBERS, "status": status, "agreement": 0.9, "notes": "the mask is empty"})
        draw(numbers={**NUMBERS, "status": status}, ddf=torch.zeros(2, SIZE, SIZE), plain_mask=None)
    draw(plain_mask=None, sides=None)
    assert len(set(said)) > 30 and [text for text in said if re.search(JARGON, text, re.I)] == []
    assert "Look at this film" in said and "Nothing to do" in said and "Distance from training images" in said


@pytest.mark.parametrize("notes, saw", [("", True), ("not deformed: no better answers", False)])
def test_a_film_at_rest_is_not_said_to_have_been_moved(draw, said, notes, saw):
    draw(numbers={**NUMBERS, "status": "canonicalized", "notes": notes})
    assert any("saw the canonical film" in text for text in said) is saw
    assert any("ot deformed" in text for text in said) is not saw


def test_an_answer_of_another_network_is_not_said_to_come_from_the_canonical_film(draw, said):
    for answer, saw in (("wrapped", True), ("bare network", False), ("second network", False)):
        said.clear()
        draw(numbers={**NUMBERS, "status": "canonicalized", "answer": answer})
        assert any("saw the canonical film" in text for text in said) is saw


def test_uncertainty_is_violet_where_it_is_high_and_the_caption_says_so(draw, said):
    doubt = np.zeros((SIZE, SIZE), np.float32)
    assert has(draw(uncertainty=doubt), "film", "#9f64cc") == 0
    doubt[: SIZE // 2] = 1
    black = np.zeros((SIZE, SIZE))
    assert has(draw(uncertainty=doubt, film=black), "film", "#9f64cc") > 1000 and any(
        "uncertain: violet" in text for text in said
    )


def test_a_name_that_no_font_has_and_one_that_runs_backwards_are_drawn(draw, said):
    draw(title=b"M\xfcller\xff.png".decode("utf-8", "surrogateescape") + " gpj\u202e.png")
    assert "M\\udcfcller\\udcff.png gpj\\u202e.png" in said


def test_folded_voxels_are_loud_and_only_they(draw, usual):
    y, x = torch.meshgrid(torch.arange(64.0) - 32, torch.arange(64.0) - 32, indexing="ij")
    bump = torch.exp(-(x**2 + y**2) / 128)
    folded = torch.stack([0 * bump, -1.6 * x * bump])
    assert has(usual, "area", FOLDED) == 0
    assert has(draw(ddf=folded), "area", FOLDED) > 100


def grid_lines(image):
    """Share of the columns of the grid panel that are one vertical line from top to bottom."""
    pixels = np.asarray(image.crop(PANELS["grid"])).astype(int)
    blue = (pixels[..., 2] - pixels[..., 0]) > 40
    return int((blue.mean(0) > 0.9).sum())


def test_a_film_left_alone_has_a_straight_grid(draw, usual):
    still = draw(ddf=torch.zeros(2, SIZE, SIZE), plain_mask=ellipses())
    assert grid_lines(still) >= 15 and grid_lines(usual) == 0


def test_the_grid_shows_where_phi_sends_the_lines(draw):
    """phi(x) = x + 16 voxels to the right and 5 down: the grid's left border is a quarter of the panel to the right."""
    ddf = torch.zeros(2, SIZE, SIZE)
    ddf[0], ddf[1] = 5.0, 16.0
    pixels = np.asarray(draw(ddf=ddf, film=np.zeros((SIZE, SIZE)), plain_mask=None).crop(PANELS["grid"])).astype(int)
    blue = (pixels[..., 2] - pixels[..., 0]) > 40
    assert np.flatnonzero(blue.any(0))[0] == pytest.approx(16.5 / SIZE * 384, abs=2)
    assert np.flatnonzero(blue.any(1))[0] == pytest.approx(5.5 / SIZE * 384, abs=2)


def test_gained_is_green_and_lost_is_red(draw):
    none = np.zeros((SIZE, SIZE))
    gained = np.asarray(draw(plain_mask=none).crop(PANELS["change"])).astype(int)
    lost = np.asarray(draw(mask=none, plain_mask=ellipses()).crop(PANELS["change"])).astype(int)
    for image, more, less in ((gained, 1, 0), (lost, 0, 1)):
        assert ((image[..., more] - image[..., less]) > 40).mean() > 0.15
        assert ((image[..., less] - image[..., more]) > 40).mean() < 0.01


@pytest.mark.parametrize("size", [(2, 2), (40, 97), (97, 40), (700, 650)])
def test_any_frame_and_any_missing_part_make_a_figure(tmp_path, size):
    film = torch.full(size, float("nan"))
    numbers = {"folding_fraction": None, "energy_before": float("nan")}
    film_figure(tmp_path / "x.png", film, film, torch.zeros(2, *size), None, torch.zeros(size), None, "$x_{", numbers)
    assert Image.open(tmp_path / "x.png").size == (1500, 1000)


def test_shapes_that_differ_are_refused(tmp_path):
    film = torch.zeros(8, 8)
    with pytest.raises(ShapeError, match="'ddf'"):
        film_figure(tmp_path / "x.png", film, film, torch.zeros(2, 8, 9), None, film, None, "", {})
    with pytest.raises(ShapeError, match=r"film\[0, 0\]"):
        film_figure(tmp_path / "x.png", film[None], film, torch.zeros(2, 8, 8), None, film, None, "", {})
    assert list(tmp_path.iterdir()) == []


def python(code):
    return subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=120)


def test_importing_the_report_needs_no_matplotlib_and_a_figure_says_what_to_install():
    done = python("""
        import sys
        sys.modules["matplotlib"] = None
        import torch
        from monai_diffeo.report import film_figure
        x = torch.zeros(8, 8)
        try:
            film_figure("never.png", x, x, torch.zeros(2, 8, 8), None, x, None, "", {})
        except ImportError as error:
            assert "pip install" in str(error)
        else:
            raise SystemExit("no error")
    """)
    assert done.returncode == 0, done.stderr


def test_we_import_no_pyplot_and_leave_its_figures_and_settings_alone(tmp_path):
    """MONAI imports pyplot itself; what counts is who asks for it."""
    done = python(f"""
        import builtins
        asked, real = set(), builtins.__import__

        def watch(name, globals=None, locals=None, fromlist=(), level=0):
            who = (globals or {{}}).get("__name__", "")
            if who.startswith("monai_diffeo") and ("pyplot" in name or "pyplot" in (fromlist or ())):
                asked.add(who)
            return real(name, globals, locals, fromlist, level)

        builtins.__import__ = watch
        import torch
        from monai_diffeo.report import film_figure
        import matplotlib
        import matplotlib.pyplot as plt
        before = dict(matplotlib.rcParams)
        x = torch.zeros(8, 8)
        film_figure({str(tmp_path / "x.png")!r}, x, x, torch.zeros(2, 8, 8), None, x, None, "", {{}})
        assert not asked, asked
        assert plt.get_fignums() == [] and dict(matplotlib.rcParams) == before
    """)
    assert done.returncode == 0, done.stderr
