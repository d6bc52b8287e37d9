"""Run scripts, one after the other, each in two processes with the variables that torchrun sets.

All are forks of one process, because the imports of a training take longer than a short training:
``python two_ranks.py MODULE,MODULE... -- SCRIPT WORD... [-- SCRIPT WORD...]``, with the modules to import first.
"""

import importlib
import itertools
import multiprocessing
import os
import runpy
import socket
import sys


def run(words: list[str]) -> int:
    """Run a script with its words in two processes and return how many of them failed."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    fork = multiprocessing.get_context("fork")
    ranks = [fork.Process(target=run_as, args=(rank, words)) for rank in ("0", "1")]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    return sum(rank.exitcode != 0 for rank in ranks)


def run_as(rank: str, words: list[str]) -> None:
    """Run a script with its words in this process, as one of two."""
    os.environ |= {"RANK": rank, "LOCAL_RANK": rank}
    sys.argv = words
    runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    for module in sys.argv[1].split(","):
        importlib.import_module(module)
    parts = itertools.groupby(sys.argv[2:], "--".__ne__)
    sys.exit(sum(run(list(words)) for is_script, words in parts if is_script))
