"""Are a decoder's answers at threshold 1.0 Hugging Face's greedy ones, token by token, in float32?

A text may differ after a step whose two best logits differ by less than `NEAR`: the two compute
sums in another order. Run again, the script goes on where it was.

    python experiments/full_depth.py --model DECODER --prompts FILE --output runs/full_depth.json
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from consistentee.atomic_files import Json, read_json, write_json
from consistentee.generation.answers import FULL_DEPTH
from consistentee.generation.backbone import load_backbone, with_exits
from consistentee.generation.data import load_rows
from consistentee_ext.generation.prompts import encode_prompt
from consistentee_ext.generation.reference import generate
from consistentee_ext.progress import progress_bar

NEAR = 1e-3
BLOCK_SIZE = 20  # prompts between two files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=32, help="of each answer")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    decoder, tokenizer, _ = load_backbone(options.model)
    decoder.eval()
    model = with_exits(decoder, tokenizer)
    texts = load_rows(options.prompts, completions=False)["prompt"][: options.rows]
    run = {"model": Path(options.model).name, "tokens": options.tokens, "rows": len(texts)}
    found: Json = {"run": run, "answers": []}
    if options.output.exists():
        found = read_json(options.output)
        if found["run"] != run:
            raise ValueError(f"output: expected a file of this run, got {options.output}")
    answers = found["answers"]
    with progress_bar(len(texts), "answers", "row", done=len(answers)) as bar:
        while len(answers) < len(texts):
            block = texts[len(answers) : len(answers) + BLOCK_SIZE]
            prompts = [encode_prompt(tokenizer, text) for text in block]
            ours = generate(model, prompts, options.tokens, FULL_DEPTH).tokens
            for prompt, tokens in zip(prompts, ours, strict=True):
                answers.append(compared(decoder, prompt, tokens, options.tokens))
                bar.update()
            write_json(options.output, found)
    same = sum(answer["margin"] is None for answer in answers)
    near = sum(answer["margin"] is not None and answer["margin"] < NEAR for answer in answers)
    print(f"{len(answers)} texts of at most {options.tokens} tokens: {same} the same, {near} that ")
    print(f"differ after two logits nearer than {NEAR}, {len(answers) - same - near} others")


def compared(decoder: Any, prompt: list[int], tokens: list[int], most: int) -> Json:
    """Hugging Face's answer beside ours; where they differ, how near its two best logits were."""
    ids = torch.tensor([prompt])
    options = {"do_sample": False, "max_new_tokens": most, "pad_token_id": 0}
    mask = torch.ones_like(ids)
    expected = decoder.generate(ids, attention_mask=mask, **options)[0, len(prompt) :].tolist()
    margin = None
    if tokens != expected:
        pairs = enumerate(zip(tokens, expected, strict=False))
        shorter = min(len(tokens), len(expected))
        place = next((n for n, (a, b) in pairs if a != b), shorter)
        with torch.no_grad():
            logits = decoder(torch.tensor([prompt + expected[:place]])).logits[0, -1]
        best = logits.topk(2).values
        margin = float(best[0] - best[1])
    return {"tokens": tokens, "huggingface": expected, "margin": margin}


if __name__ == "__main__":
    main()
