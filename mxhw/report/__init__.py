"""``report.html``: a build on one self-contained page.

``python -m mxhw.report FOLDER`` writes the page of a build folder again.
"""

from mxhw.report.gather import Facts, gather, read_folder
from mxhw.report.page import PAGE_FILE, render

__all__ = ["PAGE_FILE", "Facts", "gather", "read_folder", "render"]
