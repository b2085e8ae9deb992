"""The command line: `python -m kdkit train | sweep | figures | table | reproduce | lab | data |
runs | pack | unpack | gc | list | doctor`.

Exit codes: 0 done; 1 something failed; 2 wrong name, field, value or missing data; 130 stopped.
What goes wrong as expected is one line on standard error.
"""

import argparse
import os
import sys
from pathlib import Path

from ..callbacks import NotFinite
from ..fields import choose, fields
from ..methods import list_methods, method_class
from . import store
from .callbacks import Interrupted
from .commands import COMMANDS, INSTALL
from .plans import PRESETS, Run


class Parser(argparse.ArgumentParser):
    """argparse, with errors on one line and exit code 2."""

    def error(self, message: str):
        print("kdkit:", " ".join(message.split()), file=sys.stderr)
        raise SystemExit(2)


def parsers() -> dict[str, Parser]:
    """Command -> its parser."""
    made = {}
    for name, command in COMMANDS.items():
        made[name] = Parser(
            prog=f"python -m kdkit {name}", description=command.__doc__, allow_abbrev=False
        )
        made[name].set_defaults(command=command)
    picks = os.environ.get("KDKIT_PRESET") or "lesson"
    for name in ("train", "sweep", "figures"):
        made[name].add_argument(
            "--preset",
            default=picks,
            metavar="NAME",
            help=f"{', '.join(PRESETS)} (default: $KDKIT_PRESET, or lesson)",
        )
    for name in ("runs", "list", "pack"):
        made[name].add_argument("--module", metavar="FILE.py", help="import this first: your own")
    for name in ("train", "sweep"):
        add = made[name].add_argument
        for option in ("data", "student", "teacher"):
            add(f"--{option}", metavar="NAME", help="see `python -m kdkit list`")
        add("--module", metavar="FILE.py", help="import this first: methods of your own")
    for name in ("train", "sweep", "table", "reproduce"):
        made[name].add_argument(
            "--set",
            action="append",
            default=[],
            metavar="FIELD=VALUE",
            help="any field of the run or of the method; may be repeated",
        )
    for name in ("table", "reproduce"):
        made[name].add_argument(
            "which",
            metavar="PAPER:TABLE[:ROW[:COLUMN]]",
            nargs="?" if name == "table" else None,
            help="for example okddip:2:ResNet-32; see `python -m kdkit table`",
        )
    made["table"].add_argument("--json", action="store_true", help="print a list of cells")
    made["reproduce"].set_defaults(json=False)
    made["reproduce"].add_argument(
        "--seeds",
        type=positive,
        default=1,
        metavar="N",
        help="repetitions of each cell (default 1; the papers have 3)",
    )
    for name in ("sweep", "figures", "reproduce"):
        made[name].add_argument("--workers", type=int, metavar="N", help="default: one per core")
    add = made["train"].add_argument
    add("method", metavar="METHOD", help="see `python -m kdkit list methods`")
    add("--seed", metavar="N", help="(default 0)")
    add("--fresh", action="store_true", help="train again and replace the stored run")
    add("--json", action="store_true", help="print one JSON object and nothing else")
    add = made["sweep"].add_argument
    add("methods", nargs="*", metavar="METHOD", help="default: all")
    add("--seeds", type=positive, default=1, metavar="N", help="seeds 0 to N-1 of each (default 1)")
    add = made["figures"].add_argument
    add("--only", metavar="FIGURE", help="draw this one, without its notebook")
    add("--module", metavar="FILE.py", help="import this first: a figure of your own, for --only")
    add(
        "--seeds",
        type=lambda text: text if text == "reference" else positive(text),
        default=os.environ.get("KDKIT_SEEDS") or "1",
        metavar="N",
        help="how many, or reference: the committed results (default: $KDKIT_SEEDS, or 1)",
    )
    made["data"].add_argument("name", metavar="NAME", help="see `python -m kdkit list datasets`")
    made["data"].add_argument("--root", help="where to put it (default: $KDKIT_DATA, or ./data)")
    add = made["lab"].add_argument
    add("folder", type=Path, metavar="FOLDER", help="what you changed in it stays as it is")
    add("--only-copy", action="store_true", help="do not open JupyterLab")
    add("--no-browser", action="store_true", help="start JupyterLab, and tell its address")
    for name in ("pack", "unpack"):
        made[name].add_argument("file", type=Path, metavar="FILE")
    add = made["pack"].add_argument
    add("ids", nargs="*", metavar="ID", help="see `python -m kdkit runs`; default: all")
    add(
        "--where",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="runs with this value of a field of the run or of the method; may be repeated",
    )
    made["gc"].add_argument("--yes", action="store_true", help="do not ask")
    made["list"].add_argument(
        "what", metavar="WHAT", help="methods, models, datasets, metrics or figures"
    )
    return made


def positive(text: str) -> int:
    """A whole number above 0, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def parse(argv: list[str]) -> argparse.Namespace:
    """The options of a command. ValueError with the nearest names for a wrong one."""
    usage = [f"  {name:9} {command.__doc__}" for name, command in COMMANDS.items()]
    if argv[:1] in (["-h"], ["--help"]):
        print(
            "usage: python -m kdkit COMMAND [options]\n",
            *usage,
            "\npython -m kdkit COMMAND --help tells the options",
            sep="\n",
        )
        raise SystemExit(0)
    if not argv:
        raise ValueError(f"name a command: {', '.join(COMMANDS)}")
    parser = parsers()[choose(argv[0], COMMANDS, "command")]
    if argv[0] in ("train", "sweep") and {"-h", "--help"} & set(argv):
        named = [method_class(word) for word in argv[1:] if word in list_methods()]
        parts = [f"fields of {cls.name}:\n{field_help(cls)}" for cls in named]
        parser.epilog = "\n\n".join([*parts, f"fields of every run:\n{field_help(Run)}"])
        parser.formatter_class = argparse.RawDescriptionHelpFormatter
    args, extra = parser.parse_known_intermixed_args(argv[1:])
    for word in extra:
        if word.startswith("-"):
            name = word.partition("=")[0].lstrip("-").replace("-", "_")
            if name in fields(Run):
                raise ValueError(f"{argv[0]} does not take {word}: write --set {name}=VALUE")
            choose(word.partition("=")[0], parser._option_string_actions, f"{argv[0]} option")
        raise ValueError(f"{argv[0]} does not take {word!r}")
    return args


def field_help(cls: type) -> str:
    """The fields of a run or method that `--set` takes: type, bounds, default, description."""
    lines = []
    for name, field in fields(cls).items():
        if name in ("method", "preset", "params"):
            continue
        if field.options:
            allowed = ", ".join(map(str, field.options))
        else:
            allowed = getattr(field.kind, "__name__", "numbers")
            bounds = [f"{v:g}" for v in (field.low, field.high) if v is not None]
            allowed += f" {' to '.join(bounds)}" if bounds else ""
        unit = f" ({field.unit})" if field.unit else ""
        lines.append(f"  {name:18} {field.description}{unit}: {allowed}; default {field.default}")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    try:
        args = parse(sys.argv[1:] if argv is None else argv)
        return args.command(args)
    except ModuleNotFoundError as e:
        if (e.name or "").partition(".")[0] in ("", "kdkit"):
            raise
        why, code = f"this needs {e.name}, which {INSTALL.format(extra='study')} brings", 1
    except ValueError as e:
        why, code = str(e), 2
    except BrokenPipeError:  # `python -m kdkit runs | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (NotFinite, OSError) as e:
        why, code = str(e), 1
    except Interrupted as e:
        why, code = str(e), 130
    except KeyboardInterrupt:
        why, code = "stopped; the same command goes on from what is saved", 130
    store.say(" ".join(why.split()))
    return code
