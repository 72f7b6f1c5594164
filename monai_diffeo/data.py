"""Moved."""

from monai_diffeo.renamed import RenamedError

raise RenamedError("import", "monai_diffeo.data", "monai_diffeo.radiograph, or monai_diffeo.augmentation")
