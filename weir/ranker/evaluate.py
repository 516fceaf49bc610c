"""How well rankers order prompts by the lengths of answers, source by source, beside yardsticks."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isnan, nan
from statistics import fmean

from weir.ranker.consensus import consensus
from weir.ranker.kendall import tau_b
from weir.ranker.lengths import Answer, Asked, Lengths

LEAST = 20
"""Prompts under which a correlation is noise."""


@dataclass(frozen=True, slots=True)
class Row:
    """Kendall's tau-b of one model's answers. taus: by ranker, and by yardstick: another model's
    lengths, the mean over them, and what all others say together. NaN: there are no others."""

    source: str
    model: str
    prompts: int
    taus: dict[str, float]


Known = dict[int, float]  # tokens of the answer, by prompt


def evaluate(
    lengths: Lengths, scores: Mapping[str, Sequence[float]], together: Collection[str] = ()
) -> list[Row]:
    """A row for each source and model, and one for each family of models over several sources: a
    queue is a mixture, and so are the sets of chats that the paper ranks.

    scores: by ranker, of every prompt. `prompt length`, in characters, is always among them.
    together: the sources that make that mixture; empty: all."""
    scores = {"prompt length": [len(prompt) for prompt in lengths.prompts], **scores}
    rows = []
    for source, models in _sets(lengths, together).items():
        for model, known in models.items():
            if len(known) >= LEAST:
                others = {name: theirs for name, theirs in models.items() if name != model}
                tokens = list(known.values())
                taus = {n: tau_b([s[place] for place in known], tokens) for n, s in scores.items()}
                taus["another model"] = _mean(_tau(theirs, known) for theirs in others.values())
                taus["all others"] = _tau(_all(lengths, others), known)
                rows.append(Row(source, model, len(known), taus))
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
            {name: _mean(row.taus[name] for row in group) for name in group[0].taus},
        )
        for source, group in by_source.items()
    ]


def table(rows: Sequence[Row]) -> str:
    """Markdown."""
    names = list(rows[0].taus) if rows else []
    lines = [
        " | ".join(["| source", "model", "prompts", *names]) + " |",
        "|---|---|" + "---:|" * (len(names) + 1),
    ]
    for row in rows:
        taus = ["-" if isnan(tau) else f"{tau:.2f}" for tau in row.taus.values()]
        lines.append(" | ".join([f"| {row.source}", row.model, str(row.prompts), *taus]) + " |")
    return "\n".join(lines)


def _sets(lengths: Lengths, together: Collection[str]) -> dict[str, dict[str, Known]]:
    """What models answered, by source, and by families to the sources `together`."""
    found: dict[str, dict[str, Known]] = defaultdict(dict)
    for asked, answers in sorted(lengths.answers.items()):
        found[asked.source][asked.model] = {a.prompt: a.tokens for a in answers}
    for name, answers in sorted(lengths.families().items()):
        chosen = [a for a in answers if not together or lengths.sources[a.prompt] in together]
        if len({lengths.sources[answer.prompt] for answer in chosen}) > 1:
            of: dict[int, list[float]] = defaultdict(list)  # of several versions
            for answer in chosen:
                of[answer.prompt].append(answer.tokens)
            found["(mixed)"][name] = {prompt: fmean(tokens) for prompt, tokens in of.items()}
    return found


def _all(lengths: Lengths, models: Mapping[str, Known]) -> Known:
    """The consensus of models on what they were asked."""
    answers = {
        Asked("", name): [Answer(*item) for item in known.items()] for name, known in models.items()
    }
    together = consensus(Lengths(lengths.prompts, lengths.sources, answers)) if answers else None
    agreed = together.answers.values() if together else ()
    return {answer.prompt: answer.tokens for found in agreed for answer in found}


def _tau(theirs: Known, known: Known) -> float:
    both = sorted(known.keys() & theirs.keys())
    if len(both) < LEAST:
        return nan
    return tau_b([theirs[place] for place in both], [known[place] for place in both])


def _mean(taus: Iterable[float]) -> float:
    """Of those that there are."""
    found = [tau for tau in taus if not isnan(tau)]
    return fmean(found) if found else nan
