"""ROUGE of generated texts."""

from __future__ import annotations

from collections.abc import Sequence

from consistentee.generation.extra import needing

ROUGE = ("rouge1", "rouge2", "rougeL")


def rouge(texts: Sequence[str], references: Sequence[str]) -> dict[str, list[float]]:
    """ROUGE-1, ROUGE-2 and ROUGE-L of each text, F-measures in 0..100 by their names.

    With Porter's stemmer, as the package rouge-score computes them (Lin, 2004).

    Args:
        texts: one or more.
        references: one for each.

    Raises:
        ValueError: the package is not installed.
    """
    with needing("rouge-score"):
        from rouge_score.rouge_scorer import RougeScorer
    scorer = RougeScorer(ROUGE, use_stemmer=True)
    scores = [scorer.score(r, t) for t, r in zip(texts, references, strict=True)]
    return {name: [100.0 * score[name].fmeasure for score in scores] for name in ROUGE}
