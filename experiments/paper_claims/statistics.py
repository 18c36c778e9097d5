"""From measured pairs to a verdict: class-clustered bootstrap intervals and the rule that reads them."""

from typing import Literal, NamedTuple

import numpy as np

DRAWS = 2000
FEWEST_CLUSTERS = 5
Word = Literal["holds", "fails", "undecided", "missing"]
RULE = (
    "A claim is compared with each of its controls. The interval of the difference is the middle 95 % of "
    f"{DRAWS:,} bootstrap draws in which whole classes (of the original images) are drawn with replacement, so that "
    "pictures of one class do not count as independent. Holds: the whole interval is above 0 and the difference is at "
    "least the smallest one that would justify the claim's wording, which the table states. Fails: the whole interval "
    f"is below that size. Undecided: otherwise, or with fewer than {FEWEST_CLUSTERS} classes.\n\n"
    "A claim as a whole holds if it holds against every control, fails if it fails against any one, and is undecided "
    "otherwise. A control that was not measured is listed as missing and ignored."
)


class Comparison(NamedTuple):
    """One question of a claim, measured on every pair.

    Attributes:
        claim: section of the paper, such as "5.2.2".
        name: of the comparison, such as "elsewhere on the bird".
        statement: what would have to be true, in words.
        value, control: (p,) of every pair; NaN where not defined.
        cluster: (p,) what is drawn together, usually the class of the image.
        least: smallest difference that deserves the claim's words.
        unit: "" or "%".
        rows: (p,) which pair each entry belongs to, for the pictures; None where there are none.
        source: "flips" or "singles": where `rows` points to.
    """

    claim: str
    name: str
    statement: str
    value: np.ndarray
    control: np.ndarray
    cluster: np.ndarray
    least: float
    unit: str = ""
    rows: np.ndarray | None = None
    source: str = "singles"


class Verdict(NamedTuple):
    """What came of a comparison.

    Attributes:
        claim, name, statement, least, unit: of the comparison.
        pairs: how many count.
        clusters: how many classes they come from.
        value, control: their means.
        difference: of the two.
        low, high: 95 % interval of the difference.
        verdict: by `RULE`.
    """

    claim: str
    name: str
    statement: str
    least: float
    unit: str
    pairs: int
    clusters: int
    value: float
    control: float
    difference: float
    low: float
    high: float
    verdict: Word


def resampled(clusters: int, draws: int, rng: np.random.Generator) -> np.ndarray:
    """(draws, clusters) how often each cluster was drawn in a sample of as many clusters, with replacement."""
    return rng.multinomial(clusters, np.full(clusters, 1 / clusters), size=draws)


def clustered_interval(
    difference: np.ndarray, cluster: np.ndarray, *, draws: int = DRAWS, seed: int = 0
) -> tuple[float, float]:
    """95 % percentile interval of the mean when whole clusters are drawn with replacement.

    Args:
        difference: (p,) finite numbers.
        cluster: (p,) of each.
        draws: bootstrap samples.
        seed: of them.
    """
    _, member = np.unique(cluster, return_inverse=True)
    sums, counts = np.bincount(member, weights=difference), np.bincount(member)
    weights = resampled(len(sums), draws, np.random.default_rng(seed))
    low, high = np.quantile((weights @ sums) / (weights @ counts), [0.025, 0.975])
    return float(low), float(high)


def read_interval(difference: float, low: float, high: float, least: float, clusters: int) -> Word:
    """The verdict of `RULE`."""
    if clusters < FEWEST_CLUSTERS or not np.isfinite([difference, low, high]).all():
        return "undecided"
    if low > 0 and difference >= least:
        return "holds"
    return "fails" if high < least else "undecided"


def judge(comparison: Comparison) -> Verdict:
    """The verdict on the pairs for which value and control are both defined."""
    known = np.isfinite(comparison.value) & np.isfinite(comparison.control)
    named = (comparison.claim, comparison.name, comparison.statement, comparison.least, comparison.unit)
    if not known.any():
        nothing = float("nan")
        return Verdict(*named, 0, 0, nothing, nothing, nothing, nothing, nothing, "missing")
    value, control = (np.asarray(side, np.float64)[known] for side in (comparison.value, comparison.control))
    cluster = comparison.cluster[known]
    low, high = clustered_interval(value - control, cluster)
    difference, clusters = float((value - control).mean()), len(np.unique(cluster))
    word = read_interval(difference, low, high, comparison.least, clusters)
    pairs, mean, against = int(known.sum()), float(value.mean()), float(control.mean())
    return Verdict(*named, pairs, clusters, mean, against, difference, low, high, word)


def overall(words: list[Word]) -> Word:
    """The verdict on a claim from those on its comparisons."""
    measured = [word for word in words if word != "missing"]
    if not measured:
        return "missing"
    if "fails" in measured:
        return "fails"
    return "undecided" if "undecided" in measured else "holds"


def matched_auroc(
    score: np.ndarray, positive: np.ndarray, negative: np.ndarray, frequency: np.ndarray, group: np.ndarray,
    *, ratio: float | None, draws: int = DRAWS, seed: int = 0,
) -> tuple[float, float, float, int]:  # fmt: skip
    """How often an attribute of one kind scores above one of the other kind that is about as frequent.

    Args:
        score: (n,) of each attribute; NaN leaves it out.
        positive, negative: (n,) booleans, the two kinds.
        frequency: (n,) share of images that have the attribute.
        group: (n,) attributes of one group are drawn together.
        ratio: only pairs whose frequencies differ by at most this factor count; None takes all pairs.
        draws, seed: of the bootstrap, which draws groups of either kind.

    Returns:
        AUROC, the ends of its 95 % interval, and the number of attribute pairs; NaN and 0 without any pair.
    """
    usable = np.isfinite(score) & ((frequency > 0) | (ratio is None))
    one, other = np.flatnonzero(positive & usable), np.flatnonzero(negative & usable)
    wins = (score[one, None] > score[None, other]) + 0.5 * (score[one, None] == score[None, other])
    counts = np.ones_like(wins)
    if ratio is not None:
        counts = (np.abs(np.log(frequency[one, None] / frequency[None, other])) <= np.log(ratio)).astype(float)
    pairs = int(counts.sum())
    if not pairs:
        return float("nan"), float("nan"), float("nan"), 0
    rng = np.random.default_rng(seed)
    weights = []
    for members in (one, other):
        _, belongs = np.unique(group[members], return_inverse=True)
        weights.append(resampled(int(belongs.max()) + 1, draws, rng)[:, belongs].astype(float))
    total = np.einsum("bi,ij,bj->b", weights[0], counts, weights[1], optimize=True)
    won = np.einsum("bi,ij,bj->b", weights[0], counts * wins, weights[1], optimize=True)
    low, high = np.quantile(won[total > 0] / total[total > 0], [0.025, 0.975])
    return float((counts * wins).sum() / pairs), float(low), float(high), pairs


def agreement(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """1 where two signs agree, 0 where they differ, NaN where one of the numbers is 0 or not finite."""
    product = np.sign(first) * np.sign(second)
    defined = np.isfinite(first) & np.isfinite(second) & (product != 0)
    return np.where(defined, (product > 0).astype(float), np.nan)


def cosine(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Cosine along the last axis; NaN where one of the vectors is 0."""
    lengths = np.linalg.norm(first, axis=-1) * np.linalg.norm(second, axis=-1)
    inner = (first * second).sum(axis=-1)
    return np.divide(inner, lengths, out=np.full(np.shape(inner), np.nan), where=lengths > 0)


def percentile_of(values: np.ndarray, chosen: int) -> float:
    """Share of the other entries that the chosen one exceeds; a tie counts half. 1 is the largest, 0.5 is chance."""
    others = np.delete(values, chosen)
    return float(((values[chosen] > others) + 0.5 * (values[chosen] == others)).mean())
