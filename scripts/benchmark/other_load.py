"""How busy other programs keep the machine."""

import os
import time

STAT = "/proc/stat"


class Load:
    """What the machine's processors did for other programs since this was made: /proc/stat less this process's own time.

    Own time includes that of child processes that have ended.
    """

    def __init__(self):
        self.start = self._read()

    @staticmethod
    def _read():
        """(moment, seconds of work on all processors, own seconds)."""
        try:
            with open(STAT) as lines:
                user, nice, system, _idle, _waiting, irq, softirq = map(int, lines.readline().split()[1:8])
        except (OSError, ValueError):
            return None
        work = (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")
        return time.monotonic(), work, sum(os.times()[:4])

    def others(self, children=0.0):
        """Processors that other programs kept busy, on average; 0.0 where unknown.

        Args:
            children: CPU seconds since then of child processes that still run.
        """
        now = self._read()
        if not now or not self.start or now[0] - self.start[0] < 0.2:
            return 0.0
        seconds, work, own = (a - b for a, b in zip(now, self.start, strict=True))
        return max(0.0, (work - own - children) / seconds)
