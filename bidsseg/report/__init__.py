"""Pages and pictures: what a person looks at to judge results. All of it lies in the output, and works offline."""

from bidsseg.report.cohort_page import group_page
from bidsseg.report.scan_page import participant_page, write_figures

__all__ = ["participant_page", "write_figures", "group_page"]
