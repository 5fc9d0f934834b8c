# Sourced by the other scripts: makes .venv with the pinned set, once per change of requirements.txt or setup.cfg.
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$ROOT"

say() { printf '%s\n' "$*" >&2; }

find_python() {
  for candidate in "${PYTHON:-}" python3.11 python3.12 python3.13 python3; do
    [ -n "$candidate" ] && command -v "$candidate" >/dev/null 2>&1 || continue
    if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))'; then
      echo "$candidate"
      return
    fi
  done
  say "Headway needs Python 3.11, 3.12 or 3.13 (tested on 3.11), and there is none on the PATH; set PYTHON=/path/to/python3.11."
  return 1
}

ensure_venv() {
  local python stamp
  stamp=$(cat requirements.txt setup.cfg pyproject.toml | cksum)
  if [ -f .venv/headway-stamp ] && [ "$(cat .venv/headway-stamp)" = "$stamp" ]; then return; fi
  python=$(find_python)
  say "Installing into .venv (2.7 GB with torch for the CPU; PyPI's torch for Linux brings CUDA on top; once, a few minutes) ..."
  [ -x .venv/bin/python ] || "$python" -m venv .venv
  .venv/bin/python -m pip install --disable-pip-version-check --progress-bar off -r requirements.txt |
    awk '/^Collecting/ { n++; if (n % 25 == 0) { print "  ... " n " packages found"; fflush() } }' >&2
  .venv/bin/python -m pip install --disable-pip-version-check -q --no-deps --no-build-isolation -e .
  echo "$stamp" > .venv/headway-stamp
}
