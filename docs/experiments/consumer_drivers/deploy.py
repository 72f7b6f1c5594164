"""A film through the operators of MONAI Deploy's App SDK, none of them changed: run by a Python that has the SDK.

``python deploy.py BUNDLE FILM OUT``: the DICOM film is loaded, selected and made a volume, and the bundle's operator computes.
What it emits is saved to ``OUT`` as ``.npy``: depth x rows x columns, or rows x columns.

SDK 4.0.0 needs two things of a radiograph that it does not provide, and gets them here. A single image must have an affine. A
film whose dark is stored as light must say so by its Presentation LUT Shape, or the operator gets a negative.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from stubs import stub_missing


class _Port:
    """Both sides of an operator."""

    def __init__(self, **values: Any) -> None:
        self.values = values

    def receive(self, name: str) -> Any:
        return self.values[name]

    def get(self, name: str) -> Any:
        return None

    def emit(self, value: Any, name: str) -> None:
        self.values[name] = value


def main(bundle: str, film: str, out: str) -> None:
    """Run one film."""
    print("without content:", ", ".join(stub_missing("holoscan.core", "tritonclient", "google")) or "nothing")
    from monai.deploy.core import Fragment, Image, IOType
    from monai.deploy.operators.dicom_data_loader_operator import DICOMDataLoaderOperator
    from monai.deploy.operators.dicom_series_selector_operator import DICOMSeriesSelectorOperator
    from monai.deploy.operators.dicom_series_to_volume_operator import DICOMSeriesToVolumeOperator
    from monai.deploy.operators.monai_bundle_inference_operator import IOMapping, MonaiBundleInferenceOperator

    logging.basicConfig(level=logging.INFO)
    fragment = Fragment()
    studies = DICOMDataLoaderOperator(fragment, input_folder=Path(film).parent)._load_data([film])
    chosen = DICOMSeriesSelectorOperator(fragment)._select_all_series(studies)
    for instance in chosen[0].selected_series[0].series.get_sop_instances():
        stored = instance.get_native_sop_instance()
        if stored.PhotometricInterpretation == "MONOCHROME1":
            stored.PresentationLUTShape = "INVERSE"
    image = DICOMSeriesToVolumeOperator(fragment).convert_to_image(chosen)
    image.metadata().setdefault("nifti_affine_transform", np.eye(4))
    operator = MonaiBundleInferenceOperator(
        fragment,
        app_context=SimpleNamespace(models=None),
        input_mapping=[IOMapping("image", Image, IOType.IN_MEMORY)],
        output_mapping=[IOMapping("pred", Image, IOType.IN_MEMORY)],
        bundle_path=bundle,
    )
    given, result = _Port(image=image), _Port()
    operator.compute(given, result, None)
    mask = result.values["pred"].asnumpy()
    np.save(out, mask)
    print("volume:", image.asnumpy().shape, "emitted:", mask.shape)


if __name__ == "__main__":
    main(*sys.argv[1:])
