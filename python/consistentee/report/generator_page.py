"""The report of a decoder: figures, and texts with each token coloured by its exit layer."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from consistentee.atomic_files import Json, whole_file, write_json
from consistentee.generation.evaluate import GeneratorEvaluation
from consistentee.report.contents import shorten
from consistentee.report.page import document, tiles
from consistentee.report.write import check_report

EXAMPLES = 20
PROMPT_WIDTH = 300  # characters
SHADES = 5  # of exit layers, from light to strong


class Piece(NamedTuple):
    """Part of a text, of one token or of several that share a character, and its exit layer."""

    text: str
    layer: int


def write_generator_report(
    path: str | Path,
    title: str,
    evaluation: GeneratorEvaluation,
    rows: Dataset,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Write a self-contained HTML page, and a JSON file of its numbers with the suffix ``.json``.

    Args:
        path: ends in ``.html``.
        title: of the page.
        evaluation: from `consistentee.generation.evaluate.evaluate_generator`.
        rows: its prompts, in a column ``prompt``.
        tokenizer: the model's.

    Raises:
        ValueError: `path` does not end in ``.html``.
    """
    check_report(path)
    path = Path(path)
    number = min(EXAMPLES, len(rows))
    body = _body(title, evaluation, rows["prompt"][:number], tokenizer)
    with whole_file(path) as html, whole_file(path.with_suffix(".json")) as numbers:
        html.write_text(document(title, body, _css()), encoding="utf-8")
        write_json(numbers, evaluation.metrics)


def pieces(
    tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int], layers: Sequence[int]
) -> list[Piece]:
    """A text in parts, each with the deepest exit layer of its tokens.

    Args:
        tokenizer: the model's.
        tokens: of an answer.
        layers: the exit layer of each.
    """
    found: list[Piece] = []
    done, waiting = "", 0
    for number, layer in enumerate(layers, start=1):
        text = str(tokenizer.decode(list(tokens[:number]), skip_special_tokens=True))
        waiting = max(waiting, layer)
        if text.endswith("\N{REPLACEMENT CHARACTER}") and number < len(tokens):
            continue  # the rest of the character is in the next token
        if len(text) > len(done):
            found.append(Piece(text[len(done) :], waiting))
        done, waiting = text, 0
    return found


def _body(
    title: str,
    evaluation: GeneratorEvaluation,
    prompts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
) -> str:
    metrics, last = evaluation.metrics, evaluation.metrics["num_layers"]
    parts = [f"<h1>{escape(title)}</h1>", f"<dl>\n{tiles(_figures(metrics))}\n</dl>", _KEY]
    for row, prompt in enumerate(prompts):
        # The first token comes with the prompt, at full depth.
        layers = [last, *evaluation.exits.exit_layers[row]]
        spans = "".join(
            f'<span class="e{_shade(piece.layer, last)}" title="layer {piece.layer}">'
            f"{escape(piece.text)}</span>"
            for piece in pieces(tokenizer, evaluation.exits.tokens[row], layers)
        )
        same = evaluation.exits.tokens[row] == evaluation.full.tokens[row]
        full = str(tokenizer.decode(evaluation.full.tokens[row], skip_special_tokens=True))
        beside = "the same at full depth" if same else f"at full depth: {escape(full)}"
        said = escape(shorten(prompt, PROMPT_WIDTH))
        parts.append(f"<article><p>{said}</p><div>{spans}</div><p>{beside}</p></article>")
    return "\n".join(parts) + "\n"


def _figures(metrics: Json) -> list[tuple[str, str, str]]:
    forced, free = metrics["teacher_forced"], metrics["free_running"]
    found = [
        ("tokens", f"{forced['agreement']:.2%}", "as at full depth, on its text"),
        ("texts", f"{free['identical']:.2%}", "as at full depth, word for word"),
        ("ROUGE-L", f"{free['rouge']['rougeL']:.2f}", "to the text at full depth"),
        ("mean exit layer", f"{free['mean_exit_layer']:.2f}", f"of {metrics['num_layers']} layers"),
        ("cost ratio", f"{free['cost_ratio']:.2f}", "layers and LM head, full depth over exits"),
        ("prompts", f"{metrics['rows']:,}", f"threshold {metrics['threshold']:.4f}"),
    ]
    if "rouge" in metrics:
        full = metrics["full_depth_rouge"]["rougeL"]
        note = f"to the completions; {full:.2f} at full depth"
        found.insert(3, ("ROUGE-L", f"{metrics['rouge']['rougeL']:.2f}", note))
    return found


def _shade(layer: int, last: int) -> int:
    return min(SHADES - 1, SHADES * layer // (last + 1))


def _css() -> str:
    shades = (
        f".e{n} {{ background: color-mix(in srgb, var(--accent) {10 + 14 * n}%, transparent); }}"
        for n in range(SHADES)
    )
    return "article { border-top: 1px solid var(--line); padding: .6rem 0; }\n" + (
        "article div { white-space: pre-wrap; overflow-wrap: anywhere; }\n"
        + "\n".join(shades)
        + "\n"
    )


_KEY = """<h2>Texts</h2>
<p>The stronger a token's colour, the deeper it left; its title names the layer. The first token of
an answer comes with the prompt, at full depth.</p>"""
