"""Stacks of adapters: whatever came and went before, each position multiplies as its own adapter does."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

pytestmark = pytest.mark.torch

R, WIDTH = 8, 5
OUT = {"q": 4, "k": 3, "o": 6}
UNITS = ((("q", "k"), (0, 4, 7)), (("o",), (0, 6)))
ROWS = 2

ids = st.integers(0, 13)


def _linear(random: Any, out: int, *, scaled: bool) -> Any:
    import torch

    from graft_server.engine.torch.resident import ResidentLinear

    scale = torch.rand(out, generator=random, dtype=torch.float64) if scaled else None
    return ResidentLinear(
        torch.randn(WIDTH, R, generator=random, dtype=torch.float64),
        torch.randn(R, out, generator=random, dtype=torch.float64),
        scale,
    )


def _neck(random: Any, activation: str) -> Any:
    import torch

    from graft_server.engine.torch.resident import ResidentBottleneck

    shapes = ((WIDTH, R), (R,), (R, WIDTH), (WIDTH,))
    tensors = (torch.randn(*shape, generator=random, dtype=torch.float64) for shape in shapes)
    return ResidentBottleneck(*tensors, activation)  # type: ignore[arg-type]


def adapter(engine_id: int) -> Any:
    """Some modules and bottlenecks, and of some of them a scale; different ones for different ids."""
    import torch

    from graft_server.engine.torch.resident import ResidentAdapter

    random = torch.Generator().manual_seed(engine_id)
    names = [name for at, name in enumerate(OUT) if (engine_id + 1) >> at & 1]
    activation = ("relu", "gelu", "identity")[engine_id % 3]
    return ResidentAdapter(
        bucket=R,
        linears={name: _linear(random, OUT[name], scaled=engine_id % 4 == 3) for name in names},
        blocks={layer: _neck(random, activation) for layer in range(engine_id % 3)},
        head=_neck(random, activation) if engine_id % 5 == 0 else None,
    )


@settings(max_examples=60, stateful_step_count=25, deadline=None)
class Uses(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        import torch

        from graft_server.engine.torch.stack import Stack, Unit

        self.units = {name: Unit(names, ends) for names, ends in UNITS for name in names}
        self.stack = Stack(R, self.units)
        self.x = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(99), dtype=torch.float64)

    @rule(wanted=st.sets(ids, min_size=1, max_size=9))
    def ensure(self, wanted: set[int]) -> None:
        self.stack.ensure({engine_id: adapter(engine_id) for engine_id in wanted})
        for engine_id in wanted:
            self.compare(engine_id)

    @rule(engine_id=ids)
    def remove(self, engine_id: int) -> None:
        self.stack.remove(engine_id)

    @invariant()
    def others_are_as_they_were(self) -> None:
        for engine_id in self.stack.held:
            self.compare(engine_id)
        self.stack.check_integrity()

    @invariant()
    def nothing_is_computed_that_nobody_has(self) -> None:
        held = [adapter(engine_id) for engine_id in self.stack.held]
        for unit in self.units.values():
            linear, linears = self.stack.linear(unit), [each.linears for each in held]
            used = {name for own in linears for name in unit.names if name in own}
            scaled = {name for name in used if any(name in own and own[name].scale is not None for own in linears)}
            parts, scales = (set(), set()) if linear is None else (set(linear.parts), set(linear.scaled))
            assert parts == {unit.part(name, R) for name in used}
            assert scales == {unit.part(name, R) for name in scaled}
        for layer in (0, 1):
            assert (self.stack.neck(layer) is None) == (not any(layer in each.blocks for each in held))
        assert (self.stack.neck("head") is None) == all(each.head is None for each in held)

    def compare(self, engine_id: int) -> None:
        own = adapter(engine_id)
        for name in OUT:
            self.compare_linear(engine_id, name, own.linears.get(name))
        for site, neck in ((0, own.blocks.get(0)), (1, own.blocks.get(1)), ("head", own.head)):
            self.compare_neck(engine_id, site, neck)

    def compare_linear(self, engine_id: int, name: str, own: Any) -> None:
        """As the mixer uses it: ``base + product``, or ``(base + product) * scale``."""
        import torch

        unit = self.units[name]
        linear = self.stack.linear(unit)
        if linear is None:
            assert own is None
            return
        at = self.stack.positions[engine_id]
        part = unit.part(name, R)
        if part not in linear.parts:
            assert own is None
            return
        hidden = self.x @ linear.weights.down[at]
        product = hidden[:, part.column : part.column + R] @ linear.weights.up[at, :, part.begin : part.end]
        scale = torch.ones(OUT[name], dtype=torch.float64)
        if part in linear.scaled:
            scale += linear.weights.excess[at, 0, part.begin : part.end]
        expected = torch.zeros_like(product) if own is None else self.x @ own.down @ own.up
        torch.testing.assert_close(product, expected)
        own_scale = None if own is None else own.scale
        torch.testing.assert_close(scale, torch.ones_like(scale) if own_scale is None else own_scale)

    def compare_neck(self, engine_id: int, site: Any, own: Any) -> None:
        import torch

        from graft_server.activations import ACTIVATIONS

        neck = self.stack.neck(site)
        if neck is None:
            assert own is None
            return
        at = self.stack.positions[engine_id]
        # Beside a neighbour, which may have another activation.
        first = max(0, at - 1)
        rows = self.x.expand(at + 1 - first, -1, -1)
        update = neck.apply(rows, slice(first, at + 1))[-1]
        expected = torch.zeros_like(update)
        if own is not None:
            hidden = ACTIVATIONS[own.activation](self.x @ own.down + own.down_bias)
            expected = hidden @ own.up + own.up_bias
        torch.testing.assert_close(update, expected)


TestUses = Uses.TestCase
