"""Archives: ours read by kaldiio, kaldiio's and hand-written ones by us, and one message for each kind of damage."""

from __future__ import annotations

import io
import pickle
import struct

import kaldiio
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from steermoe.data.ark import ArkWriter, matrix_shape, read_matrix, scan_ark
from steermoe.errors import UserError

# largest error of one value as a fraction of the matrix's range: half a step of 16 bits; 8 bits between quartiles; 8 bits
ERROR = {0: 0.0, 2: 1 / 64, 3: 1e-5, 5: 0.5 / 255 * 1.01}


def random_matrix(rows: int, cols: int = 80, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal((rows, cols)) * 2).astype(np.float32)


def write(path, matrices: dict[str, np.ndarray], method: int = 3) -> dict[str, int]:
    with ArkWriter(path, method) as writer:
        return {utt: writer.write(utt, matrix) for utt, matrix in matrices.items()}


@pytest.mark.parametrize("method", [0, 2, 3, 5])
@settings(max_examples=40, deadline=None)
@given(
    matrix=hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=30),
        elements=st.floats(-20, 20, width=32, allow_subnormal=False),
    )
)
def test_roundtrip_within_the_compression_error(tmp_path_factory, method, matrix):
    path = tmp_path_factory.mktemp("ark") / "a.ark"
    offset = write(path, {"utt": matrix}, method)["utt"]
    read = read_matrix(f"{path}:{offset}")
    assert read.dtype == np.float32 and read.flags.writeable and read.flags.c_contiguous
    extent = float(matrix.max()) - float(matrix.min())
    assert np.abs(read - matrix).max() <= ERROR[method] * extent + 2e-6
    (key, by_kaldiio), = kaldiio.load_ark(str(path))
    assert key == "utt" and np.array_equal(by_kaldiio, read)


def test_text_double_and_every_compression_of_kaldiio_is_read(tmp_path):
    matrices = {"a": random_matrix(3, 4), "b": random_matrix(300, 40).astype(np.float64)}
    compressed = {str(method): {"compression_method": method} for method in range(1, 6)}
    for name, options in {"text": {"text": True}, "binary": {}, **compressed}.items():
        ark, scp = str(tmp_path / f"{name}.ark"), tmp_path / f"{name}.scp"
        kaldiio.save_ark(ark, matrices, scp=str(scp), **options)
        expected = dict(kaldiio.load_ark(ark))
        for line in scp.read_text().splitlines():
            utt, place = line.split()
            assert np.allclose(read_matrix(place), expected[utt], atol=1e-6)
            assert matrix_shape(place) == expected[utt].shape


def test_text_as_kaldi_writes_it(tmp_path):
    path = tmp_path / "t.ark"
    path.write_text("utt1  [\n  1 2.5 -3e-05\n  4 5 inf ]\nutt2  [\n  7 8 ]\n")
    assert read_matrix(f"{path}:5").tolist() == [[1, 2.5, np.float32(-3e-5)], [4, 5, np.inf]]
    assert read_matrix(f"{path}:{path.read_bytes().index(b'utt2') + 5}").tolist() == [[7, 8]]
    for text, message in (("[\n 1 2\n 3 ]\n", "different length"), ("[\n 1 x ]\n", "no numbers"), ("[\n 1 2\n", "has no ]")):
        text = f"u  {text}"
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            read_matrix(f"{path}:2")


def test_a_file_without_offset_is_one_matrix(tmp_path):
    matrix = random_matrix(5, 3)
    kaldiio.save_mat(str(tmp_path / "m"), matrix)
    assert np.array_equal(read_matrix(str(tmp_path / "m")), matrix)


def test_ranges(tmp_path):
    matrix = random_matrix(20, 6)
    place = f"{tmp_path / 'a.ark'}:{write(tmp_path / 'a.ark', {'utt': matrix}, 0)['utt']}"
    for span, expected in {
        "[0:4]": matrix[:5],
        "[3:3]": matrix[3:4],
        "[2:9,1:2]": matrix[2:10, 1:3],
        "[,0:0]": matrix[:, :1],
        "[:,4:5]": matrix[:, 4:],
        "[18:22]": matrix[18:],  # Kaldi tolerates 3 frames
    }.items():
        assert np.array_equal(read_matrix(place + span), expected), span
        assert matrix_shape(place + span) == expected.shape
        assert np.array_equal(read_matrix(place + span), kaldiio.load_mat(place + span))
    for span in ("[5:4]", "[20:21]", "[0:23]", "[0:3,0:6]", "[1:2:3]", "[7]"):
        with pytest.raises(UserError, match="does not fit"):
            read_matrix(place + span)


def test_nan_is_read_as_it_is_and_not_compressed(tmp_path):
    matrix = random_matrix(9, 3)
    matrix[4, 1] = np.nan
    offset = write(tmp_path / "a.ark", {"utt": matrix}, 0)["utt"]
    assert np.isnan(read_matrix(f"{tmp_path / 'a.ark'}:{offset}")[4, 1])
    for value in (np.nan, np.inf):
        matrix[4, 1] = value
        with pytest.raises(UserError, match="utterance 'utt' has NaN or infinity"):
            write(tmp_path / "b.ark", {"utt": matrix}, 3)


def test_writer_refuses(tmp_path):
    for method in (1, 4, 6, 7):
        with pytest.raises(UserError, match=f"compression method {method} is not allowed"):
            ArkWriter(tmp_path / "a.ark", method)
    with ArkWriter(tmp_path / "a.ark") as writer:
        for utt, matrix in (("u", np.zeros((0, 3))), ("u", np.zeros(3)), ("a b", np.zeros((2, 2))), ("", np.zeros((2, 2)))):
            with pytest.raises(UserError):
                writer.write(utt, matrix)
        assert writer.tell() == 0


@pytest.mark.parametrize("method", [0, 2, 3, 5])
def test_resumed_at_any_byte_it_is_the_same_file(tmp_path, method):
    matrices = {f"utt{i}": random_matrix(n, 7, n) for i, n in enumerate((1, 12, 3, 30))}
    write(tmp_path / "whole.ark", matrices, method)
    whole = (tmp_path / "whole.ark").read_bytes()
    entries = list(scan_ark(tmp_path / "whole.ark"))
    assert [(entry.utt, entry.rows, entry.cols) for entry in entries] == [(u, *m.shape) for u, m in matrices.items()]
    assert entries[-1].end == len(whole)
    for cut in (0, 3, 20, entries[0].end, entries[1].end - 1, entries[2].end + 2, len(whole)):
        path = tmp_path / "cut.ark"
        path.write_bytes(whole[:cut])
        done = list(scan_ark(path))
        assert done == [entry for entry in entries if entry.end <= cut]
        with ArkWriter(path, method, resume_at=done[-1].end if done else 0) as writer:
            for utt in list(matrices)[len(done) :]:
                writer.write(utt, matrices[utt])
        assert path.read_bytes() == whole
    with pytest.raises(UserError, match="should go on at byte"):
        ArkWriter(tmp_path / "whole.ark", method, resume_at=len(whole) + 1)


@pytest.mark.parametrize("method", [0, 2, 3, 5])
def test_truncated_anywhere_is_one_message(tmp_path, method):
    path = tmp_path / "a.ark"
    offset = write(path, {"utt": random_matrix(9, 5)}, method)["utt"]
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=rf"a\.ark:{offset}: .*stage"):
            read_matrix(f"{path}:{offset}")


def test_damage_is_one_message(tmp_path):
    path = tmp_path / "a.ark"
    offset = write(path, {"utt": random_matrix(9, 5)}, 0)["utt"]
    whole = path.read_bytes()

    def damaged(content: bytes, message: str, at: int = offset) -> None:
        path.write_bytes(content)
        for reader in (read_matrix, matrix_shape):
            with pytest.raises(UserError, match=message):
                reader(f"{path}:{at}")

    damaged(whole, "no Kaldi matrix begins here", at=offset + 1)
    damaged(whole, "the ark has only", at=10**6)
    damaged(b"", "empty or truncated")
    damaged(whole[:offset] + b"\0BXX " + whole[offset + 5 :], "no Kaldi matrix begins here")
    huge = bytearray(whole)
    huge[offset + 6 : offset + 10] = struct.pack("<i", 2**31 - 1)
    damaged(bytes(huge), "truncated")
    huge[offset + 6 : offset + 10] = struct.pack("<i", -5)
    damaged(bytes(huge), "impossible matrix size")
    damaged(b"utt PKL" + pickle.dumps([1]), "pickle.*refused", at=4)
    vector = io.BytesIO()
    kaldiio.save_ark(vector, {"utt": np.ones(4, dtype=np.float32)})
    damaged(vector.getvalue(), "vector", at=4)
    damaged(b"utt RIFF0000WAVE", "not a Kaldi matrix", at=4)
    compressed = write(path, {"utt": random_matrix(9, 5)}, 3)["utt"]
    content = bytearray(path.read_bytes())
    content[compressed + 6 : compressed + 10] = struct.pack("<f", np.nan)
    damaged(bytes(content), "range of the compressed matrix is no number", at=compressed)


@settings(max_examples=150, deadline=None)
@given(noise=st.binary(min_size=0, max_size=60), keep=st.integers(0, 30))
def test_random_bytes_never_give_a_traceback(tmp_path_factory, noise, keep):
    path = tmp_path_factory.mktemp("ark") / "a.ark"
    write(path, {"u": random_matrix(2, 3)}, 3)
    path.write_bytes(path.read_bytes()[:keep] + noise)
    try:
        assert read_matrix(f"{path}:2").ndim == 2
    except UserError as error:
        assert str(path) in str(error)
    list(scan_ark(path))


def test_pipes_and_missing_arks(tmp_path):
    marker = tmp_path / "ran"
    for pipe in (f"touch {marker} |", f"| touch {marker}", "-"):
        with pytest.raises(UserError, match="not run"):
            read_matrix(pipe)
    assert not marker.exists()
    with pytest.raises(UserError, match="no such ark"):
        read_matrix(f"{tmp_path}/none.ark:3")
    with pytest.raises(UserError, match="no such ark"):
        read_matrix(f"{tmp_path}")
