"""The Beta distribution as far as credible intervals need it. Pure."""

from __future__ import annotations

import math


def beta_cdf(x: float, a: float, b: float) -> float:
    """Regularised incomplete beta function I_x(a, b) by Lentz's continued fraction (DLMF 8.17.22)."""
    if x <= 0:
        return 0.0
    if x >= 1:
        return 1.0
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x))
    if x < (a + 1) / (a + b + 2):
        return front * _continued_fraction(x, a, b) / a
    return 1 - front * _continued_fraction(1 - x, b, a) / b


def _continued_fraction(x: float, a: float, b: float) -> float:
    tiny = 1e-300
    c, d = 1.0, 1 - (a + b) * x / (a + 1)
    d = 1 / (d if abs(d) > tiny else tiny)
    value = d
    for m in range(1, 400):
        for numerator in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 + numerator * d
            d = 1 / (d if abs(d) > tiny else tiny)
            c = 1 + numerator / c
            c = c if abs(c) > tiny else tiny
            value *= c * d
        if abs(c * d - 1) < 1e-14:
            break
    return value


def beta_quantile(q: float, a: float, b: float) -> float:
    """The x in [0, 1] with beta_cdf(x, a, b) = q, to 1e-10, by the secant method kept inside a bracket."""
    low, high, f_low, f_high = 0.0, 1.0, -q, 1 - q
    side = 0
    x = a / (a + b)
    for _ in range(200):
        f = beta_cdf(x, a, b) - q
        if f == 0 or high - low < 1e-10:
            return x
        if f < 0:
            low, f_low = x, f
            f_high = f_high / 2 if side < 0 else f_high
            side = -1
        else:
            high, f_high = x, f
            f_low = f_low / 2 if side > 0 else f_low
            side = 1
        x = low + (high - low) * f_low / (f_low - f_high)
        if not low + 1e-12 < x < high - 1e-12:
            x = (low + high) / 2
    return x
