"""Pictures of what each metric can and cannot say, on matrices planted so that the truth is known: docs/metrics.md.

    python examples/metric_pictures.py docs/images/metrics        # needs matplotlib; some seconds

Every number comes from the functions that measure real runs; what is planted is in each picture's first lines.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping
from itertools import accumulate
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from limbeck.geometry import nulls
from limbeck.geometry.connectivity import barrier
from limbeck.geometry.dense import codes
from limbeck.geometry.dense.decompose import Spectral, decompose, mirsky
from limbeck.geometry.dense.entries import ground_of, see
from limbeck.geometry.dense.relate import rotation, spectrum
from limbeck.geometry.direction import contact_of, cosine, orthogonal_fraction
from limbeck.geometry.representation import cka
from limbeck.geometry.trajectory.course import similarities
from limbeck.geometry.trajectory.walks import walk
from limbeck.types import LowRank

TEAL, RUST, GREY, GOLD = "#0b7285", "#b5440b", "#868e96", "#b08900"
STYLE = {
    "svg.fonttype": "none", "svg.hashsalt": "limbeck", "font.family": "sans-serif", "font.size": 9,
    "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 9, "axes.titlelocation": "left",
    "legend.frameon": False, "legend.fontsize": 8, "lines.linewidth": 1.6, "figure.constrained_layout.use": True,
}  # fmt: skip
BF16 = torch.bfloat16


def gaussian(*shape: int, seed: int) -> Tensor:
    """Standard normal entries in fp64, the same for a seed on every machine."""
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def low_rank(rows: int, columns: int, rank: int, *, seed: int) -> Tensor:
    """A matrix of ``rank`` random directions with values 1, 1/2, 1/3, ..., scaled to unit norm."""
    left, right = (torch.linalg.qr(gaussian(n, rank, seed=seed + i)).Q for i, n in enumerate((rows, columns)))
    matrix = (left / torch.arange(1, rank + 1)) @ right.T
    return matrix / matrix.norm()


def base_weights(seed: int = 0) -> Tensor:
    """256 x 256 weights of standard deviation 0.02, as a released checkpoint stores them."""
    return (0.02 * gaussian(256, 256, seed=seed)).to(BF16)


def direction(left: Axes, right: Axes) -> dict[str, float]:
    """First-order LoRA updates G A'A of two gradients that share a part, with one initial A and with two."""
    size, rank = 256, 16
    factors = [gaussian(rank, size, seed=seed) / math.sqrt(size) for seed in (1, 2)]
    shared, own = low_rank(size, size, 8, seed=10), [low_rank(size, size, 8, seed=seed) for seed in (20, 30)]
    shares = np.linspace(0, 1, 11)
    lines: dict[str, list[float]] = {"one": [], "two": []}
    for share in shares:
        gradients = [math.sqrt(share) * shared + math.sqrt(1 - share) * part for part in own]
        for name, pair in (("one", (0, 0)), ("two", (0, 1))):
            arms = [LowRank(g @ factors[i].T, factors[i]) for g, i in zip(gradients, pair, strict=True)]
            lines[name].append(cosine([contact_of(*arms)]).value)
            if name == "one":
                half = nulls.rotated_cosine([contact_of(*arms)]).q95
    left.axhspan(-half, half, color=GREY, alpha=0.2, lw=0, label="N-ROT, 90 %")
    left.plot(shares, lines["one"], color=TEAL, label="one initial A")
    left.plot(shares, lines["two"], color=RUST, label="two initial A")
    left.set(xlabel="what the two gradients share, of their energy", ylabel="cosine of the updates", ylim=(-0.1, 1.05))
    left.legend()

    angle = np.linspace(0, 1, 41)
    x, y = LowRank(torch.eye(2)[:, :1], torch.eye(2)[:1]), torch.eye(2)
    norms = [
        orthogonal_fraction([contact_of(x, LowRank(y[:, :1], torch.tensor([[c, math.sqrt(1 - c * c)]])))], pooled=True)
        for c in angle.tolist()
    ]
    fractions = np.array([norm.value for norm in norms])
    right.plot(angle, fractions, color=TEAL, label="as norm")
    right.plot(angle, fractions**2, color=RUST, label="as energy")
    right.set(xlabel="cosine", ylabel="orthogonal part", ylim=(0, 1.05))
    right.legend(loc="lower left")
    middle = list(shares).index(0.5)
    return {"one_A_at_half": lines["one"][middle], "two_A_at_all": lines["two"][-1], "band": half}


def angles(left: Axes, right: Axes) -> dict[str, float]:
    """Chance: unrelated frames of 10 directions over the width, and inside the row space of one A of rank 32."""
    rng, widths = np.random.default_rng(0), [32, 64, 128, 256, 512, 1024, 2048, 4096]
    chance = [nulls.isotropic_angles(width, 10, draws=200, rng=rng) for width in widths]
    looks = (("largest", RUST), ("median", GREY), ("smallest", TEAL))
    for name, color in looks:
        left.plot(widths, [float(getattr(one, name).mean()) for one in chance], color=color, label=name)
    left.set(xscale="log", xlabel="width of the matrix", ylabel="degrees, k = 10", ylim=(0, 92), xticks=widths[::2])
    left.set_xticks(widths[::2], [str(width) for width in widths[::2]])
    left.minorticks_off()
    left.set_title("output side: anything unrelated")
    left.legend(loc="lower right")

    rank, ks = 32, [1, 2, 4, 8, 10, 16, 24, 32]
    frames = nulls.haar_frames(rank, rank, count=400, rng=rng)
    overlaps = nulls.row_overlaps(torch.eye(rank, dtype=torch.float64), frames, frames, draws=200, rng=rng)
    inside = [nulls.row_angles(overlaps, k=k) for k in ks]
    for name, color in looks:
        right.plot(ks, [float(getattr(one, name).mean()) for one in inside], color=color, label=name)
    right.set(xlabel="k", ylabel="degrees, rank 32", ylim=(0, 92))
    right.set_title("input side: adapters of one A")
    return {
        "smallest_at_1024": float(chance[5].smallest.mean()), "largest_at_1024": float(chance[5].largest.mean()),
        "smallest_inside": float(inside[4].smallest.mean()), "median_inside": float(inside[4].median.mean()),
    }  # fmt: skip


def ranks(left: Axes, right: Axes) -> dict[str, float]:
    """One update of rank 8, added to bf16 weights and stored; and walks of fresh or of persistent directions."""
    base, planted = base_weights(), low_rank(256, 256, 8, seed=3) * 256
    scales = np.logspace(-6, -3, 10)
    found = []
    for scale in scales.tolist():
        tuned = (base.double() + scale * planted).to(BF16)
        found.append(spectrum(decompose(tuned.double() - base.double(), 16)))
    for name, color in (("erank", RUST), ("stable_rank", TEAL)):
        true = spectrum(decompose(planted, 16))[name, "", 0].value
        left.plot(scales, [one[name, "", 0].value for one in found], color=color, label=f"{name}, stored")
        left.axhline(true, color=color, ls=":", lw=1)
    left.set(xscale="log", yscale="log", xlabel="size of an entry (weights: 0.02)", ylabel="rank")
    left.set_title("one update of rank 8; dotted: before storage")
    left.legend()

    steps = 20
    fresh = list(accumulate(increments(steps)))
    same = list(accumulate([low_rank(256, 256, 8, seed=500)] * steps))
    for sums, color, name in ((fresh, RUST, "fresh directions"), (same, TEAL, "the same directions")):
        values = [spectrum(decompose(one, 16))["stable_rank", "", 0].value for one in sums]
        right.plot(range(1, steps + 1), values, color=color, label=name)
    right.set(xlabel="increments of rank 8", ylabel="stable rank", ylim=(0, None))
    right.set_title("a walk's rank rises by itself")
    right.legend()
    return {"erank_stored": found[3]["erank", "", 0].value, "entry_1e-6": float(scales[3]) * 1e6}


def increments(steps: int) -> Iterator[Tensor]:
    """A walk: unit increments of rank 8, each in directions of its own."""
    return (low_rank(256, 256, 8, seed=1000 + 2 * step) for step in range(steps))


def storage(left: Axes, right: Axes) -> dict[str, float]:
    """One direction at many lengths; and where the changed entries lie, of an update that knows nothing of the base."""
    base, planted = base_weights(), low_rank(256, 256, 8, seed=3)
    ground, norm = ground_of(base, BF16), float(base.double().norm())
    shares = np.logspace(-5, -1, 12)
    seen, chance = [], []
    for share in shares.tolist():
        update = see(base, (base.double() + share * norm * planted).to(BF16), ground)
        seen.append(1 - update.changed / base.numel())
        matched = codes.match_energy(ground.counts, update.total, BF16, stored=True) if update.total else None
        chance.append(1 - float(matched.visible @ ground.counts) / base.numel() if matched else 1.0)
    left.plot(shares, seen, color=TEAL, label="one direction")
    left.plot(shares, chance, color=GREY, ls="--", label="N-ROUND at equal norm")
    left.set(xscale="log", xlabel="norm of the update over the base's", ylabel="unchanged in bf16", ylim=(0, 1.02))
    left.legend()

    blind, seeking = gaussian(256, 256, seed=5), gaussian(256, 256, seed=6)
    seeking = torch.where(base.double().abs() < 0.008, seeking, 0.05 * seeking)  # moves small weights, really
    edges: dict[str, float] = {}
    for update, color, name in ((blind, RUST, "isotropic, rounded"), (seeking, TEAL, "moves small weights")):
        points = [see(base, (base.double() + scale * update).to(BF16), ground) for scale in np.logspace(-5.5, -2.3, 12)]
        density = [one.changed / base.numel() for one in points]
        overlap = [one.low.changed / one.changed for one in points]
        right.plot(density, overlap, color=color, label=name)
        edges[name.split()[0].strip(",")] = overlap[3]
    grid = np.linspace(0.01, 0.95, 40)
    expected = [low_overlap(ground.counts, ground.low, density) for density in grid.tolist()]
    right.plot(grid, expected, color=GREY, ls="--", label="N-ROUND at equal density")
    right.axhline(0.3, color=GREY, lw=0.8)
    right.set(xlabel="changed entries", ylabel="of these, among the 30 % smallest", ylim=(0, 1.02), xlim=(0, 1))
    right.legend()
    return {"least_unchanged": seen[-1], "most_unchanged": seen[0], **edges}


def low_overlap(counts: np.ndarray, low: np.ndarray, density: float) -> float:
    """Share of the changed entries that are in the low mask, of an isotropic step with this density."""
    changed = codes.match_density(counts, density, BF16, on_grid=True).visible * counts
    return float(changed @ low / changed.sum())


def rotated(left: Axes, right: Axes) -> dict[str, float]:
    """The same isotropic noise on a base of a decaying and of a flat spectrum: leading directions and singular values."""
    frames = [torch.linalg.qr(gaussian(128, 128, seed=seed)).Q for seed in (1, 2)]
    values = {"decaying": 0.8 ** torch.arange(128.0), "flat": torch.linspace(1.05, 0.95, 128)}
    noise, shares, out = gaussian(128, 128, seed=7), np.logspace(-3, -0.5, 8), {}
    for (name, spectrum_), color in zip(values.items(), (TEAL, RUST), strict=True):
        base = (frames[0] * spectrum_.double()) @ frames[1].T
        ground = decompose(base, 8)
        scaled = [base + noise * (share * base.norm() / noise.norm()) for share in shares.tolist()]
        tuned = [decompose(one, 8) for one in scaled]
        turned = [rotation(ground, one, (8,), "base_")["base_angle_median", "left", 8].value for one in tuned]
        left.plot(shares, turned, color=color, label=f"{name} spectrum")
        norm = float(base.norm())
        moved = [mirsky(ground, one) / (share * norm) for one, share in zip(tuned, shares.tolist(), strict=True)]
        right.plot(shares, moved, color=color, label=f"{name} spectrum")
        out[name] = turned[3]
    left.set(xscale="log", xlabel="norm of the noise over the base's", ylabel="median base angle, k = 8", ylim=(0, 90))
    left.legend()
    right.axhline(1 / math.sqrt(128), color=GREY, ls="--", label="1/sqrt(128)")
    right.set(xscale="log", xlabel="norm of the noise over the base's", ylabel="spectrum_share", ylim=(0, None))
    right.legend()
    return {**out, "at": float(shares[3])}


def along(left: Axes, right: Axes) -> dict[str, float]:
    """Three runs of 10 increments of rank 8: a walk, one with a drift, and a walk whose first three steps are longer."""
    steps, k = 10, 16
    drift = low_rank(256, 256, 16, seed=600)
    runs = {
        "a walk": list(increments(steps)),
        "drift and noise": [0.4 * drift + one for one in increments(steps)],
        "long first steps": [(3.0 if t < 3 else 0.5) * one for t, one in enumerate(increments(steps))],
    }
    out = {}
    for (name, parts), color in zip(runs.items(), (GREY, TEAL, RUST), strict=True):
        sims = similar(parts, k)
        left.plot(range(1, steps), sims, color=color, label=name)
        out[name] = sims[1]
    rng, known = np.random.default_rng(0), [decompose(part, 64) for part in runs["a walk"]]
    drawn = np.array([similar(list(walk(known, None, rng)), k) for _ in range(10)])
    left.fill_between(
        range(1, steps), drawn.min(0), drawn.max(0), color=GREY, alpha=0.25, lw=0, label="N-WALK of a walk"
    )
    left.axhline(k / 256, color=GREY, ls=":", lw=1)
    left.text(1, k / 256 + 0.01, "k/n", color=GREY, fontsize=8)
    left.set(xlabel="snapshot", ylabel="sim_16 with the end, left", ylim=(0, 1))
    left.legend(loc="lower right", fontsize=7)

    parts = runs["long first steps"]
    orders = [rng.permutation(steps) for _ in range(12)]
    plain = np.array([similar([parts[i] for i in order], k) for order in orders])
    norms = [float(part.norm()) for part in parts]
    held = np.array([similar([parts[i] * (norms[t] / norms[i]) for t, i in enumerate(o)], k) for o in orders])
    for draws, color, name in ((plain, GOLD, "N-EXCH"), (held, GREY, "N-EXCH-NORM")):
        right.fill_between(range(1, steps), draws.min(0), draws.max(0), color=color, alpha=0.3, lw=0, label=name)
    right.plot(range(1, steps), similar(parts, k), color=RUST, label="long first steps")
    right.set(xlabel="snapshot", ylabel="sim_16 with the end, left", ylim=(0, 1))
    right.legend(loc="lower right")
    return out


def similar(parts: list[Tensor], k: int) -> list[float]:
    """Sim_k on the left of every partial sum with the whole."""
    sums: list[Spectral] = [decompose(one, 32) for one in accumulate(parts)]
    return [similarities(one, sums[-1])["left", k].value for one in sums[:-1]]


def between(left: Axes, right: Axes) -> dict[str, float]:
    """Losses of 100 items on paths without and with a bump; states of two models that have nothing to do with each other."""
    path = np.linspace(0, 1, 11)
    shapes = {
        "rises to a bad end": 1 + 2 * path**1.4,
        "a bump": 1 + path + 1.5 * np.sin(np.pi * path),
        "a valley": 1.6 - 0.4 * path - 0.8 * np.sin(np.pi * path),
    }
    noise, out = gaussian(1, 100, seed=9) * 0.2, {}
    for (name, curve), color in zip(shapes.items(), (GREY, RUST, TEAL), strict=True):
        found = barrier(
            path.tolist(), torch.from_numpy(curve)[:, None] + noise, rng=np.random.default_rng(0), draws=200
        )
        left.plot(path, found.curve, color=color, label=f"{name}: {found.midpoint.value:+.2f}")
        left.plot((0, 1), (found.curve[0], found.curve[-1]), color=color, ls=":", lw=1)
        out[name.split()[-1]] = found.midpoint.value
    left.set(xlabel="from one arm to the other", ylabel="loss", ylim=(0.5, 4.4))
    left.set_title("mid-point over the chord")
    left.legend(loc="upper left")

    counts, dim = [16, 32, 64, 128, 256, 512, 1024], 256
    pairs = [(gaussian(n, dim, seed=n), gaussian(n, dim, seed=n + 1)) for n in counts]
    for debiased, color, name in ((False, RUST, "cka"), (True, TEAL, "cka_debiased")):
        values = [cka(*pair, debiased=debiased).value for pair in pairs]
        right.plot(counts, values, color=color, label=name)
        out[name] = values[3]
    right.set(
        xscale="log", xlabel="items; states of 256 dimensions", ylabel="CKA of unrelated states", ylim=(-0.1, 1.02)
    )
    right.set_xticks(counts[::2], [str(count) for count in counts[::2]])
    right.minorticks_off()
    right.legend()
    return out


Picture = Callable[[Axes, Axes], dict[str, float]]
PICTURES: dict[str, Picture] = {
    "direction": direction, "angles": angles, "ranks": ranks, "storage": storage, "rotation": rotated, "along": along,
    "between": between,
}  # fmt: skip


def main(folder: Path, chosen: Mapping[str, Picture] = PICTURES) -> dict[str, dict[str, float]]:
    """Draw pictures into a folder and print the numbers that the page quotes."""
    folder.mkdir(parents=True, exist_ok=True)
    said = {}
    with mpl.rc_context(STYLE):
        for name, draw in chosen.items():
            figure = Figure(figsize=(7.4, 2.9))
            said[name] = draw(*figure.subplots(1, 2))
            figure.savefig(folder / f"{name}.svg", metadata={"Date": None}, facecolor="white")
            print(name, {key: round(value, 3) for key, value in said[name].items()})
    return said


if __name__ == "__main__":
    main(Path(sys.argv[1]))
