"""Words with rational coefficients: the Baker-Campbell-Hausdorff series exactly, to check formulas against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from math import factorial

__all__ = ["add_words", "bch_words", "bracket_words", "multiply_words", "nested_bracket"]

Words = Mapping[str, Fraction]


def add_words(a: Words, b: Words, factor: Fraction | int = 1) -> dict[str, Fraction]:
    """``a + factor * b``, without words of coefficient 0."""
    total = dict(a)
    for word, value in b.items():
        total[word] = total.get(word, Fraction(0)) + factor * value
    return {word: value for word, value in total.items() if value}


def multiply_words(a: Words, b: Words, degree: int) -> dict[str, Fraction]:
    """Product of two sums of words, up to words of ``degree`` letters."""
    total: dict[str, Fraction] = {}
    for u, x in a.items():
        for v, y in b.items():
            if len(u) + len(v) <= degree:
                total[u + v] = total.get(u + v, Fraction(0)) + x * y
    return {word: value for word, value in total.items() if value}


def bracket_words(a: Words, b: Words) -> dict[str, Fraction]:
    """``ab - ba``."""
    degree = max(map(len, a), default=0) + max(map(len, b), default=0)
    return add_words(multiply_words(a, b, degree), multiply_words(b, a, degree), -1)


def nested_bracket(word: str) -> dict[str, Fraction]:
    """``[a, [b, [c, d]]]`` for the word ``abcd``, written out.

    Example:
        >>> {word: int(value) for word, value in nested_bracket("XXY").items()}
        {'XXY': 1, 'XYX': -2, 'YXX': 1}
    """
    total = {word[-1]: Fraction(1)}
    for letter in reversed(word[:-1]):
        total = bracket_words({letter: Fraction(1)}, total)
    return total


def bch_words(degree: int) -> list[dict[str, Fraction]]:
    """Terms of degree 1, 2, ... ``degree`` of ``log(exp(X) exp(Y))``, from the power series of both functions."""

    def exponential(letter: str) -> Words:
        return {letter * k: Fraction(1, factorial(k)) for k in range(degree + 1)}

    step = add_words(multiply_words(exponential("X"), exponential("Y"), degree), {"": Fraction(1)}, -1)
    total, power = {}, {"": Fraction(1)}
    for k in range(1, degree + 1):
        power = multiply_words(power, step, degree)
        total = add_words(total, power, Fraction((-1) ** (k + 1), k))
    return [{w: v for w, v in total.items() if len(w) == d} for d in range(1, degree + 1)]


def sum_of(terms: Sequence[tuple[int, str]], divisor: int, nested: bool) -> dict[str, Fraction]:
    """``(c_1 w_1 + c_2 w_2 + ...) / divisor``, the words read as products or as nested brackets."""
    total: dict[str, Fraction] = {}
    for coefficient, word in terms:
        total = add_words(total, nested_bracket(word) if nested else {word: Fraction(1)}, Fraction(coefficient, divisor))
    return total
