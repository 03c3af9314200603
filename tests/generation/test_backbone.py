"""Decoders as users have them: folders, and files .gguf."""

from __future__ import annotations

import builtins
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from support.decoder_folder import POSITIONS, WORDS, save_decoder, tokenizer
from transformers import AutoModelForCausalLM

from consistentee.generation.backbone import load_backbone, with_exits
from consistentee.generation.rouge import rouge
from consistentee_ext.generation.modeling import ConsistentEEForCausalLM

TENSORS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rotary pairs as llama.cpp has them: neighbours in place of halves."""
    size = len(weight) // heads
    halves = weight.reshape(heads, 2, size // 2, -1)
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(weight.shape))


def write_gguf(file: Path, decoder: torch.nn.Module) -> None:
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_block_count(4)
    writer.add_context_length(POSITIONS)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(48)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_dimension_count(8)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(len(WORDS))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["ab" if word == "say" else word for word in WORDS])
    writer.add_token_merges(["a b"])
    writer.add_token_types([3, 3, 2, *[1] * (len(WORDS) - 3)])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_unk_token_id(2)
    weights = {name: tensor.numpy() for name, tensor in decoder.state_dict().items()}
    writer.add_tensor("token_embd.weight", weights["model.embed_tokens.weight"])
    writer.add_tensor("output_norm.weight", weights["model.norm.weight"])
    for layer in range(4):
        for theirs, ours in TENSORS.items():
            weight = weights[f"model.layers.{layer}.{ours}.weight"]
            heads = {"attn_q": 4, "attn_k": 2}.get(theirs)
            weight = weight if heads is None else interleaved(weight, heads)
            writer.add_tensor(f"blk.{layer}.{theirs}.weight", weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_folder(tmp_path: Path) -> None:
    folder = save_decoder(tmp_path / "decoder")
    decoder, read, padding = load_backbone(folder)
    assert (padding, read.pad_token_id) == ("</s>", 1)
    model = with_exits(decoder, read, exit_layers=[2])
    expected = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    for name, weight in model.backbone.state_dict().items():
        assert torch.equal(weight, expected[name]), name
    config = model.config
    assert (config.eos_token_ids, config.bos_token_id, config.pad_token_id) == ((1,), 0, 1)
    own = tokenizer(pad_token="<unk>")
    own.save_pretrained(folder)
    assert load_backbone(folder)[2] is None
    decoder.generation_config.eos_token_id = [1, 7]
    assert with_exits(decoder, own).config.eos_token_ids == (1, 7)


def test_a_gguf_file_is_the_folders_decoder(tmp_path: Path) -> None:
    expected = AutoModelForCausalLM.from_pretrained(save_decoder(tmp_path / "decoder"))
    file = tmp_path / "decoder.gguf"
    write_gguf(file, expected)
    decoder, read, _ = load_backbone(file)
    model = with_exits(decoder, read)
    ids = torch.tensor([[0, 3, 5, 9, 4]])
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, expected(ids).logits)
    assert (model.config.eos_token_ids, read.eos_token) == ((1,), "</s>")
    assert read("cab")["input_ids"][-2:] == [WORDS.index("c"), WORDS.index("say")]
    model.save_pretrained(tmp_path / "model")  # no trace of the file it was in
    again = ConsistentEEForCausalLM.from_pretrained(tmp_path / "model")
    assert not hasattr(again.config.backbone, "quantization_config")
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, expected(ids).logits)


def test_a_broken_file_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "decoder.gguf"
    file.write_bytes(b"GGUF but no more")
    with pytest.raises(ValueError, match=r"^backbone: expected a folder or hub name of a decoder"):
        load_backbone(file)
    with pytest.raises(FileNotFoundError, match=r"none.gguf: expected a folder, found none$"):
        load_backbone(tmp_path / "none.gguf")


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: object) -> object:
        if name.startswith("rouge_score"):
            raise ModuleNotFoundError("No module named 'rouge_score'")
        return real(name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(
        ValueError, match=r"^rouge-score: expected this package, found none; pip install"
    ):
        rouge(["a"], ["a"])
