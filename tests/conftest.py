"""Settings of the whole test run."""

import os

import pytest
import torch

# without a GPU the Triton kernels run in Triton's interpreter; it must be chosen before the import
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# products do not depend on where their operands lie in memory: "bit for bit" can be asked for
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")

torch.set_num_threads(
    max(1, (os.cpu_count() or 2) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))
)


@pytest.fixture(autouse=True)
def seeded():
    """Every test draws the same numbers, alone or in company."""
    torch.manual_seed(0)


@pytest.fixture
def poison():
    """Unwritten memory reads as NaN."""
    from dit_sparse.testing import poisoned

    with poisoned():
        yield
