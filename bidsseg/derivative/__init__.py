"""An output folder: what is written for a scan, what lies there, whose it is, and the tables of a cohort."""
