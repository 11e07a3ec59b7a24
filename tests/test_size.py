"""python tests/test_size.py: lines of every file of the engine; and what they may be, so that the engine stays one that is read.

A line of code has a token of code: no docstring, no comment, no blank line.
"""

import ast
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
    "optimizers.py": 170,
    "network.py": 110,
    "measure/hessian.py tape/tangent.py": 200,
}
CODE_OF_ALL = 3800
# All lines of a file.
LINES = {"block.py": 100, "residual.py": 75, "normalized.py": 90}
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


if __name__ == "__main__":
    print(table())
