"""Every objective again, in float64 numpy with plain loops over rows, written from the formulas.

``x`` holds the batch as arrays, ``m`` the mask, ``k`` the settings. ``x["frozen"]`` is a copy of ``x["logprobs"]`` that
stands wherever a formula stops the gradient: differentiating the value in ``x["logprobs"]`` alone gives the gradient
that autograd must find. Each function returns its values and every metric, unmasked.
"""

import numpy as np


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def log_sigmoid(x):
    return -np.logaddexp(0, -x)


def rows(per_row, m):
    return np.repeat(per_row[:, None], m.shape[1], axis=1)


def masked_sum(x, m):
    return np.array([sum(x[i, t] for t in range(m.shape[1]) if m[i, t]) for i in range(len(m))], dtype=float)


def lengths(m):
    return np.array([max(1, int(row.sum())) for row in m], dtype=float)


def k3(s, f):
    return np.exp(f - s) - (f - s) - 1


def softmax(logits, tau=1.0):
    z = logits / tau
    z = z - z.max(-1, keepdims=True)
    e = np.exp(z)
    return e / e.sum(-1, keepdims=True)


def kl(a, b):
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(a > 0, a * (np.log(a) - np.log(b)), 0.0).sum(-1)


# ---------------------------------------------------------------------------------------------------- offline


def sft(x, m, k):
    return {"values": -x["logprobs"], "nll": -x["frozen"]}


def dft(x, m, k):
    p = np.exp(x["frozen"])
    return {"values": -p * x["logprobs"], "nll": -x["frozen"], "probability": p}


def rift_paper(x, m, k):
    return {"values": (1 - k["lam"] * rows(x["rewards"], m)) * -x["logprobs"], "nll": -x["frozen"]}


def graded(x, k):
    return np.array([k["wrong_reward"] if r == 0 else r for r in x["rewards"]])


def rift_weighted(x, m, k):
    return {"values": -rows(graded(x, k), m) * x["logprobs"], "nll": -x["frozen"]}


def rift_source(x, m, k):
    score = masked_sum(x["logprobs"], m)
    if k["length_norm"]:
        score = score / lengths(m)
    values = [-r * s if r > 0 else -r * np.exp(s) for r, s in zip(graded(x, k), score, strict=True)]
    return {"values": np.array(values), "score": score}


def rift_source_token(x, m, k):
    r = rows(graded(x, k), m)
    return {"values": np.where(r > 0, -r * x["logprobs"], -r * np.exp(x["logprobs"])), "nll": -x["frozen"]}


def advantage_nll(x, m, k):
    return {"values": -x["advantages"] * x["logprobs"], "nll": -x["frozen"]}


def krafton(x, m, k):
    penalty = k3(x["logprobs"], x["reference_logprobs"])
    values = -x["advantages"] * np.exp(x["logprobs"]) + k["beta_kl"] * penalty - k["entropy_bonus"] * x["entropy"]
    return {"values": values, "nll": -x["frozen"], "reference_k3": penalty}


# ------------------------------------------------------------------------------------------------- preference


def pair_metrics(score, x, m):
    n = lengths(m)
    gap = np.array([score[w] - score[r] for w, r in x["pairs"]])
    return {
        "margin_sum": gap,
        "margin_mean": np.array([score[w] / n[w] - score[r] / n[r] for w, r in x["pairs"]]),
        "accuracy": (gap > 0).astype(float),
        "length_chosen": np.array([n[w] for w, _ in x["pairs"]]),
        "length_rejected": np.array([n[r] for _, r in x["pairs"]]),
    }


def preference(x, m, k, loss, *, mean=False, reference=True):
    score = masked_sum(x["logprobs"] - (x["reference_logprobs"] if reference else 0), m)
    used = score / lengths(m) if mean else score
    values = [w * loss(used[a], used[b]) for w, (a, b) in zip(x["pair_weights"], x["pairs"], strict=True)]
    return {"values": np.array(values), **pair_metrics(score, x, m)}


def smoothed(h, e):
    return -(1 - e) * log_sigmoid(h) - e * log_sigmoid(-h)


def dpo(x, m, k):
    return preference(x, m, k, lambda w, r: smoothed(k["beta"] * (w - r), k["label_smoothing"]))


def dpo_norm(x, m, k):
    return preference(x, m, k, lambda w, r: smoothed(k["beta"] * (w - r), k["label_smoothing"]), mean=True)


def ipo(x, m, k):
    return preference(x, m, k, lambda w, r: (w - r - 1 / (2 * k["beta"])) ** 2, mean=k["length_norm"])


def simpo(x, m, k):
    return preference(x, m, k, lambda w, r: -log_sigmoid(k["beta"] * (w - r) - k["gamma"]), mean=True, reference=False)


def cal_dpo(x, m, k):
    c = 1 / (2 * k["beta"])
    return preference(x, m, k, lambda w, r: -log_sigmoid(w - r) + (w - c) ** 2 + (r + c) ** 2)


def kto(x, m, k):
    reward = masked_sum(x["logprobs"] - x["reference_logprobs"], m)
    z = k["reference_point"]
    values = [
        k["weight_right"] * (1 - sigmoid(k["beta"] * (r - z)))
        if right > 0
        else k["weight_wrong"] * (1 - sigmoid(k["beta"] * (z - r)))
        for r, right in zip(reward, x["rewards"], strict=True)
    ]
    return {"values": np.array(values), "implicit_reward": reward}


# ----------------------------------------------------------------------------------------------------- policy


def surrogate(u, a, k, dual=None):
    dual = k["dual_clip"] if dual is None else dual
    values, clipped = np.zeros_like(u), np.zeros_like(u)
    for i in np.ndindex(u.shape):
        low, high = 1 - k["clip_low"], 1 + k["clip_high"]
        values[i] = max(-u[i] * a[i], -min(max(u[i], low), high) * a[i])
        clipped[i] = (a[i] > 0 and u[i] > high) or (a[i] < 0 and u[i] < low)
        if dual and a[i] < 0:
            values[i] = min(values[i], -dual * a[i])
            clipped[i] = clipped[i] or u[i] > dual
    return {"values": values, "ratio": u, "clipped": clipped}


def ratio(x, other="old_logprobs"):
    return np.exp(x["logprobs"] - x[other])


def ppo(x, m, k):
    return surrogate(ratio(x), x["advantages"], k)


def grpo_kl(x, m, k):
    out = surrogate(ratio(x), x["advantages"], k)
    penalty = k3(x["logprobs"], x["reference_logprobs"])
    weight = ratio(x) if k["ratio_weighted"] else 1.0
    return {**out, "values": out["values"] + k["beta_kl"] * weight * penalty, "reference_k3": penalty}


def gspo(x, m, k):
    sequence = np.exp(masked_sum(x["frozen"] - x["old_logprobs"], m) / lengths(m))
    return surrogate(rows(sequence, m) * np.exp(x["logprobs"] - x["frozen"]), x["advantages"], k)


def sapo(x, m, k, other="old_logprobs"):
    u, a = ratio(x, other), x["advantages"]
    tau = np.where(a > 0, k["tau_positive"], k["tau_negative"])
    return {"values": -a * (4 / tau) * sigmoid(tau * (u - 1)), "ratio": u}


def corrected(x, m, k):
    out = surrogate(ratio(x), x["advantages"], k, dual=0)
    w = np.exp(x["old_logprobs"] - x["behavior_logprobs"])
    w = np.minimum(w, k["cap"]) if k["form"] == "truncate" else w * (k["band_low"] <= w) * (w <= k["band_high"])
    return {**out, "values": w * out["values"], "mismatch_weight": w}


# ----------------------------------------------------------------------------------------------- distillation


def floored(x):
    return np.where(np.isneginf(x["teacher_logprobs"]), -20.0, x["teacher_logprobs"])


def teacher_metrics(x):
    q = floored(x)
    return {
        "teacher_k1": x["frozen"] - q,
        "teacher_k3": k3(x["frozen"], q),
        "teacher_floored": np.isneginf(x["teacher_logprobs"]).astype(float),
    }


def advantage_form(x, a):
    u = ratio(x)
    return {"values": -u * a, "ratio": u, **teacher_metrics(x)}


def come(d, m, gamma, start=0):
    out = np.zeros_like(d)
    for i, t in np.ndindex(d.shape):
        out[i, t] = sum(gamma ** (j - t) * d[i, j] for j in range(t + start, d.shape[1]) if m[i, j])
    return out


def opd(x, m, k):
    own = x["frozen"] if k["d_source"] == "current" else x["old_logprobs"]
    return advantage_form(x, come(k["kappa"] * (floored(x) - own), m, k["gamma"]))


def gopd(x, m, k):
    f = x["reference_logprobs"]
    return advantage_form(x, k["lam"] * (floored(x) - f) - (x["frozen"] - f))


def minillm(x, m, k):
    start = 1 if k["first"] == "next" else 0
    g = come(floored(x) - x["frozen"], m, k["gamma"], start)
    if k["length_norm"]:
        weight = come(np.ones_like(g), m, k["gamma"], start)
        g = np.where(weight > 0, g / np.maximum(weight, 1), 0)
    return advantage_form(x, g + x["advantages"])


def reverse_kl_k2(x, m, k):
    u = np.exp(x["frozen"] - x["old_logprobs"])
    return {"values": u * (x["logprobs"] - floored(x)) ** 2 / 2, **teacher_metrics(x)}


def reverse_kl_k3_plus(x, m, k):
    u = np.exp(x["frozen"] - x["old_logprobs"])
    q = floored(x)
    through = (x["logprobs"] - q) ** 2 / 2 - (x["frozen"] - q) ** 2 / 2
    return {"values": u * (k3(x["frozen"], q) + through), **teacher_metrics(x)}


# ------------------------------------------------------------------------------------------------ divergences


def divergence(formula, *, extra=None):
    def reference(x, m, k):
        p, q = softmax(x["logits"], k["kd_temperature"]), softmax(x["teacher_logits"], k["kd_temperature"])
        if "k" in k:
            p, q, mass = merged(p, q, k["k"], union=extra != "teacher")
        value = formula(p, q, k)
        factor = k["kd_temperature"] ** 2 if k["tau_squared"] else 1.0
        out = {"values": factor * value, "negative": (value < -1e-6).astype(float)}
        if extra == "entropies":
            out |= {"cross_entropy": -(q * np.log(p)).sum(-1), "teacher_entropy": -(q * np.log(q)).sum(-1)}
        return out | (mass if "k" in k else {})

    return reference


def merged(p, q, k, *, union):
    """Both distributions on the kept ids and one cell for the rest, cells padded with zeros to one width."""
    width = p.shape[-1]
    a, b = np.zeros((*p.shape[:-1], width + 1)), np.zeros((*p.shape[:-1], width + 1))
    for cell in np.ndindex(p.shape[:-1]):
        keep = set(np.argsort(-q[cell], kind="stable")[:k])
        if union:
            keep |= set(np.argsort(-p[cell], kind="stable")[:k])
        for v in range(width):
            slot = v if v in keep else width
            a[cell][slot] += p[cell][v]
            b[cell][slot] += q[cell][v]
    return a, b, {"student_mass_topk": 1 - a[..., -1], "teacher_mass_topk": 1 - b[..., -1]}


def jsd(p, q, k):
    m = k["beta"] * q + (1 - k["beta"]) * p
    return k["beta"] * kl(q, m) + (1 - k["beta"]) * kl(p, m)


# ------------------------------------------------------------------------------------------------------ joint


def joint(advantage):
    def reference(x, m, k):
        d = np.where(x["teacher_mask"], floored(x) - x["frozen"], 0)
        floor = np.isneginf(x["teacher_logprobs"]).astype(float)
        return {**surrogate(ratio(x), advantage(x, m, k, d), k), "teacher_floored": floor}

    return reference


def annealed_beta(k):
    share = k["step"] / (k["num_steps"] - 1)
    return (1 - share) * k["beta_first"] + share * k["beta_last"]


def rlsd_advantage(x, m, k, d):
    a = x["advantages"]
    factor = np.clip(np.exp(np.sign(a) * d), 1 - k["spread"], 1 + k["spread"])
    return ((1 - k["share"]) + k["share"] * factor) * a


def kdrl(x, m, k):
    if k["kd_path"] == "advantage":
        return joint(lambda x, m, k, d: x["advantages"] + k["beta"] * d)(x, m, k)
    out = joint(lambda x, m, k, d: x["advantages"])(x, m, k)
    u = np.exp(x["frozen"] - x["old_logprobs"])
    penalty = np.where(x["teacher_mask"], u * (x["logprobs"] - floored(x)) ** 2 / 2, 0)
    return {**out, "values": out["values"] + k["beta"] * penalty}


def opd_rlvr(x, m, k):
    teacher = k["alpha"] * np.where(x["teacher_mask"], floored(x) - x["frozen"], 0)
    reward = (1 - k["alpha"]) * x["advantages"]
    u = ratio(x)
    out = {"values": -u * (teacher + reward), "ratio": u, "clipped": np.zeros_like(u)}
    if k["clip"]:
        out = surrogate(u, teacher + reward, {"clip_low": min(k["clip"], 1), "clip_high": k["clip"], "dual_clip": 0})
    out |= {"teacher_term_square": teacher**2, "reward_term_square": reward**2}
    return {**out, "teacher_floored": np.isneginf(x["teacher_logprobs"]).astype(float)}


def trrd(x, m, k):
    anchor = np.where(x["teacher_mask"], floored(x), x["old_logprobs"])
    s, o = x["logprobs"], x["old_logprobs"]
    u = np.exp(np.clip(k["alpha"] * (s - o) + (1 - k["alpha"]) * (s - anchor), -20, 20))
    floor = np.isneginf(x["teacher_logprobs"]).astype(float)
    return {**surrogate(u, x["advantages"], k), "teacher_floored": floor}


# ------------------------------------------------------------------------------------------------------- erpd


def implicit(x, m, k):
    reward = masked_sum(x["logprobs"] - x["reference_logprobs"], m)
    return reward / lengths(m) if k["length_norm"] else reward


def erpd_ce(x, m, k):
    reward = implicit(x, m, k)
    h = k["beta"] * reward
    r = (x["rewards"] > 0).astype(float)
    return {"values": -(r * log_sigmoid(h) + (1 - r) * log_sigmoid(-h)), "implicit_reward": reward}


def erpd_mse(x, m, k):
    reward = implicit(x, m, k)
    advantage = masked_sum(x["advantages"], m) / lengths(m)
    return {"values": (k["beta"] * reward - advantage) ** 2, "implicit_reward": reward}


def pulled(x, k):
    drift = x["frozen"] - x["reference_logprobs"]
    return x["signal"] - k["beta"] * drift + k["eta"] * x["advantages"]


def erpd_kl_full(x, m, k):
    out = surrogate(ratio(x), x["signal"], k)
    exact = kl(softmax(x["logits"]), softmax(x["reference_logits"]))
    return {**out, "values": out["values"] + k["beta"] * exact, "kl_student_reference_exact": exact}


REFERENCES = {
    "sft": sft,
    "dft": dft,
    "rift:paper-printed": rift_paper,
    "rift:reward-weighted": rift_weighted,
    "rift:source": rift_source,
    "rift:source-token": rift_source_token,
    "offline_grpo:advantage-nll": advantage_nll,
    "offline_grpo:krafton": krafton,
    "dpo": dpo,
    "dpo_norm": dpo_norm,
    "ipo": ipo,
    "simpo": simpo,
    "kto": kto,
    "cal_dpo": cal_dpo,
    "ppo": ppo,
    "grpo": ppo,
    "grpo:kl": grpo_kl,
    "grpo:mismatch-corrected": corrected,
    "dapo": ppo,
    "dr_grpo": ppo,
    "gspo": gspo,
    "sapo": sapo,
    "opd": opd,
    "gopd": gopd,
    "minillm": minillm,
    "reverse_kl_k2": reverse_kl_k2,
    "reverse_kl_k3_plus": reverse_kl_k3_plus,
    "reverse_kl": divergence(lambda p, q, k: kl(p, q)),
    "opd_full": divergence(lambda p, q, k: kl(p, q)),
    "forward_kl": divergence(lambda p, q, k: kl(q, p), extra="entropies"),
    "jsd": divergence(jsd),
    "jsd_rescaled": divergence(lambda p, q, k: jsd(p, q, k) / (k["beta"] * (1 - k["beta"]))),
    "skew_forward": divergence(lambda p, q, k: kl(q, k["skew"] * q + (1 - k["skew"]) * p)),
    "skew_reverse": divergence(lambda p, q, k: kl(p, k["skew"] * p + (1 - k["skew"]) * q)),
    "forward_kl_topk_tail": divergence(lambda p, q, k: kl(q, p), extra="teacher"),
    "reverse_kl_topk_tail": divergence(lambda p, q, k: kl(p, q)),
    "jsd_topk_tail": divergence(jsd),
    "opd:clipped": joint(lambda x, m, k, d: d),
    "kdrl": kdrl,
    "opd_rlvr": opd_rlvr,
    "kdrl_mask": joint(lambda x, m, k, d: x["advantages"] + (1 - rows(x["correct"], m)) * k["beta"] * d),
    "kdrl_annealing": joint(lambda x, m, k, d: x["advantages"] + annealed_beta(k) * d),
    "srpo": joint(lambda x, m, k, d: np.where(rows(x["correct"], m) == 1, x["advantages"], d)),
    "hdpo": joint(lambda x, m, k, d: x["advantages"] + rows(x["group_all_wrong"], m) * k["beta"] * d),
    "rlsd": joint(rlsd_advantage),
    "trrd": trrd,
    "opd_then_rl": joint(lambda x, m, k, d: d if k["step"] < k["switch_step"] else x["advantages"]),
    "erpd_sapo": lambda x, m, k: sapo(x, m, k, "behavior_logprobs"),
    "erpd_ce": erpd_ce,
    "erpd_mse": erpd_mse,
    "erpd_forget": lambda x, m, k: {"values": np.exp(x["logprobs"]), "nll": -x["frozen"]},
    "erpd_kl": lambda x, m, k: surrogate(ratio(x), pulled(x, k), k),
    "erpd_kl_full": erpd_kl_full,
    "erpd_clip": lambda x, m, k: surrogate(ratio(x, "reference_logprobs"), x["signal"], k),
    "erpd_kl_clip": lambda x, m, k: surrogate(ratio(x, "reference_logprobs"), pulled(x, k), k),
}
