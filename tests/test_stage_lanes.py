"""Reading ahead and writing behind: order, depth, errors."""

import threading

import pytest

from pellucid.stages.work.lanes import ReadAhead, WriteBehind


def test_exactly_one_is_read_ahead():
    read, may_go = [], threading.Event()

    def reads(key):
        read.append(key)
        if key == 1:
            may_go.set()
        return key * 10

    with ReadAhead(range(5), reads) as ahead:
        iterator = iter(ahead)
        key, value = next(iterator)
        assert (key, value.result()) == (0, 0)
        assert may_go.wait(5)
        assert read == [0, 1]
        assert [(k, v.result()) for k, v in iterator] == [(1, 10), (2, 20), (3, 30), (4, 40)]


def test_an_error_in_reading_belongs_to_its_volume():
    def reads(key):
        if key == 1:
            raise ValueError("bad")
        return key

    with ReadAhead(range(3), reads) as ahead:
        (_, first), (_, second), (_, third) = ahead
        assert (first.result(), third.result()) == (0, 2)
        with pytest.raises(ValueError, match="bad"):
            second.result()


def test_writes_keep_their_order_and_errors_reach_the_caller():
    done = []
    with WriteBehind() as behind:
        for i in range(5):
            behind.put(lambda i=i: done.append(i))
    assert done == [0, 1, 2, 3, 4]

    def fails():
        raise OSError("full")

    with WriteBehind() as behind:
        behind.put(fails)
        with pytest.raises(OSError, match="full"):
            behind.put(lambda: done.append(9))
    assert 9 not in done
    last = WriteBehind()
    last.put(fails)
    with pytest.raises(OSError, match="full"):
        last.__exit__(None, None, None)


def test_after_an_error_elsewhere_the_last_write_is_waited_for():
    begun, done = threading.Event(), []

    def slow():
        begun.set()
        threading.Event().wait(0.05)
        done.append(1)

    behind = WriteBehind()
    behind.put(slow)
    assert begun.wait(5)
    behind.__exit__(RuntimeError, RuntimeError(), None)
    assert done == [1]
