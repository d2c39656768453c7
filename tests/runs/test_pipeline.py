"""Reading ahead, writing behind, and what is searched together."""

import threading
import time

import pytest

from stylesr_jax.runs.pipeline import Pipeline, grouped, images_together


def _until(condition):
    """Wait for a thread; what never comes fails."""
    deadline = time.monotonic() + 30.0
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_items_are_read_in_order_and_not_far_ahead():
    read = []

    def make(i):
        read.append(i)
        return i * i

    with Pipeline(ahead=2) as pipeline:
        for i, value in enumerate(pipeline.read(make, range(10))):
            assert value == i * i
            _until(lambda i=i: len(read) == min(i + 1 + 2, 10))  # while we are busy here
    assert read == list(range(10))


def test_an_error_of_the_reader_arrives_where_the_item_is_asked_for():
    with Pipeline(ahead=3) as pipeline:
        made = pipeline.read(lambda i: 6 // i, [2, 1, 0, 3])
        assert [next(made), next(made)] == [3, 6]
        with pytest.raises(ZeroDivisionError):
            next(made)


def test_work_is_written_meanwhile_in_order_and_waits_when_too_much_is_left():
    written, gate = [], threading.Event()

    def write(i):
        gate.wait()
        written.append((i, threading.current_thread() is threading.main_thread()))

    with Pipeline(behind=2) as pipeline:
        pipeline.write(write, [(0,)])
        pipeline.write(write, [(1,)])
        assert not written  # and yet we are here
        threading.Timer(0.05, gate.set).start()
        pipeline.write(write, [(2,)])
        assert written[0] == (0, False)  # the third had to wait for the first
    assert written == [(0, False), (1, False), (2, False)]


def test_a_group_is_one_piece_of_work_and_as_many_are_read_ahead():
    written, gate = [], threading.Event()

    def write(i):
        gate.wait()
        written.append(i)

    with Pipeline(ahead=2, behind=1) as pipeline:
        pipeline.write(write, [(i,) for i in range(5)])
        assert not written and pipeline.ahead == 5  # five waited for, and yet we are here
        gate.set()
    assert written == [0, 1, 2, 3, 4]


def test_what_is_finished_is_written_when_the_search_is_broken_off():
    written = []
    with pytest.raises(KeyboardInterrupt), Pipeline() as pipeline:
        pipeline.write(lambda: (time.sleep(0.05), written.append(1)), [()])
        raise KeyboardInterrupt
    assert written == [1]


def test_an_error_of_the_writer_is_not_lost():
    with pytest.raises(ZeroDivisionError), Pipeline() as pipeline:
        pipeline.write(lambda: 1 // 0, [()])


def test_groups_are_of_one_kind_and_full_but_for_the_last():
    words = ["aa", "b", "cc", "dd", "e", "f", "gg", "h"]
    groups = list(grouped(words, len, lambda _: 3))
    assert groups == [["aa", "cc", "dd"], ["b", "e", "f"], ["gg"], ["h"]]
    assert list(grouped(words, len, lambda _: 1)) == [[word] for word in words]


def test_groups_hold_little_back_whatever_the_order():
    held, most = 0, 0

    def items():
        nonlocal held, most
        for i in range(100):
            held += 1
            most = max(most, held)
            yield i

    for group in grouped(items(), lambda i: i, lambda _: 4):  # no two are alike
        held -= len(group)
    assert most <= 8


@pytest.mark.parametrize(
    ("starts", "solutions", "images"), [(1, 4, 1), (8, 4, 2), (6, 4, 3), (4, 8, 1), (7, 4, 7)]
)
def test_images_fill_batches(starts, solutions, images):
    assert images_together(starts, solutions) == images
    assert images * solutions % starts == 0
