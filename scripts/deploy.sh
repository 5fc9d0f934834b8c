#!/usr/bin/env bash
# Applies an overlay, waits until it serves, and asks it for a prediction.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/kubectl.sh
source scripts/kubectl.sh
URL=
SMOKE=()

usage() {
  cat <<'USAGE'
usage: scripts/deploy.sh OVERLAY [--url URL] [--timeout SECONDS] [--dry-run] [-- FLAGS OF scripts/smoke.sh]

OVERLAY is a folder of kserve/overlays, `base`, or any folder with a kustomization.

  --url URL          smoke test through a gateway, instead of a port forwarded to the newest pod
  -n, --namespace NS the overlay's namespace (headway)
  --timeout SECONDS  bound for each wait (600)
  --dry-run          show the commands, change nothing
USAGE
}

# KIND/NAME of all that the folder makes and that gets ready.
workloads() {
  kubectl kustomize "$1" | awk '
    /^kind: (InferenceService|Deployment)$/ { kind = tolower($2) }
    /^---$/ { kind = "" }
    /^[a-z]/ { inside = ($1 == "metadata:") }
    kind && inside && /^  name: / { print kind "/" $2 }'
}

# Not `--for=condition=Ready`: kubectl compares generations then, and KServe puts the Deployment's in its own status.
wait_for() {
  case $1 in
    inferenceservice/*)
      run kubectl wait "$1" -n "$NAMESPACE" "--timeout=${TIMEOUT}s" '--for=jsonpath={.status.conditions[?(@.type=="Ready")].status}=True' ;;
    *) run kubectl rollout status "$1" -n "$NAMESPACE" "--timeout=${TIMEOUT}s" ;;
  esac
}

newest_pod() {
  kubectl get pods -n "$NAMESPACE" -l app.kubernetes.io/name=headway --field-selector=status.phase=Running \
    --sort-by=.metadata.creationTimestamp -o 'jsonpath={.items[-1:].metadata.name}'
}

# Sets URL to a port of this machine that leads to the newest pod, until the script ends.
forward() {
  local pod line end=$((SECONDS + 30))
  pod=$(newest_pod)
  [ -n "$pod" ] || die "No pod of Headway runs in namespace $NAMESPACE."
  log=$(mktemp)
  printf '+%s\n' "$(quoted kubectl port-forward "pod/$pod" -n "$NAMESPACE" :8080)"
  kubectl port-forward "pod/$pod" -n "$NAMESPACE" :8080 >"$log" 2>&1 &
  trap 'kill %1 2>/dev/null || true; rm -f "$log"' EXIT
  until line=$(grep -m 1 -o '127\.0\.0\.1:[0-9]*' "$log"); do
    [ "$SECONDS" -lt "$end" ] || die "The port was not forwarded: $(cat "$log")"
    sleep 0.2
  done
  URL=http://$line
}

words=()
while [ $# -gt 0 ]; do
  case $1 in
    --url | --timeout | -n | --namespace)
      [ $# -ge 2 ] || misused "$1 takes a value."
      case $1 in
        --url) URL=$2 ;;
        --timeout) TIMEOUT=$2 ;;
        *) NAMESPACE=$2 ;;
      esac
      shift
      ;;
    --dry-run) DRY_RUN=yes ;;
    -h | --help) usage && exit ;;
    --)
      shift
      SMOKE=("$@")
      break
      ;;
    -*) misused "There is no option $1." ;;
    *) words+=("$1") ;;
  esac
  shift
done
[ "${#words[@]}" = 1 ] || misused "Which overlay?"
folder=${words[0]}
for candidate in "kserve/overlays/$folder" "kserve/$folder"; do
  if [ -f "$candidate/kustomization.yaml" ]; then folder=$candidate && break; fi
done
[ -f "$folder/kustomization.yaml" ] || die "There is no kustomization in kserve/overlays/$folder, nor in $folder."
needs_kubectl
made=$(workloads "$folder")
[ -n "$made" ] || die "$folder makes no InferenceService and no Deployment: apply it with kubectl."
run kubectl apply -k "$folder"
while read -r workload; do wait_for "$workload"; done <<<"$made"
[ -n "$URL" ] || [ -n "$DRY_RUN" ] || forward
run scripts/smoke.sh "${URL:-http://127.0.0.1:8080}" ${SMOKE[@]+"${SMOKE[@]}"}
