"""Any causal LLM: logits, templates, stop tokens, invariance to the batch."""

import pytest
import torch

import tiny
from steermoe.errors import UserError
from steermoe.llms.causal import CausalLM
from steermoe.masks import positions_from_mask

KINDS = [
    ("llama", {}),
    ("qwen2", {}),
    ("qwen3", {}),
    ("mistral", {"sliding_window": None}),
    ("gemma2", {"query_pre_attn_scalar": 8}),
    ("granite", {"logits_scaling": 4.0}),
]


@pytest.mark.parametrize(("kind", "extra"), KINDS, ids=[kind for kind, _ in KINDS])
def test_logits_of_chosen_rows_equal_the_models_own(tmp_path, kind, extra):
    tiny.make_llm(tmp_path, kind=kind, **extra)
    llm = CausalLM.from_pretrained(str(tmp_path), dtype="float32")
    ids = torch.tensor([[5, 9, 33, 70]])
    ones = torch.ones_like(ids)
    with torch.no_grad():
        ours = llm.logits(llm.hidden(llm.embed(ids), ones, ones.cumsum(1) - 1)[0, [1, 3]])
        theirs = llm.llm(input_ids=ids, attention_mask=ones).logits[0, [1, 3]]
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_unknown_logits_are_refused(tiny_bases, monkeypatch):
    llm = CausalLM.from_pretrained(str(tiny_bases / "llm"), dtype="float32")
    monkeypatch.setattr(llm, "logits", lambda hidden: llm.llm.get_output_embeddings()(hidden) * 2)
    with pytest.raises(UserError, match="unknown way"):
        llm.check_logits()


@pytest.mark.parametrize("left", [False, True])
def test_hidden_states_do_not_depend_on_the_batch(tiny_bases, left):
    llm = CausalLM.from_pretrained(str(tiny_bases / "llm"), dtype="float32")
    torch.manual_seed(0)
    rows = [torch.randn(length, llm.dim) for length in (4, 9)]
    batch, mask = torch.zeros(2, 9, llm.dim), torch.zeros(2, 9, dtype=torch.bool)
    for row, vectors in enumerate(rows):
        place = slice(9 - len(vectors), 9) if left else slice(0, len(vectors))
        batch[row, place], mask[row, place] = vectors, True
    with torch.no_grad():
        together = llm.hidden(batch, mask, positions_from_mask(mask))
        for row, vectors in enumerate(rows):
            ones = torch.ones(1, len(vectors), dtype=torch.bool)
            alone = llm.hidden(vectors[None], ones, positions_from_mask(ones))[0]
            assert torch.allclose(together[row][mask[row]], alone, atol=1e-5)


@pytest.fixture()
def llm(tiny_bases):
    return CausalLM.from_pretrained(str(tiny_bases / "llm"), dtype="float32")


def text(llm, ids):
    return llm.tokenizer.decode(ids)


def test_the_audio_stands_where_the_prompt_says(llm):
    template = llm.template("say <audio> again")
    assert text(llm, template.prefix_ids) == "<|im_start|>user\nsay "
    assert text(llm, template.suffix_ids) == " again<|im_end|>\n<|im_start|>assistant\n"
    assert text(llm, [template.end_id]) == "<|im_end|>" and llm.stop_ids() == {template.end_id}


def test_without_a_placeholder_the_audio_comes_first(llm):
    assert text(llm, llm.template("what?").prefix_ids) == "<|im_start|>user\n"


def test_system_message(tiny_bases):
    llm = CausalLM.from_pretrained(str(tiny_bases / "llm"), dtype="float32", system="be brief")
    assert text(llm, llm.template("x").prefix_ids).startswith("<|im_start|>system\nbe brief<|im_end|>")


def test_bare_prompt_of_the_paper(tiny_bases):
    llm = CausalLM.from_pretrained(str(tiny_bases / "llm"), dtype="float32", chat=False)
    template = llm.template("write it: ")
    assert template.prefix_ids == [] and text(llm, template.suffix_ids) == "write it: "


def test_two_placeholders_are_an_error(llm):
    with pytest.raises(UserError, match="once"):
        llm.template("<audio> and <audio>")


def test_a_model_without_chat_template(tiny_bases):
    llm = CausalLM.from_pretrained(str(tiny_bases / "llm"), dtype="float32", chat=False)
    llm.tokenizer.chat_template = None
    with pytest.raises(UserError, match="chat template"):
        CausalLM(llm.llm, llm.tokenizer, model="m")


def test_an_answer_that_spells_a_special_token_is_text(llm):
    assert llm.template("x").end_id not in llm.encode("a <|im_end|> b")


def test_a_folder_that_is_no_llm(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="llm_conf.model"):
        CausalLM.from_pretrained(str(tmp_path))


def llm_with(tiny_bases, template, **conf):
    llm = CausalLM.from_pretrained(str(tiny_bases / "llm"), dtype="float32", **conf)
    llm.tokenizer.chat_template = template
    return llm


NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + tiny.CHATML


def test_a_template_without_system_role(tiny_bases):
    assert llm_with(tiny_bases, NO_SYSTEM, system="").template("x") == llm_with(tiny_bases, NO_SYSTEM).template("x")
    with pytest.raises(UserError, match="no system role.*llm_conf.system"):
        llm_with(tiny_bases, NO_SYSTEM, system="be brief").template("x")


def test_a_template_with_todays_date_is_the_same_tomorrow(tiny_bases):
    idiom = "{% if not date_string is defined %}{% set date_string = strftime_now('%d') %}{% endif %}{{ date_string }} "
    llm = llm_with(tiny_bases, idiom + tiny.CHATML)
    assert text(llm, llm.template("x").prefix_ids).startswith("26 Jul 2024 ")


def test_control_tokens_in_a_prompt_are_refused(llm):
    with pytest.raises(UserError, match="control token"):
        llm.template("is it <|im_end|> now?")


def test_missing_weights_are_an_error_not_random(tiny_bases, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    shutil.copytree(tiny_bases / "llm", tmp_path / "llm")
    tensors = load_file(tmp_path / "llm" / "model.safetensors")
    del tensors["model.layers.0.mlp.up_proj.weight"]
    save_file(tensors, tmp_path / "llm" / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="lacks the weights .*up_proj"):
        CausalLM.from_pretrained(str(tmp_path / "llm"))
    (tmp_path / "llm" / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="llm_conf.model"):
        CausalLM.from_pretrained(str(tmp_path / "llm"))
    (tmp_path / "llm" / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="no tokenizer"):
        CausalLM.text_encoder(str(tmp_path / "llm"))


def test_code_in_a_models_folder_is_never_run(tiny_bases, tmp_path, monkeypatch):
    import json
    import shutil

    shutil.copytree(tiny_bases / "llm", tmp_path / "llm")
    config = json.loads((tmp_path / "llm" / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}}
    (tmp_path / "llm" / "config.json").write_text(json.dumps(config))
    (tmp_path / "llm" / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with pytest.raises(UserError, match="llm_conf.model"):
        CausalLM.from_pretrained(str(tmp_path / "llm"))
    assert not (tmp_path / "ran").exists()
