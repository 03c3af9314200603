"""The reference generator against Hugging Face's, against loops by hand, and against itself."""

from __future__ import annotations

from itertools import chain

import pytest
import torch
from support.decoders import CASES, PatternRule, random_exits, random_rows, tiny_causal_lm

from consistentee_ext.generation.reference import ReferenceDecoder, generate
from consistentee_ext.generation.rules import (
    Arrival,
    ConfidenceRule,
    DepthRule,
    PolicyRule,
    SaturationRule,
)

PROMPTS = random_rows([5, 1, 9, 3], seed=3)
NEW = 14


def huggingface_greedy(model, prompt, new=NEW):
    ids = torch.tensor([prompt])
    out = model.backbone.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False
    )
    return out[0, len(prompt) :].tolist()


@pytest.mark.parametrize("case", CASES)
def test_full_depth_gives_hugging_faces_greedy_tokens(case):
    model = tiny_causal_lm(case)
    found = generate(model, PROMPTS, NEW, PolicyRule(1.0))
    assert found.tokens == [huggingface_greedy(model, prompt) for prompt in PROMPTS]
    assert {layer for layers in found.exit_layers for layer in layers} == {4}
    assert all(len(t) == len(e) + 1 for t, e in zip(found.tokens, found.exit_layers, strict=True))


def test_an_answer_ends_behind_an_end_token():
    model = tiny_causal_lm()
    full = generate(model, PROMPTS, NEW, PolicyRule(1.0)).tokens
    ends = [full[0][4], full[2][2]]
    model.config.eos_token_id = ends
    for prompt, tokens, without in zip(
        PROMPTS, generate(model, PROMPTS, NEW, PolicyRule(1.0)).tokens, full, strict=True
    ):
        stop = next((n for n, token in enumerate(without, 1) if token in ends), NEW)
        assert tokens == without[:stop]
        model.backbone.generation_config.eos_token_id = ends
        assert tokens == huggingface_greedy(model, prompt)


def logits_by_hand(model, ids, exits, prompt_length):
    """Logits of the last token of a sequence, layer by layer and token by token, with the hidden
    state that each token has at each layer; nothing is kept between calls.
    """
    trunk, decoder = model.trunk, model.backbone.model
    length = len(ids)
    positions = torch.arange(length)[None]
    hidden = decoder.embed_tokens(torch.tensor([ids]))
    rope = decoder.rotary_emb(hidden, positions)
    for number, layer in enumerate(decoder.layers, start=1):
        attention = layer.self_attn
        normed = trunk_norm(layer.input_layernorm, hidden)
        q, k, v = (
            p(normed).view(length, -1, attention.head_dim)
            for p in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        cos, sin = rope[0][0], rope[1][0]

        def turn(x, cos=cos, sin=sin):
            half = x.shape[-1] // 2
            return x * cos[:, None] + torch.cat((-x[..., half:], x[..., :half]), -1) * sin[:, None]

        q, k = turn(q), turn(k)
        groups = q.shape[1] // k.shape[1]
        behind = hidden.clone()
        for t in range(length):
            if t >= prompt_length and exits[t - prompt_length] < number:
                continue  # it has left: its state stays
            heads = []
            for head in range(q.shape[1]):
                scores = k[: t + 1, head // groups] @ q[t, head] * attention.scaling
                heads.append(scores.softmax(0) @ v[: t + 1, head // groups])
            inner = hidden[0, t] + attention.o_proj(torch.cat(heads))
            behind[0, t] = inner + layer.mlp(trunk_norm(layer.post_attention_layernorm, inner))
        hidden = behind
    last = exits[-1] if length > prompt_length else trunk.num_layers
    return model.logits(model.readout(last, hidden[0, -1]))


def trunk_norm(module, x):
    return module.weight * x / (x.square().mean(-1, keepdim=True) + module.variance_epsilon).sqrt()


@pytest.mark.parametrize("fill", ["deferred", "immediate"])
@torch.no_grad()
def test_states_are_copied_up_as_defined(fill):
    """Every step against a pass over the whole sequence by loops."""
    model = tiny_causal_lm().double()
    prompt, answer = random_rows([4, 7], seed=5)
    decoder = ReferenceDecoder(model, [prompt], 20, fill)
    rule, exits = PatternRule(random_exits(1, 7)), []
    expected = logits_by_hand(model, prompt, exits, len(prompt))
    torch.testing.assert_close(decoder.logits[0], expected, atol=1e-10, rtol=1e-10)
    for number, token in enumerate(answer, start=1):
        step = decoder.step(torch.tensor([0]), torch.tensor([token]), rule)
        exits.append(int(step.exit_layers))
        expected = logits_by_hand(model, prompt + answer[:number], exits, len(prompt))
        torch.testing.assert_close(step.logits[0], expected, atol=1e-10, rtol=1e-10)
    assert len(set(exits)) >= 3


@pytest.mark.parametrize("case", CASES)
def test_deferred_and_immediate_fill_are_equal(case):
    """Same tokens, and same keys and values wherever a later token could see them."""
    model = tiny_causal_lm(case).double()
    rule = PatternRule(random_exits(4, 20))
    deferred = ReferenceDecoder(model, PROMPTS, 40, "deferred")
    immediate = ReferenceDecoder(model, PROMPTS, 40, "immediate")
    chosen = deferred.logits.argmax(-1)
    assert torch.equal(chosen, immediate.logits.argmax(-1))
    lagging = 0
    for number in range(20):
        # Now and then a sequence pauses, so that lengths and holes differ.
        rows = torch.tensor([row for row in range(4) if (row + number) % 3])
        one, other = (d.step(rows, chosen[rows], rule) for d in (deferred, immediate))
        assert torch.equal(one.exit_layers, other.exit_layers)
        torch.testing.assert_close(one.logits, other.logits, atol=1e-12, rtol=0)
        chosen[rows] = one.logits.argmax(-1)
        assert torch.equal(chosen[rows], other.logits.argmax(-1))
        assert (immediate.filled == immediate.lengths).all()
        assert (deferred.filled.diff(dim=0) <= 0).all()
        lagging += int((deferred.filled < deferred.lengths).sum())
        for layer, of_layer in enumerate(deferred.filled):
            for row, filled in enumerate(of_layer.tolist()):
                for name in ("keys", "values"):
                    a, b = (getattr(d, name)[layer, row, :, :filled] for d in (deferred, immediate))
                    assert (a - b).abs().max() <= 1e-12
    assert lagging > 50
    # A token that runs all layers fills every hole.
    deferred.step(torch.arange(4), chosen, PolicyRule(1.0))
    immediate.step(torch.arange(4), chosen, PolicyRule(1.0))
    assert (deferred.filled == deferred.lengths).all()
    assert (deferred.keys - immediate.keys).abs().max() <= 1e-12
    assert (deferred.values - immediate.values).abs().max() <= 1e-12


def test_answers_do_not_depend_on_the_batch():
    model = tiny_causal_lm().double()
    together = generate(model, PROMPTS, NEW, PolicyRule(0.6))
    assert len({layer for layers in together.exit_layers for layer in layers}) >= 3
    for row, prompt in enumerate(PROMPTS):
        alone = generate(model, [prompt], NEW, PolicyRule(0.6), fill="immediate")
        assert alone.tokens[0] == together.tokens[row]
        assert alone.exit_layers[0] == together.exit_layers[row]


def test_a_bfloat16_model_generates():
    """Exits are decided in float32, and by the same formula."""
    model = tiny_causal_lm().bfloat16()
    found = generate(model, PROMPTS, NEW, PolicyRule(0.6))
    assert len({layer for layers in found.exit_layers for layer in layers}) >= 3
    state = torch.randn(3, 32).bfloat16()
    assert model.decide(2, state).dtype == torch.float32
    full = generate(model, PROMPTS, NEW, PolicyRule(1.0))
    assert [len(tokens) for tokens in full.tokens] == [NEW] * 4


def test_the_models_threshold_is_the_default():
    model = tiny_causal_lm(threshold=0.6)
    assert generate(model, PROMPTS, 6) == generate(model, PROMPTS, 6, PolicyRule(0.6))


def arrival(model, layer=2, numbers=(1, 2, 3)):
    generator = torch.Generator().manual_seed(0)
    hidden, previous = torch.randn(2, len(numbers), 32, generator=generator)
    previous = hidden + 0.6 * previous
    return Arrival(model, layer, torch.zeros(len(numbers)), torch.tensor(numbers), hidden, previous)


def test_rules_by_their_formulas():
    model = tiny_causal_lm()
    found = arrival(model)
    logits = model.logits(model.readout(2, found.hidden))
    top = logits.double().exp().amax(1) / logits.double().exp().sum(1)
    a, b = found.hidden.double(), found.previous.double()
    cosine = (a * b).sum(1) / (a.square().sum(1) * b.square().sum(1)).sqrt()
    chance = 1 / (1 + (-model.decide(2, model.readout(2, found.hidden)).double()).exp())
    for score, rule in ((top, ConfidenceRule), (cosine, SaturationRule), (chance, PolicyRule)):
        values = sorted(score.tolist())
        assert values[0] < values[1]
        threshold = (values[0] + values[1]) / 2
        assert rule(threshold)(found).tolist() == (score > threshold).tolist()
        assert not rule(1.0)(found).any()
        with pytest.raises(ValueError, match=r"^threshold: expected"):
            rule(0.0)


def test_depth_by_position():
    model = tiny_causal_lm()
    rule = DepthRule(first=3, last=1, length=5)  # 3, 2.5, 2, 1.5, 1, 1
    depths = [
        next(layer for layer in (1, 2, 3) if rule(arrival(model, layer, (number,))).item())
        for number in range(1, 7)
    ]
    assert depths == [3, 3, 2, 2, 1, 1]
    assert generate(model, PROMPTS, 5, DepthRule(2, 2)).exit_layers == [[2] * 4] * 4
    with pytest.raises(ValueError, match=r"^last: expected at least 1, got 0$"):
        DepthRule(1, 0)


def test_confidence_pays_a_head_at_each_exit():
    model = tiny_causal_lm()
    found = generate(model, PROMPTS, NEW, ConfidenceRule(0.3))
    layers = list(chain(*found.exit_layers))
    assert len(set(layers)) >= 3
    assert list(chain(*found.heads)) == layers  # an exit at every layer
    found = generate(model, PROMPTS, NEW, PolicyRule(0.6))
    assert set(chain(*found.heads)) == {1}


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([], {}, "prompts: expected at least one, got none"),
        ([[3], []], {}, "prompts: expected 1 to .* tokens each, got 0 in prompt 2"),
        ([[3] * 60], {"max_new_tokens": 6}, "num_positions: expected at most 64, got 65"),
        ([[3]], {"max_new_tokens": 0}, "max_new_tokens: expected at least 1, got 0"),
        ([[3]], {"fill": "never"}, "fill: expected one of .*, got 'never'"),
    ],
)
def test_what_cannot_be_generated_is_refused(prompts, options, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        generate(tiny_causal_lm(), prompts, **{"max_new_tokens": 4, **options})
