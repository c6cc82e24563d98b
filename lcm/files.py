"""Atomic writes, locks, and the messages for files that cannot be read or written."""

import contextlib
import errno
import fcntl
import os
import sys
from pathlib import Path

from lcm.errors import UserError

ROOT = Path(__file__).resolve().parents[1]  # of the checkout; of a wheel: site-packages


def write_atomically(file, data, keep=None):
    """Write bytes so that a reader, even after a kill, sees the old file or the new one, whole.

    For one writer at a time: the temporary name is always the same, so that kills leave no litter.
    With `keep`, another name in the same directory, the old file first gets that name; a kill
    between the two renames leaves the old file under that name alone. Raises UserError where the
    disk is full or the folder cannot be written; the old files are then intact.
    """
    file = Path(file)
    temporary = file.with_name(f".{file.name}.tmp")
    try:
        with open(temporary, "wb") as stream:
            stream.write(data)
            # On the disk before the rename: else a power cut may leave an empty file.
            stream.flush()
            os.fsync(stream.fileno())
        if keep is not None and file.exists():
            os.replace(file, keep)
        os.replace(temporary, file)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise unwritable(file, error) from error
    # Makes the renames survive a power cut, on file systems that can.
    with contextlib.suppress(OSError):
        descriptor = os.open(file.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def read_result(file):
    """The text of a file of the repository's results/. Raises UserError where it is missing."""
    try:
        return Path(file).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(
            f"{file} is missing, one of the files of {ROOT / 'results'}: copy it, or restore it "
            f"there with `git checkout results/{Path(file).name}`"
        ) from None


@contextlib.contextmanager
def file_lock(path, waiting_message):
    """Hold an exclusive lock on the file `path`; the system drops it when its holder dies.

    The file is made where it is missing. `waiting_message` goes to stderr where another process
    holds the lock. File systems without locks are used without.
    """
    # The file is never deleted: a process that waits would get the lock of the deleted one,
    # while the next locks a new one.
    with open(path, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(waiting_message, file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            pass
        yield


def unwritable(file, error):
    """The UserError for a file that could not be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(
            f"no space left while writing {file}: what was saved before is intact; make room and "
            "run the same command again"
        )
    return UserError(
        f"cannot write {file} ({error.strerror}): check the folder's owner and permissions, or "
        "choose another place"
    )


def unreadable(file, error):
    """The UserError for a file that is there and cannot be read."""
    return UserError(
        f"cannot read {file} ({error.strerror}): check the owner and permissions of the folder and "
        "the file"
    )


def write(file, content):
    """Write text (UTF-8, \\n line ends) or bytes atomically; an equal file stays."""
    file = Path(file)
    content = content.encode() if isinstance(content, str) else content
    try:
        if file.is_file() and file.read_bytes() == content:
            return
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(file, error) from error
    write_atomically(file, content)
