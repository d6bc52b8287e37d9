"""How scans are done: this machine, one process after the other, many processes, a cluster."""
