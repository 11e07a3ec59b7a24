"""python tests/test_size.py: lines of every file of the engine; and what they may be, so that the engine stays one that is read.

A line of code has a token of code: no docstring, no comment, no blank line.
"""

import ast
import sys
import token
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ENGINE = ROOT / "blocks"
# Lines of code of a file, or of several.
CODE = {
    "block.py": 60,
    "residual.py": 45,
    "normalized.py": 40,
    "activations.py": 100,
    "losses.py": 120,
    "optimizers.py": 160,
    "network.py": 100,
    "measure/hessian.py tape/tangent.py": 200,
}
CODE_OF_ALL = 3400
# All lines of a file.
LINES = {"block.py": 100, "residual.py": 75, "normalized.py": 75}
LONGEST_FUNCTION = 60
NOT_CODE = (
    *(token.COMMENT, token.NL, token.NEWLINE, token.INDENT, token.DEDENT, token.ENCODING, token.ENDMARKER),
    *(token.TYPE_COMMENT, token.TYPE_IGNORE),
)


def files(root=ENGINE):
    return {path.relative_to(root).as_posix(): path.read_text() for path in sorted(root.rglob("*.py"))}


def lines(text):
    return len(text.splitlines())


def code_lines(text):
    """How many lines have a token of code."""
    tokens = tokenize.generate_tokens(iter(text.splitlines(keepends=True)).__next__)
    code = {line for t in tokens if t.type not in NOT_CODE for line in range(t.start[0], t.end[0] + 1)}
    return len(code - docstring_lines(ast.parse(text)))


def docstring_lines(tree):
    """Of every text that stands alone."""
    texts = (
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    )
    return {line for node in texts for line in range(node.lineno, node.end_lineno + 1)}


def functions(text):
    """{name: lines}, decorators and docstring among them."""
    kinds = ast.FunctionDef | ast.AsyncFunctionDef
    found = [node for node in ast.walk(ast.parse(text)) if isinstance(node, kinds)]
    return {node.name: node.end_lineno - min(n.lineno for n in (node, *node.decorator_list)) + 1 for node in found}


def table():
    """A line a file: its lines, its lines of code."""
    counts = {name: (lines(text), code_lines(text)) for name, text in files().items()}
    counts["all"] = tuple(map(sum, zip(*counts.values(), strict=True)))
    rows = [f"{name:28s} {both:6d} {code:6d}" for name, (both, code) in counts.items()]
    return "\n".join([f"{'':28s} {'lines':>6s} {'code':>6s}", *rows])


def test_a_line_of_code_is_no_docstring_no_comment_and_no_blank_line():
    text = (
        '"""A file.\n\nOf lines.\n"""\n\nx = 1  # a number\n\n# why\ndef f():\n    """Said."""\n'
        '    return [\n        """text""",\n    ]\n'
    )
    assert (lines(text), code_lines(text)) == (13, 5)
    assert functions(f"@decorated\n{text[text.index('def') :]}") == {"f": 6}


@pytest.mark.parametrize("names", CODE)
def test_a_file_has_no_more_code_than_it_may(names):
    count = sum(code_lines(files()[name]) for name in names.split())
    assert count <= CODE[names], f"{names} has {count} lines of code, at most {CODE[names]}\n{table()}"


@pytest.mark.parametrize("name", LINES)
def test_a_block_is_read_on_one_page(name):
    count = lines(files()[name])
    assert count <= LINES[name], f"{name} has {count} lines, at most {LINES[name]}\n{table()}"


def test_the_engine_has_no_more_code_than_it_may():
    print(f"\n{table()}")
    assert sum(map(code_lines, files().values())) <= CODE_OF_ALL, table()


def test_no_function_is_longer_than_a_page():
    long = {f"{file}: {name}": n for file, text in files().items() for name, n in functions(text).items() if n > LONGEST_FUNCTION}
    assert not long


# What imports what.


def modules(*folders):
    """{name: (text, whether it is a package)} of all modules below; a plugin's package begins below `plugins`."""
    found = {}
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            parts = parts[2:] if parts[:2] == ("experiments", "plugins") else parts
            is_package = parts[-1] == "__init__"
            found[".".join(parts[:-1] if is_package else parts)] = path.read_text(), is_package
    return found


def imported(name, text, is_package, known):
    """The modules that one imports at any level, in functions too; of a package's names the modules where they are defined."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = name.split(".") if is_package else name.split(".")[:-1]
                base = ".".join([*package[: len(package) - node.level + 1], *filter(None, [base])])
            for alias in node.names:
                below = f"{base}.{alias.name}"
                found.add(below if below in known else base)
    return {module for module in found if module in known and module != name}


def circles(graph):
    """The strongly connected components of more than one module (Tarjan 1972)."""
    number, low, stack, found = {}, {}, [], []

    def visit(node):
        number[node] = low[node] = len(number)
        stack.append(node)
        for below in graph[node]:
            if below not in number:
                visit(below)
            if below in stack:
                low[node] = min(low[node], low[below])
        if low[node] == number[node]:
            component = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(component) > 1:
                found.append(sorted(component))

    for node in graph:
        if node not in number:
            visit(node)
    return found


def graph_of(*folders):
    found = modules(*folders)
    return {name: imported(name, text, is_package, found) for name, (text, is_package) in found.items()}


def test_a_circle_would_be_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]
    assert circles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []
    known = {"p", "p.a", "p.b", "p.q", "p.q.c"}
    text = "from p import a\nfrom .b import x\ndef f():\n    from ..p.q import c, y\n    import p.q.c\nimport os\n"
    assert imported("p.d", text, False, known) == {"p.a", "p.b", "p.q", "p.q.c"}
    assert imported("p.q.c", "from ..b import x\nfrom . import y\nfrom .. import a", False, known) == {"p.b", "p.q", "p.a"}
    assert imported("p.q", "from .c import x\nfrom ..a import y", True, known) == {"p.q.c", "p.a"}


def test_the_engine_imports_in_no_circle_and_nothing_above_it():
    graph = graph_of("blocks")
    assert graph["blocks.network"] >= {"blocks.block", "blocks.residual", "blocks.normalized"}
    assert circles(graph) == []
    above = {name: found for name, found in graph_of("blocks", "experiments").items() if name.startswith("blocks")}
    assert not [
        name for name, found in above.items() if any(other.startswith(("experiments", "hydra_plugins")) for other in found)
    ]


@pytest.mark.xfail(reason="benchmarks.compiled and benchmarks.sweep, the launcher and its jobs", strict=True)
def test_the_experiments_import_in_no_circle():
    assert circles(graph_of("blocks", "experiments")) == []


if __name__ == "__main__":
    sys.stdout.write(f"{table()}\n")
