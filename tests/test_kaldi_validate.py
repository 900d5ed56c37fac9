"""What validation accepts, warns of and refuses, as Kaldi does."""

from __future__ import annotations

import pytest

from kaldi_dirs import FILES, SEGMENTED, make, no_feats
from steermoe.data.kaldi_dir import validate
from steermoe.errors import UserError


def test_validate_accepts_and_warns(tmp_path):
    assert no_feats(make(tmp_path / "d")) == []
    assert no_feats(make(tmp_path / "s", SEGMENTED)) == []
    one = {"utt2spk": "a-1 a\na-2 a\n", "spk2utt": "a a-1 a-2\n", "text": "a-1 x\na-2 y\n", "wav.scp": "a-1 x\na-2 y\n"}
    assert "only one speaker" in no_feats(make(tmp_path / "one", one))[0]
    stranger = {**FILES, "utt2spk": "a-1 x\na-2 x\nb-1 y\n", "spk2utt": "x a-1 a-2\ny b-1\n"}
    warnings = no_feats(make(tmp_path / "w", stranger))
    assert len(warnings) == 1 and "not the prefix" in warnings[0] and "3 of 3" in warnings[0]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"spk2utt": None}, r"spk2utt: no such file; make it: utils/fix_data_dir\.sh"),
        ({"spk2utt": ""}, r"spk2utt: empty file"),
        ({"utt2spk": None}, r"utt2spk: no such file"),
        ({"spk2utt": "a a-1\nb b-1\n"}, r"spk2utt:1: speaker 'a' does not match"),
        ({"spk2utt": "a a-1 a-2\n"}, r"spk2utt: 1 speakers, but"),
        ({"utt2spk": "a-1 b\na-2 a\nb-1 b\n"}, r"utt2spk:2: not sorted by speaker.*--no-spk-sort"),
        ({"text": None}, r"text: no such file; .*--no-text"),
        ({"wav_scp": None}, r"wav\.scp: no such file; .*--no-wav"),
        ({"text": ""}, r"text: empty file"),
        ({"text": "a-1 x\na-2 y\nb-1 z"}, r"text:3: the last line has no line end"),
        ({"text": "a-1 x\na-2 y\r\nb-1 z\n"}, r"text:2: ends in CR LF"),
        ({"text": "a-1 x\na-2 y\u3000z\nb-1 z\n"}, r"text:2: forbidden white space U\+3000 \(IDEOGRAPHIC SPACE\)"),
        ({"text": "a-1 x\na-2 y\xa0z\nb-1 z\n"}, r"text:2: forbidden white space U\+00A0"),
        ({"text": "a-1 x\na-2 y\x07z\nb-1 z\n"}, r"text:2: character U\+0007 cannot be printed.*--non-print"),
        ({"text": "a-1 x\na-2 <s> y\nb-1 z\n"}, r"text:2: illegal symbol '<s>'"),
        ({"text": "a-1 x\na-2 #0\nb-1 z\n"}, r"text:2: illegal symbol '#0'"),
        ({"text": b"a-1 x\na-2 \xff\nb-1 z\n"}, r"text:2: not UTF-8"),
        ({"text": "a-1 x\nb-1 z\n"}, r"utt2spk:2: 'a-2' is not in .*text"),
        ({"text": "a-1 x\na-2 x\na-3 x\nb-1 z\n"}, r"text:3: 'a-3' is not in .*utt2spk"),
        ({"wav_scp": "a-1 ~/x\na-2 x\nb-1 z\n"}, r"wav\.scp:1: ~ is not expanded"),
        ({"wav_scp": "a-1 x\na-1 x\na-2 x\nb-1 z\n"}, r"wav\.scp:2: duplicated key"),
        ({"feats_scp": "a-1 f:1\n"}, r"utt2spk:2: 'a-2' is not in .*feats\.scp \(2 missing"),
        ({"cmvn_scp": "a f:1\n"}, r"spk2utt:2: 'b' is not in .*cmvn\.scp"),
        ({"spk2gender": "a m\nb x\n"}, r"spk2gender:2: 'x' should be m or f"),
        ({"spk2warp": "a 1\nb 2\n"}, r"spk2warp:2: the warp factor"),
        ({"utt2lang": "a-1 en\n"}, r"utt2lang"),
        ({"utt2dur": "a-1 1\na-2 -1\nb-1 2\n"}, r"utt2dur:2: '-1'"),
        ({"utt2dur": "a-1 1\na-2 1\n"}, r"'b-1' is not in .*utt2dur.*make it again"),
        ({"reco2file_and_channel": "a-1 x C\na-2 x A\nb-1 x A\n"}, r"reco2file_and_channel:1: bad line"),
    ],
)
def test_validate_refuses(tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        no_feats(make(tmp_path / "d", **change))


def test_validate_options(tmp_path):
    with pytest.raises(UserError, match="--no-feats"):
        validate(make(tmp_path / "d"))
    validate(make(tmp_path / "e", text=None, wav_scp=None), False, False, False)
    unsorted = {**FILES, "utt2spk": "a-1 b\na-2 a\nb-1 b\n", "spk2utt": "a a-2\nb a-1 b-1\n"}
    validate(make(tmp_path / "f", unsorted), False, require_spk_sort=False)
    validate(make(tmp_path / "g", text="a-1 x\na-2 y\x07z\nb-1 z\n"), False, allow_non_print=True)


def test_validate_segments(tmp_path):
    for change, message in (
        ({"wav_scp": "rec1 x\n"}, r"segments:3: 'rec2' is not in .*wav\.scp"),
        ({"wav_scp": "rec1 x\nrec2 y\nrec3 y\n"}, r"wav\.scp:3: 'rec3' is not in .*segments"),
        ({"segments": "a-1 rec1 0 1\na-2 rec1 1 1\nb-1 rec2 0 1\n"}, r"segments:2: bad segment"),
        ({"segments": "a-1 rec1 0 1\nb-1 rec2 0 1\n"}, r"utt2spk:2: 'a-2' is not in .*segments"),
        ({"reco2dur": "rec1 1\n"}, r"'rec2' is not in .*reco2dur"),
    ):
        with pytest.raises(UserError, match=message):
            no_feats(make(tmp_path / message[:5], SEGMENTED, **change))
