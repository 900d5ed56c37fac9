"""Adapters on a model hub: a package of stage 6 in a repository of its own, uploaded and downloaded by huggingface_hub.

Only files that hold no code come down (safetensors, YAML, JSON): what else lies in a repository stays there.
"""

from __future__ import annotations

import errno
import re
from pathlib import Path

from steermoe.errors import UserError
from steermoe.fetch import HUB_TIMEOUT_S, MADE_HERE

NEEDED = ["adapter.safetensors", "config.yaml", "exp/*/model.safetensors", "exp/*/config.json"]


def is_hub_id(text: str) -> bool:
    """Whether `USER/NAME` is meant for a hub: it has that form, and USER is no folder here, as it is in a mistyped path."""
    form = re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", text)
    return bool(form) and not text.startswith(MADE_HERE) and not Path(text).parent.exists()


def download(name: str) -> Path:
    """The folder of an adapter of the hub, at its newest; where the hub cannot be reached, as it was when it last could.

    UserError says why there is none.
    """
    import huggingface_hub

    why = "no adapter.safetensors in it"
    try:
        huggingface_hub.HfApi().model_info(name, timeout=HUB_TIMEOUT_S)  # asks once, where a download would retry for minutes
        folder = huggingface_hub.snapshot_download(name, allow_patterns=NEEDED, etag_timeout=HUB_TIMEOUT_S)
    except Exception as error:  # the hub's client lets the exceptions of whatever HTTP library it uses through
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        folder, why = _from_cache(name), _reason(error)
    if folder is None or not (Path(folder) / "adapter.safetensors").exists():
        raise UserError(
            f"{name}: no such file or folder here, and no adapter of this name on the model hub ({why}); one that you have is "
            f"given as FOLDER or FILE.zip"
        )
    return Path(folder)


def _from_cache(name: str) -> str | None:
    import huggingface_hub

    try:
        return huggingface_hub.snapshot_download(name, local_files_only=True, allow_patterns=NEEDED)
    except (huggingface_hub.errors.LocalEntryNotFoundError, ValueError):  # nothing of it, or no name that a hub could have
        return None


def upload(package: Path, name: str, private: bool = False, token: str | None = None) -> str:
    """Puts a package into the repository USER/NAME, which is made if there is none. -> its address.

    token: default: what `hf auth login` or HF_TOKEN has left. UserError says why it cannot be done.
    """
    import huggingface_hub

    from steermoe.package import MEMBER

    files = sorted(file.relative_to(package).as_posix() for file in package.rglob("*"))
    try:
        api = huggingface_hub.HfApi(token=token)
        address = api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=name,
            folder_path=package,
            allow_patterns=[file for file in files if MEMBER.fullmatch(file)],
            commit_message="SteerMoE adapter",
        )
    except Exception as error:  # as above
        raise UserError(f"{name}: the model hub does not take it ({_reason(error)}); `hf auth login` says who you are") from None
    return str(address)


def _reason(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
