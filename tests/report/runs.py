"""Runs of the real reader, evaluator, mask writer and reporter over a folder, with a network that takes no time."""

import json
from pathlib import Path

import torch
from monai.inferers import SimpleInferer
from monai.transforms import AsDiscreted, Compose, CopyItemsd, EnsureTyped, ScaleIntensityd
from PIL import Image
from torch.utils.data import DataLoader

from monai_diffeo.engines import FilmEvaluator
from monai_diffeo.files import write_atomically
from monai_diffeo.radiograph.datalist import film_datalist
from monai_diffeo.radiograph.failsafe import FailSafeDataset, collate_one
from monai_diffeo.radiograph.pseudonyms import pseudonyms
from monai_diffeo.report import FilmReporter
from monai_diffeo.transforms import LoadImageFilmd, SaveImageFilmMaskd
from tests.radiograph.dicom_factory import corner_film, save


class Sketch(FilmReporter):
    """Pictures in no time, which show the title."""

    def draw(self, path, film, mask, result, record, sides):
        write_atomically(path, f"figure of {record['input']}".encode())


def folder_of_films(folder, *names):
    """Films of different content; a name with ``bad`` is a damaged one."""
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if "bad" in name:
            path.write_bytes(b"no film")
        elif path.suffix == ".png":
            Image.fromarray(corner_film(24, 32 + number, bits=8)).save(path)
        else:
            save(path, corner_film(24, 32 + number))
    return folder


def run(films, output, each=None, hide=False, kind=Sketch, judge=None, **settings):
    """Run over a folder: exit status and paths of the films that the network saw. ``each`` is called with each of them."""
    listed, seen = film_datalist(films, exclude=[output]), []
    names = pseudonyms(listed.paths) if hide else listed.paths
    reporter = kind(output, listed.root, films=names, **settings)
    load = Compose([LoadImageFilmd("image"), CopyItemsd("image", names="film"), ScaleIntensityd("image"), EnsureTyped("image")])
    dataset = FailSafeDataset(reporter.missing(listed.items), load)

    def network(image):
        seen.append(Path(image.meta["filename_or_obj"][0]).relative_to(films).as_posix())
        if each is not None:
            each(seen[-1])
        return image

    evaluator = FilmEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(dataset, batch_size=1, collate_fn=collate_one),
        network=network,
        inferer=SimpleInferer(),
        postprocessing=Compose(
            [AsDiscreted("pred", threshold=0.5), SaveImageFilmMaskd("pred", output, listed.root, films=names)]
        ),
        reporter=reporter,
        judge=judge,
    )
    reporter.begin(len(listed.items))
    if len(dataset):
        evaluator.run()
    return reporter.end(), seen


def lines_of(output):
    """The lines of a report, all of them whole."""
    text = (output / "report.jsonl").read_text()
    assert text == "" or text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def result_of(output):
    """All that a run wrote, but for the seconds, and for the audit and the log, which tell when."""
    timed = ("audit.jsonl", "run.log")
    paths = (path for path in sorted(output.rglob("*")) if path.is_file() and path.name not in timed)
    files = {path.relative_to(output).as_posix(): path.read_bytes() for path in paths}
    lines = [{key: value for key, value in line.items() if key != "seconds"} for line in lines_of(output)]
    return {**files, "report.jsonl": lines}
