"""How well rankers order prompts by the lengths of answers, source by source, beside yardsticks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from weir.ranker.kendall import tau_b
from weir.ranker.lengths import Answer, Asked, Lengths

LEAST = 20
"""Prompts under which a correlation is noise."""


@dataclass(frozen=True, slots=True)
class Row:
    """Kendall's tau-b of one model's answers. taus: by ranker; other: what the lengths of another
    model reach, on average over the others; None: there is none on these prompts."""

    source: str
    model: str
    prompts: int
    taus: dict[str, float]
    other: float | None


def evaluate(
    lengths: Lengths, scores: Mapping[str, Sequence[float]], together: Collection[str] = ()
) -> list[Row]:
    """A row for each source and model, and one for each family of models over several sources: a
    queue is a mixture, and so are the sets of chats that the paper ranks.

    scores: by ranker, of every prompt. `prompt length`, in characters, is always among them.
    together: the sources that make that mixture; empty: all."""
    scores = {"prompt length": [len(prompt) for prompt in lengths.prompts], **scores}
    by_source: dict[str, dict[Asked, dict[int, float]]] = defaultdict(dict)
    for asked, answers in lengths.answers.items():
        by_source[asked.source][asked] = {a.prompt: a.tokens for a in answers}
    rows = []
    for source, models in sorted(by_source.items()):
        for asked, known in models.items():
            if len(known) >= LEAST:
                others = [theirs for who, theirs in models.items() if who != asked]
                found = [Answer(*item) for item in known.items()]
                taus = _taus(found, scores)
                rows.append(Row(source, asked.model, len(found), taus, _other(known, others)))
    mixed = {
        name: [a for a in answers if not together or lengths.sources[a.prompt] in together]
        for name, answers in sorted(lengths.families().items())
    }
    known_to = {name: {a.prompt: a.tokens for a in answers} for name, answers in mixed.items()}
    for name, found in mixed.items():
        if len(found) >= LEAST and len({lengths.sources[answer.prompt] for answer in found}) > 1:
            others = [theirs for who, theirs in known_to.items() if who != name]
            other = _other(
                known_to[name], [t for t in others if _several(lengths, t, known_to[name])]
            )
            rows.append(Row("(mixed)", name, len(found), _taus(found, scores), other))
    return rows


def summary(rows: Sequence[Row]) -> list[Row]:
    """The mean over the models of each source; `prompts` is the most of one."""
    by_source: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_source[row.source].append(row)
    return [
        Row(
            source,
            f"{len(group)} models",
            max(row.prompts for row in group),
            {name: fmean(row.taus[name] for row in group) for name in group[0].taus},
            fmean(known) if (known := [r.other for r in group if r.other is not None]) else None,
        )
        for source, group in by_source.items()
    ]


def table(rows: Sequence[Row]) -> str:
    """Markdown."""
    names = list(rows[0].taus) if rows else []
    lines = [
        " | ".join(["| source", "model", "prompts", *names, "another model |"]),
        "|---|---|" + "---:|" * (len(names) + 2),
    ]
    for row in rows:
        other = "-" if row.other is None else f"{row.other:.2f}"
        taus = [f"{row.taus[name]:.2f}" for name in names]
        lines.append(
            " | ".join([f"| {row.source}", row.model, str(row.prompts), *taus, f"{other} |"])
        )
    return "\n".join(lines)


def _taus(answers: Sequence[Answer], scores: Mapping[str, Sequence[float]]) -> dict[str, float]:
    tokens = [answer.tokens for answer in answers]
    return {
        name: tau_b([values[answer.prompt] for answer in answers], tokens)
        for name, values in scores.items()
    }


def _several(lengths: Lengths, one: Mapping[int, float], other: Mapping[int, float]) -> bool:
    """Whether what two families both answered is of more than one source."""
    return len({lengths.sources[prompt] for prompt in one.keys() & other.keys()}) > 1


def _other(answers: Mapping[int, float], others: Sequence[Mapping[int, float]]) -> float | None:
    taus = []
    for theirs in others:
        both = sorted(answers.keys() & theirs.keys())
        if len(both) >= LEAST:
            taus.append(
                tau_b([theirs[place] for place in both], [answers[place] for place in both])
            )
    return fmean(taus) if taus else None
