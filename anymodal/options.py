"""Parse a program's options: its `main` is the definition, jsonargparse reads it."""

import argparse
import dataclasses
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints

from anymodal.commands import Program, nearest

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

_YES_NO = {"true", "false", "yes", "no"}


def build_parser(program: Program, main: Callable[..., Any]) -> "ArgumentParser":
    """Build the parser of a program from the signature and docstring of its `main`.

    Parameters before `*` without a default are positional; a list takes one word or more. All others are options, and
    so are the keys of `**options: Unpack[SomeTypedDict]`.
    """
    import docstring_parser
    from jsonargparse import ArgumentParser, DefaultHelpFormatter, set_parsing_settings

    class Formatter(DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
        def _get_type_str(self, action: argparse.Action) -> str | None:
            return re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", super()._get_type_str(action) or "") or None

    style = docstring_parser.DocstringStyle.GOOGLE
    set_parsing_settings(docstring_parse_style=style, docstring_parse_attribute_docstrings=True)
    words = [
        parameter
        for parameter in inspect.signature(main).parameters.values()
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD and parameter.default is parameter.empty
    ]
    many = {word.name for word in words if get_origin(word.annotation) is list}
    shown = [f"{word.name.upper()}{' ...' if word.name in many else ''}" for word in words]
    parser = ArgumentParser(
        prog=program.command,
        usage=" ".join(["%(prog)s", *shown, "[options]"]),
        description=program.docstring,
        formatter_class=Formatter,
        exit_on_error=False,
    )
    parser.add_argument("--config", action="config", help="YAML file of options; later options override it.")
    helps = {entry.arg_name: entry.description for entry in docstring_parser.parse(main.__doc__ or "", style).params}
    for word in words:
        kind = get_args(word.annotation)[0] if word.name in many else word.annotation
        nargs = "+" if word.name in many else None
        parser.add_argument(word.name, type=kind, metavar=word.name.upper(), help=helps.get(word.name), nargs=nargs)
    parser.add_function_arguments(main, skip={word.name for word in words}, as_group=False, fail_untyped="all")
    for action in parser._actions:
        if _is_group(parser, action.dest):
            action.help = argparse.SUPPRESS
    return parser


def parse(program: Program, argv: Sequence[str], root: Path) -> tuple[Callable[..., Any], dict[str, Any]]:
    """Return the program's `main` and the keyword arguments that `argv` asks for.

    Raises:
        ValueError: an option, a key of a configuration file or a value is wrong.
    """
    main: Callable[..., Any] = program.load().main
    parser = build_parser(program, main)
    try:
        namespace = parser.instantiate(parser.parse_args(_spell(parser, argv, root)))
    except argparse.ArgumentError as error:
        raise ValueError(_tidy(str(error), parser)) from error
    arguments: dict[str, Any] = {}
    for name, parameter in inspect.signature(main).parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:  # **options: Unpack[SomeTypedDict]; what is not given is left out
            (options,) = get_args(get_type_hints(main)[name])
            arguments |= {key: namespace[key] for key in get_type_hints(options) if key in namespace}
        else:
            arguments[name] = namespace[name]
    return main, arguments


def _spell(parser: "ArgumentParser", argv: Sequence[str], root: Path) -> list[str]:
    """Write underscores for dashes, `--flag` as `--flag=true`, find configuration files; refuse unknown options."""
    spelled, words = list[str](), list(argv)
    while words:
        word = words.pop(0)
        if word == "--":
            return [*spelled, word, *words]
        if not word.startswith("--"):
            spelled.append(word)
            continue
        name, equals, value = word[2:].partition("=")
        name = name.replace("-", "_")
        _check_option(parser, name)
        if name == "config":
            if not equals and not words:
                raise ValueError("--config needs the path of a YAML file.")
            path = find_config(value if equals else words.pop(0), root)
            _check_keys(parser, _read_yaml(path), path)
            word = f"--config={path}"
        elif not equals and (values := _flag_values(_typehint(parser, name))):
            flag = words.pop(0) if words and words[0].lower() in values else "true"
            word = f"--{name}={flag}"
        else:
            word = f"--{name}{equals}{value}"
        spelled.append(word)
    return spelled


def find_config(name: str, root: Path) -> Path:
    """Return the configuration file `name`, looked up here first and then among the shipped ones.

    Raises:
        ValueError: there is none; the message holds the nearest shipped one.
    """
    for path in (Path(name), root / name):
        if path.is_file():
            return path
    shipped = [path.relative_to(root).as_posix() for path in sorted((root / "configs").rglob("*.yaml"))]
    raise ValueError(f"--config must name a YAML file, {name} is neither here nor shipped; {nearest(name, shipped)}")


def _read_yaml(path: Path) -> Mapping[str, Any]:
    import yaml

    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be UTF-8 text, byte {error.start} is not; save it as UTF-8.") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{path} must be YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(data, Mapping):
        raise ValueError(f"{path} must hold a mapping of options, got {type(data).__name__}.")
    return data


def _check_option(parser: "ArgumentParser", name: str) -> None:
    if f"--{name}" in parser._option_string_actions or name in _leaves(parser):
        return
    options = [f"--{leaf}" for leaf in _leaves(parser)] + ["--config", "--print_config", "--help"]
    raise ValueError(f"{parser.prog} has no option --{name}; {nearest(f'--{name}', options)}")


def _check_keys(parser: "ArgumentParser", data: Mapping[str, Any], path: Path, prefix: str = "") -> None:
    leaves = _leaves(parser)
    for key, value in data.items():
        name = f"{prefix}{key}"
        group = any(leaf.startswith(f"{name}.") for leaf in leaves)
        if group and isinstance(value, Mapping):
            _check_keys(parser, value, path, f"{name}.")
        elif group and name not in leaves:
            raise ValueError(f"{path}: {name} must be a mapping of options, got {value!r}; put its options below it.")
        elif name not in leaves:
            groups = {leaf.rpartition(".")[0] for leaf in leaves} - {""}
            raise ValueError(f"{path} has an unknown key {name!r}; {nearest(name, [*leaves, *sorted(groups)])}")


def _leaves(parser: "ArgumentParser") -> list[str]:
    """Return the dotted names of all options that take a value; a group that may be absent (null) is one, too."""
    dests = [
        action.dest
        for action in parser._actions
        if action.default is not argparse.SUPPRESS or hasattr(action, "_typehint")
    ]
    leaves = [dest for dest in dests if dest != "config" and not _is_group(parser, dest)]
    return [name for leaf in leaves for name in (leaf, *_fields(leaf, _typehint(parser, leaf)))]


def _fields(name: str, hint: object) -> list[str]:
    """Return the dotted names of the fields of the dataclasses in a type hint such as `Config | None`."""
    kinds = [kind for kind in (hint, *get_args(hint)) if isinstance(kind, type) and dataclasses.is_dataclass(kind)]
    fields = [(f"{name}.{field}", inner) for kind in kinds for field, inner in get_type_hints(kind).items()]
    return [leaf for field, inner in fields for leaf in (field, *_fields(field, inner))]


def _is_group(parser: "ArgumentParser", dest: str) -> bool:
    return any(action.dest.startswith(f"{dest}.") and action.dest != f"{dest}.help" for action in parser._actions)


def _typehint(parser: "ArgumentParser", dest: str) -> object:
    hints = [getattr(action, "_typehint", None) for action in parser._actions if action.dest == dest]
    return hints[0] if hints else None


def _flag_values(hint: object) -> set[str]:
    """Return what may stand behind an option that may also stand alone, such as of bool or Literal["auto"] | bool."""
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    if bool not in kinds:
        return set()
    return _YES_NO | {str(value) for kind in kinds if get_origin(kind) is Literal for value in get_args(kind)}


def _tidy(message: str, parser: "ArgumentParser") -> str:
    """Write jsonargparse's message on one line, in the words of the command line."""
    message = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", " ".join(message.split()))
    message = re.sub(r'Parser key "([^"]+)":', r"--\1:", message)
    message = re.sub(r"(?:typing\.)?Literal\[([^\],]*)\]", r"\1", message)
    message = re.sub(r"(?:typing\.)?Literal\[([^\]]*)\]", r"one of \1", message)
    message = re.sub(r": Expected an? (\w+|'.*'|one of .*?)\. Got value: (.*)", r" must be \1, got \2", message)
    union = re.fullmatch(r"(.*): Does not validate against any .* Errors: (.*) Given value .* value: (.*)", message)
    if union:
        words = {"NoneType": "null", "bool": "true or false"}
        kinds = re.findall(r"- Expected an? (.+?)(?=\. Got | - |$)", union[2])
        message = f"{union[1]} must be {' or '.join(words.get(kind, kind) for kind in kinds)}, got {union[3]}"
    required = re.fullmatch(r"the following arguments are required: (.*)", message)
    if required:
        positional = {action.dest for action in parser._actions if not action.option_strings}
        names = [name.upper() if name in positional else f"--{name}" for name in required[1].split(", ")]
        message = f"{parser.prog} needs {', '.join(names)}"
    extra = re.fullmatch(r"unrecognized arguments: (.*)", message)
    if extra:
        message = f"{parser.prog} has no place for {extra[1]!r}; put text of several words in quotes"
    return f"{message}. See {parser.prog} --help."
