"""The parts of reproducing scripts in torch that concern callables of several tensors."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from relucheck.gate.frameworks.of_torch.views import filled, held_name, packed, result, seen
from relucheck.gate.frameworks.script import Script
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

    def holding(self, *, viewing: bool) -> list[str]:
        """Return lines that make ``act`` a module that holds arguments.

        It calls ``whole`` with them.

        Args:
            viewing: whether it is a function of one tensor under the view, too.
        """
        view = self.subject.view
        assert view is not None
        names = [f"act.{held_name(name)}" for name, _ in view.held]
        held = [list(numbers) if isinstance(numbers, tuple) else numbers for _, numbers in view.held]
        parameters = ", ".join(f"torch.nn.Parameter(torch.tensor({numbers}, {self.place}))" for numbers in held)
        call = f"whole({packed(view, filled(view)) if viewing else 'x'}, {', '.join(names)})"
        return [
            f"act = torch.nn.Module(); {', '.join(names)} = {parameters}",
            f"act.forward = lambda x: {seen(view, call) if viewing else call}",
        ]

    def copying(self) -> list[str]:
        """Return lines that make ``act`` work on a copy of its input.

        There are none if it does not write to its input.
        """
        if not self.subject.writes:
            return []
        if self.subject.is_module:
            first = ", prepend=True" if self.subject.view is not None else ""
            return [f"act.register_forward_pre_hook(lambda module, inputs: inputs[0].clone(){first})"]
        return ["overwriting = act", "act = lambda x, **more: overwriting(x.clone(), **more)"]

    @property
    def place(self) -> str:
        """Dtype and device as arguments of ``to`` and ``torch.tensor``; the CPU is left out."""
        if self.device == "cpu":
            return f"dtype=torch.{self.dtype}"
        return f'dtype=torch.{self.dtype}, device="{self.device}"'

    def joint(
        self,
        arrays: Sequence[Floats],
        dtypes: Sequence[str],
        cotangent: Floats,
        expected: Floats | str,
        slack: float,
        *,
        stepped: bool = False,
        along: tuple[int, float] | None = None,
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
        elif isinstance(expected, str) and expected == "input":
            lines[-1:] = [
                f"given = [each.detach().clone() for each in ({call},)]",
                "before = [each.tolist() for each in given]",
                "act(*given)",
                "assert [each.tolist() for each in given] == before, given",
            ]
        elif isinstance(expected, str):
            lines += [
                f"v = {v}",
                "before = v.tolist()",
                "torch.autograd.grad(y, p, v, allow_unused=True)",
                "assert v.tolist() == before, v",
            ]
        else:
            if along is None:
                lines.append(f"g, = torch.autograd.grad(y, {names[view.index]}, {v})")
            else:
                pair = f"({names[view.index]}, {names[along[0]]})"
                lines.append(f"g, h = torch.autograd.grad(y, {pair}, {v}, materialize_grads=True)")
                lines.append(f"g = g {'+' if along[1] > 0 else '-'} h.reshape(g.shape)  # the derivative along both")
            lines += [
                f"expected = torch.tensor({expected.tolist()}, dtype=torch.float64{on})",
                f"assert (g.double() - expected).abs().max() <= {slack:.6g}, (g, expected)",
            ]
        return "\n".join([*self.header(viewing=False), *lines])
