"""How fast, and with how much memory: one kernel, one whole method, one denoising step.

    results.py                 what a run is: shapes, rows, the machine, the two limits
    machine.py check.py        the clock, the facts of the machine; what may be timed at all
    baselines.py lists.py      attention of others; random lists, and what a call holds beside them
    kernel.py method.py        what is measured: kept blocks alone; selection and all
    memory.py                  the bytes that a method holds beyond its inputs
    lm.py lm_dense.py          language models: a causal prefill, a decoding step, and their dense
    architectures.py step.py   a forward of a real architecture, random weights
    table.py plot.py           what people read

Every figure of a run has its baselines and limits in the same run, and nothing is timed whose
output is wrong. Files above never import files below.
"""
