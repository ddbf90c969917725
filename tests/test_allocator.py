import os
import subprocess
import sys

import pytest

from fewstep.allocator import ITS_OWN

PROGRAM = """
import resource, sys, torch
from fewstep.allocator import keep_freed_memory
torch.set_num_threads(1)
told = keep_freed_memory(sys.argv[1] == "keep")

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [torch.ones(2**20) for _ in range(50)]  # 200 MiB, page by page
    del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

for _ in range(3):
    faults()
print(told, faults())
"""


def run(way, **variables):
    environment = {name: value for name, value in os.environ.items() if name not in ITS_OWN} | variables
    found = subprocess.run([sys.executable, "-c", PROGRAM, way], capture_output=True, text=True, check=True, env=environment)
    told, faults = found.stdout.split()
    return told == "True", int(faults)


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
def test_what_is_freed_is_not_mapped_anew():
    (told, usual), (told_too, kept) = run("usual"), run("keep")
    assert told
    assert told_too
    assert usual > 10_000  # of 51,200 pages of 4 KiB
    assert kept < usual / 5


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
def test_what_the_user_has_set_is_left():
    assert run("keep", MALLOC_TRIM_THRESHOLD_="131072")[0] is False
