"""Radiographs: reading films from DICOM, NIfTI and pictures, and writing masks in their native frame."""

from monai_diffeo.radiograph.datalist import FilmList, film_datalist
from monai_diffeo.radiograph.failsafe import FailSafeDataset, collate_one
from monai_diffeo.radiograph.film import Film
from monai_diffeo.radiograph.lungs import separate_lungs, split_lungs
from monai_diffeo.radiograph.manifest import read_manifest
from monai_diffeo.radiograph.mask_writer import MaskNames, figure_path, mask_path, mask_path_beside, mask_paths, write_mask
from monai_diffeo.radiograph.monai_reader import FilmReader, NamedFilm
from monai_diffeo.radiograph.outputs import recorded_outputs
from monai_diffeo.radiograph.packaged import packaged_film
from monai_diffeo.radiograph.reader import film_meta, list_films, read_film

__all__ = ["FailSafeDataset", "Film", "FilmList", "FilmReader", "MaskNames", "NamedFilm", "collate_one", "figure_path"]
__all__ += ["film_datalist", "film_meta", "list_films", "mask_path", "mask_path_beside", "mask_paths", "packaged_film"]
__all__ += ["read_film", "read_manifest", "recorded_outputs", "separate_lungs", "split_lungs", "write_mask"]
