#!/usr/bin/env bash
# Sets everything up and passes lint, types, import contracts, and the tests; COVERAGE=1 also measures their branches.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
ensure_venv
export PATH="$ROOT/.venv/bin:$PATH" MLFLOW_DISABLE_TELEMETRY=true FEAST_USAGE=False
# Two test processes share the cores: an OpenMP thread that spins while it waits takes a core from whom it waits for.
export OMP_WAIT_POLICY=passive
say "lint";  ruff check . && ruff format --check -q .
say "types"; mypy
say "import contracts"; lint-imports --config setup.cfg >/tmp/headway-imports.$$ || { cat /tmp/headway-imports.$$; exit 1; }
rm -f /tmp/headway-imports.$$
say "tests"
tests=(-m pytest -n "${TEST_JOBS:-2}" --dist loadfile --no-loadscope-reorder "$@")
if [ -z "${COVERAGE:-}" ]; then exec python "${tests[@]}"; fi
coverage erase
coverage run "${tests[@]}"
coverage combine -q
coverage report
