"""Sampling from any OpenAI-compatible server: many requests at once, each answered exactly once, none lost to a crash.

``endpoint`` says where and how patiently, ``wire`` what is asked and how an answer is read, ``retries`` when to ask again,
``exchange`` puts them on the network, ``sampler`` is what the rest of limbeck sees. The weights are the server's business:
it cannot follow a student that trains here.
"""

from limbeck.rollouts.server.endpoint import Server, key_from_environment
from limbeck.rollouts.server.sampler import ServerSampler

__all__ = ["Server", "ServerSampler", "key_from_environment"]
