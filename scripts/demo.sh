#!/usr/bin/env bash
# The embedded demo, from a fresh clone: a model in every scheme. Arguments go to `tvm-qplugin demo`.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
setup
exec tvm-qplugin demo "$@" </dev/null
