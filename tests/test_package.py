"""Archives of packages: what goes in comes out, and a stranger's writes nowhere else and executes nothing."""

from __future__ import annotations

import io
import os
import pickle
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest

from steermoe import package
from steermoe.errors import UserError
from steermoe.package import open_archive, write_archive
from steermoe.pretrained import adapter_path, find_adapter

WHOLE = {
    "adapter.safetensors": b"weights", "config.yaml": b"encoder: whisper\n", "README.md": b"# it", "log/train.jsonl": b"{}\n",
    "plots/loss.png": b"png", "exp/small_ctc/model.safetensors": b"more", "exp/small_ctc/config.json": b"{}",
}  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("STEERMOE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def zipped(path: Path, members: dict[str, bytes], modes: dict[str, int] = {}) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            member = zipfile.ZipInfo(name)
            member.external_attr = modes.get(name, stat.S_IFREG | 0o644) << 16
            archive.writestr(member, content, zipfile.ZIP_DEFLATED)
    return path


def on_disk(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_what_goes_in_comes_out_and_the_same_package_is_the_same_bytes(tmp_path):
    for folder in ("one", "two"):
        for name, content in WHOLE.items():
            (tmp_path / folder / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / folder / name).write_bytes(content)
        (tmp_path / folder / "resume.pt").write_bytes(b"not published")
    os.utime(tmp_path / "two" / "README.md", (1, 1))
    for folder in ("one", "two"):
        write_archive(tmp_path / folder, tmp_path / f"{folder}.zip")
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()
    folder = open_archive(tmp_path / "one.zip")
    assert on_disk(folder) == WHOLE
    (folder / "README.md").write_bytes(b"seen")
    assert open_archive(tmp_path / "two.zip") == folder and (folder / "README.md").read_bytes() == b"seen"  # not unpacked again


def test_an_archive_is_named_as_a_folder_is(tmp_path):
    path = zipped(tmp_path / "ears.zip", WHOLE)
    assert find_adapter(path) == find_adapter(str(path)) == adapter_path(str(path)) / "adapter.safetensors"
    with pytest.raises(UserError, match="gone.zip: no trained adapter here"):
        find_adapter(str(tmp_path / "gone.zip"))


def test_folders_and_files_of_other_zip_programs_are_no_fault(tmp_path):
    path = zipped(tmp_path / "a.zip", {"log/": b"", **WHOLE}, {"log/": stat.S_IFDIR | 0o755, "README.md": 0})
    assert on_disk(open_archive(path)) == WHOLE


class Attack:
    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return (os.mkdir, (str(self.mark),))


@pytest.mark.parametrize(
    "name",
    [
        "../evil.md", "log/../../evil.md", "/tmp/evil.md", "C:\\evil.md", "..\\evil.md", "log/..", "log/.hidden.jsonl", "evil.py",
        "exp/small/evil.pt", "exp/a/b/config.json", "model.bin", "adapter.safetensors/x.md", "sitecustomize.py", "README.md\n",
    ],
)  # fmt: skip
def test_no_other_file_and_no_way_out_of_the_folder(tmp_path, cache, name):
    before = on_disk(tmp_path)
    path = zipped(tmp_path / "evil.zip", {**WHOLE, name: b"evil"})
    with pytest.raises(UserError, match="evil.zip: .* is not a file of a package; nothing was unpacked"):
        open_archive(path)
    path.unlink()
    assert on_disk(tmp_path) == before and not cache.exists()


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK])
def test_no_links_and_no_devices(tmp_path, cache, kind):
    path = zipped(tmp_path / "evil.zip", {**WHOLE, "README.md": b"/etc/passwd"}, {"README.md": kind | 0o777})
    with pytest.raises(UserError, match="'README.md' is a link or a device"):
        open_archive(path)
    assert not cache.exists()


def test_pickles_are_neither_unpacked_nor_read(tmp_path, cache):
    evil = pickle.dumps(Attack(tmp_path / "ran"))
    with pytest.raises(UserError, match="'checkpoints/resume.pt' is not a file of a package"):
        find_adapter(zipped(tmp_path / "a.zip", {**WHOLE, "checkpoints/resume.pt": evil}))
    from steermoe.checkpoint import read_metadata

    # Under the name of a harmless kind.
    adapter = find_adapter(zipped(tmp_path / "b.zip", {**WHOLE, "adapter.safetensors": evil}))
    with pytest.raises(UserError, match="not a readable safetensors file"):
        read_metadata(adapter)
    assert not (tmp_path / "ran").exists()


def test_bombs(tmp_path, cache, monkeypatch):
    monkeypatch.setattr(package, "LIMIT", 1 << 20)
    path = zipped(tmp_path / "large.zip", {**WHOLE, "log/a.jsonl": bytes(600_000), "log/b.jsonl": bytes(600_000)})
    assert path.stat().st_size < 10_000
    with pytest.raises(UserError, match="large.zip: unpacks to more than"):
        open_archive(path)
    many = {f"log/{number}.jsonl": b"" for number in range(package.MEMBERS)}
    with pytest.raises(UserError, match="unpacks to more than 1000 files"):
        open_archive(zipped(tmp_path / "many.zip", WHOLE | many))
    assert not cache.exists()


def test_a_size_that_is_not_true_does_not_write_more_than_it(tmp_path, cache):
    """The directory at the archive's end says 10 bytes; there are a million."""
    path = zipped(tmp_path / "liar.zip", {**WHOLE, "log/a.jsonl": bytes(1_000_000)})
    content = bytearray(path.read_bytes())
    size = (1_000_000).to_bytes(4, "little")
    assert content.count(size) == 2  # before the data and in the directory
    path.write_bytes(bytes(content).replace(size, (10).to_bytes(4, "little")))
    with pytest.raises(UserError, match="not a package, or a damaged one"):
        open_archive(path)
    assert not list((cache / "packages").iterdir())


def test_a_name_twice_an_encrypted_file_and_no_adapter(tmp_path):
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(tmp_path / "twice.zip", "w") as archive:
        for _ in range(2):
            archive.writestr("adapter.safetensors", b"x")
    with pytest.raises(UserError, match="'adapter.safetensors' is in it twice"):
        open_archive(tmp_path / "twice.zip")
    with pytest.raises(UserError, match="'plots/A.png' is in it twice"):  # one file where capitals make no difference
        open_archive(zipped(tmp_path / "case.zip", {**WHOLE, "plots/A.png": b"", "plots/a.png": b""}))
    secret = bytearray(zipped(tmp_path / "secret.zip", {"adapter.safetensors": b"x"}).read_bytes())
    secret[secret.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "secret.zip").write_bytes(secret)
    with pytest.raises(UserError, match="is encrypted"):
        open_archive(tmp_path / "secret.zip")
    with pytest.raises(UserError, match="no adapter.safetensors in it; stage 6"):
        open_archive(zipped(tmp_path / "empty.zip", {"README.md": b"x"}))


def test_what_is_no_zip_archive_or_a_broken_one(tmp_path, cache):
    path = zipped(tmp_path / "a.zip", WHOLE)
    content = path.read_bytes()
    damaged = bytearray(content)
    damaged[content.index(b"weights" if b"weights" in content else b"adapter.safetensors") + 22] ^= 0xFF
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w:gz") as archive:  # hard links, devices: a package is never of this kind
        member = tarfile.TarInfo("adapter.safetensors")
        member.type, member.linkname = tarfile.LNKTYPE, "/etc/passwd"
        archive.addfile(member)
    for broken in (b"", b"text", content[:-30], content[: len(content) // 2], bytes(damaged), tar.getvalue()):
        path.write_bytes(broken)
        with pytest.raises(UserError, match="a.zip: not a package, or a damaged one"):
            open_archive(path)
    assert not (cache / "packages").exists() or not list((cache / "packages").iterdir())
