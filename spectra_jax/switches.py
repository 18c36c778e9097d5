"""How public functions handle JAX's global switches and explicit meshes, so that their internals need not."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import jax
from jax.sharding import AxisType, PartitionSpec

P = ParamSpec("P")
R = TypeVar("R")


def public(*, rows: str | None = None, on_host: bool = False) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Marks a public function as one that works whatever JAX's switches say.

    - jax_debug_nans, jax_debug_infs: answers such as "infinitely far" are inf by their documentation, and so are
      numbers on the way to finite ones. What is wrong is refused by name or is NaN in the answer, where these switches
      see it as soon as the caller goes on with it. Within the caller's own jit they judge the answers themselves.
    - jax_transfer_guard: the constants of a formula and the values that are checked move between host and device.
    - Meshes with explicit axis types, the default of `jax.make_mesh`: gathers and loops have no rule that says where
      their results lie, so the compiler decides, as under axis types Auto, save for the results.

    Args:
        rows: name of the argument whose first axis is that of every result; None where results have no such axis. They
            lie where its rows do.
        on_host: the function reads numbers and answers in NumPy, so that arrays of an explicit mesh come off it first.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def called(*args: P.args, **kwargs: P.kwargs) -> R:
            with jax.debug_nans(False), jax.debug_infs(False), jax.transfer_guard("allow"):
                if on_host:
                    args, kwargs = jax.tree.map(_off_mesh, (args, kwargs))
                    return function(*args, **kwargs)
                return _on_any_mesh(function, rows, args, kwargs)

        return called

    return decorate


def _off_mesh(leaf: Any) -> Any:
    if not isinstance(leaf, jax.Array) or isinstance(leaf, jax.core.Tracer):
        return leaf
    if AxisType.Explicit not in jax.typeof(leaf).sharding.mesh.axis_types:
        return leaf
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        data = jax.device_get(jax.random.key_data(leaf))
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    return jax.device_get(leaf)


def _on_any_mesh(function: Callable[..., Any], rows: str | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    leaves, tree = jax.tree.flatten((args, kwargs))
    arrays = [leaf for leaf in leaves if isinstance(leaf, jax.Array)]
    meshes = (jax.typeof(array).sharding.mesh for array in arrays)
    mesh = next((mesh for mesh in meshes if AxisType.Explicit in mesh.axis_types), None)
    if mesh is None:
        return function(*args, **kwargs)

    def on_arrays(arrays: list[jax.Array]) -> Any:
        following = iter(arrays)
        given = [next(following) if isinstance(leaf, jax.Array) else leaf for leaf in leaves]
        args, kwargs = jax.tree.unflatten(tree, given)
        return function(*args, **kwargs)

    spec = PartitionSpec()
    if rows is not None:
        named = inspect.signature(function).bind(*args, **kwargs).arguments[rows]
        if isinstance(named, jax.Array):
            spec = PartitionSpec(*jax.typeof(named).sharding.spec[:1])
    with jax.sharding.use_abstract_mesh(mesh):
        return jax.sharding.auto_axes(on_arrays, out_sharding=spec)(arrays)
