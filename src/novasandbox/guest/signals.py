"""The signals of a Linux guest; this host's numbers may be others."""

from __future__ import annotations

from novasandbox.errors import InvalidConfig

_ORDER = (
    "HUP INT QUIT ILL TRAP ABRT BUS FPE KILL USR1 SEGV USR2 PIPE ALRM TERM STKFLT "
    "CHLD CONT STOP TSTP TTIN TTOU URG XCPU XFSZ VTALRM PROF WINCH IO PWR SYS"
)
_NAMES = {number: f"SIG{name}" for number, name in enumerate(_ORDER.split(), 1)}
_NUMBERS = {name: number for number, name in _NAMES.items()} | {
    "SIGCLD": 17,
    "SIGIOT": 6,
    "SIGPOLL": 29,
}
SIGKILL = 9
_FIRST_REALTIME, _LAST = 34, 64


def signal_number(name: str | int) -> int:
    """The number of a signal given as `SIGTERM`, `term` or 15. Raises InvalidConfig."""
    if isinstance(name, int):
        if 1 <= name <= _LAST:
            return name
    else:
        text = name.upper()
        text = text if text.startswith("SIG") else f"SIG{text}"
        if text in _NUMBERS:
            return _NUMBERS[text]
        base, _, step = text.partition("+")
        if base == "SIGRTMIN" and (not step or (step.isdecimal() and step.isascii())):
            number = _FIRST_REALTIME + int(step or 0)
            if number <= _LAST:
                return number
    raise InvalidConfig(f"{name!r} is not a signal", fix="Give a name as SIGTERM, or a number.")


def signal_name(number: int) -> str:
    """The name of a signal, as `SIGKILL` or `SIGRTMIN+1`."""
    if _FIRST_REALTIME <= number <= _LAST:
        step = number - _FIRST_REALTIME
        return f"SIGRTMIN+{step}" if step else "SIGRTMIN"
    return _NAMES.get(number, f"SIG{number}")
