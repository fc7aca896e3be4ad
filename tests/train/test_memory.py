import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
from workbench.train.memory import keep_freed_memory
if "keep" in sys.argv and not keep_freed_memory():
    sys.exit("no glibc")

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def step():  # 64 MiB that are written, then freed
    b"x" * 2**26

step()
before = faults()
for _ in range(4):
    step()
print((faults() - before) * resource.getpagesize() / 2**28)  # share of what was written
"""


def faulted(*arguments):
    done = subprocess.run([sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True)
    if "no glibc" in done.stderr:
        pytest.skip("the C library is not glibc")
    return float(done.stdout)


def test_memory_that_a_step_freed_is_there_for_the_next():
    assert faulted("keep") < 0.01
