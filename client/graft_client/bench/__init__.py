"""A load generator: what ``graft bench`` sends, how it times the answers, and what it makes of the times.

- ``settings``: everything that a run depends on
- ``popularity``, ``arrivals``, ``workload``: which requests, and when; pure and repeatable from a seed
- ``endpoints``, ``exchange``: one streamed request over HTTP, timed
- ``load``, ``run``: many of them, in a closed or an open loop
- ``records``, ``statistics``, ``result``: what was measured, and the figures
- ``plot``: the figures as a picture

It needs nothing of the server but ``/v1/completions`` or ``/v1/chat/completions`` as OpenAI shapes them.
"""
