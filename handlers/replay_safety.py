"""What a durable handler's code may not use, found in its source before it is served.

Which branch is done first is another on every run. Code that goes on with whichever that is would
take another path when it is run again over its journal.
"""

import ast
import asyncio
import inspect
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any

_INSTEAD = (
    "Use ctx.gather(...) or asyncio.gather(...), and work with the results once all are there; for "
    "a limit of time use `async with asyncio.timeout(...)`, or ctx.wait_for(..., timeout=...)"
)
_FIRST = {asyncio.FIRST_COMPLETED, asyncio.FIRST_EXCEPTION}
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def find_unsafe(method: Callable[..., Any]) -> str | None:
    """Return what is wrong with a durable handler's code and where, or None.

    Looks at the method and at what it calls directly of its own class and module; a function that
    is handed to `ctx.step` may do as it likes. Code without a source is taken as it is.
    """
    function = inspect.unwrap(getattr(method, "__func__", method))
    owner = getattr(method, "__self__", None)
    return _Search(owner, getattr(function, "__module__", None)).look_at(function)


@dataclass(slots=True)
class _Search:
    owner: Any
    module: str | None
    seen: set[Any] = field(default_factory=set)

    def look_at(self, function: Any) -> str | None:
        if not isinstance(function, FunctionType) or function in self.seen:
            return None
        self.seen.add(function)
        try:
            lines, first_line = inspect.getsourcelines(function)
            tree = ast.parse(textwrap.dedent("".join(lines)))
        except (OSError, TypeError, SyntaxError):
            return None
        defined = tree.body[0] if tree.body else None
        if not isinstance(defined, _FUNCTIONS):
            return None
        code = _Code(defined, _names(function), inspect.getsourcefile(function), first_line)
        return code.problem() or self._look_at_called(code)

    def _look_at_called(self, code: "_Code") -> str | None:
        for call in code.calls():
            called = self._resolve(call.func, code)
            called = getattr(called, "__func__", called)
            if getattr(called, "__module__", None) == self.module and (
                problem := self.look_at(called)
            ):
                return problem
        return None

    def _resolve(self, name: ast.expr, code: "_Code") -> Any:
        if (
            isinstance(name, ast.Attribute)
            and isinstance(name.value, ast.Name)
            and name.value.id == code.own_name
        ):
            return inspect.getattr_static(type(self.owner), name.attr, None)
        return code.value_of(name)


@dataclass(slots=True)
class _Code:
    """One function: its syntax, and what its names mean outside of it."""

    defined: ast.FunctionDef | ast.AsyncFunctionDef
    names: dict[str, Any]
    file: str | None
    first_line: int
    nested: dict[str, ast.FunctionDef | ast.AsyncFunctionDef] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for node in ast.walk(self.defined):
            if isinstance(node, _FUNCTIONS) and node is not self.defined:
                self.nested[node.name] = node
            elif isinstance(node, ast.Import | ast.ImportFrom):
                self._imported(node)

    @property
    def own_name(self) -> str | None:
        """The name of the method's first parameter."""
        arguments = self.defined.args
        first = [*arguments.posonlyargs, *arguments.args][:1]
        return first[0].arg if first else None

    def problem(self) -> str | None:
        for call in self.calls():
            called = self.value_of(call.func)
            if called is asyncio.as_completed:
                return self._message(call, "asyncio.as_completed")
            if called is asyncio.wait:
                for keyword in call.keywords:
                    if keyword.arg == "return_when" and self.value_of(keyword.value) in _FIRST:
                        when = self.value_of(keyword.value)
                        return self._message(call, f"asyncio.wait(..., return_when={when})")
        return None

    def calls(self) -> Iterator[ast.Call]:
        """Yield the calls in it, and in the functions inside it that it calls itself."""
        entered: set[str] = set()
        waiting: list[ast.AST] = list(self.defined.body)
        while waiting:
            node = waiting.pop()
            if isinstance(node, ast.Call):
                yield node
                if isinstance(node.func, ast.Name) and node.func.id not in entered:
                    entered.add(node.func.id)
                    if node.func.id in self.nested:
                        waiting += self.nested[node.func.id].body
            if not isinstance(node, (*_FUNCTIONS, ast.Lambda)):
                waiting += ast.iter_child_nodes(node)

    def value_of(self, expression: ast.expr) -> Any:
        """Return what a name, a dotted name or a text means; None where that is not known."""
        if isinstance(expression, ast.Constant):
            return expression.value if isinstance(expression.value, str) else None
        if isinstance(expression, ast.Name):
            return self.names.get(expression.id)
        if isinstance(expression, ast.Attribute):
            value = self.value_of(expression.value)
            if inspect.ismodule(value):
                return getattr(value, expression.attr, None)
        return None

    def _imported(self, node: ast.Import | ast.ImportFrom) -> None:
        for alias in node.names:
            if isinstance(node, ast.ImportFrom):
                module = sys.modules.get(node.module or "")
                self.names[alias.asname or alias.name] = getattr(module, alias.name, None)
            else:
                name = alias.name if alias.asname else alias.name.partition(".")[0]
                self.names[alias.asname or name] = sys.modules.get(name)

    def _message(self, call: ast.Call, what: str) -> str:
        line = self.first_line + call.lineno - 1
        return (
            f"{self.file}, line {line}: {what} goes on with whichever branch is done first, which "
            f"is another when the handler is run again. {_INSTEAD}"
        )


def _names(function: FunctionType) -> dict[str, Any]:
    names = dict(function.__globals__)
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            names[name] = cell.cell_contents
        except ValueError:  # not assigned yet
            names.pop(name, None)
    return names
