"""How busy other programs keep the machine."""

import os
import time

STAT = "/proc/stat"


def work():
    """(moment, seconds of work on all processors, those of this process and its ended children); None where unknown."""
    try:
        with open(STAT) as lines:
            user, nice, system, _idle, _waiting, irq, softirq = map(
                int, lines.readline().split()[1:8]
            )
    except (OSError, ValueError):
        return None
    ticks = user + nice + system + irq + softirq
    return time.monotonic(), ticks / os.sysconf("SC_CLK_TCK"), sum(os.times()[:4])


def others(start, children=0.0):
    """Processors that other programs kept busy since `start`, a result of `work`, on average; 0.0 where unknown.

    Args:
        children: CPU seconds since then of child processes that still run.
    """
    now = work()
    if not now or not start or now[0] - start[0] < 0.2:
        return 0.0
    seconds, worked, own = (a - b for a, b in zip(now, start, strict=True))
    return max(0.0, (worked - own - children) / seconds)
