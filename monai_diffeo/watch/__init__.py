"""Where films come from while a program waits for them, a folder or an archive, and which of them are done."""

from monai_diffeo.watch.archive import ArchiveError, Orthanc
from monai_diffeo.watch.folder import WatchedFolder
from monai_diffeo.watch.journal import Arrival, Journal

__all__ = ["ArchiveError", "Arrival", "Journal", "Orthanc", "WatchedFolder"]
