from monai_diffeo.transforms._shim import LoadImageFilmd
