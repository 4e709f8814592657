"""Hidden states in, token scores out, never a (tokens, vocabulary) tensor."""

from limbeck.heads.logprobs import CHUNK_BYTES, Head, TokenScores, score_tokens

__all__ = ["CHUNK_BYTES", "Head", "TokenScores", "score_tokens"]
