"""Execution: this machine, the pipeline of one process, several processes, and clusters."""
