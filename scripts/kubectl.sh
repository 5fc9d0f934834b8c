# shellcheck shell=bash
# shellcheck disable=SC2034  # used by who sources it
# Sourced by the scripts that drive a cluster: every command that changes something is shown, as it can be pasted.
DRY_RUN=
NAMESPACE=headway
TIMEOUT=600

die() { printf '%s\n' "$*" >&2; exit 1; }

misused() { printf '%s\n\n' "$*" >&2; usage >&2; exit 2; }

needs_kubectl() { command -v kubectl >/dev/null 2>&1 || die "There is no kubectl on the PATH."; }

# A command as a shell reads it. Our JSON has no single quotes in it.
quoted() {
  local word
  for word in "$@"; do
    case $word in
      *[!A-Za-z0-9_./:=@,-]*) printf " '%s'" "$word" ;;
      *) printf ' %s' "$word" ;;
    esac
  done
}

run() {
  printf '+%s\n' "$(quoted "$@")"
  [ -n "$DRY_RUN" ] || "$@"
}
