"""Linear modules that read the same input are computed as one, and give what each gave by itself."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.torch


def modules(*outs: int, bias: bool = False) -> Any:
    import torch
    from torch import nn

    torch.manual_seed(3)
    return nn.ModuleList(nn.Linear(6, out, bias=bias) for out in outs).requires_grad_(False)


@pytest.mark.parametrize("bias", [False, True])
def test_each_gives_what_it_gave_in_any_order_and_more_than_once(bias: bool) -> None:
    import torch

    from graft_server.engine.torch.joint import join_linears

    plain, joined = modules(4, 3, 5, bias=bias), modules(4, 3, 5, bias=bias)
    joint = join_linears(joined)
    x, other = torch.randn(2, 7, 6), torch.randn(1, 1, 6)
    for own in (x, other, x):
        for index in (0, 1, 2, 2, 1, 0, 2):
            torch.testing.assert_close(joined[index](own), plain[index](own))
    for one, same in zip(joined, plain, strict=True):
        assert torch.equal(one.weight, same.weight)
        assert one.weight.untyped_storage().data_ptr() == joint.weight.untyped_storage().data_ptr()


def test_modules_called_one_after_the_other_are_one_product_and_leave_nothing_behind() -> None:
    import gc
    import weakref

    import torch

    from graft_server.engine.torch.joint import join_linears

    joined = modules(4, 3)
    joint = join_linears(joined)
    calls: list[int] = []
    joint.register_forward_hook(lambda *_: calls.append(1))
    x = torch.randn(1, 2, 6)
    outputs = [module(x) for module in joined]
    assert len(calls) == 1
    kept = weakref.ref(x)
    del x, outputs
    gc.collect()
    assert kept() is None


def test_an_input_that_was_changed_in_between_is_computed_anew() -> None:
    import torch

    from graft_server.engine.torch.joint import join_linears

    plain, joined = modules(4, 3), modules(4, 3)
    join_linears(joined)
    x = torch.randn(1, 2, 6)
    # A model that fails on the way never comes to the second one.
    joined[0](x)
    x += 1
    torch.testing.assert_close(joined[0](x), plain[0](x))
    torch.testing.assert_close(joined[1](x), plain[1](x))


def test_modules_of_another_kind_are_told_apart() -> None:
    import torch
    from torch import nn

    from graft_server.engine.torch.joint import kind_of

    class Scaled(nn.Linear):
        pass

    kinds = [
        kind_of(nn.Linear(6, 4)),
        kind_of(nn.Linear(6, 4, bias=False)),
        kind_of(nn.Linear(5, 4)),
        kind_of(nn.Linear(6, 4, dtype=torch.float64)),
        kind_of(nn.Linear(6, 4, device="meta")),
        kind_of(Scaled(6, 4)),
    ]
    assert len(set(kinds)) == len(kinds)
    assert kinds[-1] is None
    assert kind_of(nn.Linear(6, 9)) == kinds[0]


def test_what_reads_the_same_input_is_joined_and_what_is_called_twice_or_makes_logits_is_not() -> None:
    import torch
    from torch import nn

    from graft_server.engine.torch.mixer import Mixer

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.twice, self.head, self.other = (nn.Linear(6, 6) for _ in range(5))
            self.unlike, self.too = (nn.Linear(6, 6, bias=False) for _ in range(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.q(x) + self.unlike(x) + self.k(x) + self.twice(x) + self.too(x)
            z = self.twice(y) + self.other(y)
            return self.head(z) * self.q.weight.sum()  # type: ignore[no-any-return]

    torch.manual_seed(3)
    model = Model().requires_grad_(False)
    x = torch.randn(1, 4, 6)
    expected = model(x)
    mixer = Mixer(model, blocks=[], head=model.head)
    computing = mixer.join_linears(lambda: model(x))
    assert [module for module in model.children() if module not in computing] == [
        model.q,
        model.k,
        model.unlike,
        model.too,
    ]
    joint = [module for module in computing if module not in list(model.children())]
    assert [module.out_features for module in joint] == [12, 12]  # type: ignore[union-attr]
    torch.testing.assert_close(model(x), expected)
