"""Sixty chat templates that mean harm or take too much: name -> (template, what the refusal says)."""

from __future__ import annotations

UNSAFE, TIME, MEMORY, SIZE = (
    "SecurityError: ",
    "more than a second of processor time",
    "256 MB",
    "writes more than 1 MB",
)
NESTED = "".join(f"{{% for a{i} in range(99999) %}}" for i in range(4)) + "{% endfor %}" * 4

HOSTILE: dict[str, tuple[str, str]] = {
    # time
    "nested loops": (NESTED, TIME),
    "power": ("{% set n = 9 %}{{ n ** (n ** (n ** n)) }}", TIME),
    "power of constants": ("{{ 9 ** (9 ** (9 ** 9)) }}", TIME),
    "range": ("{% for i in range(10 ** 9) %}{% endfor %}", "OverflowError: Range too big"),
    "range of a list": ("{{ range(10 ** 9) | list }}", "OverflowError: Range too big"),
    "range backwards": ("{{ range(10 ** 9, 0, -1) | list }}", "OverflowError: Range too big"),
    # memory
    "long text": ("{{ 'a' * 10 ** 9 }}", MEMORY),
    "long text of a variable": ("{% set a = 'a' %}{{ a * 10 ** 10 }}", MEMORY),
    "long list": ("{{ [0] * 10 ** 9 }}", MEMORY),
    "long list, its length": ("{% set a = [0] * 10 ** 9 %}{{ a | length }}", MEMORY),
    "centre": ("{{ 'a' | center(10 ** 10) }}", MEMORY),
    "format": ("{{ '%9999999999d' % 1 }}", "refuses|Error|256"),
    "format method": ("{{ '{:>9999999999}'.format('a') }}", "256|Error"),
    "justify": ("{{ 'a'.ljust(10 ** 10) }}", MEMORY),
    "doubling": ("{% set n = namespace(a='a') %}{% for i in range(40) %}{% set n.a = n.a + n.a %}{% endfor %}", MEMORY),
    "batch": ("{{ [1] | batch(10 ** 9, 0) | list }}", MEMORY),
    "replace": ("{{ ('a' * 10 ** 6).replace('a', 'b' * 10 ** 6) }}", MEMORY),
    "join": ("{{ range(90000) | join('a' * 10 ** 6) }}", MEMORY),
    # output
    "output of a loop": ("{% for i in range(99999) %}{{ 'a' * 999 }}{% endfor %}", SIZE),
    "output at once": ("{{ 'a' * 2 ** 21 }}", SIZE),
    "output of few characters": ("{{ '\N{SNOWMAN}' * 2 ** 19 }}", SIZE),
    "output of a macro": ("{% macro m() %}{{ 'a' * 2 ** 21 }}{% endmacro %}{{ m() }}", SIZE),
    "half a surrogate pair": ("{{ '\\ud800' }}", "UnicodeEncodeError"),
    # recursion
    "macro": ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "RecursionError"),
    "two macros": (
        "{% macro a() %}{{ b() }}{% endmacro %}{% macro b() %}{{ a() }}{% endmacro %}{{ a() }}",
        "UndefinedError|RecursionError",
    ),
    "loop": ("{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}", "RecursionError|TypeError"),
    "parentheses": ("{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}", "RecursionError|256|ended with"),
    "lists in lists": ("{{ " + "[" * 3000 + "]" * 3000 + " }}", "RecursionError|256|ended with"),
    "minus signs": ("{{ " + "- " * 5000 + "1 }}", "RecursionError|256|ended with"),
    "blocks": ("{% if 1 %}" * 900 + "{% endif %}" * 900, "RecursionError|256|SyntaxError|ended with"),
    # ways out of the sandbox
    "class": ("{{ ''.__class__.__mro__ }}", UNSAFE),
    "subclasses": ("{{ ().__class__.__base__.__subclasses__() }}", UNSAFE),
    "class by item": ("{{ ''['__class__']['__mro__'] }}", UNSAFE),
    "class by filter": ("{{ ('' | attr('__class__'))['__mro__'] }}", UNSAFE),
    "class by parts": ("{{ (messages | attr('__cl' + 'ass__')).__name__ }}", UNSAFE),
    "globals of a function": ("{{ raise_exception.__globals__['__builtins__'] }}", UNSAFE),
    "code of a function": ("{{ raise_exception.__code__.co_consts }}", UNSAFE),
    "globals of range": ("{{ range.__self__.open('x', 'w') }}", f"{UNSAFE}|UndefinedError"),
    "globals of a macro": ("{% macro m() %}{% endmacro %}{{ m._func.__globals__ }}", f"{UNSAFE}|UndefinedError"),
    "cycler": ("{{ cycler.__init__.__globals__.os.popen('touch x').read() }}", f"{UNSAFE}|UndefinedError"),
    "joiner": ("{{ joiner.__init__.__globals__.os.system('touch x') }}", f"{UNSAFE}|UndefinedError"),
    "lipsum": ("{{ lipsum.__globals__.os.environ }}", f"{UNSAFE}|UndefinedError"),
    "namespace": ("{{ namespace.__init__.__globals__ }}", UNSAFE),
    "self": ("{{ self.__init__.__globals__.__builtins__ }}", f"{UNSAFE}|UndefinedError"),
    "self, its context": ("{{ self._TemplateReference__context.environment.loader }}", f"{UNSAFE}|UndefinedError"),
    "frame of a generator": ("{{ (messages | map('upper')).gi_frame.f_globals }}", f"{UNSAFE}|UndefinedError"),
    "format reaches an attribute": ("{{ '{0.__class__.__mro__}'.format(messages) }}", UNSAFE),
    "format of a mapping": ("{{ '{a.__class__.__mro__}'.format_map({'a': 1}) }}", UNSAFE),
    "map of an attribute": ("{{ messages | map(attribute='__class__') | map(attribute='__mro__') | list }}", UNSAFE),
    # what is not there
    "include": ("{% include '/etc/passwd' %}", "no loader"),
    "import": ("{% import 'os' as os %}{{ os.system('touch x') }}", "no loader"),
    "extends": ("{% extends '../../x' %}", "no loader"),
    "open": ("{{ open('/etc/passwd').read() }}", "UndefinedError"),
    "builtin import": ("{{ __import__('os').system('touch x') }}", "UndefinedError"),
    "unknown filter": ("{{ messages | system }}", "TemplateAssertionError"),
    "unknown extension": ("{% do messages.append(1) %}", "TemplateSyntaxError"),
    # what belongs to others
    "changes the conversation": ("{{ messages.append(3) }}", UNSAFE),
    "empties the conversation": ("{{ messages.clear() }}", UNSAFE),
    "changes a message": ("{{ messages[0].update({'role': 'system'}) }}", UNSAFE),
    "refuses": ("{{ raise_exception('no system here') }}", "TemplateError: no system here"),
}
