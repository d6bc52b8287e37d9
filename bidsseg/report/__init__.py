"""Pages and pictures for the inspection of results, inside the output; they work offline.

The pages of the levels evaluate and longitudinal are in their modules, which load scipy; other levels need not wait.
"""

from bidsseg.report.cohort_page import compare_pages, group_page, read_table
from bidsseg.report.lesion_cohort import read_lesions
from bidsseg.report.lesion_pictures import write_lesion_figure
from bidsseg.report.scan_page import participant_page, write_figures
from bidsseg.report.training_page import Compared, Pictures, training_page
from bidsseg.report.viewer import write_viewer

__all__ = [
    "participant_page",
    "write_figures",
    "write_lesion_figure",
    "write_viewer",
    "read_table",
    "read_lesions",
    "group_page",
    "compare_pages",
    "training_page",
    "Compared",
    "Pictures",
]
