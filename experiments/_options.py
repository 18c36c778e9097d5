"""Types of command-line options that need more than Python's own."""

from typing import Annotated

from tyro.constructors import PrimitiveConstructorSpec

from spectra_jax.training import MAX_SEED


def _seed(words: list[str]) -> int:
    value = int(words[0])
    if not 0 <= value <= MAX_SEED:
        raise ValueError(f"{value} is no seed; expected a number from 0 to {MAX_SEED}")
    return value


# A random seed. Larger numbers would be cut to 32 bits by JAX and so mean the same as smaller ones.
Seed = Annotated[
    int,
    PrimitiveConstructorSpec(
        nargs=1,
        metavar="INT",
        instance_from_str=_seed,
        is_instance=lambda value: isinstance(value, int),
        str_from_instance=lambda value: [str(value)],
    ),
]
