"""Run a script in two processes with the variables that torchrun sets.

Both are forks of one process, because the imports of a training take longer than a short training:
``python two_ranks.py MODULE,MODULE... SCRIPT WORD...``, with the modules to import first.
"""

import importlib
import os
import runpy
import sys

if __name__ == "__main__":
    for module in sys.argv[1].split(","):
        importlib.import_module(module)
    sys.argv = sys.argv[2:]
    children = []
    for rank in ("0", "1"):
        child = os.fork()
        if child == 0:
            os.environ |= {"RANK": rank, "LOCAL_RANK": rank}
            runpy.run_path(sys.argv[0], run_name="__main__")
            sys.exit()
        children.append(child)
    failed = [child for child in children if os.waitpid(child, 0)[1] != 0]
    sys.exit(len(failed))
