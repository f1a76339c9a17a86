"""The parts of reproducing scripts in torch that concern callables of several tensors."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from relucheck.gate.frameworks.script import Script
from relucheck.gate.frameworks.torch_views import filled, packed, result, seen
from relucheck.numerics.floats import Floats


class TorchViewScript(Script):
    """Writes those parts."""

    def viewing(self) -> list[str]:
        """Return lines that make ``act`` a function of one tensor, if it takes or returns several."""
        view = self.subject.view
        if view is None:
            return []
        if not self.subject.is_module:
            call = f"whole({packed(view, filled(view))})"
            return ["whole = act", f"act = lambda x: {seen(view, call)}"]
        hooks = []
        if view.names:
            pack = packed(view, filled(view, "i[0]"))
            hooks.append(f"act.register_forward_pre_hook(lambda m, i: ({pack},))")
        if (read := seen(view, "y")) != "y":
            hooks.append(f"act.register_forward_hook(lambda m, i, y: {read})")
        return ["; ".join(hooks)]

    def joint(
        self,
        arrays: Sequence[Floats],
        dtypes: Sequence[str],
        cotangent: Floats,
        expected: Floats | str,
        slack: float,
        *,
        stepped: bool = False,
    ) -> str:
        view = self.subject.view
        assert view is not None
        on = "" if self.device == "cpu" else f', device="{self.device}"'
        names = [f"p[{index}]" for index in range(len(arrays))]
        kinds = f"dtype=torch.{dtypes[0]}" if len({*dtypes}) == 1 else "dtype=d"
        pairs = ", ".join(f"({array.tolist()}, torch.{dtype})" for array, dtype in zip(arrays, dtypes, strict=True))
        listed = f"for n in {[array.tolist() for array in arrays]}" if len({*dtypes}) == 1 else f"for n, d in [{pairs}]"
        call = packed(view, ["*p"] if view.row else names, stepped).replace("[*p]", "p")
        lines = [
            f"p = [torch.tensor(n, {kinds}{on}).requires_grad_() {listed}]",
            f"y = {result(view, f'act({call})')}",
        ]
        v = f"torch.tensor({cotangent.tolist()}).to(y)"
        if isinstance(expected, str) and expected == "dtype":
            widest = functools.reduce(lambda a, b: f"torch.promote_types({a}, {b})", [f"{name}.dtype" for name in names])
            lines += ["print(y.dtype)", f"assert y.dtype in (p[0].dtype, {widest})"]
        elif isinstance(expected, str):
            lines += [
                f"v = {v}",
                "before = v.tolist()",
                "torch.autograd.grad(y, p, v, allow_unused=True)",
                "assert v.tolist() == before, v",
            ]
        else:
            lines += [
                f"g, = torch.autograd.grad(y, {names[view.index]}, {v})",
                f"expected = torch.tensor({expected.tolist()}, dtype=torch.float64{on})",
                f"assert (g.double() - expected).abs().max() <= {slack:.6g}, (g, expected)",
            ]
        return "\n".join([*self.header(viewing=False), *lines])
