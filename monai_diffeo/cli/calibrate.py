"""``monai-diffeo calibrate``: refit when a film is to be reviewed, from a hospital's own films without masks."""

from __future__ import annotations

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
def calibrate(
    dataset_dir: str | None,
    output: str | None,
    share: float | None,
    bundle_root: str | None,
    trust_bundle: bool | None,
    **options: Any,
) -> None:
    """Refit limits and thresholds of the decision 'ok' or 'review' to a site's own films, for the weights of this run.

    'segment' with the same options and --trust_model FILE decides by the result. The interval for Dice needs true masks. It is
    not refitted, and there is none.
    """
    if dataset_dir is None:
        raise click.UsageError("--dataset_dir is needed.")
    given = {"dataset_dir": dataset_dir, **{name: value for name, value in options.items() if value is not None}}
    with opened_bundle("calibrate", bundle_root, given) as root:
        given.pop("output_dir", None)
        for line in _calibrated(
            root, given, Path(output or "trust.json"), (3.0 if share is None else share) / 100, bool(trust_bundle)
        ):
            click.echo(line)


calibrate.params += [
    each
    for each in segment.params
    if each.name in ("bundle_root", "mode", "tta_samples", "convention", "device", "network_weights", "trust_bundle", "debug")
]


class _Reader:
    """What an evaluator tells of its films, in place of a report: which failed."""

    wants_plain = True

    def __init__(self) -> None:
        self.why: list[str] = []

    def missing(self, items: list[Any]) -> list[Any]:
        """All are to be done."""
        return items

    def done(self, *film: Any) -> None:
        """The judge has seen it."""

    def failed(self, path: str, error: BaseException) -> None:
        """It is left out."""
        self.why.append(str(error))


def _calibrated(root: Path, given: dict[str, Any], output: Path, share: float, trusted: bool) -> list[str]:
    """Write the model, and say in lines what it changes."""
    from monai_diffeo.cli.bundle import bundle_parser
    from monai_diffeo.errors import ConfigError
    from monai_diffeo.files import bundle_of
    from monai_diffeo.trust import DECISIONS, Observer, check_films, recalibrated, save_trust, verdict

    if output.exists() or bundle_of(output.absolute()) is not None:
        where = "exists" if output.exists() else "lies in a bundle, whose files stay as they are"
        raise ConfigError(
            f"calibrate: --output must be a new file outside of bundles, but {output} {where}. Give another name."
        )
    parser, reader = bundle_parser(root, given, trusted), _Reader()
    if "judge" not in parser or "evaluator" not in parser:
        raise ConfigError(f"calibrate: the configuration of {str(root)!r} has no judge of films. Give --bundle_root cxr.")
    parser["judge::any_weights"] = True
    base = parser.get_parsed_content("judge")
    observer = Observer(base.model, base.second)
    parser["judge"], parser["reporter"], parser["postprocessing"] = observer, reader, None
    check_films(len(parser.get_parsed_content("dataset")), share)
    parser.get_parsed_content("evaluator").run()
    model = recalibrated(base.model, observer.seen, share)
    save_trust(output, model)
    kinds = [
        [verdict(of, film.signs, film.said, mirrored=film.mirrored).kind for film in observer.seen]
        for of in (base.model, model)
    ]
    remarks = sum(
        verdict(model, {}, film.said, mirrored=film.mirrored).reasons != verdict(model, {}).reasons for film in observer.seen
    )
    lines = [
        f"{len(observer.seen)} films used, {len(reader.why)} not: they cannot be read or segmented",
        f"{'':<16}before   after",
    ]
    lines += [f"{kind:<14}{kinds[0].count(kind):>8}{kinds[1].count(kind):>8}" for kind in DECISIONS]
    lines += [f"{remarks} of them have a remark of header or canonicaliser, which no threshold changes."] if remarks else []
    lines += ["", f"{'limit of':<22}before    after"]
    lines += [f"{name:<20}{old:>8.3g} {model.limits[name]:>8.3g}" for name, old in base.model.limits.items()]
    lines += ["", "The interval for Dice needs films with true masks. It is not refitted, and reports will have none."]
    return [
        *lines,
        f"Wrote {output}. Decide by it with: monai-diffeo segment --trust_model {output}, and the options of this run.",
    ]
