"""Message ids that are drawn many at once: no two alike, in threads and in forked processes either."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from mas_nats.wire.correlation import new_message_id

FORKED = """
import os, sys
from mas_nats.wire.correlation import new_message_id
new_message_id()  # more are drawn
reading, writing = os.pipe()
if os.fork() == 0:
    os.write(writing, new_message_id().encode())
    os._exit(0)
os.wait()
print(os.read(reading, 32).decode(), new_message_id())
"""


def test_each_is_128_bits_in_hexadecimal_and_new():
    found = [new_message_id() for _ in range(1_000)]
    assert all(re.fullmatch(r"[0-9a-f]{32}", each) for each in found)
    assert len(set(found)) == len(found)


def test_threads_share_none():
    with ThreadPoolExecutor(8) as threads:
        portions = list(threads.map(lambda _: [new_message_id() for _ in range(5_000)], range(8)))
    assert len({each for portion in portions for each in portion}) == 40_000


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork() here")
def test_a_forked_process_does_not_use_those_of_its_parent():
    done = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True, check=True)
    child, parent = done.stdout.split()
    assert len(child) == 32
    assert child != parent
