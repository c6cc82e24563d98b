"""How busy others keep the machine. No torch here: it is asked before torch is imported."""

import os
import time


class Load:
    """How many processors other processes keep busy, since it was made: /proc/stat less this process's own time."""

    def __init__(self):
        self.start = self._read()

    @staticmethod
    def _read():
        try:
            with open("/proc/stat") as lines:
                fields = [int(f) for f in lines.readline().split()[1:9]]
        except (OSError, ValueError):
            return None
        times = os.times()
        tick = os.sysconf("SC_CLK_TCK")
        busy = (sum(fields) - fields[3] - fields[4]) / tick  # all but idle and waiting for disks
        return time.monotonic(), busy, times.user + times.system

    def others(self):
        """Processors' worth of work by others, 0.0 where unknown."""
        now = self._read()
        if not now or not self.start or now[0] - self.start[0] < 0.2:
            return 0.0
        wall, busy, own = (a - b for a, b in zip(now, self.start, strict=True))
        return max(0.0, (busy - own) / wall)
