"""python tests/test_size.py: lines of every file of the engine; and what they may be, so that the code stays one that is read.

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
# The engine as it was meant to be at most 3,800 lines had none of these; they have a limit of their own.
LATER, CODE_OF_LATER = ("measure/signals.py", "measure/jacobian.py", "parametrizations.py"), 180
# All lines of a file.
LINES = {"block.py": 100, "residual.py": 75, "normalized.py": 90}
# Of a function without its docstring, of a class, of a file.
LONGEST_FUNCTION, LONGEST_CLASS, LONGEST_FILE = 50, 150, 350
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


def definitions(text, *kinds):
    """{name: lines}, decorators among them, of classes and functions; a function's docstring is not counted."""
    counts = {}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, kinds):
            count = node.end_lineno - min(n.lineno for n in (node, *node.decorator_list)) + 1
            is_function = not isinstance(node, ast.ClassDef)
            if is_function and ast.get_docstring(node) is not None:
                count -= node.body[0].end_lineno - node.body[0].lineno + 1
            counts[node.name] = max(count, counts.get(node.name, 0))
    return counts


FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


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
    assert definitions(f"@decorated\n{text[text.index('def') :]}", *FUNCTIONS) == {"f": 5}
    assert definitions('class C:\n    """Said."""\n\n    x = 1\n', ast.ClassDef) == {"C": 4}


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
    counts = {name: code_lines(text) for name, text in files().items()}
    later = sum(counts.pop(name) for name in LATER)
    assert sum(counts.values()) <= CODE_OF_ALL, table()
    assert later <= CODE_OF_LATER


@pytest.mark.parametrize("folder", ["blocks", "experiments"])
def test_a_file_a_class_and_a_function_are_read_at_a_sitting(folder):
    long = {}
    for file, text in files(ROOT / folder).items():
        if lines(text) > LONGEST_FILE:
            long[file] = lines(text)
        for kinds, most in ((FUNCTIONS, LONGEST_FUNCTION), ((ast.ClassDef,), LONGEST_CLASS)):
            long |= {f"{file}: {name}": n for name, n in definitions(text, *kinds).items() if n > most}
    assert not long


if __name__ == "__main__":
    print(table())
