"""Layers that enlarge no difference, ||f(x) - f(x')|| <= ||x - x'||: in closed form, without state or iteration.

A layer is a kernel K, read as the matrix of a linear map, and a rescaling of its outputs that its Gram matrix allows:
T = diag(sum_k |K K^T|_jk q_k / q_j) is at least K K^T for any q > 0, by diagonal dominance.

    AOL (Prach and Lampert 2022):  x -> T^(-1/2) K x + b
    SLL (Araujo et al. 2023):      x -> x - 2 K^T T^(-1) relu(K x + b)

For a convolution K K^T is that of the whole plane, whose rows are sums over shifts of the kernel's self-correlation;
zero padding cuts a piece out of that operator, which T bounds as well.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

HIGHEST = jax.lax.Precision.HIGHEST
# The collection in which layers leave their rounding bounds; the leaf in which `fold` leaves a layer's rescaling.
ROUNDING, RESCALING = "rounding", "rescaling"
# Added to T: a row of a kernel that trains towards 0 would otherwise be blown up, and the training with it.
_GUARD = 1e-6


class AOL(nn.Module):
    """A rescaled convolution, or matrix where the kernel's side is 1.

    Attributes:
        width: channels out.
        kernel_size: side of the kernel, odd.
    """

    width: int
    kernel_size: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b h w o"]:
        shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.width)
        kernel = self.param("orthogonal_kernel", nn.initializers.orthogonal(), shape, jnp.float32)
        rescaling = _rescaling(self, kernel)
        bias = self.param("bias", nn.initializers.zeros, (self.width,), jnp.float32)
        _leave_rounding(self, lambda: _aol_rounding(x, kernel, rescaling, bias))
        return convolve(x, kernel) * per_channel(rescaling) + per_channel(bias)


class SLL(nn.Module):
    """A residual layer.

    Attributes:
        hidden: channels inside.
        kernel_size: side of the kernel, odd.
    """

    hidden: int
    kernel_size: int = 3

    @nn.compact
    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b h w i"]:
        shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.hidden)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape, jnp.float32)
        rescaling = _rescaling(self, kernel)
        bias = self.param("bias", nn.initializers.zeros, (self.hidden,), jnp.float32)
        inside = nn.relu(convolve(x, kernel) + per_channel(bias)) * per_channel(rescaling)
        taken = convolve(2 * per_channel(rescaling) * inside, _transposed(kernel))
        _leave_rounding(self, lambda: _sll_rounding(x, kernel, rescaling, bias, inside, taken))
        return x - taken


def space_to_channels(x: Float[Array, "b h w d"], side: int) -> Float[Array, "b _ _ _"]:
    """Every side x side block of pixels as one pixel: an isometry. Zeros are appended where the blocks do not fit."""
    x = jnp.pad(x, ((0, 0), *((0, -size % side) for size in x.shape[1:3]), (0, 0)))
    b, h, w, d = x.shape
    x = x.reshape(b, h // side, side, w // side, side, d).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, h // side, w // side, side * side * d)


def convolve(x: Float[Array, "b h w i"], kernel: Float[Array, "k k i o"]) -> Float[Array, "b h w o"]:
    """A zero-padded convolution at full precision: the proofs are about what is computed."""
    if kernel.shape[:2] == (1, 1):
        return jnp.matmul(x, kernel[0, 0], precision=HIGHEST)
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers, precision=HIGHEST)


def fold(params: Any) -> Any:
    """The parameters with every layer's rescaling beside its kernel, so that calls need not compute it again.

    A rescaling that is there already stays: it is part of the network as it computes, and of what is proven of it.
    """
    if not isinstance(params, dict) or RESCALING in params:
        return params
    if "log_weight" not in params:
        return {name: fold(part) for name, part in params.items()}
    return {**params, RESCALING: rescale(_kernel(params), params["log_weight"])}


@jax.jit
def rescale(kernel: Float[Array, "k k i o"], log_weight: Float[Array, " o"]) -> Float[Array, " o"]:
    """T^(-1/2)."""
    weight, sums = jnp.exp(log_weight), jnp.zeros_like(log_weight)
    for here, there, is_shifted in _overlaps(kernel):
        gram = jnp.abs(jnp.matmul(here.T, there, precision=HIGHEST))
        sums = sums + jnp.matmul(gram, weight) + (jnp.matmul(gram.T, weight) if is_shifted else 0)
    return jax.lax.rsqrt(sums / weight + _GUARD)


def _overlaps(kernel: Any) -> Iterator[tuple[Any, Any, bool]]:
    """What is left of a kernel and of its copy one on top of the other, for each shift or its opposite.

    Yields:
        Two matrices (m, o) of JAX or NumPy, and whether the opposite shift is another one, with the transposed product.
    """
    side, width = kernel.shape[0], kernel.shape[3]
    for rows in range(side):
        for columns in range(1 - side if rows else 0, side):
            here = kernel[rows:, max(columns, 0) : side + min(columns, 0)]
            there = kernel[: side - rows, max(-columns, 0) : side + min(-columns, 0)]
            yield here.reshape(-1, width), there.reshape(-1, width), bool(rows or columns)


def layers(params: Any) -> Iterator[Any]:
    """The parameters of every AOL and SLL layer among parameters."""
    if "log_weight" in params:
        yield params
        return
    for part in params.values():
        if isinstance(part, dict):
            yield from layers(part)


def lipschitz_of(layer: Any) -> float:
    """The Lipschitz constant of a layer with these folded parameters, rounded up.

    Computed on the host, in float64, of the very numbers that the layers multiply with. With s the largest
    T_j rescaling_j^2 it is sqrt(s) for AOL; SLL is x - s (x - f(x)) with an f that enlarges nothing: 1 + 2 (s - 1).
    """
    largest = _largest_rescaled(layer)
    return math.sqrt(largest) * (1 + 2.0**-50) if "orthogonal_kernel" in layer else max(2 * largest - 1, 1.0)


def _largest_rescaled(layer: Any) -> float:
    kernel, rescaling = (np.asarray(value, np.float64) for value in (_kernel(layer), layer[RESCALING]))
    weight = np.exp(np.asarray(layer["log_weight"], np.float64))
    side, width = kernel.shape[0], kernel.shape[3]
    sums, sizes = np.zeros((width, width)), np.zeros((width, width))
    for here, there, is_shifted in _overlaps(kernel):
        gram, size = np.abs(here.T @ there), np.abs(here).T @ np.abs(there)
        sums += gram + (gram.T if is_shifted else 0)
        sizes += size + (size.T if is_shifted else 0)
    rounding = (side**2 * kernel.shape[2] + 2 * width + (2 * side) ** 2) * 2.0**-52
    bound = rescaling**2 * ((sums + rounding * sizes) @ weight) / weight
    return float(np.max(bound) * (1 + rounding))


def per_channel(values: Float[Array, " d"]) -> Float[Array, "1 1 1 d"]:
    """One value for each channel of (b, h, w, d): no axis is added silently here."""
    return values[None, None, None, :]


class Rounding(NamedTuple):
    """A bound on the rounding error of a layer, for all inputs within r of the given one: at + r * per_unit.

    Attributes:
        at: (b,) at the given inputs.
        per_unit: () what each unit of distance adds.
    """

    at: Float[Array, " b"]
    per_unit: Float[Array, ""]


def _aol_rounding(
    x: Float[Array, "b h w i"],
    kernel: Float[Array, "k k i o"],
    rescaling: Float[Array, " o"],
    bias: Float[Array, " o"],
) -> Rounding:
    """Of rescaling * (K x) + b.

    Each number is a sum of m products in some order: its error is at most gamma_m sum |K| |x| (Higham 2002, 3.5). The
    length of a channel of |K| |x| is at most the lengths of the channels of x times |K| summed over its shifts. It is
    true of direct sums, and not of a convolution by Winograd's or Fourier's way.
    """
    summed = jnp.sum(jnp.abs(kernel), axis=(0, 1)) * rescaling[None, :]
    offsets = jnp.abs(bias) * math.sqrt(x.shape[1] * x.shape[2])
    channels = jnp.sqrt(jnp.sum(jnp.square(x), axis=(1, 2)))
    largest = jnp.matmul(channels, summed, precision=HIGHEST) + offsets[None, :]
    relative = rounding_of(math.prod(kernel.shape[:3]) + 3, x.dtype)
    return Rounding(relative * _length(largest, axis=-1), relative * _length(summed))


def _sll_rounding(
    x: Float[Array, "b h w i"],
    kernel: Float[Array, "k k i o"],
    rescaling: Float[Array, " o"],
    bias: Float[Array, " o"],
    inside: Float[Array, "b h w o"],
    taken: Float[Array, "b h w i"],
) -> Rounding:
    """The same of x - taken, taken = 2 K^T (rescaling * inside)."""
    ones = jnp.ones(kernel.shape[2], x.dtype)
    first = _aol_rounding(x, kernel, rescaling, rescaling * bias)
    second = _aol_rounding(inside, _transposed(kernel * per_channel(rescaling)), ones, jnp.zeros_like(ones))
    subtraction = rounding_of(2, x.dtype)
    # 2 K^T rescaling enlarges by at most 2, what is `inside` already and what its own product adds.
    at = 2 * (first.at + second.at) + subtraction * (_length(x, axis=(1, 2, 3)) + _length(taken, axis=(1, 2, 3)))
    return Rounding(at, 2 * (first.per_unit + second.per_unit) + 3 * subtraction)


def _length(values: Float[Array, "..."], axis: Any = None) -> Float[Array, "..."]:
    return jnp.sqrt(jnp.sum(jnp.square(values), axis=axis))


def rounding_of(terms: int, dtype: Any) -> float:
    """gamma_m, the relative error of a sum of m products."""
    unit = terms * float(jnp.finfo(dtype).eps) / 2
    return 1.01 * unit / (1 - unit)  # a little more, for the bound is computed with rounding too


def _leave_rounding(module: nn.Module, bound: Callable[[], Rounding]) -> None:
    if module.is_mutable_collection(ROUNDING) and not module.is_initializing():
        module.sow(ROUNDING, "bound", bound())


def _rescaling(module: nn.Module, kernel: Float[Array, "k k i o"]) -> Float[Array, " o"]:
    log_weight = module.param("log_weight", nn.initializers.zeros, kernel.shape[-1:], jnp.float32)
    if not module.has_variable("params", RESCALING):
        return rescale(kernel, log_weight)
    return _stored(module.get_variable("params", RESCALING), kernel, log_weight)


@jax.custom_jvp
def _stored(
    rescaling: Float[Array, " o"], kernel: Float[Array, "k k i o"], log_weight: Float[Array, " o"]
) -> Float[Array, " o"]:
    """A rescaling that belongs to this kernel: both may be used, and none may be trained without the other."""
    return rescaling


@_stored.defjvp
def _refuse(primals: Any, tangents: Any) -> Any:
    raise ValueError(
        "params is folded, and is being differentiated; expected parameters without stored rescalings, as a kernel "
        "trained beside one may enlarge differences: train what model.init gave, and fold it afterwards"
    )


def _transposed(kernel: Float[Array, "k k i o"]) -> Float[Array, "k k o i"]:
    return jnp.swapaxes(kernel[::-1, ::-1], 2, 3)


def _kernel(layer: Any) -> Float[Array, "k k i o"]:
    return layer["orthogonal_kernel"] if "orthogonal_kernel" in layer else layer["kernel"]
