"""Downloads from mirrors that fail, and archives that are damaged or unsafe."""

import gzip
import hashlib
import http.server
import io
import tarfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from lcm.data import download
from lcm.data.download import fetch, unpack
from lcm.errors import UserError

BODY = np.random.default_rng(0).bytes(200_000)
MD5 = hashlib.md5(BODY).hexdigest()
ANSWERS = {  # path: (status, body, content length)
    "good": (200, BODY, len(BODY)),
    "missing": (404, b"", 0),
    "wrong": (200, bytes(len(BODY)), len(BODY)),
    "cut": (200, BODY[:1000], len(BODY)),
    "silent": None,
}


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        name = self.path.strip("/")
        if ANSWERS[name] is None:
            return time.sleep(2)
        status, body, length = ANSWERS[name]
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.daemon_threads, running.block_on_close = True, False
        running.handle_error = lambda *_: None  # a client that leaves
        running.at = lambda *names: [
            f"http://127.0.0.1:{running.server_port}/{name}" for name in names
        ]
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("mirror", "why"),
    [
        ("missing", "HTTP Error 404"),
        ("wrong", f"200,000 bytes with md5 {hashlib.md5(bytes(len(BODY))).hexdigest()}, not {MD5}"),
        ("cut", "1,000 bytes"),
        ("silent", "timed out"),
    ],
)
def test_a_bad_mirror_is_left_for_the_next(server, tmp_path, monkeypatch, mirror, why):
    monkeypatch.setattr(download, "TIMEOUT", 0.5)
    fetch(tmp_path / "file", server.at(mirror, "good", "missing"), MD5)
    assert (tmp_path / "file").read_bytes() == BODY
    with pytest.raises(UserError) as error:
        fetch(tmp_path / "other", server.at(mirror), MD5)
    (line,) = [
        line
        for line in str(error.value).splitlines()
        if line.startswith(f"  {server.at(mirror)[0]}: ")
    ]
    assert why in line and [path.name for path in tmp_path.iterdir()] == ["file"]


def test_offline_the_message_names_each_mirror_and_the_way_by_hand(tmp_path):
    mirrors = ["http://127.0.0.1:9/a", "http://no-such-host.invalid/b", "ghost://c", "nonsense"]
    with pytest.raises(UserError) as error:
        fetch(tmp_path / "file", mirrors, MD5)
    why = ["refused", "", "unknown url type", "unknown url type"]
    lines = str(error.value).splitlines()[1:5]
    for line, mirror, reason in zip(lines, mirrors, why, strict=True):
        assert line.startswith(f"  {mirror}: ") and reason in line
    assert f"md5 {MD5}" in str(error.value) and f"copy it to {tmp_path}/file" in str(error.value)
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match=r"data\.places is empty"):
        fetch(tmp_path / "file", [], MD5)


def archive(path, members):
    """A .tar.gz with (name or TarInfo, bytes) members."""
    with tarfile.open(path, "w:gz") as tar:
        for name, data in members:
            member = tarfile.TarInfo(name) if isinstance(name, str) else name
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def special(name, kind, target=""):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


def test_an_archive_is_unpacked_whole(tmp_path):
    members = [(special("set", tarfile.DIRTYPE), b""), ("set/a", b"first"), ("set/b", b"second")]
    members[0][0].mode = 0o755
    unpack(archive(tmp_path / "set.tar.gz", members), tmp_path / "set")
    assert {path.name: path.read_bytes() for path in (tmp_path / "set").iterdir()} == {
        "a": b"first",
        "b": b"second",
    }
    assert {path.name for path in tmp_path.iterdir()} == {"set", "set.tar.gz"}


@pytest.mark.parametrize(
    "member",
    [
        "../evil",
        "set/../../evil",
        special("set/link", tarfile.SYMTYPE, "/etc/passwd"),
        special("set/hard", tarfile.LNKTYPE, "../../evil"),
        special("set/device", tarfile.CHRTYPE),
    ],
    ids=lambda member: getattr(member, "name", member),
)
def test_members_outside_are_refused(tmp_path, member):
    inner = tmp_path / "inner"
    inner.mkdir()
    path = archive(inner / "set.tar.gz", [("set/good", b"good"), (member, b"")])
    with pytest.raises(UserError, match="is damaged or unsafe"):
        unpack(path, inner / "set")
    assert (
        list(inner.iterdir()) == [path]
        and list(tmp_path.iterdir()) == [inner]
        and not Path("/tmp/evil").exists()
    )


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[: len(data) // 2],
        lambda data: data[:1000] + bytes([data[1000] ^ 0xFF]) + data[1001:],
        lambda data: data[:-5] + bytes([data[-5] ^ 1]) + data[-4:],  # the checksum
        lambda data: b"<html>404</html>",
        lambda data: gzip.compress(b"text"),
    ],
)
def test_a_damaged_archive_is_one_message_and_leaves_nothing(tmp_path, damage):
    path = archive(tmp_path / "set.tar.gz", [("set/a", BODY)])
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(
        UserError, match=r"set\.tar\.gz is damaged .*Delete it to have it downloaded again"
    ):
        unpack(path, tmp_path / "set")
    assert list(tmp_path.iterdir()) == [path]
