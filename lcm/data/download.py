"""Fetching a file that many hosts hold, and unpacking it: resumed, checked, renamed into place only when it is right."""

import contextlib
import gzip
import hashlib
import http.client
import os
import shutil
import sys
import tarfile
import time
import urllib.error
import urllib.parse
import urllib.request
import zlib
from pathlib import Path, PurePosixPath

from lcm.errors import UserError

try:
    import fcntl
except ImportError:  # Windows: two processes that download the same file at once are not kept apart
    fcntl = None

CHUNK = 1 << 18  # bytes
CONNECTIONS = 20  # to one place: a broken connection is taken up again as long as each brings something
LARGEST = 4 << 30  # bytes that an archive may unpack to


class _GivenUp(Exception):
    """A place that does not deliver; the text says why."""


class _TooSlow(_GivenUp):
    def __init__(self, rate: float):
        super().__init__(f"only {rate / 1e3:.0f} kB/s")
        self.rate = rate


def fetch(target: Path, places, md5: str, size: int, *, timeout=30.0, slow=300e3, patience=15.0) -> None:
    """Download the file `target` of `size` bytes with this md5 from the first of `places` (addresses) that delivers it.

    What arrives goes to `target`.part; a later call, or the next place, goes on from there. A place is left when it does
    not answer for `timeout` seconds, has another file, or has sent less than `slow` bytes a second for `patience` seconds
    while others are untried; when all were slow, the fastest goes on. Processes that fetch the same file wait for each
    other. Raises `UserError` with each place and why it failed.
    """
    queue = [places] if isinstance(places, str) else list(places)
    failures, too_slow = [], {}
    with _partial_file(target) as file:
        if file is None:  # another process was faster
            return
        while queue or too_slow:
            if queue:
                place = queue.pop(0)
                limit = (slow, patience) if queue or too_slow else None
            else:
                place, limit = max(too_slow, key=too_slow.get), None
                del too_slow[place]
            resumed = _length(file) > 0
            try:
                _receive(place, file, size, target.name, timeout, limit)
            except _GivenUp as reason:
                failures.append(f"{place}: {reason}")
                if isinstance(reason, _TooSlow):
                    too_slow[place] = reason.rate
                continue
            found = md5_of(Path(file.name))
            if found == md5:
                _finish(file, target)
                return
            file.truncate(0)
            if resumed:  # the part that was there before may be at fault
                queue.insert(0, place)
            else:
                failures.append(f"{place}: a file with md5 {found} in place of {md5}")
    lines = "\n".join(f"  {line}" for line in failures) or "  data.places is empty"
    raise UserError(
        f"{target.name} could not be downloaded:\n{lines}\n"
        f"Run again to go on from what has arrived, or get the file ({size:,} bytes, md5 {md5}) by other means and put it "
        f"at {target}. data.root=FOLDER names another folder, data.places=[ADDRESS] another address."
    )


def md5_of(path: Path) -> str:
    """The md5 sum of a file, in hexadecimal."""
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _length(file) -> int:
    return os.fstat(file.fileno()).st_size


@contextlib.contextmanager
def _partial_file(target: Path):
    """`target`.part, open to append and ours alone; None where `target` has appeared meanwhile."""
    path = target.with_name(target.name + ".part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        while True:
            file = open(path, "a+b")  # noqa: SIM115  handed to the caller
            _lock(file, target.name)
            if target.is_file() or (_is(path, file)):
                break
            file.close()  # renamed or removed while we waited
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror}). Give a folder that you may write: data.root=FOLDER."
        ) from error
    with file:
        yield None if target.is_file() else file
        if not file.closed and _length(file) == 0:
            path.unlink(missing_ok=True)


def _is(path: Path, file) -> bool:
    """Whether `path` still names the open `file`."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _lock(file, name: str) -> None:
    """Wait until no other process holds `file`; the lock ends when it is closed, or with the process."""
    if fcntl is None:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f"{name}: another process is downloading it; waiting", file=sys.stderr, flush=True)
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError:  # a file system without locks
        pass


def _finish(file, target: Path) -> None:
    os.fsync(file.fileno())
    if fcntl is None:
        file.close()  # Windows renames no open file
    os.replace(file.name, target)


def _receive(place: str, file, size: int, name: str, timeout: float, limit) -> None:
    """Append to `file` until it has `size` bytes. limit: (bytes a second, seconds) below which `_TooSlow` is raised."""
    if _length(file) > size:
        file.truncate(0)
    with _Progress(name, size, urllib.parse.urlsplit(place).netloc or place) as progress:
        for _ in range(CONNECTIONS):
            have = _length(file)
            if have == size:
                return
            try:
                with _open(place, have, timeout) as response:
                    if _start(response, have, size) == 0:
                        file.truncate(0)
                    _copy(response, file, size, progress, limit)
                reason = "the connection was closed early"
            except urllib.error.HTTPError as error:
                raise _GivenUp(f"{error.code} {error.reason}") from error
            except (OSError, http.client.HTTPException, ValueError) as error:
                reason = str(getattr(error, "reason", error)) or type(error).__name__
                if limit is not None and isinstance(error, TimeoutError):
                    raise _GivenUp(reason) from error
            if _length(file) <= have:
                raise _GivenUp(reason)
        raise _GivenUp(f"the connection broke {CONNECTIONS} times")


def _open(place: str, have: int, timeout: float):
    request = urllib.request.Request(place, headers={"User-Agent": "lcm", "Accept-Encoding": "identity"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    return urllib.request.urlopen(request, timeout=timeout)


def _start(response, have: int, size: int) -> int:
    """The place in the file at which this answer begins: `have`, or 0 where the server cannot resume."""
    headers = response.headers
    start, total = 0, headers.get("Content-Length")
    if response.status == 206:
        # Content-Range: bytes 500-999/1000
        span, _, total = headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
        start = int(span.partition("-")[0])
        if start != have:
            raise _GivenUp(f"asked for the bytes from {have}, answered with those from {start}")
    if total and total != "*" and int(total) != size:
        kind = "a web page" if headers.get_content_type() == "text/html" else "another file"
        raise _GivenUp(f"{kind} of {int(total):,} bytes in place of {size:,}")
    return start


def _copy(response, file, size: int, progress, limit) -> None:
    began, mark = time.monotonic(), _length(file)
    have = mark
    while have < size:
        block = response.read1(CHUNK)
        if not block:
            return
        have += len(block)
        if have > size:
            file.truncate(0)
            raise _GivenUp(f"more than {size:,} bytes")
        try:
            file.write(block)
            file.flush()
        except OSError as error:
            raise UserError(
                f"{file.name} cannot be written ({error.strerror}). Make room, or give another folder: data.root=FOLDER."
            ) from error
        progress.show(have)
        if limit is not None and (elapsed := time.monotonic() - began) > limit[1]:
            rate = (have - mark) / elapsed
            if rate < limit[0]:
                raise _TooSlow(rate)
            began, mark = time.monotonic(), have


class _Progress:
    """A bar on a terminal, a line a quarter elsewhere."""

    def __init__(self, name: str, size: int, host: str):
        self.name, self.size, self.host = name, size, host
        self.quarter, self.bar = -1, None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.bar is not None:
            self.bar.close()

    def show(self, have: int) -> None:
        """`have` bytes are here."""
        if sys.stderr.isatty():
            if self.bar is None:
                from tqdm import tqdm

                description = f"{self.name} from {self.host}"
                self.bar = tqdm(total=self.size, initial=have, unit="B", unit_scale=True, desc=description)
            self.bar.update(have - self.bar.n)
        elif (quarter := 4 * have // self.size) != self.quarter:
            self.quarter = quarter
            part = f"{have / 1e6:.0f} of {self.size / 1e6:.0f} MB"
            print(f"{self.name}: {part} from {self.host}", file=sys.stderr, flush=True)


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a .tar.gz whose files all lie directly in one folder, named as `folder` is; `folder` appears when all is there.

    Links, devices and anything that would lie elsewhere are refused before a byte of them is written. Raises `UserError`.
    """
    half = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        half.mkdir(parents=True)
        with gzip.open(archive) as stream, tarfile.open(fileobj=stream, mode="r:") as members:
            total = 0
            for member in members:
                if member.isdir() and PurePosixPath(member.name).parts == (folder.name,):
                    continue
                path = PurePosixPath(member.name)
                if not member.isfile() or path.parts[:-1] != (folder.name,) or path.name == "..":
                    raise UserError(
                        f"{archive} holds {member.name!r}, which is no plain file in {folder.name}/: refused. "
                        "Do not use this copy: get the official archive."
                    )
                total += member.size
                if total > LARGEST:
                    raise UserError(
                        f"{archive} unpacks to more than {LARGEST >> 30} GiB: refused. Get the official archive."
                    )
                with members.extractfile(member) as source, open(half / path.name, "wb") as copy:
                    shutil.copyfileobj(source, copy, 1 << 20)
            while stream.read(1 << 20):  # to its end, where the checksum lies
                pass
        try:
            half.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was faster
                raise
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        if getattr(error, "errno", None) is not None:
            raise UserError(
                f"{archive} cannot be unpacked to {folder} ({error.strerror}). Make room or give a folder you may write: "
                "data.root=FOLDER."
            ) from error
        raise UserError(
            f"{archive} is damaged: it cannot be unpacked to its end ({error}). Delete it to have it downloaded again."
        ) from error
    finally:
        shutil.rmtree(half, ignore_errors=True)
