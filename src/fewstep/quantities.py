"""Large numbers in words: three digits, a prefix and the unit, such as 42.4 GB."""

PREFIXES = ("", "k", "M", "G", "T", "P", "E", "Z", "Y", "R", "Q")
WORDS = ("", "kilo", "mega", "giga", "tera", "peta", "exa", "zetta", "yotta", "ronna", "quetta")


def short(number: float, unit: str) -> str:
    """`number` of a `unit` that is a letter or two: 1.11 GB."""
    return _scaled(number, unit, PREFIXES)


def in_words(number: float, unit: str) -> str:
    """`number` of a `unit` that is a word: 7.48 petaFLOP, a short form of it being no word at all."""
    return _scaled(number, unit, WORDS)


def _scaled(number: float, unit: str, prefixes: tuple[str, ...]) -> str:
    digits, exponent = f"{number:.2e}".split("e")  # rounded first: 999.9 is 1.00 k
    power = max(0, min(int(exponent) // 3, len(prefixes) - 1))
    return f"{float(digits) * 10.0 ** (int(exponent) - 3 * power):.3g} {prefixes[power]}{unit}".rstrip()
