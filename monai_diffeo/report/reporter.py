"""One line and one picture for each film of a run."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from monai_diffeo.canonicalize import Canonicalization
from monai_diffeo.canonicalize.result import resize_ddf
from monai_diffeo.flow import warp
from monai_diffeo.inferers import parse_switch
from monai_diffeo.networks.weights import weights_fingerprint
from monai_diffeo.report.figure import film_figure
from monai_diffeo.report.record import failure_record, film_record, sha256_of
from monai_diffeo.report.writer import ReportWriter

__all__ = ["FilmReporter"]


class FilmReporter:
    """Writes ``report.jsonl`` and the figures of a run; :class:`monai_diffeo.engines.FilmEvaluator` tells it of each film.

    Args:
        output_dir: folder of the report.
        root: folder below which inputs are named.
        mode: of the canonicaliser, for the record.
        device: for the record.
        weights: file of the network's weights, for its fingerprint in the record.
        figures: draw a picture for each film, beside its mask.
        debug: print the traceback of every failure to stderr; it may quote the file.
        longest: longest side of the pictures' films, voxels.
    """

    def __init__(
        self,
        output_dir: str | Path,
        root: str | Path,
        mode: str | None = None,
        device: str = "cpu",
        weights: str | Path | None = None,
        figures: bool | str = True,
        debug: bool | str = False,
        longest: int = 512,
    ) -> None:
        self.output_dir, self.root, self.mode, self.device = Path(output_dir), Path(root), mode, str(device)
        self.weights, self.longest = weights, longest
        self.wants_plain, self.debug = parse_switch(figures), parse_switch(debug)
        self.writer: ReportWriter | None = None

    def begin(self, films: int) -> None:
        """Start a new report."""
        self.writer = ReportWriter(self.output_dir / "report.jsonl")
        self.fingerprint = None if self.weights is None else weights_fingerprint(self.weights)
        if not films:
            print("No film was found.", file=sys.stderr)

    def end(self) -> int:
        """Print how it went; give the exit status: 0, or what :class:`ReportWriter` documents."""
        print(self.writer.summary())
        return self.writer.exit_status()

    def failed(self, path: str, error: BaseException) -> None:
        """A film that could not be read or segmented."""
        if self.debug:
            traceback.print_exception(error, file=sys.stderr)
        self.writer.write(failure_record(self._name(path), error, _hash(path)))

    def done(
        self,
        path: str,
        batch: Mapping[str, Any],
        output: Mapping[str, Any],
        result: Canonicalization | None,
        plain: Tensor | None,
        seconds: float,
    ) -> None:
        """A film that was segmented.

        Args:
            path: of the film.
            batch: the evaluator's batch of one, with the native film under ``"film"``.
            output: its postprocessed output, with the native mask under ``"pred"`` and where it lies under ``"pred_path"``.
            result: what the canonicaliser found; None when it is switched off.
            plain: the network's answer without canonicalisation, if it was asked for.
            seconds: the film took.
        """
        mask_path = Path(str(output["pred_path"]))
        mask = np.squeeze(np.asarray(output["pred"])) > 0.5
        figure = mask_path.with_name(mask_path.name.split("_lungs.")[0] + "_report.png") if self.wants_plain else None
        agreement = None if result is None or result.agreement is None else result.agreement[0].item()
        record = film_record(
            self._name(path),
            _hash(path),
            result,
            0,
            seconds,
            mode=self.mode,
            device=self.device,
            mask=self._output(mask_path),
            figure=None if figure is None else self._output(figure),
            lung_mask=mask,
            weights_sha256=self.fingerprint,
            agreement=agreement,
        )
        record |= self.more(output)
        if figure is not None:
            try:
                self._draw(figure, batch, mask, result, plain, record)
            except Exception as error:  # the mask is there: a picture that fails must not fail the film
                record["figure"] = None
                record["notes"] = "; ".join(filter(None, [record["notes"], f"no picture: {type(error).__name__}"]))
        self.writer.write(record)

    def more(self, output: Mapping[str, Any]) -> dict[str, Any]:
        """Further fields of a film's record, for subclasses; ``output`` as in :meth:`done`."""
        return {}

    def _draw(
        self,
        figure: Path,
        batch: Mapping[str, Any],
        mask: np.ndarray,
        result: Canonicalization | None,
        plain: Tensor | None,
        record: dict,
    ) -> None:
        film, small = self._shown(batch, mask)
        size = tuple(film.shape[2:])
        ddf = torch.zeros(1, 2, *size) if result is None else resize_ddf(result.ddf.cpu(), size)
        if plain is not None:
            plain = (
                torch.sigmoid(F.interpolate(torch.as_tensor(np.asarray(plain)).float(), size, mode="bilinear"))
                .amax(1)[0]
                .numpy()
                > 0.5
            )
        film_figure(
            figure,
            film=film[0, 0].numpy(),
            canonical=warp(film, ddf)[0, 0].numpy(),
            ddf=ddf[0].numpy(),
            plain_mask=plain,
            mask=small[0, 0].numpy() > 0.5,
            canonical_mask=warp(small, ddf)[0, 0].numpy() > 0.5,
            title=record["input"],
            numbers=record,
        )

    def _shown(self, batch: Mapping[str, Any], mask: np.ndarray) -> tuple[Tensor, Tensor]:
        """Film and mask at the picture's size, each ``(1, 1, H, W)``."""
        film = batch["film"] if isinstance(batch["film"], Tensor) else batch["film"][0]
        film = torch.as_tensor(np.asarray(film)).reshape(1, 1, *mask.shape).float()
        scale = min(1.0, self.longest / max(mask.shape))
        size = tuple(max(round(n * scale), 2) for n in mask.shape)
        film = F.interpolate(film, size, mode="bilinear", antialias=True, align_corners=False)
        return film, F.interpolate(torch.from_numpy(mask)[None, None].float(), size, mode="area")

    def _name(self, path: str) -> str:
        return Path(path).relative_to(self.root).as_posix() if Path(path).is_relative_to(self.root) else Path(path).name

    def _output(self, path: Path) -> str:
        return path.relative_to(self.output_dir).as_posix() if path.is_relative_to(self.output_dir) else path.name


def _hash(path: str) -> str | None:
    try:
        return sha256_of(path)
    except OSError:
        return None
