"""Cross-domain retain accuracy: is the context, of a domain that nothing was forgotten in, still drawn?

    mean over contexts of the share of the context's images that the judge of contexts calls by it where it must answer

over images of kept labels. UnlearnCanvas leaves open whether images of the forgotten label count, and its code averages over
all: `by_label` gives the share of every label's images, forgotten ones included, and `by_context` (by position in
`evaluation.contexts`) the parts of the mean. Direction: higher; a retrained network scores what the base does.
Source: CRA of Zhang et al., arXiv 2402.11846.
"""

import numpy as np

from worker.metrics import UNMEASURED, Answers, Evidence, GeneratorAnswers, counts_by


def measure(answers: Answers, evidence: Evidence) -> tuple[float, int]:
    if (
        not isinstance(answers, GeneratorAnswers)
        or not len(answers.context_forced)
        or not np.any(answers.contexts >= 0)
    ):
        return UNMEASURED
    shares = list(by_context(answers).values())
    return (float(np.mean(shares)), int(np.sum(answers.of_kept))) if shares else UNMEASURED


def by_context(answers: GeneratorAnswers) -> dict[int, float]:
    kept = answers.of_kept
    return shares(answers.contexts[kept], right(answers)[kept])


def by_label(answers: GeneratorAnswers) -> dict[int, float]:
    return shares(answers.asked, right(answers))


def right(answers: GeneratorAnswers) -> np.ndarray:
    found: np.ndarray = answers.context_forced == answers.contexts
    return found


def shares(groups: np.ndarray, hits: np.ndarray) -> dict[int, float]:
    """Percent of hits in each group."""
    return {int(group): 100.0 * float(np.mean(hits[groups == group])) for group in np.unique(groups)}


def counts(answers: GeneratorAnswers) -> list[tuple[int, int]]:
    """Of each context: images of kept labels that the judge of contexts calls by it, and all."""
    kept = answers.of_kept
    return counts_by(answers.contexts[kept], right(answers)[kept])
