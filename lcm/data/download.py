"""Download an archive from the first mirror that delivers it, and unpack it."""

import gzip
import http.client
import os
import shutil
import socket
import tarfile
import tempfile
import zlib
from pathlib import Path

from lcm.errors import UserError, one_line

TIMEOUT = 30.0  # seconds without an answer after which the next mirror is tried


def fetch(target: Path, mirrors, md5: str) -> None:
    """Download the file `target` with this md5 sum from the first of `mirrors` that delivers it.

    `target` appears once it is complete and checked. The caller holds a lock. Raises `UserError`
    with each mirror and why it failed, and `OSError` where the folder cannot be written.
    """
    from torchvision.datasets.utils import calculate_md5, download_url  # takes a second

    part, failures = target.with_name(target.name + ".part"), []
    part.touch()  # raises where the folder cannot be written
    # download_url has no timeout of its own, and Python's default is to wait for ever.
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        for mirror in [mirrors] if isinstance(mirrors, str) else mirrors:
            print(f"downloading {mirror}", flush=True)
            try:
                # Where https fails it tries http: the bytes are trusted for their md5 alone.
                download_url(mirror, str(part.parent), part.name, md5)
            except (OSError, http.client.HTTPException, ValueError, RecursionError) as error:
                failures.append(f"{mirror}: {one_line(error)}")  # RecursionError: redirects
            except RuntimeError:  # the md5 differs
                size, found = part.stat().st_size, calculate_md5(part)
                failures.append(f"{mirror}: {size:,} bytes with md5 {found}, not {md5}")
            else:
                os.replace(part, target)
                return
    finally:
        socket.setdefaulttimeout(timeout)
        part.unlink(missing_ok=True)
    lines = "\n".join(f"  {line}" for line in failures) or "  data.places is empty"
    raise UserError(
        f"{target.name} could not be downloaded:\n{lines}\n"
        f"On a machine without internet, download the file elsewhere (md5 {md5}) and copy it to "
        f"{target}. data.root=FOLDER sets another folder, data.places=[ADDRESS] another mirror."
    )


def unpack(archive: Path, folder: Path) -> None:
    """Unpack the folder `folder.name` of a .tar.gz to `folder`, which appears once it is complete.

    Members and links that point outside of it, and devices, are refused (tarfile's filter "data").
    Raises `UserError`, and `OSError` where `folder` cannot be written.
    """
    # In the folder of the result, since a rename is atomic within one file system only. Hidden,
    # so that nobody takes it for a copy.
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        # tarfile stops at the archive's end and never reads gzip's checksum behind it. The
        # stream is opened here, so that it can be read further.
        with gzip.open(archive) as stream, tarfile.open(fileobj=stream, mode="r:") as members:
            members.extractall(draft, filter="data")
            while stream.read(1 << 20):
                pass
        os.rename(draft / folder.name, folder)
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(
            f"{archive} is damaged or unsafe ({one_line(error)}). Delete it to have it downloaded "
            "again."
        ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
