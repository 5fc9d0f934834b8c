#!/usr/bin/env bash
# The verb `headway canary`, for who has the repository and nothing installed.
set -euo pipefail
# shellcheck source=scripts/python.sh
source "$(dirname "${BASH_SOURCE[0]}")/python.sh"
run_module serving.rollout.command "$@"
