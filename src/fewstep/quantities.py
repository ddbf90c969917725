"""Write large numbers with three digits, a metric prefix and the unit, such as 42.4 GB."""

PREFIXES = ("", "k", "M", "G", "T", "P", "E", "Z", "Y", "R", "Q")
WORDS = ("", "kilo", "mega", "giga", "tera", "peta", "exa", "zetta", "yotta", "ronna", "quetta")


def short(number: float, unit: str) -> str:
    """Return `number` with a one-letter prefix and `unit`, an abbreviation: 1.11 GB."""
    return _scaled(number, unit, PREFIXES)


def in_words(number: float, unit: str) -> str:
    """Return `number` with a prefix in full and `unit`, a word without an abbreviation: 7.48 petaFLOP."""
    return _scaled(number, unit, WORDS)


def _scaled(number: float, unit: str, prefixes: tuple[str, ...]) -> str:
    digits, exponent = f"{number:.2e}".split("e")  # rounded before the prefix is chosen, so that 999.9 is 1.00 k
    power = max(0, min(int(exponent) // 3, len(prefixes) - 1))
    return f"{float(digits) * 10.0 ** (int(exponent) - 3 * power):.3g} {prefixes[power]}{unit}".rstrip()
