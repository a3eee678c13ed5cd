# Set-up shared by the scripts: source it, then call `setup` or `setup test`.
# It makes a virtual environment in .venv (QPLUGIN_VENV), installs the project and a C++ compiler,
# and does nothing when that has been done for this pyproject.toml.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
VENV=${QPLUGIN_VENV:-$ROOT/.venv}

# Where the models and data lie; relative to the repository. Set but empty: there are none.
QPLUGIN_DATA=${QPLUGIN_DATA-../shared}
case $QPLUGIN_DATA in "" | /*) ;; *) QPLUGIN_DATA=$ROOT/$QPLUGIN_DATA ;; esac
export QPLUGIN_DATA PIP_NO_INPUT=1 PIP_DISABLE_PIP_VERSION_CHECK=1

say() { printf '%s\n' "$*" >&2; }

die() {
  say "error: $*"
  exit 1
}

# install_package PACKAGE WHY: from the distribution, as root only.
install_package() {
  command -v apt-get >/dev/null || die "$2; install it (Debian's package: $1)"
  [ "$(id -u)" = 0 ] || die "$2; ask an administrator for: apt-get install $1"
  say "Installing $1 ..."
  export DEBIAN_FRONTEND=noninteractive
  apt-get install -y -q "$1" </dev/null >/dev/null 2>&1 ||
    { apt-get update -q </dev/null >&2 && apt-get install -y -q "$1" </dev/null >&2; } ||
    die "$2, and apt-get could not install $1"
}

# The first Python from 3.11 on; PYTHON overrides.
find_python() {
  local candidate
  for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      printf '%s\n' "$candidate"
      return
    fi
  done
  die "no Python 3.11 or newer found${PYTHON:+ (PYTHON=$PYTHON)}; install one or set PYTHON"
}

make_venv() {
  "$VENV/bin/python" -m pip --version >/dev/null 2>&1 && return
  local python
  python=$(find_python) || exit 1
  rm -rf "$VENV"
  if ! "$python" -m venv "$VENV" >/dev/null 2>&1; then
    rm -rf "$VENV"
    install_package python3-venv "Python's module venv is not complete"
    "$python" -m venv "$VENV" >&2 || die "$python -m venv $VENV failed"
  fi
}

# setup [EXTRA]: afterwards the environment's programs come first in PATH.
setup() {
  local extra=${1:-} stamp want
  if [ -z "${CXX:-}" ] && ! command -v g++ >/dev/null && ! command -v clang++ >/dev/null; then
    install_package g++ "no C++ compiler found, which links the compiled models"
  fi
  make_venv
  stamp=$VENV/.installed${extra:+-$extra}
  want="$ROOT $(sha256sum <"$ROOT/pyproject.toml") $("$VENV/bin/python" -V)"
  if [ "$(cat "$stamp" 2>/dev/null)" != "$want" ]; then
    say "Installing the project in $VENV (a minute or two, once) ..."
    "$VENV/bin/python" -m pip install -q -e "$ROOT${extra:+[$extra]}" </dev/null >&2 ||
      die "pip could not install the project"
    printf '%s\n' "$want" >"$VENV/.installed"
    printf '%s\n' "$want" >"$stamp"
  fi
  export PATH="$VENV/bin:$PATH"
}
