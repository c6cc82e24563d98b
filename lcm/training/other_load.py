"""How busy others keep the machine. No torch here: it is asked before torch is imported."""

import os
import time

STAT = "/proc/stat"


class Load:
    """What the machine's processors did for others since this was made: /proc/stat less this process's own time.

    Own time includes that of child processes that have ended.
    """

    def __init__(self):
        self.start = self._read()

    @staticmethod
    def _read():
        """(moment, seconds of work on all processors, own seconds, seconds that a virtual machine's host withheld)."""
        try:
            with open(STAT) as lines:
                user, nice, system, _idle, _waiting, irq, softirq, steal = map(int, lines.readline().split()[1:9])
        except (OSError, ValueError):
            return None
        tick = os.sysconf("SC_CLK_TCK")
        return time.monotonic(), (user + nice + system + irq + softirq) / tick, sum(os.times()[:4]), steal / tick

    def _rates(self):
        now = self._read()
        if not now or not self.start or now[0] - self.start[0] < 0.2:
            return 0.0, 0.0
        wall, busy, own, withheld = (a - b for a, b in zip(now, self.start, strict=True))
        return max(0.0, (busy - own) / wall), withheld / wall

    def others(self):
        """Processors' worth of work by others on this machine, 0.0 where unknown."""
        return self._rates()[0]

    def withheld(self):
        """Processors' worth of time that the host of a virtual machine gave to others ("steal"), 0.0 where unknown."""
        return self._rates()[1]
