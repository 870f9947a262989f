"""Legal EVAL expressions and what Python says about them: golden data for tests/engine/test_expr.c.

    python3 tests/golden/make_expr.py [count [seed]] > tests/golden/expr.tsv

One line per expression, three columns between tabs: the expression, the variables (NAME=kind:value|...), the result
(kind:value). Kinds: b bool, i int, f float (repr), s string. The result is made the way the reference makes it: `xor`
becomes `!=`, placeholders become text ("yes" True, digits an int, other strings quoted), and Python evaluates that text.
Left out is what our language refuses on purpose: numbers beyond 64 bits, text formatting with %. The committed file is
`make_expr.py 5000 1`; a larger one is read when VPD_EXPR_TSV names it.
"""
import ast
import random
import sys
import warnings

warnings.simplefilter("ignore")
WORDS = ["red", "blue", "dog", "a", "", "big red dog", "two", "None", "white and black", "café", "It", "Yes", "xo"]
rng = random.Random(int(sys.argv[2]) if len(sys.argv) > 2 else 1)


class Refused(Exception):
    pass


def check(v):
    """Every intermediate value stays inside the language's bounds."""
    if isinstance(v, int) and not -(2**63) <= v < 2**63:
        raise Refused
    if isinstance(v, str) and len(v.encode()) > 120:
        raise Refused
    return v


class Checked(ast.NodeTransformer):
    def visit_BinOp(self, node):
        self.generic_visit(node)
        if isinstance(node.op, ast.Mod):
            node.left = ast.Call(ast.Name("number_", ast.Load()), [node.left], [])
        if isinstance(node.op, ast.Mult):
            return ast.Call(ast.Name("times_", ast.Load()), [node.left, node.right], [])
        return ast.Call(ast.Name("check_", ast.Load()), [node], [])

    def visit_UnaryOp(self, node):
        self.generic_visit(node)
        return ast.Call(ast.Name("check_", ast.Load()), [node], [])

    def visit_Call(self, node):
        self.generic_visit(node)
        return ast.Call(ast.Name("check_", ast.Load()), [node], [])

    def visit_Constant(self, node):
        check(node.value)
        return node


def number(v):
    if isinstance(v, str):
        raise Refused  # '%' of a string is formatting
    return v


def times(a, b):
    if isinstance(a, str) and isinstance(b, int) and b > 100 or isinstance(b, str) and isinstance(a, int) and a > 100:
        raise Refused  # before Python makes the text
    return check(a * b)


SCOPE = {"__builtins__": {}, "check_": check, "number_": number, "times_": times, "len": len, "abs": abs, "min": min, "max": max,
         "int": int, "str": str}


def substituted(v):
    if isinstance(v, str):
        return "True" if v == "yes" else "False" if v == "no" else v if v.isdecimal() else f"'{v}'"
    return str(v)


def python(template, state):
    text = template.replace("xor", "!=").format(**{k: substituted(v) for k, v in state.items()})
    tree = ast.fix_missing_locations(Checked().visit(ast.parse(text.strip(), mode="eval")))
    return check(eval(compile(tree, "expr", "eval"), SCOPE))


def variables():
    state = {}
    for name in rng.sample(["A", "B", "ANSWER0", "ANSWER1"], rng.randint(0, 3)):
        state[name] = rng.choice([
            lambda: "yes", lambda: "no", lambda: str(rng.randint(0, 12)), lambda: rng.choice(WORDS),
            lambda: rng.randint(-3, 20), lambda: rng.random() < 0.5,
            lambda: rng.choice([0.5, -1.25, 3.0, 1e20, 1e-7, 0.1]), lambda: rng.randint(-2**62, 2**62)])()
    return state


def atom(kind, state, depth):
    fits = [n for n, v in state.items() if kind == "any"
            or (kind == "str" and isinstance(v, str) and substituted(v)[0] == "'")
            or (kind == "bool" and substituted(v) in ("True", "False"))
            or (kind == "num" and substituted(v)[0] in "-0123456789TF")]
    if fits and rng.random() < 0.6:
        return "{" + rng.choice(fits) + "}"
    if kind == "any":
        kind = rng.choice(["num", "str", "bool"])
    if kind == "num":
        return rng.choice([lambda: str(rng.randint(0, 10)), lambda: str(rng.randint(0, 10)),
                           lambda: str(rng.randint(0, 10**rng.randint(1, 18))),
                           lambda: rng.choice(["0.5", "1.", ".25", "2.5e3", "1e-3", "3.0", "0.1", "1E5"])])()
    if kind == "bool":
        return rng.choice(["True", "False"])
    if state and rng.random() < 0.15:
        n = rng.choice(list(state))
        return rng.choice([f"'{{{n}}}'", f"'n={{{n}}}!'"])
    q = rng.choice("'\"")
    return q + rng.choice(WORDS + ["12", " 7 ", "-3", "+5"]) + q


def grow(kind, state, depth):
    """Text and its precedence level, 0 (if-else) to 8 (atom)."""
    if depth == 0 or rng.random() < 0.12:
        return atom(kind, state, depth), 8
    g = lambda k, level: group(k, state, depth - 1, level)
    r = rng.random()
    if r < 0.08:
        return f"{g(kind, 1)} if {g('any', 1)} else {g(kind, 0)}", 0
    if kind == "any":
        kind = rng.choice(["bool", "bool", "num", "str"])
    if kind == "bool":
        if r < 0.2:
            return " or ".join(g("bool" if rng.random() < 0.8 else "any", 2) for _ in range(rng.randint(2, 3))), 1
        if r < 0.35:
            return " and ".join(g("bool" if rng.random() < 0.8 else "any", 3) for _ in range(rng.randint(2, 3))), 2
        if r < 0.45:
            return f"not {g('any', 3)}", 3
        if r < 0.55:
            return f"{g('str', 5)} {rng.choice(['in', 'not in'])} {g('str', 5)}", 4
        if r < 0.65:
            return f"{g('any', 5)} {rng.choice(['==', '!=', 'xor'])} {g('any', 5)}", 4
        if r < 0.75:
            return f"{g('bool', 5)} xor {g('bool', 5)}", 4
        k = "num" if rng.random() < 0.8 else "str"
        text = g(k, 5)
        for _ in range(rng.choice([1, 1, 1, 2, 3])):
            text += f" {rng.choice(['==', '!=', '<', '<=', '>', '>=', 'xor'])} {g(k, 5)}"
        return text, 4
    if kind == "num":
        if r < 0.3:
            op = rng.choice("+-")
            return f"{g('num', 5)} {op} {g('num', 6)}", 5
        if r < 0.6:
            return f"{g('num', 6)} {rng.choice(['*', '/', '//', '%'])} {g('num', 7)}", 6
        if r < 0.7:
            return f"{rng.choice('--+')}{g('num', 7)}", 7
        f = rng.choice(["len", "abs", "min", "max", "int", "int"])
        if f == "len":
            return f"len({g('str', 0)})", 8
        if f in ("min", "max"):
            return f"{f}({', '.join(g('num', 0) for _ in range(rng.randint(2, 3)))})", 8
        return f"{f}({g('num', 0)})", 8
    if r < 0.5:
        return f"{g('str', 5)} + {g('str', 6)}", 5
    if r < 0.6:
        return f"{g('str', 6)} * {g('num', 7)}", 6
    if r < 0.7:
        return f"{rng.choice(['min', 'max'])}({g('str', 0)}, {g('str', 0)})", 8
    return f"str({g('any', 0)})", 8


def group(kind, state, depth, level):
    text, has = grow(kind, state, depth)
    return f"({text})" if has < level or rng.random() < 0.05 else text


def shown(v):
    if isinstance(v, bool):
        return f"b:{v}"
    if isinstance(v, int):
        return f"i:{v}"
    if isinstance(v, float):
        return f"f:{v!r}"
    return f"s:{v}"


def main():
    want = int(sys.argv[1]) if len(sys.argv) > 1 else 5000
    seen = set()
    while len(seen) < want:
        state = variables()
        template = group("any", state, rng.randint(1, 4), 0)
        if template in seen or len(template) > 250:
            continue
        try:
            value = python(template, state)
        except (Refused, TypeError, ValueError, ZeroDivisionError, SyntaxError, OverflowError, KeyError, IndexError):
            continue
        if not isinstance(value, (bool, int, float, str)):
            continue
        seen.add(template)
        print(template, "|".join(f"{k}={shown(v)}" for k, v in state.items() if k in template), shown(value), sep="\t")


main()
