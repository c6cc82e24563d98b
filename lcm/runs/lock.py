"""Who trains a run: a lock on its directory, which the kernel releases when its owner ends.

POSIX record locks: they work on shared folders and are not inherited by loader workers. A process
that closes any descriptor of a locked file loses its lock: nobody asks about its own directory.
"""

import contextlib
import fcntl
import os
import socket
import time
from pathlib import Path

from lcm.errors import OwnedElsewhere, UserError
from lcm.files import unwritable
from lcm.runs.directory import now

FILE = "owner.lock"


@contextlib.contextmanager
def owner(directory):
    """Own a run's directory while the block runs.

    Raises OwnedElsewhere, naming host, process and since when, where another live process owns it.
    """
    file = Path(directory) / FILE
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        # Opening must not empty the file: until the lock is held, the name in it is another's.
        stream = open(file, "a+b", buffering=0)  # noqa: SIM115  held as long as the lock
    except OSError as error:
        raise unwritable(directory, error) from error
    # Closed at the end of the block, which frees the lock.
    with stream:
        # Again and again: the owner may not have written its name yet, or somebody is just asking.
        for _ in range(4):
            locked = _lock(stream, fcntl.LOCK_EX)
            # After a rename (`set_aside` of another process) this is the lock of the old directory.
            if locked and file.exists() and os.path.samefile(stream.fileno(), file):
                break
            time.sleep(0.1)
        else:
            who = owner_of(directory) or "another process"
            raise OwnedElsewhere(
                f"{directory} is being trained by {who}: wait for it, or stop it there first"
            )
        me = f"process {os.getpid()} on {socket.gethostname()} since {now()}\n"
        try:
            stream.truncate(0)
            stream.write(me.encode())
        except OSError as error:
            raise unwritable(file, error) from error
        yield


def _lock(stream, kind):
    """Whether the lock was free, and is held now.

    UserError where the file system keeps no locks.
    """
    try:
        # POSIX lets a system answer EAGAIN or EACCES where another process holds the lock.
        fcntl.lockf(stream, kind | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:
        raise UserError(
            f"{stream.name} cannot be locked ({error.strerror}): two processes could "
            "train the same run; set runs= to a folder on a file system with locks"
        ) from error
    return True


def is_owned(directory):
    """Whether another live process owns the run's directory."""
    try:
        # Shared: two processes that ask at once do not take each other for the owner.
        with open(Path(directory) / FILE, "rb") as stream:
            return not _lock(stream, fcntl.LOCK_SH)
    except OSError:
        return False


def owner_of(directory):
    """What the lock file says of the owner: "process 17 on HOST since ..."; "" without one."""
    try:
        return (Path(directory) / FILE).read_text(errors="replace").strip()
    except OSError:
        return ""
