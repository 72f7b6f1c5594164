"""Radiographs: reading films from DICOM, NIfTI and pictures, and writing masks in their native frame."""
