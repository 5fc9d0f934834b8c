#!/usr/bin/env bash
# Applies an overlay, waits until it serves, and asks it for a prediction.
set -euo pipefail
# shellcheck source=scripts/python.sh
source "$(dirname "${BASH_SOURCE[0]}")/python.sh"
run_module scripts.deploy "$@"
