"""A judged run: a film without a result has no mask, a line, and exit status 3; a negative is corrected."""

import json
from dataclasses import replace

import pytest
import torch

for package in ("ignite", "nibabel", "pydicom", "PIL", "matplotlib"):
    pytest.importorskip(package)

from monai.data import MetaTensor  # noqa: E402

from monai_diffeo.errors import ConfigError, RejectedError, WeightsError  # noqa: E402
from monai_diffeo.files import sha256_of  # noqa: E402
from monai_diffeo.flow import rotate_axes  # noqa: E402
from monai_diffeo.flow.axis_rotations import inverse_rotation  # noqa: E402
from monai_diffeo.inferers import DiffeoInferer, DiffeoResult  # noqa: E402
from monai_diffeo.trust import NO_RESULT, OK, REVIEW, FilmJudge, Verdict, fitted_to, load_film_judge, save_trust  # noqa: E402
from monai_diffeo.trust.decision import verdict  # noqa: E402
from monai_diffeo.trust.judge import at_rest  # noqa: E402
from tests.helpers import blob, tiny_canonicalizer  # noqa: E402
from tests.report.runs import folder_of_films, lines_of, run  # noqa: E402
from tests.trust.test_decision import GOOD, MODEL  # noqa: E402


def judge_by_columns(accept=False):
    """A judge of the fake runs, whose films have 32, 33, ... columns: the second film has no result, the third is doubtful."""
    verdicts = {33: Verdict(NO_RESULT, ("no chest film",), (0.0, 0.2), GOOD), 34: Verdict(REVIEW, ("odd shape",))}

    def judge(image, ask):
        return replace(ask(image), verdicts=(verdicts.get(image.shape[3], Verdict(OK, (), (0.9, 1.0), GOOD)),))

    return judge


def test_a_film_without_a_result_has_a_line_and_no_mask(tmp_path):
    films = folder_of_films(tmp_path / "films", "a.png", "b.png", "c.png")
    status, _ = run(films, tmp_path / "out")
    assert status == 0 and (tmp_path / "out" / "b_lungs.png").is_file()
    status, seen = run(films, tmp_path / "out", judge=judge_by_columns())
    a, b, c, end = lines_of(tmp_path / "out")
    assert status == end["exit_status"] == 3 and seen == ["a.png", "b.png", "c.png"]
    assert [line["decision"] for line in (a, b, c)] == ["ok", "no result: no chest film", "review: odd shape"]
    assert a["predicted_dice"] == [0.9, 1.0] and a["signs"] == GOOD and a["mask"] and a["figure"]
    assert (
        b["mask"] is None and b["figure"] is None and b["status"] == a["status"] and b["sha256"] == sha256_of(films / "b.png")
    )
    assert not list((tmp_path / "out").glob("b_*")) and (tmp_path / "out" / "c_lungs.png").is_file()
    audit = [json.loads(line) for line in (tmp_path / "out" / "audit.jsonl").read_text().splitlines()]
    assert [line["decision"] for line in audit[3:]] == ["ok", "no result", "review"] and audit[4]["outputs"]["mask"] is None


def test_a_run_whose_only_film_has_no_result_ends_with_3_and_is_not_done_again_on_resume(tmp_path):
    films = folder_of_films(tmp_path / "films", "a.png", "b.png")
    (films / "a.png").unlink()
    assert run(films, tmp_path / "out", judge=judge_by_columns())[0] == 3
    assert run(films, tmp_path / "out", judge=judge_by_columns(), resume=True) == (3, [])
    assert [line.get("decision") for line in lines_of(tmp_path / "out")] == ["no result: no chest film", None]


def asked(notes):
    """A function like an inferer's, which notes what it says of an image by its mean; the energy is that mean."""
    inferer = DiffeoInferer(tiny_canonicalizer(), tta_samples=2)

    def ask(image):
        result = inferer.infer(image, lambda x: x - 0.5, plain=True)
        note = notes(float(image.mean()))
        return replace(result, canonicalization=replace(result.canonicalization, notes=(note,)))

    return ask


def test_a_negative_is_corrected_and_said_where_that_helps_much():
    film, judge, negative = blob(1), FilmJudge(model_of_any_size()), "looks like a negative (x)"
    corrected = judge(1 - film, asked(lambda mean: negative if mean > 0.5 else "spacing unknown"))
    right = judge(film, asked(lambda mean: ""))
    torch.testing.assert_close(corrected.prediction, right.prediction)
    assert corrected.canonicalization.notes == ("negative corrected; spacing unknown",) and corrected.verdicts[0].kind == OK
    assert judge(1 - film, asked(lambda mean: negative)).canonicalization.notes == ("negative corrected",)
    kept = judge(film, asked(lambda mean: negative))  # its negative has the higher energy
    torch.testing.assert_close(kept.prediction, right.prediction)
    assert kept.canonicalization.notes == ("",) and kept.verdicts[0].kind == OK  # nor is it said to be one


def test_a_film_that_is_a_little_nearer_when_inverted_keeps_its_remark_and_is_to_be_reviewed():
    film, negative = torch.full((1, 1, 24, 24), 0.45) + 0.01 * blob(1, (24, 24)), "looks like a negative (x)"
    result = FilmJudge(model_of_any_size())(1 - film, asked(lambda mean: negative))
    assert result.canonicalization.notes == (negative,) and result.verdicts[0].kind == REVIEW


def test_a_film_that_is_far_from_the_training_films_is_shown_inverted_too():
    film, shown = blob(1), []
    ask = asked(lambda mean: shown.append(mean) or "")
    far = float(ask(1 - film).searched.energy_after)
    for limit, times in ((1.9 * far, 2), (2.1 * far, 1)):
        shown.clear()
        judge = FilmJudge(replace(model_of_any_size(), limits={**MODEL.limits, "energy": limit}))
        found, result = judge.corrected(1 - film, ask)
        assert len(shown) == times and torch.allclose(found, film, atol=1e-6) is (times == 2)
        assert result.canonicalization.notes == (("negative corrected",) if times == 2 else ("",))


@pytest.mark.parametrize("film, times", [(blob(1), 1), (1 - blob(1), 2)], ids=["film", "negative"])
def test_an_inverted_film_is_looked_at_before_all_is_asked_of_it(film, times):
    shown, judge = [], FilmJudge(model_of_any_size(), look=tiny_canonicalizer())
    ask = asked(lambda mean: shown.append(mean) or "looks like a negative (x)")
    result, alone = judge(film, ask), FilmJudge(model_of_any_size())(film, ask)
    assert len(shown) == times + 2  # without a look both are asked
    torch.testing.assert_close(result.prediction, alone.prediction)
    assert result.canonicalization.notes == alone.canonicalization.notes and result.verdicts == alone.verdicts


@pytest.mark.parametrize("given", [blob(1), 1 - blob(1)], ids=["better as it came", "better inverted"])
@pytest.mark.parametrize("rejected", [(), (True,), (False,), (True, False)], ids=str)
def test_raise_gives_the_result_of_identity_or_raises_where_that_is_of_a_rejected_film(given, rejected):
    """``rejected``: the film as it came, the inverted one, or both."""
    ask, judge = asked(lambda mean: "looks like a negative (x)"), FilmJudge(model_of_any_size())

    def identity(image):
        result = ask(image)
        if torch.equal(image, given) not in rejected:
            return result
        found = replace(result.canonicalization, status=("rejected: it folds",), energy_after=result.searched.energy_before)
        return replace(result, canonicalization=found, searched=found, prediction=result.plain)

    def stopping(image):
        result = identity(image)
        if result.canonicalization.status[0].startswith("rejected"):
            raise RejectedError("image 1 of 1: rejected: it folds", result.canonicalization)
        return result

    expected = judge(given, identity)
    corrected = "negative corrected" in expected.canonicalization.notes[0]
    assert corrected == (float(given.mean()) > 0.5)
    if (not corrected) in rejected:
        with pytest.raises(RejectedError):
            judge(given, stopping)
    else:
        found = judge(given, stopping)
        assert torch.equal(found.prediction, expected.prediction) and found.verdicts == expected.verdicts
        assert found.canonicalization.notes == expected.canonicalization.notes


def test_an_error_of_an_inferer_that_does_not_say_what_it_found_is_handed_on():
    def rejecting(image):
        raise RejectedError("image 1 of 1: rejected")

    with pytest.raises(RejectedError):
        FilmJudge(MODEL)(blob(1), rejecting)


def model_of_any_size():
    foreign, error = (replace(score, threshold=1e9) for score in (MODEL.foreign, MODEL.error))
    return replace(MODEL, foreign=foreign, error=error, unusual=1e9)


@pytest.mark.parametrize("stated, kind", [("L\\F", REVIEW), ("R\\F", OK), ("F\\L", OK), ("F\\R", REVIEW), ("", REVIEW)])
def test_a_film_that_is_mirrored_is_no_alarm_where_its_header_says_so(stated, kind):
    film = MetaTensor(blob(1), meta={"film_patient_orientation": [stated], "film_notes": [""]})
    result = FilmJudge(model_of_any_size())(film, asked(lambda mean: "looks mirrored (probability 1.00) and is not changed"))
    assert result.verdicts[0].kind == kind


def test_what_the_header_says_reaches_the_decision():
    film = MetaTensor(blob(1), meta={"film_notes": ["header names a lateral view"]})
    assert (
        FilmJudge(model_of_any_size())(film, asked(lambda mean: "")).verdicts[0].text == "review: header names a lateral view"
    )


def test_the_second_network_sees_the_canonical_film_and_its_answer_comes_back():
    film, seen = blob(1, shift=0.3), []

    def second(image):
        seen.append(image)
        return torch.cat([image - 0.5, image - 9], 1)  # of two shapes, the first is the answer of the other network

    judge, ask = FilmJudge(model_of_any_size(), second), asked(lambda mean: "")
    result = judge(film, ask)
    assert torch.equal(seen[0], result.searched.image) and result.verdicts[0].signs["second"] < 0.1
    assert FilmJudge(model_of_any_size(), lambda image: image - 9)(film, ask).verdicts[0].signs["second"] == 1


def test_the_network_of_the_whole_lung_sees_the_film_as_it_came_and_of_a_negative_the_corrected_one():
    film, seen = blob(1, shift=0.3), []

    def whole(image):
        seen.append(image)
        return image - 0.5

    judge, negative = FilmJudge(model_of_any_size(), whole=whole), "looks like a negative (x)"
    signs = judge(film, asked(lambda mean: "")).verdicts[0].signs
    assert torch.equal(seen[0], film) and signs["whole"] < 0.1 and "second" not in signs
    judge(1 - film, asked(lambda mean: negative if mean > 0.5 else ""))
    torch.testing.assert_close(seen[1], film)


def test_images_are_given_upright_and_answers_are_rotated_back():
    films = torch.arange(24.0).view(2, 1, 3, 4)[:, :, :, :3]
    found = replace(tiny_canonicalizer()(films), rotations=torch.tensor([0, 1]))
    upright, back = at_rest(films, DiffeoResult(films, found))
    assert torch.equal(upright[:1], films[:1]) and torch.equal(back(upright + 1), films + 1)
    assert torch.equal(upright[1:], rotate_axes(films[1:], int(inverse_rotation(2)[1]))) and not torch.equal(upright, films)
    same, back = at_rest(films, DiffeoResult(films, replace(found, rotations=None)))
    assert same is films and back(films) is films


def test_images_that_were_enlarged_are_given_so():
    film = torch.zeros(1, 1, 32, 32)
    film[..., 8:20, 6:18] = blob(1, (12, 12)) + 0.5
    canonicalizer = tiny_canonicalizer(enlarge_below=0.6, tta_samples=4)
    limits = {"energy": 99.0, "disagreement": 0.5}
    result = DiffeoInferer(canonicalizer, motion_limits=limits).infer(film, lambda x: x)
    upright, back = at_rest(film, result)
    assert (upright > 0.4).float().mean() > 0.8 > 0.2 > (film > 0.4).float().mean()
    torch.testing.assert_close(back(upright)[..., 9:19, 7:17], film[..., 9:19, 7:17], atol=0.05, rtol=0)


def test_the_mean_over_the_poses_is_judged_also_where_the_answer_at_one_pose_is_given():
    film, judge = blob(1), FilmJudge(model_of_any_size())
    one = judge(film, asked(lambda mean: ""))
    mean = replace(one, prediction=one.prediction - 0.4)
    given = judge(film, lambda image: replace(mean, prediction=one.prediction, averaged=mean.prediction))
    assert torch.equal(given.prediction, one.prediction) and given.verdicts[0].signs["change"] > 0.1
    assert given.verdicts[0].signs == judge(film, lambda image: mean).verdicts[0].signs != one.verdicts[0].signs


def test_without_a_canonicalisation_nothing_is_decided():
    plain = DiffeoResult(blob(1))
    assert FilmJudge(MODEL)(blob(1), lambda image: plain) is plain


def test_a_model_of_another_network_or_canonicaliser_does_not_judge_and_says_so(tmp_path, caplog):
    weights, energy, path = tmp_path / "model.pt", tmp_path / "energy", tmp_path / "trust.json"
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "metadata.json").write_text('{"name": "tiny"}')
    weights.write_bytes(b"weights")
    energy.mkdir()
    (energy / "vae.pt").write_bytes(b"energy")
    modes = {"single_pass": {"tta_samples": 8}, "refine": {}}
    sections = dict.fromkeys(("default_mode", "families", "networks", "weights", "energies"), {})
    (energy / "canonicalizer.json").write_text(json.dumps({**sections, "modes": modes}))
    save_trust(path, replace(MODEL, sha256=fitted_to(weights, energy)))
    judge = load_film_judge(path, weights, energy, accept_anything="true", fallback="best", tta_samples=8)  # as the mode has it
    assert judge.accept_anything is True and judge.fallback == "best" and not caplog.text
    assert fitted_to(weights, energy, mode="refine", tta_samples=1) == fitted_to(weights, energy, mode="refine")
    (energy / "vae.pt").write_bytes(b"another")
    assert load_film_judge(path, weights, energy) is None and "not calibrated" in caplog.text
    with pytest.raises(WeightsError, match="must be fitted to .*monai-diffeo calibrate"):
        load_film_judge(path, weights, energy, fallback="best")
    assert load_film_judge(path, weights, energy, any_weights=True).model.sha256 == fitted_to(weights, energy)
    (energy / "vae.pt").write_bytes(b"energy")
    others = [{"mode": "refine"}, {"tta_samples": 2}, {"further_weights": weights}]
    for other in [*others, {"mask_threshold": 0.5}, {"motion_limits": {"energy": 30.0}}, {"image_size": [32, 32]}]:
        assert load_film_judge(path, weights, energy, **other) is None
    weights.write_bytes(b"others")
    assert load_film_judge(path, weights, energy) is None


def test_settings_count_by_their_values_however_they_are_written(tmp_path):
    _, *files = site(tmp_path / "bundle", MODEL)
    given = {"mask_threshold": 0.5, "motion_limits": {"energy": 30.0, "disagreement": 0.5}, "image_size": [32, 48]}
    same = {**given, "motion_limits": {"disagreement": 0.5, "energy": 30}, "image_size": (32.0, 48)}
    changed = [{"mask_threshold": 0.25}, {"motion_limits": {"energy": 0.5, "disagreement": 30.0}}, {"image_size": [48, 32]}]
    changed += [{name: None} for name in given]
    assert fitted_to(*files, **same) == fitted_to(*files, **given)
    assert len({fitted_to(*files, **{**given, **one}) for one in [{}, *changed]}) == 7
    with pytest.raises(TypeError, match="settings must be among .*'image_size'.*, got .*'size'"):
        fitted_to(*files, size=[32, 48])


def test_the_network_that_knows_other_images_sees_the_film_upright():
    seen = []
    judge = FilmJudge(model_of_any_size(), outlier=lambda image: (seen.append(image), image.mean((1, 2, 3)))[1])
    film, ask = blob(1, (32, 32), torch.tensor([0.4])), asked(lambda mean: "")

    def turned(image):
        result = ask(image)
        return replace(result, canonicalization=replace(result.canonicalization, rotations=torch.tensor([1])))

    result = judge(film, turned)
    assert len(seen) == 1 and torch.equal(seen[0], torch.rot90(film, -1, (2, 3)))
    wanted = torch.nn.functional.softplus(film.double().mean())
    assert result.verdicts[0].signs["outlier"] == pytest.approx(wanted.item(), abs=1e-6)


def site(folder, model, name="trust.json"):
    """A bundle with a trust model, weights and a canonicaliser's folder: paths of the three."""
    (folder / "configs").mkdir(parents=True)
    (folder / "configs" / "metadata.json").write_text('{"name": "tiny"}')
    (folder / "model.pt").write_bytes(b"weights")
    (folder / "energy").mkdir()
    (folder / "trust.json").parent.mkdir(exist_ok=True)
    given = folder / "model.pt", folder / "energy"
    save_trust(folder / "trust.json", replace(model, sha256=fitted_to(*given)))
    return folder / "trust.json", *given


def test_a_network_that_decisions_were_fitted_with_must_be_there(tmp_path):
    limits = {**MODEL.limits, "second": 0.3, "whole": 0.2, "outlier": 0.1}
    second = replace(MODEL, limits=limits, error=replace(MODEL.error, weights={**MODEL.error.weights, "second": 1.0}))
    whole = replace(MODEL, limits=limits, foreign=replace(MODEL.foreign, weights={**MODEL.foreign.weights, "whole": 1.0}))
    odd = replace(MODEL, limits=limits, foreign=replace(MODEL.foreign, weights={**MODEL.foreign.weights, "outlier": 1.0}))
    gone, network = tmp_path / "template" / "gone.pt", torch.nn.Identity()
    others = {"second": network, "second_weights": gone, "whole": network, "whole_weights": gone}
    others |= {"outlier": network, "outlier_weights": gone}
    for name, model in (("second", second), ("whole", whole), ("outlier", odd)):
        files = site(tmp_path / name, model)
        with pytest.raises(WeightsError, match="gone.pt' are missing. Copy .*calibrate.*--trust_model"):
            load_film_judge(*files, **others)
        assert load_film_judge(*files).second is None  # who gives no network wants none
        judge = load_film_judge(*files, any_weights=True, **others)  # to calibrate without it
        assert judge.second is None and judge.whole is None and judge.outlier is None
        without = replace(model, limits={sign: limit for sign, limit in limits.items() if sign != name})
        unneeded = load_film_judge(*site(tmp_path / f"no {name}", without), **others)
        assert unneeded.second is None and unneeded.whole is None and unneeded.outlier is None
        for signs in (GOOD, {**GOOD, "energy": 70.0}):
            assert verdict(model, signs) == verdict(without, signs)


@pytest.mark.parametrize(
    "options", [{"fallback": "raise"}, {"fallback": "best"}, {"accept_anything": "true"}, {"path": "ours.json"}], ids=str
)
def test_options_about_decisions_are_refused_where_films_are_not_canonicalised(tmp_path, options):
    files = dict(zip(("path", "weights", "canonicalizer"), site(tmp_path / "bundle", MODEL)))
    save_trust(tmp_path / "ours.json", MODEL)
    options = {name: tmp_path / value if name == "path" else value for name, value in options.items()}
    with pytest.raises(ConfigError, match="--(fallback|accept_anything|trust_model) with --enabled false. Leave out"):
        load_film_judge(**{**files, **options}, enabled="false")
    assert load_film_judge(**files, enabled="False", fallback="identity", accept_anything="false") is None
    assert load_film_judge(**files, enabled="true") is not None
    (tmp_path / "bundle" / "configs" / "metadata.json").unlink()  # a folder that is no bundle has a model of its own, too
    assert load_film_judge(**files, enabled="false") is None


def test_a_model_that_the_user_chose_must_fit(tmp_path):
    (tmp_path / "model.pt").write_bytes(b"weights")
    (tmp_path / "energy").mkdir()
    save_trust(tmp_path / "trust.json", replace(MODEL, sha256=fitted_to(tmp_path / "model.pt", tmp_path / "energy")))
    assert load_film_judge(tmp_path / "trust.json", tmp_path / "model.pt", tmp_path / "energy").fallback == "identity"
    with pytest.raises(WeightsError, match="must be fitted"):
        load_film_judge(tmp_path / "trust.json", tmp_path / "model.pt", tmp_path / "energy", mode="faithful")
