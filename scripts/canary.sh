#!/usr/bin/env bash
# The verb `headway canary`, for who has the repository and nothing installed: it needs Python 3.11 and kubectl.
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
for python in "$ROOT/.venv/bin/python" python3.13 python3.12 python3.11 python3; do
  command -v "$python" >/dev/null 2>&1 && "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' && break
  python=
done
[ -n "$python" ] || { echo "There is no Python 3.11 or newer on the PATH." >&2; exit 1; }
PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}" exec "$python" -m serving.rollout.command "$@"
