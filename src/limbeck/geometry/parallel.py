"""Matrices side by side, one BLAS thread each: two factorizations on a thread each take less time than one on two.

A thin QR on several threads is about 15 times slower than on one; a small eigenvalue problem, where another program wants a
core too, 50 times, because OpenBLAS's threads wait for each other without letting go.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import TypeVar

import torch
from threadpoolctl import threadpool_limits

Item = TypeVar("Item")
Found = TypeVar("Found")


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """The BLAS of NumPy and SciPy on one thread; torch keeps its own."""
    with threadpool_limits(1, user_api="blas"):
        yield


def side_by_side(one: Callable[[Item], Found], items: Sequence[Item], *, workers: int | None = None) -> list[Found]:
    """``one`` of every item, in their order; the first that fails ends what has not begun, and is raised.

    Args:
        one: safe to call from several threads.
        items: begun in this order.
        workers: at a time; None takes the machine's cores, at most 8.

    >>> side_by_side(abs, [-2, 1], workers=2)
    [2, 1]
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    count = workers or min(os.cpu_count() or 1, 8)
    try:
        pooled = ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,))
        with one_blas_thread(), pooled as pool:
            futures = [pool.submit(one, item) for item in items]
            wait(futures, return_when=FIRST_EXCEPTION)
            pool.shutdown(wait=True, cancel_futures=True)
            failed = next((f.exception() for f in futures if not f.cancelled() and f.exception()), None)
            if failed is not None:
                raise failed
            return [future.result() for future in futures]
    finally:
        torch.set_num_threads(threads)
