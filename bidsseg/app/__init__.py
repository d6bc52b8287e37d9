"""The command line: words become settings, errors become exit codes."""
