"""Downloads from mirrors that fail, and archives that are damaged or unsafe."""

import gzip
import hashlib
import http.server
import io
import tarfile
import threading
import time

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
            return time.sleep(6)
        status, body, length = ANSWERS[name]
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET

    log_message = lambda *_: None  # noqa: E731


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.daemon_threads, running.block_on_close = True, False
        running.handle_error = lambda *_: None  # a client that leaves
        running.at = lambda name: f"http://127.0.0.1:{running.server_port}/{name}"
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def test_bad_mirrors_are_left_for_the_next_or_named_with_the_way_by_hand(
    server, tmp_path, monkeypatch
):
    monkeypatch.setattr(download, "TIMEOUT", 2)
    bad = {
        server.at("missing"): "HTTP Error 404",
        server.at("wrong"): f"200,000 bytes with md5 {hashlib.md5(bytes(200_000)).hexdigest()}, "
        f"not {MD5}",
        server.at("cut"): "1,000 bytes",
        server.at("silent"): "timed out",
        "http://127.0.0.1:9/a": "refused",
        "ghost://c": "unknown url type",
        "nonsense": "unknown url type",
    }
    fetch(tmp_path / "file", [*bad, server.at("good"), server.at("missing")], MD5)
    assert (tmp_path / "file").read_bytes() == BODY
    with pytest.raises(UserError) as error:
        fetch(tmp_path / "other", [*bad], MD5)
    _, *lines, by_hand = str(error.value).splitlines()
    for line, (mirror, reason) in zip(lines, bad.items(), strict=True):
        assert line.startswith(f"  {mirror}: ") and reason in line
    assert f"md5 {MD5}) and copy it to {tmp_path}/other" in by_hand
    with pytest.raises(UserError, match=r"data\.places is empty"):
        fetch(tmp_path / "other", [], MD5)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


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


DAMAGES = [
    lambda data: b"",
    lambda data: data[: len(data) // 2],
    lambda data: data[:1000] + bytes([data[1000] ^ 0xFF]) + data[1001:],
    lambda data: data[:-5] + bytes([data[-5] ^ 1]) + data[-4:],  # the checksum
    lambda data: b"<html>404</html>",
    lambda data: gzip.compress(b"text"),
]
OUTSIDE = [
    "../evil",
    "set/../../evil",
    special("set/link", tarfile.SYMTYPE, "/etc/passwd"),
    special("set/hard", tarfile.LNKTYPE, "../../evil"),
    special("set/device", tarfile.CHRTYPE),
]


@pytest.mark.parametrize(
    "member, damage",
    [*(("set/a", damage) for damage in DAMAGES), *((member, bytes) for member in OUTSIDE)],
)
def test_a_damaged_or_unsafe_archive_is_one_message_and_leaves_nothing(tmp_path, member, damage):
    inner = tmp_path / "inner"
    inner.mkdir()
    path = archive(inner / "set.tar.gz", [("set/good", BODY), (member, b"")])
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(
        UserError,
        match=r"set\.tar\.gz is damaged or unsafe .*Delete it to have it downloaded again",
    ):
        unpack(path, inner / "set")
    assert list(inner.iterdir()) == [path] and list(tmp_path.iterdir()) == [inner]
