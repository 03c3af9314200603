"""What the generic path cannot carry is refused in one line, with the reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.family_cases import DECODER, FIELDS, classifier_of
from support.generic_cases import MOE, classifier
from torch import nn
from transformers import AttentionMaskInterface, AutoConfig

from consistentee.model.from_classifier import from_classifier
from consistentee_ext import FastEarlyExitEncoder
from consistentee_ext.layers.hooks import ATTENTION
from consistentee_ext.layers.packed_pass import PackedPass

ENDS: dict[str, Any] = {"bos_token_id": 2, "eos_token_id": 3}
NOT_REPLACED = "its attention cannot be replaced (_supports_attention_backend is False)"
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("bart", FIELDS | ENDS | {"d_model": 32, "decoder_ffn_dim": 8}, "it is an encoder-decoder"),
    ("big_bird", FIELDS, NOT_REPLACED),
    ("canine", FIELDS, NOT_REPLACED),
    ("fnet", FIELDS, NOT_REPLACED),
    ("funnel", {"vocab_size": 60, "block_sizes": [1, 1], "d_model": 32}, NOT_REPLACED),
    ("longformer", FIELDS | {"attention_window": 4}, NOT_REPLACED),
    ("t5", {"vocab_size": 60, "d_model": 32, "num_layers": 1}, "it is an encoder-decoder"),
    ("xlnet", {"vocab_size": 60, "d_model": 32, "n_head": 4, "n_layer": 2}, NOT_REPLACED),
    ("gpt_oss", FIELDS | DECODER | MOE | {"num_local_experts": 4}, "its attention takes s_aux"),
    (  # its embedding reads the next token, which is padding behind the end of a row
        "mobilebert",
        FIELDS | {"embedding_size": 16, "intra_bottleneck_size": 32},
        "what it gives of a row depends on the others: expected a relative difference of at most",
    ),
    (  # linear attention mixes tokens without asking for an attention
        "minimax",
        FIELDS | DECODER | {"num_local_experts": 4},
        "its layers compute something else on packed rows: expected a relative difference of",
    ),
    ("doge", FIELDS | DECODER, "it raises AttributeError: 'Reach' object has no attribute"),
]


@pytest.mark.parametrize(("kind", "fields", "reason"), REFUSED, ids=[kind for kind, *_ in REFUSED])
def test_what_cannot_run_is_refused(kind: str, fields: dict[str, Any], reason: str) -> None:
    model = classifier_of(AutoConfig.for_model(kind, **fields))
    with pytest.raises(ValueError, match="model: expected an encoder of model_type") as caught:
        FastEarlyExitEncoder(model)
    message = str(caught.value)
    assert "bert, " in message  # the families there are
    assert f"or one that runs on packed rows as it is, got {kind!r}: {reason}" in message
    assert "\n" not in message


@pytest.mark.parametrize("field", ["low", "high", "scale", "cap"])
def test_a_wrong_attention_is_found(field: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check of a model can fail: on each thing that its attention differs in."""
    attend = PackedPass.attend

    def wrong(self: Any, query: Any, key: Any, value: Any, form: Any) -> Any:
        return attend(self, query, key, value, form._replace(**{field: None}))

    monkeypatch.setattr(PackedPass, "attend", wrong)
    with pytest.raises(ValueError, match=r"'gemma2': its layers compute something else on packed"):
        FastEarlyExitEncoder(classifier("gemma2"))


def test_layers_that_see_the_row_beside_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the offsets of the rows, a token attends to those of other rows."""
    attend = PackedPass.attend

    def wrong(self: Any, *rest: Any) -> Any:
        offsets = self._cu_seqlens
        self._cu_seqlens = offsets[[0, -1]]
        try:
            return attend(self, *rest)
        finally:
            self._cu_seqlens = offsets

    monkeypatch.setattr(PackedPass, "attend", wrong)
    with pytest.raises(ValueError, match=r"'gpt2': its layers compute something else on packed"):
        FastEarlyExitEncoder(classifier("gpt2"))


class Adapted(nn.Linear):
    """A product with an adapter beside it."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input) + input.sum(dim=-1, keepdim=True)


def test_models_that_were_changed_are_refused() -> None:
    adapted = classifier("olmo2")
    adapted.model.layers[1].self_attn.q_proj = Adapted(32, 32)
    with pytest.raises(ValueError, match=r"model\.model\.layers\.1\.self_attn\.q_proj: .* Adapted"):
        FastEarlyExitEncoder(adapted)
    hooked = classifier("olmo2")
    hooked.model.layers[1].register_forward_hook(lambda module, inputs, output: output)
    with pytest.raises(ValueError, match=r"model\.model\.layers\.1: expected no forward hooks"):
        FastEarlyExitEncoder(hooked)
    quantised = classifier("olmo2")
    quantised.hf_quantizer = object()
    with pytest.raises(ValueError, match="got 'olmo2': it is quantised"):
        FastEarlyExitEncoder(quantised)
    offloaded = classifier("olmo2")
    offloaded.model.layers[1]._hf_hook = object()
    with pytest.raises(ValueError, match="got 'olmo2': its weights are placed by accelerate"):
        FastEarlyExitEncoder(offloaded)
    wider = classifier("olmo2")
    wider.score = nn.Linear(32, 5)
    with pytest.raises(
        ValueError, match=r"'olmo2': its logits have shape \(\d, 5\), not \(\d, 3\)"
    ):
        FastEarlyExitEncoder(wider)
    shallow = classifier("olmo2")
    del shallow.model.layers[2]
    with pytest.raises(ValueError, match="got 'olmo2': it calls 2 layers and has 3"):
        FastEarlyExitEncoder(shallow)


def test_checkpoints_are_refused_before_their_weights_are_read(tmp_path: Path) -> None:
    for kind, reason in (
        ("t5", "it is an encoder-decoder"),
        ("longformer", "its attention cannot be replaced"),
        ("granite", "transformers has no sequence classifier of it"),
    ):
        AutoConfig.for_model(kind).save_pretrained(tmp_path)
        with pytest.raises(ValueError, match=rf"config of model_type .*, got '{kind}': {reason}"):
            FastEarlyExitEncoder.from_pretrained(tmp_path)


def test_a_decoder_without_a_padding_id_is_refused() -> None:
    """As the Hugging Face model itself does: it would not know the last token of a row."""
    fields = FIELDS | ENDS | {"pad_token_id": None}
    model = classifier_of(AutoConfig.for_model("gpt2", **fields))
    with pytest.raises(ValueError, match="Cannot handle batch sizes > 1 if no padding token"):
        FastEarlyExitEncoder(model)


def test_inputs_that_are_refused() -> None:
    encoder = FastEarlyExitEncoder(classifier("gemma2"))
    ids, mask = torch.full((2, 5), 7), torch.ones(2, 5, dtype=torch.int64)
    with pytest.raises(ValueError, match="position_ids: expected none, as this model goes by"):
        encoder(ids, position_ids=torch.arange(5)[None])
    with pytest.raises(ValueError, match="token_type_ids: expected segments from 0 to 0, got 1"):
        encoder(ids, token_type_ids=torch.ones_like(ids))
    with pytest.raises(ValueError, match="input_ids: expected ids from 0 to 59, got 60"):
        encoder(ids + 53)
    mask[1, 2] = 0
    with pytest.raises(ValueError, match=r"attention_mask: expected no zeros between .* in row 1"):
        encoder(ids, mask)


def test_a_part_of_the_layers_is_refused() -> None:
    encoder = FastEarlyExitEncoder(classifier("gemma2"))
    engine: Any = encoder._engine
    with pytest.raises(ValueError, match=r"first, last: expected 0 and 3, .* got 1 and 3"):
        engine.advance(None, 1, 3, None)


def test_arguments_that_no_check_saw_are_refused() -> None:
    encoder = FastEarlyExitEncoder(classifier("gemma2"))
    engine: Any = encoder._engine
    engine.stack.axes.clear()
    with pytest.raises(ValueError, match=r"input_ids: this model cannot run these rows packed: it"):
        encoder(torch.full((2, 5), 7))


@pytest.mark.parametrize("length", [10, 200])
def test_masks_that_are_no_window_are_refused(length: int) -> None:
    """Attention within chunks, which at some places looks like a window."""

    def within_chunks(batch: Any, head: Any, query: Any, key: Any) -> torch.Tensor:
        found: torch.Tensor = (query // 3 == key // 3) & (key <= query)
        return found

    make = AttentionMaskInterface()[ATTENTION]
    with pytest.raises(ValueError, match="its mask does not go by the distance of two tokens"):
        make(kv_length=length, mask_function=within_chunks)
    near = make(kv_length=length, mask_function=lambda b, h, q, k: (k <= q) & (q - k < 4))
    assert (near.low, near.high) == (0, 3)
    both = make(kv_length=length, mask_function=lambda b, h, q, k: (q - k).abs() <= 2)
    assert (both.low, both.high) == (-2, 2)


def test_no_exits_are_added_to_it() -> None:
    with pytest.raises(ValueError, match=r"model: expected a classifier of a family .* Gemma2For"):
        from_classifier(classifier("gemma2"))
