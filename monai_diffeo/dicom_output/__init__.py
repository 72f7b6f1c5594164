"""Results as DICOM objects: segmentation, report, secondary capture. They need highdicom, of the extra ``dicom_output``."""

from monai_diffeo.dicom_output.capture import picture_capture
from monai_diffeo.dicom_output.measurements import Findings, measurement_report
from monai_diffeo.dicom_output.registration import deformable_registration
from monai_diffeo.dicom_output.segmentation import LUNG, TISSUE, Algorithm, Segment, mask_segmentation
from monai_diffeo.dicom_output.source import check_library, new_uid, source_of_film
from monai_diffeo.dicom_output.writer import write_dicom, write_dicom_results

__all__ = ["Algorithm", "Findings", "LUNG", "Segment", "TISSUE", "check_library", "mask_segmentation", "measurement_report"]
__all__ += ["deformable_registration", "new_uid", "picture_capture", "source_of_film", "write_dicom", "write_dicom_results"]
