"""Many prompts through few slots: a sequence that has ended leaves its slot to the next prompt."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from itertools import chain, islice
from typing import NamedTuple

import torch

from consistentee_ext.generation.engine import DecoderEngine, check_logits


class Answer(NamedTuple):
    """What a prompt is answered with.

    Attributes:
        tokens: the ids, the end token included.
        exit_layers: of each token; the first one comes with the prompt, at full depth.
    """

    tokens: list[int]
    exit_layers: list[int]


def answer_prompts(
    engine: DecoderEngine,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    ends: Collection[int],
    batch_size: int,
) -> Iterator[tuple[int, Answer]]:
    """Decode greedily; what a prompt gets does not depend on the others.

    Args:
        engine: of the decoder.
        prompts: token ids, at least one each.
        max_new_tokens: of each answer.
        ends: the tokens behind which an answer ends before.
        batch_size: sequences that are decoded at a time.

    Yields:
        The number of a prompt, from 0, and its answer, as soon as that has ended.
    """
    device = engine.weights.stack.embedding.words.device
    free = list(range(min(batch_size, len(prompts))))
    longest = max(map(len, prompts), default=0)
    # The last token of an answer is not read.
    cache = engine.allocate(len(free), longest + max_new_tokens - 1) if free else None
    waiting = enumerate(prompts)
    running: dict[int, tuple[int, Answer]] = {}  # by slot
    while cache is not None:
        starting = list(islice(waiting, len(free)))
        if starting:
            used = [free.pop() for _ in starting]
            running |= {
                slot: (row, Answer([], [])) for slot, (row, _) in zip(used, starting, strict=True)
            }
            ids = torch.tensor(list(chain(*(p for _, p in starting))), device=device)
            lengths = torch.tensor([0, *(len(p) for _, p in starting)], device=device)
            slots = torch.tensor(used, device=device)
            logits = engine.prefill(cache, ids, lengths.cumsum(0).int(), slots)
            layers = [engine.weights.stack.num_layers] * len(used)
        elif running:
            used = list(running)
            tokens = torch.tensor([running[slot][1].tokens[-1] for slot in used], device=device)
            logits, exits = engine.step(cache, tokens, torch.tensor(used, device=device))
            layers = exits.tolist()
        else:
            return
        check_logits(logits)
        for slot, token, layer in zip(used, logits.argmax(dim=-1).tolist(), layers, strict=True):
            row, answer = running[slot]
            answer.tokens.append(token)
            answer.exit_layers.append(layer)
            if token in ends or len(answer.tokens) == max_new_tokens:
                del running[slot]
                free.append(slot)
                yield row, answer
