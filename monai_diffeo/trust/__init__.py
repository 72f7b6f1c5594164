"""Is the mask of a film good? One decision a film, from named signs that were calibrated on films with known answers."""

from monai_diffeo.trust.calibration import check_films, recalibrated
from monai_diffeo.trust.decision import DECISIONS, NO_RESULT, NOT_JUDGED, OK, REVIEW, Verdict, decision_by_remarks, verdict
from monai_diffeo.trust.fallback import ANSWERS, FALLBACKS, best_answers
from monai_diffeo.trust.judge import FilmJudge, Observation, WithheldError, fitted_to, load_film_judge
from monai_diffeo.trust.model import Score, TrustModel, load_trust, save_trust
from monai_diffeo.trust.signs import SIGNS, References, film_signs

__all__ = [
    "ANSWERS", "DECISIONS", "FALLBACKS", "FilmJudge", "NOT_JUDGED", "NO_RESULT", "OK", "Observation", "REVIEW", "References",
    "SIGNS", "Score", "TrustModel", "Verdict", "WithheldError", "best_answers", "check_films", "decision_by_remarks",
    "film_signs", "fitted_to", "load_film_judge", "load_trust", "recalibrated", "save_trust", "verdict",
]  # fmt: skip
