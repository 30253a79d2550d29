"""Random configs have the values that Python computes."""

import re
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from engine.errors import ConfigError
from tests.support import python_reference
from tests.support.configs import FUZZ, read_safely, sentences

START = "a = 3\nb = 'text'\nc = [1, 2.5]\nd = dict(a=1, b=[2])\n"
GRAMMAR = {
    "N": [  # numbers
        *(
            "a",
            "c[0]",
            "d['a']",
            "len(b)",
            "int('7')",
            "float('2.5')",
            "True",
            "1e3",
            "0",
            "1",
            "9",
        ),
        *(
            "(N + N)",
            "(N - N)",
            "(N * N)",
            "(N / N)",
            "(N // N)",
            "(N % N)",
            "(N ** 2)",
            "(N ** -1)",
        ),
        *(
            "(N ** 0.5)",
            "(int(N) << 3)",
            "(int(N) >> 1)",
            "(int(N) & 6)",
            "(int(N) | 5)",
            "~int(N)",
        ),
        *("(N < N <= N)", "(N == N)", "(N != N)", "(N and N)", "(N or N)", "(not N)", "-N", "+N"),
        *("(N if N else N)", "abs(N)", "round(N)", "round(N, 1)", "bool(N)", "max(N, N)", "min(c)"),
        *(
            "sum([N, *c, N])",
            "(N in [N, N])",
            "(N not in c)",
            "[N, N][bool(N)]",
            "dict(d, k=N)['k']",
        ),
    ],
    "V": [  # values of every type
        *(
            "N",
            "b",
            "c",
            "d",
            "None",
            "'é\\n'",
            "[]",
            "()",
            "{}",
            "[N, *c]",
            "(N, b, None)",
            "(N,)",
        ),
        *(
            "{'x': N, **d}",
            "dict(d, y=[N])",
            "dict(**d)",
            "(c + [N])[::-1]",
            "c[int(N):]",
            "b[1:N]",
        ),
        *(
            'f"""{N}|{b!r:>9}|{c}|{N:{a}}"""',
            "b * (int(N) % 5)",
            "(b + str(N))",
            "(V or V)",
            "(V and V)",
        ),
        *("[V, V]", "(V, V)", "{'p': V, 'q': V}", "(V if V else V)", "list(range(int(N), 9, 2))"),
        *("(V == V)", "(V != V)", "len([V])", "tuple([V])", "(d | {'z': V})", "(b in b)", "d['b']"),
    ],
    "P": [  # statements
        *(
            "x = N",
            "x = V",
            "y = x = V",
            "a += N",
            "a //= N",
            "c[0] *= N",
            "c += [V]",
            "d['b'] = c",
        ),
        *(
            "d = dict(a=N, b=[])",
            "d |= dict(a=N)",
            "d['c'] = V",
            "c = c * 2",
            "x, (y, z) = V, [V, c]",
        ),
        *(
            "if V:\n    x = V\nelif N:\n    c = [N, V]\nelse:\n    d['e'] = V",
            "a: int = N",
            "b += 'x'",
        ),
    ],
}
BOUNDS = (
    "complex number|too large for a float|more than 1024 bits|wider than 999|contains itself|"
    "more than 20,000 items"
)


@FUZZ
@given(program=st.lists(sentences(GRAMMAR, "P"), min_size=1, max_size=5))
def test_random_programs_have_the_values_of_python(tmp_path: Path, program: list[str]) -> None:
    text = START + "\n".join(program)
    result = read_safely(tmp_path, text.encode())
    try:
        expected = python_reference.run(text)
    except (ArithmeticError, TypeError, ValueError, LookupError, RecursionError):
        assert isinstance(result, ConfigError)
        return
    if isinstance(result, ConfigError):  # what Python allows, and a config does not
        assert re.search(BOUNDS, str(result))
    else:
        assert repr(result.values) == repr(expected)
