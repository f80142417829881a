"""What the gate does to latency and throughput, over a simulated engine whose steps take longer with more rows."""

from __future__ import annotations

import pytest

from graft_server.admission.gate import Gate
from graft_server.admission.shares import Shares
from support.simulated_engine import Job, Simulation

FLOOD = 99
QUIET = range(1, 10)


def make_gate(*, slots: int = 32, shares: Shares | None = None) -> Gate:
    return Gate(slots=slots, max_running=256, max_queued=100_000, shares=shares)


def flooded(*, clients: int, think: float, start: float = 5.0, background: bool = False) -> Simulation:
    """Nine adapters with a client each, who thinks between two requests, and ``clients`` of a tenth who don't."""
    simulation = Simulation(make_gate())
    for adapter in QUIET:
        simulation.closed_loop(adapter, 1, think=think)
    if clients:
        simulation.closed_loop(FLOOD, clients, start=start, background=background)
    simulation.run(200)
    return simulation


def p99(simulation: Simulation, *, since: float = 0.0) -> float:
    """Seconds that all but one of a hundred quiet requests took at most."""
    latencies = sorted(job.latency for job in simulation.done if job.adapter != FLOOD and job.arrived >= since)
    return latencies[int(0.99 * len(latencies))]


def throughput(simulation: Simulation, adapter: int | None = None) -> float:
    """Generated tokens a second, of one adapter or of all."""
    return sum(job.answer for job in simulation.done if adapter in (None, job.adapter)) / simulation.now


def most_throughput() -> float:
    """A flood alone in an engine without a gate."""
    open_gate = Shares(256, slowdown=1e9)
    simulation = Simulation(make_gate(shares=open_gate))
    simulation.gate.pace._knee = 1e9
    simulation.closed_loop(FLOOD, 300)
    simulation.run(200)
    return throughput(simulation)


@pytest.mark.parametrize("think", [0.0, 0.5, 2.0, 10.0])
def test_a_flood_makes_quiet_adapters_at_most_twice_as_slow(think: float) -> None:
    alone, beside = flooded(clients=0, think=think), flooded(clients=300, think=think)
    assert p99(beside) <= 2.0 * p99(alone)
    # And is served meanwhile.
    assert throughput(beside, FLOOD) >= 0.25 * most_throughput()


def test_a_flood_in_the_background_leaves_people_as_fast() -> None:
    alone, beside = flooded(clients=0, think=2.0), flooded(clients=300, think=2.0, background=True)
    assert p99(beside) <= 2.0 * p99(alone)
    assert throughput(beside, FLOOD) > 0


def test_a_flood_that_was_there_first_makes_way_within_an_answers_time() -> None:
    alone = flooded(clients=0, think=2.0)
    simulation = Simulation(make_gate())
    simulation.closed_loop(FLOOD, 300)
    for adapter in QUIET:
        simulation.closed_loop(adapter, 1, think=2.0, start=30.0)
    simulation.run(230)
    longest = max(job.ended - job.admitted for job in simulation.done)
    assert longest < 30
    assert p99(simulation, since=30.0 + longest) <= 2.0 * p99(alone)


def test_a_flood_that_is_alone_has_the_whole_engine() -> None:
    simulation = Simulation(make_gate())
    simulation.closed_loop(FLOOD, 300)
    simulation.run(200)
    assert throughput(simulation) >= 0.85 * most_throughput()


def test_a_flood_gets_the_engine_back_when_the_others_have_gone() -> None:
    simulation = Simulation(make_gate())
    for adapter in QUIET:
        simulation.send(Job(adapter, prompt=30, answer=32))
    simulation.closed_loop(FLOOD, 300)
    simulation.run(5)
    assert simulation.gate.running_by_adapter[FLOOD] < 20
    simulation.run(30)
    assert simulation.gate.running_by_adapter[FLOOD] > 60


@pytest.mark.parametrize("clients", [64, 256])
def test_many_adapters_over_few_slots_keep_most_of_the_throughput(clients: int) -> None:
    def uniform(adapters: int) -> float:
        """Clients that ask any of the adapters, which take 45 ms to load, again and again."""
        simulation = Simulation(make_gate(slots=8), load_seconds=0.045)

        def ask(time: float) -> None:
            adapter, length = simulation.random.randrange(adapters), simulation.random.randint(16, 48)
            simulation.send(Job(adapter, 30, length, then=lambda: simulation.at(simulation.now, ask)), time)

        for _ in range(clients):
            simulation.at(0.0, ask)
        simulation.run(120)
        return throughput(simulation)

    assert uniform(64) >= 0.7 * uniform(8)


def test_many_requests_at_once_are_batched_by_adapter() -> None:
    def burst(adapters: int) -> float:
        simulation = Simulation(make_gate(slots=8), load_seconds=0.045)
        for number in range(512):
            simulation.send(Job(number % adapters, 30, simulation.random.randint(16, 48)))
        simulation.run(1000)
        assert len(simulation.done) == 512
        return throughput(simulation)

    assert burst(64) >= 0.7 * burst(8)
