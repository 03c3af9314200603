"""`generate` of a file: answers beside the prompts, stopped runs, and the one line where it
cannot.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from support.command_line import Run, check_one_line
from support.decoder_folder import save_decoder, tokenizer
from support.decoders import tiny_causal_lm
from support.files import write

from consistentee.evaluation.kept_rows import KeptRows
from consistentee_ext.generation.prompts import encode_prompt
from consistentee_ext.generation.reference import generate
from consistentee_ext.generation.rules import PolicyRule

TEXTS = [f"say {' '.join(letters)}" for letters in ("a", "bc", "d", "efg", "h", "ijk", "l", "mn")]
SHORT = ("--max-new-tokens", 6, "--batch-size", 3)


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("decoder")
    tiny_causal_lm(decoder={"vocab_size": 20, "eos_token_id": 1}).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def prompts_in(folder: Path, **more: object) -> Path:
    rows = [{"prompt": text, "id": number, **more} for number, text in enumerate(TEXTS)]
    return write(folder / "prompts.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def read(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_answers_are_the_references(run: Callable[..., Run], decoder: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    command = ("generate", decoder, prompts_in(tmp_path), "--output", output, *SHORT)
    done = run(*command, "--threshold", 0.6)
    assert done.code == 0, done.err
    assert done.err == "generate: 8 of 8 in 00:00, 00:00 left\n"
    model = tiny_causal_lm(decoder={"vocab_size": 20, "eos_token_id": 1})
    words, layers = tokenizer(), set()
    for number, row in enumerate(read(output)):
        expected = generate(model, [encode_prompt(words, TEXTS[number])], 6, PolicyRule(0.6))
        tokens, exits = expected.tokens[0], [4, *expected.exit_layers[0]]
        assert row == {
            "prompt": TEXTS[number],
            "id": number,
            "answer": words.decode(tokens, skip_special_tokens=True),
            "answer_tokens": len(tokens),
            "mean_exit_layer": pytest.approx(sum(exits) / len(exits)),
        }
        layers |= set(exits)
    assert len(layers) >= 3
    assert {path.name for path in tmp_path.iterdir()} == {"out.jsonl", "prompts.jsonl"}


def test_a_stopped_run_goes_on(
    run: Callable[..., Run], decoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts, output, append = prompts_in(tmp_path), tmp_path / "out.jsonl", KeptRows.append

    def stop(kept: KeptRows, *arguments: object) -> None:
        if kept.number == 5:
            raise KeyboardInterrupt
        append(kept, *arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(KeptRows, "append", stop)
        done = run("generate", decoder, prompts, "--output", output, *SHORT)
    assert done.code == 130
    assert done.err.splitlines()[-1] == "consistentee: interrupted"
    assert not output.exists()
    command = ("generate", decoder, prompts, "--output", output, *SHORT)
    check_one_line(run(*command), "out.jsonl.resume: expected none, or --resume; it has 5 of 8")
    check_one_line(run(*command, "--resume", "--threshold", 0.99), "one with another threshold")
    check_one_line(
        run(*command[:5], "--resume", "--max-new-tokens", 7), "one with another max_new_tokens"
    )
    done = run(*command, "--resume")
    assert done.code == 0, done.err
    whole = tmp_path / "whole.jsonl"
    assert run("generate", decoder, prompts, "--output", whole, *SHORT).code == 0
    assert output.read_bytes() == whole.read_bytes()
    assert not (tmp_path / "out.jsonl.resume").exists()


def test_generate_says_in_one_line_what_is_wrong(
    run: Callable[..., Run], decoder: Path, tmp_path: Path
) -> None:
    prompts, output = prompts_in(tmp_path), tmp_path / "out.jsonl"

    def of(*more: object, model: Path = decoder, file: Path = prompts) -> Run:
        return run("generate", model, file, "--output", output, *more)

    check_one_line(of("--max-new-tokens", 64), "max_new_tokens: expected at most 61", "got 64")
    check_one_line(of("--max-new-tokens", 0), "max_new_tokens: expected at least 1, got 0")
    check_one_line(of("--batch-size", 0), "batch_size: expected at least 1, got 0")
    check_one_line(of("--threshold", 0), "threshold: expected a number in (0, 1], got 0")
    check_one_line(of(file=tmp_path / "none.jsonl"), "none.jsonl: expected a file")
    check_one_line(of(model=tmp_path / "none"), "none: expected a folder")
    texts = write(tmp_path / "texts.jsonl", json.dumps({"text": "a"}) + "\n")
    check_one_line(of(file=texts), "texts.jsonl", "prompt")
    blank = write(tmp_path / "blank.jsonl", json.dumps({"prompt": ""}) + "\n")
    check_one_line(of(file=blank), "blank.jsonl", "prompt")
    tsv = run("generate", decoder, prompts, "--output", tmp_path / "out.tsv")
    check_one_line(tsv, "out.tsv: expected .jsonl, .csv or .parquet", "got '.tsv'")
    broken = save_decoder(tmp_path / "broken", num_hidden_layers=1)
    (broken / "config.json").write_text(json.dumps({"model_type": "bert"}))
    check_one_line(of(model=broken), "expected a config of model_type", "got 'bert'")
    taken = prompts_in(tmp_path, answer="b")
    check_one_line(of(file=taken), "prompts: expected no column 'answer', which the output adds")
    assert not output.exists()
    assert not list(tmp_path.glob("*.resume"))
