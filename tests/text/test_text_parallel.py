"""Order, bounds and failures of the shared work."""

from __future__ import annotations

import os
import signal

import pytest

from stages.errors import UserError
from stages.text.parallel import ordered_map


def square(number):
    return number * number


def fail_at_three(number):
    if number == 3:
        raise UserError("three is too many")
    return number


def die(number):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("count", [0, 1, 50])
def test_results_in_the_order_of_items(workers, count):
    assert list(ordered_map(square, range(count), workers)) == [number * number for number in range(count)]


@pytest.mark.parametrize("workers", [1, 2])
def test_items_are_asked_for_only_as_results_are_taken(workers):
    asked = []
    results = ordered_map(square, (asked.append(number) or number for number in range(1000)), workers)
    for _ in range(10):
        next(results)
    assert len(asked) <= 10 + 2 * workers
    results.close()


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_ends_it_where_it_happened(workers):
    results = ordered_map(fail_at_three, range(100), workers)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(UserError, match="three is too many"):
        next(results)


def test_a_killed_process_is_told():
    with pytest.raises(UserError, match=r"a process was killed.*lower clean\.workers"):
        list(ordered_map(die, range(3), 2))
