"""The reference generator, in plain PyTorch: the specification of early exit in decoding.

Sequences are decoded in lock-step. The prompt, and with it the first answer token, runs at full
depth. A later step reads one answer token of each sequence; behind an exit layer those that a rule
names leave, and the LM head reads each where it left.

A token t that left behind layer e has a state g_t, its hidden state there, and no other. A layer
k > e knows it by ``K_k,t = rope(W_K N_k(g_t), t)`` and ``V_k,t = W_V N_k(g_t)``. Nothing that is
computed later enters, so they may be computed at once (``"immediate"``), or when a later token of
the same sequence first runs layer k (``"deferred"``), which is never if none does. Both give the
same keys, values and tokens.

Letters: B sequences, R of them in a step, L layers, H hidden size, V vocabulary, U positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from consistentee_ext.generation.modeling import ConsistentEEForCausalLM
from consistentee_ext.generation.rules import Arrival, ExitRule, PolicyRule
from consistentee_ext.generation.trunk import causal_mask

Fill = Literal["deferred", "immediate"]
FILLS: tuple[Fill, ...] = get_args(Fill)


class Step(NamedTuple):
    """What a step says of R sequences.

    Attributes:
        logits: ``[R, V]``, of the next token.
        exit_layers: ``[R]`` int64, in 1..L.
        heads: ``[R]`` int64, how often the LM head ran for the token.
    """

    logits: Tensor
    exit_layers: Tensor
    heads: Tensor


class Generated(NamedTuple):
    """The answers of B prompts.

    Attributes:
        tokens: for each prompt the ids of its answer, the end-of-text token included.
        exit_layers: for each the exit layers of the steps, one fewer than tokens: the first token
            comes with the prompt.
        heads: for each step how often the LM head ran.
    """

    tokens: list[list[int]]
    exit_layers: list[list[int]]
    heads: list[list[int]]


class ReferenceDecoder:
    """B sequences that are being decoded.

    Args:
        model: in evaluation mode.
        prompts: token ids, at least one each.
        num_positions: U, room for prompt and answer of each sequence; default the model's.
        fill: when keys and values of skipped layers are computed.

    Attributes:
        logits: ``[B, V]``, of the first answer token.
        keys: ``[L, B, heads, U, D]``.
        values: ``[L, B, heads, U, D]``.
        filled: ``[L, B]`` int64, the positions that have keys and values at each layer.
        lengths: ``[B]`` int64, the tokens read.

    Raises:
        ValueError: there is no prompt, or one is empty or longer than `num_positions`, or an
            argument is outside its range.
    """

    @torch.no_grad()
    def __init__(
        self,
        model: ConsistentEEForCausalLM,
        prompts: Sequence[Sequence[int]],
        num_positions: int | None = None,
        fill: Fill = "deferred",
    ) -> None:
        limit = model.config.backbone.max_position_embeddings
        num_positions = limit if num_positions is None else num_positions
        if num_positions > limit:
            raise ValueError(f"num_positions: expected at most {limit}, got {num_positions}")
        if fill not in FILLS:
            raise ValueError(f"fill: expected one of {FILLS}, got {fill!r}")
        if not prompts:
            raise ValueError("prompts: expected at least one, got none")
        for number, prompt in enumerate(prompts, start=1):
            if not 1 <= len(prompt) <= num_positions:
                raise ValueError(
                    f"prompts: expected 1 to {num_positions} tokens each, got {len(prompt)} in "
                    f"prompt {number}"
                )
        self.model = model
        self.trunk = model.trunk
        self.fill = fill
        device = model.device
        self.lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
        self.prompt_lengths = self.lengths.clone()
        self.filled = self.lengths.repeat(self.trunk.num_layers, 1)
        self._read_prompts(prompts, num_positions)

    def _read_prompts(self, prompts: Sequence[Sequence[int]], num_positions: int) -> None:
        """All layers of all prompts. Padding behind a prompt is seen by no token of it, and is
        overwritten before one of the answer could see it.
        """
        device = self.model.device
        longest = int(self.lengths.max())
        padded = [[*prompt, *[0] * (longest - len(prompt))] for prompt in prompts]
        positions = torch.arange(longest, device=device)[None]
        hidden = self.trunk.embed(torch.tensor(padded, device=device))
        angles = self.trunk.angles(positions, hidden)
        keys, values = [], []
        for layer in range(1, self.trunk.num_layers + 1):
            of_layer = self.trunk.keys_values(layer, hidden, angles)
            mask = causal_mask(positions, positions, self.trunk.window(layer))[:, None]
            hidden = self.trunk.block(layer, hidden, angles, *of_layer, mask)
            keys.append(of_layer[0])
            values.append(of_layer[1])
        rows = torch.arange(len(prompts), device=device)
        last = hidden[rows, self.lengths - 1]
        self.logits = self.model.logits(self.model.readout(self.trunk.num_layers, last))
        self.keys = _with_room(keys, num_positions)
        self.values = _with_room(values, num_positions)
        # g of each token: behind the layer where it left or, on its way, behind the last it ran.
        self._states = hidden.new_zeros(len(prompts), num_positions, hidden.shape[-1])

    @torch.no_grad()
    def step(self, rows: Tensor, tokens: Tensor, rule: ExitRule) -> Step:
        """Read one more token of some sequences.

        Args:
            rows: ``[R]`` int64, the sequences, each once.
            tokens: ``[R]`` int64.
            rule: which of them leave behind an exit layer.

        Raises:
            ValueError: a sequence has no room for its token.
        """
        if int(self.lengths[rows].max()) >= self.keys.shape[3]:
            raise ValueError(f"tokens: expected at most {self.keys.shape[3]} of a sequence")
        num_layers = self.trunk.num_layers
        places = torch.arange(len(rows), device=rows.device)  # of the tokens that have not left
        hidden = self.trunk.embed(tokens)
        states = torch.zeros_like(hidden)
        exit_layers = torch.full_like(rows, num_layers)
        for layer in range(1, num_layers + 1):
            previous, here = hidden, rows[places]
            self._states[here, self.lengths[here]] = previous
            self._fill_layer(layer, here)
            hidden = self._run_layer(layer, here, previous)
            if layer not in self.model.config.exit_layers:
                continue
            numbers = self.lengths[here] - self.prompt_lengths[here] + 1
            arrival = Arrival(self.model, layer, here, numbers, hidden, previous)
            leaves = rule(arrival)
            states[places[leaves]] = arrival.state[leaves]
            exit_layers[places[leaves]] = layer
            self._states[here[leaves], self.lengths[here[leaves]]] = hidden[leaves]
            if self.fill == "immediate":
                for deeper in range(layer + 1, num_layers + 1):
                    self._fill_layer(deeper, here[leaves])
            places, hidden = places[~leaves], hidden[~leaves]
            if len(places) == 0:
                break
        states[places] = self.model.readout(num_layers, hidden)
        self.lengths[rows] += 1
        heads = head_runs(rule, self.model.config.exit_layers, exit_layers)
        return Step(self.model.logits(states), exit_layers, heads)

    def _fill_layer(self, layer: int, rows: Tensor) -> None:
        """Keys and values of what these sequences have read, the present token included, and this
        layer has not yet.
        """
        first, behind = self.filled[layer - 1, rows], self.lengths[rows] + 1
        of_pairs = rows.repeat_interleave(behind - first)
        positions = torch.cat(
            [torch.arange(int(a), int(b)) for a, b in zip(first, behind, strict=True)]
            or [torch.arange(0)]
        ).to(rows.device)
        hidden = self._states[of_pairs, positions][None]
        angles = self.trunk.angles(positions[None], hidden)
        keys, values = self.trunk.keys_values(layer, hidden, angles)
        self.keys[layer - 1][of_pairs, :, positions] = keys[0].transpose(0, 1)
        self.values[layer - 1][of_pairs, :, positions] = values[0].transpose(0, 1)
        self.filled[layer - 1, rows] = behind

    def _run_layer(self, layer: int, rows: Tensor, hidden: Tensor) -> Tensor:
        """The present tokens of these sequences, ``[R, H]``, behind a layer."""
        here = self.lengths[rows][:, None]
        seen = int(here.max()) + 1
        positions = torch.arange(seen, device=rows.device)[None]
        mask = causal_mask(here, positions, self.trunk.window(layer))[:, None]
        angles = self.trunk.angles(here, hidden)
        keys = self.keys[layer - 1, rows, :, :seen]
        values = self.values[layer - 1, rows, :, :seen]
        behind = self.trunk.block(layer, hidden[:, None], angles, keys, values, mask)
        return behind[:, 0]


def generate(
    model: ConsistentEEForCausalLM,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    rule: ExitRule | None = None,
    fill: Fill = "deferred",
) -> Generated:
    """Decode greedily, one batch; what a sequence gets does not depend on the others.

    Args:
        model: in evaluation mode.
        prompts: token ids.
        max_new_tokens: of each answer, which ends before behind an ``eos_token_id`` of the
            configuration.
        rule: which tokens leave; default the policy at the model's threshold. At threshold 1.0 the
            answers are those of the decoder alone.
        fill: see `ReferenceDecoder`.

    Raises:
        ValueError: there is no prompt, or one is empty, or it and its answer are longer than the
            model's positions.
    """
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens: expected at least 1, got {max_new_tokens}")
    rule = PolicyRule(model.config.threshold) if rule is None else rule
    longest = max(map(len, prompts), default=0)
    # The last token of an answer is not read.
    decoder = ReferenceDecoder(model, prompts, longest + max_new_tokens - 1, fill)
    ends = torch.tensor(model.config.eos_token_ids, dtype=torch.long, device=model.device)
    rows = torch.arange(len(prompts), device=model.device)
    chosen = decoder.logits.argmax(dim=-1)
    tokens = [[token] for token in chosen.tolist()]
    exit_layers: list[list[int]] = [[] for _ in prompts]
    heads: list[list[int]] = [[] for _ in prompts]
    for _ in range(1, max_new_tokens):
        goes_on = ~torch.isin(chosen, ends)
        rows, chosen = rows[goes_on], chosen[goes_on]
        if len(rows) == 0:
            break
        step = decoder.step(rows, chosen, rule)
        chosen = step.logits.argmax(dim=-1)
        figures = (rows, chosen, step.exit_layers, step.heads)
        for row, token, layer, head in zip(*(f.tolist() for f in figures), strict=True):
            tokens[row].append(token)
            exit_layers[row].append(layer)
            heads[row].append(head)
    return Generated(tokens, exit_layers, heads)


def head_runs(rule: ExitRule, exits: Sequence[int], exit_layers: Tensor) -> Tensor:
    """How often the LM head ran for each token: where it left, and at exits before that read it.

    Args:
        rule: by which tokens left.
        exits: the exit layers of the model.
        exit_layers: ``[N]`` int64, where each token left.
    """
    read = [layer for layer in exits if rule.reads_logits(layer)]
    passed = torch.tensor(read, device=exit_layers.device) < exit_layers[:, None]
    return 1 + passed.sum(dim=1)


def _with_room(of_layers: list[Tensor], num_positions: int) -> Tensor:
    """Keys or values of all layers, ``[L, B, heads, U, D]``, with zeros behind the prompts."""
    stacked = torch.stack(of_layers)
    return torch.nn.functional.pad(stacked, (0, 0, 0, num_positions - stacked.shape[3]))
