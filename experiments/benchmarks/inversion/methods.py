"""Our searches by name, as the benchmark runs them; imports nothing heavy."""

from experiments.counterfactuals.options import InversionOptions

NEAREST = "spectra_jax nearest"  # all others are compared with it
OURS = {
    NEAREST: InversionOptions(method="nearest", survive_steps=12),
    "spectra_jax nearest, first found": InversionOptions(method="nearest", refine_steps=0),
    "spectra_jax nearest, refine 2": InversionOptions(method="nearest", survive_steps=12, refine_steps=2),
    "spectra_jax nearest, refine 20": InversionOptions(method="nearest", survive_steps=12, refine_steps=20),
    "spectra_jax gauss_newton": InversionOptions(method="gauss_newton"),
    "spectra_jax adam": InversionOptions(margin=0.2, shrink_steps=8),
    "the paper's loop": InversionOptions(method="gradient_descent", step_size=1.0),
}


def split_limit(name: str, most: int) -> tuple[str, int]:
    """A method's name and on how many pairs it is to run: "ddn-20:100" is ("ddn-20", 100)."""
    base, _, limit = name.partition(":")
    return base, int(limit) if limit else most
