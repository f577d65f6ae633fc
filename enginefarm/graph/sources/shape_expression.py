"""The shape expressions of a .pt2 archive.

sympy evaluates them as Python, so only arithmetic may pass.
"""

from __future__ import annotations

import ast
import re

FUNCTIONS = re.compile(
    r"Symbol|Integer|Rational|Float|Add|Mul|Pow|Max|Min|Mod|FloorDiv|ModularIndexing|"
    r"Where|PythonMod|CleanDiv|CeilToInt|FloorToInt|CeilDiv|PowByNatural|FloatTrueDiv|"
    r"IntTrueDiv|TruncToFloat|TruncToInt|RoundToInt|ToFloat|Identity|Equality|"
    r"Unequality|StrictLessThan|StrictGreaterThan|LessThan|GreaterThan|Eq|Ne|Lt|Le|Gt|"
    r"Ge|And|Or|Not"
)
"""What torch writes in shape expressions, and what ends."""
MAX_TEXT, MAX_NUMBER, MAX_EXPONENT, MAX_POWERS, MAX_DEPTH = 20_000, 1 << 64, 16, 4, 60
OPERATORS = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.Pow)


def is_arithmetic(text: str) -> bool:
    """Whether it is arithmetic that ends soon: `Add(Integer(2), Symbol('s0', positive=True))`."""
    try:
        tree = ast.parse(text[: MAX_TEXT + 1].strip(), mode="eval").body
        powers = sum(_is_power(node) for node in ast.walk(tree))
        return len(text) <= MAX_TEXT and powers <= MAX_POWERS and _is_term(tree, MAX_DEPTH)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False


def _is_power(node: ast.AST) -> bool:
    if isinstance(node, ast.BinOp):
        return isinstance(node.op, ast.Pow)
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in ("Pow", "PowByNatural")
    )


def _is_term(node: ast.expr, depth: int) -> bool:
    """Strings pass as the name of a Symbol only: sympy evaluates any other again."""
    if depth == 0:
        return False
    if isinstance(node, ast.Constant):
        return isinstance(node.value, int | float) and abs(node.value) <= MAX_NUMBER
    if isinstance(node, ast.Name):
        return "__" not in node.id
    if isinstance(node, ast.UnaryOp):
        return _is_term(node.operand, depth - 1)
    if isinstance(node, ast.BinOp):
        if isinstance(node.op, ast.Pow) and not _is_small(node.right):
            return False
        terms = (node.left, node.right)
        return isinstance(node.op, OPERATORS) and all(_is_term(t, depth - 1) for t in terms)
    return isinstance(node, ast.Call) and _is_call(node, depth)


def _is_call(node: ast.Call, depth: int) -> bool:
    if not isinstance(node.func, ast.Name) or not FUNCTIONS.fullmatch(node.func.id):
        return False
    arguments = [*node.args]
    if _is_power(node) and not (len(arguments) == 2 and _is_small(arguments[1])):
        return False
    if node.func.id == "Symbol":
        first = arguments.pop(0) if arguments else None
        if not (isinstance(first, ast.Constant) and str(first.value).isidentifier()):
            return False
        if not isinstance(first.value, str):
            return False
    values = [*arguments, *(keyword.value for keyword in node.keywords)]
    if node.func.id == "Float":  # Float('0.5', precision=53)
        values = [v for v in values if not _is_decimal(v)]
    return all(_is_term(value, depth - 1) for value in values)


def _is_small(node: ast.expr) -> bool:
    """An exponent: a small number, or one in Integer(…)."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        return node.func.id == "Integer" and len(node.args) == 1 and _is_small(node.args[0])
    if isinstance(node, ast.UnaryOp):
        return _is_small(node.operand)
    return (
        isinstance(node, ast.Constant)
        and isinstance(node.value, int)
        and abs(node.value) <= MAX_EXPONENT
    )


def _is_decimal(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and bool(
        re.fullmatch(r"-?\d{1,30}(\.\d{0,60})?(e-?\d{1,3})?", str(node.value))
    )
