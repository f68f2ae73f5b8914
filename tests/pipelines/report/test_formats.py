import pytest

from pipelines.report.formats import (
    byte_size,
    count,
    decimal,
    duration,
    percent,
    significant,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (count(1234567), "1,234,567"),
        (decimal(1234.56), "1,234.6"),
        (decimal(0.875, 2), "0.88"),
        (significant(0.00123456), "0.001235"),
        (percent(0.2504), "25.0%"),
        (percent(None), ""),
        (byte_size(999), "999 bytes"),
        (byte_size(1000), "1.0 kB"),
        (byte_size(46_700_000), "46.7 MB"),
        (byte_size(3.2e15), "3,200.0 TB"),
        (duration(67.44), "67.4 s"),
        (duration(104.2), "1 min 44 s"),
        (duration(7830), "2 h 10 min"),
    ],
)
def test_numbers_as_text(text: str, expected: str) -> None:
    assert text == expected
