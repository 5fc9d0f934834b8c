#!/usr/bin/env bash
# Sets everything up and passes lint, types, import contracts, and the tests with branch coverage.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
ensure_venv
export PATH="$ROOT/.venv/bin:$PATH" MLFLOW_DISABLE_TELEMETRY=true FEAST_USAGE=False
say "lint";  ruff check . && ruff format --check -q .
say "types"; mypy
say "import contracts"; lint-imports --config setup.cfg >/tmp/headway-imports.$$ || { cat /tmp/headway-imports.$$; exit 1; }
rm -f /tmp/headway-imports.$$
say "tests"
coverage erase
coverage run -m pytest -n "${TEST_JOBS:-2}" --dist loadfile "$@"
coverage combine -q
coverage report
