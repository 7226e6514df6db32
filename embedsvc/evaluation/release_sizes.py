"""How many users a promise about a release takes (ease.ml/ci, Renggli et al. 2019).

A rule such as "new beats old by more than .02, give or take eps" is kept with reliability 1 - delta
if the mean over n users is further than eps from the truth with a chance of at most delta. A user's
number lies in [0, 1] (recall, NDCG, hit), a difference of two in [-1, 1]. Solved for n:

    Hoeffding  n = width^2 (ln H' + ln(c / delta)) / (2 eps^2)     width 1, or 2 for a difference
    Bennett    n = (ln H' + ln(c / delta)) / (p h(eps / p))        h(u) = (1 + u) ln(1 + u) - u

Bennett's is of a difference that is 0 for all but a share p of users, those whose list changed.
Their share d needs no labels: hoeffding_size with c = 2 says how many users show it within eps for
half of delta.

H' counts what may be asked of the same users. H releases fixed beforehand, answers hidden until the
end: H' = H. Whoever sees each answer before the next release may go any of 2^H ways: H' = 2^H.

c: 1 for one side, 2 for both, and twice that where the other half of delta pays for the check of d.
"""

import math
from collections.abc import Callable
from typing import Literal

from partitions.errors import ConfigError

Adaptivity = Literal["none", "full"]

_LEAST = 1e-9  # of eps: more users than there are


def hoeffding_size(
    eps: float,
    delta: float,
    steps: int = 1,
    adaptivity: Adaptivity = "none",
    c: int = 1,
    width: float = 1,
) -> int:
    """Users that say the mean of numbers in an interval of `width` within eps; rounded up."""
    _check_eps(eps)
    return math.ceil(_hoeffding(eps, _doubt(delta, steps, adaptivity, c), _checked_width(width)))


def bennett_size(
    eps: float,
    delta: float,
    p: float,
    steps: int = 1,
    adaptivity: Adaptivity = "none",
    c: int = 2,
) -> int:
    """Users that say the mean difference within eps, at most a share p of them having one; rounded
    up. For p = 1 that is no fewer than hoeffding_size of width 2 with the same c."""
    _check_eps(eps)
    return math.ceil(_bennett(eps, _doubt(delta, steps, adaptivity, c), _checked_share(p)))


def hoeffding_tolerance(
    n: int,
    delta: float,
    steps: int = 1,
    adaptivity: Adaptivity = "none",
    c: int = 1,
    width: float = 1,
) -> float:
    """The least eps that n users support: that of which hoeffding_size is at most n. At most
    `width`, which is true of any users and says nothing."""
    doubt = _doubt(delta, steps, adaptivity, c)
    width = _checked_width(width)
    return _least(lambda eps: _hoeffding(eps, doubt, width), n, width)


def bennett_tolerance(
    n: int,
    delta: float,
    p: float,
    steps: int = 1,
    adaptivity: Adaptivity = "none",
    c: int = 2,
) -> float:
    """The least eps that n users support, as bennett_size has it. At most 2, which says nothing."""
    doubt = _doubt(delta, steps, adaptivity, c)
    p = _checked_share(p)
    return _least(lambda eps: _bennett(eps, doubt, p), n, 2.0)


def upper_share(d_hat: float, n: int, delta: float) -> float:
    """What the true share of changed lists exceeds with a chance of at most delta, after d_hat of n
    users: d_hat + sqrt(ln(1 / delta) / (2 n)), at most 1 (Hoeffding, one-sided)."""
    _check_users(n)
    if not 0 <= d_hat <= 1:
        raise ConfigError(f"A share of changed lists of {d_hat} is not between 0 and 1.")
    return min(1.0, d_hat + math.sqrt(_doubt(delta, 1, "none", 1) / (2 * n)))


def _hoeffding(eps: float, doubt: float, width: float) -> float:
    return width**2 * doubt / (2 * eps**2)


def _bennett(eps: float, doubt: float, p: float) -> float:
    u = eps / p
    if u < 1e-4:  # where h is the small difference of two larger numbers
        return doubt / (p * u * u * (1 / 2 - u / 6 + u * u / 12))
    return doubt / (p * ((1 + u) * math.log1p(u) - u))


def _doubt(delta: float, steps: int, adaptivity: Adaptivity, c: int) -> float:
    """ln H' + ln(c / delta)."""
    if not 0 < delta < 1:
        raise ConfigError(
            f"delta = {delta} is no chance of a mistake: set it between 0 and 1, such as 0.001."
        )
    if steps < 1:
        raise ConfigError(f"steps = {steps}: at least one release is tested on these users.")
    if c < 1:
        raise ConfigError(f"c = {c}: 1 is for one side, 2 for both, 4 with a check of d beside.")
    if adaptivity == "none":
        return math.log(steps) + math.log(c / delta)
    if adaptivity == "full":
        return steps * math.log(2) + math.log(c / delta)
    raise ConfigError(f'adaptivity = "{adaptivity}" is not known: choose "none" or "full".')


def _check_eps(eps: float) -> None:
    if not _LEAST <= eps <= 2:
        raise ConfigError(
            f"eps = {eps} is no tolerance: set it between {_LEAST} and 2, such as 0.01."
        )


def _check_users(n: int) -> None:
    if n < 1:
        raise ConfigError(f"{n} users say nothing: at least one is needed.")


def _checked_width(width: float) -> float:
    if width not in (1, 2):
        raise ConfigError(f"width = {width}: 1 is for numbers in [0, 1], 2 for their differences.")
    return float(width)


def _checked_share(p: float) -> float:
    if not 0 < p <= 1:
        raise ConfigError(f"p = {p} is no share of changed lists: set it above 0, up to 1.")
    return p


def _least(size: Callable[[float], float], n: int, most: float) -> float:
    """The least eps up to `most` whose size is at most n, by halving until floats end."""
    _check_users(n)
    low, high = 0.0, most
    while low < (eps := (low + high) / 2) < high:
        if size(eps) <= n:
            high = eps
        else:
            low = eps
    return high
