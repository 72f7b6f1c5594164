"""``monai-diffeo calibrate``: refit when a film is to be reviewed, from a hospital's own films without masks."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import click

from monai_diffeo.cli.options import option
from monai_diffeo.cli.segment import opened_bundle, segment

__all__ = ["calibrate"]


@click.command(
    epilog="""\b
Exit status:
  0    the file is written
  1    nothing was written; the last line on stderr says why
  130  interrupted by Ctrl-C"""
)
@option("dataset_dir", "A folder of films of the site, like those to be segmented there. Masks are not needed.", metavar="DIR")
@option("output", "The trust model to write. Without it, trust.json in the current folder.", metavar="FILE")
@option("share", "Percentage of these films that may be flagged, larger than that of bad ones. Without it, 3.", float, "N")
def calibrate(bundle_root: str | None, trust_bundle: bool | None, **options: Any) -> None:
    """Refit limits and thresholds of the decision 'ok' or 'review' to a site's own films, for the weights of this run.

    'segment' with the same options and --trust_model FILE decides by the result. The interval for Dice needs true masks. It is
    not refitted, and there is none.
    """
    given = {name: value for name, value in options.items() if value is not None}
    output, share = Path(given.pop("output", "trust.json")), given.pop("share", 3.0) / 100
    if "dataset_dir" not in given:
        raise click.UsageError("--dataset_dir is needed.")
    with opened_bundle("calibrate", bundle_root, given) as root:
        given.pop("output_dir", None)
        click.echo(_calibrated(root, given, output, share, bool(trust_bundle)))


_ALSO = {*"bundle_root mode tta_samples mask_threshold convention device amp network_weights trust_bundle debug".split()}
calibrate.params += [each for each in segment.params if each.name in _ALSO]


class _Reader:
    """Stands for a reporter, and keeps the films that fail by their reason, an error and a sentence."""

    wants_plain = True

    def __init__(self) -> None:
        self.films: list[Any] = []  # what a judge has seen
        self.failures: dict[str, list[str]] = {}

    def missing(self, items: list[Any]) -> list[Any]:
        """All are to be done."""
        return items

    def done(self, path: str, batch: Any, output: Any, result: Any, seconds: float) -> None:
        """The judge has seen it."""
        self.films += [verdict.seen for verdict in result.verdicts]

    def failed(self, path: str, error: BaseException) -> None:
        """It is left out."""
        from monai_diffeo.report.record import failure_record  # imports torch

        line = failure_record(path, error)
        self.failures.setdefault(f"{line['error']}: {line['message']}", []).append(path)


def _calibrated(root: Path, given: dict[str, Any], output: Path, share: float, trusted: bool) -> str:
    """Write the model, and say what it changes."""
    from monai_diffeo.cli.bundle import bundle_parser
    from monai_diffeo.errors import ConfigError
    from monai_diffeo.files import bundle_of
    from monai_diffeo.trust import NO_RESULT, OK, REVIEW, check_films, recalibrated, save_trust, verdict

    if output.exists() or bundle_of(output.absolute()) is not None:
        where = "exists" if output.exists() else "lies in a bundle, whose files stay as they are"
        raise ConfigError(
            f"calibrate: --output must be a new file outside of bundles, but {output} {where}. Give another name."
        )
    parser, reader = bundle_parser(root, given, trusted), _Reader()
    if "judge" not in parser or "evaluator" not in parser:
        raise ConfigError(f"calibrate: the configuration of {str(root)!r} has no judge of films. Give --bundle_root cxr.")
    parser["judge::any_weights"] = parser["judge::accept_anything"] = True
    parser["reporter"], parser["postprocessing"] = reader, None
    check_films(len(parser.get_parsed_content("dataset")), share)
    parser.get_parsed_content("evaluator").run()
    for why, paths in reader.failures.items():
        click.echo(f"{len(paths)} failed, the first is {paths[0]!r}. {why}", err=True)
    films, base = reader.films, parser.get_parsed_content("judge").model
    new = recalibrated(base, films, share)
    save_trust(output, new)
    kinds = [[verdict(of, film.signs, film.said, mirrored=film.mirrored).kind for film in films] for of in (base, new)]
    flagged = len(films) - kinds[0].count(OK)
    percent = math.ceil(100 * flagged / len(films))
    doubt = f"""
Before, {flagged} of {len(films)} were flagged. Look at their masks first: if they are bad, this model calls bad masks ok.
Then {f"give --share {percent}, or " if percent <= 50 else ""}do not calibrate.
"""
    rows = [(kind, *(f"{of.count(kind)}" for of in kinds)) for kind in (OK, REVIEW, NO_RESULT)]
    limits = {name: f"{limit:.3g}" for name, limit in new.limits.items()}
    rows += [(f"limit of {name}", f"{limit:.3g}", limits.get(name, "unused")) for name, limit in base.limits.items()]
    table = "\n".join(f"{name:<30}{before:>10}{after:>10}" for name, before, after in [("", "before", "after"), *rows])
    return f"""{len(films)} films used; {sum(map(len, reader.failures.values()))} could not be read or segmented.

{table}
{doubt if flagged > 2 * share * len(films) else ""}
Flags by remarks of header or canonicaliser stay, whatever the thresholds.
The interval for Dice is not refitted, for that needs films with true masks. Reports will have none.
Wrote {output}. Decide by it with: monai-diffeo segment --trust_model {output}, and the options of this run."""
