#!/usr/bin/env bash
# Sets everything up and runs the main job on embedded stores. `--once`: exit 0 after the check, everything stopped.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
ensure_venv
exec .venv/bin/python -m scripts.quickstart "$@"
