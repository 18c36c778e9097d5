"""CANARY's score: metrics clipped and scaled to [0, 1], then the ability of a three-parameter item response model."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from spectra_jax.canary import READINGS, Reading
from spectra_jax.extras import extra
from spectra_jax.inversion.config import check_choice

# Of an attack: metric -> (values that become 0 and 1, whether smaller is better for the attack).
LIMITS = {
    "MR": (0.0, 1.0, False),
    "AIAC": (0.0, 1.0, False),
    "ARTC": (0.0, 1.0, False),
    "ACAMC_A": (0.5, 1.0, True),
    "ACAMC_T": (0.5, 1.0, True),
    "OTR": (0.0, 1.0, False),
    "APCR": (0.0, 1.0, True),
    "AED": (0.0, 0.1, True),
    "AMD": (0.0, 32 / 255, True),
    "AED_HF": (0.0, 0.1, True),
    "AED_LF": (0.0, 0.1, True),
    "ADMS": (0.0, 0.4, True),
    "ALMS": (0.0, 0.4, True),
    "AQN": (0.0, 50_000.0, True),
}
WARMUP, SAMPLES = 500, 1000


def clipped(metrics: Mapping[str, float], *, reading: Reading = "as defined") -> dict[str, float]:
    """An attack's metrics in [0, 1], larger for a better attack.

    Args:
        metrics: by name, any of LIMITS; forward and backward passes count as one AQN, their mean.
        reading: "as coded" makes ACAMC_T 0 before its reversal where ACAMC_A, not ACAMC_T, is at most one half.

    Returns:
        By name, in the order given; NaN stays NaN.

    Raises:
        ValueError: a metric that has no limits, or ACAMC_T without ACAMC_A "as coded".
    """
    check_choice("reading", reading, READINGS)
    found = {}
    for name, value in metrics.items():
        if name not in LIMITS:
            raise ValueError(f"metrics contains {name!r}; expected some of {', '.join(LIMITS)}")
        low, high, reverse = LIMITS[name]
        share = min(max((value - low) / (high - low), 0.0), 1.0) if not np.isnan(value) else value
        if name == "ACAMC_T" and reading == "as coded":
            if "ACAMC_A" not in metrics:
                raise ValueError('metrics has no "ACAMC_A"; expected it beside "ACAMC_T" for the reading "as coded"')
            share = 0.0 if metrics["ACAMC_A"] <= low else (value - low) / (high - low)
        found[name] = 1 - share if reverse else share
    return found


def scaled(table: Float[np.ndarray, "a m"]) -> Float[np.ndarray, "a m"]:
    """Each metric of several attacks from its smallest value to its largest; one that never varies stays as it is.

    Args:
        table: (attacks, metrics). The code also rounds to two digits, which loses the order and is omitted here.

    Returns:
        The same shape, in [0, 1].
    """
    table = np.asarray(table, np.float64)
    low, span = table.min(axis=0), np.ptp(table, axis=0)
    return np.where(span > 0, (table - low) / np.where(span > 0, span, 1), table)


def irt_ability(table: Float[np.ndarray, "a m"], *, seed: int = 0) -> tuple[Float[np.ndarray, " a"], float]:
    """Posterior mean ability of each attack by the three-parameter logistic model, by NumPyro's NUTS.

    P = c + (1 - c) sigmoid(a theta + b) with theta, b ~ N(0, 1), log a ~ N(0, 1) and c ~ Beta(5, 17), the priors
    of CANARY's code; as there, scores in [0, 1] enter the Bernoulli likelihood as they are. Its Metropolis chain of
    60,000 steps is replaced by a sampler that reports whether it has converged.

    Args:
        table: (attacks, metrics) in [0, 1], from `scaled`.
        seed: seed of the sampler.

    Returns:
        (attacks,) abilities, and their largest split R-hat: at most about 1.01 where the two chains agree.

    Raises:
        ValueError: the table is not two-dimensional or leaves [0, 1].
        MissingLibraryError: NumPyro is not installed.
    """
    table = np.asarray(table, np.float32)
    if table.ndim != 2 or not ((table >= 0) & (table <= 1)).all():
        raise ValueError(f"table is {table.shape}; expected (attacks, metrics) in [0, 1]: remove columns with NaN")
    with extra("canary"):
        import numpyro
        from numpyro import distributions as dist
        from numpyro.diagnostics import split_gelman_rubin
        from numpyro.infer import MCMC, NUTS

    attacks, metrics = table.shape

    def model() -> None:
        ability = numpyro.sample("ability", dist.Normal(0.0, 1.0).expand([attacks]).to_event(1))
        slope = numpyro.sample("slope", dist.LogNormal(0.0, 1.0).expand([metrics]).to_event(1))
        threshold = numpyro.sample("threshold", dist.Normal(0.0, 1.0).expand([metrics]).to_event(1))
        guess = numpyro.sample("guess", dist.Beta(5.0, 17.0).expand([metrics]).to_event(1))
        chance = guess + (1 - guess) * jax.nn.sigmoid(slope * ability[:, None] + threshold)
        chance = jnp.clip(chance, 1e-6, 1 - 1e-6)
        numpyro.factor("scores", jnp.sum(table * jnp.log(chance) + (1 - table) * jnp.log1p(-chance)))

    # The sampler is not ours: it mixes types and ranks as JAX does by default.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        sampler = MCMC(NUTS(model, target_accept_prob=0.95), num_warmup=WARMUP, num_samples=SAMPLES, num_chains=2,
                       chain_method="sequential", progress_bar=False)  # fmt: skip
        sampler.run(jax.random.key(seed))
        draws = np.asarray(sampler.get_samples(group_by_chain=True)["ability"])
    return draws.mean(axis=(0, 1)), float(np.max(split_gelman_rubin(draws)))


def canary_score(attacks: Mapping[str, Mapping[str, float]], groups: Sequence[Sequence[str]], *, seed: int = 0,
                 reading: Reading = "as defined") -> dict[str, float]:  # fmt: skip
    """CANARY's score of several attacks: abilities per group of metrics, then the ability over the groups.

    Args:
        attacks: name -> metrics, the same ones for all, none of them NaN.
        groups: names of the metrics of each group: effect, visibility, cost.
        seed: seed of the samplers.
        reading: reading of the clipping.

    Returns:
        name -> score in [0, 1]; 0 for the worst of these attacks and 1 for the best.
    """
    rows = [clipped(metrics, reading=reading) for metrics in attacks.values()]
    parts = [irt_ability(scaled(np.array([[row[n] for n in names] for row in rows])), seed=seed)[0] for names in groups]
    total, _ = irt_ability(scaled(np.stack(parts, axis=1)), seed=seed)
    return dict(zip(attacks, scaled(total[:, None])[:, 0].tolist(), strict=True))
