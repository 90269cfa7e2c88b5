"""`python -m llmjp_train.launch.detach SCRIPT [AFTER ...]`: run a job's script in the background, print its id.

For clusters without a scheduler. AFTER are ids of processes that have to end first.
"""

import os
import sys
import time

from llmjp_train.launch.schedulers import alive
from llmjp_train.runlog.machine import began


def main() -> int:
    """Entry point."""
    script, *after = sys.argv[1:]
    pid = os.fork()
    if pid:
        print(f"{pid}-{began(pid)}", flush=True)
        return 0
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    while any(alive(one) for one in after):
        time.sleep(1)
    os.execvp("bash", ["bash", script])


if __name__ == "__main__":
    sys.exit(main())
