"""Synthetic DICOM radiographs, one option for each thing that readers disagree about."""

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

CR = "1.2.840.10008.5.1.4.1.1.1"


def corner_film(rows=24, columns=32, bits=12):
    """A ramp with a bright marker at the top left and a dimmer one at the top right: no symmetry leaves it alone."""
    film = np.add.outer(np.arange(rows) * 7, np.arange(columns) * 3) + 100
    film[:4, :5] = 2**bits - 10
    film[:3, -4:] = 2 ** (bits - 1)
    return film.astype(np.uint16 if bits > 8 else np.uint8)


def lut_item(entries, first=0, bits=12):
    """One item of a modality or VOI LUT sequence."""
    item = Dataset()
    item.add_new("LUTDescriptor", "SS" if first < 0 else "US", [len(entries), first, bits])
    item.LUTData = np.asarray(entries, "<u2").tobytes()
    item["LUTData"].VR = "OW"
    return item


def dataset(pixels, syntax=ExplicitVRLittleEndian, bits=12, **elements):
    """A CR dataset; an element given as None is removed."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = syntax
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = CR
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = generate_uid()
    ds.Modality = "CR"
    ds.Rows, ds.Columns = pixels.shape[-2:] if pixels.ndim < 4 else pixels.shape[1:3]
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated = pixels.dtype.itemsize * 8
    ds.BitsStored = min(bits, ds.BitsAllocated)
    ds.PixelRepresentation = int(pixels.dtype.kind == "i")
    for keyword, value in elements.items():
        if isinstance(value, Dataset):
            value = Sequence([value])
        if value is None:
            ds.pop(keyword, None)
        else:
            setattr(ds, keyword, value)
    if "HighBit" not in ds and "BitsStored" in ds:
        ds.HighBit = ds.BitsStored - 1
    if "PixelData" not in elements:
        ds.PixelData = pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()
        ds["PixelData"].VR = "OW"
    return ds


def save(path, pixels, compress=None, **options):
    """Write a film; `compress` is a transfer syntax for pydicom's own encoders. Returns the path."""
    ds = dataset(pixels, **options)
    if compress is not None:
        ds.compress(compress, generate_instance_uid=False)
    ds.save_as(path, enforce_file_format=True)
    return path
