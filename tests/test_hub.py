"""Adapters on a model hub: a stand-in on this machine that answers as the real one does; the client is the real one."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import pickle
import threading
from collections import defaultdict
from pathlib import Path

import huggingface_hub
import pytest
import torch
import yaml
from huggingface_hub import constants
from toneme import speak

from steermoe import SteerMoE
from steermoe.bin import pack
from steermoe.checkpoint import save_adapter
from steermoe.errors import UserError
from steermoe.hub import is_hub_id
from steermoe.pretrained import find_adapter

TOKEN = "a-good-token"


class Handler(http.server.BaseHTTPRequestHandler):
    """Repositories are dicts of path -> bytes; a repository's revision is the hash of its content."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.asked.append(self.path)
        if self.path == "/api/validate-yaml":
            return self.reply({})
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.reply({"error": "Invalid username or password."}, 401)
        if self.path == "/api/repos/create":
            wanted = json.loads(body)
            name = f"{wanted['organization']}/{wanted['name']}"
            self.server.created[name] = wanted.get("private", wanted.get("visibility"))
            return self.reply({"url": f"{self.server.address}/{name}"})
        name = "/".join(self.path.split("/")[3:5])
        if "/preupload/" in self.path:
            files = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in json.loads(body)["files"]]
            return self.reply({"files": files})
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                self.server.repos[name][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        self.reply({"success": True, "commitOid": "0" * 40, "commitUrl": f"{self.server.address}/{name}/commit/{'0' * 40}"})

    def do_GET(self):
        self.server.asked.append(self.path)
        words = self.path.partition("?")[0].strip("/").split("/")
        api = words[0] == "api"
        name = "/".join(words[2:4] if api else words[:2])
        if name not in self.server.repos:
            return self.reply({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
        files = self.server.repos[name]
        revision = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        if api and "tree" in words:
            tree = [{"type": "file", "path": path, "size": len(content), "oid": oid(content)} for path, content in files.items()]
            return self.reply(tree)
        if api:
            return self.reply({"id": name, "sha": revision, "siblings": [{"rfilename": path} for path in files], "tags": []})
        content = files["/".join(words[4:])]
        self.reply(content, 200, {"ETag": f'"{oid(content)}"', "X-Repo-Commit": revision})

    do_HEAD = do_GET

    def reply(self, content, status=200, headers={}):
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), "Content-Type": "application/json", **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_):
        pass


def oid(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


@pytest.fixture()
def hub(tmp_path, monkeypatch):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.repos, server.created, server.asked = defaultdict(dict), {}, []
    server.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    for name, value in {
        "ENDPOINT": server.address,
        "HUGGINGFACE_CO_URL_TEMPLATE": server.address + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(tmp_path / "hub"),
        "HF_HUB_OFFLINE": False,
    }.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    huggingface_hub.close_session()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture()
def exp(tiny_model, tiny_config, tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "exp" / "whisper"
    with torch.no_grad():
        for parameter in tiny_model.projector.parameters():
            parameter.normal_()
    save_adapter(folder / "checkpoints" / "best.safetensors", tiny_model, tiny_config, 7, {"git": "abc"})
    results = "# whisper\n\n- data: a corpus (CC BY 4.0)\n\n|dataset|Err|\n|test|12.3|\n\n## Model\n\ntable\n"
    (folder / "RESULTS.md").write_text(results)
    (folder / "checkpoints" / "resume.pt").write_bytes(b"not published")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return folder


def test_pushed_and_loaded_by_its_name(hub, exp):
    model = SteerMoE.from_pretrained(exp)
    model.decode_conf.max_tokens = 11
    samples = speak([1, 2, 3, 4])
    assert model.push_to_hub("me/ears", private=True) == f"{hub.address}/me/ears"
    files = hub.repos["me/ears"]
    assert hub.created["me/ears"] in ("private", True)  # older and newer clients say it in other words
    assert set(files) == {"adapter.safetensors", "config.yaml", "README.md", "RESULTS.md"}
    again = SteerMoE.from_pretrained("me/ears")
    assert again.decode_conf == model.decode_conf and again.transcribe(samples) == model.transcribe(samples)
    state = model.network.adapter_state()
    assert all(torch.equal(tensor, state[name]) for name, tensor in again.network.adapter_state().items())


def test_the_card_has_the_data_the_numbers_and_the_licences(hub, exp):
    SteerMoE.from_pretrained(exp).push_to_hub("me/ears")
    _, head, card = hub.repos["me/ears"]["README.md"].decode().split("---\n", 2)
    assert yaml.safe_load(head) == {
        "library_name": "steermoe", "pipeline_tag": "automatic-speech-recognition", "tags": ["steermoe", "speech"],
    }  # fmt: skip
    assert card.lstrip().startswith("# ears: a SteerMoE adapter")
    assert "- data: a corpus (CC BY 4.0)" in card and "|test|12.3|" in card
    assert card.count("| its publisher's |") == 2 and "--model FOLDER_OR_HUB_ID" in card


def test_the_verb_pushes_too(hub, exp, tmp_path, capsys):
    for out in ([], ["--out", str(tmp_path / "ears.zip")]):
        hub.repos.clear()
        pack.main(["--exp", str(exp), "--push-to-hub", "me/ears", *out])
        assert f"{hub.address}/me/ears" in capsys.readouterr().err
        assert hub.repos["me/ears"]["adapter.safetensors"] == (exp / "checkpoints/best.safetensors").read_bytes()
    assert hub.created["me/ears"] in (False, "public", None)


def test_only_files_that_hold_no_code_come_down(hub, exp):
    pack.main(["--exp", str(exp), "--push-to-hub", "me/ears"])
    evil = {"adapter.pt": pickle.dumps(print), "pytorch_model.bin": b"x", "steermoe.py": b"x", "exp/small/weights.pkl": b"x"}
    hub.repos["me/ears"] |= evil
    hub.asked.clear()
    folder = find_adapter("me/ears").parent
    assert {file.name for file in folder.rglob("*") if file.is_file()} == {"adapter.safetensors", "config.yaml"}
    assert not any(name in path for path in hub.asked for name in evil)


def test_a_newer_one_is_taken_and_without_a_network_the_last(hub, exp):
    pack.main(["--exp", str(exp), "--push-to-hub", "me/ears"])
    first = find_adapter("me/ears")
    hub.repos["me/ears"]["config.yaml"] = b"decode_conf: {beam: 5}\n"
    second = find_adapter("me/ears")
    assert second != first and SteerMoE.from_pretrained("me/ears").decode_conf.beam == 5
    hub.shutdown()
    hub.server_close()
    assert find_adapter("me/ears") == second


def test_what_cannot_be_had_says_why(hub, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="me/nothing: no such file or folder here, and no adapter of this name on the .* \\(.*404"):
        find_adapter("me/nothing")
    hub.repos["me/llm"]["config.json"] = b"{}"
    with pytest.raises(UserError, match="me/llm: no such file"):
        find_adapter("me/llm")
    with pytest.raises(UserError, match="on the model hub \\("):
        find_adapter("me/no--name")
    hub.shutdown()
    hub.server_close()
    with pytest.raises(UserError, match="on the model hub \\(.*onnect"):
        find_adapter("me/nothing")


def test_who_may_not_push_is_told_how(hub, exp):
    model = SteerMoE.from_pretrained(exp)
    with pytest.raises(UserError, match="me/ears: the model hub does not take it \\(.*401.*hf auth login"):
        model.push_to_hub("me/ears", token="a-bad-token")
    assert not hub.repos


def test_a_mistyped_path_is_no_hub_id(exp, monkeypatch):
    """Nobody is asked for it: the message says what to train."""
    monkeypatch.chdir(exp.parents[1])
    for name in ("exp/wisper", "elsewhere/ears", "./me/ears", "/me/ears", "me", "a/b/c", "me/ears/", "../me"):
        assert not is_hub_id(name)
    monkeypatch.chdir(exp)
    assert not is_hub_id("exp/whisper") and is_hub_id("me/ears")
    with pytest.raises(UserError, match="exp/whisper: no trained adapter here"):
        find_adapter("exp/whisper")
