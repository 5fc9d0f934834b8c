#!/usr/bin/env bash
# Asks a running server everything that it must be able to answer, with curl alone.
set -euo pipefail
MODEL=
HOST=
INSTANCES=
VERSION=
HEADERS=()
BODY=
STATUS=
FAILED=0

usage() {
  cat <<'USAGE'
usage: scripts/smoke.sh URL [--model NAME] [--host HOST] [--header 'NAME: VALUE'] [--no-metrics] [--instances JSON]

Liveness, readiness, status, a V1 prediction, a V2 inference and the metrics of the server at URL. Exits 0 if all is well,
1 if not, with one line each.

  --model NAME      the model; without it, the first that the server lists
  --host HOST       the Host that a gateway routes by, when URL is the gateway's address
  --header H        sent with every request, for example an authorization; may stand more than once
  --version V       fail unless this version answers
  --no-metrics      /metrics is not asked for: a gateway should not let it through
  --instances JSON  V1 instances that the model takes; without them, one of zeros, made from the model's metadata
USAGE
}

misused() { printf '%s\n\n' "$*" >&2; usage >&2; exit 2; }

# ask METHOD PATH [BODY]: sets STATUS and BODY. 000 is a server that cannot be reached.
ask() {
  local given=(--silent --show-error --max-time 10 --request "$1" --write-out '\n%{http_code}')
  [ -z "$HOST" ] || given+=(--header "Host: $HOST")
  [ "${#HEADERS[@]}" = 0 ] || given+=("${HEADERS[@]}")
  [ $# -lt 3 ] || given+=(--header 'Content-Type: application/json' --data-binary "$3")
  BODY=$(curl "${given[@]}" "$URL$2" 2>&1) || true
  STATUS=${BODY##*$'\n'}
  BODY=${BODY%$'\n'*}
}

pass() { printf 'pass  %s\n' "$*"; }

fail() {
  printf 'FAIL  %s\n' "$*"
  FAILED=1
}

# What the last answer says is wrong: its `error` and `problem`, whole; else how it begins.
why() {
  local said
  said=$(grep -oE '"(error|problem)":"([^"\\]|\\.)*"' <<<"$BODY" | sed -E 's/^"(error|problem)":"(.*)"$/\2/' | awk '!seen[$0]++')
  if [ -n "$said" ]; then awk '{ printf "%s%s", (NR > 1 ? "; " : ""), $0 }' <<<"$said"; else head -c 300 <<<"$BODY"; fi
}

# expect WHAT PATTERN: the last answer is a 200, and its body matches the pattern.
expect() {
  if [ "$STATUS" = 200 ] && grep -Eq -- "$2" <<<"$BODY"; then
    pass "$1"
  else
    fail "$1: HTTP $STATUS: $(if [ "$STATUS" = 200 ]; then echo "the answer does not say so"; else why; fi)"
  fi
}

# The first string under a key, in an answer of ours: compact JSON.
text_of() { awk -v key="\"$1\":\"" '(at = index($0, key)) { split(substr($0, at + length(key)), said, "\""); print said[1]; exit }' <<<"$BODY"; }

# One input per line of the metadata in BODY: datatype, shape without the number of rows, and the name, which may hold spaces.
inputs() {
  sed -E 's/.*"inputs":\[(.*)\],"outputs":.*/\1/' <<<"$BODY" |
    grep -oE '"name":"[^"]*","datatype":"[A-Z0-9]+","shape":\[[-0-9,]*\]' |
    sed -E 's/"name":"([^"]*)","datatype":"([A-Z0-9]+)","shape":\[-?[0-9]+,?([-0-9,]*)\]/\2 [\3] \1/'
}

# A value that every model takes: these digits are a string, a date and base64.
blank_of() { case $1 in BYTES) echo '"19700101"' ;; BOOL) echo false ;; *) echo 0 ;; esac; }

repeated() { # VALUE COUNT
  local i out=$1
  for ((i = 1; i < $2; i++)); do out+=",$1"; done
  echo "$out"
}

# Sets V1 and V2 to one row of blanks: an object by name, and a tensor per input. A shape of [1] is that of a column.
build() {
  local datatype shape name count blank value sizes row=() tensors=()
  while read -r datatype shape name; do
    blank=$(blank_of "$datatype") count=1
    value=$blank
    IFS=, read -ra sizes <<<"$(tr -d '[]-' <<<"$shape")"
    if [ "${sizes[*]}" != 1 ]; then
      for ((i = ${#sizes[@]} - 1; i >= 0; i--)); do
        value="[$(repeated "$value" "${sizes[i]}")]"
        count=$((count * sizes[i]))
      done
    fi
    row+=("\"$name\":$value")
    shape=$(IFS=, && echo "1${sizes[*]:+,${sizes[*]}}")
    tensors+=("{\"name\":\"$name\",\"datatype\":\"$datatype\",\"shape\":[$shape],\"data\":[$(repeated "$blank" "$count")]}")
  done < <(inputs)
  V1="{\"instances\":[{$(IFS=, && echo "${row[*]}")}]}"
  V2="{\"inputs\":[$(IFS=, && echo "${tensors[*]}")]}"
}

first_model() {
  ask GET /v1/models
  sed -nE 's/^\{"models":\["([^"]*)".*/\1/p' <<<"$BODY"
}

# What no model is needed for.
check_server() {
  ask GET /v2/health/live
  expect "live" '"live":true'
  [ "$STATUS" != 000 ] || exit 1
  ask GET /v2/health/ready
  expect "ready" '"ready":true'
}

check_model() {
  ask GET "/v1/models/$MODEL"
  expect "status of $MODEL" '"ready":true'
  [ "$STATUS" = 200 ] || return 0
  local serves
  serves=$(text_of version)
  if [ -z "$VERSION" ] || [ "$serves" = "$VERSION" ]; then
    pass "version $serves of $MODEL serves"
  else
    fail "version $serves of $MODEL serves, and not $VERSION"
  fi
  ask GET "/v2/models/$MODEL"
  expect "metadata" '"inputs":\['
  build
  [ -z "$INSTANCES" ] || V1="{\"instances\":$INSTANCES}"
  ask POST "/v1/models/$MODEL:predict" "$V1"
  expect "V1 predict" '"predictions":\['
  ask POST "/v2/models/$MODEL/infer" "$V2"
  expect "V2 infer" '"outputs":\['
}

check_metrics() {
  ask GET /metrics
  expect "metrics: $MODEL is loaded" "^model_loaded\{model_name=\"$MODEL\",.*\} 1"
  expect "metrics: predictions are counted" "^model_predictions_total\{model_name=\"$MODEL\",.*\} [1-9]"
}

URL=
METRICS=yes
while [ $# -gt 0 ]; do
  case $1 in
    --model | --host | --header | --instances | --version)
      [ $# -ge 2 ] || misused "$1 takes a value."
      case $1 in
        --model) MODEL=$2 ;;
        --host) HOST=$2 ;;
        --header) HEADERS+=(--header "$2") ;;
        --instances) INSTANCES=$2 ;;
        --version) VERSION=$2 ;;
      esac
      shift
      ;;
    --no-metrics) METRICS= ;;
    -h | --help) usage && exit ;;
    -*) misused "There is no option $1." ;;
    *) [ -z "$URL" ] || misused "One URL." && URL=${1%/} ;;
  esac
  shift
done
[ -n "$URL" ] || misused "Which URL?"
command -v curl >/dev/null 2>&1 || { echo "There is no curl on the PATH." >&2 && exit 1; }
check_server
[ -n "$MODEL" ] || MODEL=$(first_model)
if [ -n "$MODEL" ]; then
  check_model
  [ -z "$METRICS" ] || check_metrics
else
  fail "the server lists no model"
fi
exit "$FAILED"
