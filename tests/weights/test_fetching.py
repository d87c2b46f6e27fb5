"""Fetching from a server on loopback: whole, resumed, refused, cut off, and not what was promised."""

from __future__ import annotations

import hashlib
import http.server
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from runtime.errors import InputError
from weights.catalogue import CATALOGUE, Entry, fetched_path
from weights.fetching import entry_named, fetch

CONTENT = bytes(range(256)) * 40_000


class Server(http.server.ThreadingHTTPServer):
    """Serves CONTENT as /weights.ckpt and remembers what was asked for."""

    content = CONTENT
    etag = '"one"'
    ranges = True
    # Bytes after which a connection is closed; the first entry is the first answer's.
    cuts: list[int]
    asked: list[tuple[str | None, str | None]]


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted, condition = self.headers.get("Range"), self.headers.get("If-Range")
        self.server.asked.append((wanted, condition))
        if self.path == "/page":
            self.answer(200, b"<!DOCTYPE html><html>sign in</html>")
        elif self.path != "/weights.ckpt":
            self.send_error(404)
        elif wanted and self.server.ranges and condition in (None, self.server.etag):
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(self.server.content):
                self.send_error(416)
            else:
                self.answer(206, self.server.content[start:])
        else:
            self.answer(200, self.server.content)

    def answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", self.server.etag)
        self.end_headers()
        cut = self.server.cuts.pop(0) if self.server.cuts else len(body)
        self.wfile.write(body[:cut])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server(("127.0.0.1", 0), Handler)
    server.cuts, server.asked = [], []
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def entry(server: Server, path: str = "weights.ckpt", **changes: object) -> Entry:
    source = f"http://127.0.0.1:{server.server_address[1]}/{path}"
    known = next(iter(CATALOGUE.values()))
    return replace(known, name="some_model", source=source, **changes)


SHA256 = hashlib.sha256(CONTENT).hexdigest()


def test_a_file_is_fetched_once_and_checked(server: Server, tmp_path: Path) -> None:
    wanted = entry(server, sha256=SHA256, size=len(CONTENT))
    out = tmp_path / "new" / "a.ckpt"
    assert fetch(wanted, out) == out
    assert out.read_bytes() == CONTENT
    assert [path.name for path in out.parent.iterdir()] == ["a.ckpt"]
    assert fetch(wanted, out) == out
    assert len(server.asked) == 1


def test_download_goes_into_the_cache_by_default(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    wanted = entry(server)
    assert fetch(wanted) == fetched_path(wanted) == tmp_path / "facecoresetnet/weights/some_model.ckpt"


def test_broken_connection_is_resumed(server: Server, tmp_path: Path) -> None:
    server.cuts = [3_000_000, 1_000_000]
    out = tmp_path / "a.ckpt"
    fetch(entry(server, sha256=SHA256), out, pause=0)
    assert out.read_bytes() == CONTENT
    assert server.asked == [
        (None, None),
        ("bytes=3000000-", '"one"'),
        ("bytes=4000000-", '"one"'),
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["a.ckpt"]


def test_next_run_resumes_the_download(server: Server, tmp_path: Path) -> None:
    server.cuts = [100_000] * 4
    out = tmp_path / "a.ckpt"
    with pytest.raises(InputError, match=r"broke 4 times .*400,000 bytes are kept"):
        fetch(entry(server), out, pause=0)
    assert not out.exists()
    fetch(entry(server), out, pause=0)
    assert out.read_bytes() == CONTENT
    assert server.asked[-1][0] == "bytes=400000-"


@pytest.mark.parametrize("ranges", [True, False])
def test_changed_file_is_downloaded_from_the_start(ranges: bool, server: Server, tmp_path: Path) -> None:
    server.cuts = [5_000_000] * 4
    server.content = b"\1" * len(CONTENT)
    server.ranges = False
    out = tmp_path / "a.ckpt"
    with pytest.raises(InputError, match="broke 4 times"):
        fetch(entry(server), out, pause=0)
    server.content, server.etag, server.ranges = CONTENT, '"two"', ranges
    fetch(entry(server), out, pause=0)
    assert out.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sha256": "0" * 64}, f"has the SHA-256 {SHA256}, .*0000"),
        ({"size": 7}, "has 10,240,000 bytes, .* 7"),
    ],
)
def test_file_that_differs_from_the_catalogue_is_not_kept(
    changes: dict[str, object], message: str, server: Server, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        fetch(entry(server, **changes), tmp_path / "a.ckpt", pause=0)
    assert list(tmp_path.iterdir()) == []


def test_a_page_instead_of_weights_is_recognised(server: Server, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"this is a web page, not weights.*https://"):
        fetch(entry(server, "page"), tmp_path / "a.ckpt")
    assert list(tmp_path.iterdir()) == []


def test_missing_file_is_reported_with_its_page(server: Server, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"404 .*https://"):
        fetch(entry(server, "nothing.ckpt"), tmp_path / "a.ckpt")
    assert len(server.asked) == 1


def test_unreachable_server_is_reported(tmp_path: Path) -> None:
    known = next(iter(CATALOGUE.values()))
    nowhere = replace(known, source="http://127.0.0.1:9/weights.ckpt")
    with pytest.raises(InputError, match=r"broke 4 times .*0 bytes are kept"):
        fetch(nowhere, tmp_path / "a.ckpt", pause=0)


def test_partial_download_longer_than_the_file_is_removed(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.ckpt.part").write_bytes(CONTENT + b"more")
    with pytest.raises(InputError, match="partial download"):
        fetch(entry(server), tmp_path / "a.ckpt", pause=0)
    assert fetch(entry(server), tmp_path / "a.ckpt", pause=0).read_bytes() == CONTENT


def test_names_that_are_not_in_the_catalogue_are_listed() -> None:
    with pytest.raises(InputError, match=r"'nothing' is not in the catalogue.*adaface_ir_50_ms1mv2"):
        entry_named("nothing")
