"""Functions that want their whole batch at once, however deeply they are vmapped."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def over_members(function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Turns a function of a stack of members into one of a single member that sees all vmapped members at once.

    Not differentiable: use it under stop_gradient or inside lax.custom_linear_solve.

    Args:
        function: (shared, members) -> results; every leaf of members and results has the members along axis 0, shared
            is the same for all of them, e.g. a Gram matrix, and stays unbatched.

    Returns:
        (shared, member) -> result, without that axis. Nested vmaps are merged into one stack. Where `shared` is
        batched too (several heads), the heads are handled one after another, each with its own members.
    """

    @jax.custom_batching.custom_vmap
    def stacked(shared, members):
        return function(shared, members)

    @stacked.def_vmap
    def _(size, batched, shared, members):
        def spread(leaf, has_axis):
            return leaf if has_axis else jnp.broadcast_to(leaf, (size, *leaf.shape))

        members = jax.tree.map(spread, members, batched[1])
        if any(jax.tree.leaves(batched[0])):
            shared = jax.tree.map(spread, shared, batched[0])
            result = jax.lax.map(lambda arguments: stacked(*arguments), (shared, members))
        else:
            merged = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), members)
            result = stacked(shared, merged)
            result = jax.tree.map(lambda leaf: leaf.reshape(size, -1, *leaf.shape[1:]), result)
        return result, jax.tree.map(lambda _: True, result)

    def single(shared, member):
        lifted = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], member)
        return jax.tree.map(lambda leaf: leaf[0], stacked(shared, lifted))

    return single


def varying_like(reference: Any, tree: Any) -> Any:
    """The same tree, for shard_map different on each device where the reference is: a loop there must start so.

    A zero made from the data carries the mark on every version of JAX.
    """
    seen = [jnp.any(leaf.ravel()[:1] > jnp.zeros(1, leaf.dtype)) for leaf in jax.tree.leaves(reference)]
    zero = jnp.where(jnp.any(jnp.stack(seen)), 0, 0)
    return jax.tree.map(lambda leaf: leaf ^ (zero > 0) if leaf.dtype == bool else leaf + zero.astype(leaf.dtype), tree)
