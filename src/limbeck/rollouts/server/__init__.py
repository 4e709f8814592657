"""Sampling and scoring by any OpenAI-compatible server: many requests at once, each answered exactly once, none lost to a crash.

``endpoint`` says where and how patiently, ``wire`` and ``scoring`` what is asked and how an answer is read, ``retries`` when
to ask again, ``pool`` whom of several, ``exchange`` puts requests on the network, ``client`` each answer on record;
``sampler`` and ``scorer`` are what the rest of limbeck sees. The weights are the server's business: it cannot follow a
student that trains here.
"""

from limbeck.rollouts.server.endpoint import Server, key_from_environment
from limbeck.rollouts.server.sampler import ServerSampler
from limbeck.rollouts.server.scorer import ServerScorer

__all__ = ["Server", "ServerSampler", "ServerScorer", "key_from_environment"]
