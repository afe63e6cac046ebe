"""Bytes and durations, as people read them."""

import pytest

from sdpersonal.display.units import format_bytes, format_duration, format_minutes


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1.0 kB"),
        (250_000, "250.0 kB"),
        (3_145_728, "3.1 MB"),
        (4_000_000_000, "4.0 GB"),
        (12_000_000_000_000, "12,000.0 GB"),
    ],
)
def test_format_bytes_uses_decimal_units(count, text):
    assert format_bytes(count) == text


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.2, "0 s"),
        (59.4, "59 s"),
        (59.7, "1:00 min"),
        (60, "1:00 min"),
        (65, "1:05 min"),
        (3599.9, "1:00 h"),
        (3600, "1:00 h"),
        (7800, "2:10 h"),
        (359_999, "100:00 h"),
    ],
)
def test_format_duration_uses_seconds_minutes_or_hours(seconds, shown):
    assert format_duration(seconds) == shown


@pytest.mark.parametrize(
    ("seconds", "text"), [(10, "less than a minute"), (70, "a minute"), (240, "4 minutes"), (9000, "2 hours")]
)
def test_format_minutes_rounds_to_minutes_or_hours(seconds, text):
    assert format_minutes(seconds) == text
