"""A MONAI Deploy application: a folder of DICOM studies in, SEG, SR and SC of its chest films out.

Run it where MONAI Deploy's App SDK is installed: ``python monai_deploy_app.py -i STUDIES -o RESULTS``.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from monai.deploy.conditions import CountCondition
from monai.deploy.core import AppContext, Application, Fragment, Operator, OperatorSpec
from monai.deploy.operators.dicom_data_loader_operator import DICOMDataLoaderOperator
from monai.deploy.operators.dicom_series_selector_operator import DICOMSeriesSelectorOperator

from monai_diffeo.bundles import find_bundle
from monai_diffeo.cli.bundle import FilmByFilm

RULES = {"selections": [{"name": "films", "conditions": {"Modality": "^(CR|DX)$"}}]}


class SegmentFilmsOperator(Operator):
    """Segments the films of the selected series, and writes their DICOM results into the output folder.

    Named input:
        study_selected_series_list: of the ``DICOMSeriesSelectorOperator``.

    Args:
        fragment: the application.
        input_folder, output_folder: of the application; results lie in the same sub-folders as their films.
        settings: options of ``monai-diffeo segment``, such as ``{"mode": "refine"}``.
    """

    def __init__(self, fragment: Fragment, *args: Any, input_folder: Path, output_folder: Path, settings: dict, **kwargs: Any):
        self.input_folder, self.output_folder, self.settings = input_folder.resolve(), output_folder, settings
        super().__init__(fragment, *args, **kwargs)

    def setup(self, spec: OperatorSpec) -> None:
        spec.input("study_selected_series_list")

    def compute(self, op_input: Any, op_output: Any, context: Any) -> None:
        studies = op_input.receive("study_selected_series_list")
        series = [selected.series for study in studies for selected in study.selected_series]
        instances = [instance for each in series for instance in each.get_sop_instances()]
        films = sorted({Path(instance.get_native_sop_instance().filename).resolve() for instance in instances})
        with tempfile.TemporaryDirectory() as folder:
            given = {**self.settings, "output_dir": folder, "dicom_output": True}
            segment = FilmByFilm(find_bundle("cxr"), given, self.input_folder)
            results = [name for film in films for name in segment(film).get("dicom", ())]
            segment.reporter.end()
            for name in results:
                (self.output_folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(Path(folder, name), self.output_folder / name)
        if not results:
            raise RuntimeError(f"No result for {len(films)} films. Are these chest films of modality CR or DX?")


class LungFilmsApp(Application):
    """Load, select, segment."""

    settings: dict[str, Any] = {}

    def compose(self) -> None:
        context: AppContext = Application.init_app_context(self.argv)
        folders = {"input_folder": Path(context.input_path), "output_folder": Path(context.output_path)}
        load = DICOMDataLoaderOperator(self, CountCondition(self, 1), input_folder=folders["input_folder"], name="load")
        select = DICOMSeriesSelectorOperator(self, rules=json.dumps(RULES), all_matched=True, name="select")
        segment = SegmentFilmsOperator(self, **folders, settings=self.settings, name="segment")
        self.add_flow(load, select, {("dicom_study_list", "dicom_study_list")})
        self.add_flow(select, segment, {("study_selected_series_list", "study_selected_series_list")})


if __name__ == "__main__":
    LungFilmsApp().run()
