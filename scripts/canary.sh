#!/usr/bin/env bash
# A canary by hand: version and share of the traffic in one patch, and every command shown before it runs.
set -euo pipefail
# shellcheck source=scripts/kubectl.sh
source "$(dirname "${BASH_SOURCE[0]}")/kubectl.sh"
SERVICE=predictive-maintenance
ROUTE=
CONTAINER=/spec/predictor/containers/0
PERCENT=/spec/predictor/canaryTrafficPercent

usage() {
  cat <<'USAGE'
usage: scripts/canary.sh [options] start VERSION PERCENT   another version, and its share of the traffic
       scripts/canary.sh [options] widen PERCENT           another share
       scripts/canary.sh [options] promote                 everything to the canary
       scripts/canary.sh [options] rollback [VERSION]      everything back, also after a promotion
       scripts/canary.sh [options] status                  who gets what

  --service NAME      InferenceService (predictive-maintenance)
  --route NAME        Standard mode: a weighted HTTPRoute over two InferenceServices, the stable one first
  -n, --namespace NS  namespace (headway)
  --timeout SECONDS   bound for each wait (600)
  --dry-run           read the cluster, show the commands, change nothing

Without --route it needs KServe's Knative mode. A rollback restores MODEL_VERSION from the revision that it goes back to;
with --route, after a promotion, from VERSION.
USAGE
}

# --- reading -------------------------------------------------------------------------------------------------------

# read_from KIND/NAME TEMPLATE
read_from() { kubectl get "$1" -n "$NAMESPACE" -o "jsonpath=$2"; }

model_version() { read_from "$1" "{$2.containers[0].env[?(@.name==\"MODEL_VERSION\")].value}"; }

# Sets what is known of the InferenceService: one field a line, empty where there is none.
observe() {
  local predictor='.status.components.predictor' template field found
  for field in .status.deploymentMode '.metadata.annotations.serving\.kserve\.io/deploymentMode' \
    .spec.predictor.canaryTrafficPercent "$predictor.latestCreatedRevision" "$predictor.latestReadyRevision" \
    "$predictor.latestRolledoutRevision" "$predictor.previousRolledoutRevision" \
    '.spec.predictor.containers[0].env[?(@.name=="MODEL_VERSION")].value'; do
    template=${template:-}"{$field}{\"\\n\"}"
  done
  found=$(read_from "inferenceservice/$SERVICE" "$template") || exit
  mapfile -t found <<<"$found"
  MODE=${found[0]-} ANNOTATED=${found[1]-} SHARE=${found[2]-} CREATED=${found[3]-}
  READY=${found[4]-} ROLLED_OUT=${found[5]-} PREVIOUS=${found[6]-} VERSION=${found[7]-}
}

# The index of MODEL_VERSION in the environment of an InferenceService's first container.
version_index() {
  local names index
  names=$(read_from "inferenceservice/$1" '{range .spec.predictor.containers[0].env[*]}{.name}{"\n"}{end}')
  index=$(awk '$0 == "MODEL_VERSION" { print NR - 1; exit }' <<<"$names")
  [ -n "$index" ] || die "InferenceService $1 has no MODEL_VERSION in its first container: there is no version to move."
  echo "$index"
}

# --- checks --------------------------------------------------------------------------------------------------------

checked_percent() {
  case $1 in [1-9] | [1-9][0-9]) ;; *) misused "PERCENT is a whole number from 1 to 99, not '$1'." ;; esac
}

checked_version() {
  case $1 in
    '' | *[!0-9]*) misused "VERSION is a number, not '$1': an alias that moves cuts no revision, and pods would swap by themselves." ;;
  esac
}

needs_knative() {
  case ${MODE:-$ANNOTATED} in
    Knative | Serverless) ;;
    *) die "InferenceService $SERVICE is in mode ${MODE:-${ANNOTATED:-unknown}}, where KServe ignores canaryTrafficPercent and rolls a" \
      "new version out to everybody. Use --route with overlays/standard-canary, or overlays/knative." ;;
  esac
}

in_flight() {
  case $SHARE in
    '') die "No canary is in flight. A percent alone would not make one: it takes the rolled-out revision back." ;;
    0) die "This canary was rolled back: \`rollback\` finishes that." ;;
  esac
}

# --- KServe's percent, in Knative mode ------------------------------------------------------------------------------

patch_service() { run kubectl patch "inferenceservice/$1" -n "$NAMESPACE" "--type=$2" -p "$3"; }

# Operations of a JSON patch that move MODEL_VERSION. A merge patch would replace the whole list of containers; an index
# alone could hit another variable. The tests make the patch fail, as a whole, if somebody else was faster.
move_version() { # INDEX OLD NEW
  local at="$CONTAINER/env/$1"
  printf '{"op":"test","path":"%s/name","value":"MODEL_VERSION"},' "$at"
  printf '{"op":"test","path":"%s/value","value":"%s"},{"op":"replace","path":"%s/value","value":"%s"}' "$at" "$2" "$at" "$3"
}

start_canary() { # VERSION PERCENT
  local index
  [ -z "$SHARE" ] || die "A canary is in flight, and a second one would replace it: promote it or roll it back first."
  [ -n "$ROLLED_OUT" ] || die "Nothing of $SERVICE was ever rolled out: KServe would ignore the percent, and give everything to version $1."
  [ "$ROLLED_OUT" = "$CREATED" ] || die "Revision $CREATED is not rolled out yet: wait until it is, or roll it back."
  index=$(version_index "$SERVICE")
  [ "$VERSION" != "$1" ] || die "MODEL_VERSION is $1 already. The percent alone cuts no revision: it takes the rolled-out one back."
  patch_service "$SERVICE" json "[$(move_version "$index" "$VERSION" "$1"),{\"op\":\"add\",\"path\":\"$PERCENT\",\"value\":$2}]"
}

set_percent() { patch_service "$SERVICE" merge "{\"spec\":{\"predictor\":{\"canaryTrafficPercent\":$1}}}"; }

remove_percent() { patch_service "$SERVICE" json "[{\"op\":\"remove\",\"path\":\"$PERCENT\"}]"; }

widen_canary() {
  in_flight
  set_percent "$1"
}

promote_canary() {
  in_flight
  [ "$CREATED" = "$READY" ] || die "Revision $CREATED is not ready: it would get everything the moment it is."
  remove_percent
}

# Percent 0 first: at once the good revision has everything. Then the spec is restored, which cuts a third revision, and
# only when that is ready the percent goes: until then "the newest ready revision" is the rejected one.
roll_back() { # [VERSION]
  local rejected=$CREATED good=$ROLLED_OUT version
  [ "$good" != "$rejected" ] || good=$PREVIOUS # rolled out already: KServe steps back by one
  [ -n "$good" ] && [ "$good" != "$rejected" ] || die "There is no earlier revision to go back to: \`start\` the version that you want."
  version=${1:-$(model_version "revision/$good" .spec)}
  [ -n "$version" ] || die "Revision $good names no MODEL_VERSION: say which VERSION to restore."
  set_percent 0
  run kubectl wait "inferenceservice/$SERVICE" -n "$NAMESPACE" \
    "--for=jsonpath={.status.components.predictor.latestRolledoutRevision}=$good" "--timeout=${TIMEOUT}s"
  restore "$version" "$rejected"
  same_template "$good"
  remove_percent
}

restore() { # VERSION REJECTED
  local index
  index=$(version_index "$SERVICE")
  if [ "$VERSION" = "$1" ]; then # an earlier run came as far as this
    await_newer_than ''
  else
    patch_service "$SERVICE" json "[$(move_version "$index" "$VERSION" "$1")]"
    await_newer_than "$2"
  fi
}

await_newer_than() { # REVISION
  local end=$((SECONDS + TIMEOUT))
  printf '# wait until latestReadyRevision is latestCreatedRevision%s\n' "${1:+, and newer than $1}"
  [ -z "$DRY_RUN" ] || return 0
  while observe; [ "$CREATED" = "$1" ] || [ "$CREATED" != "$READY" ]; do
    [ "$SECONDS" -lt "$end" ] || die "No newer revision is ready after $TIMEOUT s. The percent stays at 0, so nothing is lost: run rollback again."
    sleep 1
  done
}

# A rejected canary may have changed more than the version.
same_template() { # GOOD
  [ -n "$DRY_RUN" ] || [ "$(read_from "revision/$CREATED" '{.spec}')" = "$(read_from "revision/$1" '{.spec}')" ] ||
    die "Revision $CREATED differs from $1 in more than the version. The percent stays at 0: restore the rest of the spec," \
      "and remove $PERCENT when the revision is ready."
}

show_status() {
  local percent revision
  printf '%-20s  %s\n' 'canaryTrafficPercent' "$SHARE" 'newest' "$CREATED" 'newest ready' "$READY" \
    'rolled out' "$ROLLED_OUT" 'rolled out before' "$PREVIOUS"
  read_from "inferenceservice/$SERVICE" '{range .status.components.predictor.traffic[*]}{.percent} {.revisionName}{"\n"}{end}' |
    while read -r percent revision; do
      printf '%3s %%  version %s  %s\n' "$percent" "$(model_version "revision/$revision" .spec)" "$revision"
    done
}

# --- weights of a route, in Standard mode ---------------------------------------------------------------------------

# The rule with two weighted backends: the stable one, then the canary. Their Services are named as KServe names them.
read_route() {
  local rules
  rules=$(read_from "httproute/$ROUTE" '{range .spec.rules[*]}{.backendRefs[*].name} {.backendRefs[*].weight}{"\n"}{end}')
  read -r RULE STABLE CANARY STABLE_WEIGHT CANARY_WEIGHT < <(awk 'NF == 4 { print NR - 1, $0; exit }' <<<"$rules") ||
    die "HTTPRoute $ROUTE has no rule with two weighted backends."
}

route_in_flight() { [ "$CANARY_WEIGHT" != 0 ] || die "No canary is in flight: $CANARY has weight 0."; }

set_weights() { # PERCENT
  local at="/spec/rules/$RULE/backendRefs" test
  test="{\"op\":\"test\",\"path\":\"$at/0/name\",\"value\":\"$STABLE\"},{\"op\":\"test\",\"path\":\"$at/1/name\",\"value\":\"$CANARY\"}"
  run kubectl patch "httproute/$ROUTE" -n "$NAMESPACE" --type=json -p \
    "[$test,{\"op\":\"replace\",\"path\":\"$at/0/weight\",\"value\":$((100 - $1))},{\"op\":\"replace\",\"path\":\"$at/1/weight\",\"value\":$1}]"
}

# Moves the version of the InferenceService behind a backend, and waits until no pod of the old one is left.
roll_out() { # BACKEND VERSION
  local service=${1%-predictor} index old
  index=$(version_index "$service")
  old=$(model_version "inferenceservice/$service" .spec.predictor)
  if [ "$old" != "$2" ]; then patch_service "$service" json "[$(move_version "$index" "$old" "$2")]"; fi
  run kubectl wait "deployment/$1" -n "$NAMESPACE" "--timeout=${TIMEOUT}s" \
    "--for=jsonpath={.spec.template.spec.containers[0].env[?(@.name==\"MODEL_VERSION\")].value}=$2"
  run kubectl rollout status "deployment/$1" -n "$NAMESPACE" "--timeout=${TIMEOUT}s"
}

start_route() { # VERSION PERCENT
  [ "$CANARY_WEIGHT" = 0 ] || die "A canary is in flight: promote it or roll it back first."
  roll_out "$CANARY" "$1"
  set_weights "$2"
}

widen_route() {
  route_in_flight
  set_weights "$1"
}

promote_route() {
  route_in_flight
  roll_out "$STABLE" "$(model_version "inferenceservice/${CANARY%-predictor}" .spec.predictor)"
  set_weights 0
}

roll_back_route() { # [VERSION]
  [ -n "${1:-}" ] || route_in_flight
  set_weights 0
  [ -z "${1:-}" ] || roll_out "$STABLE" "$1"
}

show_route() {
  local backend
  for backend in "$STABLE $STABLE_WEIGHT" "$CANARY $CANARY_WEIGHT"; do
    printf '%3s %%  version %s  %s\n' "${backend#* }" \
      "$(model_version "inferenceservice/${backend%-predictor *}" .spec.predictor)" "${backend% *}"
  done
}

# --- the command ----------------------------------------------------------------------------------------------------

words=()
while [ $# -gt 0 ]; do
  case $1 in
    --service | --route | -n | --namespace | --timeout)
      [ $# -ge 2 ] || misused "$1 takes a value."
      case $1 in
        --service) SERVICE=$2 ;;
        --route) ROUTE=$2 ;;
        --timeout) TIMEOUT=$2 ;;
        *) NAMESPACE=$2 ;;
      esac
      shift
      ;;
    --dry-run) DRY_RUN=yes ;;
    -h | --help) usage && exit ;;
    -*) misused "There is no option $1." ;;
    *) words+=("$1") ;;
  esac
  shift
done
case "${words[0]:-} ${#words[@]}" in
  'start 3') checked_version "${words[1]}" && checked_percent "${words[2]}" ;;
  'widen 2') checked_percent "${words[1]}" ;;
  'rollback 2') checked_version "${words[1]}" ;;
  'promote 1' | 'rollback 1' | 'status 1') ;;
  *) misused "start VERSION PERCENT, widen PERCENT, promote, rollback [VERSION] or status." ;;
esac
needs_kubectl
if [ -n "$ROUTE" ]; then read_route; else observe && needs_knative; fi
case "${words[0]}${ROUTE:+ by route}" in
  start) start_canary "${words[1]}" "${words[2]}" ;;
  widen) widen_canary "${words[1]}" ;;
  promote) promote_canary ;;
  rollback) roll_back "${words[1]:-}" ;;
  status) show_status ;;
  'start by route') start_route "${words[1]}" "${words[2]}" ;;
  'widen by route') widen_route "${words[1]}" ;;
  'promote by route') promote_route ;;
  'rollback by route') roll_back_route "${words[1]:-}" ;;
  'status by route') show_route ;;
esac
