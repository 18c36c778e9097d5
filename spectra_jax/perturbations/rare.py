"""Work that few members of a batch need, done for those few alone, however deeply vmapped."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool


def where_rare(flag: Bool[Array, ""], rare: Callable[[Any, Any], Any], default: Any, shared: Any, operands: Any) -> Any:
    """rare(shared, operands) where `flag` is set, `default` elsewhere.

    Under vmap a plain lax.cond evaluates both branches for every member and holds their memory at once.
    Here flagged members are handled one after another and the others cost nothing, at any depth of vmap.
    Not differentiable: use it under stop_gradient or inside lax.custom_linear_solve.

    Args:
        flag: whether this member needs the rare branch.
        rare: function of (shared, operands) returning the structure of `default`.
        default: pytree returned where the flag is not set.
        shared: pytree that is the same for all members, e.g. a Gram matrix; kept unbatched.
        operands: pytree of per-member arguments.

    Returns:
        Pytree like `default`.
    """

    @jax.custom_batching.custom_vmap
    def over_batch(flags, defaults, shared, operands):
        def one(member):
            return jax.lax.cond(member[0], lambda: rare(shared, member[2]), lambda: member[1])

        return jax.lax.cond(jnp.any(flags), lambda: jax.lax.map(one, (flags, defaults, operands)), lambda: defaults)

    @over_batch.def_vmap
    def _(size, batched, flags, defaults, shared, operands):
        def spread(leaf, has_axis):
            return leaf if has_axis else jnp.broadcast_to(leaf, (size, *leaf.shape))

        if any(jax.tree.leaves(batched[2])):  # several heads: one after another, each with its own batch
            full = jax.tree.map(spread, (flags, defaults, shared, operands), tuple(batched))
            result = jax.lax.map(lambda arguments: over_batch(*arguments), full)
        else:
            members = jax.tree.map(spread, (flags, defaults, operands), (batched[0], batched[1], batched[3]))
            merged = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), members)
            result = over_batch(merged[0], merged[1], shared, merged[2])
            result = jax.tree.map(lambda leaf: leaf.reshape(size, -1, *leaf.shape[1:]), result)
        return result, jax.tree.map(lambda _: True, result)

    lifted = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], (flag, default, operands))
    return jax.tree.map(lambda leaf: leaf[0], over_batch(lifted[0], lifted[1], shared, lifted[2]))
