"""steermoe.data.openslr: resume, checksums, broken and hostile archives, against a server on this machine."""

from __future__ import annotations

import hashlib
import http.server
import io
import random
import re
import tarfile
import threading
import time
import zipfile

import pytest

from steermoe.data import openslr
from steermoe.errors import UserError


def tar_bytes(files: dict[str, bytes], mode: str = "w:gz", link: str | None = None) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        if link:
            member = tarfile.TarInfo("LibriSpeech/link")
            member.type, member.linkname = tarfile.SYMTYPE, link
            tar.addfile(member)
    return stream.getvalue()


class Server:
    """Serves `files`; notes every request; `drop` ends that many answers in the middle; `ranges` False ignores Range."""

    def __init__(self):
        self.files: dict[str, bytes] = {}
        self.requests: list[tuple[str, str, str | None]] = []
        self.drop, self.ranges = 0, True
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_HEAD(self):
                self.answer(False)

            def do_GET(self):
                self.answer(True)

            def answer(self, body: bool):
                outer.requests.append((self.command, self.path, self.headers.get("Range")))
                content, status = outer.files.get(self.path), 200
                if content is None:
                    return self.send_error(404)
                asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
                if asked and outer.ranges:
                    content, status = content[int(asked[1]) :], 206
                    if not content:
                        return self.send_error(416)
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if body and outer.drop:
                    outer.drop -= 1
                    content = content[: len(content) // 2]
                if body:
                    self.wfile.write(content)

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/resources"

    def put(self, file: str, content: bytes, makes: str) -> openslr.Archive:
        self.files[f"/resources/{file}"] = content
        return openslr.Archive(file, hashlib.md5(content).hexdigest(), makes)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(openslr, "WAIT_S", 0.01)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Server()
    yield server
    server.server.shutdown()
    server.server.server_close()


NOISE = random.Random(1).randbytes(300_000)
FILES = {"LibriSpeech/SPEAKERS.TXT": b"; who", "LibriSpeech/dev-clean/1/2/1-2.trans.txt": b"1-2-0000 A\n"}
FILES["LibriSpeech/dev-clean/1/2/1-2-0000.flac"] = NOISE


def test_fetches_checks_unpacks_and_does_nothing_again(server, tmp_path, capsys):
    archives = [
        server.put("12/dev-clean.tar.gz", tar_bytes(FILES), "LibriSpeech/dev-clean"),
        server.put("12/test-clean.tar.gz", tar_bytes({"LibriSpeech/test-clean/3/4/a": b"x"}), "LibriSpeech/test-clean"),
    ]
    openslr.fetch(archives, tmp_path, "a folder", server.url)
    assert (tmp_path / "LibriSpeech/dev-clean/1/2/1-2-0000.flac").read_bytes() == NOISE
    assert (tmp_path / "LibriSpeech/SPEAKERS.TXT").exists() and (tmp_path / "LibriSpeech/test-clean/3/4/a").exists()
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"LibriSpeech", "dev-clean.tar.gz", "test-clean.tar.gz"}
    server.requests.clear()
    openslr.fetch(archives, tmp_path, "a folder", server.url)
    assert not server.requests and capsys.readouterr().err.count("up to date") == 2


@pytest.mark.parametrize("ranges", [True, False])
def test_half_downloads_go_on(server, tmp_path, ranges):
    content = tar_bytes(FILES)
    archive = server.put("12/dev-clean.tar.gz", content, "LibriSpeech/dev-clean")
    (tmp_path / "dev-clean.tar.gz.part").write_bytes(content[:100_000])
    server.drop, server.ranges = 2 if ranges else 0, ranges
    openslr.fetch([archive], tmp_path, "a folder", server.url)
    asked = [what for method, _, what in server.requests if method == "GET"]
    assert asked[0] == "bytes=100000-" and len(asked) == (3 if ranges else 1)
    if ranges:
        assert int(asked[1][6:-1]) > 100_000 and int(asked[2][6:-1]) > int(asked[1][6:-1])
    assert (tmp_path / "LibriSpeech/dev-clean/1/2/1-2-0000.flac").read_bytes() == NOISE


def test_a_half_of_something_else_is_fetched_again_from_the_start(server, tmp_path):
    archive = server.put("12/dev-clean.tar.gz", tar_bytes(FILES), "LibriSpeech/dev-clean")
    (tmp_path / "dev-clean.tar.gz.part").write_bytes(b"not found" * 1000)
    openslr.fetch([archive], tmp_path, "a folder", server.url)
    assert (tmp_path / "LibriSpeech/dev-clean").is_dir()
    (tmp_path / "longer").mkdir()
    (tmp_path / "longer/dev-clean.tar.gz.part").write_bytes(b"x" * 400_000)  # longer than the archive: the server answers 416
    openslr.fetch([archive], tmp_path / "longer", "a folder", server.url)
    assert (tmp_path / "longer/LibriSpeech/dev-clean").is_dir()


@pytest.mark.parametrize("kind", ["tar.gz", "zip"])
def test_checking_and_unpacking_a_large_archive_show_how_far_they_are(tmp_path, kind, monkeypatch, capsys):
    files = {f"a/{number}": random.Random(number).randbytes(3 << 20) for number in range(2)}
    path = tmp_path / f"x.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
    else:
        path.write_bytes(tar_bytes(files))
    unpack = openslr.unpack_zip if kind == "zip" else openslr.unpack_tar
    unpack(path, tmp_path / "small")
    assert openslr._md5(path) == hashlib.md5(path.read_bytes()).hexdigest() and capsys.readouterr().err == ""
    monkeypatch.setattr(openslr, "LARGE", 1 << 20)
    unpack(path, tmp_path / "large")
    openslr._md5(path)
    err = capsys.readouterr().err
    assert re.search(rf"unpack x.{kind}: [1-6]/6 MiB .* left", err) and f"check x.{kind}: 6/6 MiB (100 %)" in err
    assert (tmp_path / "large/a/1").read_bytes() == files["a/1"]


def test_a_killed_unpacking_is_done_again(server, tmp_path):
    archive = server.put("12/dev-clean.tar.gz", tar_bytes(FILES), "LibriSpeech/dev-clean")
    (tmp_path / "dev-clean.tar.gz").write_bytes(server.files["/resources/12/dev-clean.tar.gz"])
    half = tmp_path / ".unpack.dev-clean.tar.gz/LibriSpeech/dev-clean/1/2"
    half.mkdir(parents=True)
    (half / "left over").touch()
    openslr.fetch([archive], tmp_path, "a folder", server.url)
    assert not server.requests and not (tmp_path / "LibriSpeech/dev-clean/1/2/left over").exists()


def test_wrong_archives_are_refused(server, tmp_path):
    archive = server.put("12/dev-clean.tar.gz", tar_bytes(FILES), "LibriSpeech/dev-clean")._replace(md5="0" * 32)
    with pytest.raises(UserError, match=f"12/dev-clean.tar.gz: MD5 .*, wanted {'0' * 32}: not the published archive"):
        openslr.fetch([archive], tmp_path, "a folder", server.url)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "dev-clean.tar.gz").write_bytes(b"my own")
    with pytest.raises(UserError, match="dev-clean.tar.gz: its MD5 is not"):
        openslr.fetch([archive], tmp_path, "a folder", server.url)
    assert (tmp_path / "dev-clean.tar.gz").read_bytes() == b"my own"


@pytest.mark.parametrize(
    "content, message",
    [
        (tar_bytes({"LibriSpeech/test-clean/a": b""}), "has no LibriSpeech/dev-clean in it"),
        (tar_bytes({"../../outside": b"x"}), "outside its folder"),
        (tar_bytes(FILES, link="/etc"), "is a link"),
        (tar_bytes(FILES)[:-2000], "a broken archive"),
        (b"<html>not found</html>", "a broken archive"),
    ],
)
def test_broken_and_hostile_archives(server, tmp_path, content, message):
    archive = server.put("12/dev-clean.tar.gz", content, "LibriSpeech/dev-clean")
    with pytest.raises(UserError, match=message):
        openslr.fetch([archive], tmp_path / "a/b", "a folder", server.url)
    assert not (tmp_path / "a/b/LibriSpeech").exists() and not (tmp_path / "outside").exists()


def test_archives_of_speakers_inside_are_unpacked(server, tmp_path):
    inner = {f"wav/{spk}.tar.gz": tar_bytes({f"train/{spk}/{spk}W1.wav": b"RIFF"}) for spk in ("S1", "S2")}
    files = {f"data_aishell/{name}": content for name, content in inner.items()} | {"data_aishell/transcript/t.txt": b""}
    openslr.fetch([server.put("33/data_aishell.tgz", tar_bytes(files), "data_aishell")], tmp_path, "a folder", server.url)
    names = sorted(path.relative_to(tmp_path / "data_aishell").as_posix() for path in (tmp_path / "data_aishell").rglob("*.*"))
    assert names == ["transcript/t.txt", "wav/train/S1/S1W1.wav", "wav/train/S2/S2W1.wav"]


def test_what_cannot_be_reached_is_one_message_with_the_ways_on(server, tmp_path):
    archive = openslr.Archive("12/no.tar.gz", "0" * 32, "LibriSpeech/no")
    with pytest.raises(UserError, match=r"12/no.tar.gz cannot be reached \(HTTP status 404\); give --corpus DIR, .*asterisk"):
        openslr.check([archive], tmp_path, "a folder", server.url)
    server.server.shutdown()
    server.server.server_close()
    begun = time.monotonic()
    with pytest.raises(UserError, match=r"cannot be reached \(Connection refused\)"):
        openslr.fetch([archive], tmp_path, "a folder", server.url)
    assert time.monotonic() - begun < 5 and list(tmp_path.iterdir()) == []


def test_a_server_that_never_answers_ends_the_check(tmp_path, monkeypatch):
    monkeypatch.setattr(openslr, "CHECK_S", 0.2)

    def never(*_, **__):
        time.sleep(2)
        raise OSError

    monkeypatch.setattr(openslr, "_open", never)
    with pytest.raises(UserError, match="no answer"):
        openslr.check([openslr.Archive("1/a.tgz", "0" * 32, "a")], tmp_path, "a folder", "http://127.0.0.1:9")


def test_a_connection_that_always_breaks_ends_and_keeps_what_came(server, tmp_path):
    archive = server.put("12/dev-clean.tar.gz", b"x", "LibriSpeech/dev-clean")
    server.files["/resources/12/dev-clean.tar.gz"] = b"xy" * 10
    server.drop = 100
    server.ranges = False  # each try begins anew and gets half of it
    openslr_tries = openslr.TRIES
    try:
        openslr.TRIES = 1
        with pytest.raises(UserError, match="what has come is kept"):
            openslr.fetch([archive], tmp_path, "a folder", server.url)
    finally:
        openslr.TRIES = openslr_tries
    assert (tmp_path / "dev-clean.tar.gz.part").stat().st_size == 10


def test_a_full_disk_is_known_before_the_first_byte(server, tmp_path, monkeypatch):
    archive = server.put("12/dev-clean.tar.gz", tar_bytes(FILES), "LibriSpeech/dev-clean")
    usage = openslr.shutil.disk_usage(tmp_path)._replace(free=400_000)
    monkeypatch.setattr(openslr.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UserError, match="GB needed for dev-clean.tar.gz"):
        openslr.fetch([archive], tmp_path, "a folder", server.url)
    assert all(method == "HEAD" for method, *_ in server.requests)
