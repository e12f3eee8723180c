"""Which steps of an optimizer are looked at closely."""

from __future__ import annotations

from itertools import accumulate, repeat, takewhile

from pytest_trainloop.runtime.record import next_close


def test_the_first_64_are_and_then_each_128th() -> None:
    numbers = accumulate(repeat(0), lambda number, _: next_close(number), initial=1)
    close = list(takewhile(lambda number: number <= 520, numbers))
    assert close == [*range(1, 65), 128, 256, 384, 512]
    # Whatever it is asked about, the next one comes after that.
    assert [next_close(number) for number in (0, 65, 127, 128)] == [1, 128, 128, 256]
