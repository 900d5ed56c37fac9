"""Small Kaldi data directories for the tests of steermoe/data/kaldi_*.py."""

from __future__ import annotations

from pathlib import Path

from hypothesis import strategies as st

from steermoe.data.kaldi_dir import validate

FILES = {
    "utt2spk": "a-1 a\na-2 a\nb-1 b\n",
    "spk2utt": "a a-1 a-2\nb b-1\n",
    "text": "a-1 hello world\na-2\nb-1 你好 Welt\n",
    "wav.scp": "a-1 x/a-1.wav\na-2 x/a-2.wav\nb-1 x/b-1.wav\n",
}
SEGMENTED = {
    **FILES,
    "segments": "a-1 rec1 0.0 1.5\na-2 rec1 1.5 2\nb-1 rec2 0.25 3\n",
    "wav.scp": "rec1 x/1.flac\nrec2 x/2.flac\n",
}


def make(folder: Path, files: dict[str, str] | None = None, **changes: str | bytes | None) -> Path:
    """Writes a directory; `wav_scp=…` replaces wav.scp's content, None leaves it out."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {**(files or FILES), **{name.replace("_scp", ".scp"): text for name, text in changes.items()}}
    for name, text in content.items():
        if text is not None:
            (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir()) if file.is_file()}


def no_feats(folder: Path) -> list[str]:
    return validate(folder, require_feats=False)


names = st.text("aZé你-_09", min_size=1, max_size=4)
