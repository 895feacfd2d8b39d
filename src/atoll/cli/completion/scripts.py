"""Scripts that complete `atoll` in bash, zsh and fish, and `atoll completion`, which prints them.

A script holds the command table, so that commands and options need no process; for other values it runs
`atoll __complete`, which answers from the disk (`completion_values`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Literal

from atoll.cli.completion import table
from atoll.cli.terminal import echo_lines
from atoll.settings import variable

PROGRAMS = ("atoll", "fal-serverless")

_POSIX = r"""
_atoll_line() {  # the words before the current one -> _atoll_path, _atoll_kind, _atoll_target
    _atoll_path= _atoll_kind= _atoll_target=
    local word option= number=0 below
    for word in "$@"; do
        if [ -n "$option" ]; then option=; continue; fi
        if [ "$_atoll_path" = run ] && [ -n "$_atoll_target" ]; then continue; fi
        case "$word" in
        -*) if [ -n "$(_atoll_table "value:$_atoll_path:$word")" ]; then option=$word; fi ;;
        *)
            below=$(_atoll_table "command:$_atoll_path" | cut -f1)
            case "
$below
" in
            *"
$word
"*) _atoll_path="${_atoll_path:+$_atoll_path }$word" ;;
            *) number=$((number + 1)); _atoll_target=$word ;;
            esac ;;
        esac
    done
    if [ -n "$option" ]; then
        _atoll_kind=$(_atoll_table "value:$_atoll_path:$option")
    elif [ "$_atoll_path" = run ] && [ -n "$_atoll_target" ]; then
        _atoll_kind=parameter
    else
        _atoll_kind=$(_atoll_table "positional:$_atoll_path:$number")
        if [ -z "$_atoll_kind" ]; then _atoll_kind=$(_atoll_table "positional:$_atoll_path:last"); fi
        option=
    fi
    _atoll_option=$option
}

_atoll_values() {  # program, current word -> lines of value, tab, description
    case "$_atoll_kind:$2" in
    parameter:*) command "$1" __complete parameter "$2" "$_atoll_target" 2>/dev/null; return ;;
    esac
    if [ -z "$_atoll_option" ]; then
        case "$2" in -*) _atoll_table "option:$_atoll_path"; return ;; esac
        if [ -z "$_atoll_target" ]; then _atoll_table "command:$_atoll_path"; fi
    fi
    case "$_atoll_kind" in
    '' | - | file | directory) ;;
    '='*) printf '%s\n' "${_atoll_kind#=}" | tr ' ' '\n' ;;
    *) command "$1" __complete "$_atoll_kind" "$2" 2>/dev/null ;;
    esac
}
"""

_BASH = r"""
_atoll() {
    local IFS=$' \t\n' line=${COMP_LINE:0:COMP_POINT} words cur plain before reply _atoll_path _atoll_kind _atoll_target _atoll_option
    read -ra words <<<"$line"
    cur=
    if [[ $line != *[[:space:]] ]]; then
        cur=${words[${#words[@]} - 1]}
        unset "words[${#words[@]}-1]"
    fi
    _atoll_line "${words[@]:1}"
    plain=${cur//\\/}  # as it is without the quotes of an earlier answer
    COMPREPLY=()
    while IFS= read -r reply; do
        reply=${reply%%$'\t'*}
        if [[ -n $reply && $reply == "$plain"* ]]; then
            if [[ $reply == *[^A-Za-z0-9_./:@%=+-]* ]]; then printf -v reply %q "$reply"; fi  # a name is never code
            COMPREPLY+=("$reply")
        fi
    done < <(_atoll_values "${words[0]}" "$plain")
    case "$_atoll_kind" in
    file) compopt -o filenames 2>/dev/null; while IFS= read -r reply; do COMPREPLY+=("$reply"); done < <(compgen -f -- "$cur") ;;
    directory) compopt -o filenames 2>/dev/null; while IFS= read -r reply; do COMPREPLY+=("$reply"); done < <(compgen -d -- "$cur") ;;
    esac
    if [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == */ ]]; then compopt -o nospace 2>/dev/null; fi
    if [[ $cur == *:* && $COMP_WORDBREAKS == *:* ]]; then  # readline replaces what comes after the last colon
        before=${cur%"${cur##*:}"}
        COMPREPLY=("${COMPREPLY[@]#"$before"}")
    fi
}
complete -F _atoll PROGRAMS
"""

_ZSH = r"""
_atoll() {
    emulate -L zsh
    local _atoll_path _atoll_kind _atoll_target _atoll_option reply value cur=${words[CURRENT]}
    local -a values shown directories
    _atoll_line "${(@)words[2,CURRENT-1]}"
    _atoll_values "${words[1]}" "$cur" | while IFS= read -r reply; do
        value=${reply%%$'\t'*}
        if [[ -z $value ]]; then continue; fi
        if [[ $value == */ ]]; then
            directories+=("$value")
        else
            values+=("$value")
            shown+=("${reply/$'\t'/  -- }")
        fi
    done
    if (( ${#values} )); then compadd -l -d shown -- "${values[@]}"; fi
    if (( ${#directories} )); then compadd -S '' -- "${directories[@]}"; fi
    case "$_atoll_kind" in
    file) _files ;;
    directory) _files -/ ;;
    esac
}
if [[ ${funcstack[1]} == _atoll ]]; then
    _atoll "$@"
else
    compdef _atoll PROGRAMS
fi
"""

_FISH = r"""
function __atoll_complete
    set -l words (commandline -opc)
    set -l cur (commandline -ct)
    set -l path ''
    set -l option ''
    set -l target ''
    set -l number 0
    for word in $words[2..-1]
        if test -n "$option"
            set option ''
            continue
        end
        if test "$path" = run -a -n "$target"
            continue
        end
        if string match -q -- '-*' $word
            set -l takes (__atoll_table "value:$path:$word")
            test -n "$takes"; and set option $word
        else if contains -- $word (__atoll_table "command:$path" | string split -f1 \t)
            set path (string trim -- "$path $word")
        else
            set number (math $number + 1)
            set target $word
        end
    end
    if test -n "$option"
        set -f kind (__atoll_table "value:$path:$option")
    else if test "$path" = run -a -n "$target"
        command $words[1] __complete parameter "$cur" "$target" 2>/dev/null
        return
    else
        if string match -q -- '-*' $cur
            __atoll_table "option:$path"
            return
        end
        test $number = 0; and __atoll_table "command:$path"
        set -f kind (__atoll_table "positional:$path:$number")
        test -n "$kind"; or set -f kind (__atoll_table "positional:$path:last")
    end
    switch "$kind"
        case '' -
        case file
            __fish_complete_path $cur
        case directory
            __fish_complete_directories $cur
        case '=*'
            string sub -s 2 -- $kind | string split ' '
        case '*'
            command $words[1] __complete "$kind" "$cur" 2>/dev/null
    end
end
"""


def completion(shell: Literal["bash", "zsh", "fish"] | None = None, /) -> int:
    """Print a script that completes commands, options and values in a shell.

    For bash add `eval "$(atoll completion bash)"` to ~/.bashrc, for zsh `eval "$(atoll completion zsh)"` to ~/.zshrc
    after `compinit`, and for fish run `atoll completion fish > ~/.config/fish/completions/atoll.fish`.

    Parameters
    ----------
    shell: str
        The shell; by default that of the variable SHELL.
    """
    from atoll.cli.main import command_table
    from atoll.cli.tables import wrong_usage

    chosen = shell or os.path.basename(variable("SHELL"))
    if chosen not in table.SHELLS:
        return wrong_usage(f"say one of {', '.join(table.SHELLS)}")
    echo_lines(script(chosen, table.commands(command_table())).rstrip("\n"))
    return 0


def script(shell: str, commands: Iterable[table.Command]) -> str:
    """Return the script for a shell."""
    head = f"# Completion of `atoll` in {shell}, printed by `atoll completion {shell}`.\n"
    if shell == "fish":
        ends = "".join(f"complete -c {name} -f -a '(__atoll_complete)'\n" for name in PROGRAMS)
        cases = _cases(commands, _in_fish, "        case {}\n            printf '%s\\n' {}\n")
        function = f"function __atoll_table\n    switch $argv[1]\n{cases}    end\nend\n"
        return head + function + _FISH + ends
    cases = _cases(commands, _in_posix, "    {}) printf '%s\\n' {} ;;\n")
    function = f'_atoll_table() {{\n    case "$1" in\n{cases}    esac\n}}\n'
    first = f"#compdef {' '.join(PROGRAMS)}\n" if shell == "zsh" else ""
    rest = (_ZSH if shell == "zsh" else _BASH).replace("PROGRAMS", " ".join(PROGRAMS))
    return first + head + function + _POSIX + rest


def _cases(commands: Iterable[table.Command], quoted: Callable[[str], str], form: str) -> str:
    """Return the rows of the table: a key, and its lines."""
    rows: list[tuple[str, list[str]]] = []
    for one in commands:
        for kind, pairs in (("command", one.commands), ("option", one.options)):
            if pairs:
                rows.append((f"{kind}:{one.path}", [f"{name}\t{about}" if about else name for name, about in pairs]))
        rows += [(f"value:{one.path}:{name}", [kind]) for name, kind in one.takes]
        rows += [(f"positional:{one.path}:{number}", [kind]) for number, kind in enumerate(one.positional)]
        rows += [(f"positional:{one.path}:last", [kind]) for kind in one.positional[-1:]]
    return "".join(form.format(quoted(key), " ".join(map(quoted, lines))) for key, lines in rows)


def _in_posix(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def _in_fish(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
