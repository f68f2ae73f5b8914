"""Numbers as text, for the page and the terminal."""


def count(number: float) -> str:
    """Return a whole number with thousands separators: `1,234`."""
    return f"{number:,.0f}"


def decimal(number: float, digits: int = 1) -> str:
    """Return a number with a fixed number of decimals: `1,234.5`."""
    return f"{number:,.{digits}f}"


def significant(number: float) -> str:
    """Return a number with four significant digits: `0.001234`."""
    return f"{number:.4g}"


def percent(share: float | None) -> str:
    """Return a share in percent, an empty text for None."""
    return "" if share is None else f"{share:.1%}"


def byte_size(number: float) -> str:
    """Return a number of bytes with a decimal unit: `1.2 MB`."""
    value, units = float(number), ["bytes", "kB", "MB", "GB", "TB"]
    while value >= 1000 and len(units) > 1:
        value /= 1000
        units.pop(0)
    return f"{count(value) if units[0] == 'bytes' else decimal(value)} {units[0]}"


def duration(seconds: float) -> str:
    """Return seconds with the units that suit them: `45.2 s`, `3 min 05 s`, `2 h 10 min`."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
