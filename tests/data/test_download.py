"""Downloads from servers with every fault that servers have, and archives with every fault that archives have."""

import gzip
import hashlib
import http.server
import io
import resource
import signal
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from lcm.data import download
from lcm.data.download import fetch, unpack
from lcm.errors import UserError

BODY = np.random.default_rng(0).bytes(2_000_000)
MD5 = hashlib.md5(BODY).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.requests.append((self.path, self.headers.get("Range")))
        self.server.answers[self.path.strip("/")](self)

    def log_message(self, *_):
        pass

    def give(self, body, *, status=200, length=None, **headers):
        """Answer with `body`; a `length` other than the body's is a lie."""
        self.send_response(status)
        if length != "unknown":
            self.send_header("Content-Length", str(len(body) if length is None else length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def begin(self):
        """Where the client wants to start."""
        asked = self.headers.get("Range")
        return int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0

    def part(self, start, body, **lie):
        span = f"bytes {start}-{len(BODY) - 1}/{len(BODY)}"
        self.give(body, status=206, **{"Content_Range": span, "length": len(BODY) - start, **lie})


def good(handler):
    start = handler.begin()
    handler.part(start, BODY[start:]) if start else handler.give(BODY)


def no_range(handler):
    handler.give(BODY)


def breaks_off(handler):
    """Half a megabyte a connection."""
    start = handler.begin()
    if start:
        handler.part(start, BODY[start : start + 500_000])
    else:
        handler.give(BODY[:500_000], length=len(BODY))


def trickles(rate):
    """`rate` bytes a second, in steps of 20 ms."""

    def answer(handler):
        start = handler.begin()
        handler.part(start, b"") if start else handler.give(b"", length=len(BODY))
        for at in range(start, len(BODY), rate // 50):
            handler.wfile.write(BODY[at : at + rate // 50])
            time.sleep(0.02)

    return answer


ANSWERS = {
    "good": good,
    "no_range": no_range,
    "breaks_off": breaks_off,
    "slow": trickles(100_000),
    "slower": trickles(50_000),
    "missing": lambda handler: handler.send_error(404),
    "busy": lambda handler: handler.send_error(503),
    "wrong": lambda handler: handler.give(bytes(len(BODY))),
    "other_size": lambda handler: handler.give(BODY[:1000]),
    "web_page": lambda handler: handler.give(b"<html>Log in to this network</html>", Content_Type="text/html"),
    "endless": lambda handler: handler.give(BODY + b"more", length="unknown"),
    "chunked": lambda handler: handler.give(BODY, length="unknown"),
    "other_start": lambda handler: handler.part(5, BODY[5:]),
    "silent": lambda handler: time.sleep(3),
    "nothing": lambda handler: handler.give(b"", length=len(BODY)),
}


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.daemon_threads = True
        running.block_on_close = False
        running.handle_error = lambda *_: None  # a client that leaves is no fault
        running.answers, running.requests = dict(ANSWERS), []
        running.at = lambda *names: [f"http://127.0.0.1:{running.server_port}/{name}" for name in names]
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def get(target, places, **options):
    fetch(target, places, MD5, len(BODY), **{"timeout": 5, "patience": 0.2, **options})


@pytest.mark.parametrize("place", ["good", "no_range", "chunked"])
def test_a_file_arrives(server, tmp_path, place):
    get(tmp_path / "new" / "file", server.at(place))
    assert (tmp_path / "new" / "file").read_bytes() == BODY
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["file"]


def test_an_address_on_disk_is_a_place_too(tmp_path):
    (tmp_path / "mirror").write_bytes(BODY)
    get(tmp_path / "file", [(tmp_path / "mirror").as_uri()])
    assert (tmp_path / "file").read_bytes() == BODY


@pytest.mark.parametrize(
    ("place", "ranges"),
    [
        ("good", ["bytes=700000-"]),
        ("no_range", ["bytes=700000-"]),  # which the server ignores: from the beginning, in the same answer
        ("breaks_off", ["bytes=700000-", "bytes=1200000-", "bytes=1700000-"]),
    ],
)
def test_a_partial_file_is_resumed(server, tmp_path, place, ranges):
    (tmp_path / "file.part").write_bytes(BODY[:700_000])
    get(tmp_path / "file", server.at(place))
    assert (tmp_path / "file").read_bytes() == BODY
    assert [asked for _, asked in server.requests] == ranges


def test_a_broken_connection_is_taken_up_again(server, tmp_path):
    get(tmp_path / "file", server.at("breaks_off"))
    assert (tmp_path / "file").read_bytes() == BODY
    assert [asked for _, asked in server.requests] == [None, "bytes=500000-", "bytes=1000000-", "bytes=1500000-"]


def test_a_whole_but_damaged_partial_file_is_fetched_anew(server, tmp_path):
    (tmp_path / "file.part").write_bytes(bytes(len(BODY)))
    get(tmp_path / "file", server.at("good"))
    assert (tmp_path / "file").read_bytes() == BODY
    assert server.requests == [("/good", None)]


def test_a_partial_file_of_something_else_is_fetched_anew(server, tmp_path):
    (tmp_path / "file.part").write_bytes(b"something else")
    get(tmp_path / "file", server.at("good"))
    assert (tmp_path / "file").read_bytes() == BODY
    assert server.requests == [("/good", "bytes=14-"), ("/good", None)]


@pytest.mark.parametrize(
    ("place", "why"),
    [
        ("missing", "404 Not Found"),
        ("busy", "503 Service Unavailable"),
        ("wrong", f"a file with md5 {hashlib.md5(bytes(len(BODY))).hexdigest()} in place of {MD5}"),
        ("other_size", "another file of 1,000 bytes in place of 2,000,000"),
        ("web_page", "a web page of 35 bytes in place of 2,000,000"),
        ("endless", "more than 2,000,000 bytes"),
        ("other_start", "asked for the bytes from 0, answered with those from 5"),
        ("silent", "timed out"),
        ("nothing", "the connection was closed early"),
    ],
)
def test_a_bad_place_is_left_for_the_next(server, tmp_path, place, why):
    get(tmp_path / "file", server.at(place, "good"), timeout=0.5)
    assert (tmp_path / "file").read_bytes() == BODY
    with pytest.raises(UserError) as error:
        get(tmp_path / "other", server.at(place), timeout=0.5)
    assert f"  {server.at(place)[0]}: {why}" in str(error.value)
    assert not (tmp_path / "other").exists()


def test_the_message_names_every_place_and_the_way_by_hand(tmp_path):
    places = ["http://127.0.0.1:9/a", "http://no-such-host.invalid/b", "ghost://c", "nonsense"]
    with pytest.raises(UserError) as error:
        get(tmp_path / "data" / "file", places, timeout=2)
    message = str(error.value)
    for place, why in zip(places, ["refused", "", "unknown url type", "unknown url type"], strict=True):
        (line,) = [line for line in message.splitlines() if line.startswith(f"  {place}: ")]
        assert why in line and len(line) > len(place) + 10
    assert f"2,000,000 bytes, md5 {MD5}" in message and f"put it at {tmp_path}/data/file" in message
    assert list((tmp_path / "data").iterdir()) == []  # no empty leftovers
    with pytest.raises(UserError, match=r"data\.places is empty"):
        get(tmp_path / "file", [])


def test_what_arrived_before_a_failure_is_kept(server, tmp_path):
    server.answers["breaks_off"] = lambda handler: (
        handler.send_error(503) if handler.begin() else handler.give(BODY[:500_000], length=len(BODY))
    )
    with pytest.raises(UserError, match="503"):
        get(tmp_path / "file", server.at("breaks_off"))
    assert (tmp_path / "file.part").read_bytes() == BODY[:500_000]
    get(tmp_path / "file", server.at("good"))
    assert server.requests[-1] == ("/good", "bytes=500000-")


def test_a_slow_place_is_left_for_a_faster_which_goes_on(server, tmp_path):
    get(tmp_path / "file", server.at("slow", "good"), slow=1e6)
    assert (tmp_path / "file").read_bytes() == BODY
    (_, first), (path, second) = server.requests
    assert first is None and path == "/good" and int(second.removeprefix("bytes=").removesuffix("-")) > 10_000


def test_of_slow_places_the_fastest_goes_on(server, tmp_path):
    server.answers["slow"] = trickles(3_000_000)
    get(tmp_path / "file", server.at("slower", "slow", "missing"), slow=1e8)
    assert (tmp_path / "file").read_bytes() == BODY
    assert [path for path, _ in server.requests] == ["/slower", "/slow", "/missing", "/slow"]


def test_the_only_place_may_be_slow(server, tmp_path):
    server.answers["slow"] = trickles(3_000_000)
    get(tmp_path / "file", server.at("slow"), slow=1e8)
    assert (tmp_path / "file").read_bytes() == BODY


def test_two_processes_fetch_once(server, tmp_path, capfd):
    server.answers["slow"] = trickles(3_000_000)
    threads = [threading.Thread(target=get, args=(tmp_path / "file", server.at("slow"))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "file").read_bytes() == BODY and len(server.requests) == 1
    assert "another process is downloading it; waiting" in capfd.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_killed_download_is_resumed(server, tmp_path):
    server.answers["slow"] = trickles(1_000_000)
    arguments = [str(tmp_path / "file"), server.at("slow")[0], MD5, str(len(BODY))]
    code = (
        "import sys; from pathlib import Path; from lcm.data.download import fetch;"
        "fetch(Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]))"
    )
    process = subprocess.Popen([sys.executable, "-c", code, *arguments], stderr=subprocess.DEVNULL)
    part, deadline = tmp_path / "file.part", time.monotonic() + 60
    while not (part.exists() and part.stat().st_size > 200_000) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    have = part.stat().st_size
    assert 200_000 < have < len(BODY)
    get(tmp_path / "file", server.at("good"))
    assert (tmp_path / "file").read_bytes() == BODY
    assert server.requests[-1] == ("/good", f"bytes={have}-")


def test_progress_is_a_few_lines_where_there_is_no_terminal(server, tmp_path, capfd):
    get(tmp_path / "cifar", server.at("good"))
    lines = capfd.readouterr().err.splitlines()
    assert lines[0].startswith("cifar: 0 of 2 MB from 127.0.0.1") and lines[-1].startswith("cifar: 2 of 2 MB")
    assert 2 <= len(lines) <= 5


def test_progress_is_a_bar_on_a_terminal(server, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    get(tmp_path / "cifar", server.at("good"))
    shown = capfd.readouterr().err
    assert "100%" in shown and "2.00M/2.00M" in shown


def test_a_full_disk_is_one_message_and_keeps_what_is_there(server, tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, limits[1]))  # no file may grow beyond
    try:
        with pytest.raises(UserError, match=r"file\.part cannot be written .*\. Make room"):
            get(tmp_path / "file", server.at("good"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert BODY.startswith((tmp_path / "file.part").read_bytes())
    get(tmp_path / "file", server.at("good"))
    assert (tmp_path / "file").read_bytes() == BODY


def test_an_unwritable_folder_is_one_message(tmp_path):
    (tmp_path / "data").write_text("a file where a folder should be")
    with pytest.raises(UserError, match=r"cannot be written .*data\.root=FOLDER"):
        get(tmp_path / "data" / "file", [])


# ---------------------------------------------------------------------------------------------------------- archives


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
    unpack(archive(tmp_path / "set.tar.gz", members), tmp_path / "set")
    assert {path.name: path.read_bytes() for path in (tmp_path / "set").iterdir()} == {"a": b"first", "b": b"second"}
    assert {path.name for path in tmp_path.iterdir()} == {"set", "set.tar.gz"}


@pytest.mark.parametrize(
    "member",
    [
        "../evil",
        "set/../../evil",
        "set/..",
        "/tmp/evil",
        "other/file",
        "set/deep/file",
        special("set/link", tarfile.SYMTYPE, "/etc/passwd"),
        special("set/hard", tarfile.LNKTYPE, "../../evil"),
        special("set/pipe", tarfile.FIFOTYPE),
        special("set/device", tarfile.CHRTYPE),
    ],
    ids=lambda member: getattr(member, "name", member),
)
def test_members_outside_are_refused(tmp_path, member):
    inner = tmp_path / "inner"
    inner.mkdir()
    path = archive(inner / "set.tar.gz", [("set/good", b"good"), (member, b"")])
    with pytest.raises(UserError, match="which is no plain file in set/: refused"):
        unpack(path, inner / "set")
    assert list(inner.iterdir()) == [path] and list(tmp_path.iterdir()) == [inner] and not Path("/tmp/evil").exists()


def test_a_bomb_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "LARGEST", 1 << 20)
    path = archive(tmp_path / "set.tar.gz", [("set/a", bytes(600_000)), ("set/b", bytes(600_000))])
    with pytest.raises(UserError, match="unpacks to more than"):
        unpack(path, tmp_path / "set")
    assert list(tmp_path.iterdir()) == [path]


def damaged(kind, data):
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 0xFF
    return {
        "empty": b"",
        "truncated": data[: len(data) // 2],
        "flipped": bytes(flipped),
        "web page": b"<html>404</html>",
        "no tar": gzip.compress(b"text"),
    }[kind]


@pytest.mark.parametrize("kind", ["empty", "truncated", "flipped", "web page", "no tar"])
def test_a_damaged_archive_is_one_message_and_leaves_nothing(tmp_path, kind):
    path = archive(tmp_path / "set.tar.gz", [("set/a", BODY)])
    path.write_bytes(damaged(kind, path.read_bytes()))
    with pytest.raises(UserError, match=r"set\.tar\.gz is damaged: .*Delete it to have it downloaded again"):
        unpack(path, tmp_path / "set")
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_appeared_meanwhile_is_kept(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a").write_bytes(b"of another process")
    unpack(archive(tmp_path / "set.tar.gz", [("set/a", b"ours")]), tmp_path / "set")
    assert (tmp_path / "set" / "a").read_bytes() == b"of another process"
    assert {path.name for path in tmp_path.iterdir()} == {"set", "set.tar.gz"}
