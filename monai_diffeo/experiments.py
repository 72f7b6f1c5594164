"""Moved."""

from monai_diffeo.renamed import RenamedError

raise RenamedError("import", "monai_diffeo.experiments", "docs/experiments, beside the pages they write")
