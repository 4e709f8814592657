"""Every metric of the geometry from the dense matrices, in float64 numpy, written from the definitions."""

from __future__ import annotations

import numpy as np
from scipy.linalg import subspace_angles


def stacked_cosine(xs: list[np.ndarray], ys: list[np.ndarray]) -> float:
    x, y = np.concatenate([m.ravel() for m in xs]), np.concatenate([m.ravel() for m in ys])
    return float(x @ y / np.linalg.norm(x) / np.linalg.norm(y))


def stacked_fraction(xs: list[np.ndarray], ys: list[np.ndarray]) -> float:
    x, y = np.concatenate([m.ravel() for m in xs]), np.concatenate([m.ravel() for m in ys])
    return float(np.linalg.norm(x - (x @ y) / (y @ y) * y) / np.linalg.norm(x))


def pooled_fraction(xs: list[np.ndarray], ys: list[np.ndarray]) -> float:
    rest = total = 0.0
    for x, y in zip(xs, ys, strict=True):
        rest += np.sum((x - np.sum(x * y) / np.sum(y * y) * y) ** 2)
        total += np.sum(x**2)
    return float(np.sqrt(rest / total))


def rotated_cosine_variance(xs: list[np.ndarray], ys: list[np.ndarray]) -> float:
    top = sum(np.sum((x @ y.T) ** 2) / x.shape[0] for x, y in zip(xs, ys, strict=True))
    return float(top / (sum(np.sum(x**2) for x in xs) * sum(np.sum(y**2) for y in ys)))


def angles(x: np.ndarray, y: np.ndarray, side: str, k: int) -> np.ndarray:
    """Ascending, degrees; scipy's sine-and-cosine form on the leading frames of dense singular value decompositions."""
    frames = [np.linalg.svd(m if side == "left" else m.T, full_matrices=False)[0][:, :k] for m in (x, y)]
    return np.degrees(np.sort(subspace_angles(*frames)))


def leading_overlap(x: np.ndarray, y: np.ndarray, side: str) -> float:
    u, v = (np.linalg.svd(m if side == "left" else m.T, full_matrices=False)[0][:, 0] for m in (x, y))
    return float(abs(u @ v))


def spectral(values: np.ndarray, metric: str, k: int) -> float:
    """``values`` descending, zeros removed by the caller."""
    q, p = values**2 / np.sum(values**2), values / np.sum(values)
    return {
        "stable_rank": lambda: np.sum(values**2) / values[0] ** 2,
        "participation": lambda: 1 / np.sum(q**2),
        "erank_energy": lambda: np.exp(-np.sum(q * np.log(q))),
        "erank": lambda: np.exp(-np.sum(p * np.log(p))),
        "topk_energy": lambda: np.sum(q[:k]),
        "hill": lambda: (k - 1) / np.sum(np.log(values[: k - 1] / values[k - 1])),
    }[metric]()


def sign_agreement(x: np.ndarray, y: np.ndarray) -> tuple[float, float, int]:
    both = (x != 0) & (y != 0)
    same, weight = np.sign(x[both]) == np.sign(y[both]), np.abs(x[both] * y[both])
    return float(same.mean()), float((same * weight).sum() / weight.sum()), int(both.sum())


def cka(x: np.ndarray, y: np.ndarray) -> float:
    x, y = x - x.mean(0), y - y.mean(0)
    return float(np.sum((x.T @ y) ** 2) / np.linalg.norm(x.T @ x) / np.linalg.norm(y.T @ y))


def cka_debiased(x: np.ndarray, y: np.ndarray) -> float:
    def hsic(k: np.ndarray, m: np.ndarray) -> float:
        n = len(k)
        k, m = k - np.diag(np.diag(k)), m - np.diag(np.diag(m))
        return (np.trace(k @ m) + k.sum() * m.sum() / (n - 1) / (n - 2) - 2 / (n - 2) * np.sum(k @ m)) / n / (n - 3)

    k, m = x @ x.T, y @ y.T
    return float(hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m)))


def excess(alphas: np.ndarray, curve: np.ndarray) -> np.ndarray:
    """Loss above the chord between the ends of the path."""
    return curve - ((1 - alphas) * curve[0] + alphas * curve[-1])


def sim_k(x: np.ndarray, y: np.ndarray, side: str, k: int) -> float:
    """Mean squared cosine of the k principal angles, from the projectors on the leading subspaces."""
    u, v = (np.linalg.svd(m if side == "left" else m.T, full_matrices=False)[0][:, :k] for m in (x, y))
    return float(np.trace(u @ u.T @ v @ v.T) / k)


def walk(increments: list[np.ndarray], rng: np.random.Generator) -> list[np.ndarray]:
    """Partial sums of increments whose singular vectors are drawn anew on both sides, in full, whatever the rank."""
    total, out = np.zeros(increments[0].shape), []
    for increment in increments:
        left, right = (np.linalg.qr(rng.standard_normal((n, n)))[0] for n in increment.shape)
        values = np.linalg.svd(increment, compute_uv=False)
        total = total + left[:, : len(values)] * values @ right[:, : len(values)].T
        out.append(total)
    return out
