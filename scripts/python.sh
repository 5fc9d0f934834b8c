# shellcheck shell=bash
# Sourced by scripts that need Python and nothing installed. run_module NAME WORDS… does not return.
run_module() {
  local root python
  root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
  for python in "$root/.venv/bin/python" python3.13 python3.12 python3.11 python3; do
    if command -v "$python" >/dev/null 2>&1 && "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
      # -P: not what lies in the folder that one happens to be in, which may have a scripts/ or a json.py of its own.
      PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" exec "$python" -P -m "$@"
    fi
  done
  echo "There is no Python 3.11 or newer on the PATH." >&2
  exit 1
}
