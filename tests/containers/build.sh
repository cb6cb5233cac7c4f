#!/usr/bin/env bash
# Builds both images and uses them, with Debian's buildah and no image registry:
#   the train image trains on a mounted folder and publishes; the serve image serves that version,
#   becomes healthy and answers Classify; both as their own user, with a read-only root, offline.
# As root:  apt-get install buildah debootstrap iproute2 && tests/containers/build.sh [cpu|cuda]
# The store stays in PAWPRINT_CONTAINERS (default /var/tmp/pawprint-containers) for the next run.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/containers/base.sh
. tests/containers/inside.sh

VARIANT=${1:-cpu}
WORK=${PAWPRINT_CONTAINERS:-/var/tmp/pawprint-containers}
BASE=localhost/pawprint-test-base
SERVE=localhost/pawprint-serve TRAIN=localhost/pawprint-train
mkdir -p "$WORK"

bd() { buildah --root "$WORK/store" --runroot "$WORK/run" "$@"; }
say() { printf '== %s\n' "$*"; }
die() { printf 'FAILED: %s\n' "$*" >&2; exit 1; }
expect() { [[ $1 == *"$2"* ]] || die "expected '$2' in: $1"; }

scratch=$(mktemp -d) server=
trap '[ -z "$server" ] || kill "$server" 2>/dev/null || true; bd rm --all >/dev/null; rm -rf "$scratch"' EXIT

build() { # IMAGE DOCKERFILE [ARGUMENT...]
  local image=$1 file=$2 start=$SECONDS
  shift 2
  bd build --layers --isolation chroot --format docker --pull-never --build-arg "BASE=$BASE" "$@" \
    --file "$file" --tag "$image" . >"$WORK/$file.log" 2>&1 || { tail -n 30 "$WORK/$file.log" >&2; die "$file"; }
  say "$image: $(bd images --format '{{.Size}}' "$image"), of which the base $(bd images --format '{{.Size}}' "$BASE"); built in $((SECONDS - start)) s"
}

check_contents() { # IMAGE MODULE_THAT_MUST_NOT_BE_THERE...
  local image=$1 container root module
  shift
  container=$(bd from --pull-never "$image")
  root=$(bd mount "$container")
  for module in "$@" pytest; do
    [ -z "$(find "$root/opt/pawprint/lib" -maxdepth 4 -name "$module" -print -quit)" ] || die "$image holds $module"
  done
  [ -z "$(find "$root/usr/bin" "$root/opt/pawprint/bin" -regextype egrep -regex '.*/([^/]*-)?(gcc|g\+\+|cc|c\+\+|uv|pip)(-[0-9.]+)?' -print -quit)" ] || die "$image holds a compiler or an installer"
  [ -z "$(find "$root/opt/pawprint" -type d -name tests -print -quit)" ] || die "$image holds tests"
  [ -z "$(find "$root/opt/pawprint" -perm -o+w ! -type l -print -quit)" ] || die "$image: others may write in /opt/pawprint"
  [ "$(bd inspect --type image --format '{{.Docker.Config.User}}' "$image")" = 10001:10001 ] || die "$image runs as root"
  say "$image: $(grep -c '"bom-ref": ".*=='  "$root/opt/pawprint/sbom.cdx.json") packages in sbom.cdx.json"
  cp "$root/opt/pawprint/sbom.cdx.json" "$WORK/$(basename "$image").cdx.json"
  bd rm "$container" >/dev/null
}

make_base "$BASE" "$WORK"
build "$SERVE" Dockerfile.serve --build-arg "VARIANT=$VARIANT"
build "$TRAIN" Dockerfile.train
check_contents "$SERVE" torch onnx matplotlib
check_contents "$TRAIN"

say "the train image: cartoons -> a version"
mkdir "$scratch"/{photos,models}
chown 10001:10001 "$scratch"/{photos,models}
chmod 755 "$scratch"
(jail "$TRAIN" "$scratch/photos:/data" -- \
  python -c 'from pathlib import Path; from trainer.cartoons import write_cartoons; write_cartoons(Path("/data"), per_class=60)')
(jail "$TRAIN" "$scratch/photos:/data:ro" "$scratch/models:/models" -- \
  train --data /data --name cartoon --backbone tiny --weights none --out /models) >"$WORK/train.out" 2>&1 \
  || { tail -n 20 "$WORK/train.out" >&2; die "train"; }
[ -s "$scratch/models/cartoon/1/manifest.json" ] || die "nothing was published"
expect "$( (jail "$TRAIN" "$scratch/models:/models:ro" -- models verify --models /models) )" "cartoon/1: whole and unaltered"
set +e
(jail "$TRAIN" -- touch /opt/pawprint/x) 2>/dev/null && die "the root is not read-only"
set -e

say "the serve image: starts, becomes healthy, answers, stops"
mapfile -t entrypoint < <(setting "$SERVE" Entrypoint)
mapfile -t check < <(setting "$SERVE" Healthcheck.Test | tail -n +2)
(jail "$SERVE" "$scratch/models:/models:ro" "$scratch/photos:/photos:ro" -- "${entrypoint[@]}") >"$WORK/serve.out" 2>&1 &
server=$!
for _ in $(seq 100); do
  pid=$(pgrep -P "$server" || true)
  [ -n "$pid" ] && said=$(in_running "$pid" "$SERVE" "${check[@]}" 2>&1) && break
  kill -0 "$server" 2>/dev/null || { cat "$WORK/serve.out" >&2; die "serve ended"; }
  sleep 0.3
done
expect "${said:-}" SERVING
for folder in "$scratch"/photos/*/; do
  label=$(basename "$folder")
  photo=$(find "$folder" -name '*.jpg' -printf '%f\n' | sort | head -n 1)
  answer=$(in_running "$pid" "$SERVE" classify --model cartoon --json "/photos/$label/$photo")
  say "$answer"
  expect "$answer" '"probability"'
done
expect "$(in_running "$pid" "$SERVE" python -c 'import os; print(os.getuid())')" 10001
kill -TERM "$pid"
wait "$server" || die "serve ended with status $? after SIGTERM: $(tail -n 3 "$WORK/serve.out")"
server=
say "stopped with status 0: $(tail -n 1 "$WORK/serve.out")"
say "passed"
