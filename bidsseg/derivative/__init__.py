"""An output folder: the files of a scan, the results in it, its owner, and the tables of a cohort."""
