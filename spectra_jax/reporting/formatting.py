"""Numbers as people read them: units, thousands, real minus signs, and words where there is no number."""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

NOT_DEFINED = "not defined"
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def scalar(value: Any) -> Any:
    """The Python number inside a NumPy or JAX scalar or 0-d array; any other value unchanged."""
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    array = np.asarray(value)
    if array.ndim or array.dtype.kind not in "biuf":
        raise TypeError(f"expected one number, text or None, got {type(value).__name__} of shape {array.shape}")
    return array.item()


def is_number(value: Any) -> bool:
    """Whether a value takes part in numeric columns; None does not, NaN and infinities do."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def choose_decimals(values: Iterable[Any]) -> int:
    """Digits after the point that give a typical value of a column three significant digits."""
    sizes = [abs(v) for v in values if is_number(v) and math.isfinite(v) and v != 0]
    return min(6, max(0, 2 - math.floor(math.log10(float(np.median(sizes)))))) if sizes else 0


def format_number(value: Any, *, unit: str = "", decimals: int | None = None, signed: bool = False) -> str:
    """Text for a number.

    Args:
        value: number, bool, None, or text (returned as it is).
        unit: appended after a no-break space; "%" multiplies by 100.
        decimals: digits after the point; None gives three significant digits, or one decimal for "%".
        signed: write a plus before positive numbers.

    Returns:
        For example "65,917", "−0.0312", "1.2×10⁻⁷", "91.0 %", "not defined", "∞ (infinite)".
    """
    value = scalar(value)
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None or math.isnan(value):
        return NOT_DEFINED
    if math.isinf(value):
        return "∞ (infinite)" if value > 0 else "−∞ (minus infinite)"
    if unit == "%":
        value, decimals = 100.0 * value, 1 if decimals is None else decimals
    suffix = f"\u00a0{unit}" if unit else ""
    return _plain(value, decimals, signed).replace("-", "−") + suffix


def format_probability(value: Any) -> str:
    """A probability in percent, as people say it: "2.5 %", "< 0.1 %", "> 99.9 %"."""
    value = scalar(value)
    if value is None or math.isnan(value):
        return NOT_DEFINED
    if 0 < value < 0.0005:
        return "< 0.1\u00a0%"
    return "> 99.9\u00a0%" if 0.9995 < value < 1 else format_number(value, unit="%")


def _plain(value: int | float, decimals: int | None, signed: bool) -> str:
    sign = "+" if signed and value > 0 else ""
    if isinstance(value, int) and not decimals:
        return f"{sign}{value:,}"
    size = abs(value)
    if decimals is None:
        decimals = choose_decimals([value])
    if size >= 1e7 or 0 < size < 0.5 * 10.0**-decimals:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{sign}{mantissa}×10{str(int(exponent)).translate(_SUPERSCRIPT)}"
    return f"{sign}{value:,.{decimals}f}"


def csv_text(value: Any) -> str:
    """A value at full precision for a CSV cell; "" for None."""
    value = scalar(value)
    return "" if value is None else repr(value) if is_number(value) else str(value)
