"""All eigenvalues and the leading eigenvectors of a symmetric matrix, for the price of the eigenvalues.

A full ``eigh`` spends half its time on vectors that nobody reads. Here: one reduction to tridiagonal form, its
values, and the leading vectors alone, rotated back. The LAPACK routines are those that scipy publishes for compiled
callers (``scipy.linalg.cython_lapack``); called through ctypes they let other threads run, which the wrappers in
``scipy.linalg.lapack`` do not, and matrices side by side are how several cores are used.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.linalg import cython_blas, cython_lapack  # type: ignore[attr-defined]

from limbeck.errors import DegenerateError

_BLOCK = 64
_SMALL = 32  # below this numpy's eigh costs nothing


@cache
def _routine(module: Any, name: str, count: int) -> Any:
    capsule = module.__pyx_capi__[name]
    get_name, get_pointer = ctypes.pythonapi.PyCapsule_GetName, ctypes.pythonapi.PyCapsule_GetPointer
    get_name.restype, get_name.argtypes = ctypes.c_char_p, [ctypes.py_object]
    get_pointer.restype, get_pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    return ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * count)(get_pointer(capsule, get_name(capsule)))


def _call(module: Any, name: str, *arguments: Any) -> None:
    """Call a Fortran routine: characters, integers and floats by reference, arrays by their data."""
    kept = [_reference(value) for value in arguments]
    _routine(module, name, len(arguments))(*[ctypes.cast(value, ctypes.c_void_p) for value in kept])


def _reference(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return ctypes.c_void_p(value.ctypes.data)
    if isinstance(value, bytes):
        return ctypes.c_char_p(value)
    return ctypes.byref(ctypes.c_double(value)) if isinstance(value, float) else ctypes.byref(ctypes.c_int(value))


def add_gram(gram: Float[np.ndarray, "n n"], block: Float[np.ndarray, "rows n"]) -> None:
    """``gram += block.T @ block`` in the lower triangle, in place; ``gram`` in Fortran's order, ``block`` in either."""
    rows, n = block.shape
    if block.flags.f_contiguous:
        _call(cython_blas, "dsyrk", b"L", b"T", n, rows, 1.0, block, rows, 1.0, gram, n)
    else:
        _call(cython_blas, "dsyrk", b"L", b"N", n, rows, 1.0, np.ascontiguousarray(block), n, 1.0, gram, n)


def leading_eigen(gram: Float[np.ndarray, "n n"], k: int) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, "n k"]]:
    """All eigenvalues, descending, and the eigenvectors of the ``k`` largest; overwrites ``gram``.

    Only the lower triangle is read. ``gram`` must be fp64 in Fortran's order.

    Raises:
        DegenerateError: the routine did not converge, which finite input never showed.

    >>> values, vectors = leading_eigen(np.asfortranarray(np.diag([1.0, 9.0, 4.0])), 1)
    >>> values.tolist(), abs(vectors[:, 0]).tolist()
    ([9.0, 4.0, 1.0], [0.0, 1.0, 0.0])
    """
    n = len(gram)
    if n <= _SMALL:
        values, vectors = np.linalg.eigh(gram, UPLO="L")
        return values[::-1].copy(), vectors[:, ::-1][:, :k].copy()
    diagonal, beside, reflectors, scales = _tridiagonal(gram)
    values, side = diagonal.copy(), beside.copy()
    info = np.zeros(1, np.intc)
    _call(cython_lapack, "dsterf", n, values, side, info)
    vectors = _selected(diagonal, beside, k, info)
    work = np.empty(k * _BLOCK)
    _call(
        cython_lapack, "dormtr", b"L", b"L", b"N", n, k, reflectors, n, scales, vectors, n, work, work.size, info
    )  # fmt: skip
    if info[0]:
        raise DegenerateError(f"an eigenvalue problem of size {n} must converge, received LAPACK's code {info[0]}.")
    return values[::-1].copy(), vectors[:, ::-1]


def _tridiagonal(gram: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    n = len(gram)
    diagonal, beside, scales = np.empty(n), np.zeros(n), np.empty(n)
    work, info = np.empty(n * _BLOCK), np.zeros(1, np.intc)
    _call(cython_lapack, "dsytrd", b"L", n, gram, n, diagonal, beside, scales, work, work.size, info)
    return diagonal, beside, gram, scales


def _selected(diagonal: np.ndarray, beside: np.ndarray, k: int, info: np.ndarray) -> np.ndarray:
    """Eigenvectors of the ``k`` largest eigenvalues of a tridiagonal matrix, ascending."""
    n = len(diagonal)
    found, vectors, values = np.zeros(1, np.intc), np.zeros((n, k), order="F"), np.empty(n)
    support, careful = np.zeros(2 * k, np.intc), np.ones(1, np.intc)
    work, integers = np.empty(18 * n), np.empty(10 * n, np.intc)
    _call(
        cython_lapack, "dstemr", b"V", b"I", n, diagonal.copy(), beside.copy(), 0.0, 0.0, n - k + 1, n, found, values,
        vectors, n, k, support, careful, work, work.size, integers, integers.size, info,
    )  # fmt: skip
    if info[0] or found[0] != k:
        raise DegenerateError(f"{k} eigenvectors of size {n} must be found, received {found[0]} (code {info[0]}).")
    return vectors
