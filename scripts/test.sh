#!/usr/bin/env bash
# All tests, from a fresh clone. Arguments go to pytest: scripts/test.sh tests/ops -k conv
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
setup test
cd "$ROOT"

# The slow tests that CI runs beside all the others: files, or the beginnings of test ids.
SLOW_SAMPLE=(
  tests/test_packaging.py
  tests/test_bench.py::test_command
  tests/test_real_models.py::test_whole_way_equals_oracle
  tests/tflite/test_export.py::test_real_models
  tests/tflite/test_export16.py::test_real_models
  tests/tflite/test_export_float.py::test_a_real_model
  tests/tflite/test_vela.py::test_our_exports_run_on_the_npu
  'tests/random_graphs/test_random_graphs.py::test_other_profiles_at_length[200-'
)

# Two processes of one thread each; unbound, because TVM would pin all of them to the first core.
export TVM_NUM_THREADS=${TVM_NUM_THREADS:-1} TVM_BIND_THREADS=${TVM_BIND_THREADS:-0}
options=(-n "${QPLUGIN_TEST_PROCESSES:-2}" --dist loadfile)
if [ "${CI:-}" = true ]; then
  export QPLUGIN_SLOW="${SLOW_SAMPLE[*]}"
else
  options+=(-m "not slow")
fi
exec "$VENV/bin/python" -m pytest "${options[@]}" "$@" </dev/null
