"""Hidden states in, token scores and divergences out, never a (tokens, vocabulary) tensor."""

from limbeck.heads.blocks import CHUNK_BYTES, Head, cut
from limbeck.heads.divergences import chunked, forward_kl, reverse_kl
from limbeck.heads.linear import LinearTotal, linear_total
from limbeck.heads.logprobs import TokenScores, score_tokens

__all__ = [
    "CHUNK_BYTES",
    "Head",
    "LinearTotal",
    "TokenScores",
    "chunked",
    "cut",
    "forward_kl",
    "linear_total",
    "reverse_kl",
    "score_tokens",
]
