# Copy the version of $NAME that passed gate.sh from $FROM to $TO, and let `stable` name it there.
set -eu
trap 'exit 143' INT TERM # as in gate.sh
passed=$(cat "$STATE/version") # else it would be the default version
models copy "$NAME/$passed" --models "$FROM" --to "$TO" --json >"$STATE/copied" &
wait $!
version=$(python -c 'import json, sys; print(json.load(sys.stdin)["version"])' <"$STATE/copied")
exec models promote "$NAME/$version" --models "$TO"
