#!/usr/bin/env bash
# Builds both images and uses them, with Debian's buildah and no image registry:
#   the train image trains on a mounted folder and publishes; the serve image serves that version,
#   becomes healthy and answers Classify; that with Parquet does a batch job; all as their own user,
#   with a read-only root, offline.
# As root:  apt-get install buildah debootstrap iproute2 && tests/containers/build.sh [cpu|cuda]
# The store stays in PAWPRINT_CONTAINERS (default /var/tmp/pawprint-containers) for the next run.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/containers/base.sh
. tests/containers/inside.sh

VARIANT=${1:-cpu}
WORK=${PAWPRINT_CONTAINERS:-/var/tmp/pawprint-containers}
BASE=localhost/pawprint-test-base
SERVE=localhost/pawprint-serve BATCH=localhost/pawprint-serve-parquet TRAIN=localhost/pawprint-train
VERSION=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
REVISION=$(git -c safe.directory='*' rev-parse HEAD)
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
  bd build --layers --isolation chroot --format docker --pull-never --build-arg "BASE=$BASE" \
    --build-arg "VERSION=$VERSION" --build-arg "REVISION=$REVISION" --build-arg "SOURCE=$PWD" "$@" \
    --file "$file" --tag "$image" . >"$WORK/$file.log" 2>&1 || { tail -n 30 "$WORK/$file.log" >&2; die "$file"; }
  say "$image: $(bd images --format '{{.Size}}' "$image"), of which the base $(bd images --format '{{.Size}}' "$BASE"); built in $((SECONDS - start)) s"
}

label_of() { bd inspect --type image --format "{{index .Docker.Config.Labels \"org.opencontainers.image.$2\"}}" "$1"; }

check_contents() { # IMAGE MODULE_THAT_MUST_NOT_BE_THERE...
  local image=$1 container root module packages label
  shift
  container=$(bd from --pull-never "$image")
  root=$(bd mount "$container")
  for module in "$@" pytest; do
    [ -z "$(find "$root/opt/pawprint/lib" -maxdepth 4 -name "$module" -print -quit)" ] || die "$image holds $module"
  done
  [ -z "$(find "$root" -xdev -regextype egrep -regex '.*/s?bin/([^/]*-)?(gcc|g\+\+|cc|c\+\+|uv|pip)(-?[0-9.]+)?' -print -quit)" ] || die "$image holds a compiler or an installer"
  [ -z "$(find "$root/opt/pawprint" -type d -name tests -print -quit)" ] || die "$image holds tests"
  [ -z "$(find "$root/opt/pawprint" -perm -o+w ! -type l -print -quit)" ] || die "$image: others may write in /opt/pawprint"
  [ "$(bd inspect --type image --format '{{.Docker.Config.User}}' "$image")" = 10001:10001 ] || die "$image runs as root"
  for label in "version=$VERSION" "revision=$REVISION" "source=$PWD"; do
    [ "$(label_of "$image" "${label%%=*}")" = "${label#*=}" ] || die "$image: label ${label%%=*} is '$(label_of "$image" "${label%%=*}")'"
  done
  packages=$(grep -c '"bom-ref": ".*==' "$root/opt/pawprint/sbom.cdx.json") || die "$image: no package in sbom.cdx.json"
  say "$image: $packages packages in sbom.cdx.json"
  cp "$root/opt/pawprint/sbom.cdx.json" "$WORK/$(basename "$image").cdx.json"
  bd rm "$container" >/dev/null
}

make_base "$BASE" "$WORK"
build "$SERVE" Dockerfile.serve --build-arg "VARIANT=$VARIANT"
build "$BATCH" Dockerfile.serve --build-arg "EXTRAS=s3 parquet"
build "$TRAIN" Dockerfile.train
check_contents "$SERVE" torch onnx matplotlib pyarrow
check_contents "$BATCH" torch onnx matplotlib
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

say "the image with Parquet: a batch job"
mkdir "$scratch/results"
chown 10001:10001 "$scratch/results"
(jail "$BATCH" "$scratch/models:/models:ro" "$scratch/photos:/photos:ro" "$scratch/results:/results" -- sh -euc '
  serve & trap "kill $!" EXIT
  for _ in $(seq 100); do python -m serving.probe && break; sleep 0.3; done
  classify /photos --out /results --model cartoon
  python -c "import pyarrow.parquet as pq; print(pq.read_table(\"/results\").num_rows, \"rows\")"') >"$WORK/batch.out" 2>&1 \
  || { tail -n 20 "$WORK/batch.out" >&2; die "the batch job"; }
expect "$(cat "$WORK/batch.out")" "$(find "$scratch/photos" -name '*.jpg' | wc -l) rows"
say "passed"
