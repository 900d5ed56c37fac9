"""The event file: its records, what a reader finds in it, and that the log alone decides its bytes."""

from __future__ import annotations

import struct

import pytest

from steermoe.train.events import EventFile, crc32c, curves

LINES = [
    {"step": 1, "seconds": 0.5, "loss": 2.5, "lr_router": 1e-3, "skipped": 0},
    {"step": 2, "seconds": 1.0, "loss": None, "dev_loss": 2.0, "best": True, "scales": [0.1, 0.25], "expert_share": [[0.5, 0.5]]},
]


def unmask(crc):
    rotated = (crc - 0xA282EAD8) & 0xFFFFFFFF
    return (rotated >> 17 | rotated << 15) & 0xFFFFFFFF


def records(path):
    content, place = path.read_bytes(), 0
    while place < len(content):
        (size,) = struct.unpack_from("<Q", content, place)
        data = content[place + 12 : place + 12 + size]
        sums = [struct.unpack_from("<I", content, place + at)[0] for at in (8, 12 + size)]
        assert [unmask(crc) for crc in sums] == [crc32c(content[place : place + 8]), crc32c(data)]
        yield data
        place += 16 + size


def write(folder, lines):
    events = EventFile(folder)
    events.restart(lines)
    return events


def test_the_checksum_is_crc32c():
    assert crc32c(b"123456789") == 0xE3069283 and crc32c(bytes(32)) == 0x8A9136AA  # RFC 3720, B.4


def test_tags():
    assert dict(curves(LINES[0])) == {"train/seconds": 0.5, "train/loss": 2.5, "lr/router": 1e-3, "train/skipped": 0}
    found = dict(curves(LINES[1] | {"grad_norm": float("inf")}))
    assert found == {
        "train/seconds": 1.0, "dev/loss": 2.0,
        "scales/0": 0.1, "scales/1": 0.25, "expert_share/0/0": 0.5, "expert_share/0/1": 0.5,
    }  # fmt: skip


def test_records_are_the_version_a_start_mark_and_one_for_each_line(tmp_path):
    version, start, first, second = records(write(tmp_path, LINES).path)
    assert version.endswith(b"brain.Event:2") and start.endswith(b"\x3a\x02\x08\x01")
    value = b"\x0a\x0atrain/loss\x15" + struct.pack("<f", 2.5)
    assert first.startswith(b"\x09" + struct.pack("<d", 0.5) + b"\x10\x01\x2a") and b"\x0a" + bytes([len(value)]) + value in first
    assert second.startswith(b"\x09" + struct.pack("<d", 1.5) + b"\x10\x02\x2a") and b"train/loss" not in second


def test_appended_is_as_written_at_once_and_a_folder_has_one_file(tmp_path):
    one = write(tmp_path / "one", LINES)
    other = write(tmp_path / "other", LINES[:1])
    other.append(LINES[1:])
    assert one.path.read_bytes() == other.path.read_bytes()
    write(tmp_path / "other", LINES)
    (again,) = (tmp_path / "other").iterdir()
    assert again.name > other.path.name and again.read_bytes() == one.path.read_bytes()


def test_tensorboard_reads_it(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    found = list(LegacyEventFileLoader(str(write(tmp_path, LINES).path)).Load())
    assert found[0].file_version == "brain.Event:2" and found[1].session_log.status == found[1].session_log.START
    for event, line in zip(found[2:], LINES, strict=True):
        assert event.step == line["step"]
        assert {value.tag: value.simple_value for value in event.summary.value} == pytest.approx(dict(curves(line)))
