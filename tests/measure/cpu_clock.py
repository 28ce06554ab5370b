"""Run `dit-sparse` with the process's own CPU time for a clock, on one thread.

    python tests/measure/cpu_clock.py eval --method pisa,draft --keep .125,.25 --count 4

For a machine that is shared: a second is one that a core worked for this process, whatever others
did meanwhile. On one thread it is what an idle machine would take; times of several threads cannot
be told this way.
"""

import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

if __name__ == "__main__":
    torch.set_num_threads(1)
    time.perf_counter = time.process_time

    from dit_sparse.cli import main

    main()
