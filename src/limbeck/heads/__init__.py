"""Hidden states in, token scores and divergences out, never a (tokens, vocabulary) tensor."""

from limbeck.heads.blocks import Head, cut
from limbeck.heads.divergences import chunked, forward_kl, logits_of, reverse_kl
from limbeck.heads.likeliest import Likeliest, likeliest
from limbeck.heads.linear import LinearTotal, linear_total
from limbeck.heads.logprobs import TokenScores, score_tokens
from limbeck.heads.mixtures import jsd, jsd_rescaled, skew_forward, skew_reverse
from limbeck.heads.sides import STUDENT_SCORES

__all__ = [
    "STUDENT_SCORES",
    "Head",
    "Likeliest",
    "LinearTotal",
    "TokenScores",
    "chunked",
    "cut",
    "forward_kl",
    "jsd",
    "jsd_rescaled",
    "likeliest",
    "linear_total",
    "logits_of",
    "reverse_kl",
    "score_tokens",
    "skew_forward",
    "skew_reverse",
]
