"""Reproducing scripts in torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from relucheck.gate.frameworks.exchange import Layout
from relucheck.gate.frameworks.of_torch.scripts.modules import TorchModuleScript, backward_runs
from relucheck.gate.frameworks.script import literal
from relucheck.numerics.floats import FORMATS

#: An expression for each memory layout of an input without a fixed shape, from the 96 numbers of ``base``.
_PLAIN: Final = {
    "transposed": "base.reshape(8, 12).t()",
    "stepped": "base[::2]",
    "expanded": "base[:8].reshape(8, 1).expand(8, 9)",
    "channels_last": "base.reshape(2, 4, 4, 3).contiguous(memory_format=torch.channels_last)",
}


def arrangements(layout: Layout) -> dict[str, str]:
    """Return an expression for each memory layout of an input that suits an activation.

    The expressions are Python code with the 96 numbers ``base``.
    """
    if layout.plain:
        return _PLAIN
    vector = layout.shape.index(-1)
    others = [2 if axis == 0 and n == 1 else n for axis, n in enumerate(layout.shape)]
    others[vector] = 1
    shape = tuple(96 // math.prod(others) if axis == vector else n for axis, n in enumerate(others))
    numbers = f"base[:{math.prod(shape)}]"
    axes = tuple(reversed(range(len(shape))))
    step = ", ".join("::2" if axis == vector else ":" for axis in range(len(shape)))
    result = {
        "transposed": f"{numbers}.reshape{shape[::-1]}.permute{axes}",
        "stepped": f"{numbers}.reshape{shape}[{step}]",
        "expanded": f"base[:{shape[vector]}].reshape{layout.unexpanded}.expand{shape}",
    }
    if len(shape) == 3 and vector == 2 and shape[2] % 4 == 0:
        shape = (*shape[:2], 4, shape[2] // 4)
    if len(shape) == 4:
        result["channels_last"] = f"{numbers}.reshape{shape}.contiguous(memory_format=torch.channels_last)"
    return result


class TorchScript(TorchModuleScript):
    """Writes reproducing scripts in torch."""

    writes = True

    # -- lines and expressions ------------------------------------------------------------------------------------------

    def header(self, *, copying: bool = True, viewing: bool = True) -> list[str]:
        subject = self.subject
        source = subject.activation.source
        line, expression = source or ("", f"{subject.activation.name}  # construct the activation here")
        held = subject.view is not None and bool(subject.view.held)
        name = "whole" if held else "act"
        act = f"{name} = {expression}"
        lines = [*dict.fromkeys(["import torch", *filter(None, [line])])]
        module = subject.is_module and not held
        if module:
            if subject.has_state:
                lines.append("torch.manual_seed(0)")
            act = f"{act}.to({self.place})" if source else act
            if subject.evaluating:
                act += ".eval()"
        if not module and line.endswith(f"import {expression}"):
            lines[-1] += f" as {name}"
        else:
            lines.append(act)
        if held:
            lines += self.holding(viewing=viewing)
        if subject.layout.channel:
            count = subject.channels
            lines.append(f"for p in [p for p in act.parameters() if p.numel() == {count}]:  # one value per channel")
            lines.append(f"    p.data += torch.linspace(0, 0.25, {count}).to(p).reshape(p.shape)")
        return lines + (self.viewing() if viewing and not held else []) + (self.copying() if copying else [])

    def input(self, numbers: Sequence[float], times: int = 1) -> str:
        elements = ", ".join(literal(value) for value in numbers)
        repeated = f" * {times}" if times > 1 else ""
        line = f"x = torch.tensor([{elements}]{repeated}, {self.place})"
        layout = self.subject.layout
        if not layout.plain:
            line += f".reshape{layout.unexpanded}.expand{layout.shape}.clone()"
        return line + ".requires_grad_()"

    def gradient(self, cotangent: str = "") -> str:
        return f"torch.autograd.grad({f'act(x), x, {cotangent}' if cotangent else 'act(x).sum(), x'})[0]"

    def set_gradient(self, name: str, cotangent: str = "") -> str:
        return f"{name}, = {self.gradient(cotangent).removesuffix('[0]')}"

    def set_gradients(self, name: str) -> list[str]:
        return ["act(x).sum().backward()", f"{name} = x.grad{self.pick}"]

    def full(self, value: str) -> str:
        return f"torch.full_like(x, {value})"

    def wide(self, expression: str) -> str:
        return f"{expression}.double()"

    def is_nan(self, expression: str) -> str:
        return f"{expression}.isnan()"

    def equal(self, a: str, b: str) -> str:
        return f"torch.equal({a}, {b})"

    def close(self, a: str, b: str, rtol: str, atol: str) -> str:
        return f"torch.allclose({a}, {b}, rtol={rtol}, atol={atol})"

    def set_first(self, name: str, value: float) -> str:
        return f"{name}{'.data' if name == 'x' else ''}[{':, ' * self.subject.layout.along}0] = {literal(value)}"

    def rest(self, name: str) -> str:
        return f"{name}[{':, ' * self.subject.layout.along}1:]"

    # -- whole scripts --------------------------------------------------------------------------------------------------

    def one_gradient(self, x: float, cotangent: float, condition: str, comment: str) -> str:
        return self.text(
            f"act(x).backward({self.full(literal(cotangent))})",
            f"got = x.grad{self.pick}{f'[{self.position}]' if self.times > 1 else ''}.item()",
            f"assert {condition}, got  # {comment}",
            x=[x],
        )

    def disconnected(self) -> str:
        return self.text(
            "y = act(x)",
            'assert y.requires_grad, "the output carries no graph"',
            "g, = torch.autograd.grad(y.sum(), x, allow_unused=True)",
            'assert g is not None, "no gradient reaches the input"',
            x=[0.5],
        )

    def overwritten_value(self) -> str:
        return self.text(*backward_runs("act(x)"), x=[0.5])

    def late_gradient(self, x: float) -> str:
        return self.text(
            self.set_gradient("alone"),
            "y = act(x)",
            "act(-x.detach())",
            "late, = torch.autograd.grad(y.sum(), x)",
            "assert torch.equal(late, alone), (late, alone)",
            x=[x],
        )

    def second_gradient(self, x: float) -> str:
        return self.text(
            "y = act(x)",
            "once, again = [torch.autograd.grad(y.sum(), x, retain_graph=True)[0].clone() for _ in range(2)]",
            "assert torch.equal(once, again), (once, again)",
            x=[x],
        )

    def zeros(self, what: str) -> str:
        return self.text(
            f"y = {self.value}",
            "y.sum().backward()",
            f"plus, minus = {'y' if what == 'value' else f'x.grad{self.pick}'}.tolist()",
            f'assert plus == minus, f"{what}s {{plus}} and {{minus}}"',
            x=[0.0, -0.0],
        )

    # -- whole scripts about capabilities -------------------------------------------------------------------------------

    def _beside_reverse(self, x: float, line: str, elements: str = "") -> str:
        """Return a script that compares the gradient ``other``, which a line computes, with reverse mode."""
        eps = self.eps
        return self.text(
            self.set_gradient("reverse"),
            "x = x.detach()",
            line,
            f"other, reverse = other.double().flatten(), reverse.double().flatten(){elements}",
            f"assert torch.allclose(other, reverse, rtol={32 * eps:.3g}, atol={16 * eps:.3g}), (other, reverse)",
            x=[x],
        )

    def forward(self, x: float, tangent: float) -> str:
        line = f"_, other = torch.func.jvp(act, (x,), ({self.full(f'{tangent}')},)); other = other / {tangent}"
        return self._beside_reverse(x, line)

    def mapped_value(self, x: float) -> str:
        pick, eps = self.pick, self.eps
        return self.text(
            f"plain = act(x){pick}",
            f"mapped = torch.func.vmap(lambda t: act(t.expand(x.shape)){pick})(x{pick}[:, None])",
            "mapped, plain = mapped.flatten(), plain.flatten()",
            f"assert torch.allclose(mapped, plain, rtol={32 * eps:.3g}, atol={16 * eps:.3g}), (mapped, plain)",
            x=[x],
        )

    def mapped_gradient(self, x: float) -> str:
        one = "act(t)" if self.subject.layout.plain else "act(t.expand(x.shape))" + self.pick
        line = f"other = torch.func.vmap(torch.func.grad(lambda t: {one}.sum()))(x.flatten()[:, None])[:1]"
        return self._beside_reverse(x, line, "[:1]")

    def second(self, x: float, condition: str, by: str = "input", cotangent: float = 1.0) -> str:
        wanted = {"input": "x", "cotangent": "v"}[by]
        return self.text(
            f"v = {self.full(literal(cotangent))}.requires_grad_()",
            "g, = torch.autograd.grad(act(x), x, v, create_graph=True)",
            f"more = torch.autograd.grad(g{self.pick}.sum(), {wanted}, allow_unused=True) if g.requires_grad else [None]",
            f"got = 0.0 if more[0] is None else more[0]{self.pick}.item()",
            f"assert {condition}, got",
            x=[x],
        )

    def compiled(self, x: float) -> str:
        return self._beside_reverse(x, "x.requires_grad_(); other, = torch.autograd.grad(torch.compile(act)(x).sum(), x)")

    def decomposed(self, x: float) -> str:
        return self.text(
            "from torch._decomp import core_aten_decompositions as table",
            "from torch.fx.experimental.proxy_tensor import make_fx",
            "def run(x):",
            "    leaf = x.detach().requires_grad_()",
            "    return act(leaf).detach(), torch.autograd.grad(act(leaf).sum(), leaf)[0]",
            "plain, decomposed = run(x), make_fx(run, decomposition_table=table())(x)(x)",
            'print("value, gradient", plain, "decomposed", decomposed)',
            "assert all(torch.allclose(a, b, rtol=0.05, atol=0.05) for a, b in zip(plain, decomposed))",
            x=[x],
        )

    def autocast(self, x: float, lower: str) -> str:
        device, eps = self.device.partition(":")[0], FORMATS[lower].eps
        return self.text(
            f'with torch.autocast("{device}", dtype=torch.{lower}):',
            "    got, = torch.autograd.grad(act(x).sum(), x)",
            "plain, = torch.autograd.grad(act(x).sum(), x)",
            'print("autocast", got, "without", plain)',
            f"assert torch.allclose(got, plain, rtol={32 * eps:.3g}, atol={32 * eps:.3g})",
            x=[x],
        )

    def autocast_mixed(self, x: float, lower: str, name: str = "") -> str:
        device, eps = self.device.partition(":")[0], 32 * FORMATS[lower].eps
        wanted = f"act.get_parameter({name!r})" if name else "x"
        return self.text(
            f"run = lambda x: torch.autograd.grad(act(x).sum(), {wanted}, allow_unused=True)[0]",
            "plain = run(x)",
            f"x = x.detach().to(torch.{lower}).requires_grad_()",
            f'with torch.autocast("{device}", dtype=torch.{lower}):',
            "    got = run(x)",
            f'print("for a {lower} input", got, "for a float32 input", plain)',
            f"assert got is not None and torch.allclose(got.float(), plain, rtol={eps:.3g}, atol={eps:.3g})",
            x=[x],
        )

    def shape(self, shape: tuple[int, ...]) -> str:
        layout = self.subject.layout
        return self.text(
            f"x = torch.full({shape}, 0.5, {self.place})"
            + ("" if layout.plain or len(shape) > 1 else f".reshape{layout.unexpanded}.expand{layout.shape}"),
            "y = act(x)",
            "print(y.dtype, y.shape)",
            "assert (y.dtype, y.shape) == (x.dtype, x.shape)",
        )

    def numbers_in_shape(self, shape: tuple[int, ...], numbers: Sequence[float], slack: float) -> str:
        layout = self.subject.layout
        channel = "" if layout.axis is None else f".select({layout.axis}, {layout.channel})"
        return self.text(
            f"z = torch.tensor([{', '.join(map(repr, numbers))}], {self.place}).reshape({shape}).requires_grad_()",
            f"x = z.detach(){channel}.reshape{layout.unexpanded}.expand{layout.shape}.clone().requires_grad_()",
            "plain, = torch.autograd.grad(act(x).sum(), x)",
            "got, = torch.autograd.grad(act(z).sum(), z)",
            f"assert (got{channel}.flatten() - plain{self.pick}).abs().max() <= {slack:.3g}, (got, plain)",
        )

    def layout(self, name: str, what: str = "gradient") -> str:
        eps, place = self.eps, self.place
        computed = "torch.autograd.grad(act(x), x, v)"
        if what.startswith("gradient of parameter"):
            computed = f"torch.autograd.grad(act(x), act.get_parameter({what.split()[-1]}), v)"
        lines = [f"run = lambda x, v: {computed}[0]"]
        if what.startswith("derivative"):
            lines = [
                "def run(x, v):",
                "    g, = torch.autograd.grad(act(x), x, v.requires_grad_(), create_graph=True)",
                f"    return torch.autograd.grad((g * torch.linspace(1, 2, g.numel()).to(g).reshape(g.shape)).sum(), "
                f"{'v' if what.endswith('cotangent') else 'x' if what.endswith('input') else 'list(act.parameters())'})[0]",
            ]
        return self.text(
            f"base = torch.linspace(-8, 8, 96, dtype=torch.float64).to({place})",
            f"x = {arrangements(self.subject.layout)[name]}.detach().requires_grad_()",
            "v = torch.arange(1.0, x.numel() + 1).to(x).reshape(x.shape)",
            f"w = {'torch.empty_like(x).copy_(v).detach()' if name == 'channels_last' else 'v'}",
            *lines,
            "got, plain = run(x, w), run(x.detach().contiguous().requires_grad_(), v)",
            f"assert torch.allclose(got, plain, rtol={16 * eps:.3g}, atol={16 * eps:.3g})",
        )

    def overwritten_input(self, x: float) -> str:
        return self.text(
            "z = x * 1", "before = z.tolist()", "act(z)", "assert z.tolist() == before, z", x=[x], copying=False
        )

    def overwritten_in_inference(self) -> str:
        return self.text(
            "z = x.detach().clone()",
            "with torch.no_grad():",
            "    act(z)",
            "assert z.tolist() == x.tolist(), z",
            x=[-2.5, -0.625, 0.7, 1.3],
            copying=False,
        )

    def overwritten_by_backward(self, x: float, what: str) -> str:
        watched = {"cotangent": "v", "input": "x", "output": "y"}[what]
        return self.text(
            "y = act(x)",
            "v = torch.full_like(y, 2.0)",
            f"before = {watched}.tolist()",
            "y.backward(v)",
            f"assert {watched}.tolist() == before, {watched}",
            x=[x],
        )
